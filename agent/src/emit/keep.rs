//! The log of events that the host does not have yet: in memory, and in a file that outlives the agent.
//!
//! The file lies where detached commands are kept, which is memory of the guest, so what is written outlives the agent
//! and not the boot. It is a sequence of records, each a big-endian length and a MessagePack map; the first says whose
//! log it is. What a kill leaves half written at its end was never answered, and is cut off. It is written anew when
//! most of it is past.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use drover_schemas::codec;
use drover_schemas::guest::Event;
use drover_schemas::guest::event::MAX_EVENT_DATA;
use serde::{Deserialize, Serialize};

use crate::log;

/// How many events may wait for the host.
pub const MAX_KEPT: usize = 1024;
/// How many bytes of data they may have in all.
pub const MAX_KEPT_BYTES: usize = 256 * 1024;
/// Share of these, in percent, that programs may use: the rest is for what the agent itself has to say.
const FOR_PROGRAMS: usize = 75;
/// The longest record.
const MAX_RECORD: usize = MAX_EVENT_DATA + 1024;
/// The file is written anew when it is longer than this and most of it is past.
const REWRITE: u64 = 64 * 1024;

/// What a record says: one of these.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Record {
    #[serde(skip_serializing_if = "Option::is_none")]
    begin: Option<Begin>,
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<Event>,
    /// The host has these.
    #[serde(skip_serializing_if = "Option::is_none")]
    acked: Option<u64>,
}

/// The first record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Begin {
    boot_id: String,
    log: String,
    /// The last event that the host has.
    acked: u64,
}

/// An event cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// Too many wait for the host.
    #[error("{waiting} events wait for the host, which does not take them")]
    Full {
        /// How many.
        waiting: usize,
    },
    /// The file takes nothing.
    #[error("cannot write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// The log.
#[derive(Debug)]
pub struct Keep {
    /// Its name, the same for as long as the file is there.
    name: String,
    boot_id: String,
    /// The last event that the host has.
    acked: u64,
    /// Those after it.
    events: VecDeque<Event>,
    bytes: usize,
    file: Option<(PathBuf, File, u64)>,
    /// There was none of this boot.
    is_new: bool,
}

fn data(event: &Event) -> usize {
    event.body.as_slice().len()
}

fn encode(record: &Record) -> io::Result<Vec<u8>> {
    let body = codec::encode(record).map_err(io::Error::other)?;
    // A record is some kilobytes long.
    Ok([&(body.len() as u32).to_be_bytes(), body.as_slice()].concat())
}

impl Keep {
    /// Goes on with the log of this boot that is kept in `folder`, or begins one. Without a folder that can be written
    /// to it is kept in memory alone, which is said.
    #[must_use]
    pub fn open(folder: &Path, boot_id: &str) -> Self {
        let name = ulid::Ulid::new().to_string();
        let mut keep = Self {
            name,
            boot_id: boot_id.to_owned(),
            acked: 0,
            events: VecDeque::new(),
            bytes: 0,
            file: None,
            is_new: true,
        };
        let path = folder.join("events");
        if let Err(error) = keep.read(&path) {
            log::warn(format_args!("the events of an earlier agent cannot be read: {error}"));
        }
        // Whole, and without what is past.
        if let Err(error) = make_folder(folder).and_then(|()| keep.rewrite(&path)) {
            log::warn(format_args!(
                "events are kept in memory alone: cannot write {}: {error}",
                path.display()
            ));
        }
        keep
    }

