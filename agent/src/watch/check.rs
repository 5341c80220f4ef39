//! The task of one check: runs it again and again, never twice at once, and tells what changes.

use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use drover_schemas::guest::{CheckSource, CheckSpec, CheckState, CheckStatus, verb};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::flaps::News;
use super::judge::{Judge, Run};
use super::run::{self, Ended, lived};
use super::told::Said;
use super::{CHECK_CHANGES, CHECK_FAILED, CHECK_OK, CHECK_REFUSED, CHECK_REMOVED, Hands, lock};
use crate::facts::unix_ms;
use crate::log;

/// How long what a run started may take to be gone once it was killed.
const DYING: Duration = Duration::from_secs(10);

/// A check with its task and the state that the task keeps.
#[derive(Debug)]
pub(super) struct Check {
    pub(super) source: CheckSource,
    pub(super) spec: CheckSpec,
    state: Arc<Mutex<CheckState>>,
    over: CancellationToken,
    task: Option<JoinHandle<()>>,
}

impl Drop for Check {
    fn drop(&mut self) {
        // A run is given up, with all that it started.
        self.over.cancel();
    }
}

/// What a check is known by.
pub(super) fn key(source: CheckSource, name: &str) -> String {
    let whose = if source == CheckSource::Guest { "guest" } else { "spec" };
    format!("check {whose} {name}")
}

impl Check {
    /// Begins to run it, when the one that it takes the place of has ended.
    pub(super) fn begin(
        source: CheckSource,
        spec: CheckSpec,
        before: Option<Self>,
        hands: &Arc<Hands>,
    ) -> Self {
        let before = before.and_then(|mut before| before.task.take());
        let said = hands.told.of(&key(source, spec.name.as_str())).unwrap_or_default();
        let state = Arc::new(Mutex::new(CheckState {
            name: spec.name.to_string(),
            source,
            status: said.status,
            since_unix_ms: if said.since_unix_ms > 0 { said.since_unix_ms } else { unix_ms() },
            flapping: said.flapping,
            ..CheckState::default()
        }));
        let over = CancellationToken::new();
        let keeping = Keeping {
            key: key(source, spec.name.as_str()),
            spec: spec.clone(),
            source,
            state: Arc::clone(&state),
            over: over.clone(),
            hands: Arc::clone(hands),
        };
        let task = tokio::spawn(async move {
            if let Some(before) = before {
                let _ = before.await;
            }
            keeping.run(said).await;
        });
        Self { source, spec, state, over, task: Some(task) }
    }

    /// Gives it up; what is answered ends when its run has.
    pub(super) fn end(mut self) -> impl Future<Output = ()> {
        let task = self.task.take();
        drop(self);
        async move {
            if let Some(task) = task {
                let _ = task.await;
            }
        }
    }

    /// How it is.
    pub(super) fn state(&self) -> CheckState {
        lock(&self.state).clone()
    }
}

/// What the task works with.
struct Keeping {
    key: String,
    source: CheckSource,
    spec: CheckSpec,
    state: Arc<Mutex<CheckState>>,
    over: CancellationToken,
    hands: Arc<Hands>,
}

impl Keeping {
    async fn run(self, said: Said) {
        let began = Instant::now();
        let mut judge = Judge::resumed(&self.spec, said.status, said.flapping, Duration::ZERO);
        loop {
            let started = self.once(&mut judge, began).await;
            let next = started + Duration::from_millis(self.spec.interval_ms);
            tokio::select! {
                biased;
                () = self.over.cancelled() => return,
                () = sleep_until(next) => {}
            }
        }
    }

    /// One run, when it is its turn; when that began. It winds up, and nothing counts, once the check is over.
    async fn once(&self, judge: &mut Judge, began: Instant) -> Instant {
        let mut turn = tokio::select! {
            turn = self.hands.turns(self.source).acquire() => turn.ok(),
            () = self.over.cancelled() => None,
        };
        let started = Instant::now();
        // What writes while file systems stand still would hang and fail.
        if turn.is_none() || self.hands.freezer.admit(verb::EXEC).is_err() {
            return started;
        }
        // What the owner declares needs no leave.
        let policy = (self.source != CheckSource::Guest).then_some(&*self.hands.policy);
        let mut run = pin!(run::once(&self.spec, policy, self.over.cancelled()));
        let mut patience = Duration::from_millis(self.spec.timeout_ms) + DYING;
        let ended = loop {
            tokio::select! {
                ended = &mut run => break ended,
                () = lived(patience) => {
                    // It waits for a device, perhaps for ever: others have their turn, and another run does not begin.
                    turn = None;
                    self.take(judge, Ended::failed("its processes were killed and do not end"), started, began);
                    patience = Duration::from_millis(self.spec.interval_ms);
                }
            }
        };
        drop(turn);
        if ended.run != Run::Failed || self.hands.freezer.admit(verb::EXEC).is_ok() {
            self.take(judge, ended, started, began);
        }
        started
    }

    fn take(&self, judge: &mut Judge, ended: Ended, started: Instant, began: Instant) {
        if self.over.is_cancelled() {
            return;
        }
        let at = began.elapsed();
        let in_grace = at < Duration::from_millis(self.spec.grace_ms);
        let before = judge.status();
        let news = judge.take(ended.run, in_grace, at);
        let now = {
            let mut state = lock(&self.state);
            let Ended { reason, code, output, .. } = ended;
            if judge.status() != before {
                (state.status, state.since_unix_ms) = (judge.status(), unix_ms());
            }
            state.last_unix_ms = Some(unix_ms());
            state.last_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
            (state.failures, state.flapping) = (judge.in_a_row(), judge.is_flapping());
            (state.reason, state.code, state.output) = (reason, code, output);
            state.clone()
        };
        if let Some(news) = news {
            self.tell(news, &now);
        }
    }

    fn tell(&self, news: News<CheckStatus>, now: &CheckState) {
        let kind = match news {
            News::Flapping => CHECK_CHANGES,
            News::Now(CheckStatus::Failing) => CHECK_FAILED,
            News::Now(CheckStatus::Refused) => CHECK_REFUSED,
            News::Now(_) => CHECK_OK,
        };
        let reason = now.reason.as_deref().map_or_else(String::new, |reason| format!(": {reason}"));
        log::info(format_args!("{} of the {}: {kind}{reason}", now.name, whose(self.source)));
        self.hands.events.say(kind, data(now));
        let CheckState { status, since_unix_ms, flapping, .. } = *now;
        self.hands.told.note(&self.key, Said { status, since_unix_ms, flapping });
    }
}

fn whose(source: CheckSource) -> &'static str {
    if source == CheckSource::Guest { "guest" } else { "spec" }
}

fn data(now: &CheckState) -> Value {
    let mut data = json!({
        "check": now.name,
        "source": whose(now.source),
        "status": now.status,
        "failures": now.failures,
    });
    if let Some(code) = now.code {
        data["code"] = json!(code);
    }
    for (field, value) in [("reason", now.reason.as_deref()), ("output", Some(now.output.as_str()))] {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            data[field] = value.into();
        }
    }
    data
}

/// Tells of those that were not well and are declared no more.
pub(super) fn forget(hands: &Hands, source: CheckSource, declared: &[CheckSpec]) {
    let is_declared = |name: &str| declared.iter().any(|check| check.name.as_str() == name);
    for (name, said) in hands.told.forget_undeclared(&key(source, ""), is_declared) {
        let data = json!({ "check": name, "source": whose(source), "status": said.status });
        hands.events.say(CHECK_REMOVED, data);
    }
}
