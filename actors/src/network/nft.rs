//! The installation's two nftables tables: `bridge` against spoofing, `inet` for NAT and isolation.
//!
//! Chains and sets are static; a VM is an element of each set. The base is laid in one transaction with the
//! elements of all VMs, and keeps elements that are there, so it may be laid at any time without cutting off the
//! VMs that run. No other table is ever read or changed.
//!
//! The documents are the `nftables` crate's types ([`rules`]). Its helper runs `nft` without capturing what it says
//! on stderr, which is the only place where a refusal is explained, so `nft` is run here.

mod counters;
mod elements;
pub mod events;
mod ipv6;
mod present;
mod rules;

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use nftables::schema::Nftables;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

pub use self::counters::Counters;
pub(super) use self::ipv6::{EGRESS_REFUSED6, egress_set, forward_set};
pub use self::present::Present;
pub(super) use self::rules::{
    DNS_RATE, EGRESS_ALLOW, EGRESS_ALLOW_PORT, EGRESS_CLOSED, EGRESS_DENY, EGRESS_DENY_PORT, EGRESS_REFUSED,
    FORWARD_OPEN, FORWARD_PORT, FORWARD_TO, LIMIT_RECEIVE, LIMIT_SEND, OVER_RECEIVE, OVER_SEND, REFUSED,
};

/// How long one transaction may take.
const DEADLINE: Duration = Duration::from_secs(20);
/// How many of our own `nft` processes are remembered; their notices come within milliseconds.
const OWN: usize = 64;

/// `nft` failed.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// There is no `nft`.
    #[error("cannot run {program:?}: install the package `nftables`")]
    Missing {
        /// What was tried.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It could not be run to its end.
    #[error("cannot run {program:?}")]
    Run {
        /// What was tried.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The transaction was refused: nothing of it was done.
    #[error("nft refused to {step}: {said}")]
    Refused {
        /// What was tried.
        step: &'static str,
        /// What it said, cut to 2 KiB.
        said: String,
    },
    /// It did not end.
    #[error("nft did not end within {} s", DEADLINE.as_secs())]
    Silent,
    /// Its document could not be written or read.
    #[error("nft's JSON could not be {step}")]
    Json {
        /// Which way.
        step: &'static str,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// What the static rules follow from.
#[derive(Debug, Clone)]
pub struct Base {
    /// The group of interfaces that every TAP of the installation is in.
    pub group: u32,
    /// The group of the bridges at which the host is nobody, and of what joins them to others.
    pub inner: u32,
    /// The networks.
    pub networks: Vec<BaseNet>,
}

impl Base {
    /// Whether a network has IPv6.
    #[must_use]
    pub fn has_ipv6(&self) -> bool {
        self.networks.iter().any(|network| network.ipv6.is_some())
    }
}

/// A network as the base rules see it.
#[derive(Debug, Clone)]
pub struct BaseNet {
    /// Name of the bridge.
    pub bridge: String,
    /// Its MAC.
    pub mac: [u8; 6],
    /// Its subnet.
    pub subnet: Ipv4Net,
    /// Its subnet of IPv6, if it has one.
    pub ipv6: Option<Ipv6Net>,
    /// Guests cannot reach each other.
    pub isolate: bool,
    /// Where guests may not go.
    pub egress_deny: Vec<IpNet>,
    /// Guests are given their addresses.
    pub dhcp: bool,
    /// The gateway is asked for names.
    pub dns: bool,
}

/// An interface as the sets know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Name of the TAP.
    pub tap: String,
    /// The guest's MAC.
    pub mac: String,
    /// The guest's address.
    pub ipv4: Ipv4Addr,
    /// Its address of IPv6, if it has one.
    pub ipv6: Option<Ipv6Addr>,
}

impl Port {
    /// Its elements: the set of each, and its parts.
    #[must_use]
    pub fn elements(&self) -> Vec<Member> {
        let (tap, mac, ipv4) = (self.tap.clone(), self.mac.clone(), self.ipv4.to_string());
        let mut elements = vec![
            Member { set: rules::SET_MAC.into(), parts: vec![tap.clone(), mac.clone()], value: None },
            Member { set: rules::SET_SRC.into(), parts: vec![tap.clone(), mac, ipv4], value: None },
            Member { set: rules::REFUSED.into(), parts: vec![tap.clone()], value: None },
            Member { set: rules::DHCP_RATE.into(), parts: vec![tap.clone()], value: None },
            Member { set: rules::SET_IF.into(), parts: vec![tap], value: None },
        ];
        elements.extend(ipv6::elements(self));
        elements
    }
}

/// An element of a set.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Member {
    /// Name of the set.
    pub set: String,
    /// Its parts as `nft` writes them; of a TAP's elements the TAP is the first.
    pub parts: Vec<String>,
    /// Where it leads, if the set is a map; of a limit how many bytes a second it is.
    pub value: Option<String>,
}

impl Member {
    /// The TAP that it is about, if it is about one.
    #[must_use]
    pub fn tap(&self) -> Option<&str> {
        let of_tap = rules::OF_TAPS.contains(&self.set.as_str());
        self.parts.first().filter(|_| of_tap).map(String::as_str)
    }
}

/// The processes by which this daemon changed the firewall lately: what they did is no surprise.
#[derive(Debug, Clone, Default)]
pub struct Own(Arc<Mutex<VecDeque<u32>>>);

impl Own {
    fn note(&self, pid: u32) {
        let mut pids = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pids.truncate(OWN - 1);
        pids.push_front(pid);
    }

    /// Whether the process was ours.
    #[must_use]
    pub fn has(&self, pid: u32) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(&pid)
    }
}

