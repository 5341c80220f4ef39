//! Bodies of the work that a guest does for its host.

use drover_schemas::blob::Blob;
use drover_schemas::body::guest::{ClockChange, ClockReply, ClockRequest};
use drover_schemas::codec;
use drover_schemas::guest::*;
use drover_schemas::secret::Secret;

fn body<T>(name: &str, value: &T)
where
    T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug,
{
    super::check("guest", &format!("body-{name}"), value, codec::decode::<T>);
}

#[test]
fn bodies_of_a_freeze() {
    body("freeze", &FreezeRequest { timeout_ms: Some(5_000), mounts: Some(vec!["/srv".into()]) });
    let frozen =
        vec![FrozenMount { mount: "/srv".into(), fs_type: "ext4".into(), device: "/dev/vda".into() }];
    let skipped = vec![SkippedMount { mount: "/mnt".into(), reason: "it is not local".into() }];
    let hooks = vec!["10-database".to_owned()];
    let (took_ms, thaws_in_ms) = (12, 4_990);
    body(
        "freeze-result",
        &FreezeResult { frozen: frozen.clone(), skipped: skipped.clone(), hooks, took_ms, thaws_in_ms },
    );
    let thaw = ThawResult {
        thawed: vec!["/srv".into()],
        by: ThawedBy::Deadline,
        frozen_ms: 5_000,
        failed: skipped,
        hooks_failed: vec!["10-database: exit status 1".into()],
        ended_unix_ms: 1_700_000_000_000,
    };
    body("thaw-result", &thaw);
    let (state, thaws_in_ms) = (FreezeState::Frozen, Some(100));
    body("frozen-result", &FrozenResult { state, frozen, thaws_in_ms, last: Some(thaw) });
}

#[test]
fn bodies_of_other_work() {
    body("clock", &MoveClockRequest { move_us: Some(-1_500_000), step: true });
    body("clock-result", &MoveClockResult { unix_us: 1_700_000_000_000_000 });
    body("bus-clock", &ClockRequest { set: true, slew_ms: Some(100) });
    body("bus-clock-reply", &ClockReply { ahead_us: -7, error_us: 300, change: ClockChange::Stepped });
    body("online", &OnlineRequest {});
    body(
        "online-result",
        &OnlineResult {
            cpus: 2,
            cpus_added: vec![1],
            memory_bytes: 1 << 30,
            memory_added_bytes: 1 << 27,
            failed: vec!["cpu 3: busy".into()],
        },
    );
    body("trim", &TrimRequest { mounts: Some(vec!["/".into()]) });
    let trimmed = vec![TrimmedMount { mount: "/".into(), trimmed_bytes: 4096 }];
    let skipped = vec![SkippedMount { mount: "/mnt".into(), reason: "it cannot".into() }];
    body("trim-result", &TrimResult { trimmed, skipped });
    body("reseed", &ReseedRequest { entropy: Blob::from(vec![7; 32]) });
    let keep = vec![IdentityPart::SshHostKeys, IdentityPart::CloudInit];
    body("identity", &IdentityRequest { hostname: Some("web-2".into()), keep });
    let (part, outcome) = (IdentityPart::Hostname, PartOutcome::Done);
    body(
        "identity-result",
        &IdentityResult { parts: vec![PartResult { part, outcome, detail: "web-2".into() }] },
    );
}

#[test]
fn bodies_of_the_network() {
    let routes = vec![NetworkRoute { to: "10.0.0.0/8".into(), via: "10.77.0.3".into() }];
    let dns = vec!["10.77.0.1".to_owned()];
    body(
        "network",
        &NetworkRequest {
            mac: "52:54:00:12:34:56".into(),
            addresses: Some(vec!["10.77.0.2/24".into()]),
            gateway: Some("10.77.0.1".into()),
            gateway6: None,
            routes: routes.clone(),
            mtu: Some(1400),
            dns: Some(dns.clone()),
            if_unset: true,
        },
    );
    body(
        "network-ipv6",
        &NetworkRequest {
            mac: "52:54:00:12:34:56".into(),
            addresses: Some(vec!["fd00:77::2/64".into()]),
            gateway6: Some("fd00:77::1".into()),
            ..NetworkRequest::default()
        },
    );
    let before = NetworkState { mtu: 1500, ..NetworkState::default() };
    let after = NetworkState {
        up: true,
        mtu: 1400,
        addresses: vec!["10.77.0.2/24".into()],
        gateway: Some("10.77.0.1".into()),
        gateway6: None,
        routes,
        dns,
    };
    body("network-result", &NetworkResult { interface: "eth0".into(), changed: true, before, after });
}

#[test]
fn bodies_of_users_and_keys() {
    body("users", &UsersRequest { all: true, after: Some("adm".into()) });
    let user = UserInfo {
        name: "web".into(),
        uid: 1001,
        gid: 1001,
        groups: vec!["adm".into()],
        gecos: "Web".into(),
        home: "/home/web".into(),
        shell: "/bin/bash".into(),
        password: PasswordState::None,
    };
    body("users-result", &UsersResult { users: vec![user.clone()], more: true });
    body(
        "user-add",
        &UserAddRequest {
            user: "web".into(),
            uid: Some(1001),
            primary_group: Some("users".into()),
            groups: Some(vec!["adm".into()]),
            gecos: Some("Web".into()),
            home: Some("/srv/web".into()),
            shell: Some("/bin/sh".into()),
            password_hash: Some(Secret::new("$6$salt$hash")),
            no_password: false,
            sudo: Some(false),
        },
    );
    body("user-add-result", &UserAddResult { change: AccountChange::Made, user, home_made: true });
    body("user-rm", &UserRmRequest { user: "web".into(), remove_home: true, force: true });
    body("user-rm-result", &UserRmResult { uid: 1001, home: Some("/home/web".into()), killed: 2 });
    body("keys", &KeysRequest { user: "web".into() });
    let key = AuthorizedKey {
        fingerprint: "SHA256:q7bVc4bn2+9AOfYkwW7h0Hc1W3h6Cbp2AcwCFpZ3q5E".into(),
        kind: "ssh-ed25519".into(),
        bits: 256,
        comment: "web@laptop".into(),
        options: "restrict".into(),
    };
    let warnings = vec!["/home/web can be written by others".to_owned()];
    let path = "/home/web/.ssh/authorized_keys".to_owned();
    let listed = KeysResult {
        path: path.clone(),
        keys: vec![key.clone()],
        other_lines: 1,
        more: true,
        warnings: warnings.clone(),
    };
    body("keys-result", &listed);
    body(
        "keys-change",
        &KeysChangeRequest {
            user: "web".into(),
            add: vec!["ssh-ed25519 AAAA web@laptop".into()],
            remove: vec!["SHA256:q7bVc4bn2+9AOfYkwW7h0Hc1W3h6Cbp2AcwCFpZ3q5E".into()],
            replace: true,
            allow_options: true,
        },
    );
    body("keys-change-result", &KeysChangeResult { path, added: vec![key], removed: 1, total: 1, warnings });
}
