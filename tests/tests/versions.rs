//! Hosts, clients and agents of other versions than this one.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use async_nats::jetstream::{self, stream::Compression};
use drover_schemas::body::events::EventsReadReply;
use drover_schemas::body::guest::ExecReply;
use drover_schemas::body::host::HostRecord;
use drover_schemas::body::status::VmStatus;
use drover_schemas::body::vm::{ChangeReply, ListReply};
use drover_schemas::codec;
use drover_schemas::event::VmEventKind;
use drover_schemas::state::VmState;
use drover_schemas::stream::{Channel, MAX_WINDOW};
use drover_schemas::{ErrorCode, RequestId};
use drover_tests::admin::{ADMIN, alarm_lasts};
use drover_tests::client::Bus;
use drover_tests::events::{alarm, log};
use drover_tests::next::{self, FEATURE, FIELD};
use drover_tests::relay::Relay;
use drover_tests::stream::Stream;
use drover_tests::wait::until;
use drover_tests::world::{Options, URL, World, run};
use serde_json::{Value, json};

/// Two hosts: `h1` of this version and `h2` of the next.
async fn start(world: &mut World) -> Relay {
    let next = Relay::start("127.0.0.1:4302", URL).await;
    next.rule(next::says);
    world.hosts[1].urls = vec![next.url.clone()];
    world.hosts[1].configure(&world.hosts[1].config());
    world.start_nats().await;
    world.hosts.iter_mut().for_each(|host| host.start());
    world.ready().await;
    next
}

/// Creates a VM on a host, whichever host is asked first.
async fn up_on(bus: &Bus, host: &str, name: &str) -> VmStatus {
    let body = json!({"wait": "agent", "spec": {"placement": {"host": host}}});
    let vm = until(&format!("{name} is on {host}"), async || {
        let reply: Result<ChangeReply, _> = bus.create(name, body.clone()).await;
        reply.ok().map(|reply| reply.vm)
    })
    .await;
    assert_eq!(vm.host.as_str(), host);
    vm
}

async fn record(bus: &Bus, host: &str) -> Option<(Value, HostRecord)> {
    let js = async_nats::jetstream::new(bus.nats.clone());
    let row = js.get_key_value("DROVER_HOSTS").await.ok()?.get(host).await.ok()??;
    Some((codec::decode(&row).unwrap(), codec::decode(&row).unwrap()))
}

/// What a client does with a VM, from a command to its deletion.
async fn main_job(world: &World, name: &str) {
    let bus = &world.bus;
    let argv = json!({"argv": ["sh", "-c", "echo hi; exit 3"]});
    let reply: ExecReply = bus.ask(&format!("vm.{name}.guest.exec"), &argv).get().await.unwrap();
    let ExecReply::Result(result) = reply else { panic!("{reply:?}") };
    assert_eq!((result.exit_code, result.stdout.unwrap().as_slice()), (Some(3), &b"hi\n"[..]));
    let body = json!({"argv": ["cat"], "stream": true});
    let mut stream = Stream::open(bus, &format!("vm.{name}.guest.exec"), &body).await.unwrap();
    stream.data(Channel::Stdin, 0, b"over the bus").await;
    let frame = stream.find(|frame| frame.ch == Some(Channel::Stdout) && frame.off == Some(0)).await;
    assert_eq!(frame.data.unwrap().as_slice(), b"over the bus");
    stream.ack(Channel::Stdout, 12, MAX_WINDOW).await;
    stream.cancel().await;
    let (there, back) = (world.path("there"), world.path("back"));
    std::fs::write(&there, vec![7; 300_000]).unwrap();
    let inside = format!("{name}:/root/file");
    for args in [[there.to_str().unwrap(), &*inside], [&*inside, back.to_str().unwrap()]] {
        world.printed(&["vm", "cp", args[0], args[1]]).await;
    }
    assert!(std::fs::read(&there).unwrap() == std::fs::read(&back).unwrap());
    assert_eq!(
        world.printed(&["vm", "exec", name, "--", "echo", "from the command line"]).await,
        "from the command line\n"
    );
    for args in [
        &["vm", "ls"][..],
        &["vm", "get", name],
        &["vm", "logs", name],
        &["vm", "explain", name],
        &["vm", "reboot", name],
    ] {
        world.printed(args).await;
    }
    world.printed(&["vm", "rm", name]).await;
}

/// All events of a VM, as any host reads them. A kind that it does not know is not in its contract.
async fn events(bus: &Bus, name: &str) -> Vec<(u64, VmEventKind)> {
    let reply = bus.ask("events.read", &json!({"vm": name, "limit": 200})).message().await.unwrap();
    let page: EventsReadReply = codec::decode(&reply.payload).unwrap();
    assert!(page.end);
    page.events.into_iter().map(|stored| (stored.event.seq, stored.event.kind)).collect()
}

