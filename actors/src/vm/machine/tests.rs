use drover_schemas::body::spec::RestartPolicy;
use proptest::prelude::*;

use super::*;

const RESTART: RestartSpec = RestartSpec {
    policy: RestartPolicy::Never,
    limit: 2,
    window_ms: 1_000,
    backoff_ms: 10,
    backoff_max_ms: 40,
};

fn context(restart: &RestartSpec) -> Context<'_> {
    Context { now_ms: 1, jitter: 0.0, restart, agent_enabled: true }
}

fn id(n: u128) -> RequestId {
    RequestId::from_u128(n)
}

fn command(verb: Verb) -> Input {
    Input::Command(Command { verb, request_id: id(7), wait: None, time_ms: 100 })
}

fn at(state: VmState) -> Machine {
    let (mut machine, _) = Machine::create(id(1), None);
    machine.state = state;
    machine.task = match state {
        VmState::Creating | VmState::Starting => Some(Task::Boot),
        VmState::Stopping => Some(Task::Stop { grace_ms: 100 }),
        VmState::Deleting => Some(Task::Delete),
        _ => None,
    };
    machine.desired = match state {
        VmState::Stopping | VmState::Stopped => Desired::Stopped,
        VmState::Paused => Desired::Paused,
        VmState::Deleting => Desired::Deleted,
        _ => Desired::Running,
    };
    machine
}

const VERBS: [Verb; 12] = [
    Verb::Start,
    Verb::Shutdown,
    Verb::Stop,
    Verb::StopForce,
    Verb::Reboot,
    Verb::Pause,
    Verb::Resume,
    Verb::Forward,
    Verb::Egress,
    Verb::Limit,
    Verb::Grow,
    Verb::Delete,
];

fn states_of(effects: &[Effect]) -> Vec<VmState> {
    effects
        .iter()
        .filter_map(|e| match e {
            Effect::Event { kind: VmEventKind::State, state, .. } => Some(*state),
            _ => None,
        })
        .collect()
}

#[test]
fn admission_follows_the_table_cell_by_cell() {
    for state in VmState::ALL {
        for verb in VERBS {
            let machine = at(state);
            let got = machine.admit(verb);
            let want = cell(state, Column::Verb(verb));
            let same = matches!(
                (&want, &got),
                (Cell::Accept(_) | Cell::Preempt(_), Admission::Accept)
                    | (Cell::Already, Admission::Already)
                    | (Cell::Deny, Admission::Denied { .. })
                    | (Cell::Busy, Admission::Busy { .. })
                    | (Cell::Adopting, Admission::Adopting)
            );
            assert!(same, "{state} {verb:?}: {want:?} but {got:?}");
            if let Admission::Busy { operation } = got {
                assert!(!operation.is_empty(), "busy names the operation");
            }
            if let Cell::Accept(to) | Cell::Preempt(to) = want {
                let (next, _) = machine.apply(command(verb), &context(&RESTART));
                assert_eq!(next.state, to, "{state} {verb:?}");
            }
        }
    }
}

