use super::*;
use crate::quota::Quota;
use drover_schemas::body::spec::{
    AgentSpec, ImageKind, NicSpec, Os, PlacementSpec, ResolvedBoot, ResolvedDisk, ResolvedImage, RestartSpec,
};
use proptest::prelude::*;

fn state(cpus: u64, memory: u64) -> HostState {
    let totals = Totals {
        cpus,
        memory_bytes: memory,
        overhead_bytes: 10,
        first_uid: 100,
        uids: 3,
        descriptors: 1_024,
        disk_bytes: 100,
        disk_ratio: 2.0,
        forward_ports: None,
    };
    let def: NetworkDef =
        serde_json::from_value(serde_json::json!({"name": "default", "subnet": "10.0.0.0/29"})).unwrap();
    HostState::new(InstallationId::from_u128(1), totals, quotas(), &[def], &Snapshot::default()).unwrap()
}

fn ns(name: &str) -> Token {
    Token::new(name).unwrap()
}

/// Of `small`; `default` has none.
fn quotas() -> Arc<Quotas> {
    let quota = Quota {
        vms: Some(2),
        cpus: Some(3),
        memory_bytes: Some(30),
        disk_bytes: Some(50),
        ..Quota::default()
    };
    Arc::new(Quotas { default: Quota::default(), namespaces: [(ns("small"), quota)].into() })
}

fn spec(cpus: u32, memory_bytes: u64) -> ResolvedSpec {
    ResolvedSpec {
        template: Token::new("t").unwrap(),
        os: Os::Linux,
        cpus,
        memory_bytes,
        cpu_topology: None,
        hugepages: None,
        security: None,
        boot: ResolvedBoot { kernel: None, initramfs: None, firmware: None, cmdline: String::new() },
        disks: vec![],
        nics: vec![],
        seed: None,
        restart: RestartSpec::default(),
        agent: AgentSpec::default(),
        labels: BTreeMap::new(),
        placement: PlacementSpec::default(),
    }
}

fn with_nics(nics: Vec<NicSpec>) -> ResolvedSpec {
    ResolvedSpec { nics, ..spec(1, 1) }
}

fn with_disk(size_bytes: u64, readonly: bool) -> ResolvedSpec {
    let image = ResolvedImage::raw("d".into(), String::new(), ImageKind::Disk, size_bytes);
    ResolvedSpec {
        disks: vec![ResolvedDisk { image: Some(image), readonly, ..ResolvedDisk::default() }],
        ..spec(1, 1)
    }
}

#[test]
fn room_for_disks_is_promised_once_and_given_back() {
    let host = state(4, 100);
    let first = host.lease(&ns("default"), VmId::from_u128(1), &with_disk(60, false)).unwrap();
    let error = host.lease(&ns("default"), VmId::from_u128(2), &with_disk(41, false)).unwrap_err();
    assert_eq!((error.details["resource"].as_str(), error.details["left"].as_str()), ("bytes of disk", "40"));
    host.lease(&ns("default"), VmId::from_u128(3), &with_disk(1_000, true)).unwrap();
    assert_eq!(host.capacity().disk_used_bytes, 60, "what is only read is shared");
    host.give_back(&first);
    host.lease(&ns("default"), VmId::from_u128(2), &with_disk(100, false)).unwrap();
}

fn nic(network: &str) -> NicSpec {
    NicSpec {
        network: Token::new(network).unwrap(),
        forwards: Vec::new(),
        egress: None,
        limits: None,
        setup: Default::default(),
        ipv4: None,
        queues: 1,
    }
}

#[test]
fn a_network_has_so_many_ports_and_no_more() {
    let host = state(1_000_000, 100_000_000);
    let two = with_nics(vec![nic("default"), nic("default")]);
    for id in 0..bridges::PORTS / 2 - 1 {
        host.adopt(&ns("default"), VmId::from_u128(id.into()), &two);
    }
    host.adopt(&ns("default"), VmId::from_u128(100_000), &with_nics(vec![nic("default")]));
    let error = host.reserve(&ns("default"), VmId::from_u128(100_001), &two).unwrap_err();
    assert_eq!(
        (error.details["resource"].as_str(), error.details["left"].as_str()),
        ("ports of network default", "1")
    );
    assert_eq!((host.capacity().ports_used, host.capacity().ports), (61_439, 61_440));
    host.unreserve(VmId::from_u128(1));
    assert_eq!(host.capacity().ports_used, 61_437);
}

