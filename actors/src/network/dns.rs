//! Names for guests, asked of the gateway of their network.
//!
//! A guest learns the names and addresses of the VMs of its own namespace that have an interface on its network, for as
//! long as they run. Other names are asked of the network's upstreams, if it has any and the guest may reach them itself:
//! names are a way out too. [`config`] and [`zone`] are pure, [`upstream`] asks outside, [`socket`] is what is listened
//! with, and [`shares`] bounds what is under way.

pub mod config;
pub mod shares;
pub mod socket;
pub mod upstream;
pub mod zone;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use drover_schemas::body::spec::Protocol;
use drover_schemas::token::Token;
use futures_util::future::join_all;
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::Name;
use ipnet::IpNet;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::debug;

pub use self::config::DnsDef;
use self::shares::{Bounds, Share, Shares};
use self::zone::{Answer, Names, Outside, Zone};
use super::actor::NetworkHandle;
use super::guests::{Guest, Guests};
use super::ipv6;
use super::ops::NetOps;
use super::served::{Served, changed, lasting, tell_gone};
use crate::metrics::{Metrics, OutcomeLabels};

/// Questions that wait for somebody outside: of the host, of a namespace, of a guest. Each has a socket.
const ASKED: Bounds = Bounds { all: 512, namespace: 128, guest: 32 };
/// Connections of guests to a network's gateway.
const CONNECTIONS: Bounds = Bounds { all: 128, namespace: 64, guest: 4 };
/// How long a connection may be silent or unread.
const IDLE: Duration = Duration::from_secs(5);
/// How many questions one connection has answered.
const QUESTIONS: usize = 64;
/// The longest question.
const QUESTION_MAX: usize = 4096;
/// How long until it is tried again to listen.
const AGAIN: Duration = Duration::from_secs(5);

/// Answers the guests of every network that has names, without end. `served` is told of networks whose guests are not
/// heard.
pub async fn serve(network: &NetworkHandle, metrics: &Metrics, served: impl Fn(&Served<'_>) + Sync) {
    let asked = Arc::new(Shares::new(ASKED));
    let known = &network.ops.known;
    let served = &served;
    let mut changes = known.networks_changes();
    loop {
        let networks = changes.borrow_and_update().clone();
        let suffixes: Vec<Name> = networks.iter().map(|of| of.def.dns.suffix.name().clone()).collect();
        let desks = networks.iter().filter(|bridged| bridged.def.dns.serve).map(|bridged| {
            let desk = Arc::new(Desk {
                ops: Arc::clone(&network.ops),
                network: bridged.def.name.clone(),
                bridge: bridged.bridge.clone(),
                suffix: bridged.def.dns.suffix.name().clone(),
                upstreams: bridged.def.dns.upstreams.all().to_vec(),
                others: suffixes.clone(),
                subnets: std::iter::once(IpNet::V4(bridged.def.subnet.trunc()))
                    .chain(bridged.def.ipv6.map(|subnet| IpNet::V6(subnet.trunc())))
                    .collect(),
                // It is asked at the first, and heard there by IPv4 alone.
                gateway: std::iter::once(IpAddr::V4(bridged.gateway()))
                    .chain(bridged.def.ipv6.map(|subnet| IpAddr::V6(ipv6::gateway(subnet.trunc()))))
                    .collect(),
                metrics: metrics.clone(),
                asked: Arc::clone(&asked),
            });
            desk.run(served)
        });
        tokio::select! {
            () = lasting(join_all(desks)) => {}
            () = changed(&mut changes) => {}
        }
        tell_gone(&networks, &changes.borrow(), "dns", served);
    }
}

/// Where a network's names are asked for.
struct Desk {
    ops: Arc<NetOps>,
    network: Token,
    bridge: String,
    suffix: Name,
    upstreams: Vec<SocketAddr>,
    /// Of all networks of the host.
    others: Vec<Name>,
    subnets: Vec<IpNet>,
    gateway: Vec<IpAddr>,
    metrics: Metrics,
    asked: Arc<Shares>,
}

/// What a guest may know.
struct Seen<'a> {
    guests: &'a Guests,
    asks: &'a Guest,
}

