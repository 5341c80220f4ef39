//! Samples of the host and its VMs, published every 15 seconds and not stored. A namespace's VMs go
//! together in one message, so an idle host says little. Figures of a guest that have changed are told by themselves
//! beside that, by whoever takes them ([`Tend`](crate::vm::tend::Tend)).

pub mod guest;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use drover_schemas::body::samples::{HostSample, NamespaceSample, VmSample};
use drover_schemas::body::status::{NicStatus, VmStatus};
use drover_schemas::subject::Subject;
use drover_schemas::{Token, codec};
use serde::Serialize;
use tracing::debug;

use crate::bus::connect::Bus;
use crate::chain::chain;
use crate::directory::Directory;
use crate::network::Counted;
use crate::services::{Services, Shared, now_ms};

/// How often samples are taken.
const EVERY: Duration = Duration::from_secs(15);
/// How much of VMs is in one message, in bytes; more than one VM may have.
const MAX_MESSAGE: usize = 192 * 1024;

/// Publishes samples for as long as the host runs. Without the bus none are taken: nobody would hear.
pub async fn publish(services: Shared, directory: Arc<Directory>, bus: Bus) {
    loop {
        tokio::time::sleep(EVERY).await;
        bus.connected().await;
        let time_unix_ms = now_ms();
        let mut running = 0;
        for (namespace, vms) in vms(&services, &directory).await {
            running += vms.len();
            let subject = Subject::NsHostMetric { ns: namespace, host: services.host.clone() };
            for vms in parts(vms) {
                let sample = NamespaceSample { host: services.host.clone(), time_unix_ms, vms };
                send(&services, &subject, &sample).await;
            }
        }
        services.metrics.vms_running.set(i64::try_from(running).unwrap_or(i64::MAX));
        let sample = HostSample {
            host: services.host.clone(),
            time_unix_ms,
            capacity: services.state.capacity(),
            outbox: services.journal.outbox_used().0,
        };
        send(&services, &Subject::HostMetric { host: services.host.clone() }, &sample).await;
    }
}

async fn vms(services: &Services, directory: &Directory) -> BTreeMap<Token, Vec<VmSample>> {
    let mut samples: BTreeMap<Token, Vec<VmSample>> = BTreeMap::new();
    let mut counted = None;
    for slot in directory.all() {
        let Some(VmStatus { namespace, name, vm_id, state, nics, .. }) = slot.status().await else {
            continue;
        };
        if state.holds_runtime() {
            let (memory_bytes, guest) = (services.memory_of(vm_id), services.guests.get(vm_id));
            if counted.is_none() {
                counted = Some(count(services).await);
            }
            let of_nic = |nic: &NicStatus| counted.as_ref().and_then(|counted| counted.of(nic));
            let nics = nics.iter().filter_map(of_nic).collect();
            let sample = VmSample { name, vm_id, state, memory_bytes, guest, nics };
            samples.entry(namespace).or_default().push(sample);
        }
    }
    samples
}

/// Traffic is counted once for all, and only if anything runs.
async fn count(services: &Services) -> Arc<Counted> {
    services.network.counted().await.unwrap_or_else(|error| {
        debug!(error = %chain(&error), "traffic was not counted");
        Arc::default()
    })
}

/// Messages of a bounded length.
fn parts(vms: Vec<VmSample>) -> Vec<Vec<VmSample>> {
    let mut parts: Vec<Vec<VmSample>> = Vec::new();
    let mut used = MAX_MESSAGE;
    for vm in vms {
        let length = codec::encode(&vm).map_or(MAX_MESSAGE, |bytes| bytes.len());
        if used + length > MAX_MESSAGE {
            parts.push(Vec::new());
            used = 0;
        }
        used += length;
        parts.last_mut().into_iter().for_each(|part| part.push(vm.clone()));
    }
    parts
}

/// Publishes a sample. That it was not is no more than a gap.
pub(crate) async fn send<T: Serialize + Sync>(services: &Services, subject: &Subject, sample: &T) {
    match codec::encode(sample) {
        Ok(body) => {
            if let Err(error) =
                services.streams.bulk.client.publish(services.subjects.build(subject), body.into()).await
            {
                debug!(%error, "a sample was not published");
            }
        }
        Err(error) => debug!(%error, "a sample could not be encoded"),
    }
}

#[cfg(test)]
mod tests {
    use drover_schemas::body::samples::GuestSample;
    use drover_schemas::guest::DiskUse;
    use drover_schemas::state::VmState;

    use super::*;

    #[test]
    fn a_message_is_never_too_long_and_none_is_lost() {
        assert_eq!(parts(Vec::new()).len(), 0);
        let sample = |n: u128, disks: usize| {
            let disk = DiskUse { mount: "x".repeat(128), ..DiskUse::default() };
            let guest = GuestSample { disks: vec![disk; disks], ..GuestSample::default() };
            let (vm_id, name) = (drover_schemas::VmId::from_u128(n), Token::new(&format!("vm-{n}")).unwrap());
            VmSample {
                name,
                vm_id,
                state: VmState::Running,
                memory_bytes: Some(1),
                guest: Some(guest),
                nics: Vec::new(),
            }
        };
        let vms: Vec<_> = (0..1_000).map(|n| sample(n, (n % 17) as usize)).collect();
        let parts = parts(vms.clone());
        assert!(parts.len() > 1);
        for part in &parts {
            assert!(!part.is_empty() && codec::encode(part).unwrap().len() <= MAX_MESSAGE + 8);
        }
        assert_eq!(parts.concat(), vms);
    }
}
