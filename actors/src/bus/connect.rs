//! The connection to NATS: credentials, TLS, and how it stands.
//!
//! [`connect`] checks what can be checked without a server (files and their form), then returns at
//! once with a client that connects in the background and for ever. What only a server can tell (a
//! refused credential, an unknown CA, a version that is too old) shows in
//! [`BusState::last_error`] in words that name the setting.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_nats::{Client, ConnectOptions, Event, ServerAddr};
use drover_schemas::error::{ErrorBody, ErrorCode};
use drover_schemas::secret::Secret;
use futures_util::StreamExt as _;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};

use super::refusal::Refusal;

/// The oldest server that has per-message TTLs.
pub const MIN_SERVER: (i64, i64, i64) = (2, 11, 0);
/// How many messages one subscription holds: more than one read of the connection brings, so that a burst of small
/// requests is answered `busy` and not lost before anybody has seen it.
pub const SUBSCRIPTION_CAPACITY: usize = 1_024;
/// A file with a key or a certificate is never longer.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// How to reach the bus. At most one way to prove who we are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BusConfig {
    /// `nats://`, `tls://` or `ws://` addresses.
    pub urls: Vec<String>,
    /// A credentials file (JWT and seed).
    pub credentials_file: Option<PathBuf>,
    /// A file with an nkey seed (`SU…`).
    pub nkey_seed_file: Option<PathBuf>,
    /// User name, with `password` or `password_file`.
    pub user: Option<String>,
    /// Password of `user`.
    pub password: Option<Secret>,
    /// A file with the password of `user`.
    pub password_file: Option<PathBuf>,
    /// A file with a token.
    pub token_file: Option<PathBuf>,
    /// TLS.
    pub tls: TlsConfig,
    /// Prefix of the inboxes of this connection, e.g. `_INBOX_h1`; `_INBOX` if empty.
    pub inbox_prefix: String,
    /// Name of the connection, as the server shows it.
    pub name: String,
}

/// TLS of the connection.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsConfig {
    /// Refuse a connection without TLS.
    pub required: bool,
    /// Certificates of the authorities that may sign the server's, in PEM; the system's if left out.
    pub ca: Option<PathBuf>,
    /// Our certificate, in PEM, for mutual TLS.
    pub cert: Option<PathBuf>,
    /// The key of `cert`, in PEM.
    pub key: Option<PathBuf>,
    /// Begin with the TLS handshake, before the server says anything (`handshake_first`).
    pub first: bool,
}

/// How the connection stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BusState {
    /// There is a connection to a server that is new enough.
    pub connected: bool,
    /// Since when it is so.
    pub since_unix_ms: u64,
    /// Counts connections, to notice a reconnect.
    pub connects: u64,
    /// The server asked its clients to go elsewhere.
    pub lame_duck: bool,
    /// How often a subscription was too slow and lost messages. An alarm.
    pub slow_consumers: u64,
    /// The last thing that went wrong.
    pub last_error: Option<String>,
}

/// A connection that keeps itself up.
#[derive(Debug, Clone)]
pub struct Bus {
    /// The client.
    pub client: Client,
    /// How the connection stands.
    pub state: watch::Receiver<BusState>,
}

