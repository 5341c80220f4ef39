//! The end of the guest, told before it comes: the host asks for it, or init ends the agent because the guest goes.

use std::io;
use std::os::fd::{IntoRawFd as _, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use drover_schemas::guest::ShutdownMode;
use serde_json::{Value, json};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::SHUTDOWN;
use crate::emit::Events;
use crate::log;

/// How long the host may take to hear of it. Init waits longer before it kills.
const PATIENCE: Duration = Duration::from_secs(1);

static TOLD_BY: AtomicI32 = AtomicI32::new(0);
static PIPE: AtomicI32 = AtomicI32::new(-1);

/// Notes who sent SIGTERM: a signal of init means something else than one of a person.
extern "C" fn on_term(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // The front passes signals on with the sender that it was told of; whoever may do the same may end the agent anyway.
    // SAFETY: the kernel passes a valid `siginfo_t` with the sender's id, as `kill` and `sigqueue` set it; `write` is
    // async-signal-safe, and `errno` is put back for whoever was interrupted.
    unsafe {
        let errno = *libc::__errno_location();
        let passed_on = (*info).si_code == libc::SI_QUEUE;
        let sender = if passed_on { (*info).si_value().sival_ptr as usize as i32 } else { (*info).si_pid() };
        TOLD_BY.store(sender, Ordering::Relaxed);
        libc::write(PIPE.load(Ordering::Relaxed), b"t".as_ptr().cast(), 1);
        *libc::__errno_location() = errno;
    }
}

/// Waits for SIGTERM.
#[derive(Debug)]
pub struct Term(AsyncFd<OwnedFd>);

impl Term {
    /// From here on SIGTERM does not end the process by itself. Programs that it starts get it as they always do.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn watch() -> io::Result<Self> {
        let (read, write) =
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC | rustix::pipe::PipeFlags::NONBLOCK)?;
        // Open for as long as the process lives, as the handler is there.
        PIPE.store(write.into_raw_fd(), Ordering::Relaxed);
        // SAFETY: all-zero is a `sigaction`, and the handler has the form that SA_SIGINFO asks for.
        let set = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_term as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
            libc::sigaction(libc::SIGTERM, &raw const action, std::ptr::null_mut())
        };
        if set != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is open, and its owner keeps it so.
        Ok(Self(unsafe { AsyncFd::register_with_interest(read, Interest::READABLE) }?))
    }

    /// Waits for it, tells the host if that is the end of the guest, and returns: the agent should end.
    pub async fn received(&self, events: &Events) {
        if self.0.readable().await.is_err() {
            // Never: the other end is not closed. Better to live on than to end for it.
            std::future::pending::<()>().await;
        }
        let sender = TOLD_BY.load(Ordering::Relaxed);
        if is_guests_end(sender) {
            events.end(json!({"by": "guest"})).await;
        } else {
            log::info(format_args!("process {sender} ends the agent"));
        }
    }
}

/// Whether init ends the agent because the guest goes, and not to start it again.
fn is_guests_end(sender: i32) -> bool {
    if Path::new("/run/systemd/system").is_dir() {
        let asked = Command::new("systemctl")
            .arg("is-system-running")
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output();
        return asked.is_ok_and(|asked| asked.stdout.trim_ascii() == b"stopping");
    }
    // OpenRC makes a file of it; any other init ends everybody itself.
    sender == 1 || Path::new("/run/openrc/rc.stopping").exists()
}

/// What is said when the host asks for the end.
#[must_use]
pub fn by_host(mode: ShutdownMode) -> Value {
    json!({"by": "host", "mode": mode})
}

impl Events {
    /// Tells once that the guest ends, and waits a moment until the host has heard of it and of all before.
    pub async fn end(&self, data: Value) {
        let first = !std::mem::replace(&mut self.state().ending, true);
        if first {
            self.say(SHUTDOWN, data);
        }
        if self.was_joined() && !self.flush(PATIENCE).await {
            log::warn(format_args!("the host did not hear of the end of the guest in time"));
        }
    }
}
