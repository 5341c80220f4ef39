use std::fs;

use drover_schemas::Token;
use drover_schemas::codec;
use drover_schemas::guest::{CheckStatus, EventData, Measure, ThresholdStatus};
use serde_json::Value;
use tempfile::TempDir;

use super::*;
use crate::release::Release;

const PATIENCE: Duration = Duration::from_secs(60);

struct Place {
    dir: TempDir,
    events: Arc<Events>,
    watch: Arc<Watch>,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (events, watch) = Self::agent(&dir);
        Self { dir, events, watch }
    }

    fn agent(dir: &TempDir) -> (Arc<Events>, Arc<Watch>) {
        let run_dir = dir.path().join("run");
        let policy = Arc::new(Policy::new(dir.path().join("policy"), []));
        let events = Events::open(&run_dir, "boot");
        let freezer = Freezer::new(run_dir.clone(), "/nonexistent".into());
        let checks = dir.path().join("checks.d");
        let (boot_id, instance) = ("boot".to_owned(), "i".to_owned());
        let facts = Facts {
            release: &Release::THIS,
            kind: GuestKind::Process,
            boot_id,
            instance,
            booted_unix_ms: None,
        };
        (Arc::clone(&events), Watch::new(checks, &run_dir, &facts, events, policy, freezer))
    }

    /// An agent that is started again.
    fn again(&mut self) {
        (self.events, self.watch) = Self::agent(&self.dir);
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    /// Well as long as a file of its name is there.
    fn check(&self, name: &str) -> CheckSpec {
        let argv = ["test".to_owned(), "-e".to_owned(), self.path(name)].to_vec();
        CheckSpec { interval_ms: 1_000, failures: 1, ..CheckSpec::new(Token::new(name).unwrap(), argv) }
    }

    fn configure(&self, checks: impl Into<Vec<CheckSpec>>) {
        self.watch
            .configure(ConfigureRequest { checks: checks.into(), ..ConfigureRequest::default() })
            .unwrap();
    }

    /// What was told so far: kinds and data.
    fn told(&self) -> Vec<(String, Value)> {
        let mut told = Vec::new();
        while let Some(event) = self.events.next(told.len() as u64) {
            let data: EventData = codec::decode(event.body.as_slice()).unwrap();
            told.push((event.kind, serde_json::to_value(data).unwrap()));
        }
        told
    }

    fn kinds(&self) -> Vec<String> {
        self.told().into_iter().map(|(kind, _)| kind).collect()
    }

    async fn until(&self, what: &str, is_so: impl Fn(&States) -> bool) -> States {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let states = self.watch.states();
            if is_so(&states) {
                return states;
            }
            assert!(Instant::now() < deadline, "{what}: {states:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn is(&self, status: CheckStatus) -> CheckState {
        self.until(&format!("{status:?}"), |states| states.checks[0].status == status).await.checks.remove(0)
    }
}

#[tokio::test]
async fn a_check_fails_and_recovers_and_each_is_told_once() {
    let mut place = Place::new();
    let spec = place.check("web");
    place.configure([spec.clone()]);
    let state = place.is(CheckStatus::Failing).await;
    assert_eq!((state.failures, state.reason.as_deref()), (1, Some("it exited with 1")));
    let told = place.told();
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].0, CHECK_FAILED);
    let data = serde_json::json!({
        "check": "web", "source": "spec", "status": "failing", "failures": 1, "reason": "it exited with 1",
    });
    assert_eq!(told[0].1, data);
    // The same again changes nothing; another agent knows what was told, and since when it is so.
    place.configure([spec.clone()]);
    assert_eq!(place.watch.states().checks[0].since_unix_ms, state.since_unix_ms);
    place.again();
    assert_eq!(place.watch.states().checks, []);
    place.configure([spec.clone()]);
    let again = place.until("it has run", |s| s.checks[0].last_unix_ms.is_some()).await.checks.remove(0);
    assert_eq!((again.status, again.since_unix_ms), (CheckStatus::Failing, state.since_unix_ms));
    place.write("web", "");
    let state = place.is(CheckStatus::Ok).await;
    assert_eq!((state.failures, state.reason), (0, None));
    assert_eq!(place.kinds(), [CHECK_FAILED, CHECK_OK]);
    // One with other settings under the same name goes on from there.
    place.configure([CheckSpec { failures: 2, ..spec.clone() }]);
    assert_eq!(place.watch.states().checks[0].status, CheckStatus::Ok);
    fs::remove_file(place.path("web")).unwrap();
    assert_eq!(place.is(CheckStatus::Failing).await.failures, 2);
    // What is wanted no more is neither run nor shown, and nobody waits for its recovery.
    place.configure([]);
    assert_eq!(place.watch.states().checks, []);
    assert_eq!(place.kinds(), [CHECK_FAILED, CHECK_OK, CHECK_FAILED, CHECK_REMOVED]);
    let wrong = vec![CheckSpec { failures: 0, ..spec }];
    let error = place.watch.configure(ConfigureRequest { checks: wrong, ..ConfigureRequest::default() });
    assert_eq!(error.unwrap_err().details["field"], "checks[0].failures");
}

