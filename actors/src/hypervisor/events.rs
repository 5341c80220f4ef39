//! The VMM's events: a stream of pretty-printed JSON objects, each followed by a blank line.
//!
//! The stream is lossy and may break off anywhere: the VMM ignores write errors. So [`EventParser`] takes
//! any bytes, gives up on a record at 64 KiB, finds its way again at the next blank line (or at a record that
//! begins inside a broken one), and counts what it dropped. Events are hints; `vm.info` counts.

use std::io;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::record::file;
use super::ring;
use super::run_dir::RunDir;

/// Longest record, in bytes.
pub const RECORD_MAX: usize = 64 * 1024;
/// How the VMM begins each record; where to look for one inside a broken record.
const OPENING: &[u8] = b"{\n  \"timestamp\"";

/// One event as the VMM wrote it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct VmmEvent {
    /// Which part of the VMM speaks: `vm`, `vmm`, `guest`, `virtio-device` …
    pub source: String,
    /// What happened.
    pub event: String,
    /// Details by name.
    #[serde(default)]
    pub properties: Option<Map<String, Value>>,
}

/// What an event means to us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventKind {
    /// The VM began to run.
    Booted,
    /// The VM's processors stopped.
    Paused,
    /// They run again.
    Resumed,
    /// The guest resets itself; its sockets are about to go.
    Rebooting,
    /// The guest was reset; its sockets are new.
    Rebooted,
    /// The guest is off.
    Shutdown,
    /// The VMM ends.
    VmmShutdown,
    /// The guest's kernel reports its panic.
    GuestPanic {
        /// `panic`, `crash_loaded` or another word of the VMM's.
        what: String,
    },
    /// A device left the guest.
    DeviceRemoved {
        /// Its id.
        id: String,
    },
    /// A size changed.
    Resized,
    /// Of no consequence here.
    Other,
}

impl VmmEvent {
    /// What it means.
    #[must_use]
    pub fn kind(&self) -> EventKind {
        match (self.source.as_str(), self.event.as_str()) {
            ("vm", "booted") => EventKind::Booted,
            ("vm", "paused") => EventKind::Paused,
            ("vm", "resumed") => EventKind::Resumed,
            ("vm", "rebooting") => EventKind::Rebooting,
            ("vm", "rebooted") => EventKind::Rebooted,
            ("vm", "shutdown") => EventKind::Shutdown,
            ("vm", "resized") => EventKind::Resized,
            ("vm", "device-removed") => EventKind::DeviceRemoved { id: self.property("id") },
            ("vmm", "shutdown") => EventKind::VmmShutdown,
            ("guest", "panic") => EventKind::GuestPanic { what: self.property("event") },
            _ => EventKind::Other,
        }
    }

    /// A property as text; empty if there is none.
    fn property(&self, name: &str) -> String {
        match self.properties.as_ref().and_then(|all| all.get(name)) {
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
            None => String::new(),
        }
    }
}

/// Finds events in bytes that come in pieces.
#[derive(Debug, Default)]
pub struct EventParser {
    buffer: Vec<u8>,
    /// The current record was too long: everything up to the next blank line goes.
    skipping: bool,
    garbage: u64,
}

impl EventParser {
    /// A parser at the beginning of a record.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many records were dropped because they are no events.
    #[must_use]
    pub fn garbage(&self) -> u64 {
        self.garbage
    }

    /// Forgets a record that was begun, as when bytes are missing before the next ones.
    pub fn reset(&mut self) {
        if !self.buffer.trim_ascii().is_empty() {
            self.garbage += 1;
        }
        self.buffer = Vec::new();
        self.skipping = false;
    }

    /// Takes the next bytes and returns the events that they complete.
    pub fn push(&mut self, mut bytes: &[u8]) -> Vec<VmmEvent> {
        let mut events = Vec::new();
        while !bytes.is_empty() {
            // In portions, so that the buffer never holds much more than one record.
            let (now, rest) = bytes.split_at(bytes.len().min(RECORD_MAX));
            self.buffer.extend_from_slice(now);
            bytes = rest;
            self.drain(&mut events);
        }
        if self.buffer.is_empty() {
            self.buffer = Vec::new();
        }
        events
    }

    fn drain(&mut self, events: &mut Vec<VmmEvent>) {
        let mut start = 0;
        while let Some(length) = self.buffer[start..].windows(2).position(|two| two == b"\n\n") {
            let record = &self.buffer[start..start + length];
            start += length + 2;
            if std::mem::take(&mut self.skipping) || record.trim_ascii().is_empty() {
                continue;
            }
            if record.len() > RECORD_MAX {
                self.garbage += 1;
                continue;
            }
            let (event, dropped) = parse(record);
            self.garbage += dropped;
            events.extend(event);
        }
        self.buffer.drain(..start);
        if self.buffer.len() > RECORD_MAX {
            self.garbage += u64::from(!self.skipping);
            self.skipping = true;
            // The last byte may be the first half of the blank line.
            let keep = self.buffer.len() - 1;
            self.buffer.drain(..keep);
        }
    }
}

/// The event of a record, and how many broken ones came before it or in its place.
fn parse(record: &[u8]) -> (Option<VmmEvent>, u64) {
    if let Ok(event) = serde_json::from_slice(record) {
        return (Some(event), 0);
    }
    // A write that broke off is followed at once by the next record: take that one.
    let inner = record.windows(OPENING.len()).rposition(|window| window == OPENING).filter(|&at| at > 0);
    (inner.and_then(|at| serde_json::from_slice(&record[at..]).ok()), 1)
}

/// Follows the events of one VM in its run directory.
#[derive(Debug, Default)]
pub struct EventTail {
    offset: u64,
    parser: EventParser,
}

impl EventTail {
    /// Follows from an absolute offset on, such as [`super::record::PidRecord::events_offset`].
    #[must_use]
    pub fn at(offset: u64) -> Self {
        Self { offset, parser: EventParser::new() }
    }

    /// Where the next read begins.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// How many records were dropped because they are no events.
    #[must_use]
    pub fn garbage(&self) -> u64 {
        self.parser.garbage()
    }

    /// The events since the last time. Reads a small file of a memory file system, without waiting.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn poll(&mut self, dir: &RunDir) -> io::Result<Vec<VmmEvent>> {
        let mut events = Vec::new();
        loop {
            let chunk = ring::read(dir, file::EVENTS, self.offset, RECORD_MAX)?;
            if chunk.offset != self.offset {
                self.parser.reset();
            }
            if chunk.data.is_empty() {
                return Ok(events);
            }
            self.offset = chunk.offset + chunk.data.len() as u64;
            events.append(&mut self.parser.push(&chunk.data));
            if self.offset >= chunk.end {
                return Ok(events);
            }
        }
    }
}

#[cfg(test)]
#[path = "events_tests.rs"]
mod tests;
