//! `get`: a file or parts of it, read with credit in hand.

use std::io::{self, Read};
use std::path::PathBuf;

use bytes::{Bytes, BytesMut};
use drover_schemas::codec;
use drover_schemas::guest::ranges::Walk;
use drover_schemas::guest::{Channel, GetHead, GetRequest, GetResult, MAX_UNSIZED};
use drover_schemas::{ErrorBody, ErrorCode};
use rustix::fs::FileType;
use sha2::{Digest as _, Sha256};

use super::worker::Worker;
use super::{file, held, invalid, reply};
use crate::Agent;
use crate::conn::Stream;
use crate::dedupe::Outcome;
use crate::policy::Reach;

/// The most that is read in one go, in bytes.
const BATCH: u64 = 256 * 1024;

struct Source {
    file: Box<dyn Read + Send>,
    path: PathBuf,
    hash: Sha256,
    walk: Walk,
    /// What does not travel and is still to be read for the digest.
    gap: u64,
    /// What is still to be read and to travel.
    ahead: u64,
    /// The walk is over: what is left is the file's tail.
    is_last: bool,
}

/// What a look at the source brought.
enum Part {
    /// Bytes that were read for the digest alone.
    Silent,
    /// Bytes to send.
    Data(Bytes),
    /// The whole file was read.
    End,
}

pub(super) async fn run(agent: &Agent, stream: &Stream, request: GetRequest, reach: &Reach) -> Outcome {
    let _place = file::place(agent)?;
    let path = file::path(&request.path)?;
    let reach = reach.clone();
    let worker = Worker::start()?;
    let (mut source, head) = worker.run(move || Source::open(path, &request, &reach)).await?;
    stream.head(codec::encode(&head).map_err(|e| invalid(e.to_string()))?);
    loop {
        // No byte that travels is read without credit.
        let room = if source.is_silent() { BATCH } else { stream.room(Channel::Data).await.min(BATCH) };
        let (next, part) = worker.run(move || source.read(room)).await?;
        source = next;
        match part {
            Part::Silent => {}
            Part::Data(bytes) => stream.send(Channel::Data, bytes).await,
            Part::End => break,
        }
    }
    let sha256 = file::hex(&source.hash.finalize());
    let GetHead { size, mode, uid, gid, mtime_ms } = head;
    reply(&GetResult { size, sha256, mode, uid, gid, mtime_ms })
}

impl Source {
    fn open(path: PathBuf, request: &GetRequest, reach: &Reach) -> Result<(Self, GetHead), ErrorBody> {
        let refused = |e: io::Error| file::refused("read", &path, &e);
        let handle = held::look(&path, true).map_err(refused)?;
        reach.reads(&handle)?;
        let stat = rustix::fs::fstat(&handle).map_err(|e| refused(e.into()))?;
        if held::kind(&stat) != FileType::RegularFile {
            return Err(invalid(format!("{} is not a regular file; name one", path.display())));
        }
        let file = held::readable(&handle).map_err(refused)?;
        let mut size = stat.st_size.cast_unsigned();
        let mut file: Box<dyn Read + Send> = Box::new(file);
        if size == 0 {
            let mut all = Vec::new();
            file.take(MAX_UNSIZED + 1).read_to_end(&mut all).map_err(refused)?;
            size = all.len() as u64;
            if size > MAX_UNSIZED {
                let text = format!(
                    "{} states no size and has more than {MAX_UNSIZED} bytes; read it with a command",
                    path.display()
                );
                return Err(invalid(text));
            }
            file = Box::new(io::Cursor::new(all));
        }
        if let Some(max) = request.max_size.filter(|max| size > *max) {
            let text = format!("{} has {size} bytes, and at most {max} were asked for", path.display());
            return Err(ErrorBody::new(ErrorCode::ResourceExhausted, text).with("size_bytes", size));
        }
        let walk = Walk::new(size, request.ranges.as_deref()).map_err(|e| invalid(e.to_string()))?;
        let head = GetHead {
            size,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime_ms: held::mtime_ms(&stat),
        };
        let mut source = Self { file, path, hash: Sha256::new(), walk, gap: 0, ahead: 0, is_last: false };
        source.advance();
        Ok((source, head))
    }

    /// Looks at what comes next once the last piece was read.
    fn advance(&mut self) {
        if self.gap > 0 || self.ahead > 0 || self.is_last {
            return;
        }
        match self.walk.step(u64::MAX) {
            Some(step) => (self.gap, self.ahead) = (step.gap, step.len),
            None => (self.gap, self.is_last) = (self.walk.rest(), true),
        }
    }

    /// Whether what comes next does not travel.
    const fn is_silent(&self) -> bool {
        self.gap > 0 || self.ahead == 0
    }

    fn read(mut self, room: u64) -> Result<(Self, Part), ErrorBody> {
        let is_silent = self.is_silent();
        let want = room.min(if is_silent { self.gap } else { self.ahead });
        if want == 0 {
            return Ok((self, Part::End));
        }
        let mut buf = BytesMut::zeroed(want as usize);
        self.file.read_exact(&mut buf).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => {
                let text =
                    format!("{} became shorter while it was read; ask for it again", self.path.display());
                ErrorBody::new(ErrorCode::Conflict, text).with("cause", "file_changed")
            }
            _ => file::refused("read", &self.path, &e),
        })?;
        self.hash.update(&buf);
        if is_silent {
            self.gap -= want;
        } else {
            self.ahead -= want;
        }
        self.advance();
        Ok((self, if is_silent { Part::Silent } else { Part::Data(buf.freeze()) }))
    }
}
