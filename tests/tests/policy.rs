//! What a guest may be asked for: by the VM's spec, and by the guest's own owner, whom the host cannot overrule.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::fs;

use drover_schemas::audit::{AuditEvent, AuditKind};
use drover_schemas::body::guest::ExecReply;
use drover_schemas::guest::InfoResult;
use drover_schemas::state::VmState;
use drover_schemas::stream::{Channel, StreamEnd, StreamFrame};
use drover_schemas::{ErrorBody, ErrorCode, RequestId};
use drover_tests::audit::told;
use drover_tests::client::Bus;
use drover_tests::stream::Stream;
use drover_tests::wait::until;
use drover_tests::world::{Options, World, run};
use serde_json::{Value, json};

async fn up(bus: &Bus, agent: Value) {
    let id = RequestId::generate();
    let body = json!({"name": "web", "spec": {"agent": agent}, "wait": "agent"});
    let _: Value = bus.insist("vm.create", &body, id).await.unwrap_or_else(|e| panic!("create: {e}"));
}

async fn ask(bus: &Bus, verb: &str, body: Value) -> Result<Value, ErrorBody> {
    let ask = bus.ask(&format!("vm.web.guest.{verb}"), &body).id(RequestId::generate());
    ask.get().await.map_err(|failure| match failure {
        drover_tests::client::Failure::Coded(error) => error,
        other => panic!("{verb}: {other}"),
    })
}

async fn sh(bus: &Bus, script: &str) {
    let body = json!({"argv": ["sh", "-c", script]});
    let reply: ExecReply = bus.ask("vm.web.guest.exec", &body).get().await.unwrap();
    let ExecReply::Result(result) = reply else { panic!("{reply:?}") };
    assert_eq!(result.exit_code, Some(0), "{script}: {result:?}");
}

#[track_caller]
fn denied<T: std::fmt::Debug>(by: &str, result: Result<T, ErrorBody>) -> ErrorBody {
    let error = result.unwrap_err();
    assert_eq!(
        (error.code, error.details.get("policy").map(String::as_str)),
        (ErrorCode::PermissionDenied, Some(by)),
        "{error}"
    );
    error
}

#[test]
fn a_spec_says_what_its_guest_is_asked_for_and_the_audit_tells_who_tried() {
    let test = "a_spec_says_what_its_guest_is_asked_for_and_the_audit_tells_who_tried";
    run(test, Options::default(), async |world| {
        let bus = world.bus.clone();
        let wrong = json!({"name": "web", "spec": {"agent": {"allow": ["exce"]}}});
        let error = bus.ask("vm.create", &wrong).id(RequestId::generate());
        let error = error.refused(ErrorCode::InvalidArgument).await;
        assert!(error.message.contains("did you mean \"exec\"?"), "{error}");

        up(&bus, json!({"allow": ["ping", "info", "exec", "stat", "shutdown"], "deny": ["shutdown"]})).await;
        let spec = bus.status("web").await.unwrap().spec.unwrap();
        let allowed: Vec<_> = spec.agent.allow.unwrap().into_iter().collect();
        assert_eq!(allowed, ["exec", "info", "ping", "stat"]);
        ask(&bus, "ping", json!({})).await.unwrap();
        ask(&bus, "stat", json!({"path": "/etc"})).await.unwrap();
        for verb in ["health", "put", "get", "rm", "runs", "unpack", "shutdown"] {
            denied("spec.agent", ask(&bus, verb, json!({"path": "/etc/motd"})).await);
        }
        let secret = "s3cr3t-4a7f";
        let body = json!({"argv": ["env", secret], "env": {"TOKEN": secret}, "stdin": secret, "user": "0"});
        let _ = ask(&bus, "exec", body).await;

        let by_verb = |verb: &'static str| move |event: &AuditEvent| event.verb.as_deref() == Some(verb);
        let refused = told(&bus, "the refusal", by_verb("put")).await;
        assert_eq!((refused.kind, refused.error), (AuditKind::Refused, Some(ErrorCode::PermissionDenied)));
        assert_eq!(refused.target.unwrap().path.as_deref(), Some("/etc/motd"));
        let looked = told(&bus, "a look at a file", by_verb("stat")).await;
        assert_eq!((looked.kind, looked.target.unwrap().line().as_str()), (AuditKind::Done, "path=/etc"));
        let ran = told(&bus, "the command", by_verb("exec")).await;
        assert!(!format!("{ran:?}").contains(secret), "{ran:?}");
        assert_eq!(ran.target.unwrap().line(), "program=env user=0");
        // The guest's own log has the same, and neither has the secret.
        let log = until("the guest's log", async || {
            let logs = world.drover(&["vm", "logs", "web"]).await;
            Some(String::from_utf8_lossy(&logs.stdout).into_owned())
                .filter(|log| log.contains("exec program="))
        })
        .await;
        assert!(log.contains(": exec program=env user=0 id=") && !log.contains(secret), "{log}");

        // What the spec keeps from the agent, the power button does.
        bus.change("web", "shutdown").await.unwrap();
        bus.until("web", "is off", |vm| vm.state == VmState::Stopped).await;
    });
}

