//! Roles as sets of subjects. What the bus server is configured with comes from here, so from the table.
//!
//! `operator` and `guest` both look, and neither has what the other has: who starts and stops VMs does not
//! thereby read their files. `admin` has everything that a person uses; what hosts ask of each other is
//! theirs alone.

use std::collections::BTreeSet;

use super::{Role, VERBS, stream};
use crate::subject::{Subject, Subjects};
use crate::token::Token;

/// What somebody may send to and listen to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Grants {
    /// Patterns of subjects to publish to.
    pub publish: BTreeSet<String>,
    /// Patterns of subjects to subscribe to.
    pub subscribe: BTreeSet<String>,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Reader, Self::Operator, Self::Guest, Self::Admin, Self::Host];

    /// Whether it may use the verbs of `least`.
    #[must_use]
    pub const fn includes(self, least: Self) -> bool {
        match (self, least) {
            (Self::Reader, Self::Reader)
            | (Self::Operator, Self::Reader | Self::Operator)
            | (Self::Guest, Self::Reader | Self::Guest)
            | (Self::Host, Self::Host) => true,
            (Self::Admin, least) => !matches!(least, Self::Host),
            _ => false,
        }
    }
}

impl Grants {
    /// What somebody with these roles has in one namespace, or in every one. Verbs of hosts need `admin`.
    #[must_use]
    pub fn of_client(subjects: &Subjects, roles: &[Role], ns: Option<&Token>) -> Self {
        let mut grants = Self::default();
        for row in VERBS.iter().filter(|row| roles.iter().any(|role| role.includes(row.role))) {
            grants.publish.insert(subjects.verb_pattern(row, ns));
            if stream(row.plane, row.verb).is_some() {
                // The token of a stream is 128 random bits from its reply.
                grants.publish.insert(subjects.frames(ns));
            }
        }
        if roles.iter().any(|role| role.includes(Role::Reader)) {
            grants.subscribe.insert(subjects.events_of(ns));
            grants.subscribe.insert(subjects.samples_of(ns));
        }
        if roles.contains(&Role::Admin) {
            grants.subscribe.insert(subjects.all_events());
            grants.subscribe.insert(subjects.all_samples());
        }
        grants
    }

    /// What a host has on the subjects of this contract.
    #[must_use]
    pub fn of_host(subjects: &Subjects, host: &Token) -> Self {
        let asked = VERBS.iter().filter(|row| Role::Host.includes(row.role));
        let mut publish: BTreeSet<String> = asked.map(|row| subjects.verb_pattern(row, None)).collect();
        publish.extend([
            subjects.events_of(None),
            subjects.host_says(host),
            subjects.host_audit(host),
            subjects.samples_of(None),
            subjects.build(&Subject::HostMetric { host: host.clone() }),
        ]);
        let subscribe = [subjects.requests(None), subjects.frames(None), subjects.host_wildcard(host)].into();
        Self { publish, subscribe }
    }

    /// What somebody has who follows the logs of the servers and tells what they denied; nothing else is published
    /// by anybody but hosts.
    #[must_use]
    pub fn of_auditor(subjects: &Subjects) -> Self {
        Self { publish: [subjects.all_bus_audit()].into(), subscribe: BTreeSet::new() }
    }

