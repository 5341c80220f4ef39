//! What a guest's question for a name is answered with: pure.
//!
//! A network has a zone of its own: the names of its VMs below its suffix, and their addresses below `arpa`. A guest
//! sees of both what is of its own namespace; what is of others does not exist for it.

use std::net::IpAddr;

use hickory_proto::op::{Edns, Header, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, NS, PTR, SOA};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinDecodable as _, BinDecoder};
use ipnet::IpNet;

/// How long what is said may be remembered, in seconds: names come and go with VMs.
const TTL_S: u32 = 5;
/// What a datagram carries to whoever says nothing, and the most that it ever does: it passes every link in one piece.
const PLAIN: u16 = 512;
const LARGEST: u16 = 1232;
/// The shortest message: its header.
const HEADER: usize = 12;

/// The zone of a network.
#[derive(Debug, Clone, Copy)]
pub struct Zone<'a> {
    /// The end of its names; it is the gateway's own name.
    pub suffix: &'a Name,
    /// Ends of names of the host's other networks: nobody outside is asked for them.
    pub others: &'a [Name],
    /// Its addresses.
    pub subnets: &'a [IpNet],
    /// The gateway's addresses.
    pub gateway: &'a [IpAddr],
}

/// What the asking guest may know.
pub trait Names {
    /// The addresses of a name.
    fn addresses(&self, name: &str) -> Vec<IpAddr>;
    /// The name of an address.
    fn name_at(&self, address: IpAddr) -> Option<String>;
}

/// What is to be done about a message.
#[derive(Debug)]
pub enum Answer {
    /// This is said.
    Say(Message),
    /// Somebody outside is asked.
    Ask(Outside),
    /// Nothing: it is no question.
    Nothing,
}

/// A question for somebody outside.
#[derive(Debug, Clone)]
pub struct Outside {
    /// As the guest asked.
    asked: Metadata,
    query: Query,
    edns: Option<Edns>,
}

/// The answer to `bytes`; others are asked where `may_ask` says so.
pub fn answer(zone: &Zone<'_>, names: &impl Names, bytes: &[u8], may_ask: impl FnOnce() -> bool) -> Answer {
    let asked = match Message::from_vec(bytes) {
        Ok(asked) => asked,
        Err(_) => return malformed(bytes),
    };
    if asked.metadata.message_type != MessageType::Query {
        return Answer::Nothing;
    }
    let mut reply = begun(&asked.metadata, asked.edns.as_ref());
    let refuse = |mut reply: Message, code| {
        reply.metadata.response_code = code;
        Answer::Say(reply)
    };
    if asked.metadata.op_code != OpCode::Query {
        return refuse(reply, ResponseCode::NotImp);
    }
    let [query] = asked.queries.as_slice() else { return refuse(reply, ResponseCode::FormErr) };
    reply.add_query(query.clone());
    if asked.edns.as_ref().is_some_and(|edns| edns.version() != 0) {
        return refuse(reply, ResponseCode::BADVERS);
    }
    let transfer = matches!(query.query_type(), RecordType::AXFR | RecordType::IXFR);
    if query.query_class() != DNSClass::IN || transfer {
        return refuse(reply, ResponseCode::Refused);
    }
    if let Some(found) = own(zone, names, query) {
        let Found { owner, exists, records } = found;
        reply.metadata.authoritative = true;
        reply.metadata.recursion_available = true;
        if records.is_empty() {
            reply.add_authority(soa(zone, owner));
        }
        if !exists {
            reply.metadata.response_code = ResponseCode::NXDomain;
        }
        reply.insert_answers(records);
        return Answer::Say(reply);
    }
    let is_ours = zone.others.iter().any(|suffix| suffix.zone_of(query.name()));
    if is_ours || !asked.metadata.recursion_desired || !may_ask() {
        return refuse(reply, ResponseCode::Refused);
    }
    Answer::Ask(Outside { asked: asked.metadata, query: query.clone(), edns: asked.edns })
}

