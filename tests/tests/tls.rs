//! The bus with certificates, as `drover bus config` writes it: a cluster that loses its servers one by one, and what
//! they are told who have no certificate, or the wrong one.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use async_nats::jetstream;
use drover_schemas::RequestId;
use drover_schemas::body::vm::ChangeReply;
use drover_tests::certificates::{Authority, Certificate};
use drover_tests::client::Bus;
use drover_tests::printed::Servers;
use drover_tests::wait::{until, until_within};
use drover_tests::world::{Options, World, run};
use drover_tests::{clients, events};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::Command;

const URLS: [&str; 3] = ["tls://127.0.0.1:4222", "tls://127.0.0.1:4223", "tls://127.0.0.1:4224"];
/// Servers that elect leaders, with others at work on the machine.
const LONG: Duration = Duration::from_secs(120);

/// The flags of whoever trusts `ca` and shows `own`.
fn flags(ca: &Path, own: &Certificate) -> Vec<String> {
    let text = |path: &Path| path.display().to_string();
    ["--tls-ca".into(), text(ca), "--tls-cert".into(), text(&own.cert), "--tls-key".into(), text(&own.key)]
        .into()
}

async fn drover(world: &World, args: &[&str], flags: &[String]) -> (Option<i32>, String, String) {
    let all: Vec<&str> = flags.iter().map(String::as_str).chain(args.iter().copied()).collect();
    let done = world.drover(&all).await;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (done.status.code(), text(&done.stdout), text(&done.stderr))
}

async fn enter(world: &World, name: &str, ca: &Authority, own: &Certificate) -> Bus {
    let options = world.login_options(name).add_root_certificates(ca.cert().to_owned()).require_tls(true);
    let options = options.add_client_certificate(own.cert.clone(), own.key.clone());
    let options = options.reconnect_delay_callback(|_| Duration::from_millis(50));
    Bus { nats: options.connect(&URLS[..]).await.unwrap() }
}

/// Runs one test of a client in another language on the bus.
async fn other_client(program: &str, args: &[&str], folder: &str, login: &Value) {
    let env = [("DROVER_URL", URLS.join(",")), ("DROVER_LOGIN", login.to_string())];
    clients::passes(program, args, folder, &env, LONG).await;
}

/// Every copy of the log is up to date.
async fn whole(ops: &Bus) {
    let js = jetstream::new(ops.nats.clone());
    until_within(LONG, "three copies of the log", async || {
        let log = js.get_stream("DROVER_EVENTS").await.ok()?;
        let cluster = log.cached_info().cluster.clone()?;
        let current = cluster.replicas.iter().filter(|copy| copy.current && !copy.offline).count();
        (cluster.leader.is_some() && current == 2).then_some(())
    })
    .await;
}

