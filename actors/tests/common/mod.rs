//! What tests against the real kernel share.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::fs::File;
use std::process::Command;

/// Runs `test` in a fresh namespace, or says why not.
pub fn in_namespace<F, T>(test: F)
where
    F: FnOnce() -> T + Send + 'static,
    T: Future<Output = ()>,
{
    let missing = if !nix::unistd::geteuid().is_root() {
        Some("not root".to_owned())
    } else if let Err(error) = File::options().read(true).write(true).open("/dev/net/tun") {
        Some(format!("/dev/net/tun: {error}"))
    } else if let Err(error) = Command::new("nft").arg("--version").output() {
        Some(format!("nft: {error}"))
    } else {
        None
    };
    if let Some(reason) = missing {
        eprintln!("skipped: {reason}");
        return;
    }
    let thread = std::thread::spawn(move || {
        if let Err(error) = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET) {
            eprintln!("skipped: cannot make a network namespace: {error}");
            return;
        }
        // One thread: whatever the runtime starts is started from here, within the namespace.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test());
    });
    thread.join().unwrap();
}

/// What a program prints; it succeeds.
pub fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