/// What cannot be read is said to be that, if it is a question at all.
fn malformed(bytes: &[u8]) -> Answer {
    match Header::read(&mut BinDecoder::new(bytes)) {
        Ok(header) if header.metadata.message_type == MessageType::Query => {
            let mut reply = begun(&header.metadata, None);
            reply.metadata.response_code = ResponseCode::FormErr;
            Answer::Say(reply)
        }
        _ => Answer::Nothing,
    }
}

fn begun(asked: &Metadata, edns: Option<&Edns>) -> Message {
    let mut reply = Message::response(asked.id, asked.op_code);
    reply.metadata.recursion_desired = asked.recursion_desired;
    reply.metadata.checking_disabled = asked.checking_disabled;
    if edns.is_some() {
        let mut own = Edns::new();
        own.set_max_payload(LARGEST);
        reply.set_edns(own);
    }
    reply
}

/// What the zone has.
struct Found {
    /// Whose name what is not there is below.
    owner: Name,
    exists: bool,
    records: Vec<Record>,
}

/// What is of the zone; `None` if the question is for something else.
fn own(zone: &Zone<'_>, names: &impl Names, query: &Query) -> Option<Found> {
    let name = query.name();
    let asks = |of: RecordType| query.query_type() == of || query.query_type() == RecordType::ANY;
    let record = |data: RData| Record::from_rdata(name.clone(), TTL_S, data);
    if zone.suffix.zone_of(name) {
        let owner = zone.suffix.clone();
        let below: Vec<&[u8]> = name.iter().take(labels(name).saturating_sub(labels(zone.suffix))).collect();
        let (addresses, mut records) = match below.as_slice() {
            [] => {
                let mut records = Vec::new();
                if asks(RecordType::SOA) {
                    records.push(soa(zone, owner.clone()));
                }
                if asks(RecordType::NS) {
                    records.push(record(RData::NS(NS(owner.clone()))));
                }
                (zone.gateway.to_vec(), records)
            }
            [label] => {
                let label = std::str::from_utf8(label).unwrap_or_default().to_ascii_lowercase();
                (names.addresses(&label), Vec::new())
            }
            _ => Default::default(),
        };
        let exists = !addresses.is_empty();
        let data = |address| match address {
            IpAddr::V4(address) => RData::A(A(address)),
            IpAddr::V6(address) => RData::AAAA(AAAA(address)),
        };
        let wanted = addresses.into_iter().map(data).filter(|data| asks(data.record_type()));
        records.extend(wanted.map(record));
        return Some(Found { owner, exists, records });
    }
    let (net, below) = reversed(name)?;
    zone.subnets.iter().find(|subnet| subnet.contains(&net))?;
    let is_one = net.prefix_len() == net.max_prefix_len();
    let called = match net.addr() {
        _ if !is_one || below => None,
        address if zone.gateway.contains(&address) => Some(zone.suffix.clone()),
        address => names.name_at(address).and_then(|name| zone.suffix.prepend_label(name.as_str()).ok()),
    };
    // What is but a part of an address has names below it.
    let exists = called.is_some() || !is_one;
    let called = called.filter(|_| asks(RecordType::PTR));
    let records = called.into_iter().map(|name| record(RData::PTR(PTR(name)))).collect();
    let owner = name.trim_to(if net.addr().is_ipv4() { 5 } else { 18 });
    Some(Found { owner, exists, records })
}

/// The addresses that a name below `arpa` is for, and whether it is a name below that of a single one.
fn reversed(name: &Name) -> Option<(IpNet, bool)> {
    if let Ok(net) = name.parse_arpa_name() {
        return Some((net, false));
    }
    // A whole address has so many labels.
    let trimmed = [6, 34].into_iter().filter(|count| labels(name) > *count);
    trimmed.filter_map(|count| name.trim_to(count).parse_arpa_name().ok()).next().map(|net| (net, true))
}

