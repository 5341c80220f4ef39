//! Images: from a file of the host into its store, to VMs, and away; what is refused; and a daemon that dies meanwhile.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::Duration;

use drover_schemas::body::image::{
    ImageGcReply, ImageImportReply, ImageInfo, ImageTagReply, ImageVerifyReply, ImagesReply,
};
use drover_schemas::event::{HostEvent, HostEventKind};
use drover_schemas::{ErrorBody, ErrorCode, RequestId};
use drover_tests::audit;
use drover_tests::client::Bus;
use drover_tests::events;
use drover_tests::wait::until;
use drover_tests::world::{Options, World, run};
use serde_json::{Value, json};

/// Starts a host that imports from a directory; gives the directory.
async fn importing(world: &mut World) -> PathBuf {
    let dir = world.state_dir().parent().unwrap().join("in");
    fs::create_dir_all(&dir).unwrap();
    world.up_with(|config| config["images"] = json!({"import_dirs": [dir]})).await;
    dir
}

fn asked(bus: &Bus, verb: &str, body: &Value) -> drover_tests::client::Ask {
    bus.ask(&format!("drover.v1.host.h1.image.{verb}"), body)
}

async fn import(bus: &Bus, body: Value) -> ImageImportReply {
    asked(bus, "import", &body).within(Duration::from_secs(60)).get().await.unwrap()
}

async fn refusal(bus: &Bus, body: Value, code: ErrorCode) -> ErrorBody {
    asked(bus, "import", &body).refused(code).await
}

async fn list(bus: &Bus) -> ImagesReply {
    asked(bus, "list", &json!({})).get().await.unwrap()
}

/// What the store holds: contents, and what is being written.
fn held(world: &World) -> (usize, usize) {
    let count = |folder: &str| fs::read_dir(world.state_dir().join("store").join(folder)).unwrap().count();
    (count("sha256"), count("tmp"))
}

/// How much of an import is there; all of it if it is the content that comes after `before` others.
fn copied(world: &World, before: usize) -> u64 {
    let store = world.state_dir().join("store");
    if fs::read_dir(store.join("sha256")).unwrap().count() > before {
        return u64::MAX;
    }
    let written = fs::read_dir(store.join("tmp")).unwrap().filter_map(|entry| entry.unwrap().metadata().ok());
    written.map(|file| file.len()).max().unwrap_or(0)
}

fn disk(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|n| (n as u8).wrapping_mul(31).wrapping_add(seed)).collect()
}

