//! The table of a run.

use serde::Serialize;

use super::sample::Percentiles;
use crate::cli::output::{render, table};

/// The host that gave the numbers.
#[derive(Debug, Clone, Serialize)]
pub struct HostDescription {
    /// Its name on the bus.
    pub host: String,
    /// Version of drover.
    pub drover: String,
    /// The processor of the machine that measured.
    pub cpu: String,
    /// How many of it.
    pub cores: usize,
    /// Its kernel.
    pub kernel: String,
    /// The hypervisor.
    pub vmm: String,
    /// It is the software emulation, so times with a guest in them say little about hardware.
    pub emulated: bool,
    /// The NATS server.
    pub nats: String,
}

/// One row.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// What was measured.
    pub what: String,
    /// The unit of all numbers.
    pub unit: &'static str,
    /// What drover took or gave.
    pub drover: Percentiles,
    /// What it is held against.
    pub against: &'static str,
    /// What that took or gave; absent where this program cannot measure it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baseline: Option<Percentiles>,
    /// `drover` over `baseline`, at p50.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
    /// What it shall be.
    pub goal: &'static str,
}

impl Row {
    /// A row that is held against nothing yet.
    pub fn new(what: &str, unit: &'static str, drover: Percentiles) -> Self {
        Self { what: what.to_owned(), unit, drover, against: "", baseline: None, ratio: None, goal: "" }
    }

    /// Holds it against `baseline`.
    pub fn against(mut self, what: &'static str, baseline: Option<Percentiles>) -> Self {
        self.against = what;
        self.ratio = baseline.filter(|b| b.p50 > 0.0).map(|b| self.drover.p50 / b.p50);
        self.baseline = baseline;
        self
    }

    /// States the goal.
    pub fn goal(mut self, goal: &'static str) -> Self {
        self.goal = goal;
        self
    }
}

/// A whole run.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The host.
    pub host: HostDescription,
    /// The rows that were asked for.
    pub rows: Vec<Row>,
}

impl Report {
    /// The run as text.
    pub fn table(&self) -> String {
        let host = &self.host;
        let kind = if host.emulated { "software emulation" } else { "hardware virtualisation" };
        let mut table = table(&["WHAT", "UNIT", "P50", "P99", "N", "LIMIT P50", "RATIO", "GOAL", "AGAINST"]);
        let number = |value: f64| {
            if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") }
        };
        for row in &self.rows {
            table.add_row([
                row.what.clone(),
                row.unit.to_owned(),
                number(row.drover.p50),
                number(row.drover.p99),
                row.drover.count.to_string(),
                row.baseline.map_or_else(|| "not measured".to_owned(), |b| number(b.p50)),
                row.ratio.map_or_else(|| "-".to_owned(), |r| format!("{r:.2}x")),
                row.goal.to_owned(),
                row.against.to_owned(),
            ]);
        }
        format!(
            "{} cores of {}, kernel {}\nhost {}, drover {}, {} ({kind}), nats-server {}\n\n{}",
            host.cores,
            host.cpu,
            host.kernel,
            host.host,
            host.drover,
            host.vmm,
            host.nats,
            render(&mut table)
        )
    }
}
