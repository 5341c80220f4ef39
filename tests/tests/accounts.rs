//! Users of guests and their SSH keys, made over the link.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::fs;
use std::time::Duration;

use drover_schemas::audit::AuditEvent;
use drover_schemas::body::guest::{ExecReply, ExecResult};
use drover_schemas::body::status::AgentState;
use drover_schemas::body::vm::ChangeReply;
use drover_schemas::guest::{
    AccountChange, KeysChangeResult, KeysResult, PasswordState, UserAddResult, UserInfo, UserRmResult,
};
use drover_schemas::{ErrorBody, ErrorCode, RequestId};
use drover_tests::audit::{read, told};
use drover_tests::client::Bus;
use drover_tests::clients;
use drover_tests::wait::until_within;
use drover_tests::world::{Options, URL, World, run};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// For a boot in software emulation, with others beside it on a small machine.
const BOOT: Duration = Duration::from_secs(300);
/// For work of a guest in software emulation.
const WORK: Duration = Duration::from_secs(120);
/// Made by `ssh-keygen`; who has the other halves is nobody.
const KEYS: [&str; 2] = [
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB0t2wNEDgObt4SS0JgeZJW9rCDnDGZYXFVhiDmJtqz/ first",
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBERERERERERERERERERERERERERERERERERERERERER second",
];
const PRINT: &str = "SHA256:WYG6zvbH59bdeHW+XWQBiDAbkf5SuzBExGuc0FF94fE";
const HASH: &str = "$6$c0mm0nsa1t$Zm9vYmFyYmF6cXV4Zm9vYmFyYmF6cXV4";

async fn json<R: DeserializeOwned>(world: &World, args: &[&str]) -> R {
    let text = world.printed(&[&["-o", "json"], args].concat()).await;
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{args:?}: {e}: {text}"))
}

/// A command that is refused, and with what.
async fn refused(world: &World, args: &[&str], code: ErrorCode) -> ErrorBody {
    let done = world.drover(&[&["-o", "json"], args].concat()).await;
    assert!(!done.status.success(), "{args:?}: {done:?}");
    let error: ErrorBody = serde_json::from_slice(&done.stderr).unwrap_or_else(|e| panic!("{e}: {done:?}"));
    assert_eq!(error.code, code, "{args:?}: {error:?}");
    error
}

async fn exec(bus: &Bus, body: Value) -> ExecResult {
    match bus.ask("vm.web.guest.exec", &body).id(RequestId::generate()).get().await.unwrap() {
        ExecReply::Result(result) => result,
        other => panic!("{other:?}"),
    }
}

/// What a script of a user's prints; it succeeds.
async fn says(bus: &Bus, user: &str, script: &str) -> String {
    let done = exec(bus, json!({"argv": ["sh", "-c", script], "user": user})).await;
    assert_eq!(done.exit_code, Some(0), "{script}: {done:?}");
    String::from_utf8_lossy(done.stdout.unwrap_or_default().as_slice()).trim_end().to_owned()
}

#[test]
fn users_and_keys_of_a_guest_come_and_go() {
    let options = Options { guest: "qemu", budget: Duration::from_secs(900), ..Options::default() };
    run("users_and_keys_of_a_guest_come_and_go", options, async |world| {
        let bus = world.bus.clone();
        let agent = json!({"enabled": true, "ready_timeout_ms": 300_000});
        let body = json!({"name": "web", "spec": {"template": "linux-microvm", "agent": agent}});
        let ask = bus.ask("vm.create", &body).id(RequestId::generate()).within(Duration::from_secs(100));
        ask.get::<ChangeReply>().await.unwrap_or_else(|e| panic!("create: {e}"));
        until_within(BOOT, "the agent", async || {
            bus.status("web").await.ok().filter(|vm| vm.agent.state == AgentState::Ready)
        })
        .await;
        users_are_made_and_changed(world, &bus).await;
        keys_are_laid(world, &bus).await;
        the_owner_of_the_guest_decides(world, &bus).await;
        let env = [("DROVER_URL", URL.to_owned()), ("DROVER_VM", "web".to_owned())];
        clients::passes("python3", &["-W", "ignore", "test_accounts.py"], "python", &env, WORK).await;
        users_go(world, &bus).await;
        bus.change("web", "delete").await.unwrap();
    });
}

