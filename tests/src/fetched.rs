//! A host that fetches images, and what is seen of that on it.

use std::fs;
use std::time::Duration;

use drover_schemas::RequestId;
use drover_schemas::body::image::{ImageImportReply, ImageInfo, ImagesReply};
use serde_json::{Value, json};

use crate::certificates::Authority;
use crate::client::{Ask, Bus};
use crate::wait::until;
use crate::world::World;

/// What came of an import before the daemon is killed, in bytes.
const MUCH: u64 = 8 << 20;

/// Whom the host trusts, with its files in the folder of the world.
///
/// # Panics
/// They cannot be written.
#[must_use]
pub fn authority(world: &World) -> Authority {
    let folder = world.path("tls");
    fs::create_dir_all(&folder).expect("a folder");
    Authority::new(&folder, "images-ca")
}

/// Starts a host that may fetch from these hosts at 127.0.0.1 what is no longer than the first size, and holds no more
/// than the second.
///
/// # Panics
/// It does not start.
pub async fn fetches(
    world: &mut World,
    authority: &Authority,
    hosts: &[String],
    silence_ms: u64,
    (max_size, max_store): (&str, &str),
) {
    let urls = json!({
        "hosts": hosts,
        "private": ["127.0.0.1/32"],
        "ca": authority.cert(),
        "max_size": max_size,
        "silence_ms": silence_ms,
    });
    world.up_with(|config| config["images"] = json!({"urls": urls, "max_size": max_store})).await;
}

/// Asks the host `h1` for an import.
#[must_use]
pub fn import(bus: &Bus, body: &Value) -> Ask {
    bus.ask("drover.v1.host.h1.image.import", body).within(Duration::from_secs(60))
}

/// What of images is there: contents, and what is being written.
///
/// # Panics
/// There is no store.
#[must_use]
pub fn held(world: &World) -> (usize, usize) {
    let store = world.state_dir().join("store");
    let count = |folder: &str| fs::read_dir(store.join(folder)).expect("a folder of the store").count();
    (count("sha256"), count("tmp"))
}

/// Processes that fetch for this host.
///
/// # Panics
/// `/proc` cannot be read.
#[must_use]
pub fn workers(world: &World) -> usize {
    worker_ids(world).len()
}

/// The ids of processes that fetch for this host.
///
/// # Panics
/// `/proc` cannot be read.
#[must_use]
pub fn worker_ids(world: &World) -> Vec<String> {
    let Some(daemon) = world.daemon_id() else { return Vec::new() };
    let children = fs::read_dir(format!("/proc/{daemon}/task"))
        .expect("the daemon's threads")
        .filter_map(|task| fs::read_to_string(task.ok()?.path().join("children")).ok());
    let children: Vec<String> =
        children.flat_map(|ids| ids.split(' ').map(str::to_owned).collect::<Vec<_>>()).collect();
    let fetches = |id: &String| {
        fs::read(format!("/proc/{id}/cmdline"))
            .is_ok_and(|line| line.split(|byte| *byte == 0).any(|word| word == b"--fetch-image"))
    };
    children.iter().map(|id| id.trim().to_owned()).filter(fetches).collect()
}

/// Kills the daemon in the midst of the first import, whose server is silent after a while; nothing is left of it, and
/// the second brings the only image.
///
/// # Panics
/// It is otherwise.
pub async fn killed_midway(world: &mut World, half: Value, whole: &Value) -> ImageInfo {
    let bus = world.bus.clone();
    let asking = tokio::spawn({
        let bus = bus.clone();
        async move { import(&bus, &half).get::<ImageImportReply>().await.is_err() }
    });
    until("much of it is there", async || {
        let parts = fs::read_dir(world.state_dir().join("store/tmp")).ok()?;
        let come = parts.filter_map(|part| part.ok()?.metadata().ok()).map(|part| part.len()).max();
        (come >= Some(MUCH)).then_some(())
    })
    .await;
    assert_eq!(workers(world), 1);
    world.kill().await;
    world.start();
    world.ready().await;
    assert_eq!((held(world), workers(world)), ((0, 0), 0));
    let subject = "drover.v1.host.h1.image.import";
    let image = bus.insist::<ImageImportReply>(subject, whole, RequestId::generate()).await;
    let image = image.expect("the import").image;
    let names: ImagesReply = bus.look("drover.v1.host.h1.image.list", &json!({})).await.expect("a list");
    assert!(names.images.iter().all(|one| one.built_in || one.name == image.name));
    asking.abort();
    image
}
