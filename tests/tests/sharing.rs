//! Images that the hosts of a fleet share through the bus: one boots what another imported, without any address; what
//! is refused; and a host, a daemon and a bus server that die meanwhile.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use async_nats::jetstream;
use drover_schemas::body::image::{
    ImageImportReply, ImageInfo, ImageShareReply, ImageUnshareReply, ImageVerifyReply, ImagesReply,
    SharedImagesReply,
};
use drover_schemas::{ErrorBody, ErrorCode, RequestId};
use drover_tests::client::{Ask, Bus, Failure};
use drover_tests::node::Node;
use drover_tests::wait::{until, until_within};
use drover_tests::world::{Options, World, run};
use serde_json::{Value, json};

const MIB: usize = 1 << 20;

fn disk(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|n| (n as u8).wrapping_mul(31).wrapping_add(seed) ^ (n >> 12) as u8).collect()
}

fn asked(bus: &Bus, host: &str, verb: &str, body: &Value) -> Ask {
    bus.ask(&format!("drover.v1.host.{host}.image.{verb}"), body).within(Duration::from_secs(60))
}

/// Why h2 does not pull an image. It may follow it at the same time, and says so to who asks then.
async fn pull_refused(bus: &Bus, name: &str) -> ErrorBody {
    until("a pull is refused", async || {
        match asked(bus, "h2", "pull", &json!({"name": name})).get::<Value>().await {
            Err(Failure::Coded(error)) => Some(error).filter(|error| error.code != ErrorCode::Busy),
            other => panic!("{other:?}"),
        }
    })
    .await
}

/// Where a host finds files to import.
fn folder(host: &Node) -> PathBuf {
    host.state_dir().parent().unwrap().join("in")
}

/// Starts hosts that import from a folder of their own.
async fn up(world: &mut World, images: &[Value]) {
    world.start_nats().await;
    for (host, settings) in world.hosts.iter_mut().zip(images) {
        let folder = folder(host);
        fs::create_dir_all(&folder).unwrap();
        let name = host.name.clone();
        host.configure_with(|config| {
            config["images"] = settings.clone();
            config["images"]["import_dirs"] = json!([folder]);
            config["labels"] = json!({"zone": name});
        });
        host.start();
    }
    world.ready().await;
}

async fn import(world: &World, host: usize, name: &str, content: &[u8]) -> ImageInfo {
    let path = folder(&world.hosts[host]).join(name);
    fs::write(&path, content).unwrap();
    let body = json!({"name": name, "kind": "disk", "path": path, "replace": true});
    let reply: ImageImportReply =
        asked(&world.bus, &world.hosts[host].name, "import", &body).get().await.unwrap();
    reply.image
}

async fn images(bus: &Bus, host: &str) -> Vec<ImageInfo> {
    let reply: ImagesReply =
        bus.look(&format!("drover.v1.host.{host}.image.list"), &json!({})).await.unwrap();
    reply.images.into_iter().filter(|image| !image.built_in).collect()
}

async fn shared(bus: &Bus, host: &str) -> SharedImagesReply {
    bus.look(&format!("drover.v1.host.{host}.image.shared"), &json!({})).await.unwrap()
}

/// Bytes of contents that the bus holds.
async fn on_the_bus(bus: &Bus) -> u64 {
    let js = jetstream::new(bus.nats.clone());
    let stream = js.get_stream("OBJ_DROVER_IMAGES").await.unwrap();
    let chunks = stream.info_with_subjects("$O.DROVER_IMAGES.C.>").await.unwrap();
    let ids: Vec<_> = futures_util::TryStreamExt::try_collect(chunks).await.unwrap();
    ids.iter().map(|(_, chunks): &(String, usize)| *chunks as u64 * 128 * 1024).sum()
}

/// Kills the daemon of a host, and starts another that takes its place.
async fn die_and_come_back(host: &mut Node, bus: &Bus) {
    host.kill().await;
    host.start();
    host.ready_on(bus).await;
}

