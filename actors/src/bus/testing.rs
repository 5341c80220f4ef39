//! A nats-server of one test: its own port, its own store, ended with the test.

use std::net::TcpListener as StdListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use super::connect::{Bus, BusConfig, connect};

/// How long anything may take in a test.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `level` holds.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut level: impl FnMut() -> F) {
    let deadline = Instant::now() + PATIENCE;
    let mut tick = tokio::time::interval(Duration::from_millis(10));
    while !level().await {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tick.tick().await;
    }
}

pub(crate) struct NatsServer {
    dir: tempfile::TempDir,
    pub port: u16,
    child: Option<Child>,
}

impl NatsServer {
    /// Starts a server, or says why the test is skipped.
    pub(crate) async fn start(extra: &str) -> Option<Self> {
        if Command::new("nats-server").arg("--version").stdout(Stdio::null()).status().is_err() {
            println!("skipped: nats-server is not on the PATH");
            return None;
        }
        let port = StdListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("store");
        let config = format!(
            "listen: 127.0.0.1:{port}\njetstream {{ store_dir: {:?}, max_file_store: 4G }}\n{extra}\n",
            store.display().to_string()
        );
        std::fs::write(dir.path().join("nats.conf"), config).unwrap();
        let mut server = Self { dir, port, child: None };
        server.up().await;
        Some(server)
    }

    pub(crate) async fn up(&mut self) {
        let log = std::fs::File::create(self.path("nats.log")).unwrap();
        let child = Command::new("nats-server")
            .arg("-c")
            .arg(self.path("nats.conf"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
        let port = self.port;
        until("nats-server answers", || async move {
            let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)).await else { return false };
            let mut info = [0; 4];
            stream.read_exact(&mut info).await.is_ok() && &info == b"INFO"
        })
        .await;
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) async fn bus(&self) -> Bus {
        bus_at(self.port).await
    }
}

pub(crate) async fn bus_at(port: u16) -> Bus {
    connect(&BusConfig { urls: vec![format!("nats://127.0.0.1:{port}")], ..BusConfig::default() })
        .await
        .unwrap()
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A wire to the server that can lose what the server says.
pub(crate) struct Proxy {
    pub port: u16,
    mute: Arc<AtomicBool>,
    cut: Arc<Notify>,
    task: tokio::task::JoinHandle<()>,
}

impl Proxy {
    pub(crate) async fn start(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (mute, cut) = (Arc::new(AtomicBool::new(false)), Arc::new(Notify::new()));
        let task = tokio::spawn(accept(listener, server, Arc::clone(&mute), Arc::clone(&cut)));
        Self { port, mute, cut, task }
    }

    /// What the server says is lost from now on.
    pub(crate) fn mute(&self) {
        self.mute.store(true, Ordering::SeqCst);
    }

    /// Ends the connections; new ones work.
    pub(crate) fn heal(&self) {
        self.mute.store(false, Ordering::SeqCst);
        self.cut.notify_waiters();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, server: u16, mute: Arc<AtomicBool>, cut: Arc<Notify>) {
    let mut wires = tokio::task::JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let (mute, cut) = (Arc::clone(&mute), Arc::clone(&cut));
        wires.spawn(async move {
            let Ok(upstream) = TcpStream::connect(("127.0.0.1", server)).await else { return };
            let (mut from_client, mut to_client) = client.into_split();
            let (mut from_server, mut to_server) = upstream.into_split();
            let up = async { tokio::io::copy(&mut from_client, &mut to_server).await.map(drop) };
            let down = async {
                let mut buffer = vec![0; 64 << 10];
                // Once something is lost, the rest of this connection makes no sense.
                let mut lost = false;
                loop {
                    let n = from_server.read(&mut buffer).await?;
                    lost |= mute.load(Ordering::SeqCst);
                    if n == 0 {
                        return std::io::Result::Ok(());
                    }
                    if !lost {
                        to_client.write_all(&buffer[..n]).await?;
                    }
                }
            };
            tokio::select! {
                _ = up => {}
                _ = down => {}
                () = cut.notified() => {}
            }
        });
    }
}
