//! Every way in which a server can ask who connects: the host comes in, is refused without harm to its VMs,
//! says which setting is wrong, and comes in again when the server takes it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use drover_tests::client::Bus;
use drover_tests::logins::{self, Login};
use drover_tests::wait::until;
use drover_tests::world::{Options, URL, World, run};
use serde_json::{Value, json};

/// The host logs in by `right`; a server that takes only `wrong` refuses it.
async fn in_and_out(world: &mut World, right: &Login, wrong: &Login) {
    let mut config = world.config();
    for (key, value) in right.settings.as_object().unwrap() {
        config["bus"][key] = value.clone();
    }
    world.configure(&config);
    let enter = async |login: &Login| Bus { nats: login.options().connect(URL).await.unwrap() };

    // The host is there first and finds the server later.
    world.start();
    world.nats_rules.clone_from(&right.rules);
    world.start_nats().await;
    world.bus = enter(right).await;
    world.ready().await;
    let bus = world.bus.clone();
    let vm = bus.up("a").await;
    let vmms = world.vmms(vm.vm_id);

    // The server takes somebody else only.
    world.stop_nats().await;
    world.nats_rules.clone_from(&wrong.rules);
    let before = world.told().len();
    world.start_nats().await;
    let name = right.name;
    until(&format!("{name}: the refusal names the setting"), async || {
        world.told()[before..].contains(right.names).then_some(())
    })
    .await;
    assert_eq!(world.vmms(vm.vm_id), vmms, "{name}: a refusal harms no VM");

    // And takes the host again.
    world.stop_nats().await;
    world.nats_rules.clone_from(&right.rules);
    world.start_nats().await;
    world.bus = enter(right).await;
    world.ready().await;
    let now = world.bus.until("a", "running", |vm| vm.vmm_pid.is_some()).await;
    assert_eq!((now.vm_id, world.vmms(vm.vm_id)), (vm.vm_id, vmms), "{name}");
    let pong: Value = world.bus.ask("vm.a.guest.ping", &json!({})).get().await.unwrap();
    assert!(pong.is_object(), "{name}: {pong}");
    world.bus.change("a", "delete").await.unwrap();
    assert!(!world.told().contains(&right.secret), "{name}: the log has the secret");
}

fn world(test: &'static str, logins: fn(&World) -> (Login, Login)) {
    let options = Options::down();
    run(test, options, async move |world| {
        let (right, wrong) = logins(world);
        in_and_out(world, &right, &wrong).await;
    });
}

#[test]
fn a_host_logs_in_with_a_password() {
    world("a_host_logs_in_with_a_password", |world| {
        let dir = world.path("");
        (logins::password(&dir, "open-sesame"), logins::password(&dir, "changed"))
    });
}

#[test]
fn a_host_logs_in_with_a_token() {
    world("a_host_logs_in_with_a_token", |world| {
        let dir = world.path("");
        (logins::token(&dir, "t0k3n-of-ours"), logins::token(&dir, "t0k3n-of-others"))
    });
}

#[test]
fn a_host_logs_in_with_an_nkey() {
    world("a_host_logs_in_with_an_nkey", |world| {
        let dir = world.path("");
        (logins::nkey(&dir), logins::nkey(&dir))
    });
}

#[test]
fn a_host_logs_in_with_credentials() {
    world("a_host_logs_in_with_credentials", |world| {
        let dir = world.path("");
        (logins::credentials(&dir), logins::credentials(&dir))
    });
}

#[test]
fn a_host_logs_in_over_tls() {
    world("a_host_logs_in_over_tls", |world| {
        let dir = world.path("");
        (logins::tls(&dir, "ours", false), logins::tls(&dir, "other", false))
    });
}

#[test]
fn a_host_logs_in_over_mutual_tls() {
    world("a_host_logs_in_over_mutual_tls", |world| {
        let dir = world.path("");
        (logins::tls(&dir, "ours", true), logins::tls(&dir, "other", true))
    });
}
