use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

fn pool(subnet: &str) -> Pool {
    Pool::new(subnet.parse().unwrap()).unwrap()
}

const T0: Duration = Duration::ZERO;

#[test]
fn guests_never_get_network_gateway_or_broadcast() {
    let mut pool = pool("10.0.0.0/29");
    let all: Vec<String> =
        (0..pool.capacity()).map(|_| pool.allocate(None, T0).unwrap().to_string()).collect();
    assert_eq!(all, ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]);
    assert_eq!(
        pool.allocate(None, T0),
        Err(PoolError::Exhausted { subnet: "10.0.0.0/29".parse().unwrap(), leased: 5, resting: 0 })
    );
    for outside in ["10.0.0.0", "10.0.0.1", "10.0.0.7", "10.0.1.2"] {
        let refused = pool.allocate(Some(outside.parse().unwrap()), T0);
        assert!(matches!(refused, Err(PoolError::Outside { .. })), "{outside}");
    }
}

#[test]
fn a_released_address_rests_and_comes_back() {
    let mut pool = pool("10.0.0.0/30");
    let only = pool.allocate(None, T0).unwrap();
    pool.release(only, T0, QUARANTINE);
    assert!(matches!(pool.allocate(None, QUARANTINE / 2), Err(PoolError::Exhausted { resting: 1, .. })));
    assert_eq!(pool.allocate(None, QUARANTINE), Ok(only));
}

#[test]
fn whoever_had_an_address_may_have_it_back_at_once() {
    let mut pool = pool("10.0.0.0/24");
    let mine = pool.allocate(None, T0).unwrap();
    pool.release(mine, T0, QUARANTINE);
    assert_eq!(pool.allocate(Some(mine), T0), Ok(mine));
    assert_eq!(pool.allocate(Some(mine), T0), Err(PoolError::Taken { address: mine }));
}

#[test]
fn the_default_subnet_holds_a_thousand_guests() {
    assert!(pool("10.77.0.0/20").capacity() > 4000);
    assert!(matches!(Pool::new("10.0.0.0/31".parse().unwrap()), Err(PoolError::TooSmall { .. })));
}

#[derive(Debug, Clone)]
enum Op {
    Allocate(Option<u8>),
    Release(u8),
    Restore(u8),
    Pass(u64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        prop::option::of(0_u8..18).prop_map(Op::Allocate),
        (0_u8..18).prop_map(Op::Release),
        (0_u8..18).prop_map(Op::Restore),
        (0_u64..40).prop_map(Op::Pass),
    ]
}

proptest! {
    /// Against a map of address → leased, or resting until.
    #[test]
    fn a_pool_behaves_as_its_leases_say(ops in prop::collection::vec(op(), 0..200)) {
        let mut pool = pool("10.0.0.0/28");
        let at = |last: u8| Ipv4Addr::new(10, 0, 0, last);
        let guests = 2..=14_u8;
        let mut model: HashMap<u8, Option<u64>> = HashMap::new();
        let mut now = 0;
        for op in ops {
            model.retain(|_, until| until.is_none_or(|until| until > now));
            let clock = Duration::from_secs(now);
            match op {
                Op::Pass(seconds) => now += seconds,
                Op::Release(last) => {
                    pool.release(at(last), clock, QUARANTINE);
                    if model.get(&last) == Some(&None) {
                        model.insert(last, Some(now + 60));
                    }
                }
                Op::Restore(last) => {
                    let fits = guests.contains(&last) && model.get(&last) != Some(&None);
                    prop_assert_eq!(pool.restore(at(last)).is_ok(), fits);
                    if fits {
                        model.insert(last, None);
                    }
                }
                Op::Allocate(Some(last)) => {
                    let fits = guests.contains(&last) && model.get(&last) != Some(&None);
                    prop_assert_eq!(pool.allocate(Some(at(last)), clock).is_ok(), fits);
                    if fits {
                        model.insert(last, None);
                    }
                }
                Op::Allocate(None) => match pool.allocate(None, clock) {
                    Ok(address) => {
                        let last = address.octets()[3];
                        prop_assert!(guests.contains(&last));
                        prop_assert!(!model.contains_key(&last), "{} was taken or resting", address);
                        model.insert(last, None);
                    }
                    Err(_) => prop_assert_eq!(model.len(), guests.clone().count()),
                },
            }
            prop_assert_eq!(pool.leased(), model.values().filter(|until| until.is_none()).count());
        }
    }
}
