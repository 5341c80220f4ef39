//! Services that have failed, by what keeps the guest's services.

use std::path::Path;

use drover_schemas::guest::ExecRequest;

use super::{MAX_LISTED, parse};
use crate::program::{self, Ran};

/// How long the keeper of services may take.
const PATIENCE_MS: u64 = 3_000;
/// The most of its output that is looked at, in bytes.
const MAX_OUTPUT: usize = 16 * 1024;

/// What a keeper of services says.
#[derive(Debug)]
pub(super) struct Services {
    /// `systemd` or `openrc`.
    pub kept_by: &'static str,
    /// Names of services that have failed, or why they are not known.
    pub failed: Result<Vec<String>, String>,
}

/// Asks whatever keeps the services of this guest; `None` where neither systemd nor OpenRC does.
pub(super) async fn failed() -> Option<Services> {
    if Path::new("/run/systemd/system").is_dir() {
        let argv =
            ["systemctl", "list-units", "--state=failed", "--plain", "--no-legend", "--full", "--no-pager"];
        let failed = ask(&argv, &[0]).await.map(|text| parse::failed_units(&text, MAX_LISTED));
        return Some(Services { kept_by: "systemd", failed });
    }
    if Path::new("/run/openrc/softlevel").exists() {
        // It exits with 1 where nothing has crashed.
        let failed = ask(&["rc-status", "--crashed"], &[0, 1]).await;
        let failed = failed.map(|text| parse::crashed_services(&text, MAX_LISTED));
        return Some(Services { kept_by: "openrc", failed });
    }
    None
}

async fn ask(argv: &[&str], well: &[i32]) -> Result<String, String> {
    let request = ExecRequest {
        argv: argv.iter().map(|word| (*word).to_owned()).collect(),
        timeout_ms: Some(PATIENCE_MS),
        kill_grace_ms: Some(0),
        ..ExecRequest::default()
    };
    match program::run(&request, MAX_OUTPUT).await.map_err(|error| error.message)? {
        Ran { timed_out: true, .. } => Err(format!("{} said nothing within {PATIENCE_MS} ms", argv[0])),
        ran if ran.exit.code.is_some_and(|code| well.contains(&code)) => Ok(ran.stdout.head()),
        ran => {
            let last = parse::short(&ran.last_line(), 200);
            Err(format!("{} {}: {last}", argv[0], program::ended(ran.exit)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_a_keeper_says_is_told_or_why_it_says_nothing() {
        let sh = async |script: &str, well: &[i32]| ask(&["sh", "-c", script], well).await;
        assert_eq!(sh("echo a.service failed", &[0]).await.unwrap(), "a.service failed\n");
        assert_eq!(sh("exit 1", &[0, 1]).await.unwrap(), "");
        assert_eq!(
            sh("echo first; echo no bus >&2; exit 1", &[0]).await.unwrap_err(),
            "sh exited with 1: no bus"
        );
        assert_eq!(sh("exec sleep 4242", &[0]).await.unwrap_err(), "sh said nothing within 3000 ms");
        assert!(ask(&["/no/keeper"], &[0]).await.unwrap_err().contains("/no/keeper"));
    }
}
