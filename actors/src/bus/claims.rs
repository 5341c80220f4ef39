//! Who owns which VM name, across hosts: the bucket `DROVER_VMS`, changed by compare-and-set only.
//!
//! ```text
//!            claim                own                 gone
//! (nothing) ──────▶ placing ──────────────▶ owned ──────────▶ gone ──(24 h)──▶ (nothing)
//!     ▲  ▲            │ │ ▲                                     │
//!     │  └── undo ────┘ └─┘ takeover, move (epoch + 1)          └──▶ placing (keeps `previous`)
//! ```
//!
//! What to do is decided by the pure functions of [`decide`]; this file reads and writes. Every
//! write states the revision that was read. After a write without an answer the entry is read again:
//! if it is what was written, the write happened.
//!
//! Unhappy paths: without JetStream everything here fails with [`ClaimError`], which callers answer
//! as `unavailable`; nobody assumes a claim that was not read.

pub mod decide;
mod error;
pub mod hosts;
pub(crate) mod kv;
pub mod subnets;

use std::time::Duration;

use async_nats::jetstream::Context;
use drover_schemas::blob::Blob;
use drover_schemas::codec;
use drover_schemas::{RequestId, Token, VmId};
use futures_util::StreamExt as _;
use serde::{Deserialize, Serialize};

use self::decide::{Attempt, Decision, decide_create};
use self::kv::{Kv, Written};
use super::assets::AssetsConfig;

pub use self::error::ClaimError;
pub use self::kv::KvError;

/// How long a deleted name is remembered.
pub const GONE_KEPT: Duration = Duration::from_secs(24 * 3600);
/// How long a host is believed to live after its last heartbeat.
pub const HOST_TTL: Duration = Duration::from_secs(90);
/// The most deleted VMs that one name remembers; what does not fit is refused as a reused name.
pub const MAX_PREVIOUS: usize = 8;
/// How often a lost race is tried again.
const RACES: usize = 8;
/// Entries that are read at once.
const READS: usize = 64;
const INSTALLATION_HEADER: &str = "Drover-Installation";

/// How far a name is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// A create is deciding where it goes.
    Placing,
    /// A host owns it.
    Owned,
    /// The VM was deleted.
    Gone,
    /// A phase that this drover does not know; treated as owned by somebody.
    #[serde(other)]
    Unknown,
}

/// The entry of one name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The VM.
    pub vm_id: VmId,
    /// The request that creates it.
    pub request_id: RequestId,
    /// SHA-256 of that request's body, 64 lower-case hexadecimal digits.
    pub body_sha256: String,
    /// Its host.
    pub host: Token,
    /// Grows with every change of the host or the VM: only the highest may answer.
    pub owner_epoch: u64,
    /// How far it is.
    pub phase: Phase,
    /// Until when `placing` may last.
    pub deadline_unix_ms: u64,
    /// VMs that had the name in the last 24 hours, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub previous: Vec<Previous>,
    /// The end, for [`Phase::Gone`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gone: Option<Gone>,
}

/// How a VM ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gone {
    /// When its delete was complete.
    pub deleted_unix_ms: u64,
    /// The request that deleted it.
    pub request_id: RequestId,
    /// The encoded reply of that request; empty if the VM was forgotten with its host.
    pub reply: Blob,
}

/// A VM that had the name before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Previous {
    /// The VM.
    pub vm_id: VmId,
    /// Its host.
    pub host: Token,
    /// When its delete was complete.
    pub deleted_unix_ms: u64,
    /// The request that deleted it.
    pub request_id: RequestId,
    /// The encoded reply of that request; empty if the VM was forgotten with its host.
    pub reply: Blob,
    /// The request that created it, which its host remembers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_by: Option<RequestId>,
}

/// A name in a namespace: the key of a claim.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NameKey {
    /// The namespace.
    pub namespace: Token,
    /// The name.
    pub name: Token,
}

impl NameKey {
    /// The key in the buckets.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{}.{}", self.namespace, self.name)
    }
}

