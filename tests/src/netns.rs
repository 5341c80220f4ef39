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
        let this = Self::make();
        go(&this.name);
        CURRENT.set(Some(this.name.clone()));
        this
    }

    /// Makes a namespace with a loopback interface that is up, for others than this thread.
    ///
    /// # Panics
    /// It cannot be made.
    #[must_use]
    pub fn make() -> Self {
        let name = format!("dvt-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        ip(&["netns", "add", &name]);
        let this = Self { name };
        ip(&["-n", &this.name, "link", "set", "lo", "up"]);
        this
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for NetNs {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

/// Takes this thread into a namespace.
///
/// # Panics
/// It is not there.
pub(crate) fn go(name: &str) {
    let file = File::open(format!("/run/netns/{name}")).expect("the namespace is there");
    setns(&file, CloneFlags::CLONE_NEWNET).expect("enter the namespace");
}

/// The words before a command that runs in the namespace `name`; the process keeps its id.
pub(crate) fn nsenter(name: &str) -> Vec<String> {
    vec!["nsenter".into(), format!("--net=/run/netns/{name}")]
}

/// Carries `body` out on a thread of its own in a namespace of its own. What it spawns on its `LocalSet` stays on
/// that thread, for only it is in the namespace.
///
/// # Panics
/// `body` does, or says that it did.
pub(crate) fn apart<F>(body: F)
where
    F: AsyncFnOnce() -> std::thread::Result<()> + Send + 'static,
{
    let thread = std::thread::spawn(move || {
        let _namespace = NetNs::enter();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        tokio::task::LocalSet::new().block_on(&runtime, body())
    });
    if let Err(panic) = thread.join().expect("the world's end does not fail") {
        std::panic::resume_unwind(panic);
    }
}

/// Runs `ip`.
///
/// # Panics
/// It fails.
pub(crate) fn ip(args: &[&str]) {
    let done = Command::new("ip").args(args).output().expect("run ip");
    assert!(done.status.success(), "ip {args:?}: {}", String::from_utf8_lossy(&done.stderr));
}
