//! Before the bus has said that a VM is still this host's, nothing is changed for it.
//!
//! After each connect the host reads the claim of every VM that it has. Until that is done it answers what only looks,
//! and `unavailable{phase: fencing}` to everything else. A claim of a higher epoch, of another VM or of another host
//! means that the VM is not its own any more: it goes into [`super::quarantine`]. So a partition that heals never has
//! two owners that answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use drover_schemas::{ErrorBody, ErrorCode, Token};
use ractor::ActorRef;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::bus::claims::{Claim, ClaimError, NameKey, Phase};
use crate::bus::connect::{Bus, BusState};
use crate::chain;
use crate::directory::{Directory, Slot};
use crate::host_log::HostNote;
use crate::manager::ManagerMsg;
use crate::services::{Services, Shared};

/// Pause before the claims are read again after a failure.
const RETRY: Duration = Duration::from_millis(250);
/// How long a request waits for the claims to be read.
const WITHIN: Duration = Duration::from_secs(2);

/// Whether the claims have been read since the last connect.
#[derive(Debug)]
pub struct Fence {
    bus: watch::Receiver<BusState>,
    /// The connect after which the claims were read last; 0 for none.
    read_after: watch::Sender<u64>,
    /// Shows to the egress whether events may leave.
    open: watch::Sender<bool>,
    asleep: AtomicBool,
}

impl Fence {
    /// A fence that is closed.
    #[must_use]
    pub fn new(bus: &Bus, open: watch::Sender<bool>) -> Self {
        let asleep = AtomicBool::new(false);
        Self { bus: bus.state.clone(), read_after: watch::Sender::new(0), open, asleep }
    }

    /// The claims have been read since the last connect.
    #[must_use]
    pub fn is_open(&self) -> bool {
        let bus = self.bus.borrow();
        bus.connected && *self.read_after.borrow() == bus.connects
    }

    /// Waits a little until the claims have been read.
    pub async fn passed(&self) -> bool {
        if self.is_open() {
            return true;
        }
        let mut read = self.read_after.subscribe();
        let wait = async { while !self.is_open() && read.changed().await.is_ok() {} };
        tokio::time::timeout(WITHIN, wait).await.is_ok()
    }

    /// Waits a little until what changes a VM may be done.
    ///
    /// # Errors
    /// `unavailable{phase: fencing}`.
    pub async fn pass(&self) -> Result<(), ErrorBody> {
        if self.passed().await {
            return Ok(());
        }
        let text = "the host has not yet read on the bus whether the VM is still its own; repeat the request";
        Err(ErrorBody::new(ErrorCode::Unavailable, text).with("phase", "fencing"))
    }

    fn opens(&self, connects: u64) {
        self.read_after.send_replace(connects);
        self.open.send_replace(self.is_open());
        if self.asleep.swap(false, Ordering::Relaxed) {
            info!("the claims of this host's VMs have been read");
        }
    }

    fn closes(&self) {
        self.open.send_replace(false);
        self.read_after.send_replace(0);
        self.asleep.store(true, Ordering::Relaxed);
    }
}

/// What the claim of a VM means to the host that has it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Standing {
    /// It is this host's.
    Ours,
    /// Nobody claims it: the bucket was lost.
    Unclaimed,
    /// It is not, for this reason.
    Lost(String),
}

/// `forgotten`: when an operator had this host forgotten.
fn standing(host: &Token, slot: &Slot, claim: Option<&Claim>, forgotten: Option<u64>) -> Standing {
    let Some(claim) = claim else {
        return match forgotten {
            Some(at) if slot.vm_id.unix_ms() <= at => Standing::Lost("its host was forgotten".to_owned()),
            _ => Standing::Unclaimed,
        };
    };
    if claim.vm_id == slot.vm_id && claim.host == *host && claim.owner_epoch == slot.owner_epoch {
        return Standing::Ours;
    }
    let gone = claim.phase == Phase::Gone;
    Standing::Lost(match (claim.vm_id == slot.vm_id, claim.host == *host) {
        (false, _) => format!("its name belongs to VM {} on host {} now", claim.vm_id, claim.host),
        (true, false) => format!("it belongs to host {} now", claim.host),
        (true, true) if gone => "its host was forgotten, and its name with it".to_owned(),
        (true, true) => format!("epoch {} of it is valid, not {}", claim.owner_epoch, slot.owner_epoch),
    })
}

/// Whether the VM was deleted and the bus knows: only its row may be left here, if the daemon was killed just then.
fn has_ended(slot: &Slot, claim: Option<&Claim>) -> bool {
    let previous = claim.map_or(&[][..], |claim| &claim.previous);
    // Without a reply it was forgotten with its host, and may be running.
    previous.iter().any(|old| old.vm_id == slot.vm_id && !old.reply.as_slice().is_empty())
}

/// Keeps the fence for as long as the host runs.
pub async fn keep(services: Shared, directory: Arc<Directory>, manager: ActorRef<ManagerMsg>, bus: Bus) {
    let fence = &services.fence;
    let mut state = bus.state.clone();
    let mut claims = services.inventory.claim_changes();
    loop {
        bus.connected().await;
        let connects = state.borrow_and_update().connects;
        services.egress.ready().await;
        let forgotten = services.inventory.claim(&services.host).and_then(|claim| claim.forgotten_unix_ms);
        match read(&services, &directory, &manager).await {
            Ok(()) => fence.opens(connects),
            Err(failure) => {
                warn!(error = %chain(&failure), "the claims of this host's VMs cannot be read, trying again");
                tokio::time::sleep(RETRY).await;
                continue;
            }
        }
        // Until the connection is lost, or an operator has this host forgotten though it lives.
        loop {
            tokio::select! {
                lost = state.wait_for(|s| !s.connected || s.connects != connects) => {
                    if lost.is_err() {
                        return;
                    }
                    break;
                }
                Ok(()) = claims.changed() => {
                    let now = services.inventory.claim(&services.host).and_then(|claim| claim.forgotten_unix_ms);
                    if now != forgotten {
                        warn!("an operator had this host forgotten");
                        break;
                    }
                }
            }
        }
        fence.closes();
    }
}

