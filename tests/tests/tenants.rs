//! The bus as `drover bus config` writes it: the server is started with that text, unchanged, and each role has what
//! it should have and no more, whether namespaces are accounts or not. Whatever somebody tries beyond it gets them
//! nothing, and stands in the audit.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::fs;
use std::process::Stdio;

use async_nats::{ConnectOptions, HeaderMap, Subscriber};
use drover_schemas::audit::{AuditAction, AuditEvent, AuditKind};
use drover_schemas::state::VmState;
use drover_schemas::{ErrorCode, RequestId, Token, codec, headers};
use drover_tests::audit;
use drover_tests::client::Bus;
use drover_tests::events;
use drover_tests::wait::until;
use drover_tests::world::{Options, URL, World, run};
use futures_util::{FutureExt as _, StreamExt as _};
use nkeys::KeyPair;
use serde_json::{Value, json};
use tokio::process::{Child, Command};

/// What a server has to deny and write down, by whom.
#[derive(Default)]
struct Tried {
    all: Vec<(String, AuditAction, String)>,
    /// Where an answer would come.
    heard: Vec<(String, Subscriber)>,
}

impl Tried {
    /// Sends something, with an inbox of one's own for the answer.
    async fn publish(&mut self, by: &Bus, who: &str, subject: &str) {
        let inbox = by.nats.new_inbox();
        self.heard.push((subject.to_owned(), by.nats.subscribe(inbox.clone()).await.unwrap()));
        by.nats.publish_with_reply(subject.to_owned(), inbox, "{}".into()).await.unwrap();
        self.all.push((who.to_owned(), AuditAction::Publish, subject.to_owned()));
    }

    async fn subscribe(&mut self, by: &Bus, who: &str, subject: &str) {
        self.heard.push((subject.to_owned(), by.nats.subscribe(subject.to_owned()).await.unwrap()));
        self.all.push((who.to_owned(), AuditAction::Subscribe, subject.to_owned()));
    }

    /// Nothing came of any of it. The caller has just heard of something that the server did later.
    fn got_nothing(&mut self) {
        for (subject, heard) in &mut self.heard {
            let message = heard.next().now_or_never().flatten();
            assert!(message.is_none(), "{subject}: {message:?}");
        }
    }
}

/// What the server calls a user who has a key.
fn public_key(world: &World, name: &str) -> String {
    let seed = fs::read_to_string(world.seed(name)).unwrap();
    KeyPair::from_seed(&seed).unwrap().public_key()
}

