//! The private NATS server: its configuration, its process and its readiness.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::client_file::ClientFile;
use super::error::DevError;
use super::state::StateDir;

const READY_WITHIN: Duration = Duration::from_secs(15);
const END_WITHIN: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);
const USER: &str = "drover";
const LAST_PORT: &str = "nats.port";
/// How much of the server's log an error shows.
const LAST_WORDS: usize = 12;

/// A running server.
#[derive(Debug)]
pub struct Server {
    child: Child,
    ports: PathBuf,
    log: PathBuf,
    last_port: PathBuf,
    client: ClientFile,
}

impl Server {
    /// Starts the server on the loopback address, over the store of the state folder.
    pub async fn start(binary: &Path, state: &StateDir, port: u16) -> Result<Self, DevError> {
        end_leftover(state).await?;
        let port = match port {
            0 => last_port(state).await,
            port => Some(port),
        };
        let log = state.path("nats.log");
        let ports = state.folder("nats-ports")?;
        let client = ClientFile { url: String::new(), user: USER.to_owned(), password: secret() };
        let config = state.write_private("nats.conf", &config(state, port, &client.password)?)?;
        clear(&ports)?;
        let words = std::fs::File::create(&log).map_err(DevError::file("create", &log))?;
        let errors = words.try_clone().map_err(DevError::file("open", &log))?;
        let child = Command::new(binary)
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(words)
            .stderr(errors)
            // Ctrl-C reaches the whole foreground group; the server must outlive the host.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| DevError::Spawn { path: binary.to_owned(), source })?;
        Ok(Self { child, ports, log, last_port: state.path(LAST_PORT), client })
    }

    /// Waits until JetStream answers, and learns the port.
    pub async fn wait_ready(&mut self) -> Result<(), DevError> {
        let deadline = Instant::now() + READY_WITHIN;
        while Instant::now() < deadline {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(DevError::NatsEnded { status, log: self.last_words() });
            }
            if let Some(url) = self.url() {
                self.client.url = url;
                if answers(&self.client).await {
                    // Only a convenience: without the file the next start takes any port.
                    if let Some((_, port)) = self.client.url.rsplit_once(':') {
                        let _ = std::fs::write(&self.last_port, port);
                    }
                    return Ok(());
                }
            }
            sleep(POLL).await;
        }
        Err(DevError::NatsNotReady { seconds: READY_WITHIN.as_secs(), log: self.last_words() })
    }

    /// What clients need.
    pub fn client_file(&self) -> ClientFile {
        self.client.clone()
    }

    /// The error of a server that ends by itself.
    pub async fn ended(&mut self) -> DevError {
        match self.child.wait().await {
            Ok(status) => DevError::NatsEnded { status, log: self.last_words() },
            Err(source) => {
                DevError::File { action: "wait for the server of", path: self.log.clone(), source }
            }
        }
    }

    /// Ends the server: it flushes its store first, and is killed only if it does not end in time.
    pub async fn stop(mut self) -> Result<(), DevError> {
        let failed = DevError::file("end the server of", self.log.clone());
        if let Some(pid) = self.child.id().and_then(|pid| i32::try_from(pid).ok()) {
            // It may have ended this instant; the wait below tells.
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        match timeout(END_WITHIN, self.child.wait()).await {
            Ok(ended) => ended.map(drop).map_err(failed),
            Err(_) => self.child.kill().await.map_err(failed),
        }
    }

    /// The URL from the file that the server writes when it listens.
    fn url(&self) -> Option<String> {
        let entry = std::fs::read_dir(&self.ports).ok()?.flatten().next()?;
        let ports: serde_json::Value = serde_json::from_slice(&std::fs::read(entry.path()).ok()?).ok()?;
        ports.pointer("/nats/0")?.as_str().map(str::to_owned)
    }

    fn last_words(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LAST_WORDS)..].join("\n")
    }
}

/// 256 random bits as text.
fn secret() -> String {
    let bytes: [u8; 32] = rand::random();
    drover_actors::images::hex(&bytes)
}

fn config(state: &StateDir, port: Option<u16>, password: &str) -> Result<String, DevError> {
    let store = state.folder("jetstream")?;
    let listen = port.map_or_else(|| "-1".to_owned(), |port| port.to_string());
    // JSON strings are strings of the server's configuration as well.
    let quoted = |path: &Path| serde_json::Value::from(path.to_string_lossy()).to_string();
    Ok(format!(
        r#"# Written by `drover dev` at each start.
server_name: drover-dev
listen: "127.0.0.1:{listen}"
pid_file: {pid}
ports_file_dir: {ports}
ping_interval: "10s"
ping_max: 2
jetstream {{
  store_dir: {store}
  # What a host was told is stored shall survive a power cut.
  sync_interval: always
  max_memory_store: 256MB
  max_file_store: 8GB
}}
authorization {{ user: "{USER}", password: "{password}" }}
"#,
        pid = quoted(&state.path("nats.pid")),
        ports = quoted(&state.path("nats-ports")),
        store = quoted(&store),
    ))
}

async fn answers(client: &ClientFile) -> bool {
    let options = async_nats::ConnectOptions::new()
        .user_and_password(client.user.clone(), client.password.clone())
        .connection_timeout(Duration::from_secs(2));
    let Ok(connection) = options.connect(&client.url).await else { return false };
    let asked = connection.request("$JS.API.INFO", bytes::Bytes::new());
    matches!(timeout(Duration::from_secs(2), asked).await, Ok(Ok(_)))
}

fn clear(folder: &Path) -> Result<(), DevError> {
    let entries = std::fs::read_dir(folder).map_err(DevError::file("list", folder))?;
    for entry in entries.flatten() {
        std::fs::remove_file(entry.path()).map_err(DevError::file("remove", entry.path()))?;
    }
    Ok(())
}

/// The port of the last time, if it is free: clients with a URL of their own need not learn another.
async fn last_port(state: &StateDir) -> Option<u16> {
    let config = std::fs::read_to_string(state.path(LAST_PORT)).ok()?;
    let port = config.trim().parse().ok()?;
    tokio::net::TcpListener::bind(("127.0.0.1", port)).await.is_ok().then_some(port)
}

/// Ends the server that a killed `drover dev` left behind. The lock says that no living one owns it,
/// and the command line that it is ours.
async fn end_leftover(state: &StateDir) -> Result<(), DevError> {
    let Ok(text) = std::fs::read_to_string(state.path("nats.pid")) else { return Ok(()) };
    let Ok(pid) = text.trim().parse::<i32>() else { return Ok(()) };
    let config = state.path("nats.conf");
    let ours = || {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        command.split(|b| *b == 0).any(|arg| arg == config.as_os_str().as_encoded_bytes())
    };
    if !ours() {
        return Ok(());
    }
    info!(pid, "ending the NATS server that an earlier `drover dev` left");
    let deadline = Instant::now() + END_WITHIN;
    let mut signal = Signal::SIGTERM;
    while ours() {
        if Instant::now() >= deadline {
            warn!(pid, "it does not end; killing it");
            signal = Signal::SIGKILL;
        }
        let _ = kill(Pid::from_raw(pid), signal);
        sleep(POLL * 5).await;
    }
    Ok(())
}
