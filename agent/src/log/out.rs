//! Where lines go. Whoever reads them may be slow, stopped or gone: a line waits for nobody, and those that there was no
//! room for are counted and told once there is room again.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags, fstat, open};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};

/// The longest line; more of one is cut off. A pipe with so much room takes it whole.
const MAX_LINE: usize = 2048;

/// How to write without waiting.
#[derive(Debug)]
enum Way {
    /// The same pipe or terminal, opened once more: that it does not wait is this process's own affair then, and not of
    /// all that share the descriptor.
    Own(OwnedFd),
    /// A socket says for each message that it does not wait.
    Socket,
    /// A file does not wait for readers, and anything else is asked for room first.
    Asked,
}

/// Lines on their way out.
#[derive(Debug)]
pub(super) struct Out {
    way: Option<Way>,
    /// What is left of a line that has begun.
    rest: Vec<u8>,
    /// Lines that were not written since the last that was.
    lost: u64,
}

fn way(fd: BorrowedFd<'_>) -> Way {
    let kind = fstat(fd).map(|stat| FileType::from_raw_mode(stat.st_mode));
    match kind {
        Ok(FileType::Socket) => Way::Socket,
        Ok(FileType::Fifo | FileType::CharacterDevice) => {
            let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
            let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd));
            // Without `/proc`, or where it is another user's, room is asked for.
            open(path, flags, Mode::empty()).map_or(Way::Asked, Way::Own)
        }
        _ => Way::Asked,
    }
}

fn has_room(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::OUT)];
    poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

impl Out {
    pub(super) const fn new() -> Self {
        Self { way: None, rest: Vec::new(), lost: 0 }
    }

    /// Writes a line, or counts it.
    pub(super) fn line(&mut self, text: &str) {
        self.line_to(io::stderr().as_fd(), text);
    }

    fn line_to(&mut self, fd: BorrowedFd<'_>, text: &str) {
        if !self.goes_on(fd) {
            return;
        }
        if self.lost > 0 {
            let note =
                format!("drover-agent: warn: {} lines were not written, as nobody read them", self.lost);
            if !self.begin(fd, &note) {
                self.lost += 1;
                return;
            }
            self.lost = 0;
            if !self.goes_on(fd) {
                return;
            }
        }
        if !self.begin(fd, text) {
            self.lost += 1;
        }
    }

    /// Whether a line that had begun is written; else one more is lost.
    fn goes_on(&mut self, fd: BorrowedFd<'_>) -> bool {
        if !self.rest.is_empty() {
            let written = self.write(fd, &self.rest.clone());
            self.rest.drain(..written);
            self.lost += u64::from(!self.rest.is_empty());
        }
        self.rest.is_empty()
    }

    /// Whether a line has begun at least.
    fn begin(&mut self, fd: BorrowedFd<'_>, text: &str) -> bool {
        let mut line = text.as_bytes()[..text.floor_char_boundary(MAX_LINE - 1)].to_vec();
        line.push(b'\n');
        let written = self.write(fd, &line);
        if written > 0 {
            self.rest = line.split_off(written);
        }
        written > 0
    }

    /// How many bytes were written.
    fn write(&mut self, fd: BorrowedFd<'_>, bytes: &[u8]) -> usize {
        let way = self.way.get_or_insert_with(|| way(fd));
        loop {
            let written = match way {
                Way::Own(own) => rustix::io::write(&*own, bytes),
                Way::Socket => send(fd, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL),
                Way::Asked if has_room(fd) => rustix::io::write(fd, bytes),
                Way::Asked => Ok(0),
            };
            match written {
                Err(Errno::INTR) => {}
                written => return written.unwrap_or(0),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Seek as _};
    use std::os::unix::net::UnixStream;

    use super::*;

    /// As many as no pipe has room for.
    const LINES: u64 = 20_000;

    /// Writes lines that nobody reads, reads them, and writes a last one; how many were lost.
    fn lost(fd: BorrowedFd<'_>, mut out: Out, mut read: impl FnMut() -> String) -> u64 {
        for n in 0..LINES {
            out.line_to(fd, &format!("line {n} {}", "x".repeat(n as usize % 100)));
        }
        let lost = out.lost;
        let mut text = read();
        out.line_to(fd, "the last");
        text += &read();
        assert!(text.ends_with("the last\n"), "{}", &text[text.len().saturating_sub(200)..]);
        let mut written = 0;
        let mut told = 0;
        for line in text.lines() {
            if let Some(count) = line.strip_prefix("drover-agent: warn: ") {
                told += count.split(' ').next().unwrap().parse::<u64>().unwrap();
            } else if line != "the last" {
                // Whole, and in order.
                let n = written;
                assert_eq!(line, format!("line {n} {}", "x".repeat(n as usize % 100)));
                written += 1;
            }
        }
        assert_eq!((told, written + told), (lost, LINES));
        lost
    }

    fn drain(from: &mut impl io::Read) -> String {
        let mut text = Vec::new();
        let mut piece = [0; 65_536];
        while let Ok(read @ 1..) = from.read(&mut piece) {
            text.extend_from_slice(&piece[..read]);
        }
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn lines_that_nobody_reads_are_counted_and_told_of() {
        let (mut reader, writer) = io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&reader, true).unwrap();
        assert!(lost(writer.as_fd(), Out::new(), || drain(&mut reader)) > 0);
        // Where the pipe cannot be opened once more.
        let asked = Out { way: Some(Way::Asked), ..Out::new() };
        assert!(lost(writer.as_fd(), asked, || drain(&mut reader)) > 0);

        let (mut reader, writer) = UnixStream::pair().unwrap();
        reader.set_nonblocking(true).unwrap();
        assert!(lost(writer.as_fd(), Out::new(), || drain(&mut reader)) > 0);

        // Others that write there are not changed.
        let flags = rustix::fs::fcntl_getfl(&writer).unwrap();
        assert!(!flags.contains(OFlags::NONBLOCK));
    }

    #[test]
    fn a_file_takes_all_and_who_has_gone_takes_none() {
        let mut file = tempfile::tempfile().unwrap();
        let writer = file.try_clone().unwrap();
        let read = || {
            file.rewind().unwrap();
            let text = drain(&mut file);
            // Whoever writes goes on where this one is.
            file.set_len(0).unwrap();
            file.rewind().unwrap();
            text
        };
        assert_eq!(lost(writer.as_fd(), Out::new(), read), 0);

        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let mut out = Out::new();
        for _ in 0..3 {
            out.line_to(writer.as_fd(), "to nobody");
        }
        assert_eq!(out.lost, 3);
    }

    #[test]
    fn a_long_line_is_cut_between_letters() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut out = Out::new();
        out.line_to(writer.as_fd(), &"é".repeat(MAX_LINE));
        drop(writer);
        drop(out);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text.len(), MAX_LINE - 1);
    }
}