/// What a host holds of images: contents, and what is on its way.
fn held(host: &Node) -> (usize, usize, usize) {
    let count = |folder: &str| fs::read_dir(host.state_dir().join("store").join(folder)).unwrap().count();
    (count("sha256"), count("tmp"), count("uploads"))
}

#[test]
fn an_image_of_one_host_boots_on_another_without_any_address() {
    let test = "an_image_of_one_host_boots_on_another_without_any_address";
    run(test, Options { started: false, ..Options::fleet(3) }, async |world| {
        up(world, &[json!({}), json!({}), json!({"follow": "all"})]).await;
        let bus = world.bus.clone();
        let data = import(world, 0, "data", &disk(1, 3 * MIB)).await;
        asked(&bus, "h2", "pull", &json!({"name": "data"})).refused(ErrorCode::NotFound).await;
        let name = json!({"name": "data"});
        // Twice at once is once, and again sends nothing.
        let (one, two) = tokio::join!(
            asked(&bus, "h1", "share", &name).get::<ImageShareReply>(),
            asked(&bus, "h1", "share", &name).get::<ImageShareReply>()
        );
        let (one, two) = (one.unwrap(), two.unwrap());
        assert_eq!((one.image.sha256.as_str(), one.uploaded_bytes), (data.sha256.as_str(), data.size_bytes));
        assert_eq!(two.image.sha256, data.sha256);
        let again: ImageShareReply = asked(&bus, "h1", "share", &name).get().await.unwrap();
        assert_eq!((again.uploaded_bytes, on_the_bus(&bus).await), (0, data.size_bytes));
        // A host that follows the fleet has it unasked.
        until("h3 has the image", async || {
            images(&bus, "h3").await.iter().any(|image| image.sha256 == data.sha256).then_some(())
        })
        .await;

        // The host that had it is gone for good.
        world.hosts[0].kill().await;
        let (pulled, twice) = tokio::join!(
            asked(&bus, "h2", "pull", &name).get::<ImageImportReply>(),
            asked(&bus, "h2", "pull", &name).get::<ImageImportReply>()
        );
        let image = pulled.unwrap().image;
        assert_eq!((image.sha256.as_str(), image.from_fleet), (data.sha256.as_str(), true));
        assert_eq!((twice.unwrap().image.sha256, held(&world.hosts[1])), (image.sha256, (1, 0, 0)));
        for host in ["h2", "h3"] {
            let disks = json!([{"image": "drover-rootfs"}, {"image": "data"}]);
            let spec = json!({"memory": "64MiB", "disks": disks, "placement": {"labels": {"zone": host}}});
            // Its own word of what it has may not have come to the others yet.
            let made = until("a host takes it", async || {
                bus.create(&format!("on-{host}"), json!({"spec": spec, "wait": "agent"})).await.ok()
            });
            let vm = made.await.vm;
            assert_eq!(vm.host.as_str(), host);
        }
        let shown = world.drover(&["image", "ls", "--shared", "--host", "h2"]).await;
        let shown = String::from_utf8(shown.stdout).unwrap();
        assert!(
            shown.contains("data") && shown.contains(&data.sha256[..12]) && shown.contains("h1"),
            "{shown}"
        );

        // Two names of one content: the content goes with the last of them, and hosts keep what they have.
        import(world, 1, "copy", &disk(1, 3 * MIB)).await;
        let copy: ImageShareReply = asked(&bus, "h2", "share", &json!({"name": "copy"})).get().await.unwrap();
        assert_eq!(copy.uploaded_bytes, 0);
        let names: Vec<_> = shared(&bus, "h3").await.images.into_iter().map(|i| i.name.to_string()).collect();
        assert_eq!(names, ["copy", "data"]);
        let kept: ImageUnshareReply = asked(&bus, "h2", "unshare", &name).get().await.unwrap();
        assert_eq!((kept.freed_bytes, on_the_bus(&bus).await), (0, data.size_bytes));
        let gone: ImageUnshareReply =
            asked(&bus, "h3", "unshare", &json!({"name": "copy"})).get().await.unwrap();
        assert_eq!((gone.freed_bytes, on_the_bus(&bus).await), (data.size_bytes, 0));
        asked(&bus, "h2", "unshare", &name).refused(ErrorCode::NotFound).await;
        assert_eq!(shared(&bus, "h2").await.images, []);
        assert!(images(&bus, "h3").await.iter().any(|image| image.name == "data"));
    });
}

