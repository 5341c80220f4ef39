//! Registries that want a login: who is shown it, who is not, and what is said where it does not help.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use drover_schemas::ErrorCode;
use drover_schemas::body::image::ImageImportReply;
use drover_tests::digest::sha256;
use drover_tests::events::stored;
use drover_tests::fetched::{authority, held, import, worker_ids};
use drover_tests::https::{Https, Page};
use drover_tests::registry::{Repository, describe};
use drover_tests::wait::until;
use drover_tests::world::{Options, run};
use serde_json::{Value, json};

use super::{Pages, RAW, asked, disk, imported};

const SECRET: &str = "s3cret-of-this-host";

/// What a login is shown as.
fn basic(password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("robot:{password}")))
}

/// A repository with one file, which only those get who show this.
fn of_those_who_show(pages: &mut Pages, name: &str, shown: &str, challenge: &str) {
    let mut repository = Repository::new(name);
    let said = repository.blob(RAW, disk(9, 8192));
    repository.manifest("1", &[said]);
    repository.wants_shown(shown, challenge);
    pages.extend(repository.pages);
}

/// What a registry and the server of its tokens have for the login of [`SECRET`].
fn private(other: u16) -> Pages {
    let mut pages = Pages::new();
    let at = |path: &str| format!("Bearer realm=\"https://127.0.0.1:{other}/{path}\",service=\"s\"");
    let (ours, ask) = (basic(SECRET), "Basic realm=\"here\"");
    of_those_who_show(&mut pages, "basic", &ours, ask);
    of_those_who_show(&mut pages, "bearer", "Bearer t0ken-of-ours", &at("token"));
    of_those_who_show(&mut pages, "others", &basic("another"), ask);
    of_those_who_show(&mut pages, "picky", "Bearer t0ken-of-ours", &at("picky"));
    of_those_who_show(&mut pages, "alien", "Bearer t0ken-of-aliens", &at("token"));
    let passed = format!("Bearer realm=\"https://127.0.0.1:{other}/passed\"");
    of_those_who_show(&mut pages, "passed", "Bearer t0ken-of-ours", &passed);
    let mut moved = Repository::new("moved");
    let said = describe(RAW, &disk(8, 8192));
    moved.put_blob(&said, Page::Elsewhere(format!("https://127.0.0.1:{other}/blob")));
    moved.manifest("1", &[said]);
    moved.wants_shown(&ours, ask);
    let mut forbidden = Repository::new("forbidden");
    let path = forbidden.path("manifests", "1");
    forbidden.pages.insert(path, Page::Status(403));
    forbidden.wants_shown(&ours, ask);
    let mut open = Repository::new("open");
    let said = open.blob(RAW, disk(7, 8192));
    open.manifest("1", &[said]);
    let mut slow = Repository::new("slow");
    let said = describe(RAW, &disk(6, 8192));
    slow.put_blob(&said, Page::Silent(disk(6, 8192), 4096));
    slow.manifest("1", &[said]);
    slow.wants_shown(&ours, ask);
    pages.extend([moved, forbidden, open, slow].into_iter().flat_map(|one| one.pages));
    pages
}

/// What the server beside it has.
fn beside(pages: &mut Pages, registry: u16) {
    let given = |token: &str| Page::File(json!({"token": token}).to_string().into_bytes());
    let wants = |shown: String, page: Page| Page::Wants {
        shown,
        challenge: "Basic realm=\"tokens\"".to_owned(),
        page: Box::new(page),
    };
    pages.insert("token".into(), wants(basic(SECRET), given("t0ken-of-ours")));
    pages.insert("picky".into(), wants(basic("another"), given("t0ken-of-ours")));
    let on = Page::Elsewhere(format!("https://127.0.0.1:{registry}/anybody"));
    pages.insert("passed".into(), wants(basic(SECRET), on));
    pages.insert("blob".into(), Page::File(disk(8, 8192)));
    of_those_who_show(pages, "basic", &basic(SECRET), "Basic realm=\"here\"");
}