#[test]
fn an_image_goes_from_a_file_to_a_vm_and_away() {
    run("an_image_goes_from_a_file_to_a_vm_and_away", Options::down(), async |world| {
        let dir = importing(world).await;
        let bus = world.bus.clone();
        fs::write(dir.join("data"), disk(1, 3 << 20)).unwrap();
        fs::write(dir.join("next"), disk(2, 1 << 20)).unwrap();
        let path = dir.join("data").display().to_string();
        // Twice at once is once, and again changes nothing.
        let body = json!({"name": "data", "kind": "disk", "path": path});
        let (one, two) = tokio::join!(import(&bus, body.clone()), import(&bus, body.clone()));
        let image = one.image;
        assert_eq!((two.image.sha256, held(world)), (image.sha256.clone(), (1, 0)));
        assert_eq!((image.size_bytes, image.built_in, image.vms), (3 << 20, false, 0));
        let by_digest = json!({"name": "data", "kind": "disk", "path": path, "sha256": image.sha256});
        assert_eq!(import(&bus, by_digest).await.image.sha256, image.sha256);
        let told: Vec<HostEvent> = until("the import is told", async || {
            let told: Vec<HostEvent> = events::stored(&bus, "drover.v1.evt.host.h1.image").await;
            told.iter().any(|event| event.details["phase"] == "imported").then_some(told)
        })
        .await;
        assert!(
            told.iter().all(|event| event.kind == HostEventKind::Image && event.details["image"] == "data")
        );

        // A VM boots with it, and keeps it over a restart though the name means another content by then.
        let spec = json!({"disks": [{"image": "drover-rootfs"}, {"image": "data"}]});
        let vm = bus.create("web", json!({"spec": spec, "wait": "agent"})).await.unwrap().vm;
        let next = json!({"name": "data", "kind": "disk", "path": dir.join("next")});
        let error = refusal(&bus, next.clone(), ErrorCode::AlreadyExists).await;
        assert_eq!(error.details["sha256"], image.sha256);
        let mut replace = next;
        replace["replace"] = json!(true);
        let other = import(&bus, replace).await.image;
        assert_ne!(other.sha256, image.sha256);
        let kept: ImageGcReply = asked(&bus, "gc", &json!({})).get().await.unwrap();
        assert_eq!((kept.removed.len(), &kept.in_use), (0, &vec![image.sha256.clone()]));
        bus.change_with("web", "stop", json!({"force": true})).await.unwrap();
        world.kill().await;
        world.start();
        world.ready().await;
        bus.change_with("web", "start", json!({"wait": "agent"})).await.unwrap();
        assert_eq!(bus.status("web").await.unwrap().vm_id, vm.vm_id);
        let shown = world.drover(&["image", "ls"]).await;
        let shown = String::from_utf8(shown.stdout).unwrap();
        assert!(shown.contains(&other.sha256[..12]) && shown.contains("with the host"), "{shown}");

        // The VM goes, then its content; the name goes with its own.
        bus.change("web", "delete").await.unwrap();
        let freed: ImageGcReply = asked(&bus, "gc", &json!({})).get().await.unwrap();
        assert_eq!((freed.removed, freed.freed_bytes), (vec![image.sha256.clone()], 3 << 20));
        let gone: ImageGcReply = asked(&bus, "remove", &json!({"name": "data"})).get().await.unwrap();
        assert_eq!((gone.removed, held(world)), (vec![other.sha256], (0, 0)));
        asked(&bus, "remove", &json!({"name": "data"})).refused(ErrorCode::NotFound).await;
        let missing = bus.create("late", json!({"spec": {"disks": [{"image": "data"}]}})).await;
        drover_tests::client::refused("an image that is gone", ErrorCode::NotFound, missing);
    });
}