#[test]
fn a_cluster_with_certificates_loses_each_server_once() {
    // An observer cannot read what is encrypted.
    let options = Options { hosts: 2, budget: LONG * 6, observed: false, ..Options::down() };
    run("a_cluster_with_certificates_loses_each_server_once", options, async |world| {
        let ca = Authority::new(&world.path(""), "ca");
        // Node.js looks for this name where it has an address only.
        let server = ca.certificate("server", "IP:127.0.0.1,DNS:localhost", 2);
        let own = ca.certificate("client", "DNS:client", 2);
        let (other, password) = world.user_with_password("other", &["operator", "guest"]).await;
        let file = json!({
            "mode": "tenants",
            "servers": [
                {"name": "n1", "listen": "127.0.0.1:4222", "cluster": "127.0.0.1:6222"},
                {"name": "n2", "listen": "127.0.0.1:4223", "cluster": "127.0.0.1:6223"},
                {"name": "n3", "listen": "127.0.0.1:4224", "cluster": "127.0.0.1:6224"},
            ],
            "store_dir": "/replaced",
            "tls": {"cert": server.cert, "key": server.key, "ca": ca.cert()},
            "hosts": [world.user("h1", &[]), world.user("h2", &[])],
            "admins": [world.user("ops", &[])],
            "namespaces": [{"name": "default", "users": [world.user("all", &["operator", "guest"]), other]}],
        });
        let mut servers = Servers::print(world, &file).await;
        for number in 0..URLS.len() {
            servers.start(number).await;
        }
        let urls = URLS.join(",");
        let flags = [vec!["--server".to_owned(), urls.clone()], flags(ca.cert(), &own)].concat();
        let [as_ops, as_all] = ["ops", "all"].map(|name| [&flags[..], &world.login(name)].concat());
        until_within(LONG, "the servers have found each other", async || {
            let made = drover(world, &["bus", "init", "--replicas", "3"], &as_ops).await;
            (made.0 == Some(0)).then_some(())
        })
        .await;
        let seeds = ["h1", "h2"].map(|host| world.seed(host));
        for (host, seed) in world.hosts.iter_mut().zip(seeds) {
            let mut config = host.config();
            config["bus"] = json!({
                "urls": URLS,
                "nkey_seed_file": seed,
                "tls": {"ca": ca.cert(), "cert": own.cert, "key": own.key},
            });
            config["events"] = json!({"replicas": 3});
            host.configure(&config);
            host.start();
        }
        world.bus = enter(world, "ops", &ca, &own).await;
        world.ready().await;
        let login =
            json!({"user": "other", "password": password, "ca": ca.cert(), "cert": own.cert, "key": own.key});
        other_client(
            "python3",
            &["-W", "ignore", "test_client.py", "TheMainJob.test_the_main_job"],
            "python",
            &login,
        )
        .await;
        match Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/clients/javascript/node_modules")).exists() {
            true => {
                let args = ["--test", "--test-name-pattern", "the main job", "client.test.js"];
                other_client("node", &args, "javascript", &login).await;
            }
            false => println!("SKIP the client in JavaScript: its packages are not installed"),
        }

        let all = enter(world, "all", &ca, &own).await;
        all.up("a").await;

        let (code, out, err) = drover(world, &["vm", "exec", "a", "--", "echo", "hello"], &as_all).await;
        assert_eq!((code, out.as_str()), (Some(0), "hello\n"), "{err}");
        let mut cat = Command::new(world.bin("drover"));
        cat.args(&as_all).args(["vm", "exec", "-i", "a", "--", "cat"]);
        cat.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut cat = cat.spawn().unwrap();
        let (mut typed, said) = (cat.stdin.take().unwrap(), cat.stdout.take().unwrap());
        let mut said = BufReader::new(said).lines();
        let mut echo = async |text: String| {
            typed.write_all(format!("{text}\n").as_bytes()).await.unwrap();
            let line = tokio::time::timeout(LONG, said.next_line()).await.unwrap().unwrap();
            assert_eq!(line, Some(text));
        };
        // The stream is open before anything breaks.
        echo("with all".into()).await;
        for number in 0..URLS.len() {
            whole(&world.bus).await;
            servers.kill(number).await;
            echo(format!("without {number}")).await;
            let name = format!("v{number}");
            let body = json!({"name": name, "wait": "agent"});
            let made: ChangeReply = all.insist("vm.create", &body, RequestId::generate()).await.unwrap();
            assert_eq!(made.vm.incarnation, 1);
            // Hosts are `unavailable` until they have read again what is theirs; what may be repeated ends with 5.
            let ran = until_within(LONG, "a command", async || {
                let (code, _, err) = drover(world, &["vm", "exec", &name, "--", "true"], &as_all).await;
                (code != Some(5)).then_some((code, err))
            });
            let (code, err) = ran.await;
            assert_eq!(code, Some(0), "{err}");
            servers.start(number).await;
        }
        drop(typed);
        assert_eq!(said.next_line().await.unwrap(), None);
        assert_eq!(cat.wait().await.unwrap().code(), Some(0));
        whole(&world.bus).await;
        for name in ["a", "v0", "v1", "v2"] {
            all.insist_on_delete(name).await;
        }
        let logs = events::log_of(&world.bus, &["h1", "h2"]).await;
        // Those of this test, and that of each client in another language.
        assert!(logs.len() >= 4 && logs.values().all(|log| log.last().unwrap().last), "{logs:?}");
    });
}

/// The one server of the bus, with this certificate.
async fn serve(world: &World, ca: &Authority, own: &Certificate, users: &[Value; 2]) -> Servers {
    let file = json!({
        "mode": "single",
        "servers": [{"name": "n1", "listen": "127.0.0.1:4222"}],
        "store_dir": "/replaced",
        "tls": {"cert": own.cert, "key": own.key, "ca": ca.cert()},
        "hosts_may_create": true,
        "hosts": [users[0]],
        "admins": [users[1]],
    });
    let mut servers = Servers::print(world, &file).await;
    servers.start(0).await;
    servers
}

