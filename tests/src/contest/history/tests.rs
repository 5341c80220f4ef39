use drover_schemas::Token;
use drover_schemas::body::status::{AgentState, AgentStatus, VmStatus};
use drover_schemas::state::Desired;

use super::*;

const VM: VmId = VmId::from_u128(1);
const OTHER: VmId = VmId::from_u128(2);

/// A request that was made at `ms`.
const fn id(ms: u128, number: u128) -> RequestId {
    RequestId::from_u128((ms << 80) + number)
}

fn event(vm_id: VmId, seq: u64, request_id: Option<RequestId>, way: (VmState, VmState)) -> VmEvent {
    VmEvent {
        namespace: Token::new("default").unwrap(),
        name: Token::new("web").unwrap(),
        vm_id,
        seq,
        time_unix_ms: 1_000 + seq,
        kind: VmEventKind::State,
        incarnation: 1,
        revision: 1,
        request_id,
        previous: (seq > 1).then_some(way.0),
        state: way.1,
        last: false,
        step: None,
        cause: None,
        agent_event: None,
        dropped: None,
    }
}

fn reply(vm_id: VmId, request_id: RequestId, state: VmState) -> ChangeReply {
    let vm = VmStatus {
        namespace: Token::new("default").unwrap(),
        name: Token::new("web").unwrap(),
        vm_id,
        host: Token::new("h1").unwrap(),
        state,
        desired: Desired::Running,
        revision: 1,
        incarnation: 1,
        seq: 1,
        cpus: 1,
        memory_bytes: 1,
        created_unix_ms: 1,
        state_since_unix_ms: 1,
        operation: None,
        cause: None,
        agent: AgentStatus {
            state: AgentState::Ready,
            version: None,
            boot_id: None,
            last_error: None,
            dropped_events: None,
            fault: None,
            unwatched: None,
        },
        nics: Vec::new(),
        disks: Vec::new(),
        vmm_pid: None,
        restarts: 0,
        spec: None,
    };
    ChangeReply { vm, already: false, request_id, replay_until_unix_ms: 1 }
}

fn record(op: Op, id: RequestId, outcomes: Vec<Outcome>) -> Record {
    let (sent, answered) = (Duration::from_secs(1), Duration::from_secs(2));
    Record { id, name: "web".into(), op, sent, answered, first: outcomes, later: Vec::new() }
}

fn done(vm_id: VmId, id: RequestId, state: VmState) -> Outcome {
    Outcome::Done(Box::new(reply(vm_id, id, state)))
}

/// A create and a pause as they should be.
fn sound() -> (Vec<Record>, Vec<VmEvent>) {
    use VmState::{Creating, Paused, Running};
    let (create, pause) = (id(1_000, 1), id(1_000, 2));
    let events = vec![
        event(VM, 1, Some(create), (Creating, Creating)),
        event(VM, 2, None, (Creating, Running)),
        event(VM, 3, Some(pause), (Running, Paused)),
    ];
    let records = vec![
        record(Op::Create, create, vec![done(VM, create, Running); 2]),
        record(Op::Pause, pause, vec![done(VM, pause, Paused)]),
    ];
    (records, events)
}

/// The one thing that is wrong, in so many words.
#[track_caller]
fn wrong(records: &[Record], events: &[VmEvent], what: &str) {
    let problems = judge(records, events);
    assert!(problems.len() == 1 && problems[0].contains(what), "wanted {what:?}, got {problems:#?}");
}

#[test]
fn a_sound_history_is_let_through() {
    let (records, events) = sound();
    assert_eq!(judge(&records, &events), Vec::<String>::new());
}

#[test]
fn two_vms_of_a_name_are_found() {
    let (mut records, mut events) = sound();
    let create = id(2_000, 3);
    records.push(record(Op::Create, create, vec![done(OTHER, create, VmState::Running)]));
    events.push(event(OTHER, 1, Some(create), (VmState::Creating, VmState::Creating)));
    wrong(&records, &events, "two VMs are called web");
    // One after the other they may be.
    events[2].last = true;
    assert_eq!(judge(&records, &events), Vec::<String>::new());
}

#[test]
fn a_request_from_before_a_vms_end_must_not_reach_the_next() {
    let (mut records, mut events) = sound();
    events[2].last = true;
    let create = id(900, 3);
    records.push(record(Op::Create, create, vec![done(OTHER, create, VmState::Running)]));
    events.push(event(OTHER, 1, Some(create), (VmState::Creating, VmState::Creating)));
    wrong(&records, &events, "a request older than");
}

#[test]
fn an_effect_that_comes_twice_is_found() {
    let (records, mut events) = sound();
    let pause = events[2].request_id;
    events.push(event(VM, 4, None, (VmState::Paused, VmState::Running)));
    events.push(event(VM, 5, pause, (VmState::Running, VmState::Paused)));
    wrong(&records, &events, "had its effect twice");
}

#[test]
fn one_request_that_changes_two_vms_is_found() {
    let (records, mut events) = sound();
    events[2].last = true;
    let create = events[0].request_id;
    events.push(event(OTHER, 1, create, (VmState::Creating, VmState::Creating)));
    let problems = judge(&records, &events);
    assert!(problems.iter().any(|p| p.contains("changed two VMs")), "{problems:#?}");
}

#[test]
fn an_answer_without_its_effect_and_an_effect_that_nobody_asked_for_are_found() {
    let (records, mut events) = sound();
    events[2].request_id = None;
    wrong(&records, &events, "the log has []");
    let (mut records, events) = sound();
    records.truncate(1);
    wrong(&records, &events, "nobody sent the request");
    let (mut records, events) = sound();
    let mut already = reply(VM, id(1_000, 2), VmState::Paused);
    already.already = true;
    records[1].first = vec![Outcome::Done(Box::new(already))];
    wrong(&records, &events, "the log has [(3,");
}

#[test]
fn another_answer_to_the_same_request_is_found() {
    let (mut records, events) = sound();
    records[0].first[1] = done(VM, id(1_000, 1), VmState::Paused);
    wrong(&records, &events, "two replies");
    let (mut records, events) = sound();
    let busy = ErrorBody::new(ErrorCode::InvalidState, "a VM that is paused cannot do pause");
    records[1].later.push(Outcome::Refused(busy));
    wrong(&records, &events, "cannot do pause");
    let (mut records, events) = sound();
    records[1].later.push(Outcome::Gone);
    wrong(&records, &events, "Gone after");
}

#[test]
fn a_refusal_that_no_client_should_meet_is_found() {
    let (mut records, events) = sound();
    let internal = ErrorBody::new(ErrorCode::Internal, "the stored reply cannot be read");
    records.push(record(Op::Stop, id(1_000, 9), vec![Outcome::Refused(internal)]));
    wrong(&records, &events, "the stored reply cannot be read");
}

#[test]
fn what_was_answered_first_must_stand_first() {
    let (mut records, events) = sound();
    (records[1].sent, records[1].answered) = (Duration::ZERO, Duration::from_millis(500));
    wrong(&records, &events, "was answered first");
    // A refusal binds nothing: it was the repetition that was carried out, whenever that came.
    records[1].later = std::mem::replace(&mut records[1].first, vec![Outcome::Gone]);
    assert_eq!(judge(&records, &events), Vec::<String>::new());
}
