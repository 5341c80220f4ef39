//! Clients in other languages, as programs beside the test.

use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

/// Runs tests of a client in another language, in its folder of `clients`.
///
/// # Panics
/// They fail, or do not end within `limit`.
pub async fn passes(program: &str, args: &[&str], folder: &str, env: &[(&str, String)], limit: Duration) {
    let folder = format!("{}/clients/{folder}", env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new(program);
    command.args(args).current_dir(folder).envs(env.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::null()).kill_on_drop(true);
    let done = tokio::time::timeout(limit, command.output()).await.unwrap().unwrap();
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(done.status.success(), "{program}: {}{}", said(&done.stdout), said(&done.stderr));
}
