//! Contents that a create is about to use. Until its row tells of them, nothing else does.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[derive(Debug, Default)]
struct Inner {
    pinned: BTreeMap<String, usize>,
    condemned: BTreeSet<String>,
}

/// Which contents are pinned, and which are being removed: never both.
#[derive(Debug, Clone, Default)]
pub(super) struct Pins(Arc<Mutex<Inner>>);

/// Keeps contents until it is dropped.
#[derive(Debug)]
pub struct Pinned(Pins, BTreeSet<String>);

/// A content that is being removed, until it is dropped.
#[derive(Debug)]
pub(super) struct Condemned(Pins, String);

impl Pins {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps contents; `None` if one of them is being removed.
    pub(super) fn pin(&self, contents: BTreeSet<String>) -> Option<Pinned> {
        let mut inner = self.lock();
        if contents.iter().any(|sha256| inner.condemned.contains(sha256)) {
            return None;
        }
        for sha256 in &contents {
            *inner.pinned.entry(sha256.clone()).or_default() += 1;
        }
        drop(inner);
        Some(Pinned(self.clone(), contents))
    }

    /// Lets nobody pin a content from now on; `None` if somebody has.
    pub(super) fn condemn(&self, sha256: &str) -> Option<Condemned> {
        let mut inner = self.lock();
        if inner.pinned.contains_key(sha256) || !inner.condemned.insert(sha256.to_owned()) {
            return None;
        }
        drop(inner);
        Some(Condemned(self.clone(), sha256.to_owned()))
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let mut inner = self.0.lock();
        for sha256 in &self.1 {
            if let Some(count) = inner.pinned.get_mut(sha256) {
                *count -= 1;
                if *count == 0 {
                    inner.pinned.remove(sha256);
                }
            }
        }
    }
}

impl Drop for Condemned {
    fn drop(&mut self) {
        self.0.lock().condemned.remove(&self.1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_is_pinned_or_removed_and_never_both() {
        let pins = Pins::default();
        let of = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let (one, two) = (pins.pin(of(&["a", "b"])).unwrap(), pins.pin(of(&["a"])).unwrap());
        drop(one);
        assert!(pins.condemn("a").is_none(), "the other still needs it");
        drop(two);
        let condemned = pins.condemn("a").unwrap();
        assert!(pins.pin(of(&["a", "b"])).is_none() && pins.condemn("a").is_none());
        assert!(pins.condemn("b").is_some(), "a refusal pins nothing");
        drop(condemned);
        assert!(pins.pin(of(&["a", "b"])).is_some());
        assert!(pins.lock().pinned.is_empty() && pins.lock().condemned.is_empty());
    }
}
