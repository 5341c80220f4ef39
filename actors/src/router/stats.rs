//! What a VM sent and received, as its host and its guest count it.

use std::time::{Duration, Instant};

use drover_schemas::body::guest::Empty;
use drover_schemas::body::samples::GuestSample;
use drover_schemas::body::vm::StatsReply;
use drover_schemas::guest::{SampleResult, verb};
use drover_schemas::{ErrorBody, ErrorCode, Token};

use super::{Answer, Request, Router, body_of};
use crate::chain::chain;
use crate::guest::{Link, on_behalf_of};
use crate::samples::guest::figures;
use crate::services::now_ms;
use crate::vm::guest_calls;
use crate::vm::row;

/// How long a guest is waited for: what the host counts is told without it.
const GUEST: Duration = Duration::from_secs(2);

/// Looks now.
///
/// # Errors
/// `unavailable` if the kernel cannot be asked; `invalid_argument` for a body that is not empty. A guest that does not
/// answer is no error.
pub(super) async fn stats(router: &Router, ns: &Token, name: &Token, request: &Request) -> Answer {
    let _: Empty = request.decode()?;
    let view = router.view(ns, name).await?;
    let left = request.deadline.saturating_duration_since(Instant::now()) / 2;
    let asked = async { guest(&router.link(ns, name).await?, left.min(GUEST)).await };
    let (counted, said) =
        tokio::join!(router.services.network.counted(), on_behalf_of(request.caller(), asked));
    let counted = counted.map_err(|error| {
        let text = format!("traffic cannot be counted now: {}", chain(&error));
        ErrorBody::new(ErrorCode::Unavailable, text)
    })?;
    let (guest, guest_silent) = match said {
        Ok(said) => (Some(said), None),
        Err(error) => (None, Some(error.message)),
    };
    let reply = StatsReply {
        vm_id: view.row.vm_id,
        time_unix_ms: now_ms(),
        nics: row::nics(&view.row).iter().filter_map(|nic| counted.of(nic)).collect(),
        guest: guest.map(|said| said.interfaces).unwrap_or_default(),
        guest_silent,
    };
    body_of(request, &reply)
}

/// What the guest counts, cut as what it says by itself is.
async fn guest(link: &Link, left: Duration) -> Result<GuestSample, ErrorBody> {
    link.offers(verb::SAMPLE).map_err(|error| ErrorBody::new(ErrorCode::Unsupported, error.to_string()))?;
    let said: SampleResult = guest_calls::alike(link, verb::SAMPLE, None, left, &Empty {}).await?;
    Ok(figures(said, None, now_ms()))
}
