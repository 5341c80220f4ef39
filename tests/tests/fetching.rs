//! Images from URLs: from a server that breaks off and into the store, and all that a host does not fetch.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::collections::BTreeMap;
use std::fs;

use drover_schemas::ErrorCode;
use drover_schemas::body::image::ImageImportReply;
use drover_tests::audit;
use drover_tests::certificates::Authority;
use drover_tests::digest::sha256;
use drover_tests::fetched::{authority, fetches, held, import, killed_midway, workers};
use drover_tests::https::{Https, Page};
use drover_tests::world::{Options, World, run};
use serde_json::json;

const MIB: usize = 1 << 20;

fn disk(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|n| (n as u8).wrapping_mul(37).wrapping_add(seed) ^ (n >> 12) as u8).collect()
}

/// A server with a certificate that the host trusts, and the host, which may fetch from that server alone.
async fn up(world: &mut World, silence_ms: u64, pages: impl FnOnce(u16) -> BTreeMap<String, Page>) -> Https {
    let authority = authority(world);
    let server = Https::start(&authority.certificate("server", "IP:127.0.0.1", 2), pages).await;
    let port = server.port;
    let hosts = [format!("127.0.0.1:{port}"), format!("127.0.0.2:{port}"), "metadata.example:80".to_owned()];
    fetches(world, &authority, &hosts, silence_ms, ("40MiB", "60MiB")).await;
    server
}

#[test]
fn an_image_comes_whole_from_a_server_that_breaks_off() {
    run("an_image_comes_whole_from_a_server_that_breaks_off", Options::down(), async |world| {
        let (whole, broken) = (disk(1, 6 * MIB), disk(2, 6 * MIB));
        let pages = [
            ("whole".to_owned(), Page::File(whole.clone())),
            ("broken".to_owned(), Page::Breaks(broken.clone(), 5 * MIB / 2)),
        ];
        let server = up(world, 20_000, |port| {
            let there = ("there".to_owned(), Page::Elsewhere(format!("https://127.0.0.1:{port}/whole")));
            pages
                .into_iter()
                .chain([there, ("here".to_owned(), Page::Elsewhere("whole".to_owned()))])
                .collect()
        })
        .await;
        let bus = world.bus.clone();
        let body = |name: &str, path: &str, content: &[u8]| json!({"name": name, "kind": "disk", "url": server.url(path), "sha256": sha256(content)});
        // Twice at once is once.
        let asked = body("data", "whole", &whole);
        let (one, two) = tokio::join!(
            import(&bus, &asked).get::<ImageImportReply>(),
            import(&bus, &asked).get::<ImageImportReply>()
        );
        let image = one.unwrap().image;
        assert_eq!((image.size_bytes, image.sha256.clone()), (6 * MIB as u64, sha256(&whole)));
        assert_eq!((two.unwrap().image.sha256, server.came("whole")), (image.sha256, vec![None]));
        // Each time it breaks off, what is there already is not sent again.
        let reply: ImageImportReply = import(&bus, &body("broken", "broken", &broken)).get().await.unwrap();
        assert_eq!(reply.image.sha256, sha256(&broken));
        assert_eq!(server.came("broken"), [None, Some(5 * MIB / 2), Some(5 * MIB)]);
        for (name, path) in [("c", "here"), ("d", "there"), ("e", "whole?token=hidden")] {
            let reply: ImageImportReply = import(&bus, &body(name, path, &whole)).get().await.unwrap();
            assert_eq!(reply.image.sha256, sha256(&whole));
        }
        assert_eq!((held(world), workers(world)), ((2, 0), 0));
        assert!(!world.told().contains("hidden"), "a query may hold a secret");
        let spec = json!({"disks": [{"image": "drover-rootfs"}, {"image": "broken"}]});
        bus.create("web", json!({"spec": spec, "wait": "agent"})).await.unwrap();
        let out = world
            .drover(&["image", "import", "cli", &server.url("whole"), "--sha256", &sha256(&whole)])
            .await;
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    });
}

