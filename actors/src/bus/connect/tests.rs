use std::fs;

use super::*;
use crate::bus::testing::{NatsServer, PATIENCE};
use crate::bus::{assets, assets::AssetsConfig};

fn config(url: &str) -> BusConfig {
    BusConfig { urls: vec![url.to_owned()], ..BusConfig::default() }
}

async fn refused(config: BusConfig) -> String {
    connect(&config).await.unwrap_err().to_string()
}

#[tokio::test]
async fn what_can_never_work_is_said_at_once_and_names_the_setting() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        fs::write(dir.path().join(name), text).unwrap();
        Some(dir.path().join(name))
    };
    let base = config("nats://127.0.0.1:4222");
    assert!(refused(config("nats://[")).await.contains("bus.urls"));
    assert!(refused(BusConfig::default()).await.contains("bus.urls is empty"));
    let wrong = BusConfig { credentials_file: file("a.creds", "hello"), ..base.clone() };
    assert!(refused(wrong).await.contains("bus.credentials_file"));
    let absent = BusConfig { nkey_seed_file: Some(dir.path().join("absent")), ..base.clone() };
    assert!(refused(absent).await.starts_with("bus.nkey_seed_file: read"));
    // A host's seed, or a public key, is not a user's seed.
    let public = BusConfig { nkey_seed_file: file("b.nk", &"U".repeat(56)), ..base.clone() };
    assert!(refused(public).await.contains("begin with SU"));
    let two = BusConfig { user: Some("u".into()), token_file: file("t", "x"), ..base.clone() };
    assert!(refused(two).await.contains("only one of"));
    let no_password = BusConfig { user: Some("u".into()), ..base.clone() };
    assert!(refused(no_password).await.contains("password"));
    let tls = TlsConfig { ca: file("ca.pem", "not a certificate"), ..TlsConfig::default() };
    assert!(refused(BusConfig { tls, ..base.clone() }).await.contains("bus.tls.ca"));
    let tls = TlsConfig { cert: file("c.pem", "x"), ..TlsConfig::default() };
    assert!(refused(BusConfig { tls, ..base }).await.contains("need each other"));
}

#[tokio::test]
async fn an_absent_server_is_no_error_and_is_found_later() {
    let Some(mut server) = NatsServer::start("").await else { return };
    server.kill();
    let bus = server.bus().await;
    assert!(!bus.state.borrow().connected);
    server.up().await;
    tokio::time::timeout(PATIENCE, bus.connected()).await.unwrap();
    let mut state = bus.state.clone();
    server.kill();
    tokio::time::timeout(PATIENCE, state.wait_for(|s| !s.connected)).await.unwrap().unwrap();
    server.up().await;
    tokio::time::timeout(PATIENCE, state.wait_for(|s| s.connected && s.connects == 2))
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn a_password_opens_the_door() {
    let Some(server) = NatsServer::start("authorization { user: u, password: right }").await else { return };
    let url = format!("nats://127.0.0.1:{}", server.port);
    let password_file = server.path("password");
    fs::write(&password_file, "right\n").unwrap();
    let config = BusConfig { user: Some("u".into()), password_file: Some(password_file), ..config(&url) };
    let bus = connect(&config).await.unwrap();
    tokio::time::timeout(PATIENCE, bus.connected()).await.unwrap();
}

async fn last_error(bus: &Bus, part: &str) -> String {
    let mut state = bus.state.clone();
    let said = state.wait_for(|s| s.last_error.as_ref().is_some_and(|e| e.contains(part)));
    let said = tokio::time::timeout(PATIENCE, said).await;
    let state = said.unwrap_or_else(|_| panic!("{:?}", bus.state.borrow())).unwrap();
    assert!(!state.connected);
    state.last_error.clone().unwrap()
}

#[tokio::test]
async fn a_refused_password_names_the_setting() {
    let Some(server) = NatsServer::start("authorization { user: u, password: right }").await else { return };
    let url = format!("nats://127.0.0.1:{}", server.port);
    let password = Some(drover_schemas::secret::Secret::new("wrong"));
    let bus = connect(&BusConfig { user: Some("u".into()), password, ..config(&url) }).await.unwrap();
    last_error(&bus, "check bus.user \"u\" and its password").await;
}

/// Makes `<name>.key` and `<name>.pem` in `dir`: an authority, or a certificate of one.
fn certificate(dir: &Path, name: &str, authority: Option<&str>) -> bool {
    let mut args = format!(
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 \
         -keyout {name}.key -out {name}.pem -subj /CN={name}"
    );
    if let Some(ca) = authority {
        args += &format!(
            " -CA {ca}.pem -CAkey {ca}.key -addext subjectAltName=IP:127.0.0.1 \
             -addext basicConstraints=critical,CA:FALSE"
        );
    }
    let made = std::process::Command::new("openssl")
        .args(args.split_whitespace())
        .current_dir(dir)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status();
    made.is_ok_and(|status| status.success())
}

#[tokio::test]
async fn mutual_tls_connects_and_a_wrong_authority_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let wanted = [("ca", None), ("other", None), ("server", Some("ca")), ("client", Some("ca"))];
    if !wanted.iter().all(|(name, authority)| certificate(dir.path(), name, *authority)) {
        println!("skipped: openssl cannot make certificates here");
        return;
    }
    let at = |name: &str| dir.path().join(name);
    let tls = format!(
        "tls {{ cert_file: {:?}, key_file: {:?}, ca_file: {:?}, verify: true }}",
        at("server.pem"),
        at("server.key"),
        at("ca.pem")
    );
    let Some(server) = NatsServer::start(&tls).await else { return };
    let url = format!("nats://127.0.0.1:{}", server.port);
    let tls = |ca: &str| TlsConfig {
        ca: Some(at(ca)),
        cert: Some(at("client.pem")),
        key: Some(at("client.key")),
        ..TlsConfig::default()
    };
    let bus = connect(&BusConfig { tls: tls("ca.pem"), ..config(&url) }).await.unwrap();
    tokio::time::timeout(PATIENCE, bus.connected()).await.unwrap();
    let bus = connect(&BusConfig { tls: tls("other.pem"), ..config(&url) }).await.unwrap();
    last_error(&bus, "not signed by an authority that we trust; check bus.tls.ca").await;
}

