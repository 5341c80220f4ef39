//! The table itself, and its renderings.

use std::fmt::Write as _;

use super::Cell::{Accept, Adopting, Already, Busy, ByDesired, Deny, Enter, Ignore, Note, Policy, Preempt};
use super::Happening as H;
use super::Input::{Happened, Verb};
use super::Verb as V;
use super::VmState as S;
use super::{Cell, Input, VmState};

/// What `input` does to a VM in `state`.
///
/// "Operation in the way" is judged by the state alone here; a running VM with an operation under
/// way (a pause, a resume, a reboot) answers `busy` to every verb but `stop{force}` and `delete`.
#[must_use]
pub const fn cell(state: VmState, input: Input) -> Cell {
    match input {
        Verb(verb) => on_verb(state, verb),
        Happened(happening) => on_happening(state, happening),
    }
}

const fn on_verb(state: VmState, verb: V) -> Cell {
    match (state, verb) {
        (S::Unknown | S::Unrecognized, _) => Adopting,

        (S::Deleting, V::Delete) => Already,
        (S::Deleting, _) => Deny,
        (S::Creating | S::Starting | S::Stopping, V::Delete) => Preempt(S::Deleting),
        (_, V::Delete) => Accept(S::Deleting),

        (S::Creating | S::Starting | S::Running, V::Start) => Already,
        (S::Paused, V::Start) => Deny,
        (S::Stopping, V::Start) => Busy,
        (S::Stopped | S::Backoff | S::Hibernated | S::Failed, V::Start) => Accept(S::Starting),

        (S::Creating | S::Starting, V::Shutdown | V::Stop) => Busy,
        (S::Creating | S::Starting | S::Stopping, V::StopForce) => Preempt(S::Stopping),
        (S::Paused, V::Shutdown) => Deny,
        (S::Running, V::Shutdown) | (S::Running | S::Paused, V::Stop | V::StopForce) => Accept(S::Stopping),
        (S::Stopping, V::Shutdown | V::Stop) => Already,
        (S::Stopped | S::Hibernated, V::Shutdown | V::Stop | V::StopForce) => Already,
        (S::Backoff | S::Failed, V::Shutdown | V::Stop | V::StopForce) => Accept(S::Stopped),

        (S::Running, V::Reboot) => Accept(S::Running),
        (S::Running, V::Pause) => Accept(S::Running),
        (S::Running, V::Resume) => Already,
        (S::Paused, V::Pause) => Already,
        (S::Paused, V::Resume) => Accept(S::Paused),
        (S::Creating | S::Starting | S::Stopping, V::Reboot | V::Pause | V::Resume) => Busy,
        // It changes what the VM has, and not how it is.
        (S::Running, V::Forward | V::Egress | V::Limit | V::Grow) => Accept(S::Running),
        (S::Paused, V::Forward | V::Egress | V::Limit) => Accept(S::Paused),
        // The VMM lets the disk work again when it has changed it, though the guest is paused.
        (S::Paused, V::Grow) => Deny,
        (S::Stopped, V::Forward | V::Egress | V::Limit | V::Grow) => Accept(S::Stopped),
        (S::Backoff, V::Forward | V::Egress | V::Limit | V::Grow) => Accept(S::Backoff),
        (S::Hibernated, V::Forward | V::Egress | V::Limit | V::Grow) => Accept(S::Hibernated),
        (S::Failed, V::Forward | V::Egress | V::Limit | V::Grow) => Accept(S::Failed),
        (S::Creating | S::Starting | S::Stopping, V::Forward | V::Egress | V::Limit | V::Grow) => Busy,
        (
            S::Stopped | S::Backoff | S::Hibernated | S::Failed | S::Paused,
            V::Reboot | V::Pause | V::Resume,
        ) => Deny,
    }
}

