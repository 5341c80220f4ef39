use bytes::BufMut as _;
use proptest::prelude::*;

use super::*;
use crate::blob::Blob;
use crate::guest::{AgentFrame, Channel, Data, HostFrame, MAX_DATA, Ping};

fn data(len: usize) -> AgentFrame {
    let data = Blob::from(vec![7; len]);
    AgentFrame::Data(Data { stream: u32::MAX, ch: Channel::Stdout, off: u64::MAX >> 11, data, eof: true })
}

#[test]
fn the_longest_data_frame_fits() {
    let bytes = encode(&data(MAX_DATA)).unwrap();
    assert!(bytes.len() < MAX_DATA + 200);
    let mut decoder = Decoder::default();
    decoder.room().put_slice(&bytes);
    assert_eq!(decoder.frame::<AgentFrame>().unwrap(), Some(data(MAX_DATA)));
    decoder.release();
    assert_eq!(decoder.held(), 0);
}

#[test]
fn an_overlong_frame_is_refused_before_it_is_allocated() {
    let mut decoder = Decoder::default();
    decoder.room().put_slice(&u32::MAX.to_be_bytes());
    assert!(decoder.room().capacity() < 64 * 1024);
    assert!(matches!(decoder.frame::<AgentFrame>(), Err(WireError::Length { len: 0xffff_ffff })));
    let mut decoder = Decoder::default();
    decoder.room().put_slice(&[0; 4]);
    assert!(matches!(decoder.frame::<AgentFrame>(), Err(WireError::Length { len: 0 })));
    assert!(matches!(encode(&data(MAX_FRAME)), Err(WireError::Length { .. })));
}

#[test]
fn memory_follows_what_arrived_and_not_what_was_stated() {
    let mut decoder = Decoder::default();
    decoder.room().put_slice(&(MAX_FRAME as u32).to_be_bytes());
    decoder.room().put_slice(&[0x81; 100]);
    decoder.room();
    assert!(decoder.held() <= 2 * READ, "{}", decoder.held());
}

#[test]
fn a_frame_of_a_later_version_is_unknown() {
    let mut decoder = Decoder::default();
    let body = crate::codec::encode(&serde_json::json!({"t": "teleport", "to": "mars"})).unwrap();
    decoder.room().put_u32(body.len() as u32);
    decoder.room().put_slice(&body);
    assert_eq!(decoder.frame::<HostFrame>().unwrap(), Some(HostFrame::Unknown));
}

proptest! {
    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let mut decoder = Decoder::default();
        decoder.room().put_slice(&bytes);
        while let Ok(Some(_)) = decoder.frame::<AgentFrame>() {}
        let _ = HostFrame::parse(&bytes);
    }

    #[test]
    fn frames_survive_any_cut(cuts in prop::collection::vec(1usize..3000, 1..40), sizes in prop::collection::vec(0usize..5000, 1..8)) {
        let frames: Vec<_> = sizes.iter().map(|n| data(*n)).chain([AgentFrame::Ping(Ping { nonce: 9 })]).collect();
        let all: Vec<u8> = frames.iter().flat_map(|f| encode(f).unwrap()).collect();
        let mut decoder = Decoder::default();
        let mut read = Vec::new();
        let mut rest = &all[..];
        for cut in cuts.iter().cycle() {
            let (now, later) = rest.split_at((*cut).min(rest.len()));
            decoder.room().put_slice(now);
            while let Some(frame) = decoder.frame::<AgentFrame>().unwrap() {
                read.push(frame);
            }
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(read, frames);
    }
}