async fn users_are_made_and_changed(world: &World, bus: &Bus) {
    let add = ["vm", "user", "add", "web", "app", "--groups", "users,daemon", "--gecos", "The app"];
    let made: UserAddResult = json(world, &add).await;
    assert_eq!((made.change, made.user.uid, made.home_made), (AccountChange::Made, 1001, true));
    let who = says(bus, "app", "id -un; id -Gn; cd; pwd; stat -c '%a %U %G' .").await;
    assert_eq!(who, "app\napp daemon users\n/home/app\n700 app app");
    let again: UserAddResult = json(world, &add).await;
    assert_eq!((again.change, &again.user), (AccountChange::None, &made.user));
    // Once for each request, however often that is sent.
    let id = RequestId::generate();
    let once = async || {
        let ask = bus.ask("vm.web.guest.user_add", &json!({"user": "twin"})).id(id);
        ask.get::<UserAddResult>().await.unwrap()
    };
    assert_eq!((once().await.change, once().await.change), (AccountChange::Made, AccountChange::Made));
    let error =
        refused(world, &["vm", "user", "add", "web", "app", "--uid", "1500"], ErrorCode::Conflict).await;
    assert_eq!(error.details["field"], "uid");
    refused(world, &["vm", "user", "add", "web", "a:b"], ErrorCode::InvalidArgument).await;
    refused(world, &["vm", "user", "add", "web", "app", "--groups", "none"], ErrorCode::NotFound).await;
    refused(world, &["vm", "user", "add", "web", "app", "--sudo"], ErrorCode::Unsupported).await;

    // A hash reaches the guest's file and nothing else.
    let (file, set) =
        (world.path("hash"), ["vm", "user", "add", "web", "app", "--groups", "", "--password-hash-file"]);
    fs::write(&file, format!("{HASH}\n")).unwrap();
    says(bus, "root", "touch /etc/shadow && chmod 600 /etc/shadow").await;
    let changed: UserAddResult = json(world, &[&set[..], &[file.to_str().unwrap()]].concat()).await;
    assert_eq!((changed.user.password, changed.user.groups.len()), (PasswordState::Set, 0));
    let line = says(bus, "root", "grep ^app: /etc/passwd; grep ^app: /etc/shadow | cut -d: -f2").await;
    assert_eq!(line, format!("app:x:1001:1001:The app:/home/app:/bin/sh\n{HASH}"));
    let is_it = |event: &AuditEvent| event.verb.as_deref() == Some("user_add");
    let heard = told(bus, "the user", is_it).await;
    assert_eq!(heard.target.unwrap().line(), "user=app");
    let seen = [
        format!("{:?}", read(bus).await),
        world.printed(&["events", "--since", "1"]).await,
        world.printed(&["vm", "logs", "web"]).await,
        world.printed(&["vm", "explain", "web"]).await,
        world.told(),
    ];
    for text in seen {
        assert!(!text.contains("c0mm0nsa1t"), "{text}");
    }
    let users: Vec<UserInfo> = json(world, &["vm", "user", "ls", "web"]).await;
    let names: Vec<_> = users.iter().map(|user| (user.name.as_str(), user.uid)).collect();
    assert_eq!(names, [("app", 1001), ("root", 0), ("twin", 1002), ("user", 1000)]);
    let table = world.printed(&["vm", "user", "ls", "web", "--all"]).await;
    assert!(table.starts_with("USER") && table.contains("daemon"), "{table}");
}