    /// Whether one of the patterns takes in a subject that is published to.
    #[must_use]
    pub fn may_publish(&self, subject: &str) -> bool {
        self.publish.iter().any(|pattern| crate::subject::matches(pattern, subject))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verbs::{Class, Plane, VerbRow};

    fn subjects() -> Subjects {
        Subjects::new(Token::new("drover").unwrap())
    }

    fn concrete(row: &VerbRow, ns: &str) -> String {
        let tail = row.plane.subject(row.verb);
        let tail = tail.replace("<ns>", ns).replace("<name>", "web").replace("<host>", "h1");
        format!("drover.v1.{tail}")
    }

    /// The whole table: each verb is in exactly the roles that include its own, and in no other namespace.
    #[test]
    fn every_verb_is_in_exactly_the_roles_that_it_should_be_in() {
        let acme = Token::new("acme").unwrap();
        for role in Role::ALL {
            let everywhere = Grants::of_client(&subjects(), &[role], None);
            let in_acme = Grants::of_client(&subjects(), &[role], Some(&acme));
            for row in VERBS {
                let wanted = role.includes(row.role);
                assert_eq!(everywhere.may_publish(&concrete(row, "other")), wanted, "{role:?} {row:?}");
                assert_eq!(in_acme.may_publish(&concrete(row, "acme")), wanted, "{role:?} {row:?}");
                if row.plane != Plane::Host {
                    assert!(!in_acme.may_publish(&concrete(row, "other")), "{role:?} {row:?}");
                }
            }
        }
        let host = Grants::of_host(&subjects(), &acme);
        for row in VERBS {
            assert_eq!(host.may_publish(&concrete(row, "a")), row.role == Role::Host, "{row:?}");
        }
    }

    #[test]
    fn who_only_looks_changes_nothing_and_who_starts_vms_is_not_in_their_guests() {
        for row in VERBS {
            if Role::Reader.includes(row.role) {
                assert_eq!(row.class, Class::Read, "{row:?}");
            }
            if Role::Operator.includes(row.role) {
                assert!(!matches!(row.class, Class::Guest | Class::Stream), "{row:?}");
            }
            if Role::Guest.includes(row.role) {
                assert!(!matches!(row.class, Class::Journalled | Class::Setting), "{row:?}");
            }
            assert_eq!(row.plane == Plane::Host, matches!(row.role, Role::Admin | Role::Host), "{row:?}");
        }
    }

    #[test]
    fn nobody_but_a_host_publishes_events_or_samples_and_no_client_listens_to_requests() {
        let (subjects, acme) = (subjects(), Token::new("acme").unwrap());
        for role in Role::ALL {
            for ns in [None, Some(&acme)] {
                let grants = Grants::of_client(&subjects, &[role], ns);
                for subject in [
                    "drover.v1.evt.ns.acme.vm.web.state",
                    "drover.v1.evt.host.h1.started",
                    "drover.v1.evt.audit.bus.n1.denied",
                    "drover.v1.evt.audit.host.h1.done",
                    "drover.v1.metric.ns.acme.vm.web",
                    "$JS.API.STREAM.DELETE.DROVER_EVENTS",
                ] {
                    assert!(!grants.may_publish(subject), "{role:?} {subject}");
                }
                if !matches!(role, Role::Admin) {
                    let hears = |subject| {
                        grants.subscribe.iter().any(|pattern| crate::subject::matches(pattern, subject))
                    };
                    assert!(!hears("drover.v1.evt.audit.host.h1.done"), "{role:?}");
                }
                for pattern in &grants.subscribe {
                    let plane = pattern.trim_start_matches("drover.v1.");
                    assert!(plane.starts_with("evt.") || plane.starts_with("metric."), "{role:?} {pattern}");
                }
            }
        }
        let host = Grants::of_host(&subjects, &Token::new("h1").unwrap());
        assert!(host.may_publish("drover.v1.evt.ns.acme.vm.web.state"));
        assert!(!host.may_publish("drover.v1.evt.host.h2.started"), "a host speaks for itself");
        assert!(host.may_publish("drover.v1.evt.audit.host.h1.refused"));
        assert!(!host.may_publish("drover.v1.evt.audit.host.h2.refused"));
        assert!(!host.may_publish("drover.v1.evt.audit.bus.n1.denied"));
        let auditor = Grants::of_auditor(&subjects);
        assert!(auditor.may_publish("drover.v1.evt.audit.bus.n1.denied"));
        for others in ["evt.audit.host.h1.refused", "evt.host.h1.alarm", "evt.ns.acme.vm.web.state"] {
            assert!(!auditor.may_publish(&format!("drover.v1.{others}")), "{others}");
        }
    }
}