#[test]
fn what_is_refused_is_refused_in_words_and_leaves_nothing() {
    run("what_is_refused_is_refused_in_words_and_leaves_nothing", Options::down(), async |world| {
        let dir = importing(world).await;
        let bus = world.bus.clone();
        fs::write(dir.join("ok"), disk(3, 4096)).unwrap();
        fs::write(dir.join("qcow2"), b"QFI\xfb and what follows").unwrap();
        fs::write(dir.join("odd"), b"x").unwrap();
        symlink("/etc/passwd", dir.join("link")).unwrap();
        nix::unistd::mkfifo(&dir.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let body = |path: &str, kind: &str| json!({"name": "x", "kind": kind, "path": dir.join(path)});
        for (what, body, code) in [
            ("a path outside", body("/etc/hostname", "disk"), ErrorCode::PermissionDenied),
            ("a way out", body("../state/journal.redb", "disk"), ErrorCode::PermissionDenied),
            ("a link", body("link", "disk"), ErrorCode::PermissionDenied),
            ("a pipe", body("fifo", "disk"), ErrorCode::InvalidArgument),
            ("nothing", body("none", "disk"), ErrorCode::NotFound),
            ("qcow2", body("qcow2", "disk"), ErrorCode::InvalidArgument),
            ("an odd length", body("odd", "disk"), ErrorCode::InvalidArgument),
            ("no kernel", body("ok", "kernel"), ErrorCode::InvalidArgument),
            ("no archive", body("ok", "initramfs"), ErrorCode::InvalidArgument),
            ("a kind that is none", body("ok", "cake"), ErrorCode::InvalidArgument),
        ] {
            let error = refusal(&bus, body, code).await;
            assert!(!error.message.is_empty(), "{what}: {error:?}");
            assert_eq!(held(world), (0, 0), "{what}");
        }
        let mut wrong = body("ok", "disk");
        wrong["sha256"] = json!("0".repeat(64));
        assert!(refusal(&bus, wrong.clone(), ErrorCode::InvalidArgument).await.details.contains_key("found"));
        wrong["sha256"] = json!("no digest");
        refusal(&bus, wrong, ErrorCode::InvalidArgument).await;
        let own = json!({"name": "drover-rootfs", "kind": "disk", "path": dir.join("ok"), "replace": true});
        refusal(&bus, own, ErrorCode::AlreadyExists).await;
        asked(&bus, "remove", &json!({"name": "drover-rootfs"})).refused(ErrorCode::InvalidState).await;
        assert_eq!(held(world), (0, 0));
        assert!(list(&bus).await.images.iter().all(|image| image.built_in));

        // A content that somebody else wrote to is found.
        let image = import(&bus, body("ok", "disk")).await.image;
        let clean: ImageVerifyReply = asked(&bus, "verify", &json!({})).get().await.unwrap();
        assert_eq!((clean.checked, clean.damaged.len()), (1, 0));
        let content = world.state_dir().join("store/sha256").join(&image.sha256);
        fs::remove_file(&content).unwrap();
        fs::write(&content, disk(4, 4096)).unwrap();
        let found: ImageVerifyReply = asked(&bus, "verify", &json!({"name": "x"})).get().await.unwrap();
        assert_eq!((found.damaged.len(), found.damaged[0].sha256.as_str()), (1, image.sha256.as_str()));
        events::alarm(&bus, "image_damaged", |_| true).await;
        // As the alarm says, another import mends it.
        let mut again = body("ok", "disk");
        again["replace"] = json!(true);
        assert_eq!(import(&bus, again).await.image.sha256, image.sha256);
        let mended: ImageVerifyReply = asked(&bus, "verify", &json!({})).get().await.unwrap();
        assert_eq!((mended.checked, mended.damaged.len()), (1, 0));
    });
}

#[test]
fn a_daemon_that_dies_in_imports_leaves_a_clean_store() {
    run("a_daemon_that_dies_in_imports_leaves_a_clean_store", Options::down(), async |world| {
        let dir = importing(world).await;
        let bus = world.bus.clone();
        for n in 0..8_u8 {
            fs::write(dir.join(format!("d{n}")), disk(n, 24 << 20)).unwrap();
        }
        for n in 0..8_u64 {
            let body = json!({"name": format!("d{n}"), "kind": "disk", "path": dir.join(format!("d{n}"))});
            let subject = "drover.v1.host.h1.image.import";
            let asks = bus.insist::<ImageImportReply>(subject, &body, RequestId::generate());
            // Killed at another instant each time, from the begin of the copy to its end.
            let part = n * (24 << 20) / 7;
            let kills = async {
                until("so much of the import", async || (copied(world, n as usize) >= part).then_some(()))
                    .await;
                world.kill().await;
                world.start();
                world.ready().await;
            };
            // Whoever asked goes on, and gets it.
            let (reply, ()) = tokio::join!(asks, kills);
            let image = reply.unwrap().image;
            assert_eq!((image.name, image.size_bytes), (format!("d{n}"), 24 << 20));
            assert_eq!(held(world), (n as usize + 1, 0), "nothing is left of the one that did not end");
        }
        let clean: ImageVerifyReply =
            asked(&bus, "verify", &json!({})).within(Duration::from_secs(60)).get().await.unwrap();
        assert_eq!((clean.checked, clean.damaged.len()), (8, 0));
        let names = list(&bus).await.images.iter().filter(|image| !image.built_in).count();
        assert_eq!(names, 8);
    });
}

/// Contents of the store that are whole, by the host's own word.
async fn whole(bus: &Bus) -> u64 {
    let read: ImageVerifyReply =
        asked(bus, "verify", &json!({})).within(Duration::from_secs(60)).get().await.unwrap();
    assert_eq!(read.damaged, []);
    read.checked
}

#[test]
fn a_daemon_that_dies_in_removals_leaves_a_clean_store() {
    const FILES: usize = 24;
    run("a_daemon_that_dies_in_removals_leaves_a_clean_store", Options::down(), async |world| {
        let dir = importing(world).await;
        let bus = world.bus.clone();
        let name = |n: usize| format!("f{n}");
        for n in 0..FILES {
            fs::write(dir.join(name(n)), disk(n as u8, 64 << 10)).unwrap();
            import(&bus, json!({"name": name(n), "kind": "disk", "path": dir.join(name(n))})).await;
        }
        let spec = json!({"disks": [{"image": "drover-rootfs"}, {"image": name(0)}]});
        bus.create("web", json!({"spec": spec, "wait": "agent"})).await.unwrap();
        let names = world.state_dir().join("store/names");
        let asks = |verb: &'static str, body: Value| {
            let bus = bus.clone();
            tokio::spawn(async move { drop(asked(&bus, verb, &body).get::<Value>().await) })
        };
        // A name is gone or not, and with it the content, unless a VM uses it; whatever there is, is whole.
        for n in 0..8 {
            let path = names.join(format!("{}.json", name(n)));
            assert!(path.exists(), "{}", path.display());
            let asking = asks("remove", json!({"name": name(n)}));
            if n % 2 == 1 {
                until("the name is gone", async || (!path.exists()).then_some(())).await;
            }
            world.kill().await;
            asking.abort();
            world.start();
            world.ready().await;
            let known = list(&bus).await.images.iter().any(|image| image.name == name(n));
            assert_eq!((known, whole(&bus).await as usize), (path.exists(), held(world).0));
            if known {
                asked(&bus, "remove", &json!({"name": name(n)})).get::<Value>().await.unwrap();
            }
        }
        // The others mean another content, and nobody names what they meant.
        fs::write(dir.join("other"), disk(100, 64 << 10)).unwrap();
        for n in 8..FILES {
            let path = dir.join("other");
            import(&bus, json!({"name": name(n), "kind": "disk", "path": path, "replace": true})).await;
        }
        assert!(held(world).0 >= 2 + FILES - 8);
        // Of what nobody names some is gone: each whole, and never what a VM uses.
        for left in [FILES, 16, 12, 8, 4] {
            let asking = asks("gc", json!({}));
            until("so much is gone", async || (held(world).0 <= left).then_some(())).await;
            world.kill().await;
            asking.abort();
            world.start();
            world.ready().await;
            assert_eq!((whole(&bus).await as usize, held(world).1), (held(world).0, 0));
        }
        let gone: ImageGcReply = asked(&bus, "gc", &json!({})).get().await.unwrap();
        assert_eq!((gone.in_use.len(), held(world), whole(&bus).await), (1, (2, 0), 2));
        bus.change("web", "delete").await.unwrap();
        let gone: ImageGcReply = asked(&bus, "gc", &json!({})).get().await.unwrap();
        assert_eq!((gone.removed.len(), gone.freed_bytes, held(world)), (1, 64 << 10, (1, 0)));
    });
}