#[test]
fn happenings_follow_the_table_cell_by_cell() {
    let cause = || Cause::new(CauseKind::VmmExit, "x");
    let inputs = |state: VmState, h: Happening| match h {
        Happening::Booted => Some(Input::Report(Report::Booted)),
        Happening::BootFailed => Some(Input::Report(Report::BootFailed(cause()))),
        Happening::VmmExited => Some(Input::VmmExited(cause())),
        Happening::GuestPowerOff => Some(Input::GuestPowerOff),
        Happening::GuestReboot => Some(Input::GuestReboot),
        Happening::GuestPanic => Some(Input::GuestPanic(cause())),
        Happening::AgentLost => Some(Input::AgentLost(cause())),
        Happening::BackoffElapsed => Some(Input::BackoffElapsed),
        Happening::DaemonStartAlive => Some(Input::FoundAlive { paused: state == VmState::Paused }),
        Happening::DaemonStartGone => Some(Input::FoundGone { host_rebooted: false, cause: cause() }),
        Happening::HostRebooted => Some(Input::FoundGone { host_rebooted: true, cause: cause() }),
        Happening::DaemonStartUnclear => Some(Input::FoundUnclear(cause())),
        Happening::HostStopping => Some(Input::HostStopping { grace_ms: 5 }),
        // Reports of tasks that the state implies; covered by the tests of those verbs.
        Happening::Paused
        | Happening::Resumed
        | Happening::Stopped
        | Happening::ShutdownTimedOut
        | Happening::Deleted => None,
    };
    for state in VmState::ALL {
        for column in Column::ALL {
            let Column::Happened(happening) = column else { continue };
            let Some(input) = inputs(state, happening) else { continue };
            let mut machine = at(state);
            let on_start = matches!(
                happening,
                Happening::DaemonStartAlive | Happening::DaemonStartGone | Happening::HostRebooted
            );
            if on_start {
                machine.task = None;
            }
            if matches!(happening, Happening::Booted | Happening::BootFailed)
                && !matches!(state, VmState::Creating | VmState::Starting)
            {
                continue;
            }
            let (mut next, mut effects) = machine.apply(input, &context(&RESTART));
            // Carry out what an end leads to.
            for _ in 0..3 {
                let report = match &next.task {
                    Some(Task::Release) => Report::Released,
                    Some(Task::Stop { .. }) if on_start && state == VmState::Stopping => Report::Stopped,
                    Some(Task::Boot) if next.exited.is_some() => Report::BootFailed(cause()),
                    _ => break,
                };
                let (n, more) = next.apply(Input::Report(report), &context(&RESTART));
                next = n;
                effects.extend(more);
            }
            match cell(state, column) {
                Cell::Enter(VmState::Stopping) if on_start => {
                    assert_eq!(next.state, VmState::Stopped, "{state} {happening:?}")
                }
                Cell::Enter(to) => assert_eq!(next.state, to, "{state} {happening:?}"),
                Cell::Policy => {
                    let clean = happening == Happening::GuestPowerOff;
                    let want = if clean { VmState::Stopped } else { VmState::Failed };
                    assert_eq!(next.state, want, "{state} {happening:?}");
                }
                // It was a user who stopped it.
                Cell::ByDesired if state == VmState::Stopped => assert_eq!(next.state, state),
                Cell::ByDesired => assert_eq!(next.state, VmState::Starting, "{state} {happening:?}"),
                Cell::Note | Cell::Ignore => assert_eq!(next.state, state, "{state} {happening:?}"),
                other => panic!("{state} {happening:?} {other:?}"),
            }
        }
    }
}

#[test]
fn a_create_that_waits_for_the_agent_is_answered_when_it_is_there() {
    let (machine, effects) = Machine::create(id(1), Some(Wait::Agent));
    assert!(matches!(effects.last(), Some(Effect::Run(Task::Boot))));
    let (machine, effects) = machine.apply(Input::Report(Report::Booted), &context(&RESTART));
    assert_eq!(states_of(&effects), [VmState::Running]);
    assert!(!effects.iter().any(|e| matches!(e, Effect::Finish(..))));
    let cause = Cause::new(CauseKind::AgentReady, "ready");
    let (machine, effects) = machine.apply(Input::AgentReady { cause }, &context(&RESTART));
    assert!(effects.iter().any(|e| matches!(e, Effect::Finish(op, Ending::Ok) if op.name == "create")));
    assert_eq!(machine.op, None);
}

#[test]
fn a_delete_pre_empts_a_boot_and_starts_only_when_the_boot_has_unwound() {
    let (machine, _) = Machine::create(id(1), Some(Wait::Running));
    let (machine, effects) = machine.apply(command(Verb::Delete), &context(&RESTART));
    assert!(
        effects.iter().any(|e| matches!(e, Effect::Finish(op, Ending::Superseded) if op.name == "create"))
    );
    assert!(effects.contains(&Effect::Cancel));
    assert!(!effects.iter().any(|e| matches!(e, Effect::Run(_))));
    let cause = Cause::new(CauseKind::Superseded, "cancelled");
    let (machine, effects) = machine.apply(Input::Report(Report::BootFailed(cause)), &context(&RESTART));
    assert_eq!(effects, [Effect::Run(Task::Delete)]);
    let (_, effects) = machine.apply(Input::Report(Report::Deleted), &context(&RESTART));
    assert!(matches!(effects.as_slice(), [Effect::Gone { op: Some(op) }] if op.name == "delete"));
}

