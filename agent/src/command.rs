//! From a request to a running command, and to its end: what attached and detached commands share.

use std::io::ErrorKind;
use std::path::Path;
use std::time::{Duration, Instant};

use drover_schemas::guest::ExecRequest;
use drover_schemas::{ErrorBody, ErrorCode};
use nix::sys::signal::Signal;
use tokio::sync::watch;
use tokio::time::sleep_until;

use crate::account::{self, Account};
use crate::conn::Steer;
use crate::facts;
use crate::log::chain;
use crate::process::{self, Exit, Plan, Running, SpawnError};

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const DEFAULT_GRACE: Duration = Duration::from_secs(2);
/// No command runs longer than this by a deadline; keeps the arithmetic of instants safe.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// The most of rlimits and environment variables that a request may name.
const MAX_LIMITS: usize = 32;

/// A command that was started.
#[derive(Debug)]
pub struct Command {
    /// Its process.
    pub process: Running,
    /// The name of its user.
    pub user: String,
    /// When it was started.
    pub started: Instant,
    /// When it was started, in milliseconds since the Unix epoch.
    pub started_unix_ms: u64,
    timeout: Duration,
    grace: Duration,
}

fn invalid(message: impl Into<String>) -> ErrorBody {
    ErrorBody::new(ErrorCode::InvalidArgument, message)
}

/// Says what of a request can never be carried out.
///
/// # Errors
/// `invalid_argument`.
pub fn check(request: &ExecRequest) -> Result<(), ErrorBody> {
    if request.argv.first().is_none_or(String::is_empty) {
        return Err(invalid("argv is empty; name a program"));
    }
    let texts = request.argv.iter().chain(request.env.keys()).chain(request.env.values());
    if texts.chain(&request.cwd).any(|t| t.contains('\0')) {
        return Err(invalid("a NUL byte in argv, env or cwd; remove it"));
    }
    if let Some(name) = request.env.keys().find(|n| n.is_empty() || n.contains('=')) {
        return Err(invalid(format!("{name:?} is not a variable's name")));
    }
    if let Some(umask) = request.umask.filter(|umask| *umask > 0o777) {
        return Err(invalid(format!("umask {umask:o} is more than the nine bits of permissions")));
    }
    if request.limits.len() > MAX_LIMITS {
        return Err(invalid(format!("{} limits; name each resource once", request.limits.len())));
    }
    Ok(())
}

/// Whom a command is to run as, and in which groups; `None` is the agent's own.
///
/// # Errors
/// `not_found` for a name that is not there.
pub fn account(request: &ExecRequest) -> Result<Option<Account>, ErrorBody> {
    let mut account = request.user.as_deref().map(account::resolve).transpose()?;
    if let Some(groups) = &request.groups {
        account::with_groups(account.get_or_insert_with(account::own), groups)?;
    }
    Ok(account)
}

/// Starts a command.
///
/// # Errors
/// A coded error that says what to do; then nothing runs.
pub fn start(request: &ExecRequest) -> Result<Command, ErrorBody> {
    check(request)?;
    let (started, started_unix_ms) = (Instant::now(), facts::unix_ms());
    let own = account::own();
    let account = account(request)?;
    if let Some(wanted) = &account
        && own.uid != 0
        && (wanted.uid != own.uid || wanted.gid != own.gid)
    {
        return Err(ErrorBody::new(
            ErrorCode::PermissionDenied,
            format!("the agent runs as uid {} and cannot become {}; run it as root", own.uid, wanted.name),
        ));
    }
    let who = account.as_ref().unwrap_or(&own);
    let cwd = working_directory(request, who)?;
    let plan = Plan {
        argv: &request.argv,
        env: environment(request, who),
        cwd: &cwd,
        // An unprivileged agent may not set groups, and need not.
        account: account.as_ref().filter(|_| own.uid == 0),
        stdin: request.stdin,
        tty: request.tty.then(|| request.size.unwrap_or_default()),
        umask: request.umask,
        limits: &request.limits,
    };
    let process = process::spawn(&plan).map_err(|error| refused(&request.argv[0], who, &error))?;
    Ok(Command {
        process,
        user: who.name.clone(),
        started,
        started_unix_ms,
        timeout: request.timeout_ms.map_or(FOREVER, Duration::from_millis),
        grace: request.kill_grace_ms.map_or(DEFAULT_GRACE, Duration::from_millis),
    })
}

