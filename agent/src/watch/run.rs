//! One run of a check: it ends within its time, and leaves nothing behind.

use std::time::Duration;

use drover_schemas::guest::{CheckSpec, ExecRequest, MAX_CHECK_OUTPUT, verb};
use drover_schemas::{ErrorBody, ErrorCode};
use tokio::time::sleep;

use super::judge::Run;
use crate::policy::Policy;
use crate::program::{self, Ran};

/// The longest reason, in characters.
const MAX_REASON: usize = 300;
/// Time is counted in steps of at most so much.
const STEP: Duration = Duration::from_secs(1);

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ended {
    pub(super) run: Run,
    /// Why it failed, if it did.
    pub(super) reason: Option<String>,
    /// Why it could not be run, if it could not.
    pub(super) code: Option<ErrorCode>,
    /// The end of what it said.
    pub(super) output: String,
}

impl Ended {
    pub(super) fn failed(reason: &str) -> Self {
        let reason = Some(reason.chars().take(MAX_REASON).collect());
        Self { run: Run::Failed, reason, code: None, output: String::new() }
    }

    fn not_run(run: Run, error: &ErrorBody) -> Self {
        Self { run, code: Some(error.code), ..Self::failed(&error.message) }
    }
}

/// Waits for so much of the guest's life: while the guest stood still a step is not longer than it should be, so a
/// program has its whole time also if its VM was paused meanwhile.
pub(super) async fn lived(mut left: Duration) {
    while !left.is_zero() {
        let step = left.min(STEP);
        sleep(step).await;
        left -= step;
    }
}

/// Runs a check once, if `policy` (where there is one) lets the host run it. Given up when `over` comes, with all that
/// it started; then nobody wants to know how it ended.
pub(super) async fn once(spec: &CheckSpec, policy: Option<&Policy>, over: impl Future<Output = ()>) -> Ended {
    let request = ExecRequest {
        argv: spec.argv.clone(),
        user: spec.user.clone(),
        cwd: Some("/".to_owned()),
        kill_grace_ms: Some(0),
        ..ExecRequest::default()
    };
    if let Some(policy) = policy
        && let Err(error) = policy.check(verb::EXEC).and_then(|permit| permit.runs(&request))
    {
        return Ended::not_run(Run::Refused, &error);
    }
    let mut late = false;
    let end = async {
        tokio::select! {
            () = over => {}
            () = lived(Duration::from_millis(spec.timeout_ms)) => late = true,
        }
    };
    match program::run_until(&request, MAX_CHECK_OUTPUT, end).await {
        Err(error) => Ended::not_run(Run::Failed, &error),
        Ok(ran) => {
            let output = last_words(&ran);
            let reason = match ran.exit.code {
                _ if late => format!("it was killed after {} ms", spec.timeout_ms),
                Some(0) => return Ended { run: Run::Well, reason: None, code: None, output },
                _ => format!("it {}", program::ended(ran.exit)),
            };
            Ended { output, ..Ended::failed(&reason) }
        }
    }
}

/// The end of what a program complained of, or else of what it printed; lines stay lines.
fn last_words(ran: &Ran) -> String {
    let all = [ran.stderr.tail(), ran.stdout.tail()];
    let said = all.iter().map(|text| text.trim()).find(|text| !text.is_empty()).unwrap_or_default();
    let shown = said.chars().filter(|c| *c == '\n' || !c.is_control());
    let from = shown.clone().count().saturating_sub(MAX_CHECK_OUTPUT);
    shown.skip(from).collect()
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use drover_schemas::Token;

    use super::*;

    fn sh(script: &str) -> CheckSpec {
        let argv = ["sh", "-c", script].map(str::to_owned).to_vec();
        CheckSpec { timeout_ms: 60_000, ..CheckSpec::new(Token::new("a").unwrap(), argv) }
    }

    async fn run(spec: CheckSpec) -> Ended {
        once(&spec, None, pending()).await
    }

    #[tokio::test]
    async fn all_is_well_with_a_program_that_exits_with_0() {
        let well = run(sh("pwd; printf 'a\\033[2J\\n'")).await;
        assert_eq!((well.run, well.reason, well.output.as_str()), (Run::Well, None, "/\na[2J"));
        let bad = run(sh("seq 9999; exit 3")).await;
        assert_eq!((bad.run, bad.reason.as_deref(), bad.code), (Run::Failed, Some("it exited with 3"), None));
        assert!(bad.output.ends_with("9999") && bad.output.len() <= MAX_CHECK_OUTPUT, "{bad:?}");
        let bad = run(sh("echo fine; echo oops >&2; kill -9 $$")).await;
        assert_eq!((bad.reason.as_deref(), bad.output.as_str()), (Some("it was ended by signal 9"), "oops"));
        let none = run(CheckSpec { argv: vec!["/nope".into()], ..sh("") }).await;
        assert_eq!((none.run, none.code), (Run::Failed, Some(ErrorCode::NotFound)));
        let nobody = run(CheckSpec { user: Some("no-such-user".into()), ..sh("true") }).await;
        assert_eq!((nobody.run, nobody.code), (Run::Failed, Some(ErrorCode::NotFound)));
    }

    #[tokio::test]
    async fn it_ends_in_time_or_when_nobody_wants_it() {
        let late =
            run(CheckSpec { timeout_ms: 50, ..sh("echo begun; trap '' TERM; sleep 4242 & wait") }).await;
        assert_eq!((late.run, late.reason.as_deref()), (Run::Failed, Some("it was killed after 50 ms")));
        let over = once(&sh("exec sleep 4242"), None, async {}).await;
        assert_eq!(over.run, Run::Failed);
    }

    #[tokio::test]
    async fn the_owner_says_whether_the_host_runs_it() {
        let dir = tempfile::tempdir().unwrap();
        let policy = Policy::new(dir.path().join("policy"), []);
        assert_eq!(once(&sh("true"), Some(&policy), pending()).await.run, Run::Well);
        std::fs::write(dir.path().join("policy"), "health\n").unwrap();
        let refused = once(&sh("true"), Some(&policy), pending()).await;
        assert_eq!((refused.run, refused.code), (Run::Refused, Some(ErrorCode::PermissionDenied)));
        assert!(refused.reason.unwrap().contains("exec"));
        std::fs::write(dir.path().join("policy"), "exec user=0\n").unwrap();
        assert_eq!(once(&sh("true"), Some(&policy), pending()).await.run, Run::Well);
        let other = CheckSpec { user: Some("12345".into()), ..sh("true") };
        assert_eq!(once(&other, Some(&policy), pending()).await.run, Run::Refused);
    }
}
