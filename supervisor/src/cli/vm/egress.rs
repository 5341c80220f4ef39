//! `drover vm egress`: what a guest may reach.

use std::collections::BTreeMap;

use drover_schemas::Token;
use drover_schemas::body::guest::Empty;
use drover_schemas::body::spec::{EgressDefault, EgressRule, EgressSpec, Protocol};
use drover_schemas::body::status::VmStatus;
use drover_schemas::body::vm::{EgressRequest, EgressRules};

use super::super::Global;
use super::super::exit::CliError;
use super::change::{self, Conditions};
use super::{READ_DEADLINE, show};
use crate::client::{CallOptions, Client};

/// Verbs of egress.
#[derive(Debug, clap::Subcommand)]
pub enum EgressCommand {
    /// Let the guest reach something though its default is to reach nothing.
    Allow(RuleArgs),
    /// Let the guest reach something no more.
    Deny(RuleArgs),
    /// Say what becomes of all that no rule names.
    Default {
        #[command(flatten)]
        conditions: Conditions,
        /// It passes, or it is refused.
        default: Verdict,
        /// Which of the VM's interfaces.
        #[arg(long, value_name = "N", default_value_t = 0)]
        nic: u32,
    },
    /// Take back all that was said: the guest reaches what the host's network lets through.
    Clear {
        #[command(flatten)]
        conditions: Conditions,
        /// Which of the VM's interfaces.
        #[arg(long, value_name = "N", default_value_t = 0)]
        nic: u32,
    },
    /// List what the guest may reach.
    Ls {
        /// The VM.
        name: Token,
    },
}

/// Rules that come or go.
#[derive(Debug, clap::Args)]
pub struct RuleArgs {
    #[command(flatten)]
    conditions: Conditions,
    /// Where to: an address, a prefix such as 192.0.2.0/24 or 2001:db8::/32, `all`, `private` or `metadata`.
    #[arg(required = true, value_name = "TO")]
    to: Vec<String>,
    /// TCP only.
    #[arg(long, conflicts_with = "udp")]
    tcp: bool,
    /// UDP only.
    #[arg(long)]
    udp: bool,
    /// A port or a range of ports such as 8000-8099; all if left out.
    #[arg(long = "port", value_name = "PORTS")]
    ports: Vec<String>,
    /// The rules go; they are named as they stand.
    #[arg(long)]
    remove: bool,
    /// And from now on this becomes of all that no rule names.
    #[arg(long, value_enum, value_name = "VERDICT")]
    default: Option<Verdict>,
    /// Which of the VM's interfaces.
    #[arg(long, value_name = "N", default_value_t = 0)]
    nic: u32,
}

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Verdict {
    /// It passes.
    Allow,
    /// It is refused.
    Deny,
}

impl From<Verdict> for EgressDefault {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Allow => Self::Allow,
            Verdict::Deny => Self::Deny,
        }
    }
}

impl RuleArgs {
    fn rules(&self) -> Vec<EgressRule> {
        let protocol = match (self.tcp, self.udp) {
            (true, _) => Some(Protocol::Tcp),
            (_, true) => Some(Protocol::Udp),
            _ => None,
        };
        let rule = |to: &String| EgressRule { to: to.clone(), protocol, ports: self.ports.clone() };
        self.to.iter().map(rule).collect()
    }

    fn request(&self, rules: EgressRules) -> EgressRequest {
        let (default, nic) = (self.default.map(Into::into), self.nic);
        let request = EgressRequest { default, nic, ..EgressRequest::default() };
        if self.remove {
            EgressRequest { remove: rules, ..request }
        } else {
            EgressRequest { add: rules, ..request }
        }
    }
}

impl EgressCommand {
    pub(super) const fn name(&self) -> &Token {
        match self {
            Self::Allow(args) | Self::Deny(args) => args.conditions.name(),
            Self::Default { conditions, .. } | Self::Clear { conditions, .. } => conditions.name(),
            Self::Ls { name } => name,
        }
    }
}

pub(super) async fn run(command: &EgressCommand, client: &Client, global: &Global) -> Result<(), CliError> {
    let (conditions, mut request) = match command {
        EgressCommand::Allow(args) => {
            (&args.conditions, args.request(EgressRules { allow: args.rules(), deny: Vec::new() }))
        }
        EgressCommand::Deny(args) => {
            (&args.conditions, args.request(EgressRules { allow: Vec::new(), deny: args.rules() }))
        }
        EgressCommand::Default { conditions, default, nic } => {
            let default = Some((*default).into());
            (conditions, EgressRequest { default, nic: *nic, ..EgressRequest::default() })
        }
        EgressCommand::Clear { conditions, nic } => {
            (conditions, EgressRequest { replace: true, nic: *nic, ..EgressRequest::default() })
        }
        EgressCommand::Ls { name } => {
            let read = CallOptions::read(global.deadline(READ_DEADLINE));
            let vm: VmStatus = client.vm(name, "get", &Empty {}, read).await?;
            let of_nics = vm.nics.iter().enumerate();
            let said: BTreeMap<usize, &EgressSpec> =
                of_nics.filter_map(|(i, nic)| Some((i, nic.egress.as_ref()?))).collect();
            return global.output.print(&said, |_| show::egresses(&vm));
        }
    };
    (request.if_vm_id, request.if_revision) = conditions.expected();
    change::at_once("egress", conditions, &request, client, global).await
}