#[test]
fn a_vmm_that_dies_is_released_before_the_vm_is_failed() {
    let machine = at(VmState::Running);
    let cause = Cause::new(CauseKind::VmmSignal, "killed");
    let (machine, effects) = machine.apply(Input::VmmExited(cause.clone()), &context(&RESTART));
    assert_eq!(effects, [Effect::Run(Task::Release)]);
    assert_eq!(machine.state, VmState::Running);
    let (machine, effects) = machine.apply(Input::Report(Report::Released), &context(&RESTART));
    assert_eq!(states_of(&effects), [VmState::Failed]);
    assert_eq!(machine.cause, Some(cause));
}

#[test]
fn a_users_stop_never_restarts() {
    let restart = RestartSpec { policy: RestartPolicy::Always, ..RESTART };
    let (machine, _) = at(VmState::Running).apply(command(Verb::Stop), &context(&restart));
    let exit = Cause::new(CauseKind::VmmSignal, "killed by the ladder");
    let (machine, _) = machine.apply(Input::VmmExited(exit), &context(&restart));
    let (machine, effects) = machine.apply(Input::Report(Report::Stopped), &context(&restart));
    assert_eq!(machine.state, VmState::Stopped);
    assert!(!effects.iter().any(|e| matches!(e, Effect::Backoff { .. })));
}

#[test]
fn a_pause_that_was_given_up_and_came_after_all_is_taken_back() {
    let (machine, _) = at(VmState::Running).apply(command(Verb::Pause), &context(&RESTART));
    let late = Cause::new(CauseKind::VmmTimeout, "no answer");
    let (machine, effects) = machine.apply(Input::Report(Report::Failed(late)), &context(&RESTART));
    assert!(matches!(finishes(&effects)[..], [("pause", Ending::Failed(_))]));
    let (machine, effects) = machine.apply(Input::Seen { paused: true }, &context(&RESTART));
    assert_eq!(effects, [Effect::Run(Task::Resume)]);
    let (machine, effects) = machine.apply(Input::Report(Report::Resumed), &context(&RESTART));
    assert_eq!((machine.state, effects), (VmState::Running, vec![]));
    assert_eq!(machine.apply(Input::Seen { paused: false }, &context(&RESTART)).1, []);
}

/// Stopped by the host, as far as `reports` go.
fn host_stopped(state: VmState, reports: &[Report]) -> Machine {
    let (mut machine, effects) = at(state).apply(Input::HostStopping { grace_ms: 5 }, &context(&RESTART));
    assert_eq!(states_of(&effects), [VmState::Stopping]);
    for report in reports {
        machine = machine.apply(Input::Report(report.clone()), &context(&RESTART)).0;
    }
    machine
}

#[test]
fn what_the_host_has_stopped_starts_again_with_it() {
    let gone = |host_rebooted| Input::FoundGone { host_rebooted, cause: Cause::new(CauseKind::VmmExit, "x") };
    let cut = Report::BootFailed(Cause::new(CauseKind::Superseded, "cancelled"));
    let lives = [
        (VmState::Running, vec![Report::Stopped]),
        (VmState::Paused, vec![Report::Stopped]),
        // The boot under way is cut first.
        (VmState::Creating, vec![cut, Report::Stopped]),
    ];
    for ((state, reports), rebooted) in lives.iter().flat_map(|life| [(life, true), (life, false)]) {
        let machine = host_stopped(*state, reports);
        assert_eq!(machine.state, VmState::Stopped, "{state}");
        let (machine, effects) = restarted(&machine).apply(gone(rebooted), &context(&RESTART));
        assert_eq!((machine.state, effects.last()), (VmState::Starting, Some(&Effect::Run(Task::Boot))));
    }
    // The daemon was killed in the middle: the stop is ended first.
    for found in [Input::FoundAlive { paused: false }, gone(false), gone(true)] {
        let (machine, _) = restarted(&host_stopped(VmState::Running, &[])).apply(found, &context(&RESTART));
        assert_eq!((machine.state, machine.task.is_some()), (VmState::Stopping, true));
        let (machine, effects) = machine.apply(Input::Report(Report::Stopped), &context(&RESTART));
        assert_eq!(states_of(&effects), [VmState::Stopped, VmState::Starting]);
        assert_eq!(machine.task, Some(Task::Boot));
    }
    // A user who stops it in between has the last word.
    let machine = host_stopped(VmState::Running, &[Report::Stopped]);
    let (machine, _) = machine.apply(command(Verb::Start), &context(&RESTART));
    let (machine, _) = machine.apply(Input::Report(Report::Booted), &context(&RESTART));
    let (machine, _) = machine.apply(command(Verb::Stop), &context(&RESTART));
    let (machine, _) = machine.apply(Input::Report(Report::Stopped), &context(&RESTART));
    let (machine, _) = restarted(&machine).apply(gone(true), &context(&RESTART));
    assert_eq!(machine.state, VmState::Stopped);
}

