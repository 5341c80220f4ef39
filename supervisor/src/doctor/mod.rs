//! `drover doctor`: what a machine lacks to be a host, and what to do about it.
//!
//! Each check looks at one thing, changes nothing, and says what it found and, where that is not good, what
//! to do. `--fix` raises the kernel's limits that are too low, and only those.

mod bus;
mod limits;
mod machine;
mod parts;

use serde::Serialize;

use crate::config::HostConfig;

pub use machine::{open, virtualisation};

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it should be.
    Good,
    /// It was not, and is now.
    Fixed,
    /// The host runs, with less.
    Weak,
    /// The host does not run, or does not run VMs.
    Bad,
}

impl Verdict {
    /// As it stands in the table.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Good => "ok",
            Self::Fixed => "fixed",
            Self::Weak => "weak",
            Self::Bad => "BAD",
        }
    }
}

/// What one check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub check: &'static str,
    /// How it is.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do; empty if nothing.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub advice: String,
}

impl Finding {
    fn good(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Good, found: found.into(), advice: String::new() }
    }

    fn weak(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Weak, found: found.into(), advice: advice.into() }
    }

    fn bad(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Bad, found: found.into(), advice: advice.into() }
    }
}

/// Looks at everything; with `fix`, sets what may be set.
pub async fn examine(config: &HostConfig, fix: bool) -> Vec<Finding> {
    let mut findings = machine::look();
    findings.extend(parts::look(config).await);
    findings.extend(bus::look(config).await);
    findings.extend(limits::look(fix));
    findings
}