async fn keys_are_laid(world: &World, bus: &Bus) {
    let files = ["first.pub", "second.pub"].map(|name| world.path(name).display().to_string());
    for (file, key) in files.iter().zip(KEYS) {
        fs::write(file, format!("# of a test\n{key}\n")).unwrap();
    }
    let add = ["vm", "keys", "add", "web", "app", "--file", &files[0]];
    let done: KeysChangeResult = json(world, &add).await;
    assert_eq!((done.added[0].fingerprint.as_str(), done.total, done.warnings.len()), (PRINT, 1, 0));
    let stat = "cd /home/app/.ssh && stat -c '%a %U %G' . authorized_keys && cat authorized_keys";
    assert_eq!(says(bus, "root", stat).await, format!("700 app app\n600 app app\n{}", KEYS[0]));
    says(bus, "app", "echo '# my own' >> ~/.ssh/authorized_keys").await;
    let done: KeysChangeResult = json(world, &[&add[..], &["--file", &files[1]]].concat()).await;
    assert_eq!((done.added.len(), done.total), (1, 2));
    let listed: KeysResult = json(world, &["vm", "keys", "ls", "web", "app"]).await;
    let comments: Vec<_> = listed.keys.iter().map(|key| key.comment.as_str()).collect();
    assert_eq!((comments, listed.keys[0].bits), (vec!["first", "second"], 256));
    let done: KeysChangeResult = json(world, &["vm", "keys", "rm", "web", "app", PRINT]).await;
    assert_eq!((done.removed, done.total), (1, 1));
    refused(world, &["vm", "keys", "rm", "web", "app", PRINT], ErrorCode::NotFound).await;
    let set: KeysChangeResult = json(world, &["vm", "keys", "set", "web", "app", "--file", &files[0]]).await;
    assert_eq!((set.added.len(), set.removed, set.total), (1, 1, 1));
    assert_eq!(
        says(bus, "root", "cat /home/app/.ssh/authorized_keys").await,
        format!("# my own\n{}", KEYS[0])
    );
    let with_options = format!("command=\"id\" {}", KEYS[1]);
    let refusal = ["vm", "keys", "add", "web", "app", "--key", &with_options];
    refused(world, &refusal, ErrorCode::InvalidArgument).await;
    json::<KeysChangeResult>(world, &[&refusal[..], &["--allow-options"]].concat()).await;
    refused(world, &["vm", "keys", "add", "web", "app", "--key", "ssh-rsa AAAA"], ErrorCode::InvalidArgument)
        .await;
    let table = world.printed(&["vm", "keys", "ls", "web", "app"]).await;
    assert!(table.contains(PRINT) && table.contains("command="), "{table}");

    // Wherever a user leads the agent, it has no more rights than that user.
    says(bus, "app", "mv ~/.ssh ~/before && ln -s /root ~/.ssh").await;
    assert_eq!(refused(world, &add, ErrorCode::Conflict).await.details["cause"], "link");
    says(bus, "app", "rm ~/.ssh && mkdir ~/.ssh && ln -s /etc/passwd ~/.ssh/authorized_keys").await;
    assert_eq!(refused(world, &add, ErrorCode::Conflict).await.details["cause"], "link");
    says(bus, "app", "rm -r ~/.ssh && mv ~/before ~/.ssh").await;
    let root: KeysChangeResult =
        json(world, &["vm", "keys", "add", "web", "root", "--file", &files[1]]).await;
    assert_eq!((root.path.as_str(), root.total), ("/root/.ssh/authorized_keys", 1));
}