#[test]
fn a_name_moves_for_the_fleet_and_never_over_a_hosts_own() {
    let test = "a_name_moves_for_the_fleet_and_never_over_a_hosts_own";
    run(test, Options { started: false, ..Options::fleet(2) }, async |world| {
        up(world, &[json!({}), json!({"follow": "all", "max_size": "6MiB"})]).await;
        let bus = world.bus.clone();
        let own = import(world, 1, "own", &disk(9, MIB)).await;
        let first = import(world, 0, "moves", &disk(1, MIB)).await;
        import(world, 0, "own", &disk(2, MIB)).await;
        let share = async |name: &str, replace: bool| {
            asked(&bus, "h1", "share", &json!({"name": name, "replace": replace}))
                .get::<ImageShareReply>()
                .await
        };
        share("own", false).await.unwrap();
        share("moves", false).await.unwrap();
        let has = async |name: &str, sha256: &str| {
            until("h2 has the content", async || {
                images(&bus, "h2").await.iter().any(|i| i.name == name && i.sha256 == sha256).then_some(())
            })
            .await;
        };
        has("moves", &first.sha256).await;
        let second = import(world, 0, "moves", &disk(3, 2 * MIB)).await;
        let body = json!({"name": "moves"});
        let error = asked(&bus, "h1", "share", &body).refused(ErrorCode::AlreadyExists).await;
        assert_eq!(error.details["sha256"], first.sha256);
        share("moves", true).await.unwrap();
        has("moves", &second.sha256).await;
        has("own", &own.sha256).await;
        assert_eq!(pull_refused(&bus, "own").await.code, ErrorCode::AlreadyExists);

        // More than a host may hold, unknown, built in, and damaged on its host.
        import(world, 0, "big", &disk(4, 5 * MIB)).await;
        share("big", false).await.unwrap();
        let error = pull_refused(&bus, "big").await;
        assert_eq!(error.code, ErrorCode::ResourceExhausted, "{error:?}");
        assert_eq!(error.details["resource"], "images.max_size");
        // The others do not wait for it.
        let small = import(world, 0, "small", &disk(6, 64 << 10)).await;
        share("small", false).await.unwrap();
        has("small", &small.sha256).await;
        asked(&bus, "h1", "share", &json!({"name": "none"})).refused(ErrorCode::NotFound).await;
        let before = on_the_bus(&bus).await;
        let bad = import(world, 0, "bad", &disk(5, MIB)).await;
        let content = world.state_dir().join("store/sha256").join(&bad.sha256);
        fs::remove_file(&content).unwrap();
        fs::write(&content, disk(6, MIB)).unwrap();
        let error = asked(&bus, "h1", "share", &json!({"name": "bad"})).refused(ErrorCode::Internal).await;
        assert!(error.message.contains("damaged"), "{error:?}");
        assert_eq!((on_the_bus(&bus).await, held(&world.hosts[0]).2), (before, 0));
    });
}

