//! The event monitor's stream: JSON documents without separators, torn, interleaved with noise.
#![no_main]

use drover_actors::hypervisor::events::EventParser;
use drover_fuzz::bounded;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((piece, bytes)) = bytes.split_first() else { return };
    let piece = usize::from(*piece).max(1);
    let in_pieces = bounded(bytes, 256 << 10, 200, || {
        let mut parser = EventParser::new();
        bytes.chunks(piece).flat_map(|part| parser.push(part)).collect::<Vec<_>>()
    });
    // How the bytes were cut makes no difference.
    assert_eq!(EventParser::new().push(bytes), in_pieces);
});
