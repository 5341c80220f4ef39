//! Sees what others do to the network of this host, and has it mended at once.
//!
//! The kernel tells of every change of rules, links and addresses. Ours are told by the process that made them, or
//! by being as they should be, so that the work here does not grow with what the host itself does. In case something
//! was not told, everything is compared now and then.

use std::io;
use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _};
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{MulticastGroup, new_multicast_connection};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::task::AbortOnDropHandle;

use super::actor::NetworkHandle;
use super::kernel6;
use super::link::{LinkError, Links, info, local};
use super::mend::{Repair, Why};
use super::nft::events::{RuleEvents, Told};
use super::ops::NetworkError;

/// How often everything is compared.
const COMPARE: Duration = Duration::from_secs(60);
/// How often while something is wrong that could not be mended.
const AGAIN: Duration = Duration::from_secs(5);
/// Time from one repair to the next: one that others undo again and again must not take the host's time.
const PAUSE: Duration = Duration::from_millis(100);

/// The watch cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The kernel does not tell of rules.
    #[error("changes of the firewall cannot be listened for")]
    Rules(#[source] io::Error),
    /// The kernel does not tell of links.
    #[error("changes of interfaces cannot be listened for")]
    Links(#[source] io::Error),
    /// Links cannot be looked at.
    #[error("interfaces cannot be looked at")]
    Look(#[from] LinkError),
    /// More was told than was read.
    #[error("the kernel does not tell of interfaces any more")]
    Ended,
}

/// Mends the network whenever it is not as it should be, and gives `told` each outcome. Begin it again when it ends.
///
/// # Errors
/// The kernel does not tell of changes, or not any more.
pub async fn watch(
    network: &NetworkHandle,
    mut told: impl FnMut(&Result<Repair, NetworkError>),
) -> Result<(), WatchError> {
    let mut rules =
        RuleEvents::listen(network.ops.nft.table(), network.ops.nft.own()).map_err(WatchError::Rules)?;
    // A network may have it later.
    let ipv6 = kernel6::is_there().then_some(MulticastGroup::Ipv6Ifaddr);
    let groups: Vec<_> = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr].into_iter().chain(ipv6).collect();
    let (connection, _, mut messages) = new_multicast_connection(&groups).map_err(WatchError::Links)?;
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let links = Links::connect()?;
    let mut why = Why::Unwatched;
    loop {
        let outcome = network.mend(why).await;
        told(&outcome);
        let again = if outcome.is_ok_and(|repair| repair.left.is_empty()) { COMPARE } else { AGAIN };
        let next = Instant::now() + again;
        sleep(PAUSE).await;
        why = loop {
            let message = tokio::select! {
                changed = rules.changed() => {
                    let mut told = changed.map_err(WatchError::Rules)?;
                    // One transaction may be told in several parts.
                    while let Some(changed) = rules.changed().now_or_never() {
                        told = told.max(changed.map_err(WatchError::Rules)?);
                    }
                    // To lay the rules anew would be told of at length again, without an end.
                    break if told == Told::Foreign { Why::Touched } else { Why::Look };
                }
                () = sleep_until(next) => break Why::Look,
                message = messages.next() => message.ok_or(WatchError::Ended)?.0,
            };
            if let NetlinkPayload::InnerMessage(message) = message.payload
                && is_wrong(network, &links, message).await?
            {
                break Why::Look;
            }
        };
    }
}

/// Whether a change left something of ours as it should not be. It may be over: then the present counts.
async fn is_wrong(
    network: &NetworkHandle,
    links: &Links,
    message: RouteNetlinkMessage,
) -> Result<bool, WatchError> {
    let known = &network.ops.known;
    let link = match message {
        RouteNetlinkMessage::NewLink(link) => {
            // What a bridge tells of a port does not say all of it.
            let by_bridge = link.header.interface_family == AddressFamily::Bridge;
            let link = info(link);
            let ours = known.is_port(&link.name);
            if !(by_bridge && ours || known.is_wrong(&link.name, Some(&link))) {
                return Ok(false);
            }
            link
        }
        RouteNetlinkMessage::DelLink(link) => info(link),
        RouteNetlinkMessage::DelAddress(address) => {
            return Ok(local(&address).is_some_and(|gone| known.is_gateway(gone)));
        }
        _ => return Ok(false),
    };
    let found = links.get(&link.name).await?;
    Ok(known.is_wrong(&link.name, found.as_ref()))
}
