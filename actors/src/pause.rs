//! How long to sleep between two looks at something that tells nobody when it is there.

use std::time::Duration;

const SHORTEST: Duration = Duration::from_millis(1);

/// A sixteenth of the time that was waited so far: what comes soon is seen soon, what takes long is not
/// asked often, and no wait becomes longer by more than that share.
pub fn pause_while_waiting(waited: Duration, longest: Duration) -> Duration {
    (waited / 16).clamp(SHORTEST, longest.max(SHORTEST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_grows_with_the_wait_and_ends_at_the_longest() {
        let longest = Duration::from_millis(250);
        let pause = |ms| pause_while_waiting(Duration::from_millis(ms), longest).as_millis();
        assert_eq!([0, 16, 160, 1_600, 60_000].map(pause), [1, 1, 10, 100, 250]);
    }
}
