use std::net::Ipv4Addr;

use drover_schemas::body::vm::Outcome;
use drover_schemas::error::{ErrorBody, ErrorCode};

use super::*;
use crate::network::NicLease;

fn id(ms: u64, n: u128) -> RequestId {
    RequestId::from_u128((u128::from(ms) << 80) | n)
}

fn bound(ms: u64, done: bool) -> RequestRow {
    let outcome = Outcome::Error(ErrorBody::new(ErrorCode::Conflict, "no"));
    RequestRow {
        verb: "stop".into(),
        body_sha256: "00".repeat(32),
        bound_unix_ms: ms,
        state: if done {
            RequestState::Done { outcome, at_unix_ms: ms }
        } else {
            RequestState::InFlight { vm_id: VmId::from_u128(1), phase: "accepted".into() }
        },
    }
}

fn put(ms: u64, n: u128, done: bool) -> Op {
    Op::PutRequest { namespace: token("default"), request_id: id(ms, n), row: Box::new(bound(ms, done)) }
}

const HOUR: u64 = 3_600_000;

#[test]
fn a_request_is_found_until_its_window_is_over_and_refused_afterwards() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(&config(dir.path())).unwrap();
    let ns = token("default");
    let now = 100 * HOUR;
    block_on(async {
        let batch: Batch = [put(now, 1, false), put(now, 2, false)].into_iter().collect();
        journal.commit(batch).await.unwrap();
        journal.commit(Batch::new().with(put(now, 1, true))).await.unwrap();
        let found = journal.request(&ns, id(now, 1), now + HOUR).unwrap();
        assert_eq!(found, RequestLookup::Bound(Box::new(bound(now, true))));
        assert_eq!(journal.request(&token("other"), id(now, 1), now).unwrap(), RequestLookup::Unknown);
        let in_flight = journal.load().unwrap().in_flight;
        assert_eq!(in_flight.iter().map(|r| r.request_id).collect::<Vec<_>>(), [id(now, 2)]);
        let later = now + 25 * HOUR;
        let prune = Op::Prune { requests_before_unix_ms: later - REQUEST_WINDOW_MS, now_unix_ms: later };
        journal.commit(Batch::new().with(prune)).await.unwrap();
        assert_eq!(journal.request(&ns, id(now, 1), later).unwrap(), RequestLookup::TooOld);
        // What is not done is never forgotten.
        assert_eq!(
            journal.request(&ns, id(now, 2), later).unwrap(),
            RequestLookup::Bound(Box::new(bound(now, false)))
        );
        assert_eq!(journal.request(&ns, id(later, 3), later).unwrap(), RequestLookup::Unknown);
    });
}

#[test]
fn above_the_cap_the_oldest_finished_id_is_refused_not_run_again() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(&JournalConfig { requests_per_namespace: 3, ..config(dir.path()) }).unwrap();
    let ns = token("default");
    block_on(async {
        for n in 1..=5 {
            journal.commit(Batch::new().with(put(1000 + n, n.into(), n != 1))).await.unwrap();
        }
    });
    let look = |n: u64| journal.request(&ns, id(1000 + n, n.into()), 2000).unwrap();
    assert!(matches!(look(1), RequestLookup::Bound(_)), "not done");
    assert_eq!((look(2), look(3)), (RequestLookup::TooOld, RequestLookup::TooOld));
    assert!(matches!((look(4), look(5)), (RequestLookup::Bound(_), RequestLookup::Bound(_))));
    assert_eq!(look(6), RequestLookup::Unknown);
}

