//! Every subject of the system: built and parsed here and nowhere else.
//!
//! The plane comes first (`cmd`, `host`, `io`, `evt`, `metric`), so that permissions, exports and
//! streams are disjoint. [`Subjects`] holds the root token; [`Subject`] is one parsed subject.

use crate::event::VmEventKind;
use crate::token::Token;

/// The version token of this contract.
pub const VERSION: &str = "v1";

/// One subject, without its root.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Subject {
    /// `cmd.<ns>.vm.<verb>`: verbs of the namespace that any placer answers.
    VmPool {
        /// Namespace.
        ns: Token,
        /// `create`, `list`, `lookup` or `validate`.
        verb: PoolVerb,
    },
    /// `cmd.<ns>.vm.<name>.<verb>`: answered by the host that owns the VM.
    Vm {
        /// Namespace.
        ns: Token,
        /// Name of the VM.
        name: Token,
        /// The verb.
        verb: Token,
    },
    /// `cmd.<ns>.vm.<name>.guest.<verb>`.
    Guest {
        /// Namespace.
        ns: Token,
        /// Name of the VM.
        name: Token,
        /// The verb.
        verb: GuestToken,
    },
    /// `cmd.<ns>.<family>.<verb>` for `image`, `snapshot`, `template`, `events` and `contract`.
    Registry {
        /// Namespace.
        ns: Token,
        /// What the verb is about.
        family: Family,
        /// The verb.
        verb: Token,
    },
    /// `host.<host>.<verb>`, `host.<host>.<family>.<verb>`: operators' verbs.
    Host {
        /// The host.
        host: Token,
        /// One or two tokens, joined by a dot.
        verb: String,
    },
    /// `io.<ns>.<token>`: frames from a client to a stream's host.
    Io {
        /// Namespace.
        ns: Token,
        /// 128 random bits in lower-case base 32.
        token: Token,
    },
    /// `evt.ns.<ns>.vm.<name>.<kind>`.
    VmEvent {
        /// Namespace.
        ns: Token,
        /// Name of the VM.
        name: Token,
        /// Kind of the event.
        kind: Token,
    },
    /// `evt.ns.<ns>.request.rejected`.
    RequestRejected {
        /// Namespace.
        ns: Token,
    },
    /// `evt.host.<host>.<kind>`.
    HostEvent {
        /// The host.
        host: Token,
        /// Kind of the event.
        kind: Token,
    },
    /// `evt.audit.host.<host>.<kind>`: who did what, as a host saw it.
    HostAudit {
        /// The host.
        host: Token,
        /// Kind of the event.
        kind: Token,
    },
    /// `evt.audit.bus.<server>.<kind>`: what a server of the bus kept from whom.
    BusAudit {
        /// The server.
        server: Token,
        /// Kind of the event.
        kind: Token,
    },
    /// `metric.ns.<ns>.vm.<name>`.
    VmMetric {
        /// Namespace.
        ns: Token,
        /// Name of the VM.
        name: Token,
    },
    /// `metric.ns.<ns>.host.<host>`: samples of the host's unchanged VMs of one namespace.
    NsHostMetric {
        /// Namespace.
        ns: Token,
        /// The host.
        host: Token,
    },
    /// `metric.host.<host>`.
    HostMetric {
        /// The host.
        host: Token,
    },
}

/// Verbs that a queue group answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PoolVerb {
    /// Claim, place, reserve, create.
    Create,
    /// Inventory of the namespace.
    List,
    /// What became of a name.
    Lookup,
    /// Check a spec without effect.
    Validate,
}

impl PoolVerb {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Create, Self::List, Self::Lookup, Self::Validate];

    /// The token.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::List => "list",
            Self::Lookup => "lookup",
            Self::Validate => "validate",
        }
    }
}

/// Families of registry verbs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// Images.
    Image,
    /// Snapshots.
    Snapshot,
    /// Templates.
    Template,
    /// The event log.
    Events,
    /// The published contract.
    Contract,
}

impl Family {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Image, Self::Snapshot, Self::Template, Self::Events, Self::Contract];

    /// The token.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Snapshot => "snapshot",
            Self::Template => "template",
            Self::Events => "events",
            Self::Contract => "contract",
        }
    }
}

