//! What `drover bench` holds the agent against: the least that a plain program in the guest must do.
//!
//! One thread, one connection at a time, blocking calls, no frames, no credit, no streams. A request is
//! an operation and a length, both as this module writes them; `drover bench` starts the program through
//! the agent, dials it through the same hybrid socket, and ends it.
//!
//! | operation | then from the host | answered with |
//! |---|---|---|
//! | [`EXEC`] | that many bytes | the same bytes, after `true` was started and waited for |
//! | [`PUT`] | that many bytes | their SHA-256, after they are in the file and on disk |
//! | [`GET`] | nothing | the file's length, its bytes, their SHA-256; the file is removed |

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};

use sha2::{Digest as _, Sha256};
use vsock::{VMADDR_CID_ANY, VsockListener};

use crate::listen::{Address, BindError};

/// Echo, with a program started between.
pub const EXEC: u8 = b'x';
/// The host sends a file.
pub const PUT: u8 = b'p';
/// The host fetches the file.
pub const GET: u8 = b'g';
/// What is read and written in one go, in bytes.
pub const CHUNK: usize = 256 * 1024;
/// The longest echo, in bytes.
const MAX_ECHO: u64 = 64 * 1024;

/// Serves one connection after the other until no further one can come.
///
/// # Errors
/// The address cannot be had; a connection's own failure only ends that connection.
pub fn run(address: &Address, file: &Path) -> Result<(), BindError> {
    let failed = |source| BindError { address: address.clone(), source };
    match address {
        Address::Unix(path) => {
            let listener = UnixListener::bind(path).map_err(failed)?;
            for socket in listener.incoming() {
                let _ = serve(&mut socket.map_err(failed)?, file);
            }
        }
        Address::Vsock(port) => {
            let listener = VsockListener::bind_with_cid_port(VMADDR_CID_ANY, *port).map_err(failed)?;
            for socket in listener.incoming() {
                let _ = serve(&mut socket.map_err(failed)?, file);
            }
        }
    }
    Ok(())
}

fn serve(socket: &mut (impl Read + Write), file: &Path) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let mut head = [0; 9];
        socket.read_exact(&mut head)?;
        let [operation, length @ ..] = head;
        let length = u64::from_le_bytes(length);
        match operation {
            EXEC if length <= MAX_ECHO => exec(socket, &mut buffer[..length as usize])?,
            PUT => put(socket, &mut buffer, length, file)?,
            GET => get(socket, &mut buffer, file)?,
            _ => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

fn exec(socket: &mut (impl Read + Write), message: &mut [u8]) -> io::Result<()> {
    socket.read_exact(message)?;
    let ended = Command::new("true").stdin(Stdio::null()).stdout(Stdio::null()).status()?;
    if !ended.success() {
        return Err(io::Error::other("true is not true"));
    }
    socket.write_all(message)
}

fn put(socket: &mut (impl Read + Write), buffer: &mut [u8], length: u64, path: &Path) -> io::Result<()> {
    let mut file = File::create(path)?;
    let mut hash = Sha256::new();
    let mut left = length;
    while left > 0 {
        let want = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let count = socket.read(&mut buffer[..want])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        hash.update(&buffer[..count]);
        file.write_all(&buffer[..count])?;
        left -= count as u64;
    }
    file.sync_all()?;
    socket.write_all(&hash.finalize())
}

fn get(socket: &mut impl Write, buffer: &mut [u8], path: &Path) -> io::Result<()> {
    let mut file = File::open(path)?;
    let _ = fs::remove_file(path);
    socket.write_all(&file.metadata()?.len().to_le_bytes())?;
    let mut hash = Sha256::new();
    loop {
        let count = file.read(buffer)?;
        if count == 0 {
            return socket.write_all(&hash.finalize());
        }
        hash.update(&buffer[..count]);
        socket.write_all(&buffer[..count])?;
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_file_goes_there_and_back_and_an_echo_comes_after_true() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let (mut host, mut guest) = UnixStream::pair().unwrap();
        let there = path.clone();
        let server = std::thread::spawn(move || serve(&mut guest, &there));
        let ask = |host: &mut UnixStream, operation: u8, length: u64| {
            host.write_all(&[operation]).unwrap();
            host.write_all(&length.to_le_bytes()).unwrap();
        };
        let mut hash = [0; 32];

        ask(&mut host, EXEC, 3);
        host.write_all(b"abc").unwrap();
        let mut echo = [0; 3];
        host.read_exact(&mut echo).unwrap();
        assert_eq!(&echo, b"abc");

        ask(&mut host, PUT, 5);
        host.write_all(b"12345").unwrap();
        host.read_exact(&mut hash).unwrap();
        assert_eq!(hash[..], Sha256::digest(b"12345")[..]);

        ask(&mut host, GET, 0);
        let mut reply = [0; 8 + 5 + 32];
        host.read_exact(&mut reply).unwrap();
        assert_eq!(reply[..8], 5_u64.to_le_bytes());
        assert_eq!(&reply[8..13], b"12345");
        assert_eq!(reply[13..], hash);
        assert!(!path.exists());

        drop(host);
        assert!(server.join().unwrap().is_err());
    }
}
