use super::*;
use proptest::prelude::*;

fn token() -> impl Strategy<Value = Token> {
    // Literals of the grammar are likely on purpose: a VM may be called `guest`, a namespace `host`.
    prop_oneof![
        proptest::sample::select(vec![
            "vm", "guest", "host", "evt", "audit", "bus", "metric", "io", "cmd", "ns", "create", "list",
            "request", "rejected", "image", "events", "v1", "drover", "get",
        ])
        .prop_map(|t| Token::new(t).unwrap()),
        "[a-z0-9][a-z0-9-]{0,8}".prop_map(|t| Token::new(&t).unwrap()),
    ]
}

fn subject() -> impl Strategy<Value = Subject> {
    prop_oneof![
        (token(), proptest::sample::select(PoolVerb::ALL.to_vec()))
            .prop_map(|(ns, verb)| Subject::VmPool { ns, verb }),
        (token(), token(), token()).prop_map(|(ns, name, verb)| Subject::Vm { ns, name, verb }),
        (token(), token(), "[a-z][a-z0-9_]{0,8}").prop_map(|(ns, name, verb)| Subject::Guest {
            ns,
            name,
            verb: GuestToken::new(&verb).unwrap()
        }),
        (token(), proptest::sample::select(Family::ALL.to_vec()), token())
            .prop_map(|(ns, family, verb)| Subject::Registry { ns, family, verb }),
        (token(), token()).prop_map(|(host, verb)| Subject::Host { host, verb: verb.to_string() }),
        (token(), token(), token())
            .prop_map(|(host, family, verb)| Subject::Host { host, verb: format!("{family}.{verb}") }),
        (token(), token()).prop_map(|(ns, token)| Subject::Io { ns, token }),
        (token(), token(), token()).prop_map(|(ns, name, kind)| Subject::VmEvent { ns, name, kind }),
        token().prop_map(|ns| Subject::RequestRejected { ns }),
        (token(), token()).prop_map(|(host, kind)| Subject::HostEvent { host, kind }),
        (token(), token()).prop_map(|(host, kind)| Subject::HostAudit { host, kind }),
        (token(), token()).prop_map(|(server, kind)| Subject::BusAudit { server, kind }),
        (token(), token()).prop_map(|(ns, name)| Subject::VmMetric { ns, name }),
        (token(), token()).prop_map(|(ns, host)| Subject::NsHostMetric { ns, host }),
        token().prop_map(|host| Subject::HostMetric { host }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Build and parse are inverse, so no subject belongs to two families.
    #[test]
    fn every_subject_reads_back_as_itself(root in token(), subject in subject()) {
        let subjects = Subjects::new(root);
        prop_assert_eq!(subjects.parse(&subjects.build(&subject)), Some(subject));
    }

    /// The event stream takes events and nothing else; a VM's subscription takes its commands only.
    #[test]
    fn planes_are_disjoint(subject in subject(), ns in token(), name in token(), host in token()) {
        let subjects = Subjects::new(Token::new("drover").unwrap());
        let text = subjects.build(&subject);
        let is_event = matches!(
            subject,
            Subject::VmEvent { .. }
                | Subject::RequestRejected { .. }
                | Subject::HostEvent { .. }
                | Subject::HostAudit { .. }
                | Subject::BusAudit { .. }
        );
        prop_assert_eq!(matches(&subjects.all_events(), &text), is_event);
        let host_log = matches(&subjects.host_events(&host), &text);
        let is_host_log = matches!(&subject, Subject::HostEvent { host: h, .. } if *h == host);
        prop_assert_eq!(host_log, is_host_log, "{}", text);
        let is_audit = matches!(subject, Subject::HostAudit { .. } | Subject::BusAudit { .. });
        prop_assert_eq!(matches(&subjects.all_audit(), &text), is_audit, "{}", text);
        let is_hosts_audit = matches!(&subject, Subject::HostAudit { host: h, .. } if *h == host);
        prop_assert_eq!(matches(&subjects.host_audit(&host), &text), is_hosts_audit, "{}", text);
        let is_bus_audit = matches!(&subject, Subject::BusAudit { server, .. } if *server == host);
        prop_assert_eq!(matches(&subjects.bus_audit(&host), &text), is_bus_audit, "{}", text);
        prop_assert!(!is_audit || !matches(&subjects.ns_events(&ns), &text), "no tenant reads {}", text);
        let vm_log = matches(&subjects.vm_events(&ns, &name), &text);
        let is_vm_log = matches!(&subject, Subject::VmEvent { ns: n, name: m, .. } if *n == ns && *m == name);
        prop_assert_eq!(vm_log, is_vm_log, "{}", text);
        let for_vm = matches(&subjects.vm_wildcard(&ns, &name), &text);
        let is_vm = match &subject {
            Subject::Vm { ns: n, name: m, .. } | Subject::Guest { ns: n, name: m, .. } => *n == ns && *m == name,
            _ => false,
        };
        prop_assert_eq!(for_vm, is_vm, "{}", text);
        let for_host = matches(&subjects.host_wildcard(&host), &text);
        let is_host = matches!(&subject, Subject::Host { host: h, .. } if *h == host);
        prop_assert_eq!(for_host, is_host);
        for verb in PoolVerb::ALL {
            let is_pool = matches!(&subject, Subject::VmPool { verb: v, .. } if *v == verb);
            prop_assert_eq!(matches(&subjects.pool_wildcard(verb), &text), is_pool);
        }
        for family in Family::ALL {
            let is_family = matches!(&subject, Subject::Registry { family: f, .. } if *f == family);
            prop_assert_eq!(matches(&subjects.registry_wildcard(family), &text), is_family);
        }
    }

    #[test]
    fn no_text_panics(text in "\\PC{0,60}") {
        let subjects = Subjects::new(Token::new("drover").unwrap());
        if let Some(subject) = subjects.parse(&text) {
            prop_assert_eq!(subjects.build(&subject), text);
        }
    }
}

#[test]
fn subjects_of_others_are_not_ours() {
    let subjects = Subjects::new(Token::new("drover").unwrap());
    for text in [
        "",
        "drover",
        "drover.v2.cmd.a.vm.list",
        "drover.v1.cmd.A.vm.list",
        "drover.v1.cmd.a.vm.explode",
        "drover.v1.cmd.a.vm.b.guest.c.d",
        "droverx.v1.cmd.a.vm.list",
        "drover.v1.evt.ns.a.vm.b",
    ] {
        assert_eq!(subjects.parse(text), None, "{text}");
    }
}