/// A guest verb: as a token, but `_` is allowed (`event_logs`).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct GuestToken(String);

impl GuestToken {
    /// Checks `text`: `[a-z][a-z0-9_]{0,31}`.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let ok = (1..=32).contains(&text.len())
            && text.starts_with(|c: char| c.is_ascii_lowercase())
            && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
        ok.then(|| Self(text.to_owned()))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Builds and parses subjects below one root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subjects {
    root: Token,
}

impl Subjects {
    /// Subjects below `root` (usually `drover`).
    #[must_use]
    pub const fn new(root: Token) -> Self {
        Self { root }
    }

    /// The root token.
    #[must_use]
    pub const fn root(&self) -> &Token {
        &self.root
    }

    fn join(&self, rest: std::fmt::Arguments<'_>) -> String {
        format!("{}.{VERSION}.{rest}", self.root)
    }

    /// Writes a subject.
    #[must_use]
    pub fn build(&self, subject: &Subject) -> String {
        match subject {
            Subject::VmPool { ns, verb } => self.join(format_args!("cmd.{ns}.vm.{}", verb.as_str())),
            Subject::Vm { ns, name, verb } => self.join(format_args!("cmd.{ns}.vm.{name}.{verb}")),
            Subject::Guest { ns, name, verb } => {
                self.join(format_args!("cmd.{ns}.vm.{name}.guest.{}", verb.0))
            }
            Subject::Registry { ns, family, verb } => {
                self.join(format_args!("cmd.{ns}.{}.{verb}", family.as_str()))
            }
            Subject::Host { host, verb } => self.join(format_args!("host.{host}.{verb}")),
            Subject::Io { ns, token } => self.join(format_args!("io.{ns}.{token}")),
            Subject::VmEvent { ns, name, kind } => self.join(format_args!("evt.ns.{ns}.vm.{name}.{kind}")),
            Subject::RequestRejected { ns } => self.join(format_args!("evt.ns.{ns}.request.rejected")),
            Subject::HostEvent { host, kind } => self.join(format_args!("evt.host.{host}.{kind}")),
            Subject::HostAudit { host, kind } => self.join(format_args!("evt.audit.host.{host}.{kind}")),
            Subject::BusAudit { server, kind } => self.join(format_args!("evt.audit.bus.{server}.{kind}")),
            Subject::VmMetric { ns, name } => self.join(format_args!("metric.ns.{ns}.vm.{name}")),
            Subject::NsHostMetric { ns, host } => self.join(format_args!("metric.ns.{ns}.host.{host}")),
            Subject::HostMetric { host } => self.join(format_args!("metric.host.{host}")),
        }
    }

    /// Reads a subject; `None` for anything that is not one of ours.
    #[must_use]
    pub fn parse(&self, subject: &str) -> Option<Subject> {
        let rest = subject.strip_prefix(self.root.as_str())?.strip_prefix('.')?;
        let rest = rest.strip_prefix(VERSION)?.strip_prefix('.')?;
        let tokens: Vec<&str> = rest.splitn(8, '.').collect();
        let token = |text: &str| Token::new(text).ok();
        match tokens.as_slice() {
            ["cmd", ns, "vm", verb] => {
                let verb = PoolVerb::ALL.into_iter().find(|v| v.as_str() == *verb)?;
                Some(Subject::VmPool { ns: token(ns)?, verb })
            }
            ["cmd", ns, "vm", name, verb] => {
                Some(Subject::Vm { ns: token(ns)?, name: token(name)?, verb: token(verb)? })
            }
            ["cmd", ns, "vm", name, "guest", verb] => {
                Some(Subject::Guest { ns: token(ns)?, name: token(name)?, verb: GuestToken::new(verb)? })
            }
            ["cmd", ns, family, verb] => {
                let family = Family::ALL.into_iter().find(|f| f.as_str() == *family)?;
                Some(Subject::Registry { ns: token(ns)?, family, verb: token(verb)? })
            }
            ["host", host, verb] => {
                Some(Subject::Host { host: token(host)?, verb: token(verb)?.to_string() })
            }
            ["host", host, family, verb] => Some(Subject::Host {
                host: token(host)?,
                verb: format!("{}.{}", token(family)?, token(verb)?),
            }),
            ["io", ns, id] => Some(Subject::Io { ns: token(ns)?, token: token(id)? }),
            ["evt", "ns", ns, "vm", name, kind] => {
                Some(Subject::VmEvent { ns: token(ns)?, name: token(name)?, kind: token(kind)? })
            }
            ["evt", "ns", ns, "request", "rejected"] => Some(Subject::RequestRejected { ns: token(ns)? }),
            ["evt", "host", host, kind] => {
                Some(Subject::HostEvent { host: token(host)?, kind: token(kind)? })
            }
            ["evt", "audit", "host", host, kind] => {
                Some(Subject::HostAudit { host: token(host)?, kind: token(kind)? })
            }
            ["evt", "audit", "bus", server, kind] => {
                Some(Subject::BusAudit { server: token(server)?, kind: token(kind)? })
            }
            ["metric", "ns", ns, "vm", name] => {
                Some(Subject::VmMetric { ns: token(ns)?, name: token(name)? })
            }
            ["metric", "ns", ns, "host", host] => {
                Some(Subject::NsHostMetric { ns: token(ns)?, host: token(host)? })
            }
            ["metric", "host", host] => Some(Subject::HostMetric { host: token(host)? }),
            _ => None,
        }
    }

