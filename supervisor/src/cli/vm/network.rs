//! `drover vm guest network`: an interface of the guest, looked at and set up over the link.

use std::str::FromStr;
use std::time::Duration;

use drover_schemas::Token;
use drover_schemas::body::guest::Empty;
use drover_schemas::body::status::VmStatus;
use drover_schemas::guest::{NetworkRequest, NetworkResult, NetworkRoute, NetworkState};

use super::super::Global;
use super::super::exit::CliError;
use super::super::output::{render, table};
use super::guest::{Guest, plain};
use crate::client::{CallOptions, Client};

const DEADLINE: Duration = Duration::from_secs(60);

/// How an interface is to be.
#[derive(Debug, clap::Args)]
pub struct NetworkArgs {
    /// The VM.
    pub(super) name: Token,
    /// Which of the VM's interfaces.
    #[arg(long, value_name = "N", default_value_t = 0)]
    nic: usize,
    /// An address with the length of its prefix, such as 10.0.0.2/24 or fd00::2/64; may be repeated. Others of its kind
    /// are taken away.
    #[arg(long = "address", value_name = "ADDRESS/LENGTH")]
    addresses: Option<Vec<String>>,
    /// The default gateway.
    #[arg(long, value_name = "ADDRESS")]
    gateway: Option<String>,
    /// The default gateway of IPv6.
    #[arg(long, value_name = "ADDRESS")]
    gateway6: Option<String>,
    /// A further route, such as 10.0.0.0/8=10.0.0.9; may be repeated.
    #[arg(long = "route", value_name = "PREFIX=ROUTER")]
    routes: Vec<Route>,
    /// The longest packet, in bytes.
    #[arg(long, value_name = "BYTES")]
    mtu: Option<u32>,
    /// A server that names are asked of; may be repeated. Others are taken away.
    #[arg(long = "dns", value_name = "ADDRESS")]
    dns: Option<Vec<String>>,
}

/// Where to, and by which router.
#[derive(Debug, Clone)]
struct Route(NetworkRoute);

impl FromStr for Route {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (to, via) =
            text.split_once('=').ok_or("a route is a prefix and a router, such as 10.0.0.0/8=10.0.0.9")?;
        Ok(Self(NetworkRoute { to: to.to_owned(), via: via.to_owned() }))
    }
}

pub(super) async fn run(args: &NetworkArgs, client: &Client, global: &Global) -> Result<(), CliError> {
    let deadline = global.deadline(DEADLINE);
    let vm: VmStatus = client.vm(&args.name, "get", &Empty {}, CallOptions::read(deadline)).await?;
    let Some(nic) = vm.nics.get(args.nic) else {
        let text = format!(
            "{} has {} interfaces, counted from 0; there is no {}",
            args.name,
            vm.nics.len(),
            args.nic
        );
        return Err(CliError::Usage(text));
    };
    let request = NetworkRequest {
        mac: nic.mac.clone(),
        addresses: args.addresses.clone(),
        gateway: args.gateway.clone(),
        gateway6: args.gateway6.clone(),
        routes: args.routes.iter().map(|route| route.0.clone()).collect(),
        mtu: args.mtu,
        dns: args.dns.clone(),
        if_unset: false,
    };
    let done: NetworkResult = Guest::new(client, &args.name, deadline).change("network", &request).await?;
    global.output.print(&done, show)
}

fn show(done: &NetworkResult) -> String {
    let mut table = table(&[&plain(&done.interface), "BEFORE", "NOW"]);
    let list = |all: &[String]| plain(&all.join(" "));
    let routes = |all: &[NetworkRoute]| {
        plain(&all.iter().map(|route| format!("{}={}", route.to, route.via)).collect::<Vec<_>>().join(" "))
    };
    let mut row = |what: &str, of: &dyn Fn(&NetworkState) -> String| {
        table.add_row([what.to_owned(), of(&done.before), of(&done.after)]);
    };
    row("up", &|state| if state.up { "yes" } else { "no" }.to_owned());
    row("addresses", &|state| list(&state.addresses));
    row("gateway", &|state| plain(state.gateway.as_deref().unwrap_or("-")));
    row("gateway6", &|state| plain(state.gateway6.as_deref().unwrap_or("-")));
    row("routes", &|state| routes(&state.routes));
    row("mtu", &|state| state.mtu.to_string());
    row("dns", &|state| list(&state.dns));
    render(&mut table)
}