#[test]
fn a_crash_while_paused_ends_the_pause() {
    let (machine, _) =
        at(VmState::Paused).apply(Input::VmmExited(Cause::new(CauseKind::VmmExit, "x")), &context(&RESTART));
    let (machine, _) = machine.apply(Input::Report(Report::Released), &context(&RESTART));
    assert_eq!(machine.state, VmState::Failed);
}

/// The machine that a daemon finds in its journal after the one before it was killed.
fn restarted(machine: &Machine) -> Machine {
    let text = serde_json::to_string(machine).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn finishes(effects: &[Effect]) -> Vec<(&str, &Ending)> {
    effects
        .iter()
        .filter_map(|e| match e {
            Effect::Finish(op, ending) => Some((op.name.as_str(), ending)),
            _ => None,
        })
        .collect()
}

/// `verb` is accepted in `state`, the daemon is killed, and the next one finds the VMM alive.
fn found_alive_after(state: VmState, verb: Verb, paused: bool) -> (Machine, Vec<Effect>) {
    let mut machine = at(state);
    machine.task = None;
    let (machine, _) = machine.apply(command(verb), &context(&RESTART));
    restarted(&machine).apply(Input::FoundAlive { paused }, &context(&RESTART))
}

#[test]
fn what_a_dead_daemon_had_accepted_is_answered_only_when_it_is_so() {
    use VmState::{Paused, Running};
    for (state, verb, paused, task, report) in [
        (Running, Verb::Pause, false, Task::Pause, Report::Paused),
        (Paused, Verb::Resume, true, Task::Resume, Report::Resumed),
        (Running, Verb::Reboot, false, Task::Reboot, Report::Rebooted),
        (Running, Verb::Grow, false, Task::Spec(SpecVerb::Grow), Report::SpecChanged),
        (Running, Verb::Shutdown, false, Task::Shutdown { timeout_ms: 100 }, Report::Stopped),
        (Running, Verb::Stop, false, Task::Stop { grace_ms: 100 }, Report::Stopped),
        (Running, Verb::StopForce, false, Task::Stop { grace_ms: 0 }, Report::Stopped),
    ] {
        let (machine, effects) = found_alive_after(state, verb, paused);
        assert_eq!(finishes(&effects), [], "{verb:?}");
        assert!(effects.contains(&Effect::Run(task)), "{verb:?}: {effects:?}");
        let (machine, effects) = machine.apply(Input::Report(report), &context(&RESTART));
        assert_eq!(finishes(&effects).len(), 1, "{verb:?}: {effects:?}");
        assert_eq!(machine.op, None);
    }
    // What was done before the daemon died is not done again.
    for (state, verb, paused, now) in [
        (Running, Verb::Pause, true, Paused),
        (Paused, Verb::Resume, false, Running),
        (Running, Verb::Forward, false, Running),
        (Paused, Verb::Forward, true, Paused),
        (Running, Verb::Egress, false, Running),
    ] {
        let (machine, effects) = found_alive_after(state, verb, paused);
        assert_eq!(finishes(&effects).len(), 1, "{verb:?}");
        assert_eq!((machine.state, machine.task), (now, None));
    }
}

fn cause() -> Cause {
    Cause::new(CauseKind::VmmExit, "x")
}

#[test]
fn a_change_of_the_spec_is_done_once_it_is_durable_whatever_comes() {
    [Verb::Forward, Verb::Egress, Verb::Limit, Verb::Grow].into_iter().for_each(is_done_once_durable);
}

#[test]
fn a_longer_disk_is_told_once_the_guest_runs_again() {
    // Somebody else paused it while no daemon was there.
    let (machine, effects) = found_alive_after(VmState::Running, Verb::Grow, true);
    assert_eq!((finishes(&effects), &machine.task), (vec![], &Some(Task::Resume)));
    let (machine, effects) = machine.apply(Input::Report(Report::Resumed), &context(&RESTART));
    assert_eq!((finishes(&effects), &machine.task), (vec![], &Some(Task::Spec(SpecVerb::Grow))));
    let (machine, effects) = machine.apply(Input::Report(Report::SpecChanged), &context(&RESTART));
    assert_eq!((finishes(&effects), machine.task), (vec![("grow", &Ending::Ok)], None));
    // Where nothing runs, the next start makes it so.
    let mut machine = at(VmState::Running);
    machine.task = None;
    let (machine, _) = machine.apply(command(Verb::Grow), &context(&RESTART));
    let gone = Input::FoundGone { host_rebooted: false, cause: cause() };
    let (_, effects) = restarted(&machine).apply(gone, &context(&RESTART));
    assert_eq!(finishes(&effects), [("grow", &Ending::Ok)]);
}

fn is_done_once_durable(verb: Verb) {
    let spec = SpecVerb::of(verb).unwrap();
    let name = spec.as_str();
    for (state, runs) in [
        (VmState::Running, true),
        (VmState::Paused, true),
        (VmState::Stopped, false),
        (VmState::Backoff, false),
    ] {
        if cell(state, Column::Verb(verb)) == Cell::Deny {
            continue;
        }
        let (machine, effects) = at(state).apply(command(verb), &context(&RESTART));
        assert_eq!((machine.state, effects.contains(&Effect::Run(Task::Spec(spec)))), (state, runs));
        assert!(matches!(effects[0], Effect::Event { kind: VmEventKind::Changed, .. }));
        assert_eq!(finishes(&effects).len(), usize::from(!runs));
    }
    let (machine, _) = at(VmState::Running).apply(command(verb), &context(&RESTART));
    assert_eq!(machine.admit(Verb::Pause), Admission::Busy { operation: name.into() });
    let (_, effects) = machine.apply(command(Verb::Delete), &context(&RESTART));
    assert_eq!(finishes(&effects), [(name, &Ending::Ok)]);
    let (machine, _) = machine.apply(Input::VmmExited(cause()), &context(&RESTART));
    let (machine, effects) = machine.apply(Input::Report(Report::Failed(cause())), &context(&RESTART));
    assert!(
        matches!(finishes(&effects)[..], [(found, Ending::Failed(_))] if found == name),
        "it is not in force"
    );
    assert_eq!((machine.desired, machine.task), (Desired::Running, Some(Task::Release)));
}

#[test]
fn a_delete_is_known_until_the_name_is_free() {
    let (machine, _) = at(VmState::Running).apply(command(Verb::Delete), &context(&RESTART));
    let (machine, _) = machine.apply(Input::Report(Report::Deleted), &context(&RESTART));
    assert_eq!(restarted(&machine).op.and_then(|op| op.request_id), Some(id(7)));
}

fn any_input() -> impl Strategy<Value = Input> {
    let cause = || Cause::new(CauseKind::VmmExit, "x");
    prop_oneof![
        6 => (proptest::sample::select(VERBS.to_vec()), any::<u64>(), 0_u8..3).prop_map(|(verb, n, wait)| {
            let wait = [None, Some(Wait::Running), Some(Wait::Agent)][usize::from(wait)];
            Input::Command(Command { verb, request_id: id(n.into()), wait, time_ms: 5 })
        }),
        8 => Just(Input::Report(Report::Released)),
        1 => Just(Input::VmmExited(cause())),
        1 => Just(Input::GuestPowerOff),
        1 => Just(Input::GuestReboot),
        1 => Just(Input::AgentReady { cause: cause() }),
        1 => Just(Input::AgentLost(Cause::new(CauseKind::AgentTimeout, "x"))),
        2 => Just(Input::BackoffElapsed),
        1 => any::<bool>().prop_map(|paused| Input::FoundAlive { paused }),
        1 => Just(Input::HostStopping { grace_ms: 5 }),
        1 => Just(Input::FoundUnclear(cause())),
        1 => any::<bool>().prop_map(|paused| Input::Seen { paused }),
        1 => any::<bool>().prop_map(move |r| Input::FoundGone { host_rebooted: r, cause: cause() }),
    ]
}

/// The reports that a task can end in.
fn reports(task: &Task, pick: u8) -> Report {
    let cause = || Cause::new(CauseKind::VmmError, "x");
    let of: Vec<Report> = match task {
        Task::Boot => vec![Report::Booted, Report::BootFailed(cause()), Report::Failed(cause())],
        Task::Shutdown { .. } => vec![Report::Stopped, Report::ShutdownTimedOut, Report::Failed(cause())],
        Task::Stop { .. } => vec![Report::Stopped],
        Task::Pause => vec![Report::Paused, Report::Failed(cause())],
        Task::Resume => vec![Report::Resumed, Report::Failed(cause())],
        Task::Reboot => vec![Report::Rebooted, Report::Failed(cause())],
        Task::Spec(_) => vec![Report::SpecChanged, Report::Failed(cause())],
        Task::Release => vec![Report::Released],
        Task::Delete => vec![Report::Deleted],
    };
    of[usize::from(pick) % of.len()].clone()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_500))]

    /// Random lives under daemons that die: one task at a time, every accepted request ends once and
    /// only when it is as it asked, events join without a gap, and what is down has no task that could
    /// bring it up.
    #[test]
    fn any_life_keeps_the_rules(
        policy in 0_u8..3,
        wait in 0_u8..3,
        steps in proptest::collection::vec((any_input(), any::<u8>()), 0..80),
    ) {
        let policy = [RestartPolicy::Never, RestartPolicy::OnFailure, RestartPolicy::Always][usize::from(policy)];
        let restart = RestartSpec { policy, ..RESTART };
        let wait = [None, Some(Wait::Running), Some(Wait::Agent)][usize::from(wait)];
        let (mut machine, effects) = Machine::create(id(1), wait);
        let mut accepted = 1_usize;
        let mut finished = 0_usize;
        let mut state = VmState::Creating;
        let mut running_task: Option<Task> = None;
        let mut gone = false;
        let mut check = |machine: &Machine, effects: &[Effect], running: &mut Option<Task>| -> Result<(), TestCaseError> {
            for effect in effects {
                match effect {
                    Effect::Event { previous, state: to, .. } => {
                        prop_assert_eq!(*previous, state);
                        state = *to;
                    }
                    Effect::Run(task) => {
                        prop_assert!(running.is_none(), "two tasks: {:?} and {:?}", running, task);
                        *running = Some(task.clone());
                    }
                    Effect::Finish(op, ending) => {
                        finished += 1;
                        if *ending == Ending::Ok && op.due != Due::Accepted {
                            let wanted = match op.name.as_str() {
                                "pause" => VmState::Paused,
                                "stop" | "shutdown" => VmState::Stopped,
                                _ => VmState::Running,
                            };
                            let anywhere =
                                ["reboot", "forward", "egress", "limit", "grow"].contains(&op.name.as_str());
                            prop_assert!(state == wanted || anywhere, "{op:?} was answered in {state}");
                        }
                    }
                    Effect::Gone { op } => { finished += usize::from(op.is_some()); gone = true; }
                    Effect::Cancel => prop_assert!(running.is_some()),
                    Effect::Backoff { .. } => prop_assert_eq!(machine.state, VmState::Backoff),
                }
            }
            prop_assert_eq!(state, machine.state);
            prop_assert_eq!(running.as_ref(), machine.task.as_ref());
            Ok(())
        };
        check(&machine, &effects, &mut running_task)?;
        for (input, pick) in steps {
            let input = match input {
                Input::Report(_) => match running_task.take() {
                    Some(task) => Input::Report(reports(&task, pick)),
                    None => continue,
                },
                Input::Command(command) => {
                    if machine.admit(command.verb) != Admission::Accept {
                        continue;
                    }
                    accepted += 1;
                    Input::Command(command)
                }
                Input::FoundAlive { .. } | Input::FoundGone { .. } => {
                    machine = restarted(&machine);
                    running_task = None;
                    input
                }
                other => other,
            };
            let (next, effects) = machine.apply(input, &Context { now_ms: u64::from(pick), jitter: 0.5, restart: &restart, agent_enabled: true });
            check(&next, &effects, &mut running_task)?;
            machine = next;
            if machine.task.is_none() && !machine.state.holds_runtime() {
                prop_assert!(machine.exited.is_none());
                prop_assert_eq!(machine.agent, AgentState::Absent);
            }
            if effects.iter().any(|e| matches!(e, Effect::Gone { .. })) {
                break;
            }
        }
        let open = usize::from(machine.op.is_some() && !gone);
        prop_assert_eq!(accepted, finished + open, "every request is answered once: {:?}", machine);
    }
}
