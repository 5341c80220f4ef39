//! Why `drover dev` did not run.

use std::path::PathBuf;
use std::process::ExitStatus;

/// One variant for each operation that can fail.
#[derive(Debug, thiserror::Error)]
pub enum DevError {
    /// There is no folder for state.
    #[error("there is no folder for state: set HOME or give --state")]
    NoHome,
    /// A file or folder.
    #[error("{action} {}", path.display())]
    File {
        /// What was done to it.
        action: &'static str,
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The folder is in use.
    #[error("another `drover dev` uses {}; end it, or give another --state", path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// A file that drover wrote cannot be read.
    #[error("read {}", path.display())]
    Decode {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The nats-server that was given is of no use.
    #[error("{}: {reason}", path.display())]
    NatsUnfit {
        /// The binary.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// There is none, and none could be fetched.
    #[error(
        "no nats-server {minimum} or newer on PATH, and fetching one failed: {reason}; \
         install nats-server, or give --nats-server"
    )]
    NatsMissing {
        /// The oldest that would do.
        minimum: String,
        /// What went wrong.
        reason: String,
    },
    /// The server could not be started.
    #[error("start {}", path.display())]
    Spawn {
        /// The binary.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The server ended by itself.
    #[error("the NATS server ended ({status}); its last words:\n{log}")]
    NatsEnded {
        /// How.
        status: ExitStatus,
        /// The end of its log.
        log: String,
    },
    /// The server does not answer.
    #[error("the NATS server was not ready within {seconds} s; its last words:\n{log}")]
    NatsNotReady {
        /// How long it was waited for.
        seconds: u64,
        /// The end of its log.
        log: String,
    },
    /// The hypervisor.
    #[error("no hypervisor: {reason}")]
    NoVmm {
        /// Why.
        reason: String,
    },
    /// The host's configuration could not be written.
    #[error("write the configuration of the host as YAML")]
    Yaml(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A settings file could not be read.
    #[error("read {} as YAML", path.display())]
    Settings {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The configuration is not one.
    #[error("the configuration of the host cannot be used")]
    Config(#[source] crate::config::ConfigError),
    /// The host ended with an error.
    #[error("run the host")]
    Host(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl DevError {
    /// For `map_err` on operations with files.
    pub(super) fn file(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }
}
