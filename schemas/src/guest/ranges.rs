//! Which bytes of a file travel: all of them, those that are not holes, or those that a broken transfer left out.
//!
//! What lies between the ranges is what the receiver's file holds there already: zeros in a new file, and what came
//! before in one that is resumed. Both ends take their digest over the whole file, so a wrong guess is noticed.

use std::io;

use serde::{Deserialize, Serialize};

/// How many ranges a request or an answer may name.
pub const MAX_RANGES: usize = 1024;

/// Bytes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct FileRange {
    /// Where they begin, in bytes.
    pub off: u64,
    /// How many there are: at least one.
    pub len: u64,
}

impl FileRange {
    /// The first byte after it.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.off.saturating_add(self.len)
    }
}

/// Why ranges are none of a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// More than a message may name.
    #[error("{count} ranges; name at most {MAX_RANGES}, and join near ones")]
    TooMany {
        /// How many there are.
        count: usize,
    },
    /// One is empty, begins before its predecessor ends, or goes beyond the file.
    #[error("range {at} ({off} to {end}) is empty, out of order, or beyond the file's {size} bytes")]
    Place {
        /// Which one, from 0.
        at: usize,
        /// Its first byte.
        off: u64,
        /// The first byte after it.
        end: u64,
        /// The file's size.
        size: u64,
    },
}

/// One piece of a transfer: bytes that stay, then bytes that travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Bytes before `off` that do not travel.
    pub gap: u64,
    /// Where the travelling bytes belong.
    pub off: u64,
    /// How many travel: at least one.
    pub len: u64,
}

/// Goes through the ranges of a file in order.
#[derive(Debug, Clone)]
pub struct Walk {
    ranges: Vec<FileRange>,
    next: usize,
    /// The first byte that no step has passed yet.
    at: u64,
    size: u64,
}

impl Walk {
    /// A walk through a file of `size` bytes; without ranges all of it travels.
    ///
    /// # Errors
    /// [`RangeError`]
    pub fn new(size: u64, ranges: Option<&[FileRange]>) -> Result<Self, RangeError> {
        let ranges = match ranges {
            Some(ranges) => ranges.to_vec(),
            None if size == 0 => Vec::new(),
            None => vec![FileRange { off: 0, len: size }],
        };
        if ranges.len() > MAX_RANGES {
            return Err(RangeError::TooMany { count: ranges.len() });
        }
        let mut before = 0;
        for (at, range) in ranges.iter().enumerate() {
            let end = range.off.checked_add(range.len).filter(|end| *end <= size);
            let Some(end) = end.filter(|_| range.len > 0 && range.off >= before) else {
                return Err(RangeError::Place { at, off: range.off, end: range.end(), size });
            };
            before = end;
        }
        Ok(Self { ranges, next: 0, at: 0, size })
    }

    /// How many bytes travel in all.
    #[must_use]
    pub fn travelling(&self) -> u64 {
        self.ranges.iter().map(|range| range.len).sum()
    }

    /// How large the file is, in bytes.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// What travels.
    #[must_use]
    pub fn ranges(&self) -> &[FileRange] {
        &self.ranges
    }

    /// The next piece of at most `max` travelling bytes; `None` when all have passed.
    pub fn step(&mut self, max: u64) -> Option<Step> {
        let range = *self.ranges.get(self.next)?;
        let off = self.at.max(range.off);
        let len = (range.end() - off).min(max.max(1));
        let step = Step { gap: off - self.at, off, len };
        self.at = off + len;
        if self.at == range.end() {
            self.next += 1;
        }
        Some(step)
    }

    /// Bytes after the last step, up to the file's end.
    #[must_use]
    pub const fn rest(&self) -> u64 {
        self.size - self.at
    }
}

/// What is left of `ranges` from `offset` on.
#[must_use]
pub fn from(ranges: &[FileRange], offset: u64) -> Vec<FileRange> {
    let left = ranges.iter().filter(|range| range.end() > offset);
    left.map(|range| {
        let off = range.off.max(offset);
        FileRange { off, len: range.end() - off }
    })
    .collect()
}