async fn tag(bus: &Bus, image: &str, name: &str, replace: bool) -> ImageTagReply {
    let body = json!({"image": image, "name": name, "replace": replace});
    asked(bus, "tag", &body).within(Duration::from_secs(30)).get().await.unwrap()
}

async fn called(bus: &Bus, name: &str) -> Option<ImageInfo> {
    list(bus).await.images.into_iter().find(|image| image.name == name)
}

#[test]
fn a_content_has_several_names_and_a_name_moves() {
    run("a_content_has_several_names_and_a_name_moves", Options::down(), async |world| {
        let dir = importing(world).await;
        let bus = world.bus.clone();
        for (name, seed) in [("one", 1), ("two", 2)] {
            fs::write(dir.join(name), disk(seed, 1 << 20)).unwrap();
        }
        let body = |name: &str| json!({"name": name, "kind": "disk", "path": dir.join(name)});
        let one = import(&bus, body("one")).await.image;
        let two = import(&bus, body("two")).await.image;
        let digest = format!("sha256:{}", one.sha256);

        // By name and by digest; again it is so already, and nothing is told.
        let given = tag(&bus, "one", "stable", false).await;
        assert_eq!((given.already, given.image.name.as_str()), (false, "stable"));
        let expected = ImageInfo { name: "stable".into(), ..one.clone() };
        assert_eq!(given.image, expected, "it is the same in all but its name");
        assert_eq!(tag(&bus, &digest, "stable", false).await, ImageTagReply { already: true, ..given });
        assert!(!tag(&bus, &digest, "by-digest", false).await.already);
        assert!(tag(&bus, "one", "one", true).await.already);
        let mut again = Vec::new();
        for _ in 0..8 {
            again.push(tag(&bus, "one", "at-once", false));
        }
        let again = futures_util::future::join_all(again).await;
        assert!(again.iter().all(|reply| reply.image.sha256 == one.sha256));
        assert_eq!(held(world), (2, 0), "names take no room");

        // What is refused changes nothing.
        let refused = async |image: &str, name: &str, replace: bool, code: ErrorCode| {
            let body = json!({"image": image, "name": name, "replace": replace});
            let error = asked(&bus, "tag", &body).refused(code).await;
            assert_eq!(error.details["operation"], "image.tag");
            error
        };
        let error = refused("two", "stable", false, ErrorCode::AlreadyExists).await;
        assert_eq!(error.details["sha256"], one.sha256);
        refused("none", "x", false, ErrorCode::NotFound).await;
        refused(&format!("sha256:{}", "0".repeat(64)), "x", false, ErrorCode::NotFound).await;
        refused("sha256:../names/one.json", "x", false, ErrorCode::InvalidArgument).await;
        refused("one", "drover-rootfs", true, ErrorCode::AlreadyExists).await;
        let error = refused("drover-rootfs", "x", false, ErrorCode::InvalidState).await;
        assert!(error.message.contains("import"), "{error:?}");
        asked(&bus, "tag", &json!({"image": "one", "name": "../x"}))
            .refused(ErrorCode::InvalidArgument)
            .await;
        assert!(called(&bus, "x").await.is_none());

        // A VM keeps what it was created with while the name moves, by the command line, and the host starts anew.
        let spec = json!({"disks": [{"image": "drover-rootfs"}, {"image": "stable"}]});
        bus.create("web", json!({"spec": spec, "wait": "agent"})).await.unwrap();
        let said = world.printed(&["image", "tag", "two", "stable", "--replace"]).await;
        assert!(said.contains("stable means it") && said.contains(&two.sha256), "{said}");
        let said = world.printed(&["image", "tag", "two", "stable"]).await;
        assert!(said.contains("stable means it already"), "{said}");
        for name in ["one", "by-digest", "at-once"] {
            let gone: ImageGcReply = asked(&bus, "remove", &json!({"name": name})).get().await.unwrap();
            assert_eq!((gone.removed.len(), held(world).0), (0, 2), "{name}");
        }
        let kept: ImageGcReply = asked(&bus, "gc", &json!({})).get().await.unwrap();
        assert_eq!((kept.removed.len(), &kept.in_use), (0, &vec![one.sha256.clone()]));
        bus.change_with("web", "stop", json!({"force": true})).await.unwrap();
        world.kill().await;
        world.start();
        world.ready().await;
        assert_eq!(called(&bus, "stable").await.unwrap().sha256, two.sha256);
        bus.change_with("web", "start", json!({"wait": "agent"})).await.unwrap();

        // What only the VM has still is named again by its digest, and outlives the VM then.
        let back = tag(&bus, &digest, "back", false).await.image;
        assert_eq!((&back.sha256, back.kind, back.vms), (&one.sha256, one.kind, 1));
        bus.change("web", "delete").await.unwrap();
        let kept: ImageGcReply = asked(&bus, "gc", &json!({})).get().await.unwrap();
        assert_eq!((kept, held(world)), (ImageGcReply::default(), (2, 0)));
        for (name, sha256) in [("two", None), ("stable", Some(two.sha256)), ("back", Some(one.sha256))] {
            let gone: ImageGcReply = asked(&bus, "remove", &json!({"name": name})).get().await.unwrap();
            assert_eq!(gone.removed, Vec::from_iter(sha256), "{name}");
        }
        assert_eq!(held(world), (0, 0));
        let told: Vec<HostEvent> = until("what was done is told", async || {
            let told: Vec<HostEvent> = events::stored(&bus, "drover.v1.evt.host.h1.image").await;
            let tagged = told.into_iter().filter(|event| event.details["phase"] == "tagged").collect();
            Some(tagged).filter(|tagged: &Vec<HostEvent>| tagged.iter().any(|e| e.details["image"] == "back"))
        })
        .await;
        let named: Vec<&str> = told.iter().map(|event| event.details["image"].as_str()).collect();
        assert_eq!(named, ["stable", "by-digest", "at-once", "stable", "back"], "each change once");
        let event = audit::told(&bus, "the tag", |event| event.verb.as_deref() == Some("image.tag")).await;
        assert_eq!(event.error, None);
    });
}

