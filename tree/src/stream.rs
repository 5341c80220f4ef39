//! A stream that is counted and hashed as it goes by.

use std::io::{self, Read, Write};

use sha2::{Digest as _, Sha256};

/// A reader or a writer with what went through it.
pub(crate) struct Metered<S> {
    inner: S,
    hash: Sha256,
    pub(crate) bytes: u64,
}

impl<S> Metered<S> {
    pub(crate) fn new(inner: S) -> Self {
        Self { inner, hash: Sha256::new(), bytes: 0 }
    }

    /// Lower-case hex.
    pub(crate) fn sha256(&self) -> String {
        use std::fmt::Write as _;
        self.hash.clone().finalize().iter().fold(String::with_capacity(64), |mut text, byte| {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
    }

    fn took(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
    }
}

impl<S: Read> Read for Metered<S> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(buf)?;
        self.took(&buf[..got]);
        Ok(got)
    }
}

impl<S: Write> Write for Metered<S> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let put = self.inner.write(buf)?;
        self.took(&buf[..put]);
        Ok(put)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
