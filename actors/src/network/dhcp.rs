//! Addresses for guests that ask by DHCP.
//!
//! On each bridge the host answers the guests that it knows, and nobody else: who asks is told by the hardware address
//! of the frame, which the bridge's firewall holds true, and is given what its interface was leased when it was made.
//! [`answer`] and [`frame`] are pure, [`wire`] is the kernel's side.

pub mod answer;
pub mod frame;
pub mod wire;

use std::io;
use std::time::{Duration, Instant};

use drover_schemas::body::spec::{NicSetup, NicSpec};
use drover_schemas::{ErrorBody, ErrorCode};
use futures_util::future::join_all;
use tokio::time::sleep;
use tracing::{debug, info};

use self::answer::{Answer, Ignored, Kind, Lease, Taken};
use self::frame::Way;
use self::wire::{FRAME_MAX, Wire};
use super::actor::NetworkHandle;
use super::guests::Guest;
use super::known::{Bridged, Known};
use super::served::{Served, changed, lasting, tell_gone};
use crate::metrics::{Metrics, OutcomeLabels};
use crate::rate::{Bucket, Rate};

/// How many messages a network's guests have answered, all together; each of them is held to less by the firewall.
const RATE: Rate = Rate { burst: 1_000, refill: Duration::from_millis(1) };
/// How long until it is tried again to listen.
const AGAIN: Duration = Duration::from_secs(5);

/// Answers the guests of every network that has DHCP, without end. `declined` is told of guests that found somebody
/// else at their address, `served` of networks whose guests are not heard.
pub async fn serve(
    network: &NetworkHandle,
    metrics: &Metrics,
    declined: impl Fn(&Guest) + Sync,
    served: impl Fn(&Served<'_>) + Sync,
) {
    let known = &network.ops.known;
    let mut changes = known.networks_changes();
    loop {
        let networks = changes.borrow_and_update().clone();
        let servers = networks.iter().filter(|bridged| bridged.def.dhcp).map(|bridged| {
            let server = Server { known, bridged, metrics, declined: &declined };
            server.run(&served)
        });
        tokio::select! {
            () = lasting(join_all(servers)) => {}
            () = changed(&mut changes) => {}
        }
        tell_gone(&networks, &changes.borrow(), "dhcp", &served);
    }
}

struct Server<'a, D> {
    known: &'a Known,
    bridged: &'a Bridged,
    metrics: &'a Metrics,
    declined: &'a D,
}

impl<D: Fn(&Guest) + Sync> Server<'_, D> {
    async fn run(self, served: &(impl Fn(&Served<'_>) + Sync)) {
        let mut moved = self.known.moved.subscribe();
        loop {
            let Some(interface) = self.known.bridge(&self.bridged.bridge) else {
                changed(&mut moved).await;
                continue;
            };
            let network = &self.bridged.def.name;
            match Wire::open(interface) {
                Ok(wire) => {
                    served(&Served { network, what: "dhcp", failure: None });
                    tokio::select! {
                        () = changed(&mut moved) => {}
                        failure = self.answer_all(&wire) => {
                            info!(%network, error = %failure, "the bridge is listened at anew");
                            sleep(Duration::from_secs(1)).await;
                        }
                    }
                }
                Err(failure) => {
                    served(&Served { network, what: "dhcp", failure: Some(failure.to_string()) });
                    tokio::select! {
                        () = changed(&mut moved) => {}
                        () = sleep(AGAIN) => {}
                    }
                }
            }
        }
    }

    /// Until the bridge is gone.
    async fn answer_all(&self, wire: &Wire) -> io::Error {
        let mut buffer = Box::new([0; FRAME_MAX]);
        let mut rate = Bucket::new(RATE, Instant::now());
        loop {
            let outcome = match wire.next(&mut buffer).await {
                Ok(_) if !rate.admit(Instant::now()) => "limited",
                Ok(frame) => self.one(wire, frame),
                Err(failure) => return failure,
            };
            self.metrics.dhcp_messages.get_or_create(&OutcomeLabels { outcome }).inc();
        }
    }

    /// Answers a frame, and says what became of it.
    fn one(&self, wire: &Wire, frame: &[u8]) -> &'static str {
        let Some(heard) = frame::read(frame) else { return "malformed" };
        let network = &self.bridged.def.name;
        let Some(guest) = self.known.guests(|guests| guests.by_mac(network, heard.mac)) else {
            return "unknown";
        };
        if !heard.source.is_unspecified() && heard.source != guest.ipv4 {
            return "foreign";
        }
        let reply = match answer::answer(&lease(self.bridged, &guest), heard.message) {
            Answer::Reply(reply) => reply,
            Answer::Taken(Taken::Released) => return "released",
            Answer::Taken(Taken::Declined) => {
                (self.declined)(&guest);
                return "declined";
            }
            Answer::Ignored(Ignored::Malformed) => return "malformed",
            Answer::Ignored(Ignored::Foreign) => return "foreign",
            Answer::Ignored(Ignored::Relayed) => return "relayed",
            Answer::Ignored(Ignored::OtherServer) => return "other_server",
        };
        let way = Way { from_mac: self.bridged.mac, from: guest.gateway, mac: guest.mac, to: reply.to };
        let sent = frame::write(way, &reply.message).map(|frame| send(wire, &guest.tap, &frame));
        match (sent, reply.kind) {
            (Some(Ok(())), Kind::Offer) => "offered",
            (Some(Ok(())), Kind::Acknowledge) => "acknowledged",
            (Some(Ok(())), Kind::Refuse) => "refused",
            (Some(Ok(())), Kind::Inform) => "informed",
            (failed, _) => {
                // It is being taken away, or its guest does not read: who still wants an answer asks again.
                debug!(tap = guest.tap, ?failed, "an answer of DHCP was not sent");
                "unsent"
            }
        }
    }
}

fn send(wire: &Wire, tap: &str, frame: &[u8]) -> io::Result<()> {
    wire.send(nix::net::if_::if_nametoindex(tap)?, frame)
}

/// The interfaces in `nics` that ask for their address need a network where somebody answers.
///
/// # Errors
/// `invalid_argument` with the field.
pub fn check_served(nics: &[NicSpec], served: impl Fn(&NicSpec) -> bool) -> Result<(), ErrorBody> {
    let alone = |(_, nic): &(usize, &NicSpec)| nic.setup == NicSetup::Dhcp && !served(nic);
    match nics.iter().enumerate().find(alone) {
        None => Ok(()),
        Some((i, nic)) => {
            let text = format!(
                "network {:?} of this host has no DHCP: set `kernel` or `agent`, or an operator sets `dhcp: true` there",
                nic.network
            );
            Err(ErrorBody::new(ErrorCode::InvalidArgument, text)
                .with("field", format!("spec.nics[{i}].setup")))
        }
    }
}

/// What a guest is told.
fn lease<'a>(bridged: &'a Bridged, guest: &'a Guest) -> Lease<'a> {
    let def = &bridged.def;
    Lease {
        mac: guest.mac,
        address: guest.ipv4,
        prefix_len: guest.prefix_len,
        server: guest.gateway,
        is_default: guest.first,
        mtu: u16::try_from(def.mtu.get()).unwrap_or(u16::MAX),
        name: guest.called.as_ref().map(|called| called.name.as_str()),
        suffix: def.dns.serve.then(|| def.dns.suffix.as_str()),
    }
}
