//! Rows beside `ssh` and `scp` to the same guest, by turns.
//!
//! What they need is put in place through the agent: a key for root that is made for the run, and the guest's own host
//! key, which is fetched over the link. The guest must have sshd running already.

use std::fs;
use std::io::{Read as _, Seek as _};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use drover_schemas::Token;
use drover_schemas::blob::Blob;
use drover_schemas::body::status::VmStatus;
use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use super::guest;
use super::report::{Goal, Row};
use super::sample::Sample;
use crate::client::{Client, ClientError};

/// How long one connection may take: an emulated guest is slow to agree on keys.
const LIMIT: Duration = Duration::from_secs(120);
/// How long sshd may come up later than the agent.
const START: Duration = Duration::from_secs(120);
/// Adds the key, and shows the host keys; says what is missing.
const PREPARE: &str = r#"
[ -x /usr/sbin/sshd ] || { echo "the guest has no sshd" >&2; exit 1; }
ls /etc/ssh/ssh_host_*_key.pub > /dev/null 2>&1 || { echo "the guest's sshd has no host keys yet" >&2; exit 2; }
umask 077
mkdir -p /root/.ssh
grep -qsxF "$1" /root/.ssh/authorized_keys || echo "$1" >> /root/.ssh/authorized_keys
cat /etc/ssh/ssh_host_*_key.pub"#;

