//! A switch with a port for each host, server and client; what goes from one port to another can be cut.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::process::{Command, Stdio};

use crate::netns::{self, NetNs, ip, nsenter};

/// Frames from the first to the second port of a pair in `cut` are dropped; both directions are for themselves.
const RULES: &str = "table bridge cuts {
    set cut {
        type ifname . ifname
    }
    chain forward {
        type filter hook forward priority 0
        iifname . oifname @cut drop
    }
}";

/// Who is at a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A server of the bus.
    Server(usize),
    /// A host.
    Host(usize),
    /// Every client of the test.
    Client,
}

impl Place {
    /// Its address.
    #[must_use]
    pub fn address(self) -> String {
        match self {
            Self::Server(number) => format!("10.200.0.{}", number + 1),
            Self::Host(number) => format!("10.200.0.{}", number + 101),
            Self::Client => "10.200.0.200".into(),
        }
    }

    fn port(self) -> String {
        match self {
            Self::Server(number) => format!("s{}", number + 1),
            Self::Host(number) => format!("h{}", number + 1),
            Self::Client => "c".into(),
        }
    }
}

/// See [the module](self).
#[derive(Debug)]
pub struct Net {
    switch: NetNs,
    namespaces: Vec<(Place, NetNs)>,
}

impl Net {
    /// Joins `nodes`, each in a namespace of its own, and the thread's own namespace as [`Place::Client`].
    ///
    /// # Panics
    /// The kernel refuses a part of it.
    #[must_use]
    pub fn make(nodes: impl Iterator<Item = Place>) -> Self {
        let switch = NetNs::make();
        ip(&["-n", switch.name(), "link", "add", "br0", "type", "bridge"]);
        ip(&["-n", switch.name(), "link", "set", "br0", "up"]);
        let net = Self { switch, namespaces: nodes.map(|node| (node, NetNs::make())).collect() };
        for (node, namespace) in &net.namespaces {
            net.plug(*node, namespace.name());
        }
        net.plug(Place::Client, &netns::current().expect("the thread is in a namespace"));
        net.nft(RULES);
        net
    }

    fn plug(&self, node: Place, namespace: &str) {
        let (port, switch) = (node.port(), self.switch.name());
        ip(&["-n", switch, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", namespace]);
        ip(&["-n", switch, "link", "set", &port, "master", "br0", "up"]);
        ip(&["-n", namespace, "addr", "add", &format!("{}/24", node.address()), "dev", "eth0"]);
        ip(&["-n", namespace, "link", "set", "eth0", "up"]);
    }

    /// The namespace of a host or server.
    ///
    /// # Panics
    /// There is none.
    #[must_use]
    pub fn namespace(&self, node: Place) -> &str {
        let found = self.namespaces.iter().find(|(other, _)| *other == node);
        found.expect("a node of this net").1.name()
    }

    /// Drops what goes from the first to the second of these pairs, and lets everything else through.
    ///
    /// # Panics
    /// `nft` fails.
    pub fn cut_only(&self, pairs: &BTreeSet<(Place, Place)>) {
        let cut: Vec<String> =
            pairs.iter().map(|(from, to)| format!("{:?} . {:?}", from.port(), to.port())).collect();
        let mut text = "flush set bridge cuts cut\n".to_owned();
        if !cut.is_empty() {
            text.push_str(&format!("add element bridge cuts cut {{ {} }}", cut.join(", ")));
        }
        self.nft(&text);
    }

    fn nft(&self, text: &str) {
        let words = nsenter(self.switch.name());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).args(["nft", "-f", "-"]).stdin(Stdio::piped());
        let mut child = command.spawn().expect("start nft");
        child.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("nft reads");
        assert!(child.wait().expect("wait").success(), "nft refused {text}");
    }
}
