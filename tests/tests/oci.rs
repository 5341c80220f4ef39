//! Images from OCI registries: artifacts and container disks, and all that is not taken from a registry.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::collections::BTreeMap;
use std::fs;

use drover_schemas::body::image::ImageImportReply;
use drover_schemas::{ErrorBody, ErrorCode};
use drover_tests::audit;
use drover_tests::certificates::Certificate;
use drover_tests::client::Bus;
use drover_tests::digest::sha256;
use drover_tests::fetched::{authority, fetches, held, import, killed_midway, workers};
use drover_tests::https::{Https, Page};
use drover_tests::registry::{LAYER, Member, Repository, describe, gzip, layer, tar};
use drover_tests::world::{Options, World, run};
use serde_json::{Value, json};
use tar::EntryType;

#[path = "oci/login.rs"]
mod login;

const MIB: usize = 1 << 20;
/// A layer that is the file itself.
const RAW: &str = "application/octet-stream";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

type Pages = BTreeMap<String, Page>;

fn disk(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|n| (n as u8).wrapping_mul(29).wrapping_add(seed) ^ (n >> 11) as u8).collect()
}

/// A registry and a server that it may pass on to, and the host that fetches from both.
async fn up(
    world: &mut World,
    silence_ms: u64,
    sizes: (&str, &str),
    others: Pages,
    pages: impl FnOnce(u16, u16) -> Pages,
) -> (Https, Https) {
    let authority = authority(world);
    let certificate: Certificate = authority.certificate("server", "IP:127.0.0.1", 2);
    let other = Https::start(&certificate, |_| others).await;
    let registry = Https::start(&certificate, |port| pages(port, other.port)).await;
    let hosts = [&registry, &other].map(|server| format!("127.0.0.1:{}", server.port));
    fetches(world, &authority, &hosts, silence_ms, sizes).await;
    (registry, other)
}

fn asked(registry: &Https, name: &str, what: &str) -> Value {
    json!({"name": name, "kind": "disk", "oci": format!("127.0.0.1:{}/{what}", registry.port)})
}

async fn imported(bus: &Bus, body: &Value) -> ImageImportReply {
    import(bus, body).get().await.unwrap_or_else(|e| panic!("{body}: {e}"))
}

