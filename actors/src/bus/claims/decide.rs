//! Decisions about a name, from what is recorded: pure.

use std::time::Duration;

use drover_schemas::blob::Blob;
use drover_schemas::{RequestId, Token, VmId};

use super::{Claim, ClaimOutcome, GONE_KEPT, Gone, MAX_PREVIOUS, Phase, Previous};

/// A create that wants a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// The VM to be.
    pub vm_id: VmId,
    /// The request.
    pub request_id: RequestId,
    /// SHA-256 of its body, 64 lower-case hexadecimal digits.
    pub body_sha256: String,
    /// The host that was chosen.
    pub host: Token,
    /// Now.
    pub now_unix_ms: u64,
    /// Until when the placing may last.
    pub deadline_unix_ms: u64,
}

/// What to do for a create.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Write this over what was read.
    Write(Box<Claim>),
    /// Write nothing.
    Answer(ClaimOutcome),
}

impl ClaimOutcome {
    /// Fills in the revision of the claim that the answer is about.
    pub(super) fn with_revision(mut self, read: u64) -> Self {
        match &mut self {
            Self::SameRequest { revision, .. } => *revision = read,
            Self::AlreadyExists { stuck: Some((_, revision)), .. } => *revision = read,
            _ => {}
        }
        self
    }
}

/// Decides a create over what is recorded under the name.
#[must_use]
pub fn decide_create(found: Option<&Claim>, attempt: &Attempt) -> Decision {
    let Some(found) = found else { return Decision::Write(Box::new(placing(attempt, 1, Vec::new()))) };
    let previous = remembered(found, attempt.now_unix_ms);
    if let Some(of) = previous.iter().find(|p| p.created_by == Some(attempt.request_id)) {
        let (host, deleted_unix_ms) = (of.host.clone(), of.deleted_unix_ms);
        return Decision::Answer(match of.reply.as_slice() {
            [] => ClaimOutcome::NameReused { deleted_unix_ms },
            _ => ClaimOutcome::Elsewhere { host, deleted_unix_ms },
        });
    }
    if let Some(verdict) = judge_previous(&previous, attempt.request_id)
        && (found.phase == Phase::Gone || matches!(verdict, PreviousVerdict::Replay(_)))
    {
        return Decision::Answer(match verdict {
            PreviousVerdict::Replay(reply) => ClaimOutcome::Replay(reply),
            PreviousVerdict::NameReused { deleted_unix_ms } => ClaimOutcome::NameReused { deleted_unix_ms },
        });
    }
    if found.phase == Phase::Gone {
        return Decision::Write(Box::new(placing(attempt, found.owner_epoch + 1, previous)));
    }
    let stuck = found.phase == Phase::Placing && attempt.now_unix_ms > found.deadline_unix_ms;
    let claim = Box::new(found.clone());
    Decision::Answer(if found.request_id != attempt.request_id {
        ClaimOutcome::AlreadyExists {
            vm_id: found.vm_id,
            host: found.host.clone(),
            stuck: stuck.then_some((claim, 0)),
        }
    } else if found.body_sha256 == attempt.body_sha256 {
        ClaimOutcome::SameRequest { claim, revision: 0, stuck }
    } else {
        ClaimOutcome::Conflict
    })
}

/// What a stuck or refused claim becomes.
#[must_use]
pub fn taken_over(stuck: &Claim, attempt: &Attempt) -> Claim {
    placing(attempt, stuck.owner_epoch + 1, remembered(stuck, attempt.now_unix_ms))
}

/// What a claim that is given back becomes: the tombstone that it was written over, with the rest of
/// its time, or nothing.
#[must_use]
pub fn undone(claim: &Claim, now_unix_ms: u64) -> Option<(Claim, Duration)> {
    let mut previous = remembered(claim, now_unix_ms);
    let last = previous.pop()?;
    let ends = last.deleted_unix_ms.saturating_add(kept_ms());
    let ttl = Duration::from_millis(ends.saturating_sub(now_unix_ms));
    let claim = Claim {
        vm_id: last.vm_id,
        request_id: last.created_by.unwrap_or(claim.request_id),
        body_sha256: claim.body_sha256.clone(),
        host: last.host,
        // Never back: an epoch that was once given may still be in somebody's hands.
        owner_epoch: claim.owner_epoch,
        phase: Phase::Gone,
        deadline_unix_ms: 0,
        previous,
        gone: Some(Gone {
            deleted_unix_ms: last.deleted_unix_ms,
            request_id: last.request_id,
            reply: last.reply,
        }),
    };
    Some((claim, ttl))
}

/// What a claim becomes when its host is forgotten, and how long it stays so; `None` if there is nothing to take.
/// Its epoch rises, so whatever the host still has of it is void.
#[must_use]
pub fn forgotten(claim: &Claim, request_id: RequestId, now_unix_ms: u64) -> Option<(Claim, Duration)> {
    match claim.phase {
        Phase::Gone => None,
        Phase::Placing | Phase::Owned | Phase::Unknown => {
            let gone = Gone { deleted_unix_ms: now_unix_ms, request_id, reply: Blob::default() };
            let owner_epoch = claim.owner_epoch + 1;
            Some((Claim { phase: Phase::Gone, owner_epoch, gone: Some(gone), ..claim.clone() }, GONE_KEPT))
        }
    }
}

/// What an id means to a name that had VMs before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PreviousVerdict {
    /// It deleted one of them: its reply.
    Replay(Blob),
    /// It is older than the delete of one of them, and was most likely meant for that one.
    NameReused {
        /// When that delete was complete.
        deleted_unix_ms: u64,
    },
}

/// Judges a request id that the owner does not know, before it is run for the VM that has the name
/// now. `None`: run it.
#[must_use]
pub fn judge_previous(previous: &[Previous], request_id: RequestId) -> Option<PreviousVerdict> {
    if let Some(p) = previous.iter().find(|p| p.request_id == request_id) {
        return Some(PreviousVerdict::Replay(p.reply.clone()));
    }
    let last = previous.iter().map(|p| p.deleted_unix_ms).max()?;
    (request_id.unix_ms() < last).then_some(PreviousVerdict::NameReused { deleted_unix_ms: last })
}

/// VMs that had the name in the last 24 hours, the one that is gone among them, oldest first.
#[must_use]
pub fn remembered(claim: &Claim, now_unix_ms: u64) -> Vec<Previous> {
    let mut previous = claim.previous.clone();
    if let Some(gone) = &claim.gone {
        previous.push(Previous {
            vm_id: claim.vm_id,
            host: claim.host.clone(),
            deleted_unix_ms: gone.deleted_unix_ms,
            request_id: gone.request_id,
            reply: gone.reply.clone(),
            created_by: Some(claim.request_id),
        });
    }
    previous.retain(|p| p.deleted_unix_ms.saturating_add(kept_ms()) > now_unix_ms);
    let surplus = previous.len().saturating_sub(MAX_PREVIOUS);
    previous.drain(..surplus);
    previous
}

fn placing(attempt: &Attempt, owner_epoch: u64, previous: Vec<Previous>) -> Claim {
    Claim {
        vm_id: attempt.vm_id,
        request_id: attempt.request_id,
        body_sha256: attempt.body_sha256.clone(),
        host: attempt.host.clone(),
        owner_epoch,
        phase: Phase::Placing,
        deadline_unix_ms: attempt.deadline_unix_ms,
        previous,
        gone: None,
    }
}

const fn kept_ms() -> u64 {
    GONE_KEPT.as_secs() * 1000
}
