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
    /// This program was built without optimisation; the daemon may be another build.
    pub debug_build: bool,
    /// The processor of the machine that measured.
    pub cpu: String,
    /// How many of it.
    pub cores: usize,
    /// Processes that wanted a core in the last minute, before the run.
    pub load: f64,
    /// Its kernel.
    pub kernel: String,
    /// The hypervisor.
    pub vmm: String,
    /// It is the software emulation, so times with a guest in them say little about hardware.
    pub emulated: bool,
    /// What guests are, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guests: Option<&'static str>,
    /// The NATS server.
    pub nats: String,
}

/// What a row shall be, at p50.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// That many times the limit, or less.
    RatioAtMost(f64),
    /// That many times the limit, or more.
    RatioAtLeast(f64),
    /// That much above the limit, or less, in the row's unit.
    MoreAtMost(f64),
    /// That much, or less, in the row's unit.
    AtMost(f64),
}

/// One row.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// What was measured.
    pub what: String,
    /// The unit of all numbers.
    pub unit: &'static str,
    /// What drover took or gave; absent where it could not be measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drover: Option<Percentiles>,
    /// What it is held against; empty where there is no limit but the goal.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub against: &'static str,
    /// What that took or gave in the same run, by turns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<Percentiles>,
    /// `drover` over `limit`, at p50.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
    /// `drover` less `limit`, at p50.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub difference: Option<f64>,
    /// What it shall be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub goal: Option<Goal>,
    /// It is so; absent where that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub met: Option<bool>,
    /// Why something is missing, or how to read it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl Row {
    /// A row that is held against nothing yet.
    pub fn new(what: &str, unit: &'static str, drover: Percentiles) -> Self {
        Self {
            what: what.to_owned(),
            unit,
            drover: Some(drover),
            against: "",
            limit: None,
            ratio: None,
            difference: None,
            goal: None,
            met: None,
            note: None,
        }
    }

    /// Holds it against a limit, or says why that was not measured.
    pub fn against(mut self, what: &'static str, limit: Result<Percentiles, String>) -> Self {
        self.against = what;
        match limit {
            Ok(limit) => self.limit = Some(limit),
            Err(why) => self.note = Some(format!("limit not measured: {why}")),
        }
        self
    }

    /// States the goal.
    pub fn goal(mut self, goal: Goal) -> Self {
        self.goal = Some(goal);
        self
    }

    /// Nothing was measured, and why.
    pub fn unmeasured(mut self, why: &str) -> Self {
        self.drover = None;
        self.note = Some(format!("not measured: {why}"));
        self
    }

    /// Compares: to be called when all else is known.
    fn judge(&mut self) {
        let drover = self.drover.filter(|drover| drover.count > 0);
        let both = drover.zip(self.limit.filter(|limit| limit.p50 > 0.0));
        self.ratio = both.map(|(drover, limit)| drover.p50 / limit.p50);
        self.difference = both.map(|(drover, limit)| drover.p50 - limit.p50);
        self.met = match self.goal {
            Some(Goal::RatioAtMost(most)) => self.ratio.map(|ratio| ratio <= most),
            Some(Goal::RatioAtLeast(least)) => self.ratio.map(|ratio| ratio >= least),
            Some(Goal::MoreAtMost(most)) => self.difference.map(|more| more <= most),
            Some(Goal::AtMost(most)) => drover.map(|drover| drover.p50 <= most),
            None => None,
        };
    }

    fn cost(&self) -> String {
        match (self.goal, self.ratio, self.difference) {
            (Some(Goal::MoreAtMost(_)), _, Some(more)) => format!("{more:+.1} {}", self.unit),
            (_, Some(ratio), _) => format!("{ratio:.2}x"),
            _ => "-".to_owned(),
        }
    }

    fn notes(&self) -> String {
        let against = Some(self.against).filter(|against| !against.is_empty());
        let against = against.map(|against| format!("limit is {against}"));
        let parts: Vec<String> = against.into_iter().chain(self.note.clone()).collect();
        parts.join("; ")
    }

    fn goal_text(&self) -> String {
        match self.goal {
            Some(Goal::RatioAtMost(most)) => format!("at most {most}x"),
            Some(Goal::RatioAtLeast(least)) => format!("at least {least}x"),
            Some(Goal::MoreAtMost(most)) => format!("at most +{most} {}", self.unit),
            Some(Goal::AtMost(most)) => format!("at most {most} {}", self.unit),
            None => "-".to_owned(),
        }
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
    /// The rows, compared.
    pub fn new(host: HostDescription, mut rows: Vec<Row>) -> Self {
        rows.iter_mut().for_each(Row::judge);
        Self { host, rows }
    }

    /// The run as text.
    pub fn table(&self) -> String {
        let mut table =
            table(&["WHAT", "UNIT", "N", "DROVER P50", "P99", "LIMIT P50", "P99", "COST", "GOAL", "MET"]);
        for row in &self.rows {
            let pair = |of: Option<Percentiles>| match of {
                Some(of) if of.count == 1 => [number(of.p50), String::new()],
                Some(of) => [number(of.p50), number(of.p99)],
                None => ["-".to_owned(), String::new()],
            };
            let ([p50, p99], [limit_p50, limit_p99]) = (pair(row.drover), pair(row.limit));
            let met = match row.met {
                Some(true) => "yes",
                Some(false) => "NO",
                None => "?",
            };
            let count = row.drover.map_or_else(|| "-".to_owned(), |drover| drover.count.to_string());
            table.add_row([
                row.what.clone(),
                row.unit.to_owned(),
                count,
                p50,
                p99,
                limit_p50,
                limit_p99,
                row.cost(),
                row.goal_text(),
                met.to_owned(),
            ]);
        }
        format!("{}\n\n{}\n{}", self.head(), render(&mut table).trim_end(), self.notes())
    }

    fn head(&self) -> String {
        let host = &self.host;
        let kind = match (host.emulated, host.guests) {
            (true, Some(guests)) => format!("software emulation, {guests}"),
            (true, None) => "software emulation".to_owned(),
            (false, _) => "hardware virtualisation".to_owned(),
        };
        let build = if host.debug_build { " (a debug build: use a release build)" } else { "" };
        format!(
            "{} cores of {}, load {:.1}, kernel {}\nhost {}, drover {}{build}, {} ({kind}), nats-server {}",
            host.cores, host.cpu, host.load, host.kernel, host.host, host.drover, host.vmm, host.nats,
        )
    }

    /// What each limit is, and why numbers are missing; of rows that follow each other the same is said once.
    fn notes(&self) -> String {
        let rows = self.rows.iter().map(|row| (row, row.notes()));
        let rows: Vec<_> = rows.filter(|(_, notes)| !notes.is_empty()).collect();
        let mut text = String::new();
        for same in rows.chunk_by(|(_, one), (_, next)| one == next) {
            let Some(((row, notes), others)) = same.split_first() else { continue };
            let more = match others.len() {
                0 => String::new(),
                1 => " and the row below it".to_owned(),
                others => format!(" and {others} rows below it"),
            };
            text.push_str(&format!("\n{}{more}: {notes}", row.what));
        }
        text
    }
}

