use drover_schemas::event::VmEventKind;
use drover_schemas::{RequestId, VmId};

use super::*;
use crate::journal::tests::vm;

fn token(text: &str) -> Token {
    Token::new(text).unwrap()
}

fn claim(id: u128, host: &str, phase: Phase) -> Claim {
    Claim {
        vm_id: VmId::from_u128(id),
        request_id: RequestId::from_u128(7),
        body_sha256: String::new(),
        host: token(host),
        owner_epoch: 1,
        phase,
        deadline_unix_ms: 0,
        previous: Vec::new(),
        gone: None,
    }
}

fn event(id: u128, seq: u64, state: VmState, last: bool) -> (VmEvent, u64) {
    let event = VmEvent {
        namespace: token("default"),
        name: token("a"),
        vm_id: VmId::from_u128(id),
        seq,
        time_unix_ms: 9,
        kind: VmEventKind::State,
        incarnation: 2,
        revision: 1,
        request_id: None,
        previous: None,
        state,
        last,
        step: None,
        cause: None,
        agent_event: None,
        dropped: None,
    };
    (event, 100 + seq)
}

fn fate(claim: Option<&Claim>, last: Option<(VmEvent, u64)>) -> Since {
    since(&vm(1, "a", 3), &token("h1"), claim, last)
}

#[test]
fn a_vm_that_did_nothing_since_stays_as_it_is() {
    let ours = claim(1, "h1", Phase::Owned);
    assert_eq!(fate(Some(&ours), None), Since::Nothing);
    assert_eq!(fate(Some(&ours), Some(event(1, 3, VmState::Running, false))), Since::Nothing);
    assert_eq!(fate(None, Some(event(1, 2, VmState::Running, false))), Since::Nothing);
    assert_eq!(fate(None, None), Since::Nothing);
}

#[test]
fn a_vm_that_went_on_is_where_its_last_event_says() {
    for (state, desired) in [
        (VmState::Running, Desired::Running),
        (VmState::Paused, Desired::Paused),
        (VmState::Stopped, Desired::Stopped),
        (VmState::Deleting, Desired::Deleted),
        (VmState::Starting, Desired::Running),
    ] {
        let Since::Went(event, 105) = fate(None, Some(event(1, 5, state, false))) else {
            panic!("{state:?}")
        };
        let row = brought_up(&vm(1, "a", 3), &event);
        assert_eq!((row.state, row.desired, row.seq, row.incarnation), (state, desired, 5, 2));
    }
}

#[test]
fn a_vm_that_is_gone_or_elsewhere_is_taken_out() {
    let gone = event(1, 6, VmState::Deleting, true);
    for (claim, last) in [
        (Some(claim(2, "h1", Phase::Owned)), None),
        (Some(claim(1, "h2", Phase::Owned)), None),
        (Some(claim(1, "h1", Phase::Gone)), Some(gone.clone())),
        (None, Some(gone)),
    ] {
        assert!(matches!(fate(claim.as_ref(), last), Since::NotOurs(_)), "{claim:?}");
    }
}

#[test]
fn a_delete_that_the_row_knows_is_finished_by_its_actor() {
    let row = VmRow { released: true, ..vm(1, "a", 6) };
    let last = Some(event(1, 6, VmState::Deleting, true));
    assert_eq!(since(&row, &token("h1"), Some(&claim(1, "h1", Phase::Owned)), last), Since::Nothing);
}
