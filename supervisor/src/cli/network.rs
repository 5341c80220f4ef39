//! `drover network`.

use drover_schemas::Token;
use drover_schemas::body::network::{
    NetworkCreateRequest, NetworkDns, NetworkInfo, NetworkPool, NetworkRemoveRequest,
};

use super::Global;
use super::exit::CliError;
use super::host::connect;
use super::output::{self, render};

/// Verbs of networks.
#[derive(Debug, clap::Subcommand)]
pub enum NetworkCommand {
    /// Make a network that VMs of the host may have interfaces in.
    Create(Box<Create>),
    /// List the networks of a host.
    #[command(visible_alias = "list")]
    Ls {
        /// The host; without it, the one that answers first.
        #[arg(long, value_name = "HOST")]
        host: Option<Token>,
    },
    /// Remove a network that was made here and that no VM has an interface in.
    Rm {
        /// The network.
        name: Token,
        /// The host; without it, the one that answers first.
        #[arg(long, value_name = "HOST")]
        host: Option<Token>,
    },
}

/// What a network is to be; what is left out is as in a configuration.
#[derive(Debug, clap::Args)]
pub struct Create {
    /// The name that specs use.
    name: Token,
    /// Its addresses, as 10.78.0.0/20.
    #[arg(long, required_unless_present = "pool", conflicts_with = "pool")]
    subnet: Option<String>,
    /// Take the subnet out of a pool of the fleet, as 10.64.0.0/12.
    #[arg(long)]
    pool: Option<String>,
    /// How long the prefix of a subnet out of the pool is.
    #[arg(long, requires = "pool")]
    prefix: Option<u8>,
    /// Its addresses of IPv6, as fd12:3456:789a:1::/64.
    #[arg(long)]
    ipv6: Option<String>,
    /// The longest packet of its guests, in bytes.
    #[arg(long)]
    mtu: Option<u32>,
    /// Guests reach each other.
    #[arg(long)]
    open: bool,
    /// Where guests may not go, instead of what holds clouds' metadata; may be repeated.
    #[arg(long, value_name = "PREFIX")]
    deny: Vec<String>,
    /// Guests that ask by DHCP are not answered.
    #[arg(long)]
    no_dhcp: bool,
    /// Guests that ask for names are not answered.
    #[arg(long, conflicts_with_all = ["suffix", "upstream"])]
    no_dns: bool,
    /// What follows the name of a VM.
    #[arg(long)]
    suffix: Option<String>,
    /// Who is asked for other names, as 192.0.2.53; may be repeated.
    #[arg(long, value_name = "ADDRESS")]
    upstream: Vec<String>,
    /// The host; without it, the one that answers first.
    #[arg(long, value_name = "HOST")]
    host: Option<Token>,
}

impl Create {
    fn request(&self) -> NetworkCreateRequest {
        let some = |all: &Vec<String>| (!all.is_empty()).then(|| all.clone());
        let dns = NetworkDns {
            serve: self.no_dns.then_some(false),
            suffix: self.suffix.clone(),
            upstreams: some(&self.upstream),
        };
        NetworkCreateRequest {
            name: self.name.clone(),
            subnet: self.subnet.clone(),
            subnet_from: self.pool.clone().map(|pool| NetworkPool { pool, prefix: self.prefix }),
            ipv6: self.ipv6.clone(),
            mtu: self.mtu,
            isolate: self.open.then_some(false),
            egress_deny: some(&self.deny),
            dhcp: self.no_dhcp.then_some(false),
            dns: (dns != NetworkDns::default()).then_some(dns),
        }
    }
}

pub(super) async fn run(command: &NetworkCommand, global: &Global) -> Result<u8, CliError> {
    match command {
        NetworkCommand::Create(create) => {
            let (client, host, deadline) = connect(global, create.host.as_ref()).await?;
            let reply = client.network_create(&host, &create.request(), deadline).await?;
            global.output.print(&reply, |reply| {
                let already = if reply.already { " already" } else { "" };
                format!("{host}: network {} is there{already}, {}", reply.network.name, reply.network.subnet)
            })?;
        }
        NetworkCommand::Ls { host } => {
            let (client, host, deadline) = connect(global, host.as_ref()).await?;
            let reply = client.networks(&host, deadline).await?;
            global.output.print(&reply, |reply| list(&reply.networks))?;
        }
        NetworkCommand::Rm { name, host } => {
            let (client, host, deadline) = connect(global, host.as_ref()).await?;
            let request = NetworkRemoveRequest { name: name.clone() };
            let reply = client.network_remove(&host, &request, deadline).await?;
            global.output.print(&reply, |_| format!("{host}: network {name} is gone"))?;
        }
    }
    Ok(0)
}

fn list(networks: &[NetworkInfo]) -> String {
    let mut table = output::table(&["NAME", "SUBNET", "IPV6", "MTU", "GUESTS", "ADDRESSES", "FROM"]);
    for network in networks {
        table.add_row([
            network.name.to_string(),
            network.subnet.clone(),
            network.ipv6.clone().unwrap_or_else(|| "-".to_owned()),
            network.mtu.to_string(),
            if network.isolate { "apart" } else { "together" }.to_owned(),
            format!("{} of {}", network.addresses_used, network.addresses),
            if network.configured { "configuration" } else { "a verb" }.to_owned(),
        ]);
    }
    render(&mut table)
}
