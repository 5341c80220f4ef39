use super::*;
use proptest::prelude::*;

/// Moves bytes over a link that loses, doubles and swaps frames and acknowledgements at random, to a receiver that
/// has less room now and then, until the end is acknowledged; returns what arrived, and how much was sent twice.
fn transfer(data: &[u8], window: u64, faults: &[u8]) -> (Vec<u8>, u64) {
    let mut sender = Sender::new(Channel::Data, window);
    let mut receiver = Receiver::new(Channel::Data, window);
    let mut rest = Bytes::copy_from_slice(data);
    let mut got = Vec::new();
    let mut fault = faults.iter().copied().cycle();
    let (mut to_receiver, mut to_sender) = (VecDeque::new(), VecDeque::new());
    let (mut late_frame, mut late_ack) = (None, None);
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
                4 if late_frame.is_none() => late_frame = Some(frame),
                _ => {
                    to_receiver.push_back(frame);
                    to_receiver.extend(late_frame.take());
                }
            }
        }
        while let Some(frame) = to_receiver.pop_front() {
            let bytes = frame.data.unwrap().0;
            if let Some(fresh) = receiver.data(frame.off.unwrap(), bytes, frame.eof).unwrap() {
                got.extend_from_slice(&fresh);
            }
        }
        let room = window - window / 5 * u64::from(fault.next().unwrap());
        if let Some(ack) = receiver.poll_ack(room, now) {
            match if step < 2_000 { fault.next().unwrap() } else { 0 } {
                3 => {}
                4 if late_ack.is_none() => late_ack = Some(ack),
                _ => {
                    to_sender.push_back(ack);
                    to_sender.extend(late_ack.take());
                }
            }
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

/// One frame is lost and time stands still: the receiver tells of the gap, and once is enough.
#[test]
fn a_gap_is_mended_at_once() {
    let mut sender = Sender::new(Channel::Data, MAX_WINDOW);
    let mut receiver = Receiver::new(Channel::Data, MAX_WINDOW);
    sender.push(Bytes::from(vec![7; 400_000]), 0);
    sender.finish(0);
    let (mut lost, mut got) = (false, 0);
    while !sender.done() {
        let frame = sender.poll(0).expect("something to send without waiting");
        if frame.off == Some(131_072) && !std::mem::replace(&mut lost, true) {
            continue;
        }
        let fresh = receiver.data(frame.off.unwrap(), frame.data.unwrap().0, frame.eof).unwrap();
        got += fresh.map_or(0, |bytes| bytes.len());
        // Each frame behind the gap says so again.
        if let Some(ack) = receiver.poll_ack(MAX_WINDOW, 0) {
            sender.ack(ack.acked_off.unwrap(), ack.window.unwrap(), 0).unwrap();
        }
    }
    assert_eq!(got, 400_000);
    assert!(sender.resent() <= 400_000 - 131_072, "{}", sender.resent());
}

/// A connection was cut but nothing was lost: what arrives twice is told of, and causes nothing more.
#[test]
fn a_resend_that_nobody_needed_causes_no_other() {
    let mut sender = Sender::new(Channel::Data, MAX_WINDOW);
    let mut receiver = Receiver::new(Channel::Data, MAX_WINDOW);
    let (mut left, mut on_the_way, mut cut) = (8_000_000, VecDeque::new(), false);
    while left > 0 || sender.room() < MAX_WINDOW as usize {
        let room = sender.room().min(left);
        sender.push(Bytes::from(vec![7; room]), 0);
        left -= room;
        on_the_way.extend(std::iter::from_fn(|| sender.poll(0)));
        let frame: StreamFrame = on_the_way.pop_front().unwrap();
        receiver.data(frame.off.unwrap(), frame.data.unwrap().0, false).unwrap();
        if let Some(ack) =
            receiver.poll_ack(MAX_WINDOW, 0).or_else(|| (left == 0).then(|| receiver.ack(MAX_WINDOW, 0)))
        {
            sender.ack(ack.acked_off.unwrap(), ack.window.unwrap(), 0).unwrap();
        }
        if receiver.received() > 2_000_000 && !std::mem::replace(&mut cut, true) {
            sender.resend(0);
        }
    }
    assert!(cut && sender.resent() <= MAX_WINDOW, "{}", sender.resent());
}

#[test]
fn silence_is_answered_ever_more_patiently() {
    let mut sender = Sender::new(Channel::Data, MAX_WINDOW);
    sender.push(Bytes::from_static(b"abc"), 0);
    assert!(sender.poll(0).is_some());
    let sent: Vec<u64> = (1..60_000).filter(|now| sender.poll(*now).is_some()).collect();
    assert_eq!(sent, [2_000, 6_000, 14_000, 30_000, 46_000]);
    sender.ack(1, MAX_WINDOW, 60_000).unwrap();
    assert!(sender.poll(61_999).is_none() && sender.poll(62_000).is_some());
    sender.resend(62_001);
    assert!(sender.poll(62_001).is_some(), "a connection that is back is no silence");
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
        faults in proptest::collection::vec(0_u8..5, 1..40),
    ) {
        let data: Vec<u8> = (0..len).map(|i| (i % 253) as u8).collect();
        let (got, _) = transfer(&data, window, &faults);
        prop_assert!(got == data);
    }
}