#[test]
fn a_name_means_the_one_or_the_other_when_the_daemon_dies_while_it_moves() {
    let test = "a_name_means_the_one_or_the_other_when_the_daemon_dies_while_it_moves";
    run(test, Options::down(), async |world| {
        let dir = importing(world).await;
        let bus = world.bus.clone();
        let mut digests = Vec::new();
        for (name, seed) in [("one", 1), ("two", 2)] {
            fs::write(dir.join(name), disk(seed, 64 << 10)).unwrap();
            let image = import(&bus, json!({"name": name, "kind": "disk", "path": dir.join(name)})).await;
            digests.push(image.image.sha256);
        }
        tag(&bus, "one", "cur", false).await;
        let file = world.state_dir().join("store/names/cur.json");
        let mut seen = [0, 0];
        for n in 0..12 {
            // It moves all the time until the daemon dies.
            let moving = tokio::spawn({
                let bus = bus.clone();
                async move {
                    for image in ["two", "one"].into_iter().cycle() {
                        let body = json!({"image": image, "name": "cur", "replace": true});
                        if asked(&bus, "tag", &body).get::<Value>().await.is_err() {
                            return;
                        }
                    }
                }
            });
            let before = fs::metadata(&file).unwrap().modified().unwrap();
            if n % 3 > 0 {
                until("it moves", async || {
                    (fs::metadata(&file).unwrap().modified().unwrap() != before).then_some(())
                })
                .await;
            }
            world.kill().await;
            moving.abort();
            world.start();
            world.ready().await;
            let meant = called(&bus, "cur").await.unwrap().sha256;
            let on_disk: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
            assert_eq!(on_disk["sha256"], meant);
            seen[digests.iter().position(|digest| *digest == meant).unwrap()] += 1;
            assert_eq!((whole(&bus).await, held(world)), (2, (2, 0)), "nothing is left of a change");
        }
        println!("after a kill the name meant the one and the other so often: {seen:?}");
        // Who asked goes on, and gets it.
        let body = json!({"image": "two", "name": "cur", "replace": true});
        let subject = "drover.v1.host.h1.image.tag";
        let asks = bus.insist::<ImageTagReply>(subject, &body, RequestId::generate());
        let kills = async {
            world.kill().await;
            world.start();
            world.ready().await;
        };
        let (reply, ()) = tokio::join!(asks, kills);
        assert_eq!(reply.unwrap().image.sha256, digests[1]);
        assert_eq!(called(&bus, "cur").await.unwrap().sha256, digests[1]);
    });
}