fn number(value: f64) -> String {
    if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.1}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(p50: f64, limit: f64, goal: Goal) -> Row {
        let of = |p50| Percentiles { p50, p99: p50, count: 9 };
        let mut row = Row::new("x", "ms", of(p50)).against("y", Ok(of(limit))).goal(goal);
        row.judge();
        row
    }

    #[test]
    fn a_goal_is_met_on_its_own_side() {
        assert_eq!(row(130.0, 100.0, Goal::RatioAtMost(1.3)).met, Some(true));
        assert_eq!(row(131.0, 100.0, Goal::RatioAtMost(1.3)).met, Some(false));
        assert_eq!(row(79.0, 100.0, Goal::RatioAtLeast(0.8)).met, Some(false));
        assert_eq!(row(115.0, 100.0, Goal::MoreAtMost(15.0)).met, Some(true));
        assert_eq!(row(65.0, 0.0, Goal::AtMost(64.0)).met, Some(false));
    }

    #[test]
    fn without_a_limit_nothing_is_claimed_and_the_reason_is_told() {
        let of = Percentiles { p50: 1.0, p99: 1.0, count: 1 };
        let mut row =
            Row::new("x", "ms", of).against("y", Err("no root".into())).goal(Goal::RatioAtMost(1.0));
        row.judge();
        assert_eq!((row.met, row.ratio), (None, None));
        assert!(row.note.is_some_and(|note| note.contains("no root")));
    }

    #[test]
    fn what_is_the_same_of_rows_is_said_once() {
        let of = |what: &str, against| {
            let limit = Percentiles { p50: 1.0, p99: 1.0, count: 1 };
            Row::new(what, "ms", limit).against(against, Ok(limit))
        };
        let rows = vec![of("a", "x"), of("b", "x"), of("c", "x"), of("d", "y"), of("e", "")];
        let host = HostDescription {
            host: String::new(),
            drover: String::new(),
            debug_build: false,
            cpu: String::new(),
            cores: 1,
            load: 0.0,
            kernel: String::new(),
            vmm: String::new(),
            emulated: false,
            guests: None,
            nats: String::new(),
        };
        let notes = Report::new(host, rows).notes();
        assert_eq!(notes, "\na and 2 rows below it: limit is x\nd: limit is y");
    }
}
