use drover_schemas::InstallationId;
use drover_schemas::body::host::HostImage;
use drover_schemas::body::spec::PlacementSpec;
use proptest::prelude::*;

use super::*;

const GIB: u64 = 1 << 30;

fn token(text: &str) -> Token {
    Token::new(text).unwrap()
}

fn record(name: &str) -> HostRecord {
    HostRecord {
        host: token(name),
        installation: InstallationId::from_u128(1),
        version: "1".into(),
        features: vec!["create.placed".into(), "os.linux".into()],
        capacity: Capacity {
            cpus: 16,
            memory_bytes: 64 * GIB,
            disk_bytes: 100 * GIB,
            users: 100,
            running_limit: 100,
            ports: 1_023,
            ..Capacity::default()
        },
        labels: [("zone".to_owned(), "a".to_owned())].into(),
        accepting: true,
        written_unix_ms: 0,
        phase: "ready".into(),
        vmm_version: String::new(),
        overhead_bytes: GIB,
        networks: Some([(token("default"), 50)].into()),
        templates: Some(vec![token("linux-default")]),
        own_templates: BTreeMap::new(),
        subnets: BTreeMap::new(),
        volumes: BTreeMap::new(),
        images: Some(vec![HostImage { name: "root".into(), sha256: "aa".into(), size_bytes: 2 * GIB }]),
        load_percent: 0,
    }
}

fn demand() -> Demand {
    Demand {
        volumes: Vec::new(),
        namespace: Some(token("acme")),
        template: Some(token("linux-default")),
        cpus: Some(2),
        memory_bytes: Some(4 * GIB),
        networks: [(token("default"), 1)].into(),
        addresses: Vec::new(),
        images: vec!["root".into()],
        copies: vec!["root".into()],
        disk_bytes: 0,
        features: vec!["os.linux".into()],
        placement: PlacementSpec::default(),
    }
}

fn seen(record: &HostRecord) -> Candidate<'_> {
    Candidate { record, heard: Duration::ZERO, pending: Pending::default(), own: false }
}

fn reason(record: &HostRecord, demand: &Demand) -> String {
    let ranking = rank(demand, [seen(record)], 0);
    assert_eq!(ranking.fit, [], "{record:?}");
    ranking.unfit[&record.host].to_string()
}

#[test]
fn each_thing_that_is_missing_is_a_reason() {
    let fits = record("h1");
    assert_eq!(rank(&demand(), [seen(&fits)], 0).fit, [token("h1")]);
    let asks = |change: fn(&mut Demand)| {
        let mut demand = demand();
        change(&mut demand);
        reason(&record("h1"), &demand)
    };
    assert_eq!(asks(|d| d.placement.host = Some(token("h2"))), "placement asks for host h2");
    assert_eq!(asks(|d| d.placement.labels = [("zone".into(), "b".into())].into()), "has no label zone=b");
    assert_eq!(asks(|d| d.features.push("os.windows".into())), "does not offer os.windows");
    assert_eq!(asks(|d| d.template = Some(token("other"))), "has no template other");
    // It is the namespace's own there.
    let own = HostRecord { own_templates: [(token("acme"), vec![token("other")])].into(), ..record("h1") };
    let asked = Demand { template: Some(token("other")), ..demand() };
    assert_eq!(rank(&asked, [seen(&own)], 0).fit, [token("h1")]);
    assert_eq!(asks(|d| d.volumes = vec![token("data")]), "has no volume data of the namespace");
    let own = HostRecord { volumes: [(token("acme"), vec![token("data")])].into(), ..record("h1") };
    let asked = Demand { volumes: vec![token("data")], ..demand() };
    assert_eq!(rank(&asked, [seen(&own)], 0).fit, [token("h1")]);
    let other = Demand { namespace: Some(token("other")), ..asked };
    assert_eq!(rank(&other, [seen(&own)], 0).fit, []);
    assert_eq!(asks(|d| d.images.push("sha256:bb".into())), "has no image sha256:bb");
    assert_eq!(asks(|d| d.networks = [(token("blue"), 1)].into()), "has no network blue");
    let elsewhere = (token("default"), "10.78.0.9".parse().unwrap());
    let asked = Demand { addresses: vec![elsewhere], ..demand() };
    assert_eq!(rank(&asked, [seen(&fits)], 0).fit, [token("h1")], "a host that does not say is asked");
    let there =
        |subnet: &str| HostRecord { subnets: [(token("default"), subnet.to_owned())].into(), ..record("h1") };
    assert_eq!(rank(&asked, [seen(&there("10.78.0.0/20"))], 0).fit, [token("h1")]);
    let unfit = reason(&there("10.77.0.0/20"), &asked);
    assert_eq!(unfit, "network default is 10.77.0.0/20, which 10.78.0.9 is not of");
    assert_eq!(asks(|d| d.cpus = Some(17)), "has 16 virtual CPUs left, 17 needed");
    assert!(asks(|d| d.memory_bytes = Some(64 * GIB)).contains("bytes of memory"));
    // Of a template that only others have nobody here has checked the size.
    assert!(asks(|d| d.memory_bytes = Some(u64::MAX)).contains("bytes of memory"));
    assert!(asks(|d| d.copies = vec!["root".into(); 51]).contains("bytes of disk"));
    assert_eq!(asks(|d| d.networks = [(token("default"), 51)].into()), "has 50 addresses left, 51 needed");
    let has = |change: fn(&mut HostRecord)| {
        let mut record = record("h1");
        change(&mut record);
        reason(&record, &demand())
    };
    assert_eq!(has(|r| (r.accepting, r.phase) = (false, "draining".into())), "takes no new VMs (draining)");
    assert_eq!(has(|r| r.capacity.users_used = 100), "has 0 users left, 1 needed");
    assert_eq!(has(|r| r.capacity.running = 100), "has 0 places for running VMs left, 1 needed");
    assert_eq!(has(|r| r.capacity.ports_used = 1_023), "has 0 bridge ports left, 1 needed");
    let silent = Candidate { heard: Duration::from_secs(91), ..seen(&fits) };
    assert_eq!(rank(&demand(), [silent], 0).unfit[&token("h1")].to_string(), "not heard for 91 s");
}

