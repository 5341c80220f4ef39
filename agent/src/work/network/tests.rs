use super::*;

#[test]
fn what_is_no_network_is_refused() {
    let mac = || "52:54:00:12:34:56".to_owned();
    let base = || NetworkRequest { mac: mac(), ..Default::default() };
    let one = |list: &str| Some(vec![list.to_owned()]);
    let route = |to: &str, via: &str| vec![NetworkRoute { to: to.into(), via: via.into() }];
    for (request, field) in [
        (NetworkRequest { mac: "52:54:00:12:34".into(), ..base() }, "mac"),
        (NetworkRequest { mac: "../../../../etc/x".into(), ..base() }, "mac"),
        (NetworkRequest { mac: "52:54:00:12:34:5é".into(), ..base() }, "mac"),
        (NetworkRequest { addresses: one("10.0.0.1"), ..base() }, "addresses"),
        (NetworkRequest { addresses: one("10.0.0.1/33"), ..base() }, "addresses"),
        (NetworkRequest { addresses: one("10.0.0.1/0"), ..base() }, "addresses"),
        (NetworkRequest { addresses: one("127.0.0.2/8"), ..base() }, "addresses"),
        (NetworkRequest { addresses: one("fe80::1/64"), ..base() }, "addresses"),
        (
            NetworkRequest { addresses: Some(vec!["10.0.0.1/8".into(); MAX_NETWORK + 1]), ..base() },
            "addresses",
        ),
        (NetworkRequest { addresses: one("fd00::1/129"), ..base() }, "addresses"),
        (NetworkRequest { addresses: one("::ffff:10.0.0.1/96"), ..base() }, "addresses"),
        (NetworkRequest { gateway: Some("0.0.0.0".into()), ..base() }, "gateway"),
        (NetworkRequest { gateway: Some("fd00::1".into()), ..base() }, "gateway"),
        (NetworkRequest { gateway6: Some("10.0.0.1".into()), ..base() }, "gateway6"),
        (NetworkRequest { gateway6: Some("ff02::1".into()), ..base() }, "gateway6"),
        (NetworkRequest { routes: route("fd00:1::/64", "10.0.0.1"), ..base() }, "routes"),
        (NetworkRequest { dns: one("fe80::1"), ..base() }, "dns"),
        (NetworkRequest { routes: route("10.0.0.0", "10.0.0.1"), ..base() }, "routes"),
        (NetworkRequest { routes: route("10.0.0.0/8", "x"), ..base() }, "routes"),
        (NetworkRequest { mtu: Some(67), ..base() }, "mtu"),
        (NetworkRequest { dns: one("224.0.0.1"), ..base() }, "dns"),
    ] {
        let error = run(&request, || panic!("nothing begins")).unwrap_err();
        assert_eq!((error.code, error.details["field"].as_str()), (ErrorCode::InvalidArgument, field));
    }
    let absent = run(&base(), || ()).unwrap_err();
    assert_eq!(absent.code, ErrorCode::NotFound);
}

#[test]
fn routes_are_read_as_the_kernel_writes_them() {
    let text = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
        eth0\t00000000\t010011AC\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
        eth0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n\
        eth0\t0000000A\t020011AC\t0003\t0\t0\t0\t000000FF\t0\t0\t0\n\
        eth1\t00000000\t010011AC\t0003\t0\t0\t0\t00000000\t0\t0\t0\nrubbish\neth0 x y z\n";
    let routes: Vec<String> = routes_of(text, "eth0").iter().map(|(to, via)| format!("{to} {via}")).collect();
    assert_eq!(routes, ["0.0.0.0/0 172.17.0.1", "10.0.0.0/8 172.17.0.2"]);
    let (zero, gateway) = ("0".repeat(32), "fd000000000000000000000000000001");
    let line = |to: &str, len: &str, via: &str, interface: &str| {
        format!("{to} {len} {zero} 00 {via} 00000400 00000001 00000000 00000003     {interface}\n")
    };
    let text = [
        line(&zero, "00", gateway, "eth0"),
        line("fd000000000000000000000000000000", "40", &zero, "eth0"),
        line("fd000001000000000000000000000000", "30", gateway, "eth0"),
        line(&zero, "00", gateway, "eth1"),
        "rubbish\n".to_owned(),
    ];
    let routes = ipv6_routes_of(&text.concat(), "eth0");
    let routes: Vec<String> = routes.iter().map(|(to, via)| format!("{to} {via}")).collect();
    assert_eq!(routes, ["::/0 fd00::1", "fd00:1::/48 fd00::1"]);
}

