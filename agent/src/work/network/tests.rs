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
        (NetworkRequest { gateway: Some("0.0.0.0".into()), ..base() }, "gateway"),
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
        let all = getifaddrs().unwrap().filter_map(|entry| entry.address?.as_sockaddr_in().map(|at| at.ip()));
        assert!(all.collect::<Vec<_>>().contains(&Ipv4Addr::new(10, 1, 2, 3)));
        netlink.remove_address(index, a).unwrap();
        netlink.remove_address(index, a).unwrap();
        let all = getifaddrs().unwrap().filter_map(|entry| entry.address?.as_sockaddr_in().map(|at| at.ip()));
        assert_eq!(all.collect::<Vec<_>>(), [Ipv4Addr::LOCALHOST]);
    })
    .join()
    .unwrap();
}
