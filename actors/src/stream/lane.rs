//! Over which connection a stream's frames go, so that a shell stays quick while gigabytes move.
//!
//! Files go over the bulk connection, both ways. What a person may wait for, a command or a console, goes over the
//! control connection, where nothing queues before it; but as soon as such a stream writes as much as a file would,
//! its output takes the bulk connection too, and comes back when it has become quiet.

use std::time::Duration;

use drover_schemas::stream::Channel;

/// What a stream may write over the control connection at once, in bytes.
const LIGHT: u64 = 256 * 1024;
/// How fast it is forgotten, in bytes a second.
const FORGOTTEN: u64 = 256 * 1024;
/// As much as is remembered: a stream that ends a flood is light again after this much was forgotten.
const REMEMBERED: u64 = 2 * LIGHT;

/// One of the two connections of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// That of requests.
    Control,
    /// That of files.
    Bulk,
}

/// Chooses the lane of each frame of one stream; pure.
#[derive(Debug)]
pub struct Lanes {
    home: Lane,
    /// Bytes that were written of late.
    level: u64,
    at: Duration,
}

impl Lanes {
    /// Of a stream with these channels.
    #[must_use]
    pub fn of(mut channels: impl Iterator<Item = Channel>) -> Self {
        let home = if channels.any(|ch| ch == Channel::Data) { Lane::Bulk } else { Lane::Control };
        Self { home, level: 0, at: Duration::ZERO }
    }

    /// Where the client's frames come in, and where the reply and all small frames go out.
    #[must_use]
    pub const fn home(&self) -> Lane {
        self.home
    }

    /// The lane of a frame with `len` bytes of data, `now` after the beginning.
    pub fn of_data(&mut self, len: usize, now: Duration) -> Lane {
        if self.home == Lane::Bulk {
            return Lane::Bulk;
        }
        let since = now.saturating_sub(self.at);
        let forgotten =
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX).saturating_mul(FORGOTTEN) / 1_000;
        if forgotten > 0 {
            self.at = now;
        }
        self.level = (self.level.saturating_sub(forgotten) + len as u64).min(REMEMBERED);
        if self.level > LIGHT { Lane::Bulk } else { Lane::Control }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: usize = 64 * 1024;

    #[test]
    fn files_never_touch_the_control_connection() {
        let mut lanes = Lanes::of([Channel::Data].into_iter());
        assert_eq!((lanes.home(), lanes.of_data(1, Duration::ZERO)), (Lane::Bulk, Lane::Bulk));
    }

    #[test]
    fn a_shell_that_floods_leaves_the_control_connection_until_it_is_quiet() {
        let mut lanes = Lanes::of([Channel::Stdin, Channel::Stdout].into_iter());
        assert_eq!(lanes.home(), Lane::Control);
        for key in 0..1_000 {
            assert_eq!(lanes.of_data(80, Duration::from_millis(key)), Lane::Control);
        }
        let at = Duration::from_secs(10);
        let flood: Vec<Lane> = (0..100).map(|_| lanes.of_data(CHUNK, at)).collect();
        assert!(flood[..4].iter().all(|lane| *lane == Lane::Control), "{flood:?}");
        assert!(flood[4..].iter().all(|lane| *lane == Lane::Bulk), "{flood:?}");
        assert_eq!(lanes.of_data(80, at + Duration::from_millis(500)), Lane::Bulk);
        assert_eq!(lanes.of_data(80, at + Duration::from_millis(1_100)), Lane::Control);
    }

    #[test]
    fn what_is_written_slowly_stays_however_long_it_takes() {
        let mut lanes = Lanes::of([Channel::Stdout].into_iter());
        for tick in 0..10_000_u64 {
            assert_eq!(lanes.of_data(200, Duration::from_millis(tick)), Lane::Control);
        }
    }
}
