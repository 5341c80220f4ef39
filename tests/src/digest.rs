//! Files of bytes that repeat nowhere, and what they are known by.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use sha2::{Digest as _, Sha256};

const CHUNK: usize = 1 << 20;

/// Writes `size` bytes that repeat nowhere; gives their digest.
///
/// # Panics
/// They cannot be written.
pub fn random_file(path: &Path, size: u64, seed: u64) -> String {
    let mut file = BufWriter::new(File::create(path).expect("a file"));
    let (mut random, mut digest) = (StdRng::seed_from_u64(seed), Sha256::new());
    let mut chunk = vec![0_u8; CHUNK];
    let mut left = size;
    while left > 0 {
        random.fill(&mut chunk[..]);
        let part = &chunk[..CHUNK.min(usize::try_from(left).unwrap_or(CHUNK))];
        digest.update(part);
        file.write_all(part).expect("write");
        left -= part.len() as u64;
    }
    file.flush().expect("write");
    format!("{:x}", digest.finalize())
}

/// The digest of bytes.
#[must_use]
pub fn sha256(content: &[u8]) -> String {
    format!("{:x}", Sha256::digest(content))
}

/// The digest of a file.
///
/// # Panics
/// It cannot be read.
#[must_use]
pub fn digest_of(path: &Path) -> String {
    let mut digest = Sha256::new();
    std::io::copy(&mut File::open(path).expect("a file"), &mut digest).expect("read");
    format!("{:x}", digest.finalize())
}
