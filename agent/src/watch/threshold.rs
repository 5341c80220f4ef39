//! The task of one threshold: looks again and again, and tells when the value is beyond its limit and when it is not
//! any more.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use drover_schemas::guest::{CheckStatus, Measure, ThresholdSpec, ThresholdState, ThresholdStatus, verb};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::crossing::Crossing;
use super::flaps::{Flaps, News};
use super::told::Said;
use super::{
    Hands, THRESHOLD_CHANGES, THRESHOLD_ENDED, THRESHOLD_EXCEEDED, THRESHOLD_REFUSED, THRESHOLD_REMOVED, lock,
};
use crate::facts::unix_ms;
use crate::log;
use crate::look::measure::{Busy, measure};

/// What begins the key of each.
const KEY: &str = "threshold ";
/// From one look to the next, at the least and at the most.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

/// A threshold with its task and the state that the task keeps.
#[derive(Debug)]
pub(super) struct Threshold {
    pub(super) spec: ThresholdSpec,
    state: Arc<Mutex<ThresholdState>>,
    task: JoinHandle<()>,
}

impl Drop for Threshold {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn key(spec: &ThresholdSpec) -> String {
    format!("{KEY}{}", spec.name)
}

/// What was told stands in the words of checks.
const fn status(said: CheckStatus) -> ThresholdStatus {
    match said {
        CheckStatus::Failing => ThresholdStatus::Exceeded,
        CheckStatus::Refused => ThresholdStatus::Refused,
        _ => ThresholdStatus::Starting,
    }
}

/// From one look to the next: a crossing that must last is seen by two of them.
fn pause(spec: &ThresholdSpec) -> Duration {
    match spec.for_ms {
        0 => PAUSES.1,
        ms => Duration::from_millis(ms / 2).clamp(PAUSES.0, PAUSES.1),
    }
}

impl Threshold {
    /// Begins to look, going on from what was told last.
    pub(super) fn begin(spec: ThresholdSpec, hands: &Arc<Hands>) -> Self {
        let said = hands.told.of(&key(&spec)).unwrap_or_default();
        let state = Arc::new(Mutex::new(ThresholdState {
            name: spec.name.to_string(),
            of: spec.of,
            mount: (spec.of == Measure::Disk).then(|| spec.mount().to_owned()),
            above: spec.above,
            status: status(said.status),
            since_unix_ms: if said.since_unix_ms > 0 { said.since_unix_ms } else { unix_ms() },
            flapping: said.flapping,
            value: None,
            last_unix_ms: None,
            code: None,
        }));
        let keeping = Keeping { spec: spec.clone(), state: Arc::clone(&state), hands: Arc::clone(hands) };
        Self { spec, state, task: tokio::spawn(keeping.run(said)) }
    }

    /// How it is.
    pub(super) fn state(&self) -> ThresholdState {
        lock(&self.state).clone()
    }
}

/// What the task works with.
struct Keeping {
    spec: ThresholdSpec,
    state: Arc<Mutex<ThresholdState>>,
    hands: Arc<Hands>,
}

impl Keeping {
    async fn run(self, said: Said) {
        let spec = &self.spec;
        let needs = Duration::from_millis(spec.for_ms);
        let is_exceeded = said.status == CheckStatus::Failing;
        let mut crossing = Crossing::new(spec.above, spec.ends_below(), needs, is_exceeded);
        let mut flaps = Flaps::resumed(said.flapping, Duration::ZERO);
        let mut busy = Busy::default();
        // The guest's own life: while its VM stood still a pause is not longer than it should be.
        let mut lived = Duration::ZERO;
        loop {
            let refused = self.hands.policy.check(verb::HEALTH).err();
            let mut value = None;
            if refused.is_none() {
                value = measure(spec.of, spec.mount(), &mut busy).await;
                crossing.take(value, lived);
            }
            let (now, has_changed) = {
                let mut state = lock(&self.state);
                let (before, was_looked_at) = (state.status, state.last_unix_ms.is_some() || value.is_some());
                state.status = match refused {
                    Some(_) => ThresholdStatus::Refused,
                    None if crossing.is_exceeded() => ThresholdStatus::Exceeded,
                    None if was_looked_at => ThresholdStatus::Ok,
                    None => ThresholdStatus::Starting,
                };
                // That all is well is no news at the beginning.
                let is_calm = |status| matches!(status, ThresholdStatus::Starting | ThresholdStatus::Ok);
                let has_changed = state.status != before && !(is_calm(before) && is_calm(state.status));
                if has_changed {
                    state.since_unix_ms = unix_ms();
                }
                (state.value, state.code) = (value, refused.as_ref().map(|error| error.code));
                if value.is_some() {
                    state.last_unix_ms = Some(unix_ms());
                }
                (state.clone(), has_changed)
            };
            let news = flaps.tell(now.status, has_changed, lived);
            lock(&self.state).flapping = flaps.is_flapping();
            if let Some(news) = news {
                let why = refused.map(|error| error.message);
                self.tell(news, &ThresholdState { flapping: flaps.is_flapping(), ..now }, why);
            }
            let pause = pause(spec);
            sleep(pause).await;
            lived += pause;
        }
    }

    fn tell(&self, news: News<ThresholdStatus>, now: &ThresholdState, why: Option<String>) {
        let kind = match news {
            News::Flapping => THRESHOLD_CHANGES,
            News::Now(ThresholdStatus::Exceeded) => THRESHOLD_EXCEEDED,
            News::Now(ThresholdStatus::Refused) => THRESHOLD_REFUSED,
            News::Now(_) => THRESHOLD_ENDED,
        };
        log::info(format_args!("{}: {kind}", now.name));
        self.hands.events.say(kind, self.data(now, why));
        let status = match now.status {
            ThresholdStatus::Exceeded => CheckStatus::Failing,
            ThresholdStatus::Refused => CheckStatus::Refused,
            _ => CheckStatus::Ok,
        };
        let said = Said { status, since_unix_ms: now.since_unix_ms, flapping: now.flapping };
        self.hands.told.note(&key(&self.spec), said);
    }

    fn data(&self, now: &ThresholdState, why: Option<String>) -> Value {
        let limit = match now.status {
            ThresholdStatus::Exceeded => self.spec.above,
            _ => self.spec.ends_below(),
        };
        let mut data = json!({ "threshold": now.name, "of": now.of, "status": now.status, "limit": limit });
        if let Some(mount) = &now.mount {
            data["mount"] = json!(mount);
        }
        if let Some(value) = now.value {
            data["value"] = json!(value);
        }
        if let Some(code) = now.code {
            (data["code"], data["reason"]) = (json!(code), json!(why));
        }
        data
    }
}

/// Tells of those that were beyond their limit and are declared no more.
pub(super) fn forget(hands: &Hands, declared: &[ThresholdSpec]) {
    let is_declared = |name: &str| declared.iter().any(|spec| spec.name.as_str() == name);
    for (name, _) in hands.told.forget_undeclared(KEY, is_declared) {
        hands.events.say(THRESHOLD_REMOVED, json!({ "threshold": name }));
    }
}

#[cfg(test)]
mod tests {
    use drover_schemas::Token;

    use super::*;

    #[test]
    fn looks_are_as_far_apart_as_they_may_be() {
        let spec = |for_ms| ThresholdSpec {
            for_ms,
            ..ThresholdSpec::new(Token::new("a").unwrap(), Measure::Cpu, 90)
        };
        let seconds = |for_ms| pause(&spec(for_ms)).as_secs();
        assert_eq!([0, 1, 8_000, u64::MAX].map(seconds), [10, 1, 4, 10]);
    }
}
