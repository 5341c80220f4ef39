//! How many events each user of the guest may publish, and all of them together.

use std::collections::HashMap;
use std::time::Instant;

/// Users that are told apart; those beyond share what one has.
const USERS: usize = 256;

/// Events each second in the long run, and at once.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// Each second.
    pub per_second: f64,
    /// At once.
    pub burst: f64,
}

/// Of one user.
pub const USER: Rate = Rate { per_second: 10.0, burst: 100.0 };
/// Of all of them: as many as a host takes of a guest if nobody says otherwise.
pub const ALL: Rate = Rate { per_second: 20.0, burst: 200.0 };

#[derive(Debug, Clone, Copy)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl Bucket {
    const fn full(rate: Rate, now: Instant) -> Self {
        Self { left: rate.burst, at: now }
    }

    fn refill(&mut self, rate: Rate, now: Instant) {
        let gone = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + gone * rate.per_second).min(rate.burst);
        self.at = now;
    }
}

/// Who has used up what is theirs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Exhausted {
    /// The user.
    #[error("user {uid} publishes more events than one user may, {} each second and {} at once", USER.per_second, USER.burst)]
    User {
        /// Which.
        uid: u32,
    },
    /// All users together.
    #[error("the programs of this guest publish more events than they may, {} each second and {} at once", ALL.per_second, ALL.burst)]
    All,
}

/// What is left to each.
#[derive(Debug)]
pub struct Quota {
    all: Bucket,
    users: HashMap<u32, Bucket>,
    crowd: Bucket,
}

impl Quota {
    /// All of it.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { all: Bucket::full(ALL, now), users: HashMap::new(), crowd: Bucket::full(USER, now) }
    }

    /// Takes one event of a user.
    ///
    /// # Errors
    /// [`Exhausted`]; nothing is taken.
    pub fn take(&mut self, uid: u32, now: Instant) -> Result<(), Exhausted> {
        if !self.users.contains_key(&uid) && self.users.len() >= USERS {
            self.users.retain(|_, bucket| {
                bucket.refill(USER, now);
                bucket.left < USER.burst
            });
        }
        let user = if self.users.contains_key(&uid) || self.users.len() < USERS {
            self.users.entry(uid).or_insert(Bucket::full(USER, now))
        } else {
            &mut self.crowd
        };
        user.refill(USER, now);
        self.all.refill(ALL, now);
        if user.left < 1.0 {
            return Err(Exhausted::User { uid });
        }
        if self.all.left < 1.0 {
            return Err(Exhausted::All);
        }
        user.left -= 1.0;
        self.all.left -= 1.0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn one_user_leaves_room_for_others_and_all_together_have_a_limit() {
        let start = Instant::now();
        let mut quota = Quota::new(start);
        let taken = |quota: &mut Quota, uid, now| (0..1_000).filter(|_| quota.take(uid, now).is_ok()).count();
        assert_eq!(taken(&mut quota, 7, start), 100);
        assert_eq!(quota.take(7, start), Err(Exhausted::User { uid: 7 }));
        assert_eq!(taken(&mut quota, 8, start), 100);
        assert_eq!(quota.take(9, start), Err(Exhausted::All));
        let later = start + Duration::from_secs(1);
        assert_eq!((taken(&mut quota, 7, later), taken(&mut quota, 9, later)), (10, 10));
        assert!(Exhausted::User { uid: 7 }.to_string().contains("10 each second and 100 at once"));
    }

    #[test]
    fn many_users_take_bounded_memory() {
        let mut now = Instant::now();
        let mut quota = Quota::new(now);
        for uid in 0..10_000 {
            now += Duration::from_millis(50);
            assert!(quota.take(uid, now).is_ok());
        }
        assert!(quota.users.len() <= USERS);
    }
}
