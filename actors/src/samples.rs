//! Samples of the host and its VMs, published every 15 seconds and not stored. A namespace's VMs go
//! together in one message, so an idle host says little.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use drover_schemas::body::samples::{HostSample, NamespaceSample, VmSample};
use drover_schemas::body::status::VmStatus;
use drover_schemas::subject::Subject;
use drover_schemas::{Token, codec};
use serde::Serialize;
use tracing::debug;

use crate::bus::connect::Bus;
use crate::directory::Directory;
use crate::services::{Services, Shared, now_ms};

/// How often samples are taken.
const EVERY: Duration = Duration::from_secs(15);
/// VMs in one message.
const VMS_IN_MESSAGE: usize = 500;

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
            for part in vms.chunks(VMS_IN_MESSAGE) {
                let sample =
                    NamespaceSample { host: services.host.clone(), time_unix_ms, vms: part.to_vec() };
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
    for slot in directory.all() {
        let Some(VmStatus { namespace, name, vm_id, state, .. }) = slot.status().await else { continue };
        if state.holds_runtime() {
            // Its launch is looked up only where it was made elsewhere.
            let memory_bytes = services.cgroups.of(vm_id).memory_bytes();
            let memory_bytes = memory_bytes.or_else(|| services.cgroup(vm_id).memory_bytes());
            samples.entry(namespace).or_default().push(VmSample { name, vm_id, state, memory_bytes });
        }
    }
    samples
}

async fn send<T: Serialize + Sync>(services: &Services, subject: &Subject, sample: &T) {
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
