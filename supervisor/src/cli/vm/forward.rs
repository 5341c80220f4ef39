//! `drover vm forward`: ports of the host that lead to a guest.

use std::net::IpAddr;
use std::str::FromStr;

use drover_schemas::Token;
use drover_schemas::body::guest::Empty;
use drover_schemas::body::spec::{ForwardSpec, Protocol};
use drover_schemas::body::status::VmStatus;
use drover_schemas::body::vm::{ForwardRef, ForwardRequest};

use super::super::Global;
use super::super::exit::CliError;
use super::change::{self, Conditions};
use super::{READ_DEADLINE, show};
use crate::client::{CallOptions, Client};

/// Verbs of forwards.
#[derive(Debug, clap::Subcommand)]
pub enum ForwardCommand {
    /// Lead a port of the host to one of the guest.
    Add {
        #[command(flatten)]
        conditions: Conditions,
        #[command(flatten)]
        taken: Taken,
        /// Ports, as HOST:GUEST.
        #[arg(required = true, value_name = "HOST:GUEST")]
        ports: Vec<Ports>,
        /// From where alone it may be used, as a prefix; from everywhere if left out.
        #[arg(long = "from", value_name = "CIDR")]
        sources: Vec<String>,
    },
    /// Lead a port of the host there no more, and cut what goes on.
    Rm {
        #[command(flatten)]
        conditions: Conditions,
        #[command(flatten)]
        taken: Taken,
        /// Ports of the host.
        #[arg(required = true, value_name = "PORT")]
        ports: Vec<u16>,
    },
    /// List the ports that lead to the guest.
    Ls {
        /// The VM.
        name: Token,
    },
}

/// What is taken in, and for which interface.
#[derive(Debug, clap::Args)]
pub struct Taken {
    /// UDP in place of TCP.
    #[arg(long)]
    udp: bool,
    /// The one address of the host that takes it in; all if left out.
    #[arg(long, value_name = "ADDRESS")]
    address: Option<IpAddr>,
    /// Which of the VM's interfaces.
    #[arg(long, value_name = "N", default_value_t = 0)]
    nic: u32,
}

/// A port of the host and one of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    host: u16,
    guest: u16,
}

impl FromStr for Ports {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = "ports are the host's and the guest's, such as 20080:80";
        let (host, guest) = text.split_once(':').ok_or(wrong)?;
        let port = |text: &str| text.parse().ok().filter(|port| *port > 0).ok_or(wrong);
        Ok(Self { host: port(host)?, guest: port(guest)? })
    }
}

impl Taken {
    const fn protocol(&self) -> Protocol {
        if self.udp { Protocol::Udp } else { Protocol::Tcp }
    }

    fn host_address(&self) -> Option<String> {
        self.address.map(|address| address.to_string())
    }
}

impl ForwardCommand {
    pub(super) const fn name(&self) -> &Token {
        match self {
            Self::Add { conditions, .. } | Self::Rm { conditions, .. } => conditions.name(),
            Self::Ls { name } => name,
        }
    }
}

pub(super) async fn run(command: &ForwardCommand, client: &Client, global: &Global) -> Result<(), CliError> {
    let mut request = ForwardRequest::default();
    let (conditions, nic) = match command {
        ForwardCommand::Add { conditions, taken, ports, sources } => {
            let (protocol, sources) = (taken.protocol(), sources.clone());
            let add = |ports: &Ports| ForwardSpec {
                protocol,
                host_port: ports.host,
                host_address: taken.host_address(),
                guest_port: ports.guest,
                sources: sources.clone(),
            };
            request.add = ports.iter().map(add).collect();
            (conditions, taken.nic)
        }
        ForwardCommand::Rm { conditions, taken, ports } => {
            let (protocol, address) = (taken.protocol(), taken.host_address());
            let gone = |port: &u16| ForwardRef { protocol, host_port: *port, host_address: address.clone() };
            request.remove = ports.iter().map(gone).collect();
            (conditions, taken.nic)
        }
        ForwardCommand::Ls { name } => {
            let read = CallOptions::read(global.deadline(READ_DEADLINE));
            let vm: VmStatus = client.vm(name, "get", &Empty {}, read).await?;
            let forwards: Vec<&ForwardSpec> = vm.nics.iter().flat_map(|nic| &nic.forwards).collect();
            return global.output.print(&forwards, |_| show::forwards(&vm));
        }
    };
    request.nic = nic;
    (request.if_vm_id, request.if_revision) = conditions.expected();
    change::at_once("forward", conditions, &request, client, global).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_the_hosts_and_the_guests() {
        assert_eq!("20080:80".parse(), Ok(Ports { host: 20_080, guest: 80 }));
        for wrong in ["", "80", "0:80", "80:0", "80:70000", "a:b", "1:2:3"] {
            wrong.parse::<Ports>().unwrap_err();
        }
    }
}
