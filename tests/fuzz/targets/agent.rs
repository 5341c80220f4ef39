//! The agent's loop of frames, with any bytes of its host in pieces of any size: it ends with its connection, and holds
//! no more than its windows. Its requests change nothing here.
#![no_main]

use std::sync::Arc;

use drover_agent::conn::echo::Echo;
use drover_agent::conn::serve;
use drover_fuzz::bounded;
use drover_schemas::guest::wire::encode;
use drover_schemas::guest::{EVENTS, HostFrame, HostHello, PROTO_MAX, PROTO_MIN};
use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

/// What the streams of one connection may hold, with the runtime around them.
const WINDOWS: usize = 16 << 20;

async fn converse(greets: bool, piece: usize, bytes: &[u8]) {
    let (host, guest) = duplex(64 << 10);
    let serving = tokio::spawn(serve(Box::new(guest), Arc::new(Echo::default())));
    let (mut reads, mut writes) = tokio::io::split(host);
    let says = async {
        if greets {
            let (version, features) = (String::new(), vec![EVENTS.to_owned()]);
            let hello = HostHello { proto_min: PROTO_MIN, proto_max: PROTO_MAX, version, features };
            // The agent hangs up when it has heard enough.
            let _ = writes.write_all(&encode(&HostFrame::Hello(hello)).unwrap()).await;
        }
        for part in bytes.chunks(piece) {
            if writes.write_all(part).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
        let _ = writes.shutdown().await;
    };
    let hears = async {
        let mut heard = [0; 4096];
        while reads.read(&mut heard).await.is_ok_and(|read| read > 0) {}
    };
    tokio::join!(says, hears);
    serving.await.expect("it does not panic");
}

fuzz_target!(|bytes: &[u8]| {
    let Some((how, bytes)) = bytes.split_first() else { return };
    let (greets, piece) = (how & 1 == 0, usize::from(how >> 1).max(1));
    bounded(bytes, WINDOWS, 200, || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(converse(greets, piece, bytes));
    });
});
