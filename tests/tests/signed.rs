//! Images that must be signed: from files, URLs, registries and the fleet.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::fs;
use std::time::Duration;

use drover_schemas::ErrorCode;
use drover_schemas::body::image::{ImageImportReply, ImageInfo, ImageTagReply, ImagesReply};
use drover_tests::client::{Ask, Bus};
use drover_tests::digest::sha256;
use drover_tests::fetched::{authority, held, import};
use drover_tests::https::{Https, Page};
use drover_tests::registry::Repository;
use drover_tests::wait::until;
use drover_tests::world::{Options, run};
use minisign::KeyPair;
use serde_json::{Value, json};

const MIB: usize = 1 << 20;

fn disk(seed: u8) -> Vec<u8> {
    (0..MIB).map(|n| (n as u8).wrapping_mul(23).wrapping_add(seed) ^ (n >> 12) as u8).collect()
}

fn pair() -> KeyPair {
    KeyPair::generate_unencrypted_keypair().unwrap()
}

fn sign(pair: &KeyPair, content: &[u8]) -> String {
    minisign::sign(Some(&pair.pk), &pair.sk, content, None, None).unwrap().into_string()
}

fn asked(bus: &Bus, host: &str, verb: &str, body: &Value) -> Ask {
    bus.ask(&format!("drover.v1.host.{host}.image.{verb}"), body).within(Duration::from_secs(60))
}

async fn image(bus: &Bus, host: &str, name: &str) -> Option<ImageInfo> {
    let reply: ImagesReply =
        bus.look(&format!("drover.v1.host.{host}.image.list"), &json!({})).await.unwrap();
    reply.images.into_iter().find(|image| image.name == name)
}

#[test]
fn a_host_takes_what_its_operators_have_signed_and_nothing_else() {
    let options = Options { hosts: 2, ..Options::down() };
    run("a_host_takes_what_its_operators_have_signed_and_nothing_else", options, async |world| {
        let (ours, stranger) = (pair(), pair());
        let dir = world.path("in");
        fs::create_dir_all(&dir).unwrap();
        world.start_nats().await;
        let keys = json!([ours.pk.to_base64(), pair().pk.to_base64()]);
        for (host, images) in world.hosts.iter_mut().zip([
            json!({"import_dirs": [dir]}),
            json!({"import_dirs": [dir], "signers": keys, "follow": "all"}),
        ]) {
            host.configure_with(|config| config["images"] = images);
            host.start();
        }
        world.ready().await;
        let bus = world.bus.clone();
        let file = |name: &str, content: &[u8]| {
            fs::write(dir.join(name), content).unwrap();
            json!({"name": name, "kind": "disk", "path": dir.join(name)})
        };
        let signed = |mut body: Value, signature: &str| {
            body["signature"] = signature.into();
            body
        };
        let good = disk(1);
        let changed = sign(&ours, &good).replace("trusted comment: ", "trusted comment: not ");
        for (what, body, code) in [
            ("none", file("x", &good), ErrorCode::PermissionDenied),
            ("a stranger's", signed(file("x", &good), &sign(&stranger, &good)), ErrorCode::PermissionDenied),
            ("another's", signed(file("x", &good), &sign(&ours, &disk(2))), ErrorCode::InvalidArgument),
            ("a changed one", signed(file("x", &good), &changed), ErrorCode::InvalidArgument),
            ("no signature", signed(file("x", &good), "RW"), ErrorCode::InvalidArgument),
        ] {
            let error = asked(&bus, "h2", "import", &body).refused(code).await;
            assert!(error.message.contains("sign"), "{what}: {error:?}");
            let store = world.hosts[1].state_dir().join("store");
            let count = |folder: &str| fs::read_dir(store.join(folder)).unwrap().count();
            assert_eq!((count("sha256"), count("tmp")), (0, 0), "{what}");
        }
        fs::write(dir.join("good.minisig"), sign(&ours, &good)).unwrap();
        fs::write(dir.join("good"), &good).unwrap();
        let path = |name: &str| dir.join(name).display().to_string();
        let args = ["image", "import", "good", &path("good"), "--signature", &path("good.minisig")];
        let said = world.printed(&[&args[..], &["--host", "h2"]].concat()).await;
        let signer = image(&bus, "h2", "good").await.unwrap().signer.unwrap();
        assert!(said.contains(&format!("signed by {signer}")), "{said}");
        let shown = world.printed(&["image", "show", "good", "--host", "h2"]).await;
        assert!(shown.contains(&format!("signed by {signer}")), "{shown}");

        // One that does not ask for it keeps it, and shares it; what nobody signed does not hold up the others.
        let plain: ImageImportReply =
            asked(&bus, "h1", "import", &file("plain", &disk(3))).get().await.unwrap();
        assert_eq!(plain.image.signer, None);
        let later = disk(4);
        let body = signed(file("later", &later), &sign(&ours, &later));
        asked(&bus, "h1", "import", &body).get::<ImageImportReply>().await.unwrap();
        for name in ["plain", "later"] {
            asked(&bus, "h1", "share", &json!({"name": name})).get::<Value>().await.unwrap();
        }
        let came = until("the signed one comes", async || image(&bus, "h2", "later").await).await;
        assert_eq!((came.signer, came.from_fleet), (Some(signer.clone()), true));
        let error =
            asked(&bus, "h2", "pull", &json!({"name": "plain"})).refused(ErrorCode::PermissionDenied).await;
        assert!(error.message.contains(&signer) && image(&bus, "h2", "plain").await.is_none(), "{error:?}");
        // Signed after all, it is taken.
        let body = signed(file("plain", &disk(3)), &sign(&ours, &disk(3)));
        asked(&bus, "h1", "import", &body).get::<ImageImportReply>().await.unwrap();
        asked(&bus, "h1", "share", &json!({"name": "plain"})).get::<Value>().await.unwrap();
        until("the other one comes", async || image(&bus, "h2", "plain").await).await;
        // What was checked is remembered.
        world.kill().await;
        world.start();
        world.ready().await;
        assert_eq!(image(&bus, "h2", "good").await.unwrap().signer, Some(signer));
    });
}

