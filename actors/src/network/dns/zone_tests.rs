use std::cell::Cell;
use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;

const GATEWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 1));
const WEB: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 3, 9));
/// Another namespace's.
const HIDDEN: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 3, 10));

struct Web;

impl Names for Web {
    fn addresses(&self, name: &str) -> Vec<IpAddr> {
        if name == "web" { vec![WEB] } else { Vec::new() }
    }

    fn name_at(&self, address: IpAddr) -> Option<String> {
        (address == WEB).then(|| "web".to_owned())
    }
}

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn question(text: &str, of: RecordType) -> Message {
    let mut message = Message::new(0xbeef, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name(text), of));
    message
}

fn with_edns(mut message: Message, payload: u16) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(payload);
    message.set_edns(edns);
    message
}

fn ask(bytes: &[u8], may_ask: bool) -> Answer {
    let (suffix, others) = (name("vm.drover.internal."), [name("far.internal.")]);
    let subnets = ["10.77.0.0/20".parse().unwrap()];
    let zone = Zone { suffix: &suffix, others: &others, subnets: &subnets, gateway: &[GATEWAY] };
    answer(&zone, &Web, bytes, || may_ask)
}

fn said(message: &Message) -> Message {
    match ask(&message.to_vec().unwrap(), true) {
        Answer::Say(reply) => reply,
        other => panic!("{other:?}"),
    }
}

/// The code, whether it is said with authority, the answers, and who is said to know that there are none.
fn told(text: &str, of: RecordType) -> (ResponseCode, bool, Vec<String>, Option<String>) {
    let reply = said(&question(text, of));
    assert_eq!((reply.metadata.id, reply.queries.len()), (0xbeef, 1));
    let answers = reply.answers.iter().map(|record| record.data.to_string()).collect();
    let knows = reply.authorities.first().map(|record| {
        assert_eq!(record.record_type(), RecordType::SOA);
        record.name.to_ascii()
    });
    (reply.metadata.response_code, reply.metadata.authoritative, answers, knows)
}

#[test]
fn a_name_of_the_own_namespace_has_its_address_and_an_address_its_name() {
    use RecordType as T;
    let there = |text: &str, of, answer: &str| {
        assert_eq!(
            told(text, of),
            (ResponseCode::NoError, true, vec![answer.to_owned()], None),
            "{text} {of}"
        );
    };
    there("web.vm.drover.internal.", T::A, "10.77.3.9");
    there("WEB.vm.Drover.internal.", T::A, "10.77.3.9");
    there("web.vm.drover.internal.", T::ANY, "10.77.3.9");
    there("9.3.77.10.in-addr.arpa.", T::PTR, "web.vm.drover.internal.");
    // The gateway's own.
    there("vm.drover.internal.", T::A, "10.77.0.1");
    there("vm.drover.internal.", T::NS, "vm.drover.internal.");
    there("1.0.77.10.in-addr.arpa.", T::PTR, "vm.drover.internal.");
    let soa = said(&question("vm.drover.internal.", T::SOA));
    assert_eq!((soa.answers[0].record_type(), soa.answers[0].ttl), (T::SOA, TTL_S));
}