/// Starts a bus with its users, a host, and the VM `a` in the namespace `default`.
async fn start(world: &mut World, mode: &str) {
    let file = json!({
        "mode": mode,
        "servers": [{"name": "n1", "listen": "127.0.0.1:4222"}],
        "store_dir": world.path("js"),
        "log_file": world.path("server.log"),
        "hosts": [world.user("h1", &[])],
        "admins": [world.user("ops", &[])],
        "auditors": [world.user("watch", &[])],
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

    world.configure_with(|config| config["bus"]["nkey_seed_file"] = json!(world.seed("h1")));
    world.start();
    world.bus = world.enter("ops", URL).await;
    world.ready().await;
    let all = world.enter("all", URL).await;
    all.up("a").await;
    all.until_ping("a").await;
}

/// Follows the server's log until it is killed.
fn follow(world: &World) -> Child {
    let mut command = Command::new(world.bin("drover"));
    command.args(["bus", "audit"]).arg(world.path("server.log")).args(world.login("watch"));
    // Its events are of the contract too.
    let url = world.observer.way("watch", None, URL);
    command.env("DROVER_NATS_URL", url).stdin(Stdio::null()).kill_on_drop(true).spawn().unwrap()
}

/// Who may look does no more, and who operates VMs is not in their guests.
async fn roles_are_tried(world: &World, tried: &mut Tried) {
    for who in ["looks", "operates"] {
        let bus = world.enter(who, URL).await;
        assert!(bus.status("a").await.is_ok());
        for verb in ["guest.exec", "guest.get", "guest.put"] {
            tried.publish(&bus, who, &format!("drover.v1.cmd.default.vm.a.{verb}")).await;
        }
        if who == "looks" {
            tried.publish(&bus, who, "drover.v1.cmd.default.vm.a.delete").await;
        }
        bus.nats.flush().await.unwrap();
    }
}

/// A tenant tries what is another's, or nobody's but a host's.
async fn subjects_are_tried(stranger: &Bus, tried: &mut Tried) {
    for subject in [
        "drover.v1.cmd.default.vm.create",
        "drover.v1.cmd.default.vm.list",
        "drover.v1.cmd.default.vm.a.get",
        "drover.v1.cmd.default.vm.a.delete",
        "drover.v1.cmd.default.vm.a.guest.exec",
        "drover.v1.cmd.default.events.read",
        "drover.v1.io.default.0123456789abcdef",
        "drover.v1.host.h1.info",
        "drover.v1.host.h1.create",
        // Events and samples of anybody, one's own too, are the hosts' to write; so is the audit.
        "drover.v1.evt.ns.default.vm.a.state",
        "drover.v1.evt.ns.other.vm.a.state",
        "drover.v1.evt.host.h1.alarm",
        "drover.v1.evt.audit.host.h1.done",
        "drover.v1.evt.audit.bus.n1.denied",
        "drover.v1.metric.ns.default.vm.a",
        "drover.v1.metric.host.h1",
        "$KV.DROVER_VMS.default.a",
        "$KV.DROVER_STATE.default.a",
        "$KV.DROVER_HOSTS.h1",
        "$JS.API.INFO",
        "$JS.API.STREAM.INFO.DROVER_EVENTS",
        "$JS.API.STREAM.PURGE.DROVER_EVENTS",
        "$JS.API.STREAM.DELETE.DROVER_EVENTS",
        "$JS.API.CONSUMER.CREATE.DROVER_EVENTS",
        "$JS.API.DIRECT.GET.DROVER_EVENTS",
        "$SYS.REQ.SERVER.PING",
        "$SRV.PING",
        "_INBOX.all.x",
        "_R_.abc.def",
    ] {
        tried.publish(stranger, "stranger", subject).await;
    }
    for subject in [
        ">",
        "drover.v1.>",
        "drover.v1.cmd.>",
        "drover.v1.cmd.default.vm.a.*",
        "drover.v1.io.default.*",
        "drover.v1.evt.>",
        "drover.v1.evt.ns.default.>",
        "drover.v1.evt.audit.>",
        "drover.v1.metric.ns.default.>",
        "drover.v1.host.h1.>",
        "$KV.>",
        "$JS.>",
        "$SYS.>",
        "_INBOX.>",
        "_INBOX.all.>",
        "_INBOX.h1.>",
        "_R_.>",
    ] {
        tried.subscribe(stranger, "stranger", subject).await;
    }
    stranger.nats.flush().await.unwrap();
}

/// A tenant asks for what it may ask for, and wants the reply somewhere else. Answers how many of these the host has
/// to refuse: between accounts the server puts a reply subject of its own in the place of each.
async fn replies_are_tried(world: &World, mode: &str, stranger: &Bus, tried: &mut Tried) -> usize {
    let victim = world.enter("all", URL).await;
    let mut inbox = victim.nats.subscribe("_INBOX.all.>").await.unwrap();
    victim.nats.flush().await.unwrap();
    let targets = [
        "drover.v1.cmd.default.vm.a.delete",
        "drover.v1.host.h1.drain",
        "drover.v1.evt.ns.default.vm.a.state",
        "drover.v1.evt.audit.host.h1.done",
        "drover.v1.io.default.0123456789abcdef",
        "$KV.DROVER_VMS.default.a",
        "$JS.API.STREAM.DELETE.DROVER_EVENTS",
    ];
    let list = "drover.v1.cmd.other.vm.list";
    // The server takes reply subjects of its own kinds from nobody.
    let reserved = ["_R_.abc.def", "$JS.ACK.DROVER_EVENTS.x"];
    for target in targets.into_iter().chain(reserved).chain(["_INBOX.all.x.y"]) {
        stranger.nats.publish_with_reply(list, target, "{}".into()).await.unwrap();
    }
    let reserved = reserved.map(|subject| ("stranger".to_owned(), AuditAction::Reply, subject.to_owned()));
    tried.all.extend(reserved);
    let barrier: Value = stranger.ask(list, &json!({})).get().await.unwrap();
    assert_eq!(barrier["vms"], json!([]));
    if mode == "single" {
        // Who knows an inbox, of which each has a random part, may have a reply of one's own sent there.
        let reply = inbox.next().await.unwrap();
        assert_eq!(reply.subject.as_str(), "_INBOX.all.x.y");
        let told: Value = serde_json::from_slice(&reply.payload).unwrap();
        assert_eq!(told["vms"], json!([]), "only of the namespace of the one who asked");
    }
    // Its own requests are answered, and nothing else comes.
    assert_eq!(victim.status("a").await.unwrap().state, VmState::Running);
    while let Some(message) = inbox.next().now_or_never().flatten() {
        assert!(!message.subject.ends_with(".x.y"), "{message:?}");
    }
    if mode == "single" { targets.len() } else { 0 }
}

/// A tenant says that it is somebody else. Answers the ids of its requests.
async fn names_are_tried(stranger: &Bus) -> [RequestId; 2] {
    let ids = [RequestId::generate(), RequestId::generate()];
    let forged = r#"{"acc":"HOSTS","user":"ops","host":"10.9.9.9","id":1,"server":"n1"}"#;
    let create = stranger.ask("drover.v1.cmd.other.vm.create", &json!({"nmae": "a"})).id(ids[0]);
    let create = create.header(headers::REQUEST_INFO, forged).header(headers::NAMESPACE, "default");
    create.refused(ErrorCode::InvalidArgument).await;
    // Without a reply subject as well.
    let mut said = HeaderMap::new();
    said.insert(headers::REQUEST_INFO, forged);
    said.insert(headers::REQUEST_ID, ids[1].to_string().as_str());
    let body = codec::encode(&json!({"nmae": "a"})).unwrap();
    let subject = "drover.v1.cmd.other.vm.create";
    stranger.nats.publish_with_headers(subject, said, body.into()).await.unwrap();
    stranger.nats.flush().await.unwrap();
    ids
}

async fn roles_hold(world: &mut World, mode: &'static str) {
    start(world, mode).await;
    let mut tried = Tried::default();
    let mut follower = follow(world);
    roles_are_tried(world, &mut tried).await;
    audit::told(&world.bus, "the first denials", |event| event.kind == AuditKind::Denied).await;
    // A follower that is killed at any place is followed by the next.
    follower.start_kill().unwrap();
    let stranger = world.enter("stranger", URL).await;
    subjects_are_tried(&stranger, &mut tried).await;
    let refused = replies_are_tried(world, mode, &stranger, &mut tried).await;
    world.observer.expect_malformed("drover.v1.cmd.other.vm.create");
    let ids = names_are_tried(&stranger).await;
    let unknown = KeyPair::new_user();
    let intruder = ConnectOptions::with_nkey(unknown.seed().unwrap()).connect(URL).await;
    assert!(intruder.is_err());
    follower.wait().await.unwrap();

    // Everybody else goes on, and what they do is heard by none of the above.
    let operates = world.enter("operates", URL).await;
    operates.change("a", "delete").await.unwrap();
    let _: Value = stranger.ask("drover.v1.cmd.other.vm.list", &json!({})).get().await.unwrap();
    tried.got_nothing();
    let logs = events::log(&world.bus).await;
    assert_eq!(logs.len(), 1, "no VM but one has a log");

    told_by_the_host(world, mode, refused, ids).await;
    told_by_the_server(world, mode, &tried, &unknown.public_key()).await;
    the_command_shows_it(world).await;
}

/// What hosts did and refused, with the one who asked: as the server says, where that is between accounts, and as it
/// says of itself within one.
async fn told_by_the_host(world: &World, mode: &str, refused: usize, ids: [RequestId; 2]) {
    let ops = &world.bus;
    for (by, verb) in [("all", "create"), ("operates", "delete")] {
        let key = public_key(world, by);
        let event = audit::told(ops, &format!("{verb} by {by}"), |event| {
            let user = event.caller.user.as_deref();
            event.kind == AuditKind::Done
                && event.verb.as_deref() == Some(verb)
                && event.subject.contains(".cmd.")
                && user == Some(if mode == "single" { by } else { &key })
        })
        .await;
        assert_eq!(event.namespace.as_ref().map(Token::as_str), Some("default"));
        assert!(event.request_id.is_some(), "{event:?}");
        assert_eq!(event.caller.verified, mode == "tenants", "{event:?}");
        assert_eq!(event.caller.account.as_deref(), (mode == "tenants").then_some("default"));
    }
    until("the audit tells of each reply subject that is none", async || {
        let all = audit::read(ops).await;
        let told = all.iter().filter(|event| event.error == Some(ErrorCode::PermissionDenied));
        (told.count() == refused).then_some(())
    })
    .await;
    let key = public_key(world, "stranger");
    for (n, id) in ids.into_iter().enumerate() {
        let event = audit::told(ops, &format!("request {id}"), |event| event.request_id == Some(id)).await;
        assert_eq!((event.kind, event.error), (AuditKind::Refused, Some(ErrorCode::InvalidArgument)));
        assert_eq!(event.namespace.as_ref().map(Token::as_str), Some("other"));
        let (named, by) = (event.caller.user.as_deref(), event.caller.account.as_deref());
        match (mode, n) {
            ("tenants", _) => assert_eq!((named, by), (Some(&*key), Some("other")), "{event:?}"),
            // The inbox says who it was.
            (_, 0) => assert_eq!((named, by), (Some("stranger"), None), "{event:?}"),
            // Nothing does; what it says of itself is told as that.
            _ => assert_eq!((named, by), (Some("ops"), Some("HOSTS")), "{event:?}"),
        }
        assert_eq!(event.caller.verified, mode == "tenants" && n == 0, "{event:?}");
    }
}

/// Each thing that the server kept from somebody is in the audit once, in the order of its log.
async fn told_by_the_server(world: &World, mode: &str, tried: &Tried, unknown: &str) {
    let log = world.path("server.log");
    let login = world.login("watch");
    let mut args = vec!["bus", "audit", log.to_str().unwrap(), "--once"];
    args.extend(login.iter().map(String::as_str));
    let told = world.drover(&args).await;
    assert!(told.status.success(), "{told:?}");
    let all = audit::read(&world.bus).await;
    // The client that the world began with knocks without a name until the end, and so only so much of it is told.
    let named = |event: &&AuditEvent| event.caller.user.is_some();
    let denied: Vec<&AuditEvent> =
        all.iter().filter(|event| event.kind == AuditKind::Denied).filter(named).collect();
    let text = fs::read_to_string(&log).unwrap();
    let lines = text.lines().filter(|line| line.contains(" Violation ") || line.contains("error - Nkey "));
    assert_eq!(denied.len(), lines.count(), "{denied:#?}\n{text}");
    for (who, action, subject) in &tried.all {
        let key = public_key(world, who);
        let account = match mode {
            "single" => "HOSTS",
            _ if who == "stranger" => "other",
            _ => "default",
        };
        let of = |event: &&&AuditEvent| (event.action, &event.subject) == (*action, subject);
        let found = denied.iter().filter(of).find(|event| event.caller.user.as_deref() == Some(&key));
        let event = found.unwrap_or_else(|| panic!("{who} {action:?} {subject} is not in {denied:#?}"));
        assert_eq!(event.caller.account.as_deref(), Some(account), "{event:?}");
        assert!(event.caller.verified && event.reporter.as_str() == "n1", "{event:?}");
    }
    let logins = denied.iter().filter(|event| event.action == AuditAction::Connect);
    let login = logins.clone().find(|event| event.caller.user.as_deref() == Some(unknown));
    let login = login.unwrap_or_else(|| panic!("{unknown} is not in {logins:#?}\n{text}"));
    assert!(!login.caller.verified, "{login:?}");
}

/// Admins read it with a command; to tenants the server does not give it.
async fn the_command_shows_it(world: &World) {
    let key = public_key(world, "stranger");
    let ops = world.login("ops");
    let mut args = vec!["audit", "-o", "json", "--kind", "denied", "--by", &key];
    args.extend(ops.iter().map(String::as_str));
    let shown = world.drover(&args).await;
    assert!(shown.status.success(), "{shown:?}");
    let lines = String::from_utf8(shown.stdout).unwrap();
    let first: Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    assert_eq!(first["caller"]["user"], json!(key));
    assert_eq!(first["reporter"], "n1");
    let stranger = world.login("stranger");
    let args: Vec<&str> = ["audit"].into_iter().chain(stranger.iter().map(String::as_str)).collect();
    let refused = world.drover(&args).await;
    assert_eq!(refused.status.code(), Some(5), "{refused:?}");
    assert!(refused.stdout.is_empty());
}

#[test]
fn roles_hold_in_one_account() {
    run("roles_hold_in_one_account", Options::down(), async |world| roles_hold(world, "single").await);
}

#[test]
fn roles_hold_between_accounts() {
    run("roles_hold_between_accounts", Options::down(), async |world| roles_hold(world, "tenants").await);
}