    /// Reads what an earlier agent of this boot has kept.
    fn read(&mut self, path: &Path) -> io::Result<()> {
        let mut bytes = Vec::new();
        match File::open(path) {
            Ok(file) => file.take(4 * (MAX_KEPT_BYTES as u64) + REWRITE).read_to_end(&mut bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let mut records = Records(&bytes);
        match records.next().and_then(|record| record.begin) {
            Some(begin) if begin.boot_id == self.boot_id => {
                (self.name, self.acked, self.is_new) = (begin.log, begin.acked, false);
            }
            // Of an earlier boot: nothing of it can be told apart from what the host has.
            _ => return Ok(()),
        }
        for record in records {
            if let Some(acked) = record.acked {
                self.forget(acked);
            }
            if let Some(event) = record.event.filter(|event| event.n == self.last() + 1) {
                self.bytes += data(&event);
                self.events.push_back(event);
            }
        }
        Ok(())
    }

    fn begin(&self) -> Begin {
        Begin { boot_id: self.boot_id.clone(), log: self.name.clone(), acked: self.acked }
    }

    /// Puts a file in place that holds what is not past.
    fn rewrite(&mut self, path: &Path) -> io::Result<()> {
        let draft = path.with_extension("new");
        let mut bytes = encode(&Record { begin: Some(self.begin()), ..Record::default() })?;
        for event in &self.events {
            bytes.extend(encode(&Record { event: Some(event.clone()), ..Record::default() })?);
        }
        let mut file =
            File::options().read(true).write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
        file.write_all(&bytes)?;
        fs::rename(&draft, path)?;
        self.file = Some((path.to_owned(), file, bytes.len() as u64));
        Ok(())
    }

    /// Writes a record, whole or not at all.
    fn append(&mut self, record: &Record) -> Result<(), KeepError> {
        let Some((path, file, len)) = &mut self.file else { return Ok(()) };
        let failed = |source| KeepError::Write { path: path.clone(), source };
        let bytes = encode(record).map_err(failed)?;
        let written = file.seek(SeekFrom::Start(*len)).and_then(|_| file.write_all(&bytes));
        if let Err(source) = written {
            let _ = file.set_len(*len);
            return Err(failed(source));
        }
        *len += bytes.len() as u64;
        Ok(())
    }

    /// The log's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// No agent of this boot has begun it before.
    #[must_use]
    pub const fn is_new(&self) -> bool {
        self.is_new
    }

    /// The last event that the host has.
    #[must_use]
    pub const fn acked(&self) -> u64 {
        self.acked
    }

    /// The last event that there is.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.acked + self.events.len() as u64
    }

    /// Takes an event and numbers it. `own` ones are the agent's, and find room where programs find none.
    ///
    /// # Errors
    /// [`KeepError`]; the event is not kept.
    pub fn push(&mut self, mut event: Event, own: bool) -> Result<u64, KeepError> {
        let share = |all: usize| if own { all } else { all * FOR_PROGRAMS / 100 };
        if self.events.len() >= share(MAX_KEPT) || self.bytes + data(&event) > share(MAX_KEPT_BYTES) {
            return Err(KeepError::Full { waiting: self.events.len() });
        }
        event.n = self.last() + 1;
        let record = Record { event: Some(event), ..Record::default() };
        self.append(&record)?;
        if let Some(event) = record.event {
            self.bytes += data(&event);
            self.events.push_back(event);
        }
        Ok(self.last())
    }

    /// The event after `sent` that may be sent now: no more than `events` and `bytes` are on their way, or one alone.
    #[must_use]
    pub fn next(&self, sent: u64, events: usize, bytes: usize) -> Option<Event> {
        let on_way = usize::try_from(sent.saturating_sub(self.acked)).ok()?;
        let event = self.events.get(on_way)?;
        let sent_bytes: usize = self.events.iter().take(on_way).map(data).sum();
        let fits = on_way < events && sent_bytes + data(event) <= bytes;
        (fits || on_way == 0).then(|| Event { log: self.name.clone(), ..event.clone() })
    }

    /// Whether one of a type waits.
    #[must_use]
    pub fn holds(&self, kind: &str) -> bool {
        self.events.iter().any(|event| event.kind == kind)
    }

    fn forget(&mut self, acked: u64) {
        while self.acked < acked.min(self.last()) {
            self.acked += 1;
            self.bytes -= self.events.pop_front().as_ref().map_or(0, data);
        }
        if self.events.is_empty() {
            // An agent at rest holds no memory.
            self.events = VecDeque::new();
        }
    }

    /// The host has the events up to this one of the log of this name.
    pub fn acknowledge(&mut self, name: &str, n: u64) {
        if name != self.name || n <= self.acked {
            return;
        }
        self.forget(n);
        // That it has them is known to the host too: to send them again would do no harm.
        if let Err(error) = self.append(&Record { acked: Some(self.acked), ..Record::default() }) {
            log::debug(format_args!("{}", log::chain(&error)));
        }
        let past = self.file.as_ref().filter(|(_, _, len)| *len > REWRITE && self.bytes as u64 * 2 < *len);
        if let Some(path) = past.map(|(path, ..)| path.clone())
            && let Err(error) = self.rewrite(&path)
        {
            log::debug(format_args!("the events cannot be written anew: {error}"));
        }
    }
}

fn make_folder(folder: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// The whole records at the beginning of a file.
struct Records<'a>(&'a [u8]);

impl Iterator for Records<'_> {
    type Item = Record;

    fn next(&mut self) -> Option<Record> {
        let (len, rest) = self.0.split_first_chunk::<4>()?;
        let len = u32::from_be_bytes(*len) as usize;
        let body = rest.get(..len).filter(|_| len <= MAX_RECORD)?;
        self.0 = &rest[len..];
        codec::decode(body).ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn event(bytes: usize) -> Event {
        let (log, kind, body) = (String::new(), "a".into(), vec![0; bytes].into());
        Event { log, n: 0, time_unix_ms: 1, uid: 2, gid: 3, pid: 4, kind, body }
    }

    #[test]
    fn a_log_outlives_the_agent_and_not_the_boot() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("run");
        let mut keep = Keep::open(&folder, "boot");
        let name = keep.name().to_owned();
        assert_eq!((0..3).map(|_| keep.push(event(5), false).unwrap()).collect::<Vec<_>>(), [1, 2, 3]);
        keep.acknowledge(&name, 1);
        keep.acknowledge("another", 3);
        drop(keep);
        let mut keep = Keep::open(&folder, "boot");
        assert_eq!((keep.name(), keep.acked(), keep.last()), (name.as_str(), 1, 3));
        assert_eq!(keep.next(1, 9, 9).map(|event| (event.n, event.log)), Some((2, name.clone())));
        keep.acknowledge(&name, 99);
        drop(keep);
        let mut keep = Keep::open(&folder, "boot");
        assert_eq!((keep.name(), keep.acked()), (name.as_str(), 3));
        assert_eq!(keep.push(event(1), false).unwrap(), 4);
        drop(keep);
        let keep = Keep::open(&folder, "another boot");
        assert!(keep.name() != name && keep.last() == 0);
    }

