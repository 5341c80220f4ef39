//! Patterns over subjects: what a role may use is written with them.

use super::Subjects;
use crate::token::Token;
use crate::verbs::VerbRow;

/// Whether a NATS pattern (`*` is one token, `>` all that follow) takes in a subject, or a whole pattern.
#[must_use]
pub fn matches(pattern: &str, subject: &str) -> bool {
    let mut subject = subject.split('.');
    for want in pattern.split('.') {
        match (want, subject.next()) {
            (">", Some(_)) => return true,
            ("*", Some(token)) if token != ">" => {}
            (a, Some(b)) if a == b => {}
            _ => return false,
        }
    }
    subject.next().is_none()
}

impl Subjects {
    /// Where a verb is asked for: in one namespace or every one, of any VM and host.
    #[must_use]
    pub fn verb_pattern(&self, row: &VerbRow, ns: Option<&Token>) -> String {
        let subject = row.plane.subject(row.verb);
        let token = |token: &str| match token {
            "<ns>" => ns.map_or("*", Token::as_str).to_owned(),
            word if word.starts_with('<') => "*".to_owned(),
            word => word.to_owned(),
        };
        let rest: Vec<String> = subject.split('.').map(token).collect();
        self.join(format_args!("{}", rest.join(".")))
    }

    /// Every request of a namespace, or of every one; what an account lends to another.
    #[must_use]
    pub fn requests(&self, ns: Option<&Token>) -> String {
        match ns {
            Some(ns) => self.join(format_args!("cmd.{ns}.>")),
            None => self.join(format_args!("cmd.>")),
        }
    }

    /// The frames of a namespace's streams, or of every one's.
    #[must_use]
    pub fn frames(&self, ns: Option<&Token>) -> String {
        self.join(format_args!("io.{}.*", ns.map_or("*", Token::as_str)))
    }

    /// Events of a namespace, or of every one.
    #[must_use]
    pub fn events_of(&self, ns: Option<&Token>) -> String {
        match ns {
            Some(ns) => self.ns_events(ns),
            None => self.join(format_args!("evt.ns.>")),
        }
    }

    /// Samples of a namespace, or of every one.
    #[must_use]
    pub fn samples_of(&self, ns: Option<&Token>) -> String {
        match ns {
            Some(ns) => self.join(format_args!("metric.ns.{ns}.>")),
            None => self.join(format_args!("metric.ns.>")),
        }
    }

    /// Everything that a host says of itself.
    #[must_use]
    pub fn host_says(&self, host: &Token) -> String {
        self.join(format_args!("evt.host.{host}.>"))
    }

    /// Every sample.
    #[must_use]
    pub fn all_samples(&self) -> String {
        self.join(format_args!("metric.>"))
    }
}
