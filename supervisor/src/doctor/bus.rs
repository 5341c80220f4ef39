//! The bus as the configuration names it: whether it is there, lets the host in, and has what the host needs.

use std::time::Duration;

use drover_actors::bus::assets::inspect;
use drover_actors::bus::connect::connect;
use drover_actors::chain;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Finding;
use crate::app;
use crate::config::HostConfig;

/// How long the bus may take for each step.
const BUS: Duration = Duration::from_secs(3);

pub(super) async fn look(config: &HostConfig) -> Vec<Finding> {
    match reachable(config).await {
        Ok(place) => {
            let there = Finding::good("bus", format!("{place} takes connections"));
            vec![there, stored(config).await]
        }
        Err(failures) => {
            let advice =
                "start nats-server 2.11 or newer with JetStream, or set bus.urls; a host waits for it";
            vec![Finding::weak("bus", failures, advice)]
        }
    }
}

/// The first server that takes connections, or why none does.
async fn reachable(config: &HostConfig) -> Result<String, String> {
    let mut failures = Vec::new();
    for url in &config.bus.urls {
        let Ok(address) = url.parse::<async_nats::ServerAddr>() else {
            failures.push("an address of bus.urls is none".to_owned());
            continue;
        };
        let place = format!("{}:{}", address.host(), address.port());
        match timeout(BUS, TcpStream::connect(&place)).await {
            Ok(Ok(_)) => return Ok(place),
            Ok(Err(error)) => failures.push(format!("{place}: {error}")),
            Err(_) => failures.push(format!("{place}: no answer within {} s", BUS.as_secs())),
        }
    }
    Err(failures.join("; "))
}

/// The stream of events and the buckets, as the host would see them.
async fn stored(config: &HostConfig) -> Finding {
    let check = "stream and buckets";
    let host = match app::host_name(config) {
        Ok(host) => host,
        Err(error) => return Finding::bad(check, chain(&error).to_string(), "set `host` to a name"),
    };
    let bus = match connect(&app::bus(config, &host)).await {
        Ok(bus) => bus,
        Err(error) => return Finding::bad(check, chain(&error).to_string(), "correct what it names"),
    };
    if timeout(BUS, bus.connected()).await.is_err() {
        let said = bus.state.borrow().last_error.clone();
        let said = said.unwrap_or_else(|| format!("no login within {} s", BUS.as_secs()));
        return Finding::weak(check, said, "let the host into the bus; it waits for that");
    }
    let js = async_nats::jetstream::new(bus.client.clone());
    let looked = timeout(BUS * 2, inspect(&js, &app::assets(config))).await;
    match looked {
        Ok(Ok((absent, differences))) if differences.is_empty() && absent.is_empty() => {
            Finding::good(check, "as this version makes them")
        }
        Ok(Ok((absent, differences))) if differences.is_empty() => {
            let found = format!("absent: {}", absent.join(", "));
            Finding::weak(check, found, "`drover bus init` makes them, or the host if it may")
        }
        Ok(Ok((_, differences))) => {
            let found: Vec<String> = differences.iter().map(ToString::to_string).collect();
            let advice = "an operator brings them up to date: `drover bus upgrade`";
            Finding::weak(check, found.join("; "), advice)
        }
        Ok(Err(error)) => Finding::weak(check, chain(&error).to_string(), "enable JetStream on the bus"),
        Err(_) => Finding::weak(check, "JetStream does not answer", "look at the bus server's log"),
    }
}
