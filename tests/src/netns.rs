//! A network namespace by name, and the way of one thread into it.

use std::cell::RefCell;
use std::fs::File;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sched::{CloneFlags, setns};

static NEXT: AtomicU32 = AtomicU32::new(0);

thread_local! {
    static CURRENT: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// The name of this thread's namespace, if it has entered one.
#[must_use]
pub fn current() -> Option<String> {
    CURRENT.with_borrow(Clone::clone)
}

/// A namespace that is removed when this is dropped.
///
/// It is entered with `setns` rather than `ip netns exec`, which mounts another `/sys` and so hides
/// cgroups.
#[derive(Debug)]
pub struct NetNs {
    name: String,
}

impl NetNs {
    /// Makes a namespace with a loopback interface that is up, and takes this thread there. What the
    /// thread starts from now on, threads and processes, is there as well.
    ///
    /// # Panics
    /// It cannot be made.
    #[must_use]
    pub fn enter() -> Self {
        let name = format!("dvt-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        ip(&["netns", "add", &name]);
        let this = Self { name };
        let file = File::open(format!("/run/netns/{}", this.name)).expect("the namespace was just made");
        setns(&file, CloneFlags::CLONE_NEWNET).expect("enter the namespace");
        ip(&["link", "set", "lo", "up"]);
        CURRENT.set(Some(this.name.clone()));
        this
    }
}

impl Drop for NetNs {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

fn ip(args: &[&str]) {
    let done = Command::new("ip").args(args).output().expect("run ip");
    assert!(done.status.success(), "ip {args:?}: {}", String::from_utf8_lossy(&done.stderr));
}
