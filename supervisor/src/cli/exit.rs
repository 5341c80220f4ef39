//! What a command failed with, its exit code, and what to do next.

use std::io::ErrorKind;
use std::path::PathBuf;

use drover_actors::bus::refusal::Refusal;
use drover_actors::bus::upgrade::UpgradeError;
use drover_schemas::{ErrorBody, ErrorCode};

use crate::app::AppError;
use crate::buslog::FollowError;
use crate::client::ClientError;

/// The text of `--help` about exit codes.
pub const HELP: &str = "\
Exit codes:
  0  done
  1  failed (internal, hypervisor, unsupported)
  2  the command or the request is wrong
  3  not found
  4  exists already, conflict, or a state that does not allow it
  5  busy, unavailable, out of capacity or out of time: the same command may succeed later
  6  the guest failed or does not answer
  7  not allowed
  130  ended by Ctrl-C or SIGTERM
`vm exec` ends with the exit code of the program, 128 + the signal that ended it, or 124 when its
time was over; where drover itself failed, stderr has a line that begins with `error:`.";

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// A call failed.
    #[error("{0}")]
    Client(ClientError),
    /// The arguments contradict each other or the world.
    #[error("{0}")]
    Usage(String),
    /// A file of this machine.
    #[error("{action} {}", path.display())]
    File {
        /// What was done to it.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A folder of this machine that travels.
    #[error("{action} {}", path.display())]
    Folder {
        /// What was done to it.
        action: &'static str,
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: drover_tree::TreeError,
    },
    /// The output could not be written as asked.
    #[error("write the output as {format}")]
    Output {
        /// The format.
        format: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A digest differs after a copy.
    #[error("the copy of {what} differs: sha256 {here} here, {there} in the guest")]
    Digest {
        /// What was copied.
        what: String,
        /// The digest here.
        here: String,
        /// The digest in the guest.
        there: String,
    },
    /// Logs could not be set up.
    #[error("set up logs")]
    Telemetry(#[source] crate::telemetry::TelemetryError),
    /// The daemon ended with an error.
    #[error("run the host")]
    Host(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The file that the bus server's configuration is made of cannot be used.
    #[error("make the bus server's configuration")]
    BusFile(#[source] crate::busconf::BusFileError),
    /// A password cannot be hashed.
    #[error("make the hash of a password")]
    Password(#[source] crate::busconf::HashError),
    /// The stream and the buckets could not be made or changed.
    #[error("make the stream and the buckets")]
    Assets(#[source] drover_actors::bus::upgrade::UpgradeError),
    /// The audit could not be read.
    #[error("read the audit")]
    Audit(#[source] drover_actors::bus::log::ReadError),
    /// The log of a bus server cannot be followed.
    #[error("follow the server's log")]
    BusLog(#[source] crate::buslog::FollowError),
    /// `drover dev` ended with an error.
    #[error("run the development host")]
    Dev(#[source] crate::dev::DevError),
}

impl From<ClientError> for CliError {
    fn from(error: ClientError) -> Self {
        Self::Client(error)
    }
}

impl CliError {
    /// Whoever read the output is gone: nobody is left to tell.
    pub fn is_broken_pipe(&self) -> bool {
        let mut source: Option<&dyn std::error::Error> = match self {
            Self::Output { source, .. } => Some(&**source),
            Self::File { source, .. } => Some(source),
            _ => None,
        };
        while let Some(error) = source {
            if error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == ErrorKind::BrokenPipe) {
                return true;
            }
            source = error.source();
        }
        false
    }

    /// Whoever ran the command has ended it, and needs not be told.
    pub const fn is_cancelled(&self) -> bool {
        matches!(self, Self::Client(ClientError::Cancelled))
    }

    /// The error as a coded body.
    pub fn body(&self) -> ErrorBody {
        let code = match self {
            Self::Client(error) => return error.body(),
            Self::Folder { source: drover_tree::TreeError::Taken { .. }, .. } => ErrorCode::AlreadyExists,
            Self::Folder { source: drover_tree::TreeError::Shrunk { .. }, .. } => ErrorCode::Conflict,
            Self::BusLog(FollowError::Log { .. })
            | Self::Usage(_)
            | Self::File { .. }
            | Self::Folder { .. }
            | Self::BusFile(_)
            | Self::Password(_) => ErrorCode::InvalidArgument,
            Self::Assets(UpgradeError::Loses { .. }) => ErrorCode::Conflict,
            Self::Assets(_) | Self::Audit(_) | Self::BusLog(FollowError::Tell(_)) => ErrorCode::Unavailable,
            Self::Output { .. } | Self::Digest { .. } | Self::Telemetry(_) | Self::Host(_) | Self::Dev(_) => {
                ErrorCode::Internal
            }
        };
        let body = ErrorBody::new(code, drover_actors::chain(self).to_string());
        if let Self::Host(source) = self
            && source.downcast_ref::<AppError>().is_some_and(AppError::is_name_taken)
        {
            let conflict = ErrorBody { code: ErrorCode::Conflict, ..body };
            return conflict.with("cause", "host_name_taken").retryable(false);
        }
        match self {
            Self::Host(_) | Self::Dev(_) => body.with("cause", "start"),
            Self::Assets(UpgradeError::Loses { .. }) => body.with("cause", "loses"),
            Self::BusLog(_) => body.with("cause", "bus_log"),
            Self::Assets(_) | Self::Audit(_) => body.with("cause", "assets"),
            _ => body,
        }
    }
}

/// As a shell for a program whose reader went away.
pub const BROKEN_PIPE: u8 = 141;

/// As a shell for a program that Ctrl-C ended.
pub const INTERRUPTED: u8 = 130;

/// The exit code for an error code.
pub const fn exit_code(code: ErrorCode) -> u8 {
    match code {
        ErrorCode::InvalidArgument => 2,
        ErrorCode::NotFound => 3,
        ErrorCode::AlreadyExists | ErrorCode::Conflict | ErrorCode::InvalidState => 4,
        ErrorCode::ResourceExhausted
        | ErrorCode::Busy
        | ErrorCode::Unavailable
        | ErrorCode::DeadlineExceeded => 5,
        ErrorCode::GuestUnreachable | ErrorCode::GuestError => 6,
        ErrorCode::PermissionDenied => 7,
        ErrorCode::VmmError | ErrorCode::Unsupported | ErrorCode::Internal | ErrorCode::Unknown => 1,
    }
}

/// One line on what to do, for an error about `vm` (if it is about one).
pub fn next_step(error: &ErrorBody, vm: Option<&str>) -> String {
    let vm = vm.unwrap_or("NAME");
    let detail = |key: &str| error.details.get(key).map(String::as_str);
    if let Some(step) = detail("cause").and_then(not_connected) {
        return step.to_owned();
    }
    match error.code {
        ErrorCode::InvalidArgument if detail("cause") == Some("bus_log") => {
            "check the path (`log_file` of `bus config`) and that this user may read it".into()
        }
        ErrorCode::InvalidArgument => "correct the request; `drover help` and `--help` show the forms".into(),
        ErrorCode::NotFound if detail("program").is_some() || detail("path").is_some() => {
            format!("look inside the guest: `drover vm exec {vm} -- ls DIR`")
        }
        ErrorCode::NotFound => "`drover vm ls` shows what there is in the namespace (choose it by -n)".into(),
        ErrorCode::AlreadyExists => format!("choose another name, or look at it: `drover vm get {vm}`"),
        ErrorCode::Conflict => match detail("cause") {
            Some("loses") => "give more room or time, or move what is stored by hand first".into(),
            Some("superseded") => {
                format!("a later request took over; `drover vm get {vm}` shows how it is now")
            }
            _ => format!("look at it with `drover vm get {vm}`, then ask again under a new request id"),
        },
        ErrorCode::InvalidState => match detail("allowed") {
            Some(allowed) => format!("bring it to one of these states first: {allowed}"),
            None => format!("`drover vm explain {vm}` says why it is in this state"),
        },
        ErrorCode::ResourceExhausted => {
            "`drover host get` shows what is left; stop or delete a VM, or ask for less".into()
        }
        ErrorCode::Busy => match detail("operation") {
            Some(operation) => format!("wait until `{operation}` has ended, then repeat the command"),
            None => "wait a moment, then repeat the command".into(),
        },
        ErrorCode::Unavailable if detail("acked_off").is_some() => {
            "the connection was away for too long; look at how far it got in the guest, and begin again"
                .into()
        }
        ErrorCode::Unavailable if detail("cause") == Some("bus_log") => {
            "check that `drover bus init` was run and that these credentials are an auditor's of `bus config`"
                .into()
        }
        ErrorCode::Unavailable if detail("cause") == Some("assets") => {
            "check that JetStream is enabled and that these credentials are an admin's of `bus config`".into()
        }
        ErrorCode::Unavailable => match detail("host") {
            Some(host) => format!("check the daemon of host {host}; what is asked of it is safe to repeat"),
            None => "check --server and that a host runs; `drover dev` starts one here".into(),
        },
        ErrorCode::DeadlineExceeded => match detail("request_id") {
            Some(id) => format!("repeat with `--request-id {id}`: it is never carried out twice"),
            None => "repeat the command, or give it more time with --deadline".into(),
        },
        ErrorCode::GuestUnreachable => {
            format!("`drover vm logs {vm}` shows the console, `drover vm explain {vm}` the rest")
        }
        ErrorCode::GuestError => "the guest refused; the message is its own".into(),
        ErrorCode::VmmError => format!("`drover vm explain {vm}` shows what the hypervisor said"),
        ErrorCode::PermissionDenied => match detail("policy") {
            Some("guest") => {
                "ask the owner of the guest, whose /etc/drover-agent/policy says what its host may do".into()
            }
            Some(_) => format!(
                "`drover vm get {vm} -o json` shows spec.agent, which says what its guest may be asked"
            ),
            None => "ask the operator of the bus for a role that may do this".into(),
        },
        ErrorCode::Unsupported => "`drover host get` shows the features of the host".into(),
        ErrorCode::Internal if detail("cause") == Some("start") => {
            "put right what the message names, then start it again".into()
        }
        ErrorCode::Internal | ErrorCode::Unknown if error.error_id.is_empty() => {
            "run it again with --log debug, and report it if it stays".into()
        }
        ErrorCode::Internal | ErrorCode::Unknown => {
            format!("look for {} in the log of the host", error.error_id)
        }
    }
}

/// What to do about a server with which it does not come to a connection.
fn not_connected(cause: &str) -> Option<&'static str> {
    let refusal = Refusal::ALL.into_iter().find(|refusal| refusal.cause() == cause)?;
    Some(match refusal {
        Refusal::Login => "check --creds, --nkey, or --bus-user and DROVER_NATS_PASSWORD",
        Refusal::NoCertificate => "give --tls-cert and --tls-key, of an authority of the bus",
        Refusal::OwnExpired => "ask the operator of the bus for a new certificate for --tls-cert",
        Refusal::OwnUnknown => "give a certificate of an authority of the bus: --tls-cert and --tls-key",
        Refusal::Expired => "the operator of the bus has to renew the certificate of its server",
        Refusal::Unknown => "give the certificate of the bus's authority: --tls-ca",
        Refusal::Name => "name the server in --server as its certificate does",
        Refusal::Files => "check that --tls-key is the key of --tls-cert, both in PEM",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_an_exit_code_and_a_next_step() {
        for code in ErrorCode::ALL {
            assert!((1..=7).contains(&exit_code(code)), "{code}");
            assert!(!next_step(&ErrorBody::new(code, "x"), Some("web")).is_empty(), "{code}");
        }
    }

    #[test]
    fn what_may_succeed_later_shares_one_exit_code_unless_it_is_the_guest() {
        for code in ErrorCode::ALL.into_iter().filter(|c| c.retryable()) {
            let expected = if code == ErrorCode::GuestUnreachable { 6 } else { 5 };
            assert_eq!(exit_code(code), expected, "{code}");
        }
    }
}