/// Reads every claim and acts on it.
async fn read(
    services: &Services,
    directory: &Directory,
    manager: &ActorRef<ManagerMsg>,
) -> Result<(), ClaimError> {
    let slots = directory.named();
    let own = services.claims.host_claim(&services.host).await?;
    let forgotten = own
        .filter(|claim| claim.installation == services.installation)
        .and_then(|claim| claim.forgotten_unix_ms);
    let names = slots.iter().map(|(name, _)| name.clone()).collect();
    let mut found: std::collections::HashMap<NameKey, Option<Claim>> = services
        .claims
        .lookup_all(names)
        .await?
        .into_iter()
        .map(|(name, claim)| (name, claim.map(|(claim, _)| claim)))
        .collect();
    for (name, slot) in slots {
        let claim = found.remove(&name).flatten();
        match standing(&services.host, &slot, claim.as_ref(), forgotten) {
            Standing::Ours => {}
            // A VM that is being created or deleted sees to its claim itself.
            Standing::Unclaimed if !slot.owned => {}
            Standing::Unclaimed => claim_again(services, &name, &slot).await?,
            Standing::Lost(reason) => {
                // From here on nobody is answered.
                directory.forget(&name, slot.vm_id);
                // What is being created or deleted finds out itself, and undoes or ends its row.
                if has_ended(&slot, claim.as_ref()) || (!slot.owned && forgotten.is_none()) {
                    continue;
                }
                warn!(vm_id = %slot.vm_id, namespace = %name.namespace, name = %name.name, reason, "quarantined");
                // Before the gate opens: what the VM has to tell is told to nobody.
                services.journal.hold_events(slot.vm_id);
                let holder = claim.map(|claim| claim.host);
                let _ = manager.cast(ManagerMsg::Quarantine { vm_id: slot.vm_id, reason, holder });
            }
        }
    }
    Ok(())
}

async fn claim_again(services: &Services, name: &NameKey, slot: &Slot) -> Result<(), ClaimError> {
    let ours = Claim {
        vm_id: slot.vm_id,
        request_id: slot.create_request,
        body_sha256: slot.create_sha256.clone(),
        host: services.host.clone(),
        owner_epoch: slot.owner_epoch,
        phase: Phase::Owned,
        deadline_unix_ms: 0,
        previous: Vec::new(),
        gone: None,
    };
    if services.claims.restore(name, &ours).await? {
        warn!(vm_id = %slot.vm_id, namespace = %name.namespace, name = %name.name, "its claim was lost and made again");
        let text = "the bus had lost the claim of a VM's name; it was made again";
        services
            .log
            .note(HostNote::alarm("claim_restored", text).with("vm", name.key()).with("vm_id", slot.vm_id));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use drover_schemas::blob::Blob;
    use drover_schemas::body::spec::AgentSpec;
    use drover_schemas::{RequestId, VmId};

    use crate::bus::claims::Previous;

    use super::*;

    #[test]
    fn only_the_very_claim_of_the_host_makes_a_vm_its_own() {
        let host = Token::new("h1").unwrap();
        let vm_id = VmId::from_u128(1 << 81);
        let slot = Slot::of(vm_id, 3, RequestId::from_u128(2), "aa", true, AgentSpec::default());
        let ours = Claim {
            vm_id,
            request_id: RequestId::from_u128(2),
            body_sha256: "aa".into(),
            host: host.clone(),
            owner_epoch: 3,
            phase: Phase::Owned,
            deadline_unix_ms: 0,
            previous: Vec::new(),
            gone: None,
        };
        let judge = |claim: &Claim| standing(&host, &slot, Some(claim), None);
        assert_eq!(judge(&ours), Standing::Ours);
        let lost = |claim: Claim| matches!(judge(&claim), Standing::Lost(_));
        assert!(lost(Claim { owner_epoch: 4, ..ours.clone() }));
        assert!(lost(Claim { owner_epoch: 4, phase: Phase::Gone, ..ours.clone() }));
        assert!(lost(Claim { host: Token::new("h2").unwrap(), ..ours.clone() }));
        let other = Claim { vm_id: VmId::from_u128(9), ..ours };
        assert!(lost(other.clone()));
        let deleted = |reply: &[u8]| {
            let reply = Blob::from(reply.to_vec());
            let (host, request_id) = (host.clone(), RequestId::from_u128(7));
            let of = Previous { vm_id, host, deleted_unix_ms: 1, request_id, reply, created_by: None };
            has_ended(&slot, Some(&Claim { previous: vec![of], ..other.clone() }))
        };
        assert!(deleted(b"reply") && !deleted(b""), "whoever was forgotten may live");
        assert!(!has_ended(&slot, Some(&other)));
        assert_eq!(standing(&host, &slot, None, None), Standing::Unclaimed);
        assert!(
            matches!(standing(&host, &slot, None, Some(5)), Standing::Lost(_)),
            "made before it was forgotten"
        );
        assert_eq!(standing(&host, &slot, None, Some(1)), Standing::Unclaimed, "made afterwards");
    }
}
