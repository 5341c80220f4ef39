//! Replies of a VMM on its API socket: heads, bodies and chunks of any kind, cut anywhere.
#![no_main]

use std::cell::LazyCell;

use bytes::Bytes;
use drover_actors::hypervisor::api::{Counters, VmInfo, VmmPing, exchange};
use drover_fuzz::bounded;
use http::Request;
use http_body_util::Full;
use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::runtime::{Builder, Runtime};

thread_local! {
    static RUNTIME: LazyCell<Runtime> =
        LazyCell::new(|| Builder::new_current_thread().enable_time().build().unwrap());
}

async fn ask(reply: &[u8]) {
    let (ours, mut theirs) = tokio::io::duplex(64 << 10);
    let request = Request::get("/api/v1/vm.info").header("host", "localhost").body(Full::new(Bytes::new()));
    let vmm = async {
        let mut asked = [0; 4_096];
        let _ = theirs.read(&mut asked).await;
        let _ = theirs.write_all(reply).await;
        drop(theirs);
    };
    let (answer, ()) = tokio::join!(exchange(ours, request.unwrap()), vmm);
    if let Ok(body) = answer {
        let _ = serde_json::from_slice::<VmInfo>(&body);
        let _ = serde_json::from_slice::<Counters>(&body);
        let _ = serde_json::from_slice::<VmmPing>(&body);
    }
}

fuzz_target!(|bytes: &[u8]| {
    RUNTIME.with(|runtime| {
        bounded(bytes, 1 << 20, 200, || runtime.block_on(ask(bytes)));
        // Most bytes are no head: the second try gives them one.
        let mut whole = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n".to_vec();
        whole.extend_from_slice(bytes);
        bounded(&whole, 1 << 20, 200, || runtime.block_on(ask(&whole)));
    });
});
