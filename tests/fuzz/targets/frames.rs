//! Frames between host and agent, in pieces of any size: both ends distrust the other.
#![no_main]

use bytes::BufMut as _;
use drover_fuzz::bounded;
use drover_schemas::guest::wire::{Decoder, encode};
use drover_schemas::guest::{AgentFrame, FrameKind, HostFrame};
use libfuzzer_sys::fuzz_target;

fn read<F: FrameKind + PartialEq + std::fmt::Debug>(piece: usize, bytes: &[u8]) {
    let mut decoder = Decoder::default();
    for part in bytes.chunks(piece) {
        decoder.room().put_slice(part);
        loop {
            match decoder.frame::<F>() {
                Ok(Some(frame)) => {
                    // What is read can be sent on, unless it is longer in the usual form.
                    let Ok(written) = encode(&frame) else { continue };
                    let mut again = Decoder::default();
                    again.room().put_slice(&written);
                    assert_eq!(again.frame::<F>().unwrap(), Some(frame));
                }
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Some((piece, bytes)) = bytes.split_first() else { return };
    let piece = usize::from(*piece).max(1);
    bounded(bytes, 64 << 10, 200, || read::<AgentFrame>(piece, bytes));
    bounded(bytes, 64 << 10, 200, || read::<HostFrame>(piece, bytes));
});