#[test]
fn the_guests_owner_says_what_its_host_may_do_and_the_host_cannot_widen_it() {
    let test = "the_guests_owner_says_what_its_host_may_do_and_the_host_cannot_widen_it";
    run(test, Options::default(), async |world| {
        let bus = world.bus.clone();
        up(&bus, json!({})).await;
        let info: InfoResult = serde_json::from_value(ask(&bus, "info", json!({})).await.unwrap()).unwrap();
        assert_eq!(info.allowed, None);
        let policy = "exec user=nobody\\nput /srv/app\\nrm\\nunpack\\nmkdir\\nget /var/log\\ninfo\\n";
        sh(
            &bus,
            &format!(
                "mkdir -p /srv/app /var/log /etc/drover-agent && chmod 755 /etc/drover-agent /srv/app && \
                 echo line > /var/log/a && ln -s /etc/passwd /var/log/b && ln -s /etc/drover-agent /srv/app/out && \
                 printf '{policy}' > /etc/drover-agent/policy"
            ),
        )
        .await;

        // What it names.
        let info: InfoResult = serde_json::from_value(ask(&bus, "info", json!({})).await.unwrap()).unwrap();
        let allowed = info.allowed.unwrap();
        for (verb, is_allowed) in [("ping", true), ("get", true), ("shutdown", false), ("attach", false)] {
            assert_eq!(allowed.iter().any(|a| a == verb), is_allowed, "{verb} in {allowed:?}");
        }
        // A guest of processes has one user only, so there the command itself may fail; not by the policy.
        let ran = ask(&bus, "exec", json!({"argv": ["id", "-u"], "user": "nobody"})).await;
        assert!(ran.as_ref().map_or_else(|e| !e.details.contains_key("policy"), |_| true), "{ran:?}");
        fs::write(world.path("new"), "new").unwrap();
        let new = world.path("new").display().to_string();
        let copies = async |world: &World, to: &str| world.drover(&["vm", "cp", &new, to]).await;
        // The command line looks first whether it goes on with a copy, which this policy does not allow; `put` itself it does.
        let put = |path: &str| json!({"path": path, "size_bytes": 0});
        let end = async |path: &str| {
            let mut stream = Stream::open(&bus, "vm.web.guest.put", &put(path)).await.unwrap();
            stream
                .send(&StreamFrame {
                    ch: Some(Channel::Data),
                    off: Some(0),
                    eof: true,
                    ..StreamFrame::default()
                })
                .await;
            match stream.find(|frame| frame.end.is_some()).await.end {
                Some(StreamEnd::Error(error)) => Err(error),
                end => Ok(end),
            }
        };
        end("/srv/app/new").await.unwrap();
        denied("guest", end("/srv/app/out/new").await);
        denied("guest", end("/srv/new").await);
        let read = world.drover(&["vm", "cp", "web:/var/log/a", "-"]).await;
        assert_eq!((read.status.code(), read.stdout.as_slice()), (Some(0), &b"line\n"[..]), "{read:?}");

        // What it does not: in its name, by another user, over a link, upwards, and by what else writes.
        denied("guest", ask(&bus, "health", json!({})).await);
        for body in [
            json!({"argv": ["id"]}),
            json!({"argv": ["id"], "user": "root"}),
            json!({"argv": ["id"], "user": "nobody", "groups": ["0"]}),
            json!({"argv": ["id"], "detach": true}),
        ] {
            denied("guest", ask(&bus, "exec", body).await);
        }
        let copied = copies(world, "web:/etc/drover-agent/policy").await;
        assert_eq!(copied.status.code(), Some(7), "{copied:?}");
        let linked = world.drover(&["vm", "cp", "web:/var/log/b", "-"]).await;
        assert!(linked.stdout.is_empty() && linked.status.code() == Some(7), "{linked:?}");
        for path in ["/etc/drover-agent", "/etc/drover-agent/policy", "/srv/app/out/policy", "/etc"] {
            let body = json!({"path": path, "recursive": true});
            denied("guest", ask(&bus, "rm", body).await);
        }
        denied("guest", ask(&bus, "mkdir", json!({"path": "/etc/drover-agent/x/y", "parents": true})).await);
        // Refused shutdowns leave the power button.
        denied("guest", ask(&bus, "shutdown", json!({})).await);
        bus.change("web", "shutdown").await.unwrap();
        bus.until("web", "is off", |vm| vm.state == VmState::Stopped).await;
    });
}
