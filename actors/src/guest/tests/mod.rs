//! The link against the real agent, and against agents that lie.

mod hostile;
mod real;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use drover_schemas::codec;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};

use super::*;

const DEADLINE: Duration = Duration::from_secs(20);

/// A hypervisor's hybrid socket whose guest is `serve`.
struct Hypervisor {
    dir: TempDir,
    task: tokio::task::JoinHandle<()>,
}

impl Hypervisor {
    fn socket(&self) -> PathBuf {
        self.dir.path().join("v.sock")
    }

    fn start<F>(serve: impl Fn(UnixStream) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("v.sock")).unwrap();
        let task = tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let mut socket = BufReader::with_capacity(1, socket);
                let mut line = String::new();
                socket.read_line(&mut line).await.unwrap();
                assert_eq!(line, "CONNECT 1023\n");
                let mut socket = socket.into_inner();
                // The host may have gone meanwhile.
                let _ = socket.write_all(b"OK 1073741824\n").await;
                tokio::spawn(serve(socket));
            }
        });
        Self { dir, task }
    }
}

impl Drop for Hypervisor {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn connect(socket: &Path) -> Result<Link, LinkError> {
    Link::connect(socket, &HelloInfo::default(), DEADLINE).await.map(|(link, _)| link)
}

fn body(value: &impl Serialize) -> Bytes {
    codec::encode(value).unwrap().into()
}

fn read<T: DeserializeOwned>(bytes: &[u8]) -> T {
    codec::decode(bytes).unwrap()
}

/// Waits until `level` holds.
async fn until(what: &str, mut level: impl FnMut() -> bool) {
    let start = Instant::now();
    while !level() {
        assert!(start.elapsed() < DEADLINE, "still not so: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Everything that comes on a stream, with credit renewed; the result decoded.
async fn drain<T: DeserializeOwned>(
    stream: &GuestStream,
    window: u64,
) -> (Vec<u8>, Vec<u8>, Result<T, drover_schemas::ErrorBody>) {
    use drover_schemas::guest::Channel;
    let (mut out, mut err) = (Vec::new(), Vec::new());
    loop {
        match tokio::time::timeout(DEADLINE, stream.recv()).await.unwrap().expect("the end comes first") {
            StreamEvent::Head(_) => {}
            StreamEvent::Data { ch, off, data, .. } => {
                let sink = if ch == Channel::Stderr { &mut err } else { &mut out };
                assert_eq!(off, sink.len() as u64);
                sink.extend_from_slice(&data);
                stream.grant(ch, sink.len() as u64 + window);
            }
            StreamEvent::End(end) => return (out, err, end.map(|bytes| read(&bytes))),
        }
    }
}

#[tokio::test]
async fn a_closed_door_is_told_from_a_missing_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v.sock");
    let missing = connect(&path).await.unwrap_err();
    assert!(matches!(missing, LinkError::Dial { .. }) && missing.may_pass());

    let listener = UnixListener::bind(&path).unwrap();
    let hang_up = tokio::spawn(async move {
        for answer in [&b""[..], b"NO\n", b"OK none\n", &[b'O'; 400]] {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut line = [0; 13];
            socket.read_exact(&mut line).await.unwrap();
            let _ = socket.write_all(answer).await;
        }
    });
    assert!(matches!(connect(&path).await, Err(LinkError::NobodyListens)));
    for _ in 0..3 {
        let error = connect(&path).await.unwrap_err();
        assert!(
            matches!(&error, LinkError::BadConnect { line } if line.len() <= 40) && !error.may_pass(),
            "{error}"
        );
    }
    hang_up.await.unwrap();
}

#[tokio::test]
async fn waiting_for_a_guest_can_be_cancelled_and_ends_in_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v.sock");
    let (info, cancel) = (HelloInfo::default(), tokio_util::sync::CancellationToken::new());
    let last = LastError::default();
    let late = connect_when_ready(&path, &info, &cancel, Duration::from_millis(60), &last).await;
    assert!(matches!(late, Err(LinkError::Deadline { after_ms: 60, .. })));
    assert!(matches!(last.get(), Some(LinkError::Dial { .. })));
    cancel.cancel();
    let cancelled = connect_when_ready(&path, &info, &cancel, DEADLINE, &last).await;
    assert!(matches!(cancelled, Err(LinkError::GivenUp)));
}
