use std::io::{Error, ErrorKind};
use std::path::Path;
use std::process::Command;

use drover_schemas::verbs::{Plane, VERBS};

use super::*;

const SHIPPED: &str = include_str!("../../../config/bus.yaml");
const HASH: &str = "$2a$04$abcdefghijklmnopqrstuuQWERTYUIOPASDFGHJKLZXCVBNM12345";
const FULL: &str = "
mode: single
root: lab
servers:
  - {name: n1, listen: '127.0.0.1:4222', cluster: '10.0.0.1:6222'}
  - {name: n2, listen: '127.0.0.1:4223', cluster: '10.0.0.2:6222'}
store_dir: /tmp/js
tls: {cert: /etc/a.pem, key: /etc/a.key, ca: /etc/ca.pem}
hosts_may_create: true
hosts: [{name: h1, password_file: hash}, {name: h2, password_file: hash}]
admins: [{name: root, password_file: hash}]
auditors: [{name: listens, password_file: hash}]
log_file: /var/log/nats/n.log
namespaces:
  - name: 0-a
    users: [{name: look, roles: [reader], password_file: hash}, {name: both, roles: [guest, operator], password_file: hash}]
  - name: empty
";

fn check(text: &str) -> Result<Checked, String> {
    let file: BusFile = serde_saphyr::from_str(text).map_err(|e| e.to_string())?;
    let read = |path: &Path| match path.to_str() {
        Some("hash") => Ok(format!("{HASH}\n")),
        Some("plain") => Ok("swordfish".to_owned()),
        _ => Err(Error::from(ErrorKind::NotFound)),
    };
    file.check(read).map_err(|e| drover_actors::chain(&e).to_string())
}

fn made(text: &str, server: Option<&str>) -> String {
    let server = server.map(|name| Token::new(name).unwrap());
    generate(&check(text).unwrap(), server.as_ref()).unwrap()
}

/// `UPDATE_GOLDEN=1` writes the files anew; a difference in review is a change of what somebody may do.
#[test]
fn the_same_file_gives_the_same_configuration() {
    for (name, text) in [("tenants", made(SHIPPED, None)), ("single", made(FULL, Some("n2")))] {
        let path = format!("{}/src/busconf/golden/{name}.conf", env!("CARGO_MANIFEST_DIR"));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::create_dir_all(Path::new(&path).parent().unwrap()).unwrap();
            std::fs::write(&path, &text).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text, "{name}: run with UPDATE_GOLDEN=1");
        assert!(!text.contains("swordfish"));
    }
}

#[test]
fn the_server_takes_what_is_made() {
    if Command::new("nats-server").arg("--version").output().is_err() {
        return println!("skipped: nats-server is not on the PATH");
    }
    let dir = tempfile::tempdir().unwrap();
    // The server looks into the files that it is given.
    let plain = FULL.replace("tls: {cert: /etc/a.pem, key: /etc/a.key, ca: /etc/ca.pem}", "");
    for mode in ["single", "tenants"] {
        let full = plain.replace("mode: single", &format!("mode: {mode}"));
        for text in [made(SHIPPED, None), made(&full, Some("n1")), made(&full, Some("n2"))] {
            let text = text.replace("/var/log/nats", dir.path().to_str().unwrap());
            let path = dir.path().join("nats.conf");
            std::fs::write(&path, &text).unwrap();
            let tried = Command::new("nats-server").arg("-t").arg("-c").arg(&path).output().unwrap();
            let told = String::from_utf8_lossy(&tried.stderr);
            assert!(tried.status.success(), "{mode}: {told}\n{text}");
        }
    }
}

#[test]
fn each_verb_of_a_namespace_is_lent_to_its_account_and_to_no_other() {
    let text = made(SHIPPED, None);
    let (hosts, acme) = text.split_once("\n  acme: {").unwrap();
    for row in VERBS {
        let subject = row.plane.subject(row.verb).replace("<ns>", "acme").replace("<name>", "*");
        let subject = format!("\"drover.v1.{subject}\"");
        let lent = row.plane != Plane::Host;
        assert_eq!(acme.contains(&format!("subject: {subject}")), lent, "{row:?}");
        assert_eq!(hosts.contains(&format!("service: {subject}")), lent, "{row:?}");
    }
    assert!(!acme.contains("drover.v1.host.") && !acme.contains("$JS") && !acme.contains("jetstream"));
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    let one = |from: &str, to: &str| {
        assert!(FULL.contains(from), "{from}");
        check(&FULL.replacen(from, to, 1)).map(|_| ()).unwrap_err()
    };
    for (from, to, wanted) in [
        ("mode: single", "mode: singel", "line 2"),
        ("mode: single", "mode: single\nmoed: x", "moed"),
        ("roles: [reader]", "roles: [admin]", "expected one of"),
        ("roles: [reader]", "roles: []", "namespaces[0].users[0].roles: give at least one"),
        ("name: look", "name: h1", "namespaces[0].users[0].name: h1 stands twice"),
        ("name: empty", "name: 0-a", "namespaces[1].name: 0-a stands twice"),
        ("{name: root, password_file: hash}", "{name: root}", "admins[0]: give exactly one of nkey and"),
        (
            "{name: root, password_file: hash}",
            "{name: root, nkey: UABC}",
            "admins[0].nkey: this is no public key",
        ),
        ("{name: root, password_file: hash}", "{name: root, password_file: plain}", "drover bus password"),
        (
            "{name: root, password_file: hash}",
            "{name: root, password_file: none}",
            "admins[0].password_file: read none",
        ),
        ("admins: [{name: root, password_file: hash}]", "admins: []", "admins: name at least one"),
        ("127.0.0.1:4222", "127.0.0.1", "servers[0].listen"),
        (", cluster: '10.0.0.1:6222'", "", "servers[0].cluster: of several servers"),
        ("store_dir: /tmp/js", "store_dir: js", "store_dir: give an absolute path"),
        ("log_file: /var/log/nats/n.log", "", "log_file: auditors follow it"),
        ("name: listens", "name: root", "auditors[0].name: root stands twice"),
        ("store_dir: /tmp/js", "store_dir: /js\nmax_payload: 1KiB", "max_payload: use 256KiB"),
        ("store_dir: /tmp/js", "store_dir: /js\nresponse_threshold_s: 119", "use 120 or more"),
        ("name: empty", "name: Empty", "position 0"),
    ] {
        let told = one(from, to);
        assert!(told.contains(wanted), "{to}: {told}");
        assert!(!told.contains("swordfish") && !told.contains("$2a$"), "{told}");
    }
    let none = generate(&check(FULL).unwrap(), None).unwrap_err().to_string();
    assert!(none.contains("n1, n2"), "{none}");
}

#[test]
fn a_hash_is_one_that_the_server_takes() {
    let hashed = hash("swordfish", 4).unwrap();
    assert!(password::is_hash(&hashed) && hashed.starts_with("$2a$04$"), "{hashed}");
    assert_ne!(hashed, hash("swordfish", 4).unwrap(), "the salt is another each time");
    assert!(bcrypt::verify("swordfish", &hashed).unwrap());
    for bad in ["", &"x".repeat(73)] {
        assert!(matches!(hash(bad, 4), Err(HashError::Length { .. })));
    }
    for bad in ["swordfish", "$2a$", "$2a$99$short", &HASH[1..]] {
        assert!(!password::is_hash(bad), "{bad}");
    }
}
