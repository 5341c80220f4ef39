//! Whether threads of two guests can be kept off one core at a time: they share its caches, by which one can find out
//! what the other does. The VMM marks the threads of each guest for the kernel (`PR_SCHED_CORE`), and goes on in silence
//! where the kernel does not know of it, so drover looks itself:
//! <https://www.kernel.org/doc/html/latest/admin-guide/hw-vuln/core-scheduling.html>.

use std::path::Path;

/// Where Linux says whether cores have several threads.
const SMT: &str = "/sys/devices/system/cpu/smt/active";
const PR_SCHED_CORE: libc::c_int = 62;
const PR_SCHED_CORE_GET: libc::c_ulong = 0;
const PR_SCHED_CORE_SCOPE_THREAD: libc::c_ulong = 0;

/// How guests share cores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cores {
    /// Each core runs one thread at a time.
    Single,
    /// Cores run several, and the kernel lets those of one guest alone run beside each other.
    Apart,
    /// Cores run several, of whatever guests.
    Shared,
}

impl Cores {
    /// Guests are kept off each other's cores.
    #[must_use]
    pub const fn are_kept_apart(self) -> bool {
        !matches!(self, Self::Shared)
    }
}

/// How it is on this machine.
#[must_use]
pub fn look() -> Cores {
    of(std::fs::read_to_string(Path::new(SMT)).ok().as_deref(), kernel_keeps_apart())
}

fn of(smt: Option<&str>, kernel: bool) -> Cores {
    match (smt.map(str::trim), kernel) {
        (Some("0"), _) => Cores::Single,
        (_, true) => Cores::Apart,
        // A kernel without the file says nothing of threads.
        (_, false) => Cores::Shared,
    }
}

fn kernel_keeps_apart() -> bool {
    let mut cookie: u64 = 0;
    let into = std::ptr::from_mut(&mut cookie);
    // SAFETY: it asks for the mark of this thread, which is written to a number of ours.
    let done = unsafe { libc::prctl(PR_SCHED_CORE, PR_SCHED_CORE_GET, 0, PR_SCHED_CORE_SCOPE_THREAD, into) };
    done == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_share_cores_only_where_cores_have_threads_and_the_kernel_lets_them() {
        for kernel in [false, true] {
            assert_eq!(of(Some("0\n"), kernel), Cores::Single);
        }
        for smt in [Some("1\n"), None] {
            assert_eq!(of(smt, true), Cores::Apart);
            assert_eq!(of(smt, false), Cores::Shared);
        }
        // The machine says the same each time.
        assert_eq!(look(), look());
    }
}
