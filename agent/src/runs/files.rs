//! The files of one run: its own folder, which belongs to root alone.
//!
//! | file | written by | holds |
//! |---|---|---|
//! | `lock` | keeper | nothing; locked while the keeper lives |
//! | `start` | keeper, once | [`Start`]: what was started; there once it was |
//! | `stdout`, `stderr` | keeper | the rings |
//! | `end` | keeper, once | [`RunResult`]: how it ended |
//! | `stdin` | whoever is attached | a pipe |
//! | `control` | the agent | a pipe of [`Word`]s |

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use drover_schemas::guest::{Extent, RunInfo, RunResult, RunState, TermSize};
use drover_schemas::{RequestId, codec};
use rustix::fs::{FlockOperation, Mode, flock};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::ring::Reader;

/// The most that is read of a file of facts.
const MAX_FACTS: u64 = 64 * 1024;

/// What was started.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Start {
    /// In which boot.
    pub(super) boot_id: String,
    /// SHA-256 of the request.
    #[serde(with = "serde_bytes")]
    pub(super) fingerprint: Vec<u8>,
    /// What may be kept of its output, both channels together, in bytes.
    pub(super) rings_bytes: u64,
    /// The run at its start.
    pub(super) info: RunInfo,
}

/// What the agent says to a keeper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Word {
    /// A signal for the command's group; SIGKILL for all that it started.
    Signal(i32),
    /// The terminal's size.
    Resize(TermSize),
    /// No input follows.
    EndOfInput,
}

/// The length of a word; a pipe takes so little whole or not at all.
pub(super) const WORD: usize = 8;

impl Word {
    pub(super) fn to_bytes(self) -> [u8; WORD] {
        let (kind, value) = match self {
            Self::Signal(signal) => (b'S', signal.to_le_bytes()),
            Self::Resize(size) => {
                let ([a, b], [c, d]) = (size.rows.to_le_bytes(), size.cols.to_le_bytes());
                (b'R', [a, b, c, d])
            }
            Self::EndOfInput => (b'E', [0; 4]),
        };
        let [a, b, c, d] = value;
        [kind, 0, 0, 0, a, b, c, d]
    }

    pub(super) fn from_bytes(bytes: [u8; WORD]) -> Option<Self> {
        let [kind, _, _, _, a, b, c, d] = bytes;
        match kind {
            b'S' => Some(Self::Signal(i32::from_le_bytes([a, b, c, d]))),
            b'R' => Some(Self::Resize(TermSize {
                rows: u16::from_le_bytes([a, b]),
                cols: u16::from_le_bytes([c, d]),
            })),
            b'E' => Some(Self::EndOfInput),
            _ => None,
        }
    }
}

/// The folder of one run.
#[derive(Debug, Clone)]
pub struct Folder(PathBuf);

impl Folder {
    pub(super) const fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    pub(super) fn stdout(&self) -> PathBuf {
        self.0.join("stdout")
    }

    pub(super) fn stderr(&self) -> PathBuf {
        self.0.join("stderr")
    }

    pub(super) fn stdin(&self) -> PathBuf {
        self.0.join("stdin")
    }

    pub(super) fn control(&self) -> PathBuf {
        self.0.join("control")
    }

    /// The name by which the run is asked for, if this is the folder of one.
    pub(super) fn run(&self) -> Option<RequestId> {
        self.0.file_name()?.to_str()?.parse().ok()
    }

    /// Takes the lock for as long as the file is open.
    pub(super) fn lock(&self) -> io::Result<File> {
        let lock =
            File::options().write(true).create(true).truncate(false).mode(0o600).open(self.0.join("lock"))?;
        flock(&lock, FlockOperation::LockExclusive)?;
        Ok(lock)
    }

    /// Whether a keeper lives.
    fn is_kept(&self) -> bool {
        let Ok(lock) = File::open(self.0.join("lock")) else { return false };
        flock(&lock, FlockOperation::NonBlockingLockShared) == Err(rustix::io::Errno::WOULDBLOCK)
    }

    pub(super) fn make_pipe(path: &Path) -> io::Result<()> {
        Ok(nix::unistd::mkfifo(
            path,
            nix::sys::stat::Mode::from_bits_truncate(Mode::RUSR.bits() | Mode::WUSR.bits()),
        )?)
    }

    /// Writes a file of facts, whole or not at all.
    fn write<T: Serialize>(&self, name: &str, value: &T) -> io::Result<()> {
        let draft = self.0.join(format!("{name}.new"));
        let bytes = codec::encode(value).map_err(io::Error::other)?;
        let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
        file.write_all(&bytes)?;
        fs::rename(draft, self.0.join(name))
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        use std::io::Read as _;
        let mut bytes = Vec::new();
        File::open(self.0.join(name)).ok()?.take(MAX_FACTS).read_to_end(&mut bytes).ok()?;
        codec::decode(&bytes).ok()
    }

    pub(super) fn write_start(&self, start: &Start) -> io::Result<()> {
        self.write("start", start)
    }

    pub(super) fn start(&self) -> Option<Start> {
        self.read("start")
    }

    pub(super) fn write_end(&self, result: &RunResult) -> io::Result<()> {
        self.write("end", result)
    }

    /// How the run is now; looked at before its rings, so that a result comes with all of its output.
    #[must_use]
    pub fn state(&self) -> (RunState, Option<RunResult>) {
        let kept = self.is_kept();
        match self.read("end") {
            Some(result) => (RunState::Ended, Some(result)),
            None if kept => (RunState::Running, None),
            None => (RunState::Lost, None),
        }
    }

    /// The run as it is now, as told by what was started.
    pub(super) fn info(&self, start: Start) -> RunInfo {
        let (state, result) = self.state();
        let extent = |path: &Path| Reader::open(path).and_then(|r| r.extent()).unwrap_or_default();
        let (stdout, stderr) = (extent(&self.stdout()), extent(&self.stderr()));
        RunInfo { state, result, stdout, stderr, ..start.info }
    }

    /// Says something to the keeper.
    pub(super) fn say(&self, word: Word) -> io::Result<()> {
        let mut control = File::options().write(true).custom_flags(libc::O_NONBLOCK).open(self.control())?;
        control.write_all(&word.to_bytes())
    }

    pub(super) fn remove(&self) -> io::Result<()> {
        fs::remove_dir_all(&self.0)
    }
}

/// Of what was never written.
pub(super) const NOTHING: Extent = Extent { start: 0, end: 0 };

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_come_back() {
        let size = TermSize { rows: 50, cols: 513 };
        for word in [Word::Signal(15), Word::Signal(-1), Word::Resize(size), Word::EndOfInput] {
            assert_eq!(Word::from_bytes(word.to_bytes()), Some(word));
        }
        assert_eq!(Word::from_bytes([0; WORD]), None);
    }

    #[test]
    fn a_run_whose_keeper_was_killed_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path().to_owned());
        assert_eq!(folder.state().0, RunState::Lost);
        let lock = folder.lock().unwrap();
        assert_eq!(folder.state().0, RunState::Running);
        drop(lock);
        assert_eq!(folder.state().0, RunState::Lost);
        folder.write_end(&RunResult { exit_code: Some(7), ..RunResult::default() }).unwrap();
        assert_eq!(folder.state().1.unwrap().exit_code, Some(7));
    }
}