#[test]
fn what_is_asked_of_one_kind_leaves_the_other_alone() {
    let wanted = |addresses: Option<&[&str]>| {
        let addresses = addresses.map(|all| all.iter().map(|text| (*text).to_owned()).collect());
        let mac = "52:54:00:12:34:56".to_owned();
        Wanted::of(&NetworkRequest { mac, addresses, ..Default::default() }).unwrap()
    };
    for (asked, four, six) in [
        (Some(&["10.0.0.2/24"][..]), true, false),
        (Some(&["fd00::2/64"]), false, true),
        (Some(&["fd00::2/64", "10.0.0.2/24"]), true, true),
        (Some(&[]), true, false),
        (None, true, true),
    ] {
        let wanted = wanted(asked);
        assert_eq!((wanted.names("10.0.0.3/24"), wanted.names("fd00::3/64")), (four, six), "{asked:?}");
    }
}

#[test]
fn an_interface_is_set_up_and_stays_so() {
    if !nix::unistd::geteuid().is_root() {
        return println!("SKIP: needs root");
    }
    // A network of this thread's own.
    std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let netlink = Netlink::open().unwrap();
        let index = if_nametoindex("lo").unwrap();
        netlink.set_link(index, true, Some(1400)).unwrap();
        let a: Prefix = "10.1.2.3/24".parse().unwrap();
        netlink.add_address(index, a).unwrap();
        netlink.add_address(index, a).unwrap();
        netlink.set_route(index, "10.9.0.0/16".parse().unwrap(), "10.1.2.9".parse().unwrap()).unwrap();
        let missing = netlink.set_route(index, "10.8.0.0/16".parse().unwrap(), "192.0.2.1".parse().unwrap());
        assert!(missing.is_err(), "a router that cannot be reached");
        let ips = |name: &str| {
            let all = getifaddrs().unwrap().filter(|entry| entry.interface_name == name);
            all.filter_map(|entry| ip_of(entry.address)).filter(IpAddr::is_ipv4).collect::<Vec<_>>()
        };
        assert!(ips("lo").contains(&a.ip));
        netlink.remove_address(index, a).unwrap();
        netlink.remove_address(index, a).unwrap();
        assert_eq!(ips("lo"), [IpAddr::V4(Ipv4Addr::LOCALHOST)]);
        // IPv6 knows no neighbours at the loopback.
        let made = std::process::Command::new("ip").args(["link", "add", "br0", "type", "bridge"]).status();
        if has_ipv6("lo").is_err() || !made.is_ok_and(|status| status.success()) {
            return println!("SKIP of IPv6: the kernel has none, or there is no `ip` that makes a bridge");
        }
        let index = if_nametoindex("br0").unwrap();
        netlink.set_link(index, true, None).unwrap();
        let b: Prefix = "fd00:1::2/64".parse().unwrap();
        netlink.add_address(index, b).unwrap();
        netlink.add_address(index, b).unwrap();
        for via in ["fd00:1::1", "fd00:1::9"] {
            netlink.set_route(index, Prefix::ALL6, via.parse().unwrap()).unwrap();
        }
        netlink.set_route(index, "fd00:2::5/48".parse().unwrap(), "fd00:1::9".parse().unwrap()).unwrap();
        assert_eq!(look("br0").unwrap().addresses, ["fd00:1::2/64"]);
        // Those of this thread's network, which `/proc/net` does not show.
        let text = fs::read_to_string("/proc/thread-self/net/ipv6_route").unwrap();
        let mut routes: Vec<String> =
            ipv6_routes_of(&text, "br0").iter().map(|(to, via)| format!("{to} {via}")).collect();
        routes.sort();
        assert_eq!(routes, ["::/0 fd00:1::9", "fd00:2::/48 fd00:1::9"]);
        netlink.remove_address(index, b).unwrap();
        netlink.remove_address(index, b).unwrap();
        assert_eq!(look("br0").unwrap().addresses, Vec::<String>::new());
    })
    .join()
    .unwrap();
}