impl Names for Seen<'_> {
    fn addresses(&self, name: &str) -> Vec<IpAddr> {
        let (Some(called), Ok(name)) = (&self.asks.called, Token::new(name)) else { return Vec::new() };
        let found = self.guests.by_name(&self.asks.network, &called.namespace, &name);
        found.iter().flat_map(|guest| guest.addresses()).collect()
    }

    fn name_at(&self, address: IpAddr) -> Option<String> {
        let own = self.asks.called.as_ref()?;
        let found = self.guests.by_address(&self.asks.network, address)?;
        let called = found.called.as_ref().filter(|called| called.namespace == own.namespace)?;
        Some(called.name.as_str().to_owned())
    }
}

/// What is done about a message.
enum Step {
    /// This is said, if anything.
    Say(Option<Vec<u8>>),
    /// Somebody outside is asked.
    Ask(Box<Asked>),
}

/// A question for somebody outside, and its share of what may be under way.
struct Asked {
    outside: Outside,
    upstreams: Vec<SocketAddr>,
    by_stream: bool,
    _share: Share,
}

impl Desk {
    async fn run(self: Arc<Self>, served: &(impl Fn(&Served<'_>) + Sync)) {
        let mut moved = self.ops.known.moved.subscribe();
        loop {
            let (gateway, bridge) = (self.gateway.first().copied(), self.bridge.as_str());
            let opened = gateway.map(|gateway| socket::open(gateway, bridge));
            let failure = match opened {
                Some(Ok((datagrams, streams))) => {
                    served(&Served { network: &self.network, what: "dns", failure: None });
                    tokio::select! {
                        () = changed(&mut moved) => {}
                        failure = self.answer_all(datagrams, streams) => {
                            debug!(network = %self.network, error = %failure, "names are listened for anew");
                            sleep(Duration::from_secs(1)).await;
                        }
                    }
                    continue;
                }
                Some(Err(failure)) => socket::explained(&failure, gateway, &self.network),
                None => "the network has no gateway".to_owned(),
            };
            served(&Served { network: &self.network, what: "dns", failure: Some(failure) });
            tokio::select! {
                () = changed(&mut moved) => {}
                () = sleep(AGAIN) => {}
            }
        }
    }

    /// Until the sockets fail; what is under way ends with it.
    async fn answer_all(self: &Arc<Self>, datagrams: UdpSocket, streams: TcpListener) -> io::Error {
        let datagrams = Arc::new(datagrams);
        let connections = Arc::new(Shares::new(CONNECTIONS));
        let mut tasks = JoinSet::new();
        let mut buffer = vec![0; QUESTION_MAX];
        loop {
            tokio::select! {
                heard = datagrams.recv_from(&mut buffer) => {
                    let (length, peer) = match heard {
                        Ok(heard) => heard,
                        Err(failure) => return failure,
                    };
                    match self.step(peer.ip(), &buffer[..length], false) {
                        Step::Say(reply) => said(&datagrams, peer, reply),
                        Step::Ask(asked) => {
                            let (desk, datagrams) = (Arc::clone(self), Arc::clone(&datagrams));
                            tasks.spawn(async move { said(&datagrams, peer, desk.ask(*asked).await) });
                        }
                    }
                }
                accepted = streams.accept() => {
                    // One that is gone again, or no descriptor is left for: the next may do better.
                    let Ok((stream, peer)) = accepted else { sleep(Duration::from_millis(10)).await; continue };
                    let guest = self.guest(peer.ip());
                    let Some(share) = guest.and_then(|guest| connections.take(&guest)) else {
                        self.count("limited");
                        continue;
                    };
                    let desk = Arc::clone(self);
                    tasks.spawn(async move {
                        let _share = share;
                        // Whatever it does, it is the guest's own connection.
                        let _ = desk.converse(stream, peer.ip()).await;
                    });
                }
                Some(_) = tasks.join_next() => {}
            }
        }
    }

    async fn converse(&self, mut stream: TcpStream, peer: IpAddr) -> io::Result<()> {
        let mut question = Vec::new();
        for _ in 0..QUESTIONS {
            let length = usize::from(timeout(IDLE, stream.read_u16()).await??);
            if length > QUESTION_MAX {
                self.count("malformed");
                return Ok(());
            }
            question.resize(length, 0);
            timeout(IDLE, stream.read_exact(&mut question)).await??;
            let reply = match self.step(peer, &question, true) {
                Step::Say(reply) => reply,
                Step::Ask(asked) => self.ask(*asked).await,
            };
            let Some(reply) = reply else { return Ok(()) };
            let Ok(length) = u16::try_from(reply.len()) else { return Ok(()) };
            let framed = [&length.to_be_bytes()[..], &reply].concat();
            timeout(IDLE, stream.write_all(&framed)).await??;
        }
        Ok(())
    }

    fn guest(&self, peer: IpAddr) -> Option<Arc<Guest>> {
        self.ops.known.guests(|guests| guests.by_address(&self.network, peer))
    }

    fn count(&self, outcome: &'static str) {
        self.metrics.dns_questions.get_or_create(&OutcomeLabels { outcome }).inc();
    }

    /// What is done about a message of whoever has the address, which the bridge's firewall holds true.
    fn step(&self, peer: IpAddr, bytes: &[u8], by_stream: bool) -> Step {
        let Some(guest) = self.guest(peer) else {
            self.count("unknown");
            return Step::Say(None);
        };
        let protocol = if by_stream { Protocol::Tcp } else { Protocol::Udp };
        let reaches = |to: &SocketAddr| {
            guest.egress.as_ref().is_none_or(|egress| egress.permits(to.ip(), protocol, to.port()))
        };
        let upstreams: Vec<SocketAddr> = self.upstreams.iter().copied().filter(reaches).collect();
        let zone = Zone {
            suffix: &self.suffix,
            others: &self.others,
            subnets: &self.subnets,
            gateway: &self.gateway,
        };
        let answer = self.ops.known.guests(|guests| {
            zone::answer(&zone, &Seen { guests, asks: &guest }, bytes, || !upstreams.is_empty())
        });
        match answer {
            Answer::Say(reply) => {
                self.count(match reply.metadata.response_code {
                    ResponseCode::NoError if !reply.answers.is_empty() => "answered",
                    ResponseCode::NoError | ResponseCode::NXDomain => "absent",
                    ResponseCode::Refused => "refused",
                    _ => "malformed",
                });
                Step::Say(zone::bytes(&reply, bytes, by_stream))
            }
            Answer::Ask(outside) => match self.asked.take(&guest) {
                Some(share) => Step::Ask(Box::new(Asked { outside, upstreams, by_stream, _share: share })),
                None => {
                    self.count("limited");
                    Step::Say(outside.failed())
                }
            },
            Answer::Nothing => {
                self.count("malformed");
                Step::Say(None)
            }
        }
    }

    async fn ask(&self, asked: Asked) -> Option<Vec<u8>> {
        let Asked { outside, upstreams, by_stream, _share } = asked;
        match upstream::ask(&outside, &upstreams, by_stream).await {
            Some(reply) => {
                self.count("forwarded");
                Some(reply)
            }
            None => {
                self.count("failed");
                outside.failed()
            }
        }
    }
}

/// Sends a datagram; one for which there is no room is lost, and its guest asks again.
fn said(datagrams: &UdpSocket, peer: SocketAddr, reply: Option<Vec<u8>>) {
    if let Some(reply) = reply
        && let Err(failure) = datagrams.try_send_to(&reply, peer)
    {
        debug!(%peer, error = %failure, "an answer about a name was not sent");
    }
}

impl NetworkHandle {
    /// Where the guests of a network ask for names, and how these end; `None` if nobody knows any there.
    #[must_use]
    pub fn names_of(&self, network: &Token) -> Option<(Ipv4Addr, String)> {
        let bridged = self.ops.known.network(network).filter(|bridged| bridged.def.dns.serve)?;
        Some((bridged.gateway(), bridged.def.dns.suffix.to_string()))
    }
}
