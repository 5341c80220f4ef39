//! The two ends of a stream on the bus, with frames that are lost, repeated, reordered and invented.
//! What arrives is a prefix of what was sent, and neither end holds more than its window.
#![no_main]

use bytes::Bytes;
use drover_fuzz::bounded;
use drover_schemas::stream::{Channel, Receiver, Sender, StreamFrame};
use libfuzzer_sys::fuzz_target;

const WINDOW: u64 = 4_096;

fn run(script: &[u8]) {
    let mut sender = Sender::new(Channel::Data, WINDOW);
    let mut receiver = Receiver::new(Channel::Data, WINDOW);
    let mut wire: Vec<StreamFrame> = Vec::new();
    let (mut sent, mut received) = (Vec::new(), Vec::new());
    let mut now = 0;
    for step in script.chunks(2) {
        let [what, how] = step else { return };
        now += u64::from(*how);
        match what % 7 {
            0 if sender.room() >= usize::from(*how) => {
                let data = vec![*how; usize::from(*how)];
                sent.extend_from_slice(&data);
                sender.push(Bytes::from(data), now);
            }
            1 => wire.extend(sender.poll(now)),
            2 if !wire.is_empty() => {
                let frame = wire.remove(usize::from(*how) % wire.len());
                if let (Some(off), Some(data)) = (frame.off, frame.data)
                    && let Ok(Some(data)) = receiver.data(off, data.0, frame.eof)
                {
                    received.extend_from_slice(&data);
                }
            }
            3 if !wire.is_empty() => {
                let frame = wire[usize::from(*how) % wire.len()].clone();
                if wire.len() < 64 {
                    wire.push(frame);
                }
            }
            4 => {
                let ack = receiver.ack(WINDOW, now);
                sender.ack(ack.acked_off.unwrap(), ack.window.unwrap(), now).unwrap();
            }
            5 => sender.resend(now),
            // What nobody sent: refused or harmless.
            6 => drop(receiver.data(u64::from(*how) * 97, Bytes::new(), false)),
            _ => {}
        }
        assert!(sent.starts_with(&received), "what arrived is not what was sent");
    }
}

fuzz_target!(|script: &[u8]| {
    bounded(script, 256 << 10, 1_024, || run(script));
});
