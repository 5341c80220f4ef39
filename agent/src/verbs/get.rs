//! `get`: a file, read with credit in hand.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::PathBuf;

use bytes::{Bytes, BytesMut};
use drover_schemas::ErrorBody;
use drover_schemas::codec;
use drover_schemas::guest::{Channel, GetHead, GetRequest, GetResult};
use sha2::{Digest as _, Sha256};

use super::{file, invalid, reply};
use crate::Agent;
use crate::conn::Stream;
use crate::dedupe::Outcome;

/// The most that is read in one go, in bytes.
const BATCH: u64 = 256 * 1024;

struct Source {
    file: File,
    path: PathBuf,
    hash: Sha256,
}

pub(super) async fn run(agent: &Agent, stream: &Stream, request: GetRequest) -> Outcome {
    let _place = file::place(agent)?;
    let path = file::path(&request.path)?;
    let offset = request.offset;
    let (mut source, head) = file::blocking(move || Source::open(path, offset)).await?;
    stream.head(codec::encode(&head).map_err(|e| invalid(e.to_string()))?);

    let mut left = request.max_bytes.unwrap_or(u64::MAX);
    let mut sent = 0;
    while left > 0 {
        let want = stream.room(Channel::Data).await.min(BATCH).min(left);
        let (next, bytes) = file::blocking(move || source.read(want)).await?;
        source = next;
        if bytes.is_empty() {
            break;
        }
        left -= bytes.len() as u64;
        sent += bytes.len() as u64;
        stream.send(Channel::Data, bytes).await;
    }
    let sha256 = file::hex(&source.hash.finalize());
    reply(&GetResult { size: sent, sha256, mode: head.mode, mtime_ms: head.mtime_ms })
}

impl Source {
    fn open(path: PathBuf, offset: u64) -> Result<(Self, GetHead), ErrorBody> {
        let refused = |e: &std::io::Error| file::refused("read", &path, e);
        // Without blocking: a pipe or a device under this name must not hold up a thread.
        let mut file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(&path)
            .map_err(|e| refused(&e))?;
        let meta = file.metadata().map_err(|e| refused(&e))?;
        if !meta.is_file() {
            return Err(invalid(format!("{} is not a regular file; name one", path.display())));
        }
        if offset > 0 {
            file.seek(SeekFrom::Start(offset)).map_err(|e| refused(&e))?;
        }
        let head = GetHead {
            size: meta.len(),
            mode: meta.mode() & 0o7777,
            uid: meta.uid(),
            gid: meta.gid(),
            mtime_ms: meta.mtime().saturating_mul(1000).saturating_add(meta.mtime_nsec() / 1_000_000),
        };
        Ok((Self { file, path, hash: Sha256::new() }, head))
    }

    fn read(mut self, want: u64) -> Result<(Self, Bytes), ErrorBody> {
        let mut buf = BytesMut::zeroed(want as usize);
        let mut filled = 0;
        while filled < buf.len() {
            match self.file.read(&mut buf[filled..]) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(file::refused("read", &self.path, &e)),
            }
        }
        buf.truncate(filled);
        self.hash.update(&buf);
        Ok((self, buf.freeze()))
    }
}
