//! A reader of a run's output that learns when there is more.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;

use drover_schemas::guest::Channel;
use drover_schemas::{ErrorBody, ErrorCode};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::files::{Folder, Word};
use super::keep::out_of_room;
use super::ring::Reader;
use crate::conn::Steer;
use crate::process::{Pipe, watch};

/// Whoever reads along.
#[derive(Debug)]
pub struct Attached {
    folder: Folder,
    stdout: Reader,
    stderr: Option<Reader>,
    changes: AsyncFd<OwnedFd>,
}

impl Attached {
    /// Opens what is kept of a run.
    ///
    /// # Errors
    /// `resource_exhausted` without descriptors; `guest_error` for files that are none.
    pub fn open(folder: Folder) -> Result<Self, ErrorBody> {
        let unread = |error: io::Error| {
            ErrorBody::new(ErrorCode::GuestError, format!("the output that was kept cannot be read: {error}"))
        };
        let room = |error: io::Error| out_of_room(&error);
        let changes =
            inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).map_err(|e| room(e.into()))?;
        // Also the end of a keeper that was killed: its files are closed by that.
        let what =
            WatchFlags::MODIFY | WatchFlags::CLOSE_WRITE | WatchFlags::MOVED_TO | WatchFlags::DELETE_SELF;
        inotify::add_watch(&changes, folder.path(), what).map_err(|e| room(e.into()))?;
        let stdout = Reader::open(&folder.stdout()).map_err(unread)?;
        let stderr = match Reader::open(&folder.stderr()) {
            Ok(reader) => Some(reader),
            // A command at a terminal has none.
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(unread(error)),
        };
        let changes = watch(changes, Interest::READABLE).map_err(room)?;
        Ok(Self { folder, stdout, stderr, changes })
    }

    /// Its folder.
    #[must_use]
    pub const fn folder(&self) -> &Folder {
        &self.folder
    }

    /// What is kept of a channel, if it has one.
    #[must_use]
    pub const fn ring(&self, channel: Channel) -> Option<&Reader> {
        match channel {
            Channel::Stdout => Some(&self.stdout),
            Channel::Stderr => self.stderr.as_ref(),
            Channel::Stdin | Channel::Data => None,
        }
    }

    /// Waits for a change since this was last asked, or since it was opened.
    pub async fn changed(&self) {
        let Ok(mut guard) = self.changes.readable().await else { return };
        let mut news = [0; 4096];
        // What changed is looked at, not read.
        while rustix::io::read(self.changes.get_ref(), &mut news).is_ok_and(|n| n > 0) {}
        guard.clear_ready();
    }

    /// The way to the command's input; `None` for one that takes none or has ended.
    #[must_use]
    pub fn input(&self) -> Option<Pipe> {
        let mut options = std::fs::File::options();
        let file = options.write(true).custom_flags(libc::O_NONBLOCK).open(self.folder.stdin()).ok()?;
        Pipe::new(file.into(), Interest::WRITABLE).ok()
    }

    /// Says that no input follows.
    pub fn end_input(&self) {
        self.say(Word::EndOfInput);
    }

    /// Passes on what the host wants of the command.
    pub fn steer(&self, steer: Steer) {
        self.say(match steer {
            Steer::Resize(size) => Word::Resize(size),
            Steer::Signal(signal) => Word::Signal(signal),
        });
    }

    fn say(&self, word: Word) {
        if let Err(error) = self.folder.say(word) {
            crate::log::debug(format_args!("a run was not told {word:?}: {error}"));
        }
    }
}
