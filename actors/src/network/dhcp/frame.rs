//! Frames that carry messages of DHCP: pure.

use std::net::Ipv4Addr;

use dhcproto::v4::{CLIENT_PORT, SERVER_PORT};
use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};

use super::super::guests::Mac;

const EVERYBODY: Mac = [0xff; 6];
const TTL: u8 = 64;

/// A message and who sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heard<'a> {
    /// The hardware address of who sent it.
    pub mac: Mac,
    /// Its address; `0.0.0.0` of one that has none.
    pub source: Ipv4Addr,
    /// The message.
    pub message: &'a [u8],
}

/// Reads a frame; `None` if it carries no message for a server. Sums are not looked at: between machines of one host
/// nobody computes them.
#[must_use]
pub fn read(frame: &[u8]) -> Option<Heard<'_>> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let mac = packet.link.as_ref()?.to_header()?.ethernet2()?.source;
    let (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Udp(udp))) = (&packet.net, &packet.transport) else {
        return None;
    };
    let for_server = udp.source_port() == CLIENT_PORT && udp.destination_port() == SERVER_PORT;
    for_server.then(|| Heard { mac, source: ip.header().source_addr(), message: udp.payload() })
}

/// Who says it to whom.
#[derive(Debug, Clone, Copy)]
pub struct Way {
    /// Hardware address of the bridge.
    pub from_mac: Mac,
    /// Address of the gateway.
    pub from: Ipv4Addr,
    /// Hardware address of the guest.
    pub mac: Mac,
    /// Its address; everybody's on its link if none.
    pub to: Option<Ipv4Addr>,
}

/// A frame with a message for a client.
#[must_use]
pub fn write(way: Way, message: &[u8]) -> Option<Vec<u8>> {
    let Way { from_mac, from, mac, to } = way;
    let mac = if to.is_some() { mac } else { EVERYBODY };
    let to = to.unwrap_or(Ipv4Addr::BROADCAST);
    let builder = PacketBuilder::ethernet2(from_mac, mac).ipv4(from.octets(), to.octets(), TTL);
    let builder = builder.udp(SERVER_PORT, CLIENT_PORT);
    let mut frame = Vec::with_capacity(builder.size(message.len()));
    // What is too long for a packet.
    builder.write(&mut frame, message).ok()?;
    Some(frame)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAC: Mac = [0x52, 0x54, 0, 1, 2, 3];

    fn frame(ports: (u16, u16), message: &[u8]) -> Vec<u8> {
        let builder =
            PacketBuilder::ethernet2(MAC, EVERYBODY).ipv4([0; 4], [255; 4], 64).udp(ports.0, ports.1);
        let mut frame = Vec::new();
        builder.write(&mut frame, message).unwrap();
        frame
    }

    #[test]
    fn a_message_is_found_behind_its_headers_and_before_what_fills_the_frame() {
        let mut bytes = frame((68, 67), b"asked");
        let heard = Heard { mac: MAC, source: Ipv4Addr::UNSPECIFIED, message: b"asked" };
        assert_eq!(read(&bytes), Some(heard));
        bytes.extend([0; 30]);
        assert_eq!(read(&bytes), Some(heard));
        for ports in [(67, 68), (68, 53), (1067, 67)] {
            assert_eq!(read(&frame(ports, b"asked")), None, "{ports:?}");
        }
    }

    #[test]
    fn an_answer_goes_to_its_guest_or_to_all_of_its_link() {
        let way = Way { from_mac: [2; 6], from: Ipv4Addr::new(10, 0, 0, 1), mac: MAC, to: None };
        for (to, mac, address) in
            [(None, EVERYBODY, [255; 4]), (Some(Ipv4Addr::new(10, 0, 0, 9)), MAC, [10, 0, 0, 9])]
        {
            let frame = write(Way { to, ..way }, b"told").unwrap();
            let packet = SlicedPacket::from_ethernet(&frame).unwrap();
            let link = packet.link.unwrap().to_header().unwrap().ethernet2().unwrap();
            assert_eq!((link.source, link.destination), ([2; 6], mac));
            let Some(NetSlice::Ipv4(ip)) = packet.net else { panic!("no IPv4") };
            assert_eq!(ip.header().destination(), address);
            let Some(TransportSlice::Udp(udp)) = packet.transport else { panic!("no UDP") };
            assert_eq!((udp.source_port(), udp.destination_port(), udp.payload()), (67, 68, &b"told"[..]));
        }
        assert_eq!(write(way, &[0; 70_000]), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in 0_usize..60) {
            let _ = read(&bytes);
            let mut frame = frame((68, 67), &bytes);
            frame.truncate(frame.len().saturating_sub(cut));
            let _ = read(&frame);
        }
    }
}