#[tokio::test]
async fn the_owners_files_go_with_what_the_host_wants() {
    let place = Place::new();
    place.watch.look().await;
    assert_eq!(place.watch.states().refused, []);
    fs::create_dir(place.path("checks.d")).unwrap();
    place.write("policy", "health\n");
    place.write("web", "");
    place.write("checks.d/web", &format!("run test -e {}\ninterval 1s\n", place.path("web")));
    place.write("checks.d/bad", "run\n");
    place.watch.look().await;
    place.configure([place.check("web")]);
    // The owner allows the host no commands; their own need no leave.
    let states =
        place.until("both are known", |s| s.checks.iter().all(|c| c.status != CheckStatus::Starting)).await;
    let found: Vec<_> = states.checks.iter().map(|c| (c.source, c.status, c.code)).collect();
    let refused = (CheckSource::Spec, CheckStatus::Refused, Some(ErrorCode::PermissionDenied));
    assert_eq!(found, [refused, (CheckSource::Guest, CheckStatus::Ok, None)]);
    assert!(states.checks[0].reason.as_ref().unwrap().contains("exec"), "{states:?}");
    assert!(states.refused.len() == 1 && states.refused[0].file.ends_with("bad"));
    let mut kinds = place.kinds();
    kinds.sort();
    assert_eq!(kinds, [CHECK_OK, CHECK_REFUSED]);
    // As soon as they do, it runs.
    place.write("policy", "exec\n");
    place.is(CheckStatus::Ok).await;
    let since = states.checks[1].since_unix_ms;
    place.configure([]);
    let states = place.watch.states();
    assert_eq!((states.checks.len(), states.checks[0].since_unix_ms), (1, since));
    fs::remove_dir_all(place.path("checks.d")).unwrap();
    place.watch.look().await;
    assert_eq!(place.watch.states().checks, []);
    assert!(!place.kinds().contains(&CHECK_REMOVED.to_owned()), "both were well");
}

#[tokio::test]
async fn one_that_is_over_ends_with_all_that_it_started_before_its_heir_begins() {
    let place = Place::new();
    let script = format!("echo $$ >> {0}; trap '' TERM; setsid sleep 4242 & wait", place.path("pids"));
    let argv = ["sh".to_owned(), "-c".to_owned(), script].to_vec();
    let spec = CheckSpec { argv, timeout_ms: 600_000, ..place.check("x") };
    let pids = || fs::read_to_string(place.path("pids")).unwrap_or_default();
    let begun = |n: usize| pids().lines().nth(n - 1).map(str::to_owned);
    place.configure([spec.clone()]);
    place.until("it runs", |_| begun(1).is_some()).await;
    place.configure([CheckSpec { timeout_ms: 700_000, ..spec }]);
    place.until("its heir runs", |_| begun(2).is_some()).await;
    let lives = |pid: &str| fs::metadata(format!("/proc/{pid}")).is_ok();
    assert!(!lives(&begun(1).unwrap()) && lives(&begun(2).unwrap()));
    place.configure([]);
    place.until("that has ended too", |_| !lives(&begun(2).unwrap())).await;
    assert_eq!(place.kinds(), [""; 0], "what nobody wants is not told");
}