async fn the_owner_of_the_guest_decides(world: &World, bus: &Bus) {
    let policy = "exec\\nkeys user=app\\nkeys_change user=app\\nuser_add user=fresh\\n";
    let script = format!("mkdir -p /etc/drover-agent && printf '{policy}' > /etc/drover-agent/policy");
    says(bus, "root", &script).await;
    json::<KeysResult>(world, &["vm", "keys", "ls", "web", "app"]).await;
    for args in [
        &["vm", "keys", "ls", "web", "root"][..],
        &["vm", "keys", "add", "web", "root", "--key", KEYS[0]],
        &["vm", "user", "add", "web", "app"],
        &["vm", "user", "add", "web", "fresh", "--groups", "daemon"],
        &["vm", "user", "ls", "web"],
        &["vm", "user", "rm", "web", "app"],
    ] {
        assert_eq!(refused(world, args, ErrorCode::PermissionDenied).await.details["policy"], "guest");
    }
    let made: UserAddResult = json(world, &["vm", "user", "add", "web", "fresh"]).await;
    assert_eq!(made.change, AccountChange::Made);
    says(bus, "root", "rm /etc/drover-agent/policy").await;
}

async fn users_go(world: &World, bus: &Bus) {
    let run = exec_detached(bus, json!({"argv": ["sleep", "1000"], "user": "app", "detach": true})).await;
    let remove = ["vm", "user", "rm", "web", "app", "--remove-home"];
    assert_eq!(refused(world, &remove, ErrorCode::Conflict).await.details["cause"], "processes");
    let gone: UserRmResult = json(world, &[&remove[..], &["--force"]].concat()).await;
    assert_eq!((gone.uid, gone.home.as_deref(), gone.killed), (1001, Some("/home/app"), 1), "{run}");
    let left = "grep -c app: /etc/passwd /etc/group /etc/shadow; ls /home";
    let done = exec(bus, json!({"argv": ["sh", "-c", left]})).await;
    let text = String::from_utf8_lossy(done.stdout.unwrap_or_default().as_slice()).into_owned();
    assert!(text.contains("/etc/passwd:0\n/etc/group:0\n/etc/shadow:0") && !text.contains("app\n"), "{text}");
    refused(world, &remove, ErrorCode::NotFound).await;
    for user in ["root", "daemon", "nobody"] {
        let error = refused(world, &["vm", "user", "rm", "web", user], ErrorCode::Conflict).await;
        assert_eq!(error.details["cause"], "system_user");
    }
    // While the guest's own programs change users, the agent waits its turn.
    let users = says(bus, "root", "cat /etc/passwd").await;
    assert!(users.contains("root:x:0:0:root:/root:/bin/sh") && users.contains("nobody:x:65534"), "{users}");
}

async fn exec_detached(bus: &Bus, body: Value) -> RequestId {
    match bus.ask("vm.web.guest.exec", &body).id(RequestId::generate()).get().await.unwrap() {
        ExecReply::Run(run) => run.run,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_guest_of_processes_has_root_and_its_keys() {
    run("a_guest_of_processes_has_root_and_its_keys", Options::default(), async |world| {
        let bus = world.bus.clone();
        let body = json!({"name": "web", "spec": {"agent": {"deny": ["user_rm"]}}, "wait": "agent"});
        let _: Value = bus.insist("vm.create", &body, RequestId::generate()).await.unwrap();
        let done: KeysChangeResult =
            json(world, &["vm", "keys", "add", "web", "root", "--key", KEYS[0]]).await;
        assert_eq!((done.path.as_str(), done.total), ("/root/.ssh/authorized_keys", 1));
        let users: Vec<UserInfo> = json(world, &["vm", "user", "ls", "web"]).await;
        assert_eq!(users.len(), 1);
        // Its host's kernel gives it one user only.
        refused(world, &["vm", "user", "add", "web", "app"], ErrorCode::Unsupported).await;
        assert_eq!(json::<Vec<UserInfo>>(world, &["vm", "user", "ls", "web"]).await, users);
        let error = refused(world, &["vm", "user", "rm", "web", "app"], ErrorCode::PermissionDenied).await;
        assert_eq!(error.details["policy"], "spec.agent");
        bus.change("web", "delete").await.unwrap();
    });
}