/// The ranges of a file that are not holes, as `find` tells them: it gets an offset and answers the next data at or
/// after it, and where that ends. More of them than [`MAX_RANGES`] become one range from there to the end of the file.
///
/// # Errors
/// What `find` says.
pub fn scan(
    size: u64,
    mut find: impl FnMut(u64) -> io::Result<Option<(u64, u64)>>,
) -> io::Result<Vec<FileRange>> {
    let (mut ranges, mut at) = (Vec::new(), 0);
    while at < size {
        let Some((data, hole)) = find(at)? else { break };
        // A file that changes meanwhile must not turn this into an endless loop.
        let (off, end) = (data.max(at), hole.min(size));
        if off >= end {
            break;
        }
        if ranges.len() + 1 == MAX_RANGES {
            ranges.push(FileRange { off, len: size - off });
            break;
        }
        ranges.push(FileRange { off, len: end - off });
        at = end;
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Ranges in order from gaps and lengths, and a size that holds them.
    fn some() -> impl Strategy<Value = (u64, Vec<FileRange>)> {
        (prop::collection::vec((0u64..50, 1u64..50), 0..20), 0u64..50).prop_map(|(pairs, tail)| {
            let mut at = 0;
            let ranges = pairs
                .into_iter()
                .map(|(gap, len)| {
                    let off = at + gap;
                    at = off + len;
                    FileRange { off, len }
                })
                .collect();
            (at + tail, ranges)
        })
    }

    proptest! {
        #[test]
        fn a_walk_passes_every_byte_once((size, ranges) in some(), max in 1u64..40) {
            let mut walk = Walk::new(size, Some(&ranges)).unwrap();
            let (mut at, mut travelled) = (0, 0);
            while let Some(step) = walk.step(max) {
                prop_assert_eq!(step.off, at + step.gap);
                prop_assert!(step.len > 0 && step.len <= max);
                let inside = |r: &FileRange| r.off <= step.off && step.off + step.len <= r.end();
                prop_assert!(ranges.iter().any(inside));
                at = step.off + step.len;
                travelled += step.len;
            }
            prop_assert_eq!(at + walk.rest(), size);
            prop_assert_eq!(travelled, walk.travelling());
        }

        #[test]
        fn what_is_left_from_an_offset_is_what_lies_behind_it((size, ranges) in some(), offset in 0u64..2_000) {
            let left = from(&ranges, offset);
            Walk::new(size, Some(&left)).unwrap();
            let has = |ranges: &[FileRange], byte| ranges.iter().any(|r| r.off <= byte && byte < r.end());
            for byte in 0..size {
                prop_assert_eq!(has(&left, byte), byte >= offset && has(&ranges, byte));
            }
        }

        #[test]
        fn any_ranges_are_walked_or_refused(
            size: u64,
            ranges in prop::collection::vec((any::<u64>(), any::<u64>()), 0..8),
        ) {
            let ranges: Vec<_> = ranges.into_iter().map(|(off, len)| FileRange { off, len }).collect();
            if let Ok(mut walk) = Walk::new(size, Some(&ranges)) {
                while walk.step(u64::MAX).is_some() {}
                prop_assert!(walk.rest() <= size);
            }
        }
    }

    #[test]
    fn a_file_full_of_holes_still_fits() {
        let find = |at: u64| Ok(Some((at.next_multiple_of(2), at.next_multiple_of(2) + 1)));
        let ranges = scan(10_000, find).unwrap();
        assert_eq!(ranges.len(), MAX_RANGES);
        assert_eq!(ranges.last().unwrap().end(), 10_000);
        Walk::new(10_000, Some(&ranges)).unwrap();
        assert_eq!(scan(10, |_| Ok(None)).unwrap(), []);
        // Data that is not ahead ends the scan.
        assert_eq!(scan(10, |_| Ok(Some((0, 1)))).unwrap(), [FileRange { off: 0, len: 1 }]);
    }
}