/// Runs transactions on the installation's tables.
#[derive(Debug, Clone)]
pub struct Nft {
    program: PathBuf,
    table: String,
    own: Own,
}

impl Nft {
    /// Transactions on `table`, run with `program`.
    #[must_use]
    pub fn new(program: PathBuf, table: String) -> Self {
        Self { program, table, own: Own::default() }
    }

    /// Name of the tables.
    #[must_use]
    pub fn table(&self) -> &str {
        &self.table
    }

    /// The processes that are run here.
    #[must_use]
    pub fn own(&self) -> Own {
        self.own.clone()
    }

    /// Makes the tables, or brings those that are there into this state, with elements added and removed, in one
    /// transaction; other elements stay.
    ///
    /// # Errors
    /// `nft` fails; nothing was changed.
    pub async fn lay(&self, base: &Base, add: &[Member], remove: &[Member]) -> Result<(), NftError> {
        if base.has_ipv6() {
            // They do nothing by themselves.
            self.run("make sets", &["-f", "-"], Some(ipv6::sets(&self.table))).await?;
        }
        self.apply("lay the base", &rules::lay(&self.table, base, add, remove)).await?;
        self.limit(add, remove).await
    }

    /// Limits are a transaction of their own: JSON has no words for an element with a limit.
    async fn limit(&self, add: &[Member], remove: &[Member]) -> Result<(), NftError> {
        let text = elements::limits(&self.table, add, remove);
        if text.is_empty() {
            return Ok(());
        }
        self.run("limit ports", &["-f", "-"], Some(text)).await.map(drop)
    }

    /// Adds and removes elements in one transaction; both may be so already.
    ///
    /// # Errors
    /// `nft` fails; nothing was changed.
    pub async fn change(&self, add: &[Member], remove: &[Member]) -> Result<(), NftError> {
        if add.is_empty() && remove.is_empty() {
            return Ok(());
        }
        if add.iter().chain(remove).all(elements::is_limit) {
            return self.limit(add, remove).await;
        }
        // First: a guest that is too fast for a moment harms less than one that has no limit.
        self.limit(add, remove).await?;
        let done = self.apply("change ports", &elements::change(&self.table, add, remove)).await;
        if done.is_err() && self.limit(remove, add).await.is_err() {
            tracing::warn!("limits of a change that was refused are left; the next look removes them");
        }
        done
    }

    /// What is there; `None` if a table is missing.
    ///
    /// # Errors
    /// `nft` fails.
    pub async fn read(&self) -> Result<Option<Present>, NftError> {
        let mut present = Present::default();
        for family in ["bridge", "inet"] {
            let args = ["-j", "-s", "list", "table", family, &self.table];
            let said = match self.run("list a table", &args, None).await {
                Err(NftError::Refused { said, .. }) if said.contains("No such file") => return Ok(None),
                other => other?,
            };
            present.take(&said).map_err(|source| NftError::Json { step: "read", source })?;
        }
        Ok(Some(present))
    }

    /// What the rules counted of each guest, where a network may have IPv6.
    ///
    /// # Errors
    /// `nft` fails, also where the tables are missing.
    pub async fn counters(&self, has_ipv6: bool) -> Result<Counters, NftError> {
        let mut counters = Counters::default();
        let six = has_ipv6.then_some(("inet", EGRESS_REFUSED6));
        // One by one: several in one run are not all listed in JSON.
        for (family, set) in Counters::SETS.into_iter().chain(six) {
            let said =
                self.run("list counters", &["-j", "list", "set", family, &self.table, set], None).await?;
            counters.take(&said).map_err(|source| NftError::Json { step: "read", source })?;
        }
        Ok(counters)
    }

    /// Removes both tables; they may be gone already.
    ///
    /// # Errors
    /// `nft` fails.
    pub async fn teardown(&self) -> Result<(), NftError> {
        self.apply("remove the tables", &rules::teardown(&self.table)).await
    }

    async fn apply(&self, step: &'static str, document: &Nftables<'_>) -> Result<(), NftError> {
        let json =
            elements::document(document).map_err(|source| NftError::Json { step: "written", source })?;
        self.run(step, &["-j", "-f", "-"], Some(json)).await.map(|_| ())
    }

    async fn run(
        &self,
        step: &'static str,
        args: &[&str],
        input: Option<String>,
    ) -> Result<String, NftError> {
        let failed = |source: io::Error| {
            let program = self.program.clone();
            match source.kind() {
                io::ErrorKind::NotFound => NftError::Missing { program, source },
                _ => NftError::Run { program, source },
            }
        };
        let stdin = if input.is_some() { Stdio::piped() } else { Stdio::null() };
        let mut child = Command::new(&self.program)
            .args(args)
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        // Before it is told what to do.
        child.id().into_iter().for_each(|pid| self.own.note(pid));
        let stdin = child.stdin.take();
        let work = async {
            let write = async {
                if let (Some(mut stdin), Some(input)) = (stdin, input) {
                    // A refusal may close the pipe early: what it says then counts.
                    let _ = stdin.write_all(input.as_bytes()).await;
                }
            };
            let ((), output) = tokio::join!(write, child.wait_with_output());
            output
        };
        let output =
            tokio::time::timeout(DEADLINE, work).await.map_err(|_| NftError::Silent)?.map_err(failed)?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let mut said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        said.truncate(said.floor_char_boundary(2048));
        if said.is_empty() {
            said = output.status.to_string();
        }
        Err(NftError::Refused { step, said })
    }
}
