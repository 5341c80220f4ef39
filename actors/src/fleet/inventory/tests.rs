use drover_schemas::InstallationId;
use drover_schemas::blob::Blob;
use drover_schemas::body::host::Capacity;

use super::*;
use crate::bus::assets::{self, AssetsConfig};
use crate::bus::claims::Claims;
use crate::bus::testing::{NatsServer, until};

fn token(text: &str) -> Token {
    Token::new(text).unwrap()
}

fn record(host: &str, cpus: u64) -> HostRecord {
    HostRecord {
        host: token(host),
        installation: InstallationId::from_u128(7),
        version: "1".into(),
        features: Vec::new(),
        capacity: Capacity { cpus, ..Capacity::default() },
        labels: BTreeMap::new(),
        accepting: true,
        written_unix_ms: 5,
        phase: "ready".into(),
        vmm_version: String::new(),
        overhead_bytes: 1,
        networks: None,
        templates: None,
        own_templates: BTreeMap::new(),
        subnets: BTreeMap::new(),
        volumes: BTreeMap::new(),
        images: None,
        load_percent: 0,
    }
}

fn cpus(inventory: &Inventory) -> Vec<(String, u64, Pending)> {
    inventory.candidates(|all| {
        all.into_iter().map(|c| (c.record.host.to_string(), c.record.capacity.cpus, c.pending)).collect()
    })
}

#[test]
fn a_copy_is_bounded_and_forgets_who_is_silent() {
    let inventory = Inventory::default();
    let now = Instant::now();
    for n in 0..MAX_HOSTS + 10 {
        let name = format!("h{n}");
        inventory.apply(&token(&name), Change::Row(Box::new(record(&name, 1))), now, 1);
    }
    assert_eq!(inventory.read().len(), MAX_HOSTS);
    // Gone without having been told of.
    inventory.read_whole(2);
    assert_eq!(cpus(&inventory), []);
    let Some(long_ago) = now.checked_sub(DROPPED * 2) else { return };
    inventory.apply(&token("h1"), Change::Row(Box::new(record("h1", 1))), long_ago, 2);
    assert_eq!(inventory.seen(&token("h1")), (false, Some(5)), "its row was not renewed");
    inventory.drop_silent();
    assert_eq!(inventory.seen(&token("h1")), (false, None));
}

#[test]
fn what_was_sent_counts_until_the_host_says_so() {
    let inventory = Inventory::default();
    inventory.apply(&token("h1"), Change::Row(Box::new(record("h1", 8))), Instant::now(), 1);
    inventory.sent(&token("h1"), 2, 10);
    inventory.sent(&token("h1"), 1, 10);
    inventory.sent(&token("unknown"), 1, 10);
    let pending = Pending { vms: 2, cpus: 3, memory_bytes: 22 };
    assert_eq!(cpus(&inventory), [("h1".to_owned(), 8, pending)]);
    inventory.apply(&token("h1"), Change::Row(Box::new(record("h1", 8))), Instant::now(), 1);
    assert_eq!(cpus(&inventory), [("h1".to_owned(), 8, Pending::default())]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_follows_the_bucket_over_a_lost_server() {
    let Some(mut server) = NatsServer::start("").await else { return };
    let bus = server.bus().await;
    let js = async_nats::jetstream::new(bus.client.clone());
    let config = AssetsConfig::new(token("drover"));
    assets::ensure(&js, &config).await.unwrap();
    let claims = Claims::new(js.clone(), &config);
    let put = async |host: &str, cpus: u64| {
        let row = Blob::from(codec::encode(&record(host, cpus)).unwrap());
        until("the row is written", || async {
            claims.heartbeat(&token(host), InstallationId::from_u128(7), row.clone()).await.is_ok()
        })
        .await;
    };
    put("h1", 1).await;
    claims.claim_host(&token("h1"), InstallationId::from_u128(7), 3).await.unwrap();
    let inventory = std::sync::Arc::new(Inventory::default());
    let (copy, bucket) = (std::sync::Arc::clone(&inventory), config.hosts_bucket());
    let watcher = tokio::spawn(async move { watch(&copy, &js, &bucket, &bus).await });
    assert!(inventory.loaded(Duration::from_secs(20)).await);
    let shows = async |what: &str, want: &[(&str, u64)]| {
        until(what, || async {
            let seen: Vec<_> = cpus(&inventory).into_iter().map(|(host, cpus, _)| (host, cpus)).collect();
            seen.iter().map(|(host, cpus)| (host.as_str(), *cpus)).eq(want.iter().copied())
        })
        .await;
    };
    shows("what was there", &[("h1", 1)]).await;
    assert!(inventory.claim(&token("h1")).is_some());
    put("h2", 2).await;
    put("h1", 9).await;
    shows("what comes", &[("h1", 9), ("h2", 2)]).await;
    assert!(inventory.others_accept(&token("h1")) && inventory.seen(&token("h2")).0);
    server.kill();
    server.up().await;
    put("h2", 4).await;
    shows("what comes later", &[("h1", 9), ("h2", 4)]).await;
    claims.remove_row(&token("h2")).await.unwrap();
    shows("what went", &[("h1", 9)]).await;
    assert_eq!(inventory.seen(&token("h2")), (false, Some(5)));
    watcher.abort();
}
