//! `shutdown`: answered first, then done.

use std::sync::Arc;
use std::time::Duration;

use drover_schemas::guest::{ShutdownRequest, ShutdownResult};

use super::{Effect, reply};
use crate::Agent;
use crate::dedupe::Outcome;

/// Time for the answer to leave the guest.
const MIN_DELAY: Duration = Duration::from_millis(50);
/// The longest delay that is accepted.
const MAX_DELAY: Duration = Duration::from_secs(24 * 3600);

pub(super) fn run(agent: &Agent, request: ShutdownRequest, effect: &Effect) -> Outcome {
    let delay = Duration::from_millis(request.delay_ms.unwrap_or(0)).clamp(MIN_DELAY, MAX_DELAY);
    let method = agent.power.begin(request.mode, delay, Arc::clone(&agent.events))?;
    effect.begins();
    reply(&ShutdownResult { method: method.to_owned() })
}