/// What came of a create's claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClaimOutcome {
    /// The name is ours to place.
    Claimed {
        /// What was written.
        claim: Box<Claim>,
        /// Its revision, for [`Claims::own`].
        revision: u64,
    },
    /// This request claimed it before: ask the recorded host, which replays.
    SameRequest {
        /// What is recorded.
        claim: Box<Claim>,
        /// Its revision.
        revision: u64,
        /// It is `placing` beyond its deadline: take it over if the host does not know it.
        stuck: bool,
    },
    /// The same id with another body.
    Conflict,
    /// Another request has the name.
    AlreadyExists {
        /// Its VM.
        vm_id: VmId,
        /// Its host.
        host: Token,
        /// It is `placing` beyond its deadline: take it over after asking the recorded host.
        stuck: Option<(Box<Claim>, u64)>,
    },
    /// The id deleted a VM of this name before: its reply.
    Replay(Blob),
    /// The id created a VM of this name that is gone by now: that VM's host remembers the reply.
    Elsewhere {
        /// That host.
        host: Token,
        /// When the delete was complete.
        deleted_unix_ms: u64,
    },
    /// The id is older than the delete of a VM of this name: `conflict{cause: name_reused}`.
    NameReused {
        /// When that delete was complete.
        deleted_unix_ms: u64,
    },
}

/// What came of a write by the supposed owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OwnOutcome {
    /// It is so, at this revision.
    Done {
        /// The revision.
        revision: u64,
    },
    /// Somebody else has the name: do nothing for it, undo the row.
    Lost {
        /// What is recorded.
        claim: Option<Box<Claim>>,
    },
}

/// The name claims and the hosts.
#[derive(Debug, Clone)]
pub struct Claims {
    vms: Kv,
    hosts: Kv,
}

type Found = Option<(Claim, u64)>;

impl Claims {
    /// Over the buckets of `assets`; they are made by [`super::assets::ensure`].
    #[must_use]
    pub fn new(js: Context, assets: &AssetsConfig) -> Self {
        Self { vms: Kv::new(js.clone(), &assets.vms_bucket()), hosts: Kv::new(js, &assets.hosts_bucket()) }
    }

    /// The claim of a name with its revision.
    ///
    /// # Errors
    /// [`ClaimError`].
    pub async fn lookup(&self, name: &NameKey) -> Result<Found, ClaimError> {
        Ok(self.read(name).await?.0)
    }

    /// The claims of many names, in one pass: a host that starts or reconnects learns its epochs.
    ///
    /// # Errors
    /// The first [`ClaimError`]; what was not read is not known.
    pub async fn lookup_all(&self, names: Vec<NameKey>) -> Result<Vec<(NameKey, Found)>, ClaimError> {
        let reads = names.into_iter().map(|name| async move {
            let found = self.lookup(&name).await?;
            Ok((name, found))
        });
        let results: Vec<_> = futures_util::stream::iter(reads).buffer_unordered(READS).collect().await;
        results.into_iter().collect()
    }

    /// Claims a name for a create.
    ///
    /// # Errors
    /// [`ClaimError`]; the claim may or may not have been made, and the same request may come again.
    pub async fn claim_create(&self, name: &NameKey, attempt: &Attempt) -> Result<ClaimOutcome, ClaimError> {
        for _ in 0..RACES {
            let (found, revision) = self.read(name).await?;
            let known = found.as_ref().map(|(claim, _)| claim);
            let claim = match decide_create(known, attempt) {
                Decision::Write(claim) => claim,
                Decision::Answer(answer) => return Ok(answer.with_revision(revision)),
            };
            if let Written::Done { revision } = self.write(name, &claim, revision, None).await? {
                return Ok(ClaimOutcome::Claimed { claim, revision });
            }
        }
        Err(ClaimError::Contended { key: name.key() })
    }

