//! Transfers that broke and may go on: what their files are called, and that each has one writer.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use drover_schemas::ErrorBody;
use tokio_util::sync::CancellationToken;

use super::invalid;

/// The most that a token has, in bytes.
const MAX_TOKEN: usize = 64;

/// A file: device and inode of its folder, and its name there.
type Key = (u64, u64, OsString);

#[derive(Debug)]
struct Writer {
    /// Tells it from one that took its place.
    number: u64,
    /// Tells it to stop.
    stop: CancellationToken,
    /// It has let go of the file.
    gone: CancellationToken,
}

#[derive(Debug, Default)]
struct Writers {
    by_file: HashMap<Key, Writer>,
    /// How many there have been.
    count: u64,
}

/// Who writes which file that may be gone on with. As many as there are transfers, at most.
#[derive(Debug, Clone, Default)]
pub struct Partials(Arc<Mutex<Writers>>);

/// The right to write one; given back when dropped.
#[derive(Debug)]
pub(super) struct Claim {
    partials: Partials,
    key: Key,
    number: u64,
    stop: CancellationToken,
    gone: CancellationToken,
}

impl Partials {
    fn writers(&self) -> MutexGuard<'_, Writers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a file over: whoever writes it is stopped first, for the newest transfer is the one whose client lives.
    pub(super) async fn take(&self, key: Key) -> Claim {
        let (stop, gone) = (CancellationToken::new(), CancellationToken::new());
        let (number, before) = {
            let mut writers = self.writers();
            writers.count += 1;
            let number = writers.count;
            let writer = Writer { number, stop: stop.clone(), gone: gone.clone() };
            (number, writers.by_file.insert(key.clone(), writer))
        };
        let claim = Claim { partials: self.clone(), key, number, stop, gone };
        if let Some(before) = before {
            before.stop.cancel();
            before.gone.cancelled().await;
        }
        claim
    }
}

impl Claim {
    /// Ends when another transfer takes the file over.
    pub(super) fn stopped(&self) -> CancellationToken {
        self.stop.clone()
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut writers = self.partials.writers();
        if writers.by_file.get(&self.key).is_some_and(|writer| writer.number == self.number) {
            writers.by_file.remove(&self.key);
        }
        drop(writers);
        self.gone.cancel();
    }
}

/// # Errors
/// A token that is no part of a name.
pub(super) fn check(token: &str) -> Result<(), ErrorBody> {
    let is_fine = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    if token.is_empty() || token.len() > MAX_TOKEN || !token.bytes().all(is_fine) {
        return Err(invalid(format!("partial must be 1 to {MAX_TOKEN} letters, digits, '-' or '_'"))
            .with("field", "partial"));
    }
    Ok(())
}

/// What the file `name` is called while it is on its way.
pub(super) fn name(name: &OsStr, token: &str) -> OsString {
    let mut hidden = OsString::from(".");
    // Leaves room for the rest within the 255 bytes of a name.
    hidden.push(name.to_string_lossy().chars().take(20).collect::<String>());
    hidden.push(format!(".{token}.drover"));
    hidden
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_newest_writer_has_the_file_alone() {
        let partials = Partials::default();
        let key = || (1, 2, OsString::from("x"));
        let first = partials.take(key()).await;
        let stopped = first.stopped();
        let second = tokio::spawn({
            let partials = partials.clone();
            async move { partials.take(key()).await }
        });
        stopped.cancelled().await;
        assert!(!second.is_finished(), "the first holds the file still");
        drop(first);
        let second = second.await.unwrap();
        assert!(!second.stopped().is_cancelled());
        assert_eq!(partials.writers().by_file.len(), 1, "what the first lets go of is its own");
        drop(second);
        assert!(partials.writers().by_file.is_empty());
    }

    #[test]
    fn a_token_is_part_of_a_name_and_no_more() {
        for bad in ["", "a/b", "..", "a b", "ä", &"x".repeat(65)] {
            assert!(check(bad).is_err(), "{bad:?}");
        }
        let longest = "x".repeat(64);
        check(&longest).unwrap();
        let long = "ü".repeat(127);
        assert!(name(OsStr::new(&long), &longest).len() <= 255);
    }
}