/// The command line says what is wrong and what to do about it.
async fn told(world: &World, flags: &[String], code: i32, wanted: [&str; 3]) {
    let (ended, _, said) = drover(world, &["host", "get", "h1", "--deadline", "5"], flags).await;
    assert_eq!(ended, Some(code), "{said}");
    for part in wanted {
        assert!(said.contains(part), "{part:?} is not in: {said}");
    }
}

/// A host with these settings waits, and says why.
async fn waits(world: &mut World, tls: Value, wanted: [&str; 2]) {
    world.configure_with(|config| {
        config["bus"]["nkey_seed_file"] = json!(world.seed("h1"));
        config["bus"]["tls"] = tls;
    });
    let before = world.told().len();
    world.start();
    until(&format!("the host says {wanted:?}"), async || {
        let told = world.told()[before..].to_owned();
        wanted.iter().all(|part| told.contains(part)).then_some(())
    })
    .await;
    world.kill().await;
}

#[test]
fn who_has_not_the_right_certificate_is_told_so() {
    run("who_has_not_the_right_certificate_is_told_so", Options::down(), async |world| {
        let folder = world.path("");
        let (ca, foreign) = (Authority::new(&folder, "ca"), Authority::new(&folder, "foreign"));
        let [good, expired] =
            [("client", 2), ("old", -1)].map(|(name, days)| ca.certificate(name, "DNS:c", days));
        let stranger = foreign.certificate("stranger", "DNS:c", 2);
        let users = [world.user("h1", &[]), world.user("ops", &[])];
        let login = world.login("ops");
        let with = |ca: &Authority, own: Option<&Certificate>| {
            let mut flags = login.to_vec();
            match own {
                Some(own) => flags.extend(self::flags(ca.cert(), own)),
                None => flags.extend(["--tls-ca".to_owned(), ca.cert().display().to_string()]),
            }
            flags
        };

        let server = ca.certificate("server", "IP:127.0.0.1", 2);
        let mut servers = serve(world, &ca, &server, &users).await;
        let wants = ["permission_denied", "the server wants a certificate", "give --tls-cert and --tls-key"];
        told(world, &with(&ca, None), 7, wants).await;
        let old = ["permission_denied", "our certificate, which has expired", "a new certificate"];
        told(world, &with(&ca, Some(&expired)), 7, old).await;
        let foreign_own = ["permission_denied", "not signed by an authority of its own", "--tls-cert"];
        told(world, &with(&ca, Some(&stranger)), 7, foreign_own).await;
        let untrusted = ["invalid_argument", "not signed by an authority that we trust", "--tls-ca"];
        told(world, &with(&foreign, Some(&good)), 2, untrusted).await;
        told(world, &login, 2, untrusted).await;
        let mixed = Certificate { cert: good.cert.clone(), key: stranger.key.clone() };
        let not_its_key = ["invalid_argument", "the certificate and its key cannot be used", "--tls-key"];
        told(world, &with(&ca, Some(&mixed)), 2, not_its_key).await;
        let absent = Certificate { cert: world.path("none.pem"), key: good.key.clone() };
        told(world, &with(&ca, Some(&absent)), 2, ["invalid_argument", "none.pem", "No such file"]).await;
        let _ = world.user("nobody", &[]);
        let nobody = [&world.login("nobody")[..], &self::flags(ca.cert(), &good)].concat();
        told(world, &nobody, 7, ["permission_denied", "the server refused us", "--nkey"]).await;
        let own = |own: &Certificate| json!({"ca": ca.cert(), "cert": own.cert, "key": own.key});
        waits(world, json!({"ca": ca.cert()}), ["the server wants a certificate", "bus.tls.cert"]).await;
        waits(world, own(&expired), ["our certificate, which has expired", "bus.tls.cert"]).await;
        servers.kill(0).await;

        let server = ca.certificate("server", "IP:127.0.0.1", -1);
        let mut servers = serve(world, &ca, &server, &users).await;
        let over = ["unavailable", "the server's certificate has expired", "has to renew"];
        told(world, &with(&ca, Some(&good)), 5, over).await;
        waits(world, own(&good), ["the server's certificate has expired", "renewed"]).await;
        servers.kill(0).await;

        let server = ca.certificate("server", "DNS:bus.example", 2);
        let mut servers = serve(world, &ca, &server, &users).await;
        let elsewhere = ["invalid_argument", "not for the name or address", "--server"];
        told(world, &with(&ca, Some(&good)), 2, elsewhere).await;
        waits(world, own(&good), ["not for the name or address", "bus.urls"]).await;
        servers.kill(0).await;
    });
}