#[test]
fn a_login_is_shown_to_its_registry_and_to_who_gives_its_tokens_alone() {
    let name = "a_login_is_shown_to_its_registry_and_to_who_gives_its_tokens_alone";
    run(name, Options::down(), async |world| {
        let authority = authority(world);
        let certificate = authority.certificate("server", "IP:127.0.0.1", 2);
        // Each knows the other's port: that of the second is had before it has pages.
        let third = Https::start(&certificate, |_| {
            let token = json!({"token": "t0ken-of-anybody"}).to_string().into_bytes();
            [("anybody".to_owned(), Page::File(token))].into()
        })
        .await;
        let other = Https::start(&certificate, |_| {
            let mut pages = Pages::new();
            beside(&mut pages, third.port);
            pages
        })
        .await;
        let registry = Https::start(&certificate, |_| private(other.port)).await;
        let hosts = [&registry, &other, &third].map(|server| format!("127.0.0.1:{}", server.port));
        let password = world.path("registry.password");
        let keep = |text: &str, mode: u32| {
            let _ = fs::remove_file(&password);
            fs::write(&password, format!("{text}\n")).unwrap();
            fs::set_permissions(&password, fs::Permissions::from_mode(mode)).unwrap();
        };
        keep("wr0ng-one", 0o600);
        let urls = json!({
            "hosts": hosts, "private": ["127.0.0.1/32"], "ca": authority.cert(), "silence_ms": 20_000,
            "registries": [{"host": hosts[0], "user": "robot", "password_file": password}],
        });
        world.up_with(|config| config["images"] = json!({"urls": urls})).await;
        let bus = world.bus.clone();
        let refused = async |server: &Https, what: &str, code, says: &str| {
            let error = import(&bus, &asked(server, "x", &format!("{what}:1"))).refused(code).await;
            assert!(error.message.contains(says), "{what}: {error:?}");
            for secret in [SECRET, "wr0ng-one", &basic(SECRET)[6..], &basic("wr0ng-one")[6..]] {
                assert!(!format!("{error:?}").contains(secret), "{what}: {error:?}");
            }
            assert_eq!(held(world).1, 0);
            error
        };
        // A password that is wrong, that others may read, that is none: each is told with what to check.
        use ErrorCode::{Internal, PermissionDenied};
        let error = refused(&registry, "basic", PermissionDenied, "password_file").await;
        assert_eq!(error.details["registry"], hosts[0]);
        refused(&registry, "bearer", PermissionDenied, &format!("{} refused", hosts[1])).await;
        keep(SECRET, 0o644);
        refused(&registry, "basic", PermissionDenied, "chmod 600").await;
        keep("", 0o600);
        refused(&registry, "basic", Internal, "holds no password").await;
        fs::remove_file(&password).unwrap();
        refused(&registry, "basic", Internal, "registry.password").await;
        let before = (registry.shown().len(), other.shown().len());
        assert_eq!(before, (1, 1), "a wrong one is tried once");

        // The right one takes effect at once, for a registry that wants it itself and for one that wants a token.
        keep(SECRET, 0o600);
        for (name, what) in [("basic", "basic"), ("bearer", "bearer"), ("moved", "moved"), ("open", "open")] {
            let reply = imported(&bus, &asked(&registry, name, &format!("{what}:1"))).await;
            let seed = match what {
                "moved" => 8,
                "open" => 7,
                _ => 9,
            };
            assert_eq!(reply.image.sha256, sha256(&disk(seed, 8192)), "{what}");
        }
        // Nor does a right one open all: that is said, and another server is not shown it.
        refused(&registry, "others", PermissionDenied, "refused the host's login").await;
        refused(&registry, "picky", PermissionDenied, &format!("{} refused", hosts[1])).await;
        refused(&registry, "alien", PermissionDenied, "does not let it pull alien").await;
        refused(&registry, "forbidden", PermissionDenied, "does not let it pull forbidden").await;
        refused(&registry, "passed", PermissionDenied, "does not let it pull passed").await;
        refused(&other, "basic", PermissionDenied, "no login for it").await;
        let (ours, given) = (basic(SECRET), "Bearer t0ken-of-ours");
        for (path, shown) in registry.shown().split_off(before.0) {
            let anybodys = path.contains("/passed/") && shown == "Bearer t0ken-of-anybody";
            assert!(
                path.starts_with("v2/") && (shown == ours || shown == given || anybodys),
                "{path} {shown}"
            );
            assert!(!path.starts_with("v2/open/"), "{path}: who gives it to anybody is shown nothing");
            assert!(shown != ours || !path.starts_with("v2/bearer/"), "{path}: it wants a token");
        }
        for (path, shown) in other.shown().split_off(before.1) {
            assert!(["token", "picky", "passed"].contains(&path.as_str()) && shown == ours, "{path} {shown}");
        }
        assert_eq!(third.came("anybody").len(), 1, "the server of tokens passed it on");
        assert_eq!(third.shown(), [], "and a login does not go along");

        // While it is pulled, nobody but root reads it off the process that pulls.
        let body = asked(&registry, "slow", "slow:1");
        let pulling = tokio::spawn({
            let bus = bus.clone();
            async move { drop(import(&bus, &body).get::<ImageImportReply>().await) }
        });
        let worker = until("it pulls", async || worker_ids(world).pop()).await;
        until("it has the login", async || {
            registry.shown().iter().any(|(path, _)| path.starts_with("v2/slow/blobs/")).then_some(())
        })
        .await;
        for file in ["cmdline", "environ"] {
            let read = fs::read(format!("/proc/{worker}/{file}")).unwrap();
            let read = String::from_utf8_lossy(&read);
            assert!(!read.contains(SECRET) && !read.contains(&ours[6..]), "{file}");
        }
        let status = fs::read_to_string(format!("/proc/{worker}/status")).unwrap();
        assert!(status.contains("Uid:\t65534"), "{status}");
        let owner = fs::metadata(format!("/proc/{worker}/environ")).unwrap().uid();
        assert_eq!(owner, 0, "others that run as nobody cannot look into it");
        pulling.abort();

        let told: Vec<Value> = stored(&bus, "drover.v1.evt.").await;
        assert!(told.iter().any(|event| event["verb"] == "image.import"), "the audit is there");
        let told = json!(told).to_string() + &world.told();
        for secret in [SECRET, "wr0ng-one", "t0ken", &ours[6..], &basic("wr0ng-one")[6..]] {
            assert!(!told.contains(secret), "neither log nor events have a secret");
        }
    });
}