#[test]
fn what_is_not_there_or_of_another_namespace_is_not_there_with_authority() {
    use RecordType as T;
    let zone = || Some("vm.drover.internal.".to_owned());
    let arpa = || Some("3.77.10.in-addr.arpa.".to_owned());
    let absent = |text: &str, of, owner: Option<String>| {
        assert_eq!(told(text, of), (ResponseCode::NXDomain, true, vec![], owner), "{text} {of}");
    };
    let nothing = |text: &str, of, owner: Option<String>| {
        assert_eq!(told(text, of), (ResponseCode::NoError, true, vec![], owner), "{text} {of}");
    };
    absent("db.vm.drover.internal.", T::A, zone());
    absent("a.web.vm.drover.internal.", T::A, zone());
    absent("*.vm.drover.internal.", T::A, zone());
    absent("_tcp.vm.drover.internal.", T::SRV, zone());
    nothing("web.vm.drover.internal.", T::AAAA, zone());
    nothing("web.vm.drover.internal.", T::MX, zone());
    nothing("vm.drover.internal.", T::TXT, zone());
    absent("10.3.77.10.in-addr.arpa.", T::PTR, arpa());
    absent("x.9.3.77.10.in-addr.arpa.", T::PTR, arpa());
    nothing("9.3.77.10.in-addr.arpa.", T::A, arpa());
    nothing("3.77.10.in-addr.arpa.", T::PTR, arpa());
    // A hidden address is as one that nobody has.
    let Answer::Say(hidden) = ask(&question("10.3.77.10.in-addr.arpa.", T::PTR).to_vec().unwrap(), true)
    else {
        panic!("nothing said")
    };
    assert_eq!(hidden.authorities[0].ttl, TTL_S);
    assert_eq!(HIDDEN, "10.77.3.10".parse::<IpAddr>().unwrap());
}

#[test]
fn other_names_are_asked_for_outside_by_those_who_may() {
    use RecordType as T;
    for text in [
        "example.org.",
        ".",
        "16.77.10.in-addr.arpa.",
        "8.8.8.8.in-addr.arpa.",
        "drover.internal.",
        "localhost.",
    ] {
        let asked = question(text, T::A).to_vec().unwrap();
        assert!(matches!(ask(&asked, true), Answer::Ask(_)), "{text}");
        let Answer::Say(reply) = ask(&asked, false) else { panic!("{text} is asked") };
        assert_eq!(
            (reply.metadata.response_code, reply.metadata.authoritative),
            (ResponseCode::Refused, false)
        );
    }
    assert_eq!(told("db.far.internal.", T::A).0, ResponseCode::Refused, "another network's");
    let mut quiet = question("example.org.", T::A);
    quiet.metadata.recursion_desired = false;
    assert_eq!(said(&quiet).metadata.response_code, ResponseCode::Refused);
}

#[test]
fn what_is_no_plain_question_is_told_so_or_not_answered() {
    use RecordType as T;
    let code = |message: &Message| said(message).metadata.response_code;
    let ours = || question("web.vm.drover.internal.", T::A);
    let mut two = ours();
    two.add_query(Query::query(name("example.org."), T::A));
    assert_eq!(code(&two), ResponseCode::FormErr);
    assert_eq!(code(&question("vm.drover.internal.", T::AXFR)), ResponseCode::Refused);
    let mut chaos = ours();
    chaos.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(code(&chaos), ResponseCode::Refused);
    let mut update = ours();
    update.metadata.op_code = OpCode::Update;
    assert_eq!(code(&update), ResponseCode::NotImp);
    let mut new = with_edns(ours(), 4096);
    new.edns.as_mut().unwrap().set_version(1);
    assert_eq!(code(&new), ResponseCode::BADVERS);
    let mut reply = ours();
    reply.metadata.message_type = MessageType::Response;
    assert!(matches!(ask(&reply.to_vec().unwrap(), true), Answer::Nothing));
    let mut cut = ours().to_vec().unwrap();
    cut.truncate(20);
    let Answer::Say(reply) = ask(&cut, true) else { panic!("nothing said") };
    assert_eq!((reply.metadata.id, reply.metadata.response_code), (0xbeef, ResponseCode::FormErr));
    assert!(matches!(ask(&cut[..11], true), Answer::Nothing));
}

/// An answer from outside, with so many addresses.
fn outside_says(id: u16, text: &str, count: u8) -> Vec<u8> {
    let mut reply = Message::response(id, OpCode::Query);
    reply.add_query(Query::query(name(text), RecordType::A));
    for n in 0..count {
        let data = RData::A(A(Ipv4Addr::new(192, 0, 2, n)));
        reply.add_answer(Record::from_rdata(name(text), 60, data));
    }
    reply.to_vec().unwrap()
}