fn labels(name: &Name) -> usize {
    // All of them: the name's own count leaves out a star.
    name.iter().count()
}

fn soa(zone: &Zone<'_>, owner: Name) -> Record {
    let server = zone.suffix.clone();
    let person = server.prepend_label("hostmaster").unwrap_or_else(|_| server.clone());
    let lasting = i32::try_from(TTL_S).unwrap_or(i32::MAX);
    // Nobody copies the zone, so its serial tells nothing.
    Record::from_rdata(
        owner,
        TTL_S,
        RData::SOA(SOA::new(server, person, 1, lasting, lasting, lasting, TTL_S)),
    )
}

/// How long an answer may be: whoever asked may say for datagrams.
fn limit(edns: Option<&Edns>, by_stream: bool) -> usize {
    let datagram = edns.map_or(PLAIN, Edns::max_payload).clamp(PLAIN, LARGEST);
    if by_stream { u16::MAX.into() } else { datagram.into() }
}

/// An answer's bytes; one that is too long for its way says only that it is.
#[must_use]
pub fn bytes(reply: &Message, asked: &[u8], by_stream: bool) -> Option<Vec<u8>> {
    let whole = reply.to_vec().ok()?;
    if whole.len() <= usize::from(PLAIN) {
        return Some(whole);
    }
    let edns = Message::from_vec(asked).ok().and_then(|asked| asked.edns);
    if whole.len() <= limit(edns.as_ref(), by_stream) { Some(whole) } else { reply.truncate().to_vec().ok() }
}

impl Outside {
    /// The question as it is asked outside, under a number of its own and without anything else that the guest said.
    #[must_use]
    pub fn question(&self, id: u16) -> Option<Vec<u8>> {
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.metadata.checking_disabled = self.asked.checking_disabled;
        message.metadata.authentic_data = self.asked.authentic_data;
        message.add_query(self.query.clone());
        if let Some(edns) = &self.edns {
            let mut own = Edns::new();
            own.set_max_payload(LARGEST).set_dnssec_ok(edns.flags().dnssec_ok);
            message.set_edns(own);
        }
        message.to_vec().ok()
    }

    /// What the guest is told of an answer to the question of that number; `None` if it answers something else.
    #[must_use]
    pub fn relayed(&self, id: u16, reply: &[u8], by_stream: bool) -> Option<Vec<u8>> {
        let mut decoder = BinDecoder::new(reply);
        let header = Header::read(&mut decoder).ok()?;
        let said = header.metadata;
        let is_reply =
            said.id == id && said.message_type == MessageType::Response && said.op_code == OpCode::Query;
        if !is_reply || header.counts.queries != 1 || Query::read(&mut decoder).ok()? != self.query {
            return None;
        }
        if reply.len() > limit(self.edns.as_ref(), by_stream) {
            let mut short = self.reply(said.response_code);
            short.metadata.truncation = true;
            return short.to_vec().ok();
        }
        let mut own = self.asked.id.to_be_bytes().to_vec();
        own.extend_from_slice(&reply[2..]);
        Some(own)
    }

    /// What the guest is told if nobody answered.
    #[must_use]
    pub fn failed(&self) -> Option<Vec<u8>> {
        self.reply(ResponseCode::ServFail).to_vec().ok()
    }

    fn reply(&self, code: ResponseCode) -> Message {
        let mut reply = begun(&self.asked, self.edns.as_ref());
        reply.metadata.recursion_available = true;
        reply.metadata.response_code = code;
        reply.add_query(self.query.clone());
        reply
    }
}

/// Whether it can be a message at all.
#[must_use]
pub fn is_message(bytes: &[u8]) -> bool {
    bytes.len() >= HEADER
}

#[cfg(test)]
#[path = "zone_tests.rs"]
mod tests;