#[test]
fn a_vm_that_is_taken_out_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(&JournalConfig { requests_per_namespace: 3, ..config(dir.path()) }).unwrap();
    let ns = token("default");
    let of = |n, ms, id| {
        let state = RequestState::InFlight { vm_id: VmId::from_u128(n), phase: "creating".into() };
        let row = Box::new(RequestRow { state, ..bound(ms, false) });
        Op::PutRequest { namespace: token("default"), request_id: id, row }
    };
    let nic = NicLease {
        network: token("default"),
        tap: "t".into(),
        mac: "m".into(),
        ipv4: Ipv4Addr::UNSPECIFIED,
        prefix_len: 20,
        gateway: Ipv4Addr::LOCALHOST,
        ipv6: None,
    };
    let row = |n: u128, name| {
        let nics = vec![NicLease { ipv4: Ipv4Addr::from(10 << 24 | n as u32), ..nic.clone() }];
        VmRow { uid: 100_000 + n as u32, nics, ..vm(n, name, 1) }
    };
    let create = |n, name, ms| {
        let row = row(n, name);
        let mut batch = Batch::new().with(of(n, ms, id(ms, n))).with(Op::PutVm(Box::new(row.clone())));
        batch.push_leases(&row);
        let event = Box::new(event(n, 1, b"creating"));
        batch.with(Op::PutOutbox { class: EventClass::State, row: event })
    };
    block_on(async {
        // The first is forgotten for the cap, and refused from then on.
        for n in 1..=4 {
            journal.commit(Batch::new().with(put(1000 + n, n.into(), true))).await.unwrap();
        }
        journal.commit(create(5, "web", 1005)).await.unwrap();
        journal.commit(create(6, "db", 1006)).await.unwrap();
        journal.commit(Batch::take_out(&row(5, "web"))).await.unwrap();
        let left = journal.load().unwrap();
        assert_eq!(left.in_flight.iter().map(|r| r.request_id).collect::<Vec<_>>(), [id(1006, 6)]);
        assert_eq!(left.vms, [row(6, "db")]);
        assert!(left.leases.iter().all(|l| l.vm_id == VmId::from_u128(6)) && left.leases.len() == 1);
        assert!(left.uids.iter().all(|u| u.vm_id == VmId::from_u128(6)) && left.uids.len() == 1);
        assert_eq!(journal.outbox_used().0, 1);
        // What it had is another's at once, and its request may come again.
        assert_eq!(journal.request(&ns, id(1005, 5), 2000).unwrap(), RequestLookup::Unknown);
        assert_eq!(journal.request(&ns, id(1001, 1), 2000).unwrap(), RequestLookup::TooOld);
        let again = VmRow { vm_id: VmId::from_u128(7), ..row(5, "web") };
        let mut batch = Batch::new().with(Op::PutVm(Box::new(again.clone())));
        batch.push_leases(&again);
        journal.commit(batch).await.unwrap();
    });
}

#[test]
fn an_address_and_a_user_are_not_given_away_before_their_quarantine_is_over() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(&config(dir.path())).unwrap();
    let ipv4 = "10.0.0.2".parse().unwrap();
    let lease = |n| LeaseRow {
        network: token("default"),
        ipv4,
        vm_id: VmId::from_u128(n),
        quarantine_until_unix_ms: None,
    };
    let uid = |n| UidRow { uid: 100_000, vm_id: VmId::from_u128(n), quarantine_until_unix_ms: None };
    block_on(async {
        let take = |n| Batch::new().with(Op::PutLease(lease(n))).with(Op::PutUid(uid(n)));
        journal.commit(take(1)).await.unwrap();
        assert!(matches!(journal.commit(take(2)).await, Err(JournalError::AddressTaken { .. })));
        let until = Some(500);
        let release = Batch::new()
            .with(Op::ReleaseLease { network: token("default"), ipv4, quarantine_until_unix_ms: until })
            .with(Op::ReleaseUid { uid: 100_000, quarantine_until_unix_ms: until });
        journal.commit(release).await.unwrap();
        let snapshot = journal.load().unwrap();
        assert_eq!(snapshot.leases[0].quarantine_until_unix_ms, until);
        assert_eq!(snapshot.uids[0].quarantine_until_unix_ms, until);
        let prune = |now_unix_ms| Batch::new().with(Op::Prune { requests_before_unix_ms: 0, now_unix_ms });
        journal.commit(prune(499)).await.unwrap();
        assert_eq!(journal.load().unwrap().leases.len(), 1);
        journal.commit(prune(500)).await.unwrap();
        let snapshot = journal.load().unwrap();
        assert!(snapshot.leases.is_empty() && snapshot.uids.is_empty());
    });
}