#[test]
fn a_server_that_is_too_old_is_refused_in_words() {
    let mut state = BusState::default();
    apply(&mut state, &Event::Connected, Some("2.10.29"), "", 5);
    assert!(!state.connected && state.connects == 0);
    assert!(state.last_error.as_deref().unwrap().contains("2.11 or newer"), "{state:?}");
    apply(&mut state, &Event::Connected, Some("2.11.0-RC.1"), "", 6);
    assert!(state.connected && state.last_error.is_none() && state.since_unix_ms == 6);
    apply(&mut state, &Event::SlowConsumer(1), None, "", 7);
    apply(&mut state, &Event::Disconnected, None, "", 8);
    assert_eq!((state.connected, state.slow_consumers, state.since_unix_ms), (false, 1, 8));
}

#[test]
fn errors_name_the_setting_to_look_at() {
    let hint = hint(&BusConfig { nkey_seed_file: Some("/etc/seed".into()), ..BusConfig::default() });
    assert!(explain("authorization violation", &hint).contains("bus.nkey_seed_file (/etc/seed)"));
    assert!(explain("invalid peer certificate: UnknownIssuer", &hint).contains("bus.tls.ca"));
}

#[tokio::test]
async fn a_bus_that_grants_nothing_of_shared_images_serves_all_else() {
    let rules = r#"
        accounts { A { jetstream: enabled, users: [{user: a, password: a, permissions: {publish: {deny: [
            "$JS.API.STREAM.*.KV_DROVER_IMAGES", "$JS.API.STREAM.*.OBJ_DROVER_IMAGES"]}}}] } }
        no_auth_user: a"#;
    let Some(server) = NatsServer::start(rules).await else { return };
    let mut js = async_nats::jetstream::new(server.bus().await.client);
    js.set_timeout(Duration::from_millis(500));
    let config = AssetsConfig::new(drover_schemas::Token::new("drover").unwrap());
    let report = assets::ensure(&js, &config).await.unwrap();
    assert_eq!((report.created.len(), report.without.len()), (4, 2), "{report:?}");
}

#[tokio::test]
async fn assets_are_made_once_and_never_changed() {
    let Some(server) = NatsServer::start("").await else { return };
    let js = async_nats::jetstream::new(server.bus().await.client);
    let config = AssetsConfig::new(drover_schemas::Token::new("drover").unwrap());
    let first = assets::ensure(&js, &config).await.unwrap();
    let events = ["DROVER_EVENTS", "KV_DROVER_VMS", "KV_DROVER_HOSTS", "KV_DROVER_STATE"];
    let images = ["KV_DROVER_IMAGES", "OBJ_DROVER_IMAGES"];
    assert_eq!(first.created, [&events[..], &images[..]].concat());
    assert_eq!(first.differences, []);
    let other = AssetsConfig { events_max_bytes: 1 << 20, ..config };
    let second = assets::ensure(&js, &other).await.unwrap();
    assert_eq!(second.created, [""; 0]);
    assert_eq!(second.stream_identity, first.stream_identity);
    let [difference] = second.differences.as_slice() else { panic!("{:?}", second.differences) };
    assert_eq!((difference.asset.as_str(), difference.setting), ("DROVER_EVENTS", "max_bytes"));
    assert_eq!(assets::ensure(&js, &other).await.unwrap(), second);
}