#[test]
fn a_daemon_that_dies_while_images_move_leaves_nothing_half_done() {
    let test = "a_daemon_that_dies_while_images_move_leaves_nothing_half_done";
    run(test, Options { started: false, ..Options::fleet(2) }, async |world| {
        up(world, &[json!({}), json!({})]).await;
        let bus = world.bus.clone();
        for n in 0..4_u8 {
            let name = format!("d{n}");
            let image = import(world, 0, &name, &disk(n, 16 * MIB)).await;
            let body = json!({"name": name});
            let before = u64::from(n) * image.size_bytes;
            let part = u64::from(n) * image.size_bytes / 4;
            // The sender dies at another instant each time, and whoever asked goes on.
            let subject = "drover.v1.host.h1.image.share";
            let asks = bus.insist::<ImageShareReply>(subject, &body, RequestId::generate());
            let host = &mut world.hosts[0];
            let kills = async {
                until("so much is sent", async || (on_the_bus(&bus).await >= before + part).then_some(()))
                    .await;
                die_and_come_back(host, &bus).await;
            };
            let (reply, ()) = tokio::join!(asks, kills);
            assert_eq!(reply.unwrap().image.sha256, image.sha256);
            // What was sent in vain goes; what is shared is there once.
            until("the bus holds each content once", async || {
                (on_the_bus(&bus).await == before + image.size_bytes && held(&world.hosts[0]).2 == 0)
                    .then_some(())
            })
            .await;
            // Then the receiver does.
            let subject = "drover.v1.host.h2.image.pull";
            let asks = bus.insist::<ImageImportReply>(subject, &body, RequestId::generate());
            let host = &mut world.hosts[1];
            let tmp = host.state_dir().join("store/tmp");
            let there = host.state_dir().join("store/sha256").join(&image.sha256);
            let kills = async {
                until("so much has come", async || {
                    let sizes = fs::read_dir(&tmp).unwrap().filter_map(|f| f.unwrap().metadata().ok());
                    let come = sizes.map(|file| file.len()).max().unwrap_or(0);
                    (come >= part || there.exists()).then_some(())
                })
                .await;
                die_and_come_back(host, &bus).await;
            };
            let (reply, ()) = tokio::join!(asks, kills);
            assert_eq!(reply.unwrap().image.sha256, image.sha256);
            assert_eq!(held(&world.hosts[1]), (usize::from(n) + 1, 0, 0));
        }
        let clean: ImageVerifyReply = asked(&bus, "h2", "verify", &json!({})).get().await.unwrap();
        assert_eq!((clean.checked, clean.damaged.len()), (4, 0));
    });
}

#[test]
fn a_bus_that_goes_while_an_image_moves_is_told_and_nothing_is_kept() {
    let test = "a_bus_that_goes_while_an_image_moves_is_told_and_nothing_is_kept";
    run(test, Options { started: false, ..Options::fleet(2) }, async |world| {
        up(world, &[json!({}), json!({"follow": "all"})]).await;
        let bus = world.bus.clone();
        let image = import(world, 0, "data", &disk(1, 64 * MIB)).await;
        let body = json!({"name": "data"});
        let subject = "drover.v1.host.h1.image.share";
        let asks = bus.insist::<ImageShareReply>(subject, &body, RequestId::generate());
        let restart = async {
            until("a part is sent", async || (on_the_bus(&bus).await > 4 * MIB as u64).then_some(())).await;
            world.stop_nats().await;
            world.start_nats().await;
        };
        let (reply, ()) = tokio::join!(asks, restart);
        assert_eq!(reply.unwrap().image.sha256, image.sha256);
        until_within(Duration::from_secs(60), "the bus holds the content once", async || {
            (on_the_bus(&bus).await == image.size_bytes).then_some(())
        })
        .await;
        // The one that follows gets it whole, whatever happened to the bus.
        until_within(Duration::from_secs(60), "h2 has the image", async || {
            images(&bus, "h2").await.iter().any(|other| other.sha256 == image.sha256).then_some(())
        })
        .await;
        assert_eq!((held(&world.hosts[0]), held(&world.hosts[1])), ((1, 0, 0), (1, 0, 0)));
    });
}
