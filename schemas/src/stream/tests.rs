use super::*;
use proptest::prelude::*;

/// Moves bytes over a link that loses, duplicates and delays frames at random, until the end is
/// acknowledged; returns what arrived.
fn transfer(data: &[u8], window: u64, faults: &[u8]) -> (Vec<u8>, u64) {
    let mut sender = Sender::new(Channel::Data, window);
    let mut receiver = Receiver::new(Channel::Data, window);
    let mut rest = Bytes::copy_from_slice(data);
    let mut got = Vec::new();
    let mut fault = faults.iter().copied().cycle();
    let (mut to_receiver, mut to_sender) = (VecDeque::new(), VecDeque::new());
    let mut finished = false;
    for step in 0..200_000_u64 {
        // Time advances faster than the resend time now and then, as after an outage.
        let now = step * 50;
        let room = sender.room().min(rest.len());
        if room > 0 {
            sender.push(rest.split_to(room), now);
        }
        if rest.is_empty() && !finished {
            sender.finish(now);
            finished = true;
        }
        while let Some(frame) = sender.poll(now) {
            match if step < 2_000 { fault.next().unwrap() } else { 0 } {
                1 => {}
                2 => {
                    to_receiver.push_back(frame.clone());
                    to_receiver.push_back(frame);
                }
                _ => to_receiver.push_back(frame),
            }
        }
        while let Some(frame) = to_receiver.pop_front() {
            let bytes = frame.data.unwrap().0;
            if let Some(fresh) = receiver.data(frame.off.unwrap(), bytes, frame.eof).unwrap() {
                got.extend_from_slice(&fresh);
            }
        }
        if let Some(ack) = receiver.poll_ack(window, now)
            && (step >= 2_000 || fault.next().unwrap() != 3)
        {
            to_sender.push_back(ack);
        }
        while let Some(ack) = to_sender.pop_front() {
            sender.ack(ack.acked_off.unwrap(), ack.window.unwrap(), now).unwrap();
        }
        if sender.done() {
            assert!(receiver.ended());
            return (got, sender.resent());
        }
    }
    panic!("no end: {sender:?} {receiver:?}");
}

#[test]
fn a_clean_link_resends_nothing() {
    let data: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
    let (got, resent) = transfer(&data, MAX_WINDOW, &[0]);
    assert!(got == data);
    assert_eq!(resent, 0);
    assert_eq!(transfer(&[], MAX_WINDOW, &[0]), (vec![], 0));
}

#[test]
fn an_acknowledgement_of_what_was_never_sent_is_refused() {
    let mut sender = Sender::new(Channel::Stdout, 100);
    sender.push(Bytes::from_static(b"abc"), 0);
    assert!(sender.ack(4, 10, 0).is_err());
    assert!(sender.ack(3, 10, 0).is_ok());
}

#[test]
fn data_beyond_the_window_is_refused() {
    let mut receiver = Receiver::new(Channel::Stdin, 2);
    assert!(receiver.data(0, Bytes::from_static(b"abc"), false).is_err());
    assert!(receiver.data(u64::MAX, Bytes::from_static(b"abc"), false).is_err());
    assert_eq!(receiver.data(0, Bytes::from_static(b"ab"), true).unwrap().unwrap(), "ab");
    assert!(receiver.data(2, Bytes::from_static(b"c"), false).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_byte_arrives_once_and_in_order(
        len in 0_usize..600_000,
        window in 1_000_u64..MAX_WINDOW,
        faults in proptest::collection::vec(0_u8..4, 1..40),
    ) {
        let data: Vec<u8> = (0..len).map(|i| (i % 253) as u8).collect();
        let (got, _) = transfer(&data, window, &faults);
        prop_assert!(got == data);
    }
}
