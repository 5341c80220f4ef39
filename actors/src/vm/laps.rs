//! How long each step of some work took, for one line of the log and for metrics.

use std::fmt;
use std::time::{Duration, Instant};

/// The steps so far.
#[derive(Debug)]
pub struct Laps {
    began: Instant,
    steps: Vec<(&'static str, Duration)>,
}

impl Laps {
    /// The first step begins.
    pub fn start() -> Self {
        Self { began: Instant::now(), steps: Vec::new() }
    }

    /// A step has ended and the next begins.
    pub fn note(&mut self, step: &'static str) {
        let now = Instant::now();
        self.steps.push((step, now - self.began));
        self.began = now;
    }

    /// The steps that have ended.
    pub fn steps(&self) -> &[(&'static str, Duration)] {
        &self.steps
    }
}

/// `network 3, disks 0`: milliseconds.
impl fmt::Display for Laps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (step, took)) in self.steps.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{step} {}", took.as_millis())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_stand_in_their_order() {
        let mut laps = Laps::start();
        laps.note("network");
        laps.note("disks");
        let names: Vec<_> = laps.steps().iter().map(|(step, _)| *step).collect();
        assert_eq!(names, ["network", "disks"]);
        let text = laps.to_string();
        assert!(text.starts_with("network ") && text.contains(", disks "), "{text}");
    }
}