    /// Subscription for a pool verb in every namespace.
    #[must_use]
    pub fn pool_wildcard(&self, verb: PoolVerb) -> String {
        self.join(format_args!("cmd.*.vm.{}", verb.as_str()))
    }

    /// Subscription for a registry family in every namespace.
    #[must_use]
    pub fn registry_wildcard(&self, family: Family) -> String {
        self.join(format_args!("cmd.*.{}.*", family.as_str()))
    }

    /// The owner's subscription for one VM: its verbs and its guest's, unknown ones included.
    #[must_use]
    pub fn vm_wildcard(&self, ns: &Token, name: &Token) -> String {
        self.join(format_args!("cmd.{ns}.vm.{name}.>"))
    }

    /// A host's subscription for its operators.
    #[must_use]
    pub fn host_wildcard(&self, host: &Token) -> String {
        self.join(format_args!("host.{host}.>"))
    }

    /// The filter over every event of one VM name.
    #[must_use]
    pub fn vm_events(&self, ns: &Token, name: &Token) -> String {
        self.join(format_args!("evt.ns.{ns}.vm.{name}.>"))
    }

    /// The filter over the events of one kind: of one VM name, or of every VM of a namespace.
    #[must_use]
    pub fn vm_events_of_kind(&self, ns: &Token, name: Option<&Token>, kind: VmEventKind) -> String {
        let name = name.map_or("*", Token::as_str);
        self.join(format_args!("evt.ns.{ns}.vm.{name}.{}", kind.as_str()))
    }

    /// The filter over every event of a namespace.
    #[must_use]
    pub fn ns_events(&self, ns: &Token) -> String {
        self.join(format_args!("evt.ns.{ns}.>"))
    }

    /// The filter over every event of one host.
    #[must_use]
    pub fn host_events(&self, host: &Token) -> String {
        self.join(format_args!("evt.host.{host}.>"))
    }

    /// The filter over the audit of one host.
    #[must_use]
    pub fn host_audit(&self, host: &Token) -> String {
        self.join(format_args!("evt.audit.host.{host}.>"))
    }

    /// The filter over what one server of the bus denied.
    #[must_use]
    pub fn bus_audit(&self, server: &Token) -> String {
        self.join(format_args!("evt.audit.bus.{server}.>"))
    }

    /// What every server of the bus denied.
    #[must_use]
    pub fn all_bus_audit(&self) -> String {
        self.join(format_args!("evt.audit.bus.*.*"))
    }

    /// The filter over the whole audit, of hosts and servers.
    #[must_use]
    pub fn all_audit(&self) -> String {
        self.join(format_args!("evt.audit.>"))
    }

    /// What the event stream takes: every event and nothing else.
    #[must_use]
    pub fn all_events(&self) -> String {
        self.join(format_args!("evt.>"))
    }
}

mod patterns;

pub use patterns::matches;

#[cfg(test)]
mod tests;
