//! Subscriptions: those of the host, and one for each VM as long as it stands in the directory.

use std::sync::Arc;
use std::time::Duration;

use drover_schemas::subject::PoolVerb;
use futures_util::StreamExt as _;
use tracing::{error, info, warn};

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
/// How often a host looks whether it should place new VMs.
const LOOK: Duration = Duration::from_secs(1);
/// How long a host that leaves waits for each create that is on its way.
const DRAIN: Duration = Duration::from_secs(2);

/// Subscribes to everything that this host answers. The client keeps subscriptions over a reconnect.
pub async fn subscribe_all(services: Shared, directory: Arc<Directory>, router: Router, bus: Bus) {
    let client = bus.client.clone();
    // A subscription that is made before the first connection is kept by the client and sent with it.
    for (namespace, name) in directory.names() {
        directory.serve(&services, &namespace, &name).await;
    }
    bus.connected().await;
    let mut host = Vec::new();
    let front = services.lanes.front().clone();
    for subject in shared_subjects(&services.subjects) {
        match front.queue_subscribe(subject, PLACERS.to_owned()).await {
            Ok(subscriber) => host.push((front.clone(), subscriber)),
            Err(failure) => error!(error = %chain(&failure), "a shared subject could not be subscribed"),
        }
    }
    let creates = subscribe_creates(&services, &front).await;
    // Those have connections of their own: whoever hears of the host can ask for all of it.
    if tokio::time::timeout(LANES_CONNECT, services.lanes.heard()).await.is_err() {
        warn!("a connection for VMs is not there yet; the host answers without it");
    }
    match client.subscribe(services.subjects.host_wildcard(&services.host)).await {
        Ok(subscriber) => host.push((client.clone(), subscriber)),
        Err(failure) => error!(error = %chain(&failure), "the host's subject could not be subscribed"),
    }
    let _service = discovery(&services, &client).await;
    let mut readers = tokio::task::JoinSet::new();
    readers.spawn(place(services.clone(), router.clone(), front, creates));
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

async fn subscribe_creates(services: &Shared, client: &async_nats::Client) -> Option<async_nats::Subscriber> {
    let subject = services.subjects.pool_wildcard(PoolVerb::Create);
    let subscribed = client.queue_subscribe(subject, PLACERS.to_owned()).await;
    subscribed.inspect_err(|failure| error!(error = %chain(failure), "creates could not be subscribed")).ok()
}

/// Takes part in placing new VMs, unless others are there that can and this host drains or its journal lags. Alone it
/// stays, to say why it takes none.
async fn place(
    services: Shared,
    router: Router,
    client: async_nats::Client,
    mut subscribed: Option<async_nats::Subscriber>,
) {
    let fit = || !services.state.draining() && services.journal.is_sound();
    loop {
        let Some(mut subscriber) = subscribed.take() else { return };
        let mut looks = tokio::time::interval(LOOK);
        loop {
            tokio::select! {
                message = subscriber.next() => match message {
                    Some(message) => router.accept(&client, message).await,
                    None => return,
                },
                _ = looks.tick() => if !fit() && services.inventory.others_accept(&services.host) {
                    break;
                }
            }
        }
        info!("other hosts place new VMs from now on");
        // What is on its way already is answered too.
        if subscriber.drain().await.is_ok() {
            while let Ok(Some(message)) = tokio::time::timeout(DRAIN, subscriber.next()).await {
                router.accept(&client, message).await;
            }
        }
        while !fit() && services.inventory.others_accept(&services.host) {
            looks.tick().await;
        }
        info!("this host places new VMs again");
        subscribed = subscribe_creates(&services, &client).await;
    }
}

/// Answers `$SRV.PING`, `INFO` and `STATS`, so that the usual tools find the host.
async fn discovery(services: &Shared, client: &async_nats::Client) -> Option<async_nats::service::Service> {
    use async_nats::service::ServiceExt as _;
    let metadata = [
        ("host".to_owned(), services.host.to_string()),
        ("installation".to_owned(), services.installation.to_string()),
        ("features".to_owned(), crate::fleet::presence::features(services).join(",")),
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
