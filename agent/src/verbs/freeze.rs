//! `freeze`, `thaw` and `frozen`.

use drover_schemas::guest::{Request, verb};

use super::{Effect, Empty, decode, or_ending, reply};
use crate::conn::Stream;
use crate::dedupe::Outcome;
use crate::{Agent, work};

const WHAT: &str = "file systems to freeze";

pub(super) async fn run(agent: &Agent, stream: &Stream, request: &Request, effect: &Effect) -> Outcome {
    let body = request.body.as_slice();
    match request.verb.as_str() {
        verb::FREEZE => {
            work::own_kernel(&agent.facts, WHAT)?;
            or_ending(stream, async {
                let frozen = agent.freezer.freeze(decode(body)?).await?;
                effect.begins();
                reply(&frozen)
            })
            .await
        }
        verb::THAW => {
            work::own_kernel(&agent.facts, WHAT)?;
            let Empty {} = decode(body)?;
            effect.begins();
            reply(&agent.freezer.thaw().await?)
        }
        _ => {
            let Empty {} = decode(body)?;
            reply(&agent.freezer.status())
        }
    }
}
