//! `drover vm limit` and `drover vm stats`: how fast a guest may be, and what it sent and received.

use std::str::FromStr;

use drover_schemas::Token;
use drover_schemas::body::guest::Empty;
use drover_schemas::body::spec::NicLimits;
use drover_schemas::body::vm::{LimitRequest, StatsReply};

use super::super::Global;
use super::super::exit::CliError;
use super::super::output::{render, table};
use super::READ_DEADLINE;
use super::change::{self, Conditions};
use crate::client::{CallOptions, Client};

/// Arguments of `limit`.
#[derive(Debug, clap::Args)]
pub struct LimitArgs {
    #[command(flatten)]
    conditions: Conditions,
    /// How fast the guest may send, in bits a second, such as 10M; no limit if left out.
    #[arg(long, value_name = "RATE")]
    send: Option<Rate>,
    /// How fast it may receive.
    #[arg(long, value_name = "RATE")]
    receive: Option<Rate>,
    /// Which of the VM's interfaces.
    #[arg(long, value_name = "N", default_value_t = 0)]
    nic: u32,
}

/// Bits a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate(u64);

impl FromStr for Rate {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = "a rate is in bits a second, such as 500k, 10M or 1G";
        let (number, unit) = match text.strip_suffix(['k', 'M', 'G']) {
            Some(number) => (number, &text[number.len()..]),
            None => (text, ""),
        };
        let unit = match unit {
            "k" => 1_000,
            "M" => 1_000_000,
            "G" => 1_000_000_000,
            _ => 1,
        };
        let bits = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
        bits.map(Self).ok_or(wrong)
    }
}

impl LimitArgs {
    pub(super) const fn name(&self) -> &Token {
        self.conditions.name()
    }
}

pub(super) async fn run(args: &LimitArgs, client: &Client, global: &Global) -> Result<(), CliError> {
    let limits = NicLimits {
        send_bits_per_second: args.send.map(|Rate(bits)| bits),
        receive_bits_per_second: args.receive.map(|Rate(bits)| bits),
    };
    let (if_vm_id, if_revision) = args.conditions.expected();
    let request = LimitRequest { if_vm_id, if_revision, nic: args.nic, limits };
    change::at_once("limit", &args.conditions, &request, client, global).await
}

pub(super) async fn stats(name: &Token, client: &Client, global: &Global) -> Result<(), CliError> {
    let read = CallOptions::read(global.deadline(READ_DEADLINE));
    let stats: StatsReply = client.vm(name, "stats", &Empty {}, read).await?;
    global.output.print(&stats, page)
}

fn page(stats: &StatsReply) -> String {
    let mut shown =
        table(&["INTERFACE", "SENT", "RECEIVED", "NOT TAKEN", "REFUSED", "REFUSED THERE", "TOO FAST"]);
    for nic in &stats.nics {
        shown.add_row([
            format!("{} on {}", nic.tap, nic.network),
            format!("{} B in {}", nic.sent_bytes, nic.sent_packets),
            format!("{} B in {}", nic.received_bytes, nic.received_packets),
            (nic.sent_dropped + nic.received_dropped).to_string(),
            nic.refused_packets.to_string(),
            nic.egress_refused_packets.to_string(),
            (nic.over_send_packets.unwrap_or_default() + nic.over_receive_packets.unwrap_or_default())
                .to_string(),
        ]);
    }
    for interface in &stats.guest {
        let (sent, received) = (interface.sent_bytes, interface.received_bytes);
        let row = [format!("{} in the guest", interface.name), format!("{sent} B"), format!("{received} B")];
        shown.add_row(row);
    }
    let silent = stats.guest_silent.iter().map(|why| format!("\nthe guest was not heard: {why}"));
    render(&mut shown) + &silent.collect::<String>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_in_bits_a_second() {
        for (text, bits) in
            [("500k", 500_000), ("10M", 10_000_000), ("1G", 1_000_000_000), ("123456", 123_456)]
        {
            assert_eq!(text.parse(), Ok(Rate(bits)));
        }
        for wrong in ["", "M", "10 M", "10m", "-1", "1.5M", "99999999999999999999", "18446744073709551615G"] {
            wrong.parse::<Rate>().unwrap_err();
        }
    }
}