fn working_directory(request: &ExecRequest, who: &Account) -> Result<String, ErrorBody> {
    match &request.cwd {
        Some(cwd) if Path::new(cwd).is_dir() => Ok(cwd.clone()),
        Some(cwd) => Err(ErrorBody::new(
            ErrorCode::NotFound,
            format!("there is no directory {cwd:?} in the guest; make it or choose another cwd"),
        )
        .with("cwd", cwd)),
        None if Path::new(&who.home).is_dir() => Ok(who.home.clone()),
        None => Ok("/".to_owned()),
    }
}

fn environment(request: &ExecRequest, who: &Account) -> Vec<(String, String)> {
    let usual = [
        ("PATH", PATH),
        ("HOME", &who.home),
        ("USER", &who.name),
        ("LOGNAME", &who.name),
        ("SHELL", &who.shell),
        ("LANG", "C.UTF-8"),
    ];
    let terminal = request.tty.then_some(("TERM", "xterm"));
    usual
        .into_iter()
        .chain(terminal)
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .chain(request.env.iter().map(|(k, v)| (k.clone(), v.clone())))
        .collect()
}

fn refused(program: &str, who: &Account, error: &SpawnError) -> ErrorBody {
    let source = match error {
        SpawnError::Start { source, .. } => source,
        SpawnError::Terminal { source } if source.kind() == ErrorKind::NotFound => {
            return ErrorBody::new(
                ErrorCode::Unsupported,
                "the guest has no terminals: mount devpts on /dev/pts, or leave tty out",
            );
        }
        SpawnError::Terminal { .. } | SpawnError::Pipe { .. } | SpawnError::Watch { .. } => {
            return ErrorBody::new(ErrorCode::ResourceExhausted, chain(error));
        }
    };
    match source.kind() {
        ErrorKind::NotFound => ErrorBody::new(
            ErrorCode::NotFound,
            format!("there is no program {program:?} in the guest, or its interpreter is missing; check argv[0] and PATH"),
        )
        .with("program", program),
        ErrorKind::PermissionDenied => ErrorBody::new(
            ErrorCode::PermissionDenied,
            format!("{} may not execute {program:?} there, or not raise a limit; check its mode, the user, the cwd and the limits", who.name),
        )
        .with("program", program),
        ErrorKind::ArgumentListTooLong => invalid("argv and env are too long together; send the bulk by put or stdin"),
        ErrorKind::InvalidInput => invalid(format!("the system takes no such limit, group or argument: {source}")),
        ErrorKind::OutOfMemory | ErrorKind::WouldBlock => {
            ErrorBody::new(ErrorCode::ResourceExhausted, format!("the guest cannot start a process: {source}"))
        }
        _ => ErrorBody::new(ErrorCode::GuestError, chain(error)),
    }
}

impl Command {
    /// Carries out what the host wants of it.
    pub fn steer(&self, steer: Steer) {
        match steer {
            Steer::Resize(size) => self.process.resize(size),
            Steer::Signal(signal) => self.process.signal_group(signal),
        }
    }

    /// Waits for its end, and ends it with all that it started when its time is over or `abandoned` comes
    /// first. Answers whether its time was over.
    pub async fn supervise(&self, abandoned: impl Future<Output = ()>) -> bool {
        let process = &self.process;
        let after = |from: Instant, wait: Duration| tokio::time::Instant::from_std(from + wait.min(FOREVER));
        tokio::pin!(abandoned);
        tokio::select! {
            biased;
            _ = process.exited() => return false,
            () = &mut abandoned => {
                process.kill().await;
                let _ = process.exited().await;
                return false;
            }
            () = sleep_until(after(self.started, self.timeout)) => {}
        }
        if !self.grace.is_zero() {
            process.signal_all(Signal::SIGTERM);
            tokio::select! {
                _ = process.exited() => {}
                () = &mut abandoned => {}
                () = sleep_until(after(Instant::now(), self.grace)) => {}
            }
        }
        // Also when the command itself went by SIGTERM: others of its tree may not have.
        process.kill().await;
        let _ = process.exited().await;
        true
    }

    /// How it ended, which it has.
    ///
    /// # Errors
    /// `guest_error`: nobody knows.
    pub fn reap(&mut self) -> Result<Exit, ErrorBody> {
        self.process.reap().map_err(|e| {
            let text = format!("what watched the command was killed, so nobody knows how it ended: {e}");
            ErrorBody::new(ErrorCode::GuestError, text)
        })
    }
}

/// Waits for the news that a command has ended.
pub async fn gone(gone: &mut watch::Receiver<bool>) {
    let _ = gone.wait_for(|gone| *gone).await;
}