#[test]
fn an_interface_has_the_address_that_it_asks_for_or_none() {
    let host = state(10, 1_000);
    let with = |ipv4: &str| NicSpec { ipv4: Some(ipv4.to_owned()), ..nic("default") };
    // The first that is free would be 10.0.0.2.
    let spec = with_nics(vec![nic("default"), with("10.0.0.2")]);
    let leased = host.lease(&ns("default"), VmId::from_u128(1), &spec).unwrap();
    let addresses: Vec<String> = leased.nics.iter().map(|nic| nic.ipv4.to_string()).collect();
    assert_eq!(addresses, ["10.0.0.3", "10.0.0.2"]);
    for (wanted, code, says) in [
        ("10.0.0.2", ErrorCode::Conflict, "leased to another VM"),
        ("10.0.0.1", ErrorCode::InvalidArgument, "not one for guests of 10.0.0.0/29"),
        ("10.0.0.9", ErrorCode::InvalidArgument, "not one for guests of 10.0.0.0/29"),
    ] {
        let spec = with_nics(vec![nic("default"), with(wanted)]);
        let error = host.lease(&ns("default"), VmId::from_u128(2), &spec).unwrap_err();
        assert_eq!((error.code, error.details["field"].as_str()), (code, "spec.nics[1].ipv4"), "{error}");
        assert!(error.message.contains(says), "{error}");
        assert_eq!(host.capacity().addresses_used, 2);
    }
    // One that rests is given to who asks for it.
    host.give_back(&leased);
    let spec = with_nics(vec![with("10.0.0.2")]);
    let again = host.lease(&ns("default"), VmId::from_u128(3), &spec).unwrap();
    assert_eq!(again.nics[0].ipv4.to_string(), "10.0.0.2");
}

#[test]
fn a_lease_that_fails_half_way_keeps_nothing() {
    let host = state(4, 100);
    let error = host
        .lease(&ns("default"), VmId::from_u128(1), &with_nics(vec![nic("default"), nic("other")]))
        .unwrap_err();
    assert!(error.message.contains("no network \"other\"; known: default"), "{error}");
    assert_eq!(host.capacity().addresses_used, 0);
}

#[test]
fn users_are_leased_once_and_rest_after_use() {
    let host = state(4, 100);
    let leases: Vec<Leases> =
        (0..3).map(|i| host.lease(&ns("default"), VmId::from_u128(i), &spec(1, 1)).unwrap()).collect();
    assert_eq!(leases.iter().map(|l| l.uid).collect::<Vec<_>>(), [100, 101, 102]);
    assert_eq!(
        host.lease(&ns("default"), VmId::from_u128(9), &spec(1, 1)).unwrap_err().code,
        ErrorCode::ResourceExhausted
    );
    host.give_back(&leases[1]);
    assert_eq!(host.lease(&ns("default"), VmId::from_u128(9), &spec(1, 1)).unwrap().uid, 101);
}

proptest! {
    /// Whatever is asked, the sum of promises never exceeds the host.
    #[test]
    fn promises_never_exceed_the_host(steps in proptest::collection::vec((0_u128..8, 1_u32..4, 1_u64..60, any::<bool>()), 0..60)) {
        let host = state(6, 150);
        for (id, cpus, memory, take) in steps {
            if take {
                let _ = host.reserve(&ns("default"), VmId::from_u128(id), &spec(cpus, memory));
            } else {
                host.unreserve(VmId::from_u128(id));
            }
            let capacity = host.capacity();
            prop_assert!(capacity.cpus_used <= capacity.cpus);
            prop_assert!(capacity.memory_used_bytes <= capacity.memory_bytes);
        }
    }
}

#[test]
fn open_files_are_counted_like_memory() {
    let mut host = state(100, 1 << 40);
    host.totals.descriptors = OWN_DESCRIPTORS + 2 * VM_DESCRIPTORS;
    let vm = VmId::from_u128;
    host.reserve(&ns("default"), vm(1), &spec(1, 1)).unwrap();
    host.reserve(&ns("default"), vm(2), &spec(1, 1)).unwrap();
    let error = host.reserve(&ns("default"), vm(3), &spec(1, 1)).unwrap_err();
    assert_eq!(
        (error.code, error.details["resource"].as_str()),
        (ErrorCode::ResourceExhausted, "descriptors")
    );
    host.unreserve(vm(1));
    host.reserve(&ns("default"), vm(3), &spec(1, 1)).unwrap();
}