#[test]
fn what_is_not_fetched_is_refused_in_words_and_leaves_nothing() {
    run("what_is_not_fetched_is_refused_in_words_and_leaves_nothing", Options::down(), async |world| {
        let good = disk(3, MIB);
        let content = good.clone();
        let server = up(world, 1500, |port| {
            let elsewhere = |name: &str, to: &str| {
                (name.to_owned(), Page::Elsewhere(to.replace("PORT", &port.to_string())))
            };
            let file = |name: &str, page: Page| (name.to_owned(), page);
            [
                elsewhere("to-file", "file:///etc/passwd"),
                elsewhere("to-http", "http://127.0.0.1:PORT/good"),
                elsewhere("to-loopback", "https://127.0.0.2:PORT/good"),
                elsewhere("to-mapped", "https://[::ffff:127.0.0.2]:PORT/good"),
                elsewhere("to-metadata", "https://169.254.169.254/latest"),
                elsewhere("to-other", "https://127.0.0.1:1/good"),
                elsewhere("round", "https://127.0.0.1:PORT/round"),
                file("good", Page::File(content.clone())),
                file("short", Page::Breaks(content.clone(), 0)),
                file("silent", Page::Silent(content.clone(), MIB / 2)),
                file("changes", Page::Changes(content.clone(), disk(9, MIB))),
                file("endless", Page::NoLength(content.clone())),
                file("large", Page::File(vec![0; 41 * MIB])),
                file("fills", Page::File(disk(4, 33 * MIB))),
                file("fills-more", Page::File(disk(5, 33 * MIB))),
                file("qcow2", Page::File(b"QFI\xfb and what follows".to_vec())),
                file("forbidden", Page::Status(403)),
                file("down", Page::Status(503)),
            ]
            .into()
        })
        .await;
        let bus = world.bus.clone();
        let digest = sha256(&good);
        let port = server.port;
        let at = |path: &str| server.url(path);
        for (what, url, code) in [
            ("a file of the host", "file:///etc/passwd".to_owned(), ErrorCode::PermissionDenied),
            ("http", format!("http://127.0.0.1:{port}/good"), ErrorCode::PermissionDenied),
            ("no url", "good".to_owned(), ErrorCode::InvalidArgument),
            ("another host", "https://example.org/good".to_owned(), ErrorCode::PermissionDenied),
            ("another port", "https://127.0.0.1:1/good".to_owned(), ErrorCode::PermissionDenied),
            ("a private address", format!("https://127.0.0.2:{port}/good"), ErrorCode::PermissionDenied),
            (
                "a number for an address",
                format!("https://2130706434:{port}/good"),
                ErrorCode::PermissionDenied,
            ),
            ("a user", format!("https://me:secret@127.0.0.1:{port}/good"), ErrorCode::PermissionDenied),
            ("a redirect to a file", at("to-file"), ErrorCode::PermissionDenied),
            ("a redirect to http", at("to-http"), ErrorCode::PermissionDenied),
            ("a redirect to loopback", at("to-loopback"), ErrorCode::PermissionDenied),
            ("a redirect to a mapped address", at("to-mapped"), ErrorCode::PermissionDenied),
            ("a redirect to metadata", at("to-metadata"), ErrorCode::PermissionDenied),
            ("a redirect to another port", at("to-other"), ErrorCode::PermissionDenied),
            ("redirects without end", at("round"), ErrorCode::InvalidArgument),
            ("nothing", at("none"), ErrorCode::NotFound),
            ("what is forbidden", at("forbidden"), ErrorCode::InvalidArgument),
            ("a server that is down", at("down"), ErrorCode::Unavailable),
            ("less than was announced", at("short"), ErrorCode::Unavailable),
            ("a silent server", at("silent"), ErrorCode::DeadlineExceeded),
            ("a content that changes", at("changes"), ErrorCode::Unavailable),
            ("no length", at("endless"), ErrorCode::Unsupported),
            ("more than is allowed", at("large"), ErrorCode::ResourceExhausted),
            ("another content", at("fills"), ErrorCode::InvalidArgument),
            ("another kind", at("qcow2"), ErrorCode::InvalidArgument),
        ] {
            let body = json!({"name": "x", "kind": "disk", "url": url, "sha256": digest});
            let error = import(&bus, &body).refused(code).await;
            assert!(!error.message.is_empty() && !error.message.contains("secret"), "{what}: {error:?}");
            assert_eq!((held(world), workers(world)), ((0, 0), 0), "{what}");
        }
        audit::told(&bus, "the refusal", |event| {
            event.verb.as_deref() == Some("image.import") && event.error == Some(ErrorCode::PermissionDenied)
        })
        .await;
        // Neither, both, and no digest.
        for wrong in [
            json!({"name": "x", "kind": "disk"}),
            json!({"name": "x", "kind": "disk", "url": at("good"), "path": "/x", "sha256": digest}),
            json!({"name": "x", "kind": "disk", "url": at("good")}),
        ] {
            import(&bus, &wrong).refused(ErrorCode::InvalidArgument).await;
        }
        // The store holds no more than it may.
        let fills = |name: &str, seed| json!({"name": name, "kind": "disk", "url": at(name), "sha256": sha256(&disk(seed, 33 * MIB))});
        import(&bus, &fills("fills", 4)).get::<ImageImportReply>().await.unwrap();
        let error = import(&bus, &fills("fills-more", 5)).refused(ErrorCode::ResourceExhausted).await;
        assert_eq!((error.details["resource"].as_str(), held(world)), ("images.max_size", (1, 0)));
        // An authority that nobody trusts.
        let others = world.state_dir().parent().unwrap().join("others");
        fs::create_dir_all(&others).unwrap();
        let other = Authority::new(&others, "other-ca").certificate("server", "IP:127.0.0.1", 2);
        let stranger = Https::start(&other, |_| [("good".to_owned(), Page::File(good.clone()))].into()).await;
        world.kill().await;
        world.configure_with(|config| {
            let hosts = [format!("127.0.0.1:{}", stranger.port)];
            config["images"] = json!({"urls": {"hosts": hosts, "private": ["127.0.0.1/32"]}});
        });
        world.start();
        world.ready().await;
        let body = json!({"name": "x", "kind": "disk", "url": stranger.url("good"), "sha256": digest});
        let error = import(&bus, &body).refused(ErrorCode::Unavailable).await;
        assert!(error.message.contains("certificate"), "{error:?}");
        assert_eq!(stranger.came("good"), []);
    });
}

#[test]
fn a_daemon_that_dies_while_it_fetches_leaves_nothing() {
    run("a_daemon_that_dies_while_it_fetches_leaves_nothing", Options::down(), async |world| {
        let content = disk(5, 32 * MIB);
        let server = up(world, 60_000, |_| {
            [
                ("silent".to_owned(), Page::Silent(content.clone(), 16 * MIB)),
                ("good".to_owned(), Page::File(content.clone())),
            ]
            .into()
        })
        .await;
        let url = |name: &str, path: &str| json!({"name": name, "kind": "disk", "url": server.url(path), "sha256": sha256(&content)});
        let image = killed_midway(world, url("half", "silent"), &url("whole", "good")).await;
        assert_eq!((image.size_bytes, held(world)), (32 * MIB as u64, (1, 0)));
    });
}