#[test]
fn an_image_comes_from_a_registry_as_an_artifact_or_a_container_disk() {
    let name = "an_image_comes_from_a_registry_as_an_artifact_or_a_container_disk";
    run(name, Options::down(), async |world| {
        let (file, moved) = (disk(1, 6 * MIB), disk(2, MIB));
        let root = fs::read(world.images_dir().join("rootfs.raw")).unwrap();
        let mut artifact = Repository::new("owner/artifact");
        let said = describe(RAW, &file);
        artifact.put_blob(&said, Page::Breaks(file.clone(), 5 * MIB / 2));
        let manifest = artifact.manifest("1.0", std::slice::from_ref(&said));
        let blob = artifact.path("blobs", said["digest"].as_str().unwrap());

        let mut container = Repository::new("owner/container");
        let front = container.blob(LAYER, layer(&[Member::file("etc/motd", b"hello")]));
        let dir = Member::of(EntryType::Directory, "./disk/");
        let back = container.blob(LAYER, layer(&[dir, Member::file("./disk/root.img", &root)]));
        let ours = container.manifest("amd64", &[front, back]);
        let other = container.manifest("other", &[]);
        let index = container.index("latest", &[("riscv64", &other), ("amd64", &ours)]);

        let elsewhere = Repository::new("owner/elsewhere");
        let token = json!({"token": "t0ken-of-anybody", "expires_in": 60}).to_string().into_bytes();
        let others =
            [("blob".to_owned(), Page::File(moved.clone())), ("token".to_owned(), Page::File(token))];
        let (registry, other) = up(world, 20_000, ("100MiB", "200MiB"), others.into(), |_, other| {
            let mut elsewhere = elsewhere;
            let said = describe(RAW, &moved);
            elsewhere.put_blob(&said, Page::Elsewhere(format!("https://127.0.0.1:{other}/blob")));
            elsewhere.manifest("1", &[said]);
            let realm = format!("Bearer realm=\"https://127.0.0.1:{other}/token\",service=\"here\"");
            for repository in [&mut artifact, &mut container, &mut elsewhere] {
                repository.wants("t0ken-of-anybody", &realm);
            }
            [artifact, container, elsewhere].into_iter().flat_map(|one| one.pages).collect()
        })
        .await;
        let bus = world.bus.clone();

        // An artifact, whose transfer breaks off twice; what is there already is not sent again.
        let reply = imported(&bus, &asked(&registry, "data", "owner/artifact:1.0")).await;
        assert_eq!(
            (reply.image.sha256.as_str(), reply.image.size_bytes),
            (sha256(&file).as_str(), 6 * MIB as u64)
        );
        assert_eq!(reply.manifest.as_deref(), Some(manifest.as_str()));
        assert_eq!(registry.came(&blob), [None, Some(5 * MIB / 2), Some(5 * MIB)]);
        let scope = "token?service=here&scope=repository%3Aowner%2Fartifact%3Apull";
        assert_eq!(other.came(scope), [None], "one token is enough");

        // A container disk, for this processor, by tag and by digest; it is what a VM boots from.
        let reply = imported(&bus, &asked(&registry, "root", "owner/container:latest")).await;
        assert_eq!((reply.image.sha256, reply.manifest.as_deref()), (sha256(&root), Some(index.as_str())));
        let mut by_digest = asked(&registry, "again", &format!("owner/container@{ours}"));
        by_digest["sha256"] = sha256(&root).into();
        let reply = imported(&bus, &by_digest).await;
        assert_eq!(reply.manifest.as_deref(), Some(ours.as_str()));
        let spec = json!({"disks": [{"image": "root"}, {"image": "data"}]});
        bus.create("web", json!({"spec": spec, "wait": "agent"})).await.unwrap();

        // The server that the registry passes on to is shown no token.
        let reply = imported(&bus, &asked(&registry, "moved", "owner/elsewhere:1")).await;
        assert_eq!((reply.image.sha256, other.came("blob")), (sha256(&moved), vec![None]));
        assert_eq!((registry.strangers(), other.strangers()), (Vec::<String>::new(), Vec::new()));
        assert_eq!((held(world), workers(world)), ((3, 0), 0));

        let reference = format!("127.0.0.1:{}/owner/artifact:1.0", registry.port);
        let said = world.printed(&["image", "import", "cli", "--oci", &reference]).await;
        assert!(said.contains("cli is there, 6 MiB") && said.contains(&manifest), "{said}");
        assert!(!world.told().contains("t0ken"), "a token is nobody's to read");
        assert!(world.told().contains(&reference), "the log says from where");
    });
}

/// What is hostile or wrong in a registry, by its repository and tag, and what is answered.
struct Hostile {
    pages: Pages,
    cases: Vec<(&'static str, String, ErrorCode, &'static str)>,
}

impl Hostile {
    /// A repository of its own, of which the tag `1` is asked for.
    fn case(
        &mut self,
        what: &'static str,
        code: ErrorCode,
        says: &'static str,
        make: impl FnOnce(&mut Repository),
    ) {
        let name = format!("bad/n{}", self.cases.len());
        let mut repository = Repository::new(&name);
        make(&mut repository);
        self.pages.extend(repository.pages);
        self.cases.push((what, format!("{name}:1"), code, says));
    }