#[tokio::test]
async fn failures_do_not_count_in_the_time_of_grace() {
    let place = Place::new();
    let spec = CheckSpec { grace_ms: 600_000, ..place.check("web") };
    place.configure([spec]);
    let states = place.until("it has failed", |s| s.checks[0].reason.is_some()).await;
    assert_eq!((states.checks[0].status, states.checks[0].failures), (CheckStatus::Starting, 0));
    place.write("web", "");
    place.is(CheckStatus::Ok).await;
    fs::remove_file(place.path("web")).unwrap();
    place.is(CheckStatus::Failing).await;
    assert_eq!(place.kinds(), [CHECK_OK, CHECK_FAILED]);
}

#[tokio::test]
async fn a_threshold_is_exceeded_and_not_any_more() {
    let mut place = Place::new();
    // The first is exceeded on any machine that works; the second can never be.
    let of = |name: &str, above, below| ThresholdSpec {
        below: Some(below),
        for_ms: 0,
        ..ThresholdSpec::new(Token::new(name).unwrap(), Measure::Memory, above)
    };
    let configure = |place: &Place, thresholds: Vec<ThresholdSpec>| {
        place.watch.configure(ConfigureRequest { thresholds, ..ConfigureRequest::default() })
    };
    configure(&place, vec![of("low", 1, 1), of("high", 100, 1)]).unwrap();
    let looked = |s: &States| s.thresholds.iter().all(|t| t.last_unix_ms.is_some());
    let states = place.until("both are known", looked).await;
    let statuses = states.thresholds.iter().map(|t| t.status).collect::<Vec<_>>();
    assert_eq!(statuses, [ThresholdStatus::Exceeded, ThresholdStatus::Ok], "{states:?}");
    let told = place.told();
    assert_eq!((told.len(), told[0].0.as_str()), (1, THRESHOLD_EXCEEDED));
    assert_eq!((&told[0].1["threshold"], &told[0].1["limit"]), (&"low".into(), &1.into()));
    assert_eq!(configure(&place, vec![of("x", 0, 1)]).unwrap_err().details["field"], "thresholds[0].above");
    // Another agent does not tell it again. With another limit, of which nothing is left, it ends.
    place.again();
    configure(&place, vec![of("low", 1, 1)]).unwrap();
    place.until("it is known", looked).await;
    assert_eq!(place.kinds(), [THRESHOLD_EXCEEDED]);
    configure(&place, vec![of("low", 100, 100)]).unwrap();
    place.until("it has ended", |s| s.thresholds[0].status == ThresholdStatus::Ok).await;
    assert_eq!(place.kinds(), [THRESHOLD_EXCEEDED, THRESHOLD_ENDED]);
    configure(&place, vec![of("low", 1, 1)]).unwrap();
    place.until("it is exceeded", |s| s.thresholds[0].status == ThresholdStatus::Exceeded).await;
    // The owner of the guest may not want it known.
    place.write("policy", "exec\n");
    configure(&place, vec![of("low", 2, 1)]).unwrap();
    let states = place.until("refused", |s| s.thresholds[0].status == ThresholdStatus::Refused).await;
    assert_eq!(
        (states.thresholds[0].value, states.thresholds[0].code),
        (None, Some(ErrorCode::PermissionDenied))
    );
    configure(&place, Vec::new()).unwrap();
    let kinds = place.kinds();
    assert_eq!(kinds[2..], [THRESHOLD_EXCEEDED, THRESHOLD_REFUSED, THRESHOLD_REMOVED]);
}
