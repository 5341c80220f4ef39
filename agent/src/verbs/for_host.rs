//! `clock`, `online`, `trim`, `reseed` and `identity`. Each works on a thread of its own, and goes on once it has begun.

use drover_schemas::guest::{OnlineRequest, Request, ReseedRequest, verb};

use super::{Effect, Empty, decode, file, reply};
use crate::dedupe::Outcome;
use crate::work::{clock, identity, network, online, trim};

/// What a guest needs to have of its own for it.
pub(super) fn what(asked: &str) -> &'static str {
    match asked {
        verb::CLOCK => "clock",
        verb::ONLINE => "CPUs or memory",
        verb::TRIM => "disks",
        verb::RESEED => "random numbers",
        verb::NETWORK => "network",
        _ => "identity",
    }
}

pub(super) async fn run(request: &Request, effect: &Effect) -> Outcome {
    let body = request.body.as_slice();
    match request.verb.as_str() {
        verb::CLOCK => {
            let request = decode(body)?;
            effect.begins();
            reply(&clock::run(&request)?)
        }
        verb::ONLINE => {
            let OnlineRequest {} = decode(body)?;
            effect.begins();
            reply(&file::blocking(|| Ok(online::run())).await?)
        }
        verb::TRIM => {
            let request = decode(body)?;
            reply(&file::blocking(move || trim::run(&request)).await?)
        }
        verb::NETWORK => {
            let request = decode(body)?;
            super::accounts::changing(effect, move |begins| network::run(&request, begins)).await
        }
        verb::RESEED => {
            let request: ReseedRequest = decode(body)?;
            identity::reseed(request.entropy.as_slice())?;
            reply(&Empty {})
        }
        _ => {
            let request = decode(body)?;
            effect.begins();
            reply(&file::blocking(move || identity::run(&request)).await?)
        }
    }
}