const fn on_happening(state: VmState, happening: H) -> Cell {
    match (state, happening) {
        (S::Creating | S::Starting, H::Booted) => Enter(S::Running),
        (S::Creating | S::Starting, H::BootFailed | H::VmmExited) => Policy,
        // The guest was started but the report of it is still under way.
        (S::Creating | S::Starting, H::GuestPowerOff) => Policy,

        (S::Running | S::Paused, H::VmmExited | H::GuestPowerOff) => Policy,
        (S::Running, H::GuestReboot | H::GuestPanic | H::AgentLost) => Note,
        (S::Creating | S::Starting | S::Stopping, H::GuestReboot | H::GuestPanic | H::AgentLost) => Note,
        (S::Running, H::Paused) => Enter(S::Paused),
        (S::Paused, H::Resumed) => Enter(S::Running),

        // The stop under way goes on and ends in `stopped`.
        (S::Stopping, H::VmmExited | H::GuestPowerOff) => Note,
        (S::Stopping, H::Stopped) => Enter(S::Stopped),
        (S::Stopping, H::ShutdownTimedOut) => Enter(S::Running),

        (S::Deleting, H::Deleted) => Enter(S::Deleting),
        (S::Backoff, H::BackoffElapsed) => Enter(S::Starting),

        (_, H::DaemonStartAlive) => match state {
            S::Creating | S::Starting | S::Running | S::Unknown => Enter(S::Running),
            S::Paused => Enter(S::Paused),
            S::Stopping => Enter(S::Stopping),
            S::Deleting => Enter(S::Deleting),
            // A process that should not be there is ended.
            S::Stopped | S::Backoff | S::Hibernated | S::Failed | S::Unrecognized => Note,
        },
        (_, H::DaemonStartGone) => match state {
            // The half-done boot is undone and done again.
            S::Creating | S::Starting => Enter(S::Starting),
            S::Running | S::Paused | S::Unknown => Policy,
            S::Stopping => Enter(S::Stopped),
            S::Deleting => Enter(S::Deleting),
            // If the host itself had stopped it.
            S::Stopped => ByDesired,
            S::Backoff | S::Hibernated | S::Failed | S::Unrecognized => Ignore,
        },
        (_, H::HostRebooted) => match state {
            S::Creating | S::Starting | S::Running | S::Paused | S::Backoff | S::Unknown => ByDesired,
            S::Stopping => Enter(S::Stopped),
            S::Deleting => Enter(S::Deleting),
            S::Stopped => ByDesired,
            S::Hibernated | S::Failed | S::Unrecognized => Ignore,
        },
        // What else is under way waits until it is clear.
        (S::Running | S::Paused, H::DaemonStartUnclear) => Enter(S::Unknown),
        (S::Creating | S::Starting | S::Running | S::Paused, H::HostStopping) => Enter(S::Stopping),
        _ => Ignore,
    }
}

impl Cell {
    fn text(self) -> String {
        match self {
            Accept(s) => format!("→ {s}"),
            Preempt(s) => format!("pre-empts → {s}"),
            Already => "already".into(),
            Deny => "invalid_state".into(),
            Busy => "busy".into(),
            Adopting => "unavailable".into(),
            Enter(s) => format!("→ {s}"),
            Policy => "by policy".into(),
            ByDesired => "by desired".into(),
            Note => "noted".into(),
            Ignore => "·".into(),
        }
    }
}

/// The table as Markdown: one row for each input, one column for each state.
#[must_use]
pub fn markdown() -> String {
    let mut out = String::from("| input |");
    for state in VmState::ALL {
        let _ = write!(out, " {state} |");
    }
    out.push_str("\n|---|");
    out.push_str(&"---|".repeat(VmState::ALL.len()));
    out.push('\n');
    for input in Input::ALL {
        let _ = write!(out, "| {} |", input.as_str());
        for state in VmState::ALL {
            let _ = write!(out, " {} |", cell(state, input).text());
        }
        out.push('\n');
    }
    out
}

/// The table's changes of state as a Mermaid diagram.
#[must_use]
pub fn mermaid() -> String {
    let mut out = String::from("stateDiagram-v2\n    [*] --> creating\n");
    for from in VmState::ALL {
        for to in VmState::ALL {
            let labels: Vec<&str> = Input::ALL
                .into_iter()
                .filter(|input| match cell(from, *input) {
                    Accept(s) | Preempt(s) | Enter(s) => s == to && s != from,
                    Policy => matches!(to, S::Backoff | S::Failed | S::Stopped),
                    _ => false,
                })
                .map(Input::as_str)
                .collect();
            if !labels.is_empty() {
                let _ = writeln!(out, "    {from} --> {to}: {}", labels.join(", "));
            }
        }
    }
    out.push_str("    deleting --> [*]\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delete_is_possible_from_every_state_that_is_known() {
        for state in VmState::ALL {
            let expected = match state {
                S::Unknown => matches!(cell(state, Verb(V::Delete)), Adopting),
                S::Deleting => matches!(cell(state, Verb(V::Delete)), Already),
                _ => matches!(cell(state, Verb(V::Delete)), Accept(S::Deleting) | Preempt(S::Deleting)),
            };
            assert!(expected, "{state}");
        }
    }

    #[test]
    fn only_delete_and_forced_stop_pre_empt() {
        for state in VmState::ALL {
            for input in Input::ALL {
                if let Preempt(_) = cell(state, input) {
                    assert!(matches!(input, Verb(V::Delete | V::StopForce)), "{state} {input:?}");
                }
            }
        }
    }

    #[test]
    fn verbs_and_happenings_have_answers_of_their_own_kinds() {
        for state in VmState::ALL {
            for input in Input::ALL {
                let verb_answer =
                    matches!(cell(state, input), Accept(_) | Preempt(_) | Already | Deny | Busy | Adopting);
                assert_eq!(verb_answer, matches!(input, Verb(_)), "{state} {input:?}");
            }
        }
    }

    #[test]
    fn nothing_leads_out_of_deleting() {
        for input in Input::ALL {
            assert!(
                matches!(cell(S::Deleting, input), Already | Deny | Ignore | Enter(S::Deleting)),
                "{input:?}"
            );
        }
    }

    #[test]
    fn the_renderings_name_every_state() {
        for text in [markdown(), mermaid()] {
            for state in VmState::ALL {
                assert!(text.contains(state.as_str()), "{state}");
            }
        }
    }
}
