//! Where the bus is and how to get in.

use std::path::{Path, PathBuf};
use std::time::Duration;

use drover_schemas::Token;
use drover_schemas::subject::Subjects;
use tokio::sync::watch;
use tracing::{debug, warn};

use super::{Client, ClientError};

/// How long the first connect may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Everything that is needed to connect.
#[derive(Debug, Clone)]
pub struct Target {
    /// URL of the NATS server, or several divided by commas.
    pub server: String,
    /// How the client proves who it is.
    pub auth: Auth,
    /// Transport security.
    pub tls: Tls,
    /// First token of every subject.
    pub root: Token,
    /// Namespace of the calls.
    pub namespace: Token,
    /// Prefix of inboxes, for users that may subscribe to their own only.
    pub inbox_prefix: Option<String>,
}

/// How a client proves who it is.
#[derive(Clone, Default)]
pub enum Auth {
    /// Not at all, or by the URL.
    #[default]
    None,
    /// A credentials file (JWT and seed).
    Credentials(PathBuf),
    /// A file with an nkey seed.
    Nkey(PathBuf),
    /// A user and a password.
    Password {
        /// The user.
        user: String,
        /// The password.
        password: String,
    },
}

impl std::fmt::Debug for Auth {
    /// Shows the kind, never a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Credentials(_) => "Credentials",
            Self::Nkey(_) => "Nkey",
            Self::Password { .. } => "Password",
        })
    }
}

/// Files for TLS; all may be left out, and `tls://` still encrypts.
#[derive(Debug, Clone, Default)]
pub struct Tls {
    /// Root certificates to trust beside the system's.
    pub ca: Option<PathBuf>,
    /// The client's certificate and its key.
    pub cert: Option<(PathBuf, PathBuf)>,
}

impl Tls {
    fn files(&self) -> impl Iterator<Item = &Path> {
        let pair = self.cert.iter().flat_map(|(cert, key)| [cert, key]);
        self.ca.iter().chain(pair).map(PathBuf::as_path)
    }
}

impl Client {
    /// Connects; fails at once when the server cannot be reached, and reconnects for ever after.
    ///
    /// # Errors
    /// The file that could not be read, or why the server let nobody in.
    pub async fn connect(target: Target) -> Result<Self, ClientError> {
        let (sender, connects) = watch::channel(0_u64);
        let mut options = async_nats::ConnectOptions::new()
            .name("drover client")
            .connection_timeout(CONNECT_TIMEOUT)
            // A lost server shows in 20 s, in time for a stream to go on elsewhere.
            .ping_interval(Duration::from_secs(10))
            .event_callback(move |event| {
                let sender = sender.clone();
                async move { note(&sender, &event) }
            });
        options = authenticate(options, &target.auth).await?;
        for path in target.tls.files() {
            // The library would say that a file is not there, but not which.
            tokio::fs::read(path)
                .await
                .map_err(|source| ClientError::ReadKey { path: path.to_owned(), source })?;
        }
        if let Some(ca) = &target.tls.ca {
            options = options.add_root_certificates(ca.clone()).require_tls(true);
        }
        if let Some((cert, key)) = &target.tls.cert {
            options = options.add_client_certificate(cert.clone(), key.clone()).require_tls(true);
        }
        if let Some(prefix) = &target.inbox_prefix {
            options = options.custom_inbox_prefix(prefix);
        }
        let servers: Vec<&str> = target.server.split(',').map(str::trim).collect();
        let nats = options
            .connect(servers)
            .await
            .map_err(|source| ClientError::Connect { server: redact(&target.server), source })?;
        let subjects = Subjects::new(target.root.clone());
        Ok(Self { nats, target, subjects, connects })
    }

    /// Another connection to the same server. Bulk data takes one of its own, so that a full socket
    /// never delays a request.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub async fn for_bulk(&self) -> Result<Self, ClientError> {
        Self::connect(self.target.clone()).await
    }
}

fn note(connects: &watch::Sender<u64>, event: &async_nats::Event) {
    match event {
        async_nats::Event::Connected => connects.send_modify(|count| *count += 1),
        async_nats::Event::SlowConsumer(subscription) => {
            warn!(subscription, "messages were dropped: this program reads too slowly");
        }
        other => debug!(event = %other, "bus connection"),
    }
}

async fn authenticate(
    options: async_nats::ConnectOptions,
    auth: &Auth,
) -> Result<async_nats::ConnectOptions, ClientError> {
    let unreadable = |path: &Path| {
        let path = path.to_owned();
        move |source| ClientError::ReadKey { path, source }
    };
    match auth {
        Auth::None => Ok(options),
        Auth::Credentials(path) => options.credentials_file(path).await.map_err(unreadable(path)),
        Auth::Nkey(path) => {
            let seed = tokio::fs::read_to_string(path).await.map_err(unreadable(path))?;
            Ok(options.nkey(seed.trim().to_owned()))
        }
        Auth::Password { user, password } => Ok(options.user_and_password(user.clone(), password.clone())),
    }
}

/// The URL without the user and password that it may hold.
fn redact(server: &str) -> String {
    server
        .split(',')
        .map(|url| match (url.find("://"), url.rfind('@')) {
            (Some(scheme), Some(at)) if at > scheme => format!("{}://{}", &url[..scheme], &url[at + 1..]),
            _ => url.to_owned(),
        })
        .collect::<Vec<_>>()
        .join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_in_the_url_is_never_shown() {
        assert_eq!(redact("nats://u:p@h:4222,tls://k"), "nats://h:4222,tls://k");
        let auth = Auth::Password { user: "u".into(), password: "p".into() };
        assert_eq!(format!("{auth:?}"), "Password");
    }
}