/// The configuration of the bus cannot work.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No address.
    #[error("bus.urls is empty: name at least one server, such as nats://127.0.0.1:4222")]
    NoUrls,
    /// An address is not one.
    #[error("bus.urls: {url:?} is not an address of a NATS server")]
    Url {
        /// The text.
        url: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Settings exclude each other, or one needs another.
    #[error("bus: {reason}")]
    Settings {
        /// Which, and what to do.
        reason: &'static str,
    },
    /// A file cannot be read.
    #[error("bus.{setting}: read {}", path.display())]
    File {
        /// The setting.
        setting: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A file holds something else.
    #[error("bus.{setting}: {} does not hold {expected}", path.display())]
    Content {
        /// The setting.
        setting: &'static str,
        /// The file.
        path: PathBuf,
        /// What it should hold.
        expected: &'static str,
    },
    /// The client refused the options.
    #[error("prepare the connection to the bus")]
    Client {
        /// Why.
        #[source]
        source: async_nats::ConnectError,
    },
}

impl ConnectError {
    /// As a coded error.
    #[must_use]
    pub fn to_body(&self) -> ErrorBody {
        ErrorBody::new(ErrorCode::InvalidArgument, self.to_string()).with("cause", "bus_config")
    }
}

/// Starts a connection. Returns at once, connected or not. A host makes two: one for control, one
/// for bulk, so that a file transfer does not delay a command.
///
/// # Errors
/// [`ConnectError`] for what can never work; an absent server is no error.
pub async fn connect(config: &BusConfig) -> Result<Bus, ConnectError> {
    let servers = config
        .urls
        .iter()
        .map(|url| url.parse().map_err(|source| ConnectError::Url { url: url.clone(), source }))
        .collect::<Result<Vec<ServerAddr>, _>>()?;
    if servers.is_empty() {
        return Err(ConnectError::NoUrls);
    }
    // By host and port: the rest of an address may hold a password.
    let places: Vec<String> = servers.iter().map(|s| format!("{}:{}", s.host(), s.port())).collect();
    let (events, seen) = mpsc::channel(64);
    let attempts = events.clone();
    let mut options = ConnectOptions::new()
        .retry_on_initial_connect()
        .max_reconnects(None)
        .subscription_capacity(SUBSCRIPTION_CAPACITY)
        .connection_timeout(Duration::from_secs(5))
        .ping_interval(Duration::from_secs(20))
        .reconnect_delay_callback(reconnect_delay)
        .event_callback(move |event| {
            let events = events.clone();
            async move {
                let _ = events.send(Seen::Event(event)).await;
            }
        })
        // Chooses nothing: it is where the client tells why the last attempt failed. Its events say
        // "TLS error" and keep the rest to themselves.
        .reconnect_to_server_callback(move |servers, _| {
            let errors = servers.into_iter().filter_map(|server| server.last_error).next_back();
            if let Some(error) = errors {
                let _ = attempts.try_send(Seen::Attempt(error));
            }
            std::future::ready(None)
        });
    if !config.inbox_prefix.is_empty() {
        options = options.custom_inbox_prefix(&config.inbox_prefix);
    }
    if !config.name.is_empty() {
        options = options.name(&config.name);
    }
    options = with_identity(options, config)?;
    options = with_tls(options, &config.tls)?;
    let client = options.connect(servers).await.map_err(|source| ConnectError::Client { source })?;
    let (state, watched) = watch::channel(BusState { since_unix_ms: unix_ms(), ..BusState::default() });
    tokio::spawn(follow(client.clone(), seen, state, hint(config), places.join(", ")));
    Ok(Bus { client, state: watched })
}

/// 50 ms, doubled up to 4 s, with up to half of it more by chance, so that a fleet does not come
/// back as one.
fn reconnect_delay(attempts: usize) -> Duration {
    let base = Duration::from_millis(50) * (1 << attempts.clamp(1, 7).saturating_sub(1));
    base.min(Duration::from_secs(4)).mul_f64(1.0 + rand::random::<f64>() / 2.0)
}

impl Bus {
    /// Waits until there is a connection.
    pub async fn connected(&self) {
        let mut state = self.state.clone();
        // The sender lives as long as the client; when both are gone nobody waits for an answer.
        let _ = state.wait_for(|s| s.connected).await;
    }
}

/// Waits until the server has taken everything that was sent on a connection until now.
pub async fn caught_up(client: &Client) {
    // What comes back was sent after all of it.
    let inbox = client.new_inbox();
    let Ok(mut back) = client.subscribe(inbox.clone()).await else { return };
    if client.publish(inbox, bytes::Bytes::new()).await.is_ok() {
        let _ = back.next().await;
    }
}

/// What the client lets us see.
enum Seen {
    Event(Event),
    /// Why an attempt to connect failed.
    Attempt(String),
}

/// Keeps [`BusState`] up to date until the client is closed.
async fn follow(
    client: Client,
    mut events: mpsc::Receiver<Seen>,
    state: watch::Sender<BusState>,
    hint: String,
    servers: String,
) {
    while let Some(seen) = events.recv().await {
        let event = match seen {
            Seen::Event(event) => event,
            Seen::Attempt(error) => {
                let error = explain(&error, &hint);
                if state.borrow().last_error.as_ref() != Some(&error) {
                    tracing::warn!(error, servers, "the bus could not be reached, trying again");
                    state.send_modify(|s| s.last_error = Some(error));
                }
                continue;
            }
        };
        tracing::info!(%event, "bus");
        let closed = matches!(event, Event::Closed);
        let server = client.try_server_info().map(|info| info.version);
        let before = state.borrow().last_error.clone();
        state.send_modify(|s| apply(s, &event, server.as_deref(), &hint, unix_ms()));
        if let Event::ClientError(_) = event
            && let Some(error) = state.borrow().last_error.as_ref().filter(|e| before.as_ref() != Some(e))
        {
            tracing::warn!(error, servers, "the bus could not be reached, trying again");
        }
        if closed {
            return;
        }
    }
}

fn apply(state: &mut BusState, event: &Event, server: Option<&str>, hint: &str, now: u64) {
    let set_connected = |connected: bool, state: &mut BusState| {
        if state.connected != connected {
            state.connected = connected;
            state.since_unix_ms = now;
        }
    };
    match event {
        Event::Connected => {
            state.lame_duck = false;
            match server {
                Some(version) if !is_supported(version) => {
                    set_connected(false, state);
                    let (major, minor, _) = MIN_SERVER;
                    state.last_error = Some(format!(
                        "the NATS server has version {version}, drover needs {major}.{minor} or newer: upgrade it"
                    ));
                }
                _ => {
                    set_connected(true, state);
                    state.connects += 1;
                    state.last_error = None;
                }
            }
        }
        Event::Disconnected | Event::Closed => set_connected(false, state),
        Event::LameDuckMode => state.lame_duck = true,
        Event::SlowConsumer(_) => state.slow_consumers += 1,
        Event::ServerError(error) => state.last_error = Some(explain(&error.to_string(), hint)),
        // Says less than what [`Seen::Attempt`] brings, except at the first attempt.
        Event::ClientError(error) if state.last_error.is_none() => {
            state.last_error = Some(explain(&error.to_string(), hint));
        }
        Event::ClientError(_) | Event::Draining => {}
    }
}

/// Adds what an error means, and which setting it is about.
fn explain(error: &str, hint: &str) -> String {
    let Some(refusal) = Refusal::of(error) else {
        return match error.to_ascii_lowercase().contains("tls") {
            true => format!("{error}: check bus.tls"),
            false => error.to_owned(),
        };
    };
    let setting = match refusal {
        Refusal::Login => format!("check {hint}"),
        Refusal::NoCertificate => "set bus.tls.cert and bus.tls.key".to_owned(),
        Refusal::OwnExpired => "have bus.tls.cert renewed".to_owned(),
        Refusal::OwnUnknown => "check bus.tls.cert".to_owned(),
        Refusal::Expired => "have it renewed".to_owned(),
        Refusal::Unknown => "check bus.tls.ca".to_owned(),
        Refusal::Name => "check bus.urls, or have that name put into it".to_owned(),
        Refusal::Files => "check bus.tls.cert and bus.tls.key".to_owned(),
    };
    format!("{error}: {}; {setting}", refusal.meaning())
}

/// The setting that says who we are.
fn hint(config: &BusConfig) -> String {
    let file = |setting: &str, path: &Option<PathBuf>| {
        path.as_ref().map(|p| format!("bus.{setting} ({})", p.display()))
    };
    file("credentials_file", &config.credentials_file)
        .or_else(|| file("nkey_seed_file", &config.nkey_seed_file))
        .or_else(|| file("token_file", &config.token_file))
        .or_else(|| config.user.as_ref().map(|user| format!("bus.user {user:?} and its password")))
        .unwrap_or_else(|| "bus: no credentials are configured".to_owned())
}

/// Whether a server of this version will do; unreadable versions are let through.
fn is_supported(version: &str) -> bool {
    let mut parts = version.split(['.', '-']).map(str::parse::<i64>);
    match (parts.next(), parts.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= (MIN_SERVER.0, MIN_SERVER.1),
        _ => true,
    }
}

fn with_identity(options: ConnectOptions, config: &BusConfig) -> Result<ConnectOptions, ConnectError> {
    let ways = [
        config.credentials_file.is_some(),
        config.nkey_seed_file.is_some(),
        config.user.is_some(),
        config.token_file.is_some(),
    ];
    if ways.iter().filter(|set| **set).count() > 1 {
        let reason = "set only one of credentials_file, nkey_seed_file, user and token_file";
        return Err(ConnectError::Settings { reason });
    }
    if let Some(path) = &config.credentials_file {
        let text = read("credentials_file", path)?;
        let content = || ConnectError::Content {
            setting: "credentials_file",
            path: path.clone(),
            expected: "NATS credentials (a user JWT and an nkey seed)",
        };
        return options.credentials(&text).map_err(|_| content());
    }
    if let Some(path) = &config.nkey_seed_file {
        let text = read("nkey_seed_file", path)?;
        let seed = text.lines().map(str::trim).find(|line| is_user_seed(line));
        return seed.map(|seed| options.nkey(seed.to_owned())).ok_or_else(|| ConnectError::Content {
            setting: "nkey_seed_file",
            path: path.clone(),
            expected: "the nkey seed of a user (58 characters that begin with SU)",
        });
    }
    if let Some(path) = &config.token_file {
        return Ok(options.token(read("token_file", path)?.trim().to_owned()));
    }
    if let Some(user) = &config.user {
        let password = match (&config.password, &config.password_file) {
            (Some(password), None) => password.reveal().to_owned(),
            (None, Some(path)) => read("password_file", path)?.trim().to_owned(),
            _ => {
                let reason = "user needs exactly one of password and password_file";
                return Err(ConnectError::Settings { reason });
            }
        };
        return Ok(options.user_and_password(user.clone(), password));
    }
    Ok(options)
}

fn is_user_seed(line: &str) -> bool {
    line.len() == 58
        && line.starts_with("SU")
        && line.bytes().all(|b| b.is_ascii_uppercase() || (b'2'..=b'7').contains(&b))
}

fn with_tls(mut options: ConnectOptions, tls: &TlsConfig) -> Result<ConnectOptions, ConnectError> {
    if let Some(ca) = &tls.ca {
        read_pem("tls.ca", ca, "CERTIFICATE", "certificates in PEM")?;
        options = options.add_root_certificates(ca.clone());
    }
    match (&tls.cert, &tls.key) {
        (Some(cert), Some(key)) => {
            read_pem("tls.cert", cert, "CERTIFICATE", "a certificate in PEM")?;
            read_pem("tls.key", key, "PRIVATE KEY", "a private key in PEM")?;
            options = options.add_client_certificate(cert.clone(), key.clone());
        }
        (None, None) => {}
        _ => return Err(ConnectError::Settings { reason: "tls.cert and tls.key need each other" }),
    }
    if tls.required || tls.ca.is_some() || tls.cert.is_some() {
        options = options.require_tls(true);
    }
    if tls.first {
        options = options.tls_first();
    }
    Ok(options)
}

fn read_pem(
    setting: &'static str,
    path: &Path,
    label: &str,
    expected: &'static str,
) -> Result<(), ConnectError> {
    let text = read(setting, path)?;
    let begins = |line: &str| line.starts_with("-----BEGIN ") && line.contains(label);
    if text.lines().any(begins) {
        return Ok(());
    }
    Err(ConnectError::Content { setting, path: path.to_owned(), expected })
}

fn read(setting: &'static str, path: &Path) -> Result<String, ConnectError> {
    let read = || {
        let len = std::fs::metadata(path)?.len();
        if len > MAX_FILE_BYTES {
            return Err(std::io::Error::new(std::io::ErrorKind::FileTooLarge, "the file is too long"));
        }
        std::fs::read_to_string(path)
    };
    read().map_err(|source| ConnectError::File { setting, path: path.to_owned(), source })
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