#[test]
fn hosts_of_this_version_and_the_next_share_a_bus() {
    run(
        "hosts_of_this_version_and_the_next_share_a_bus",
        Options { started: false, ..Options::fleet(2) },
        async |world| {
            let _relay = start(world).await;
            let bus = world.bus.clone();
            // What each offers stands in `info` and in the inventory, and is the same.
            for (host, version) in [("h1", env!("CARGO_PKG_VERSION")), ("h2", next::VERSION)] {
                let info = bus.host_info(host).await.unwrap();
                let (raw, row) = until("the host has a row", async || record(&bus, host).await).await;
                assert_eq!((&*info.version, &*row.version), (version, version));
                assert_eq!(info.features, row.features);
                assert_eq!(info.features.iter().any(|feature| feature == FEATURE), host == "h2");
                assert_eq!(raw.get(FIELD).is_some(), host == "h2", "{raw}");
            }
            let (a, b) = (up_on(&bus, "h1", "a").await, up_on(&bus, "h2", "b").await);
            // Either host answers for the log of both, and knows the name that the other has claimed.
            for (name, unknown) in [("a", false), ("b", true)] {
                let told = until("the agent was told of", async || {
                    Some(events(&bus, name).await).filter(|told| told.len() >= 3)
                })
                .await;
                assert!(told.iter().map(|(seq, _)| *seq).eq(1..=told.len() as u64), "{told:?}");
                assert_eq!(told.iter().any(|(_, kind)| *kind == VmEventKind::Unknown), unknown, "{told:?}");
                assert_eq!(told.iter().any(|(_, kind)| *kind == VmEventKind::Agent), !unknown, "{told:?}");
            }
            for vm in [&a, &b] {
                let twice: Result<ChangeReply, _> = bus.create(vm.name.as_str(), json!({})).await;
                drover_tests::client::refused("a name is taken once", ErrorCode::AlreadyExists, twice);
            }
            main_job(world, "a").await;
            up_on(&bus, "h2", "c").await;
            main_job(world, "c").await;
            // The next version is taken back: this one goes on with what that has left on the bus.
            world.hosts[1].stop_host().await;
            world.hosts[1].urls = vec![URL.to_owned()];
            world.hosts[1].configure(&world.hosts[1].config());
            world.hosts[1].start();
            world.ready().await;
            let vm = bus.until("b", "runs on", |vm| vm.state == VmState::Running).await;
            assert_eq!((vm.vm_id, vm.incarnation), (b.vm_id, b.incarnation));
            main_job(world, "b").await;
            let found: Value = bus.ask("vm.lookup", &json!({"name": "b"})).get().await.unwrap();
            assert_eq!(found["found"], "gone", "{found}");
            let page: ListReply = bus.ask("vm.list", &json!({})).get().await.unwrap();
            assert_eq!(page.vms, []);
        },
    );
}

#[test]
fn a_client_of_the_next_version_is_told_what_this_host_lacks() {
    run("a_client_of_the_next_version_is_told_what_this_host_lacks", Options::default(), async |world| {
        let bus = &world.bus;
        let nested = json!({"name": "a", "spec": {"nics": [{"network": "default", "vlan": 7}]}});
        for (body, field) in
            [(json!({"name": "a", "migrate": true}), "migrate"), (nested, "spec.nics.0.vlan")]
        {
            let error = bus
                .ask("vm.create", &body)
                .id(RequestId::generate())
                .refused(ErrorCode::InvalidArgument)
                .await;
            assert!(
                error.message.contains(&format!("{field:?}")) && error.message.contains("older"),
                "{error}"
            );
        }
        bus.up("a").await;
        let error = bus.ask("vm.a.migrate", &json!({})).refused(ErrorCode::Unsupported).await;
        assert!(error.message.contains("shutdown"), "the verbs that there are: {error}");
        // What the host can do is said in `info`, and where the usual tools look for services.
        let info = bus.host().await.unwrap();
        assert!(
            ["vm.v1", "guest.v1", "events.v1", "streams.v1"]
                .iter()
                .all(|f| info.features.iter().any(|g| f == g))
        );
        let reply = bus.nats.request("$SRV.INFO.drover", "".into()).await.unwrap();
        let service: Value = serde_json::from_slice(&reply.payload).unwrap();
        assert_eq!(service["metadata"]["features"], info.features.join(","));
        assert_eq!(service["version"], info.version);
    });
}

#[test]
fn a_log_that_an_earlier_version_had_compressed_is_told_of_and_mended() {
    let test = "a_log_that_an_earlier_version_had_compressed_is_told_of_and_mended";
    run(test, Options::down(), async |world| {
        world.start_nats().await;
        let js = jetstream::new(world.bus.nats.clone());
        world.printed(&["bus", "init"]).await;
        let mut early = js.get_stream("DROVER_EVENTS").await.unwrap().cached_info().config.clone();
        early.compression = Some(Compression::S2);
        js.update_stream(early).await.unwrap();

        world.configure_with(|config| config["admin"] = json!({"listen": ADMIN}));
        world.start();
        world.ready().await;
        let bus = world.bus.clone();
        let lasts = async || {
            let host = bus.host().await.ok()?;
            Some(host.alarms.iter().any(|alarm| alarm.alarm == "events_compressed"))
        };
        let file = world.path("host.yaml");
        let doctor = ["doctor", "--config", file.to_str().unwrap()];
        until("the alarm lasts", async || lasts().await.filter(|lasts| *lasts)).await;
        assert!(alarm_lasts("events_compressed").await);
        alarm(&bus, "events_compressed", |event| event.details["phase"] == "begin").await;
        alarm(&bus, "assets_differ", |event| event.details["differences"].contains("compression: found s2"))
            .await;
        let said = world.printed(&doctor).await;
        assert!(said.contains("found s2") && said.contains("drover bus upgrade"), "{said}");
        bus.up("a").await;

        let said = world.printed(&["bus", "upgrade"]).await;
        assert!(said.contains("compression: s2 -> none") && said.contains("stays compressed"), "{said}");
        until("the alarm is over", async || lasts().await.filter(|lasts| !lasts)).await;
        assert!(!alarm_lasts("events_compressed").await);
        alarm(&bus, "events_compressed", |event| event.details["phase"] == "end").await;
        let said = world.printed(&doctor).await;
        assert!(!said.contains("found s2"), "{said}");
        // What was stored before and after is one log, for a server that is started anew too.
        bus.change("a", "delete").await.unwrap();
        world.stop_nats().await;
        world.start_nats().await;
        let logs = log(&bus).await;
        assert!(logs.len() == 1 && logs.values().all(|log| log.last().unwrap().last), "{logs:?}");
    });
}