#[test]
fn what_nobody_signed_gets_no_further_name_where_that_is_wanted() {
    let name = "what_nobody_signed_gets_no_further_name_where_that_is_wanted";
    run(name, Options::down(), async |world| {
        let (ours, stranger) = (pair(), pair());
        let dir = world.path("in");
        fs::create_dir_all(&dir).unwrap();
        world.up_with(|config| config["images"] = json!({"import_dirs": [dir]})).await;
        let bus = world.bus.clone();
        // The host took anything, and kept signatures as they came.
        let good = disk(2);
        for (name, content, signature) in [
            ("plain", disk(1), None),
            ("good", good.clone(), Some(sign(&ours, &good))),
            ("forged", disk(3), Some(sign(&ours, &disk(4)))),
            ("strange", disk(5), Some(sign(&stranger, &disk(5)))),
        ] {
            fs::write(dir.join(name), content).unwrap();
            let body = json!({"name": name, "kind": "disk", "path": dir.join(name), "signature": signature});
            import(&bus, &body).get::<ImageImportReply>().await.unwrap();
        }
        asked(&bus, "h1", "tag", &json!({"image": "good", "name": "good2"})).get::<Value>().await.unwrap();
        let keys = json!([ours.pk.to_base64()]);
        world.kill().await;
        world.configure_with(|config| config["images"]["signers"] = keys);
        world.start();
        world.ready().await;
        for (image, code) in [
            ("plain", ErrorCode::PermissionDenied),
            ("strange", ErrorCode::PermissionDenied),
            ("forged", ErrorCode::InvalidArgument),
        ] {
            let sha256 = self::image(&bus, "h1", image).await.unwrap().sha256;
            for asked_for in [image.to_owned(), format!("sha256:{sha256}")] {
                for (name, replace) in [("new", false), ("good2", true)] {
                    let body = json!({"image": asked_for, "name": name, "replace": replace});
                    let error = asked(&bus, "h1", "tag", &body).refused(code).await;
                    assert!(error.message.contains("sign"), "{image}: {error:?}");
                }
            }
        }
        assert!(self::image(&bus, "h1", "new").await.is_none());
        assert_eq!(self::image(&bus, "h1", "good2").await.unwrap().sha256, sha256(&good));
        // What is signed is held against its signature now, and the name tells whose it is, also after a start.
        let body = json!({"image": format!("sha256:{}", sha256(&good)), "name": "new"});
        let reply: ImageTagReply = asked(&bus, "h1", "tag", &body).get().await.unwrap();
        let signer = reply.image.signer.unwrap();
        world.kill().await;
        world.start();
        world.ready().await;
        assert_eq!(self::image(&bus, "h1", "new").await.unwrap().signer, Some(signer.clone()));
        let reply: ImageTagReply =
            asked(&bus, "h1", "tag", &json!({"image": "new", "name": "third"})).get().await.unwrap();
        assert_eq!((reply.image.signer, reply.already), (Some(signer), false));
        // Somebody changed the file: no name is given without a look at it.
        let content = world.state_dir().join("store/sha256").join(sha256(&disk(3)));
        fs::remove_file(&content).unwrap();
        fs::write(&content, disk(4)).unwrap();
        let error = asked(&bus, "h1", "tag", &json!({"image": "forged", "name": "x"}));
        let error = error.refused(ErrorCode::InvalidArgument).await;
        assert!(error.message.contains("SHA-256"), "{error:?}");
    });
}

#[test]
fn what_urls_and_registries_have_must_be_signed_too() {
    run("what_urls_and_registries_have_must_be_signed_too", Options::down(), async |world| {
        let ours = pair();
        let good = disk(1);
        let authority = authority(world);
        let mut repository = Repository::new("good");
        let said = repository.blob("application/octet-stream", good.clone());
        repository.manifest("1", &[said]);
        repository.pages.insert("good".into(), Page::File(good.clone()));
        let certificate = authority.certificate("server", "IP:127.0.0.1", 2);
        let server = Https::start(&certificate, |_| repository.pages).await;
        let urls = json!({
            "hosts": [format!("127.0.0.1:{}", server.port)], "private": ["127.0.0.1/32"], "ca": authority.cert(),
        });
        let keys = json!([ours.pk.to_base64()]);
        world.up_with(|config| config["images"] = json!({"urls": urls, "signers": keys})).await;
        let bus = world.bus.clone();
        let sources = [
            json!({"url": server.url("good"), "sha256": sha256(&good)}),
            json!({"oci": format!("127.0.0.1:{}/good:1", server.port)}),
        ];
        for (n, mut body) in sources.into_iter().enumerate() {
            body["name"] = format!("x{n}").into();
            body["kind"] = "disk".into();
            let asked = server.came("good").len() + server.came("v2/good/manifests/1").len();
            import(&bus, &body).refused(ErrorCode::PermissionDenied).await;
            let still = server.came("good").len() + server.came("v2/good/manifests/1").len();
            assert_eq!(asked, still, "nobody is asked for what is not taken");
            body["signature"] = sign(&ours, &disk(2)).into();
            import(&bus, &body).refused(ErrorCode::InvalidArgument).await;
            assert_eq!(held(world), (usize::from(n > 0), 0));
            body["signature"] = sign(&ours, &good).into();
            let reply: ImageImportReply = import(&bus, &body).get().await.unwrap();
            assert!(reply.image.signer.is_some());
        }
    });
}
