//! The bus as `drover bus config` writes it: the server is started with that text, unchanged, and each role has what
//! it should have and no more, whether namespaces are accounts or not.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::fs;
use std::time::Duration;

use drover_schemas::audit::AuditKind;
use drover_schemas::{ErrorCode, RequestId, Token};
use drover_tests::audit;
use drover_tests::client::{Bus, Failure};
use drover_tests::wait::until;
use drover_tests::world::{Options, URL, World, run};
use nkeys::KeyPair;
use serde_json::{Value, json};

/// How long a request that the server keeps from the hosts waits for its reply.
const DENIED: Duration = Duration::from_secs(2);

/// What the server calls a user who has a key.
fn public_key(world: &World, name: &str) -> String {
    let seed = fs::read_to_string(world.seed(name)).unwrap();
    KeyPair::from_seed(&seed).unwrap().public_key()
}

/// The server keeps the message and writes down whose it was.
async fn denied(world: &World, by: &Bus, subject: &str) {
    match subject.starts_with("drover.") {
        true => {
            let outcome: Result<Value, Failure> = by.ask(subject, &json!({})).within(DENIED).get().await;
            assert!(!matches!(outcome, Ok(_) | Err(Failure::Coded(_))), "{subject}: {outcome:?}");
        }
        false => by.nats.publish(subject.to_owned(), "{}".into()).await.unwrap(),
    }
    let violation = format!("Subject \"{subject}\"");
    until(&format!("the server says of {subject} that it was denied"), async || {
        let log = fs::read_to_string(world.path("server.log")).unwrap_or_default();
        log.lines().any(|line| line.contains("Violation") && line.contains(&violation)).then_some(())
    })
    .await;
}

async fn roles_hold(world: &mut World, mode: &str) {
    let file = json!({
        "mode": mode,
        "servers": [{"name": "n1", "listen": "127.0.0.1:4222"}],
        "store_dir": world.path("js"),
        "log_file": world.path("server.log"),
        "hosts": [world.user("h1", &[])],
        "admins": [world.user("ops", &[])],
        "namespaces": [
            {"name": "default", "users": [
                world.user("all", &["operator", "guest"]),
                world.user("looks", &["reader"]),
                world.user("operates", &["operator"]),
            ]},
            {"name": "other", "users": [world.user("stranger", &["operator", "guest"])]},
        ],
    });
    let printed = world.print_config(&file, None).await;
    world.start_nats_as(&printed).await;
    world.init_bus("ops").await;

    let mut config = world.config();
    config["bus"]["nkey_seed_file"] = json!(world.seed("h1"));
    world.configure(&config);
    world.start();
    world.bus = world.enter("ops", URL).await;
    world.ready().await;

    let all = world.enter("all", URL).await;
    all.up("a").await;
    all.until_ping("a").await;
    let (looks, operates, stranger) = (
        world.enter("looks", URL).await,
        world.enter("operates", URL).await,
        world.enter("stranger", URL).await,
    );
    for bus in [&looks, &operates] {
        assert!(bus.status("a").await.is_ok());
    }
    for verb in ["guest.exec", "guest.get", "guest.put"] {
        for bus in [&looks, &operates] {
            denied(world, bus, &format!("drover.v1.cmd.default.vm.a.{verb}")).await;
        }
    }
    denied(world, &looks, "drover.v1.cmd.default.vm.a.delete").await;
    for subject in [
        "drover.v1.cmd.default.vm.a.get",
        "drover.v1.cmd.default.vm.a.guest.exec",
        "drover.v1.io.default.0123456789abcdef",
        "drover.v1.evt.ns.default.vm.a.started",
        "drover.v1.evt.ns.other.vm.a.started",
        "drover.v1.metric.ns.default.vm.a",
        "drover.v1.host.h1.info",
        "$KV.DROVER_VMS.default.a",
        "$JS.API.STREAM.DELETE.DROVER_EVENTS",
        "$JS.API.STREAM.INFO.DROVER_EVENTS",
        "_INBOX.all.x",
    ] {
        denied(world, &stranger, subject).await;
    }
    operates.change("a", "delete").await.unwrap();
    told_by_the_host(world, mode).await;
}

/// What hosts did and refused is in the audit, with the one who asked: as the server says, where that is between
/// accounts, and as it says of itself within one.
async fn told_by_the_host(world: &World, mode: &str) {
    let (ops, all) = (&world.bus, world.enter("all", URL).await);
    all.ask("vm.create", &json!({"nmae": "b"}))
        .id(RequestId::generate())
        .refused(ErrorCode::InvalidArgument)
        .await;
    for (by, verb, error) in [
        ("all", "create", None),
        ("operates", "delete", None),
        ("all", "create", Some(ErrorCode::InvalidArgument)),
    ] {
        let key = public_key(world, by);
        let event = audit::told(ops, &format!("{verb} by {by}"), |event| {
            let user = event.caller.user.as_deref();
            event.verb.as_deref() == Some(verb)
                && event.error == error
                && event.subject.contains(".cmd.")
                && user == Some(if mode == "single" { by } else { &key })
        })
        .await;
        assert_eq!(event.kind, if error.is_none() { AuditKind::Done } else { AuditKind::Refused });
        assert_eq!(event.namespace.as_ref().map(Token::as_str), Some("default"));
        assert!(event.request_id.is_some(), "{event:?}");
        assert_eq!(event.caller.verified, mode == "tenants", "{event:?}");
        assert_eq!(event.caller.account.as_deref(), (mode == "tenants").then_some("default"));
    }
}

#[test]
fn roles_hold_in_one_account() {
    run("roles_hold_in_one_account", Options::down(), async |world| roles_hold(world, "single").await);
}

#[test]
fn roles_hold_between_accounts() {
    run("roles_hold_between_accounts", Options::down(), async |world| roles_hold(world, "tenants").await);
}