    /// Replaces a `placing` claim that is stuck, or that its host refused: the next host, the next
    /// epoch. `attempt` names the VM and the request that go on.
    ///
    /// # Errors
    /// [`ClaimError`].
    pub async fn takeover(
        &self,
        name: &NameKey,
        stuck: &Claim,
        revision: u64,
        attempt: &Attempt,
    ) -> Result<ClaimOutcome, ClaimError> {
        let claim = Box::new(decide::taken_over(stuck, attempt));
        match self.write(name, &claim, revision, None).await? {
            Written::Done { revision } => Ok(ClaimOutcome::Claimed { claim, revision }),
            Written::Lost => self.claim_create(name, attempt).await,
        }
    }

    /// The chosen host takes the name, after its row is durable and before any effect or reply.
    ///
    /// # Errors
    /// [`ClaimError`]; the row stays until a later call says `Done` or `Lost`.
    pub async fn own(&self, name: &NameKey, ours: &Claim) -> Result<OwnOutcome, ClaimError> {
        self.change(name, ours, None, Phase::Owned, |found| match found.phase {
            Phase::Placing => Some(Claim { phase: Phase::Owned, ..found.clone() }),
            _ => None,
        })
        .await
    }

    /// The owner says that the VM is deleted, after its last event was acknowledged. The name is
    /// remembered for 24 hours.
    ///
    /// # Errors
    /// [`ClaimError`]; call it again.
    pub async fn gone(&self, name: &NameKey, ours: &Claim, gone: Gone) -> Result<OwnOutcome, ClaimError> {
        self.change(name, ours, Some(GONE_KEPT), Phase::Gone, |found| match found.phase {
            Phase::Placing | Phase::Owned => {
                Some(Claim { phase: Phase::Gone, gone: Some(gone.clone()), ..found.clone() })
            }
            _ => None,
        })
        .await
    }

    /// Gives a `placing` claim back: the name is what it was before.
    ///
    /// # Errors
    /// [`ClaimError`]; the claim then runs into its deadline.
    pub async fn undo(&self, name: &NameKey, ours: &Claim, now_unix_ms: u64) -> Result<(), ClaimError> {
        for _ in 0..RACES {
            let (found, revision) = self.read(name).await?;
            let Some((found, _)) = found.filter(|(c, _)| is_same(c, ours) && c.phase == Phase::Placing)
            else {
                return Ok(());
            };
            let written = match decide::undone(&found, now_unix_ms) {
                Some((before, ttl)) => self.write(name, &before, revision, Some(ttl)).await?,
                None => {
                    let key = name.key();
                    let purged = self.vms.purge(&key, revision).await;
                    purged.map_err(|source| ClaimError::Bucket { operation: "undo", key, source })?
                }
            };
            if let Written::Done { .. } = written {
                return Ok(());
            }
        }
        Err(ClaimError::Contended { key: name.key() })
    }

    /// What there is to say about a create's name, without claiming it: `None` if it could be claimed.
    ///
    /// # Errors
    /// [`ClaimError`].
    pub async fn judge_create(
        &self,
        name: &NameKey,
        attempt: &Attempt,
    ) -> Result<Option<ClaimOutcome>, ClaimError> {
        let (found, revision) = self.read(name).await?;
        Ok(match decide_create(found.as_ref().map(|(claim, _)| claim), attempt) {
            Decision::Write(_) => None,
            Decision::Answer(answer) => Some(answer.with_revision(revision)),
        })
    }

    /// Claims again a name whose entry was lost with the bucket. `false`: somebody else was faster.
    ///
    /// # Errors
    /// [`ClaimError`].
    pub async fn restore(&self, name: &NameKey, ours: &Claim) -> Result<bool, ClaimError> {
        let (found, revision) = self.read(name).await?;
        match found {
            Some((found, _)) => Ok(is_same(&found, ours)),
            None => Ok(self.write(name, ours, revision, None).await? != Written::Lost),
        }
    }

