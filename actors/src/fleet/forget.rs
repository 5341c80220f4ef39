//! Frees the names of a host that is gone for good.

use drover_schemas::body::host::{ForgetReply, ForgottenVm};
use drover_schemas::{ErrorBody, ErrorCode, RequestId, Token};
use tracing::warn;

use super::states::States;
use crate::bus::claims::{ClaimError, Claims, Phase};
use crate::chain;

/// VMs that a reply names.
const NAMED: usize = 100;

/// Frees every name that a host has, and its own. It is marked as forgotten first and again at the end, so that a host
/// that comes back meanwhile looks at its claims once more when all are freed. Repeating it does what is left.
///
/// # Errors
/// `conflict` for a host that lives, unless forced; `unavailable` if the bus does not answer.
pub async fn forget(
    claims: &Claims,
    states: &States,
    host: &Token,
    force: bool,
    request_id: RequestId,
    now_unix_ms: u64,
) -> Result<ForgetReply, ErrorBody> {
    let failed = |error: ClaimError| {
        warn!(%host, error = %chain(&error), "a host could not be forgotten");
        error.to_body()
    };
    if claims.host(host).await.map_err(failed)?.is_some() {
        if !force {
            let text = format!(
                "host {host} is alive: stop its daemon, or force it; its VMs then run on and nobody answers for them"
            );
            return Err(ErrorBody::new(ErrorCode::Conflict, text).with("cause", "alive").with("host", host));
        }
        claims.remove_row(host).await.map_err(failed)?;
    }
    claims.free_host(host, now_unix_ms).await.map_err(failed)?;
    let mut reply = ForgetReply { host: host.clone(), freed: 0, vms: Vec::new() };
    for (name, claim) in claims.claims_of(host).await.map_err(failed)? {
        if claim.phase == Phase::Gone
            || !claims.forget(&name, &claim, request_id, now_unix_ms).await.map_err(failed)?
        {
            continue;
        }
        if let Err(error) = states.remove(&name, claim.vm_id).await {
            warn!(name = name.key(), error = %chain(&error), "the last known state of a VM could not be removed");
        }
        reply.freed += 1;
        if reply.vms.len() < NAMED {
            let vm_id = claim.vm_id;
            reply.vms.push(ForgottenVm { namespace: name.namespace, name: name.name, vm_id });
        }
    }
    // The second mark differs from the first, or the host would not notice it.
    claims.free_host(host, now_unix_ms + 1).await.map_err(failed)?;
    Ok(reply)
}
