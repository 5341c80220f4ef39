//! Where names are asked for: port 53 of a gateway, and of its bridge only.

use std::io;
use std::net::{IpAddr, SocketAddr};

use drover_schemas::token::Token;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, UdpSocket};

const PORT: u16 = 53;
/// What may wait to be read or sent, in bytes; what is more is lost, and guests repeat themselves.
const BUFFER: usize = 1 << 20;
/// Connections that wait to be taken.
const BACKLOG: i32 = 128;

/// Listens at an address, for what comes by a bridge.
///
/// # Errors
/// The kernel refuses: the port may be taken, or the address not be there.
pub fn open(gateway: IpAddr, bridge: &str) -> io::Result<(UdpSocket, TcpListener)> {
    let address = SocketAddr::new(gateway, PORT);
    let datagrams = socket(address, bridge, Type::DGRAM, Protocol::UDP)?;
    datagrams.set_recv_buffer_size(BUFFER)?;
    datagrams.set_send_buffer_size(BUFFER)?;
    datagrams.bind(&address.into())?;
    let streams = socket(address, bridge, Type::STREAM, Protocol::TCP)?;
    // Connections of a daemon that ended just now are in nobody's way.
    streams.set_reuse_address(true)?;
    streams.bind(&address.into())?;
    streams.listen(BACKLOG)?;
    Ok((UdpSocket::from_std(datagrams.into())?, TcpListener::from_std(streams.into())?))
}

fn socket(address: SocketAddr, bridge: &str, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    socket.set_nonblocking(true)?;
    socket.bind_device(Some(bridge.as_bytes()))?;
    Ok(socket)
}

/// Why it cannot be listened, and what can be done about it.
#[must_use]
pub fn explained(failure: &io::Error, gateway: Option<IpAddr>, network: &Token) -> String {
    match (failure.kind(), gateway) {
        (io::ErrorKind::AddrInUse, Some(gateway)) => format!(
            "another program of this host has port {PORT} of {gateway} (`ss -lnp 'sport = :{PORT}'` names it): let it \
             leave the bridges of drover alone, as dnsmasq does with `bind-interfaces` and `except-interface=drb*`, or \
             set `dns: {{serve: false}}` for network {network}"
        ),
        (io::ErrorKind::PermissionDenied, _) => format!(
            "{failure}: the daemon needs CAP_NET_BIND_SERVICE and CAP_NET_RAW (`CapabilityBoundingSet=` of its unit)"
        ),
        _ => failure.to_string(),
    }
}