    /// Every claim that names a host, whatever its namespace.
    ///
    /// # Errors
    /// [`ClaimError`]; what was not read is not known.
    pub async fn claims_of(&self, host: &Token) -> Result<Vec<(NameKey, Claim)>, ClaimError> {
        let scanned = self.vms.scan(">", |key, value| {
            let (namespace, name) = key.split_once('.')?;
            let claim: Claim = codec::decode(value).ok()?;
            let key = NameKey { namespace: Token::new(namespace).ok()?, name: Token::new(name).ok()? };
            (claim.host == *host).then_some((key, claim))
        });
        let failed = |source| ClaimError::Bucket { operation: "list", key: "*".to_owned(), source };
        scanned.await.map_err(failed)
    }

    /// Takes a name from a host that is forgotten: the epoch rises, and the name is free. `false`: the claim is
    /// not the host's any more.
    ///
    /// # Errors
    /// [`ClaimError`]; call it again.
    pub async fn forget(
        &self,
        name: &NameKey,
        claim: &Claim,
        request_id: RequestId,
        now_unix_ms: u64,
    ) -> Result<bool, ClaimError> {
        for _ in 0..RACES {
            let (found, revision) = self.read(name).await?;
            let Some((found, _)) = found.filter(|(found, _)| is_same(found, claim)) else { return Ok(false) };
            let Some((freed, ttl)) = decide::forgotten(&found, request_id, now_unix_ms) else {
                return Ok(false);
            };
            if self.write(name, &freed, revision, Some(ttl)).await? != Written::Lost {
                return Ok(true);
            }
        }
        Err(ClaimError::Contended { key: name.key() })
    }

    /// Brings the claim to `phase` if it is `ours`: the same VM, host and epoch.
    async fn change(
        &self,
        name: &NameKey,
        ours: &Claim,
        ttl: Option<Duration>,
        phase: Phase,
        next: impl Fn(&Claim) -> Option<Claim>,
    ) -> Result<OwnOutcome, ClaimError> {
        for _ in 0..RACES {
            let (found, revision) = self.read(name).await?;
            let Some((found, _)) = found else { return Ok(OwnOutcome::Lost { claim: None }) };
            if is_same(&found, ours) && found.phase == phase {
                // An earlier call whose answer was lost.
                return Ok(OwnOutcome::Done { revision });
            }
            let next = if is_same(&found, ours) { next(&found) } else { None };
            let Some(next) = next else { return Ok(OwnOutcome::Lost { claim: Some(Box::new(found)) }) };
            if let Written::Done { revision } = self.write(name, &next, revision, ttl).await? {
                return Ok(OwnOutcome::Done { revision });
            }
        }
        Err(ClaimError::Contended { key: name.key() })
    }

    /// The claim, and the revision to state in a write (also where there is only a marker).
    async fn read(&self, name: &NameKey) -> Result<(Found, u64), ClaimError> {
        let key = name.key();
        let entry = self.vms.get(&key).await;
        let entry =
            entry.map_err(|source| ClaimError::Bucket { operation: "read", key: key.clone(), source })?;
        let Some(value) = entry.value else { return Ok((None, entry.revision)) };
        let claim = codec::decode(&value).map_err(|source| ClaimError::Malformed { key, source })?;
        Ok((Some((claim, entry.revision)), entry.revision))
    }

    async fn write(
        &self,
        name: &NameKey,
        claim: &Claim,
        revision: u64,
        ttl: Option<Duration>,
    ) -> Result<Written, ClaimError> {
        let key = name.key();
        let value = codec::encode(claim).map_err(|source| ClaimError::Encode { key: key.clone(), source })?;
        let put = self.vms.put(&key, value.into(), revision, ttl, &[]).await;
        put.map_err(|source| ClaimError::Bucket { operation: "write", key, source })
    }
}

fn is_same(found: &Claim, ours: &Claim) -> bool {
    found.vm_id == ours.vm_id && found.host == ours.host && found.owner_epoch == ours.owner_epoch
}

#[cfg(test)]
mod tests;
