//! The event monitor: one pretty-printed JSON object per event, then a blank line.
//!
//! As in the real one the file is opened blocking (a FIFO without a reader blocks the start), then
//! set non-blocking, and write errors are ignored: a full pipe or a missing reader loses events.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::FromRawFd;
use std::time::Instant;

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::args::Endpoint;
use crate::misbehave::Faults;

#[derive(Serialize)]
struct Timestamp {
    secs: u64,
    nanos: u32,
}

#[derive(Serialize)]
struct Event<'a> {
    timestamp: Timestamp,
    source: &'a str,
    event: &'a str,
    properties: Option<Map<String, Value>>,
}

/// Writes events, unless told to lose them.
pub struct Monitor {
    file: Option<File>,
    start: Instant,
    faults: Faults,
}

impl Monitor {
    /// Opens the monitor; without an endpoint events go nowhere.
    ///
    /// # Errors
    /// The path cannot be opened, or the descriptor is not one.
    pub fn open(endpoint: Option<&Endpoint>, faults: Faults) -> io::Result<Self> {
        let file = match endpoint {
            None => None,
            Some(Endpoint::Path(path)) => {
                Some(OpenOptions::new().write(true).create(true).truncate(true).open(path)?)
            }
            Some(Endpoint::Fd(fd)) => {
                // SAFETY: the caller of the program hands this descriptor over with `fd=N`; nothing
                // else in the process refers to it.
                Some(unsafe { File::from_raw_fd(*fd) })
            }
        };
        if let Some(file) = &file {
            let flags = OFlag::from_bits_truncate(fcntl(file, FcntlArg::F_GETFL)?);
            fcntl(file, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
            fcntl(file, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        }
        Ok(Self { file, start: Instant::now(), faults })
    }

    /// An event without properties.
    pub fn emit(&mut self, source: &str, event: &str) {
        self.write(source, event, None);
    }

    /// An event about one thing, named by `key`.
    pub fn emit_about(&mut self, source: &str, event: &str, key: &str, value: &str) {
        let mut properties = Map::new();
        properties.insert(key.to_owned(), Value::from(value));
        self.write(source, event, Some(properties));
    }

    /// Far more events than a pipe holds, for a supervisor that must survive them.
    pub fn flood(&mut self) {
        for n in 0..20_000u32 {
            self.emit_about("virtio-device", "activated", "id", &format!("flood{n}"));
        }
    }

    fn write(&mut self, source: &str, event: &str, properties: Option<Map<String, Value>>) {
        if self.faults.loses(event) {
            return;
        }
        let since = self.start.elapsed();
        let timestamp = Timestamp { secs: since.as_secs(), nanos: since.subsec_nanos() };
        let record = Event { timestamp, source, event, properties };
        if let (Some(file), Ok(text)) = (&mut self.file, serde_json::to_string_pretty(&record)) {
            // Two writes, as there: a reader can see a record without its end.
            let _ = file.write_all(text.as_bytes());
            let _ = file.write_all(b"\n\n");
        }
    }
}
