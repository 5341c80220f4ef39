//! The holder's life: copies what comes, where it belongs, until the VMM ends.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::dir::Dir;
use crate::notify::Notify;
use crate::record::{STDERR_HALF, STDERR_HEAD, SpawnError, file};
use crate::ring::Ring;
use crate::serial::Serial;
use crate::spawn::Vmm;
use crate::step;

/// How long to wait between two tries of something that is not ready.
const RETRY: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
/// Bytes that are moved at once.
const PIECE: usize = 8 * 1024;
/// Pieces that are taken from one source at the end, so that a hostile one cannot hold us.
const LAST_PIECES: usize = 256;

/// What the VMM writes to stdout and stderr: the beginning and the end are kept.
pub struct Stderr {
    head: File,
    room: u64,
    tail: Ring,
}

impl Stderr {
    /// Makes both files; the daemon has removed those of an earlier process.
    pub fn open(dir: &Dir) -> Result<Self, SpawnError> {
        let head = step(format!("create {}", file::STDERR), dir.create(file::STDERR))?;
        let tail = Ring::open(dir, file::STDERR_TAIL, STDERR_HALF);
        Ok(Self { head, room: STDERR_HEAD, tail: step(format!("open {}", file::STDERR_TAIL), tail)? })
    }

    fn append(&mut self, data: &[u8]) {
        let cut = usize::try_from(self.room).unwrap_or(usize::MAX).min(data.len());
        let (first, rest) = data.split_at(cut);
        if self.head.write_all(first).is_ok() {
            self.room -= first.len() as u64;
        }
        self.tail.append(rest);
    }
}

/// Everything that the holder has open.
pub struct Pump {
    /// The run directory.
    pub dir: Dir,
    /// The VMM.
    pub vmm: Vmm,
    /// The way to the daemon.
    pub notify: Notify,
    /// The FIFO of events.
    pub events: File,
    /// Where they go.
    pub event_ring: Ring,
    /// The FIFO of input for the console.
    pub console_in: File,
    /// Where the console's output goes.
    pub console: Ring,
    /// The VMM's stdout and stderr; `None` once everything that had it has closed it.
    pub output: Option<OwnedFd>,
    /// Where that goes.
    pub stderr: Stderr,
    /// The serial console.
    pub serial: Serial,
}

/// What woke us.
struct Woken {
    ended: bool,
    events: bool,
    output: bool,
    serial: bool,
    input: bool,
}

impl Pump {
    /// Runs until the VMM has ended.
    pub fn run(&mut self) {
        let mut buffer = [0; PIECE];
        loop {
            let Ok(woken) = self.wait() else { continue };
            if woken.events {
                self.copy_events(&mut buffer, 1);
                self.notify.send();
            }
            if woken.output {
                self.copy_output(&mut buffer, 1);
            }
            if woken.serial {
                self.serial.flush();
                self.copy_console(&mut buffer, 1);
            }
            if woken.input
                && let Ok(n) = self.console_in.read(&mut buffer[..PIECE / 2])
            {
                self.serial.push(&buffer[..n]);
            }
            if woken.ended {
                return;
            }
            self.notify.retry();
            if self.serial.fd().is_none() {
                self.serial.connect(&self.dir);
            }
        }
    }

    fn wait(&self) -> io::Result<Woken> {
        let serial = self.serial.fd();
        let timeout = (serial.is_none() || self.notify.is_pending()).then_some(&RETRY);
        let serial_flags =
            if self.serial.is_waiting() { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        // Input is taken only when the guest can have it: until then it stays in the FIFO.
        let wants_input = serial.is_some() && !self.serial.is_waiting();
        let input_flags = if wants_input { PollFlags::IN } else { PollFlags::empty() };
        let null = self.vmm.pidfd.as_fd();
        let output = self.output.as_ref().map(AsFd::as_fd);
        // A source that is not there is stood in for by the VMM itself, asked for nothing.
        let mut fds = [
            PollFd::new(&self.vmm.pidfd, PollFlags::IN),
            PollFd::new(&self.events, PollFlags::IN),
            PollFd::from_borrowed_fd(output.unwrap_or(null), wanted(output.is_some(), PollFlags::IN)),
            PollFd::from_borrowed_fd(serial.unwrap_or(null), wanted(serial.is_some(), serial_flags)),
            PollFd::new(&self.console_in, input_flags),
        ];
        poll(&mut fds, timeout)?;
        let [vmm, events, out, ser, input] = fds.map(|fd| !fd.revents().is_empty());
        Ok(Woken {
            ended: vmm,
            events,
            output: output.is_some() && out,
            serial: serial.is_some() && ser,
            input: wants_input && input,
        })
    }

    fn copy_events(&mut self, buffer: &mut [u8], pieces: usize) {
        for _ in 0..pieces {
            match self.events.read(buffer) {
                Ok(n) if n > 0 => self.event_ring.append(&buffer[..n]),
                _ => return,
            }
        }
    }

    fn copy_output(&mut self, buffer: &mut [u8], pieces: usize) {
        for _ in 0..pieces {
            let Some(output) = &self.output else { return };
            match rustix::io::read(output, &mut *buffer) {
                Ok(n) if n > 0 => self.stderr.append(&buffer[..n]),
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return,
                _ => self.output = None,
            }
        }
    }

    fn copy_console(&mut self, buffer: &mut [u8], pieces: usize) {
        for _ in 0..pieces {
            match self.serial.read(buffer) {
                0 => return,
                n => self.console.append(&buffer[..n]),
            }
        }
    }

    /// Takes what is left in the pipes after the end.
    pub fn drain(&mut self) {
        let mut buffer = [0; PIECE];
        self.copy_events(&mut buffer, LAST_PIECES);
        self.copy_output(&mut buffer, LAST_PIECES);
        self.copy_console(&mut buffer, LAST_PIECES);
    }

    /// Bytes that could not be written anywhere.
    pub fn lost_bytes(&self) -> u64 {
        self.event_ring.lost() + self.console.lost() + self.stderr.tail.lost()
    }
}

fn wanted(there: bool, flags: PollFlags) -> PollFlags {
    if there { flags } else { PollFlags::empty() }
}