    #[test]
    fn what_was_half_written_is_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let mut keep = Keep::open(dir.path(), "boot");
        assert!((0..2).all(|_| keep.push(event(50), false).is_ok()));
        let path = dir.path().join("events");
        let whole = fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let mut again = Keep::open(dir.path(), "boot");
            let last = again.last();
            assert!(last <= 1, "{cut}");
            assert_eq!(again.push(event(1), false).unwrap(), last + 1);
            assert_eq!(Keep::open(dir.path(), "boot").last(), last + 1, "what follows can be read");
        }
        fs::write(&path, [0xff; 100]).unwrap();
        assert_eq!(Keep::open(dir.path(), "boot").last(), 0);
    }

    #[test]
    fn what_waits_is_bounded_and_the_agent_itself_finds_room() {
        let dir = tempfile::tempdir().unwrap();
        let mut keep = Keep::open(dir.path(), "boot");
        let fill =
            |keep: &mut Keep, bytes, own| (0..2_000).filter(|_| keep.push(event(bytes), own).is_ok()).count();
        assert_eq!(fill(&mut keep, 0, false), MAX_KEPT * 3 / 4);
        assert_eq!(fill(&mut keep, 0, true), MAX_KEPT / 4);
        assert!(matches!(keep.push(event(0), true), Err(KeepError::Full { waiting: MAX_KEPT })));
        let name = keep.name().to_owned();
        keep.acknowledge(&name, u64::MAX);
        assert_eq!(fill(&mut keep, MAX_EVENT_DATA, false), MAX_KEPT_BYTES * 3 / 4 / MAX_EVENT_DATA);
        // As long as a day of events: the file does not grow.
        for _ in 0..200 {
            let last = keep.last();
            keep.acknowledge(&name, last);
            keep.push(event(MAX_EVENT_DATA), false).unwrap();
        }
        assert!(fs::metadata(dir.path().join("events")).unwrap().len() < 2 * REWRITE);
        // Not where nobody may write.
        let mut nowhere = Keep::open(Path::new("/proc/none"), "boot");
        assert_eq!(nowhere.push(event(1), false).unwrap(), 1);
    }

    #[test]
    fn no_more_is_on_its_way_than_may_be_but_one_always() {
        let mut keep = Keep::open(Path::new("/proc/none"), "boot");
        assert!((0..5).all(|_| keep.push(event(10), false).is_ok()));
        let next = |keep: &Keep, sent, events, bytes| keep.next(sent, events, bytes).map(|event| event.n);
        assert_eq!(next(&keep, 0, 2, 100), Some(1));
        assert_eq!(next(&keep, 1, 2, 100), Some(2));
        assert_eq!((next(&keep, 2, 2, 100), next(&keep, 2, 9, 25)), (None, None));
        assert_eq!(next(&keep, 0, 9, 5), Some(1), "larger than all that may be");
        let name = keep.name().to_owned();
        keep.acknowledge(&name, 2);
        assert_eq!(next(&keep, 2, 2, 100), Some(3));
        assert_eq!(next(&keep, 0, 2, 100), Some(3), "another link begins with the first that waits");
        assert_eq!(next(&keep, 5, 9, 100), None);
    }

    proptest! {
        /// Beside the plainest model: numbers of a list.
        #[test]
        fn it_is_a_list_of_numbers(steps in proptest::collection::vec((0_u8..4, 0_u64..60), 1..80)) {
            let dir = tempfile::tempdir().unwrap();
            let mut keep = Keep::open(dir.path(), "boot");
            let name = keep.name().to_owned();
            let (mut acked, mut last) = (0, 0);
            for (step, n) in steps {
                match step {
                    0 | 1 => {
                        last += 1;
                        prop_assert_eq!(keep.push(event(n as usize), false).unwrap(), last);
                    }
                    2 => {
                        acked = acked.max(n.min(last));
                        keep.acknowledge(&name, n);
                    }
                    _ => keep = Keep::open(dir.path(), "boot"),
                }
                prop_assert_eq!((keep.acked(), keep.last(), keep.name()), (acked, last, name.as_str()));
                let waiting: Vec<u64> = (acked..last).filter_map(|sent| Some(keep.next(sent, 999, 1 << 20)?.n)).collect();
                prop_assert_eq!(waiting, (acked + 1..=last).collect::<Vec<_>>());
            }
        }

        #[test]
        fn random_files_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join("events"), bytes).unwrap();
            prop_assert_eq!(Keep::open(dir.path(), "boot").last(), 0);
        }
    }
}