#[test]
fn a_disk_grows_within_the_quota_the_promises_and_what_is_free() {
    let host = state(100, 1_000);
    let (small, other, vm) = (ns("small"), ns("other"), VmId::from_u128);
    host.lease(&small, vm(1), &with_disk(20, false)).unwrap();
    host.lease(&other, vm(2), &with_disk(30, false)).unwrap();
    let grow = |ns: &Token, id, to, free| {
        let spec = with_disk(to, false);
        let left = |error: ErrorBody| {
            assert_eq!(error.code, ErrorCode::ResourceExhausted);
            error.details.get("quota").or_else(|| error.details.get("left")).cloned().unwrap()
        };
        host.change_disks(ns, vm(id), &spec.disks, free).map_err(left)
    };
    assert_eq!(grow(&small, 1, 51, 1_000), Err("disk_bytes".to_owned()));
    assert_eq!(grow(&other, 2, 81, 1_000), Err("50".to_owned()), "as much was promised");
    // Twice what is free may be promised.
    assert_eq!(grow(&other, 2, 51, 10), Err("20".to_owned()));
    assert_eq!(host.capacity().disk_used_bytes, 50);
    grow(&other, 2, 50, 10).unwrap();
    grow(&small, 1, 50, 15).unwrap();
    assert_eq!(host.capacity().disk_used_bytes, 100);
    // Its change was never durable.
    host.keep_disks(vm(1), &with_disk(20, false).disks);
    assert_eq!((host.capacity().disk_used_bytes, host.used(&small).disk_bytes), (70, 20));
}

#[test]
fn volumes_take_room_and_quota_until_they_are_gone() {
    let host = state(100, 1_000);
    let (small, name) = (ns("small"), ns("data"));
    let make = |ns: &Token, name: &Token, size| host.make_volume(ns, name, size, 1_000).map_err(|e| e.code);
    assert_eq!(make(&small, &name, 51), Err(ErrorCode::ResourceExhausted), "the quota");
    assert_eq!(make(&ns("other"), &name, 101), Err(ErrorCode::ResourceExhausted), "what there is");
    assert_eq!(make(&small, &name, 40), Ok(true));
    assert_eq!(make(&small, &name, 40), Err(ErrorCode::Busy), "it is being made");
    host.settle_volume(&small, &name, true);
    assert_eq!(
        (make(&small, &name, 40), make(&small, &name, 41)),
        (Ok(false), Err(ErrorCode::AlreadyExists))
    );
    assert_eq!((host.used(&small).disk_bytes, host.capacity().disk_used_bytes), (40, 40));
    // A VM that has it takes no more.
    let volume = ResolvedDisk { volume: Some(name.clone()), size_bytes: Some(40), ..ResolvedDisk::default() };
    let spec = ResolvedSpec { disks: vec![volume], ..spec(1, 1) };
    let leases = host.lease(&small, VmId::from_u128(1), &spec).unwrap();
    assert_eq!(host.used(&small).disk_bytes, 40);
    assert_eq!(host.lease(&small, VmId::from_u128(2), &spec).unwrap_err().code, ErrorCode::Conflict);
    host.give_back(&leases);
    host.volumes().remove(&small, &name).unwrap();
    host.settle_volume(&small, &name, false);
    assert_eq!((host.used(&small).disk_bytes, host.capacity().disk_used_bytes), (0, 0));
}

#[test]
fn a_namespace_has_no_more_than_its_quota_and_others_do_not_notice() {
    let host = state(100, 1_000);
    let (small, vm) = (ns("small"), VmId::from_u128);
    let of = |error: ErrorBody| {
        assert_eq!(error.code, ErrorCode::ResourceExhausted);
        let value = |name: &str| error.details.get(name).cloned().unwrap_or_default();
        [value("quota"), value("limit"), value("used"), value("asked")].join(" ")
    };
    // What runs: CPUs, and memory of guests without that of VMMs.
    host.reserve(&small, vm(1), &spec(2, 20)).unwrap();
    host.reserve(&small, vm(1), &spec(2, 20)).unwrap();
    assert_eq!(of(host.reserve(&small, vm(2), &spec(2, 1)).unwrap_err()), "cpus 3 2 2");
    assert_eq!(of(host.reserve(&small, vm(2), &spec(1, 11)).unwrap_err()), "memory_bytes 30 20 11");
    host.reserve(&small, vm(2), &spec(1, 10)).unwrap();
    host.reserve(&ns("default"), vm(3), &spec(50, 500)).unwrap();
    host.unreserve(vm(1));
    host.reserve(&small, vm(4), &spec(2, 20)).unwrap();
    // What is there: VMs, and disks that they may write to.
    let first = host.lease(&small, vm(1), &with_disk(40, false)).unwrap();
    assert_eq!(of(host.lease(&small, vm(2), &with_disk(11, false)).unwrap_err()), "disk_bytes 50 40 11");
    host.lease(&small, vm(2), &with_disk(10, false)).unwrap();
    assert_eq!(of(host.lease(&small, vm(5), &spec(1, 1)).unwrap_err()), "vms 2 2 1");
    assert_eq!(host.used(&small), Used { vms: 2, cpus: 3, memory_bytes: 30, disk_bytes: 50 });
    host.give_back(&first);
    host.lease(&ns("default"), vm(6), &with_disk(50, false)).unwrap();
    host.lease(&small, vm(7), &with_disk(41, false)).unwrap_err();
    assert_eq!(host.used(&small).vms, 1);
    assert_eq!(host.namespaces(), [ns("default"), small].into());
}
