//! Subscriptions: those of the host, and one for each VM as long as it stands in the directory.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use tracing::{error, warn};

use crate::bus::connect::Bus;
use crate::chain;
use crate::directory::Directory;
use crate::root::shared_subjects;
use crate::router::Router;
use crate::services::Shared;

/// The queue group of hosts that take new VMs.
pub const PLACERS: &str = "placers";
/// How long the connections for VMs may take once there is one for the host.
const LANES_CONNECT: Duration = Duration::from_secs(5);

/// Subscribes to everything that this host answers. The client keeps subscriptions over a reconnect.
pub async fn subscribe_all(services: Shared, directory: Arc<Directory>, router: Router, bus: Bus) {
    let client = bus.client.clone();
    // A subscription that is made before the first connection is kept by the client and sent with it.
    for (namespace, name) in directory.names() {
        directory.serve(&services, &namespace, &name).await;
    }
    // VMs are heard on connections of their own: whoever hears of the host can ask for them too.
    bus.connected().await;
    if tokio::time::timeout(LANES_CONNECT, services.lanes.connected()).await.is_err() {
        warn!("a connection for VMs is not there yet; the host answers without it");
    }
    let mut host = Vec::new();
    match client.subscribe(services.subjects.host_wildcard(&services.host)).await {
        Ok(subscriber) => host.push((client.clone(), subscriber)),
        Err(failure) => error!(error = %chain(&failure), "the host's subject could not be subscribed"),
    }
    let front = services.lanes.front().clone();
    for subject in shared_subjects(&services.subjects) {
        match front.queue_subscribe(subject, PLACERS.to_owned()).await {
            Ok(subscriber) => host.push((front.clone(), subscriber)),
            Err(failure) => error!(error = %chain(&failure), "a shared subject could not be subscribed"),
        }
    }
    let _service = discovery(&services, &client).await;
    let mut readers = tokio::task::JoinSet::new();
    for (client, mut subscriber) in host {
        let router = router.clone();
        readers.spawn(async move {
            while let Some(message) = subscriber.next().await {
                router.accept(&client, message).await;
            }
        });
    }
    while readers.join_next().await.is_some() {}
}

/// Answers `$SRV.PING`, `INFO` and `STATS`, so that the usual tools find the host.
async fn discovery(services: &Shared, client: &async_nats::Client) -> Option<async_nats::service::Service> {
    use async_nats::service::ServiceExt as _;
    let metadata = [
        ("host".to_owned(), services.host.to_string()),
        ("installation".to_owned(), services.installation.to_string()),
        ("features".to_owned(), crate::root::FEATURES.join(",")),
        ("subjects".to_owned(), services.subjects.host_wildcard(&services.host)),
    ];
    let built = client
        .service_builder()
        .description("runs Cloud Hypervisor microVMs")
        .metadata(metadata.into())
        .start("drover", env!("CARGO_PKG_VERSION"))
        .await;
    match built {
        Ok(service) => Some(service),
        Err(failure) => {
            warn!(error = %failure, "the host cannot be discovered");
            None
        }
    }
}
