//! Who has which port of the host.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use drover_schemas::body::spec::{NicSpec, Protocol};
use drover_schemas::{ErrorBody, ErrorCode, Token, VmId};
use serde::{Deserialize, Deserializer, de};

use crate::network::forward::{HostPort, read_all};

/// Ports that a host forwards: `first-last`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRange {
    /// The first.
    pub first: u16,
    /// The last.
    pub last: u16,
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl FromStr for PortRange {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = "a range of ports is `first-last`, such as 20000-29999";
        let (first, last) = text.split_once('-').ok_or(wrong)?;
        let read = |text: &str| text.trim().parse::<u16>().ok().filter(|port| *port > 0).ok_or(wrong);
        let (first, last) = (read(first)?, read(last)?);
        if first > last { Err("the first port comes before the last") } else { Ok(Self { first, last }) }
    }
}

impl<'de> Deserialize<'de> for PortRange {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(de::Error::custom)
    }
}

/// The ports that VMs have.
#[derive(Debug, Default)]
pub struct Forwards {
    range: Option<PortRange>,
    taken: Mutex<Taken>,
}

/// Namespace and ports of each VM that has any.
type Taken = BTreeMap<VmId, (Token, Vec<HostPort>)>;

impl Forwards {
    /// None is taken yet; without a range none can be.
    #[must_use]
    pub fn new(range: Option<PortRange>) -> Self {
        Self { range, taken: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a VM the ports that `nics` ask for, in the place of those that it has. Repeating it changes nothing.
    ///
    /// # Errors
    /// `invalid_argument` for a port that this host does not forward, `conflict` for one that is in use; nothing is
    /// changed then.
    pub fn claim(&self, namespace: &Token, vm_id: VmId, nics: &[NicSpec]) -> Result<(), ErrorBody> {
        let wanted = ports(nics)?;
        let mut taken = self.lock();
        let has = taken.get(&vm_id).map(|(_, ports)| ports.clone()).unwrap_or_default();
        // One that it has leads elsewhere now, and one that meets it is still its own.
        let new = |port: &&HostPort| !has.contains(port);
        for port in wanted.iter().filter(new) {
            self.allowed(port)?;
            others_have(&taken, vm_id, namespace, port)?;
        }
        wanted.iter().filter(new).try_for_each(free)?;
        put(&mut taken, namespace, vm_id, wanted);
        Ok(())
    }

    /// Notes the ports of a VM of the journal, whatever the range is now, in the place of those that it had.
    pub fn restore(&self, namespace: &Token, vm_id: VmId, nics: &[NicSpec]) {
        put(&mut self.lock(), namespace, vm_id, ports(nics).unwrap_or_default());
    }

    /// Takes a VM's ports back.
    pub fn release(&self, vm_id: VmId) {
        self.lock().remove(&vm_id);
    }

    fn allowed(&self, port: &HostPort) -> Result<(), ErrorBody> {
        let refused =
            |text: String| Err(ErrorBody::new(ErrorCode::InvalidArgument, text).with("port", port.port));
        match self.range {
            Some(range) if (range.first..=range.last).contains(&port.port) => Ok(()),
            Some(range) => refused(format!("this host forwards ports {range}, and not {port}")),
            None => refused(
                "this host forwards no ports; an operator allows them with `capacity.forward_ports` in its \
                 configuration"
                    .to_owned(),
            ),
        }
    }
}

/// The ports that a spec asks for.
fn ports(nics: &[NicSpec]) -> Result<Vec<HostPort>, ErrorBody> {
    Ok(read_all(nics)?.into_iter().flatten().map(|forward| forward.from).collect())
}

fn put(taken: &mut Taken, namespace: &Token, vm_id: VmId, ports: Vec<HostPort>) {
    if ports.is_empty() {
        taken.remove(&vm_id);
    } else {
        taken.insert(vm_id, (namespace.clone(), ports));
    }
}

fn others_have(taken: &Taken, vm_id: VmId, namespace: &Token, port: &HostPort) -> Result<(), ErrorBody> {
    for (other, (owner, ports)) in taken.iter().filter(|(other, _)| **other != vm_id) {
        if ports.iter().any(|has| has.meets(port)) {
            return Err(in_use(port, (owner == namespace).then_some(*other)));
        }
    }
    Ok(())
}

/// `vm_id` is left out where the owner is another namespace's affair.
fn in_use(port: &HostPort, vm_id: Option<VmId>) -> ErrorBody {
    let owner = vm_id.map_or_else(|| "a VM of another namespace".to_owned(), |vm_id| format!("VM {vm_id}"));
    let text = format!("{port} leads to {owner} already; choose another port, or another host");
    let error =
        ErrorBody::new(ErrorCode::Conflict, text).with("cause", "port_in_use").with("port", port.port);
    match vm_id {
        Some(vm_id) => error.with("vm_id", vm_id),
        None => error,
    }
}

/// Whether the host itself does not listen there, by any of its addresses that count.
fn free(port: &HostPort) -> Result<(), ErrorBody> {
    let Some(address) = port.address else {
        free_at(port, Ipv4Addr::UNSPECIFIED.into())?;
        // A host without IPv6 has nobody there.
        return match free_at(port, Ipv6Addr::UNSPECIFIED.into()) {
            Err(error) if error.code == ErrorCode::Conflict => Err(error),
            _ => Ok(()),
        };
    };
    free_at(port, address)
}

/// Binding shows it, and lets go at once.
fn free_at(port: &HostPort, address: IpAddr) -> Result<(), ErrorBody> {
    let address = (address, port.port);
    let bound = match port.protocol {
        Protocol::Tcp => TcpListener::bind(address).map(drop),
        Protocol::Udp => UdpSocket::bind(address).map(drop),
    };
    match bound {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let text = format!("the host itself listens on {port}; choose another port");
            Err(ErrorBody::new(ErrorCode::Conflict, text)
                .with("cause", "port_in_use")
                .with("port", port.port))
        }
        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {
            let text = format!("the host has no such address: {port}");
            Err(ErrorBody::new(ErrorCode::InvalidArgument, text).with("port", port.port))
        }
        Err(error) => {
            let text = format!("{port} cannot be looked at: {error}");
            Err(ErrorBody::new(ErrorCode::ResourceExhausted, text).with("port", port.port))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use drover_schemas::body::spec::ForwardSpec;

    fn nics(port: u16) -> Vec<NicSpec> {
        let forward = ForwardSpec {
            protocol: Protocol::Udp,
            host_port: port,
            host_address: None,
            guest_port: 53,
            sources: Vec::new(),
        };
        vec![NicSpec {
            network: token("default"),
            forwards: vec![forward],
            egress: None,
            limits: None,
            setup: Default::default(),
            ipv4: None,
            queues: 1,
        }]
    }

    fn token(text: &str) -> Token {
        Token::new(text).unwrap()
    }

    #[test]
    fn a_port_has_one_owner_whom_only_its_namespace_is_told() {
        // A free one of the machine.
        let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let forwards = Forwards::new(Some(PortRange { first: 1, last: u16::MAX }));
        let (one, other) = (VmId::from_u128(1), VmId::from_u128(2));
        forwards.claim(&token("a"), one, &nics(port)).unwrap();
        forwards.claim(&token("a"), one, &nics(port)).unwrap();
        let refused = forwards.claim(&token("a"), other, &nics(port)).unwrap_err();
        assert_eq!((refused.code, refused.message.contains(&one.to_string())), (ErrorCode::Conflict, true));
        let refused = forwards.claim(&token("b"), other, &nics(port)).unwrap_err();
        assert_eq!(
            (refused.code, refused.to_string().contains(&one.to_string())),
            (ErrorCode::Conflict, false)
        );
        forwards.claim(&token("a"), one, &nics(port)).unwrap();
        forwards.claim(&token("b"), other, &[]).unwrap();
        let refused = forwards.claim(&token("b"), other, &nics(port)).unwrap_err();
        assert_eq!(refused.code, ErrorCode::Conflict);
        forwards.claim(&token("a"), one, &[]).unwrap();
        forwards.claim(&token("b"), other, &nics(port)).unwrap();
        forwards.release(other);
        forwards.claim(&token("b"), one, &nics(port)).unwrap();
    }

    #[test]
    fn what_the_host_does_not_forward_is_refused_with_what_it_does() {
        let vm_id = VmId::from_u128(1);
        let closed = Forwards::new(None).claim(&token("a"), vm_id, &nics(20_000)).unwrap_err();
        assert!(closed.message.contains("capacity.forward_ports"), "{closed}");
        let range: PortRange = "20000-20010".parse().unwrap();
        let outside = Forwards::new(Some(range)).claim(&token("a"), vm_id, &nics(20_011)).unwrap_err();
        assert!(outside.message.contains("20000-20010"), "{outside}");
        Forwards::new(None).claim(&token("a"), vm_id, &[]).unwrap();
        for wrong in ["", "1", "0-5", "6-5", "1-70000", "a-b"] {
            wrong.parse::<PortRange>().unwrap_err();
        }
    }

    #[test]
    fn a_port_on_which_the_host_listens_is_refused() {
        // By either kind of address, where the machine has both.
        for held in ["127.0.0.1:0", "[::1]:0"].into_iter().filter_map(|at| UdpSocket::bind(at).ok()) {
            let port = held.local_addr().unwrap().port();
            let forwards = Forwards::new(Some(PortRange { first: 1, last: u16::MAX }));
            let refused = forwards.claim(&token("a"), VmId::from_u128(1), &nics(port)).unwrap_err();
            assert!(refused.message.contains("the host itself listens"), "{refused}");
        }
    }
}