/// Why there is nothing to compare with.
#[derive(Debug, thiserror::Error)]
pub enum SshError {
    /// A program of this machine cannot be run.
    #[error("run {program} on this machine; install openssh-client")]
    Program {
        /// Which.
        program: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file of this machine.
    #[error("prepare the files for ssh")]
    Files(#[source] std::io::Error),
    /// The guest would not be prepared.
    #[error("put a key into the guest")]
    Guest(#[source] ClientError),
    /// The guest is not fit for it.
    #[error("{0}")]
    Unfit(String),
    /// A program failed.
    #[error("{program} failed: {said}")]
    Failed {
        /// Which.
        program: &'static str,
        /// The last line that it said.
        said: String,
    },
    /// It did not end.
    #[error("{0} did not end in time")]
    Late(&'static str),
}

/// A way into the guest beside drover's. Dropped, its files are gone.
#[derive(Debug)]
pub struct Ssh {
    folder: TempDir,
    address: String,
}

impl Ssh {
    /// Prepares the guest `vm`, and logs in once to see that it works.
    ///
    /// # Errors
    /// [`SshError`]
    pub async fn prepare(client: &Client, vm: &VmStatus) -> Result<Self, SshError> {
        let nic = vm.nics.first().ok_or_else(|| SshError::Unfit("the VM has no network".to_owned()))?;
        let folder = tempfile::Builder::new().prefix("drover-ssh").tempdir().map_err(SshError::Files)?;
        let ssh = Self { folder, address: nic.ipv4.clone() };
        let key = ssh.path("key");
        let mut keygen = Command::new("ssh-keygen");
        keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key);
        finish("ssh-keygen", keygen).await?;
        let public = fs::read_to_string(key.with_extension("pub")).map_err(SshError::Files)?;
        let until = Instant::now() + START;
        loop {
            match ssh.log_in(client, &vm.name, public.trim()).await {
                Ok(()) => return Ok(ssh),
                Err(SshError::Failed { .. }) if Instant::now() < until => {
                    sleep(Duration::from_millis(500)).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn log_in(&self, client: &Client, name: &Token, key: &str) -> Result<(), SshError> {
        let argv = ["sh", "-c", PREPARE, "sh", key];
        let result = guest::result(client, name, &argv).await.map_err(SshError::Guest)?;
        let text = |blob: Option<Blob>| {
            String::from_utf8_lossy(blob.unwrap_or_default().as_slice()).trim().to_owned()
        };
        match result.exit_code {
            Some(0) => {}
            Some(2) => return Err(SshError::Failed { program: "sshd", said: text(result.stderr) }),
            _ => return Err(SshError::Unfit(text(result.stderr))),
        }
        let known: String =
            text(result.stdout).lines().map(|line| format!("{} {line}\n", self.address)).collect();
        fs::write(self.path("known"), known).map_err(SshError::Files)?;
        self.new_connection().await
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, program: &'static str) -> Command {
        let mut command = Command::new(program);
        command.args(["-F", "none", "-q", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes"]);
        command.args(["-o", "IdentitiesOnly=yes", "-o"]);
        command.arg(format!("UserKnownHostsFile={}", self.path("known").display()));
        command.arg("-i").arg(self.path("key"));
        command
    }

    fn user(&self) -> String {
        format!("root@{}", self.address)
    }

    /// `true`, over a connection of its own.
    ///
    /// # Errors
    /// [`SshError`]
    pub async fn new_connection(&self) -> Result<(), SshError> {
        let mut command = self.command("ssh");
        command.args([&self.user(), "true"]);
        finish("ssh", command).await
    }

    /// `true`, over a connection that the first call makes and later ones share.
    ///
    /// # Errors
    /// [`SshError`]
    pub async fn shared_connection(&self) -> Result<(), SshError> {
        let mut command = self.command("ssh");
        command.args(["-o", "ControlMaster=auto", "-o", "ControlPersist=yes", "-o"]);
        command.arg(format!("ControlPath={}", self.path("c").display())).args([&self.user(), "true"]);
        finish("ssh", command).await
    }

    /// Ends the shared connection.
    async fn end(&self) {
        let mut command = Command::new("ssh");
        command.args(["-F", "none", "-q", "-O", "exit", "-o"]);
        command.arg(format!("ControlPath={}", self.path("c").display())).arg(self.user());
        // One that was never made is not there to be ended.
        let _ = finish("ssh", command).await;
    }

    async fn copy(&self, to_guest: bool, path: &str) -> Result<(), SshError> {
        let (here, there) = (self.path("file").display().to_string(), format!("{}:{path}", self.user()));
        let mut command = self.command("scp");
        if to_guest {
            command.args([&here, &there])
        } else {
            command.args([&there, &here])
        };
        finish("scp", command).await
    }
}

/// Runs a program to its end.
async fn finish(program: &'static str, mut command: Command) -> Result<(), SshError> {
    // A file and no pipe: a master goes on in the background with the streams that it was given.
    let mut said = tempfile::tempfile().map_err(SshError::Files)?;
    let stderr = said.try_clone().map_err(SshError::Files)?;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr).kill_on_drop(true);
    let status = tokio::time::timeout(LIMIT, command.status()).await;
    let status = status.map_err(|_| SshError::Late(program))?;
    let status = status.map_err(|source| SshError::Program { program, source })?;
    if status.success() {
        return Ok(());
    }
    let mut text = String::new();
    said.rewind().and_then(|()| said.read_to_string(&mut text)).map_err(SshError::Files)?;
    let said = text.trim().lines().last().unwrap_or("without a word").to_owned();
    Err(SshError::Failed { program, said })
}

const ANEW: &str = "exec of true, beside ssh anew";
const SHARED: &str = "exec of true, beside ssh that stays";
const PUT: &str = "file to the guest, beside scp";
const GET: &str = "file from the guest, beside scp";

/// Commands of drover's over the bus beside those of ssh, and copies beside scp's, by turns.
///
/// # Errors
/// As [`Client::call`]; what ssh or scp cannot do is said in the rows.
pub async fn rows(
    client: &Client,
    vm: &VmStatus,
    calls: usize,
    size: u64,
    rounds: usize,
) -> Result<Vec<Row>, ClientError> {
    let ssh = match Ssh::prepare(client, vm).await {
        Ok(ssh) => ssh,
        Err(error) => {
            let why = drover_actors::chain(&error).to_string();
            let rows = [(ANEW, "ms"), (SHARED, "ms"), (PUT, "MiB/s"), (GET, "MiB/s")];
            let row = |(what, unit): (&str, _)| Row::new(what, unit, Default::default()).unmeasured(&why);
            return Ok(rows.into_iter().map(row).collect());
        }
    };
    let rows = measure(client, &vm.name, &ssh, calls, size, rounds).await;
    ssh.end().await;
    rows
}

async fn measure(
    client: &Client,
    name: &Token,
    ssh: &Ssh,
    calls: usize,
    size: u64,
    rounds: usize,
) -> Result<Vec<Row>, ClientError> {
    let mut rows = Vec::new();
    for (what, shared) in [(ANEW, false), (SHARED, true)] {
        let (mut drover, mut beside, mut why) = (Sample::default(), Sample::default(), None);
        if shared {
            // The one that makes the connection does not count.
            why = ssh.shared_connection().await.err();
        }
        for _ in 0..calls {
            drover.time(guest::result(client, name, &["true"])).await?;
            if why.is_none() {
                let turn =
                    async { if shared { ssh.shared_connection().await } else { ssh.new_connection().await } };
                why = beside.time(turn).await.err();
            }
        }
        let limit = outcome(why).map(|()| beside.percentiles(1e3));
        let against = if shared {
            "ssh with ControlMaster: a process for each command over one connection"
        } else {
            "ssh: a process and a connection for each command"
        };
        rows.push(
            Row::new(what, "ms", drover.percentiles(1e3))
                .against(against, limit)
                .goal(Goal::RatioAtMost(1.0)),
        );
    }
    let bulk = client.for_bulk().await?;
    let (mut puts, mut gets) = (Sample::default(), Sample::default());
    let (mut scp_puts, mut scp_gets) = (Sample::default(), Sample::default());
    let file = fs::File::create(ssh.path("file"));
    let filled = file.and_then(|mut file| std::io::copy(&mut std::io::repeat(0x5a).take(size), &mut file));
    let mut why = filled.err().map(SshError::Files);
    for _ in 0..rounds.max(1) {
        puts.time(guest::put(&bulk, name, size)).await?;
        gets.time(guest::get(&bulk, name)).await?;
        for (to_guest, sample) in [(true, &mut scp_puts), (false, &mut scp_gets)] {
            if why.is_none() {
                why = sample.time(ssh.copy(to_guest, guest::PATH)).await.err();
            }
        }
        guest::result(client, name, &["rm", "-f", guest::PATH]).await?;
    }
    let limit = outcome(why);
    for (what, drover, scp) in [(PUT, puts, scp_puts), (GET, gets, scp_gets)] {
        let limit = limit.clone().map(|()| scp.rates(size));
        let row = Row::new(&format!("{what}, {} MiB", size >> 20), "MiB/s", drover.rates(size));
        let against = "scp: a process and a connection for each copy, no digest";
        rows.push(row.against(against, limit).goal(Goal::RatioAtLeast(1.0)));
    }
    Ok(rows)
}

fn outcome(why: Option<SshError>) -> Result<(), String> {
    why.map_or(Ok(()), |error| Err(drover_actors::chain(&error).to_string()))
}
