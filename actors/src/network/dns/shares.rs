//! How much of something is under way, so that one guest or namespace does not take all of it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use drover_schemas::id::VmId;
use drover_schemas::token::Token;

use super::super::guests::Guest;

/// The most that there is.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Of all together.
    pub all: usize,
    /// Of the guests of one namespace.
    pub namespace: usize,
    /// Of one guest.
    pub guest: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Whose {
    All,
    /// Guests that nobody says anything of are one.
    Namespace(Option<Token>),
    Guest(VmId),
}

/// What is under way, counted.
#[derive(Debug)]
pub struct Shares {
    bounds: Bounds,
    counts: Mutex<HashMap<Whose, usize>>,
}

/// One of them, given back when it is dropped.
#[derive(Debug)]
pub struct Share {
    shares: Arc<Shares>,
    of: [Whose; 3],
}

impl Shares {
    /// None yet.
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, counts: Mutex::default() }
    }

    fn bound(&self, whose: &Whose) -> usize {
        match whose {
            Whose::All => self.bounds.all,
            Whose::Namespace(_) => self.bounds.namespace,
            Whose::Guest(_) => self.bounds.guest,
        }
    }

    /// Takes one for a guest, unless that or others have too many.
    #[must_use]
    pub fn take(self: &Arc<Self>, guest: &Guest) -> Option<Share> {
        let namespace = guest.called.as_ref().map(|called| called.namespace.clone());
        let of = [Whose::All, Whose::Namespace(namespace), Whose::Guest(guest.vm_id)];
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let full = |whose: &Whose| counts.get(whose).is_some_and(|count| *count >= self.bound(whose));
        if of.iter().any(full) {
            return None;
        }
        of.iter().for_each(|whose| *counts.entry(whose.clone()).or_default() += 1);
        drop(counts);
        Some(Share { shares: Arc::clone(self), of })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut counts = self.shares.counts.lock().unwrap_or_else(PoisonError::into_inner);
        for whose in &self.of {
            if let Some(count) = counts.get_mut(whose) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    counts.remove(whose);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::super::super::guests::VmName;
    use super::*;

    fn guest(number: u8, namespace: &str) -> Guest {
        let token = |text: &str| Token::new(text).unwrap();
        Guest {
            vm_id: VmId::from_u128(number.into()),
            called: Some(VmName { namespace: token(namespace), name: token("web") }),
            network: token("default"),
            first: true,
            mac: [0; 6],
            tap: String::new(),
            ipv4: Ipv4Addr::UNSPECIFIED,
            ipv6: None,
            prefix_len: 24,
            gateway: Ipv4Addr::UNSPECIFIED,
            egress: None,
        }
    }

    #[test]
    fn no_guest_and_no_namespace_takes_what_is_left_for_others() {
        let shares = Arc::new(Shares::new(Bounds { all: 5, namespace: 4, guest: 3 }));
        let mut taken = Vec::new();
        let mut take = |number, namespace: &str| {
            let share = shares.take(&guest(number, namespace));
            let got = share.is_some();
            taken.extend(share);
            got
        };
        assert_eq!([0; 4].map(|_| take(1, "a")), [true, true, true, false]);
        assert_eq!([0; 2].map(|_| take(2, "a")), [true, false], "the namespace has its share");
        assert_eq!([0; 2].map(|_| take(3, "b")), [true, false], "all are taken");
        taken.pop();
        assert!(shares.take(&guest(3, "b")).is_some(), "one came back");
        taken.clear();
        assert!(shares.counts.lock().unwrap().is_empty());
    }
}