fn outside(message: &Message) -> Outside {
    match ask(&message.to_vec().unwrap(), true) {
        Answer::Ask(outside) => outside,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_question_goes_out_bare_and_only_its_answer_comes_in() {
    let mut asked = with_edns(question("Example.org.", RecordType::A), 4096);
    asked.metadata.authentic_data = true;
    let asked = outside(&asked);
    let bytes = asked.question(7).unwrap();
    let message = Message::from_vec(&bytes).unwrap();
    assert_eq!((message.metadata.id, message.metadata.recursion_desired), (7, true));
    assert_eq!((message.queries.len(), message.edns.unwrap().max_payload()), (1, LARGEST));
    let relayed = asked.relayed(7, &outside_says(7, "example.org.", 2), false).unwrap();
    let relayed = Message::from_vec(&relayed).unwrap();
    assert_eq!((relayed.metadata.id, relayed.answers.len()), (0xbeef, 2));
    for (what, bytes) in [
        ("another number", outside_says(8, "example.org.", 1)),
        ("another question", outside_says(7, "example.net.", 1)),
        ("a question", bytes),
        ("rubbish", vec![0; 40]),
        ("nothing", vec![]),
    ] {
        assert_eq!(asked.relayed(7, &bytes, false), None, "{what}");
    }
    let failed = Message::from_vec(&asked.failed().unwrap()).unwrap();
    assert_eq!((failed.metadata.id, failed.metadata.response_code), (0xbeef, ResponseCode::ServFail));
}

#[test]
fn what_does_not_fit_says_that_it_was_cut() {
    let long = outside_says(7, "example.org.", 60);
    assert!(long.len() > 512 && long.len() < 1232);
    let plain = outside(&question("example.org.", RecordType::A));
    let cut = Message::from_vec(&plain.relayed(7, &long, false).unwrap()).unwrap();
    assert_eq!((cut.metadata.id, cut.metadata.truncation, cut.answers.len()), (0xbeef, true, 0));
    assert_eq!(Message::from_vec(&plain.relayed(7, &long, true).unwrap()).unwrap().answers.len(), 60);
    let large = outside(&with_edns(question("example.org.", RecordType::A), 1232));
    assert_eq!(large.relayed(7, &long, false).unwrap().len(), long.len());
}

proptest! {
    #[test]
    fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..700), id in any::<u16>()) {
        let asked = Cell::new(false);
        if let Answer::Say(reply) = ask(&bytes, true) {
            // Never a loop of answers to answers.
            prop_assert!(bytes[2] & 0x80 == 0 && reply.metadata.message_type == MessageType::Response);
            prop_assert!(super::bytes(&reply, &bytes, false).is_none_or(|bytes| bytes.len() <= 1232));
            asked.set(true);
        }
        let outside = outside(&question("example.org.", RecordType::A));
        let _ = outside.relayed(id, &bytes, false);
    }

    #[test]
    fn any_question_behind_a_right_header_is_survived(rest in proptest::collection::vec(any::<u8>(), 0..300)) {
        let mut bytes = vec![0xbe, 0xef, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        bytes.extend(rest);
        match ask(&bytes, true) {
            Answer::Say(reply) => prop_assert_eq!(reply.metadata.id, 0xbeef),
            Answer::Ask(outside) => prop_assert!(outside.question(1).is_some()),
            Answer::Nothing => prop_assert!(false, "a question"),
        }
    }

    #[test]
    fn nobody_learns_a_name_or_address_of_others(host in 2_u8..255, label in "[a-z0-9][a-z0-9-]{0,19}") {
        prop_assume!(label != "web");
        let absent = told(&format!("{label}.vm.drover.internal."), RecordType::ANY);
        prop_assert_eq!((absent.0, absent.2), (ResponseCode::NXDomain, vec![]));
        prop_assume!(host != 9);
        let absent = told(&format!("{host}.3.77.10.in-addr.arpa."), RecordType::ANY);
        prop_assert_eq!((absent.0, absent.2), (ResponseCode::NXDomain, vec![]));
    }
}