    /// One layer with these.
    fn layer(&mut self, what: &'static str, code: ErrorCode, says: &'static str, members: &[Member<'_>]) {
        self.case(what, code, says, |repository| {
            let said = repository.blob(LAYER, layer(members));
            repository.manifest("1", &[said]);
        });
    }

    /// One content, of which the manifest says something else.
    fn lies(
        &mut self,
        what: &'static str,
        code: ErrorCode,
        says: &'static str,
        said: Value,
        content: Vec<u8>,
    ) {
        self.case(what, code, says, |repository| {
            repository.put_blob(&said, Page::File(content));
            repository.manifest("1", &[said]);
        });
    }

    /// A manifest of these bytes.
    fn document(&mut self, what: &'static str, code: ErrorCode, says: &'static str, content: Vec<u8>) {
        self.case(what, code, says, |repository| drop(repository.document("1", content)));
    }

    /// A good image for those who show what this challenge leads to.
    fn wants(&mut self, what: &'static str, code: ErrorCode, says: &'static str, challenge: &str) {
        self.case(what, code, says, |repository| {
            let said = repository.blob(RAW, disk(7, 4096));
            repository.manifest("1", &[said]);
            repository.wants("nobody-gets-it", challenge);
        });
    }
}

fn manifests(hostile: &mut Hostile) {
    use ErrorCode::{InvalidArgument, NotFound, ResourceExhausted, Unsupported};
    hostile.document("no json", InvalidArgument, "manifest", b"<html>".to_vec());
    hostile.document("too long", InvalidArgument, "manifest", vec![b' '; 5 * MIB]);
    hostile.document("neither", InvalidArgument, "neither", br#"{"schemaVersion":2}"#.to_vec());
    let both = br#"{"schemaVersion":2,"layers":[],"manifests":[]}"#;
    hostile.document("both", InvalidArgument, "at once", both.to_vec());
    hostile.document("schema 1", Unsupported, "schema 1", br#"{"schemaVersion":1,"fsLayers":[]}"#.to_vec());
    hostile.case("for others", NotFound, "linux/riscv64", |repository| {
        let other = repository.manifest("other", &[]);
        repository.index("1", &[("riscv64", &other)]);
    });
    hostile.case("an index in an index", Unsupported, "index in an index", |repository| {
        let inner = repository.index("inner", &[]);
        let size = match &repository.pages[&repository.path("manifests", &inner)] {
            Page::File(content) => content.len(),
            _ => 0,
        };
        let platform = json!({"os": "linux", "architecture": "amd64"});
        let said = json!({"mediaType": INDEX, "digest": inner, "size": size, "platform": platform});
        let outer = json!({"schemaVersion": 2, "manifests": [said]});
        // The inner one chooses again, and is no manifest either.
        let again = json!({"schemaVersion": 2, "manifests": [{
            "mediaType": INDEX, "digest": repository.document("x", outer.to_string().into_bytes()),
            "size": outer.to_string().len(), "platform": platform,
        }]});
        repository.document("1", again.to_string().into_bytes());
    });
    hostile.case("a manifest that is not what the index says", InvalidArgument, "digest", |repository| {
        let good = repository.manifest("good", &[]);
        repository.index("1", &[("amd64", &good)]);
        let path = repository.path("manifests", &good);
        let Some(Page::File(content)) = repository.pages.get_mut(&path) else { panic!("a manifest") };
        content.push(b' ');
    });
    let zstd = describe("application/vnd.oci.image.layer.v1.tar+zstd", b"x");
    hostile.lies("a packing that is not read", Unsupported, "zstd", zstd, b"x".to_vec());
    hostile.case("two files", Unsupported, "2 layers", |repository| {
        let said = [1, 2].map(|seed| repository.blob(RAW, disk(seed, 4096)));
        repository.manifest("1", &said);
    });
    hostile.case("no layers", Unsupported, "without layers", |repository| {
        repository.manifest("1", &[]);
    });
    let mut huge = describe(RAW, b"x");
    huge["size"] = json!(41 * MIB);
    hostile.lies("more than is allowed", ResourceExhausted, "at most", huge, b"x".to_vec());
    hostile.case("a path for a digest", InvalidArgument, "sha256:", |repository| {
        let said = json!({"mediaType": RAW, "digest": "../../../etc/passwd", "size": 1});
        repository.manifest("1", &[said]);
    });
}

fn contents(hostile: &mut Hostile) {
    use ErrorCode::{InvalidArgument, ResourceExhausted, Unsupported};
    let good = disk(6, 4096);
    let other = disk(5, 4096);
    hostile.lies("another content", InvalidArgument, "digest", describe(RAW, &good), other);
    let longer = [&good[..], b"!"].concat();
    hostile.lies("a longer one", InvalidArgument, "4097 bytes and not 4096", describe(RAW, &good), longer);
    hostile.lies("a shorter one", InvalidArgument, "bytes and not", describe(RAW, &good), good[1..].to_vec());
    let qcow2 = b"QFI\xfb and what follows".to_vec();
    hostile.lies("another kind", InvalidArgument, "", describe(RAW, &qcow2), qcow2.clone());

    let good = Member::file("disk/good.img", &good);
    for (what, kind, path, says) in [
        ("a link", EntryType::Symlink, "disk/x", "a symbolic link"),
        ("a link beside", EntryType::Symlink, "etc/x", "a symbolic link"),
        ("a hard link", EntryType::Link, "disk/x", "a hard link"),
        ("a device", EntryType::Block, "disk/x", "a device"),
        ("a pipe", EntryType::Fifo, "disk/x", "a pipe"),
        ("a whiteout", EntryType::Regular, "disk/.wh.x", "a whiteout"),
        ("a way out", EntryType::Regular, "disk/../../x", "not a path below"),
        ("a path of the host", EntryType::Regular, "/etc/cron.d/x", "not a path below"),
    ] {
        hostile.layer(what, InvalidArgument, says, &[good, Member::of(kind, path)]);
    }
    let second = Member::file("disk/second.img", b"x");
    hostile.layer("two disks", Unsupported, "more than one", &[good, second]);
    hostile.layer("none", Unsupported, "no file below", &[Member::file("etc/motd", b"x")]);
    let zeros = vec![0; 41 * MIB];
    hostile.layer("a disk that unpacks", ResourceExhausted, "at most", &[Member::file("disk/x", &zeros)]);
    hostile.layer("a bomb", ResourceExhausted, "beside", &[Member::file("x", &zeros), good]);
    let packed = layer(&[good]);
    let half = packed[..packed.len() / 2].to_vec();
    let cut = tar(&[good])[..1024].to_vec();
    for (what, content) in [("half a layer", half), ("half a tar", gzip(&cut)), ("no layer", disk(3, 5000))] {
        hostile.lies(what, InvalidArgument, "layer", describe(LAYER, &content), content);
    }
}

fn tokens(hostile: &mut Hostile, port: u16) {
    use ErrorCode::{InvalidArgument, PermissionDenied, Unsupported};
    hostile.wants("who logs in", PermissionDenied, "log in", "Basic realm=\"x\"");
    let at = |url: &str| format!("Bearer realm=\"{}\"", url.replace("PORT", &port.to_string()));
    for (what, url) in [
        ("a token without https", "http://127.0.0.1:PORT/token"),
        ("a token from the host's files", "file:///etc/passwd"),
        ("a token from elsewhere", "https://127.0.0.1:1/token"),
        ("a token from metadata", "https://169.254.169.254/token"),
        ("a token from a private address", "https://127.0.0.2:PORT/token"),
    ] {
        hostile.wants(what, PermissionDenied, "", &at(url));
    }
    hostile.wants(
        "a token that does not help",
        PermissionDenied,
        "log in",
        &at("https://127.0.0.1:PORT/token"),
    );
    hostile.wants("no token", Unsupported, "no token", &at("https://127.0.0.1:PORT/empty"));
    hostile.wants("a token without an end", Unsupported, "too long", &at("https://127.0.0.1:PORT/endless"));
    hostile.wants("a token for a header", Unsupported, "header", &at("https://127.0.0.1:PORT/lines"));
    hostile.wants("no realm", Unsupported, "realm", "Bearer service=\"x\"");
    hostile.case("a blob from metadata", PermissionDenied, "", |repository| {
        let said = describe(RAW, b"x");
        repository.put_blob(&said, Page::Elsewhere("https://169.254.169.254/latest".to_owned()));
        repository.manifest("1", &[said]);
    });
    hostile.case("a manifest that goes round", InvalidArgument, "passed it on", |repository| {
        let path = repository.path("manifests", "1");
        repository.pages.insert(path.clone(), Page::Elsewhere(format!("/{path}")));
    });
}

#[test]
fn what_a_registry_may_not_send_is_refused_and_leaves_nothing() {
    let name = "what_a_registry_may_not_send_is_refused_and_leaves_nothing";
    run(name, Options::down(), async |world| {
        let mut cases = Vec::new();
        let word = |text: &str| Page::File(text.as_bytes().to_vec());
        let (registry, _other) = up(world, 5_000, ("40MiB", "60MiB"), Pages::new(), |port, _| {
            let mut hostile = Hostile { pages: Pages::new(), cases: Vec::new() };
            manifests(&mut hostile);
            contents(&mut hostile);
            tokens(&mut hostile, port);
            let Hostile { mut pages, cases: made } = hostile;
            cases = made;
            pages.insert("token".into(), word(r#"{"token":"another"}"#));
            pages.insert("empty".into(), word("{}"));
            pages.insert("lines".into(), word(r#"{"token":"a\nb"}"#));
            pages.insert("endless".into(), Page::NoLength(vec![b'a'; MIB]));
            pages
        })
        .await;
        let bus = world.bus.clone();
        let refused = async |what: &str, oci: String, code| -> ErrorBody {
            let body = json!({"name": "x", "kind": "disk", "oci": oci});
            let error = import(&bus, &body).refused(code).await;
            assert_eq!((held(world), workers(world)), ((0, 0), 0), "{what}");
            error
        };
        let port = registry.port;
        for (what, path, code, says) in &cases {
            let error = refused(what, format!("127.0.0.1:{port}/{path}"), *code).await;
            assert!(error.message.contains(says), "{what}: {error:?}");
        }
        for (what, oci, code) in [
            ("no registry", "debian:12".to_owned(), ErrorCode::InvalidArgument),
            ("no tag", format!("127.0.0.1:{port}/bad/n0"), ErrorCode::InvalidArgument),
            ("a user", format!("me:secret@127.0.0.1:{port}/bad/n0:1"), ErrorCode::InvalidArgument),
            ("a url", format!("https://127.0.0.1:{port}/bad/n0:1"), ErrorCode::InvalidArgument),
            ("nothing", format!("127.0.0.1:{port}/bad/none:1"), ErrorCode::NotFound),
            ("another registry", "registry.example/a:1".to_owned(), ErrorCode::PermissionDenied),
            ("a private one", format!("127.0.0.2:{port}/bad/n0:1"), ErrorCode::PermissionDenied),
        ] {
            let error = refused(what, oci, code).await;
            assert!(!error.message.contains("secret"), "{what}: {error:?}");
        }
        assert!(!world.told().contains("secret"), "nor does the log have it");
        audit::told(&bus, "the refusal", |event| {
            event.verb.as_deref() == Some("image.import") && event.error == Some(ErrorCode::PermissionDenied)
        })
        .await;
        // Two sources, and a file that is not the one that was wanted.
        let mut two = asked(&registry, "x", "bad/n0:1");
        two["url"] = registry.url("token").into();
        import(&bus, &two).refused(ErrorCode::InvalidArgument).await;
        assert!(registry.strangers().is_empty());
    });
}

#[test]
fn a_daemon_that_dies_while_it_pulls_leaves_nothing() {
    run("a_daemon_that_dies_while_it_pulls_leaves_nothing", Options::down(), async |world| {
        let content = disk(5, 32 * MIB);
        // As long as it is: nothing of it is compressed, so that half of it is there when half of it came.
        let (mut half, mut whole) = (Repository::new("half"), Repository::new("whole"));
        let packed = tar(&[Member::file("disk/x", &content)]);
        let said = describe("application/vnd.oci.image.layer.v1.tar", &packed);
        half.put_blob(&said, Page::Silent(packed.clone(), 16 * MIB));
        half.manifest("1", std::slice::from_ref(&said));
        whole.put_blob(&said, Page::File(packed));
        whole.manifest("1", &[said]);
        let pages = half.pages.into_iter().chain(whole.pages).collect();
        let (registry, _other) = up(world, 60_000, ("40MiB", "60MiB"), Pages::new(), |_, _| pages).await;
        let (half, whole) = (asked(&registry, "half", "half:1"), asked(&registry, "whole", "whole:1"));
        let image = killed_midway(world, half, &whole).await;
        assert_eq!((image.sha256, held(world)), (sha256(&content), (1, 0)));
    });
}
