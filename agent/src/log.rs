//! Lines on stderr, with a level. The agent is in every guest: a few lines here instead of a
//! logging stack that would double its size. Whoever does not read them holds nothing up.

mod out;

use std::fmt::Arguments;
use std::str::FromStr;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use self::out::Out;

/// How many lines are held back at most; later ones are counted.
const MAX_HELD: usize = 100;

#[derive(Debug)]
struct Lines {
    /// Those that are held back, and how many more there were.
    held: Option<(Vec<String>, u64)>,
    out: Out,
}

static LINES: Mutex<Lines> = Mutex::new(Lines { held: None, out: Out::new() });
static LEVEL: AtomicU8 = AtomicU8::new(Level::Info as u8);

/// How much is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// What was asked did not happen.
    Error,
    /// Something was wrong and was dealt with.
    Warn,
    /// Starts, ends, connections.
    Info,
    /// Every request.
    Debug,
}

impl FromStr for Level {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "error" => Ok(Self::Error),
            "warn" => Ok(Self::Warn),
            "info" => Ok(Self::Info),
            "debug" => Ok(Self::Debug),
            _ => Err(format!("{s:?} is not a level: use error, warn, info or debug")),
        }
    }
}

/// Sets the level of the process.
pub fn set_level(level: Level) {
    LEVEL.store(level as u8, Ordering::Relaxed);
}

fn lines() -> MutexGuard<'static, Lines> {
    LINES.lock().unwrap_or_else(PoisonError::into_inner)
}

fn line(level: Level, name: &str, text: Arguments<'_>) {
    if level as u8 > LEVEL.load(Ordering::Relaxed) {
        return;
    }
    let text = format!("drover-agent: {name}: {text}");
    let Lines { held, out } = &mut *lines();
    match held {
        None => out.line(&text),
        Some((lines, _)) if lines.len() < MAX_HELD => lines.push(text),
        Some((_, more)) => *more += 1,
    }
}

/// Holds lines back from now on, or writes what was held: while file systems are frozen, who writes to one waits.
pub fn hold(on: bool) {
    let Lines { held, out } = &mut *lines();
    match (on, held.take()) {
        (true, before) => *held = Some(before.unwrap_or_default()),
        (false, Some((lines, more))) => {
            lines.iter().for_each(|line| out.line(line));
            if more > 0 {
                out.line(&format!(
                    "drover-agent: warn: {more} further lines were not kept while file systems were frozen"
                ));
            }
        }
        (false, None) => {}
    }
}

/// What was asked did not happen.
pub fn error(text: Arguments<'_>) {
    line(Level::Error, "error", text);
}

/// Something was wrong and was dealt with.
pub fn warn(text: Arguments<'_>) {
    line(Level::Warn, "warn", text);
}

/// Starts, ends, connections.
pub fn info(text: Arguments<'_>) {
    line(Level::Info, "info", text);
}

/// Every request.
pub fn debug(text: Arguments<'_>) {
    line(Level::Debug, "debug", text);
}

/// An error with its sources, outermost first.
#[must_use]
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        source = inner.source();
    }
    text
}