#[test]
fn what_a_host_does_not_say_is_left_to_it() {
    let old = HostRecord { networks: None, templates: None, images: None, ..record("h1") };
    let unknown = Demand {
        template: Some(token("theirs")),
        cpus: None,
        memory_bytes: None,
        images: vec!["theirs".into()],
        ..demand()
    };
    assert_eq!(rank(&unknown, [seen(&old)], 0).fit, [token("h1")]);
    // A host of the version before, which offers more than it says.
    let before = HostRecord { features: vec!["vm.v1".into()], ..old };
    assert_eq!(rank(&demand(), [seen(&before)], 0).fit, [token("h1")]);
    let newer = Demand { features: vec!["vmm.real".into()], ..demand() };
    assert_eq!(rank(&newer, [seen(&before)], 0).fit, []);
}

#[test]
fn the_host_with_the_most_room_comes_first_and_late_ones_last() {
    let (mut full, mut half, empty) = (record("h1"), record("h2"), record("h3"));
    full.capacity.memory_used_bytes = 50 * GIB;
    half.capacity.memory_used_bytes = 30 * GIB;
    let order = |hosts: &[Candidate<'_>]| rank(&demand(), hosts.iter().copied(), 7).fit;
    assert_eq!(order(&[seen(&full), seen(&empty), seen(&half)]), [token("h3"), token("h2"), token("h1")]);
    // What was sent there counts before the host says so itself.
    let sent = Pending { vms: 10, cpus: 14, memory_bytes: 55 * GIB };
    let taken = Candidate { pending: sent, ..seen(&empty) };
    assert_eq!(order(&[seen(&full), taken, seen(&half)])[0], token("h2"));
    let late = Candidate { heard: Duration::from_secs(60), ..seen(&empty) };
    assert_eq!(order(&[seen(&full), late, seen(&half)]), [token("h2"), token("h1"), token("h3")]);
}

#[test]
fn equal_hosts_share_the_work_and_ones_own_comes_first() {
    let hosts: Vec<HostRecord> = (0..4).map(|n| record(&format!("h{n}"))).collect();
    let mut first = BTreeMap::<Token, usize>::new();
    for seed in 0..400 {
        *first.entry(rank(&demand(), hosts.iter().map(seen), seed).fit[0].clone()).or_default() += 1;
    }
    assert!(first.len() == 4 && first.values().all(|n| *n > 50), "{first:?}");
    for seed in 0..20 {
        let mine = hosts.iter().map(|host| Candidate { own: host.host == token("h2"), ..seen(host) });
        assert_eq!(rank(&demand(), mine, seed).fit[0], token("h2"));
    }
}

prop_compose! {
    fn hosts()(many in prop::collection::vec(
        (0_u64..20, 0_u64..80, any::<bool>(), 0_u64..120, 0_u64..60, any::<bool>()), 0..12)) -> Vec<(HostRecord, Duration)>
    {
        many.into_iter().enumerate().map(|(n, (cpus, gib, accepting, heard, free, old))| {
            let mut host = record(&format!("h{n}"));
            host.capacity.cpus_used = cpus;
            host.capacity.memory_used_bytes = gib * GIB;
            host.accepting = accepting;
            host.networks = (!old).then(|| [(token("default"), free)].into());
            (host, Duration::from_secs(heard))
        }).collect()
    }
}

proptest! {
    #[test]
    fn every_host_either_fits_or_has_a_reason_and_none_is_promised_too_much(
        hosts in hosts(), cpus in 1_u64..20, gib in 0_u64..70, seed in any::<u128>()
    ) {
        let demand = Demand { cpus: Some(cpus), memory_bytes: Some(gib * GIB), ..demand() };
        let candidates = || hosts.iter().map(|(record, heard)| Candidate { heard: *heard, ..seen(record) });
        let ranking = rank(&demand, candidates(), seed);
        prop_assert_eq!(ranking.fit.len() + ranking.unfit.len(), hosts.len());
        for (record, heard) in &hosts {
            let capacity = &record.capacity;
            let fits = record.accepting
                && *heard <= HOST_TTL
                && capacity.cpus_used + cpus <= capacity.cpus
                && capacity.memory_used_bytes + (gib + 1) * GIB <= capacity.memory_bytes
                && record.networks.as_ref().is_none_or(|networks| networks[&token("default")] >= 1);
            prop_assert_eq!(ranking.fit.contains(&record.host), fits, "{:?}", ranking.unfit.get(&record.host));
        }
        // The order of the copy does not matter.
        let mut reversed: Vec<_> = candidates().collect();
        reversed.reverse();
        prop_assert_eq!(rank(&demand, reversed, seed), ranking);
    }

    #[test]
    fn more_room_never_makes_a_host_unfit(hosts in hosts(), cpus in 0_u64..20, more in 0_u64..20) {
        let demand = Demand { cpus: Some(cpus), ..demand() };
        for (record, _) in &hosts {
            let fits = rank(&demand, [seen(record)], 0).fit.len();
            let mut larger = record.clone();
            larger.capacity.cpus += more;
            prop_assert!(rank(&demand, [seen(&larger)], 0).fit.len() >= fits);
        }
    }
}
