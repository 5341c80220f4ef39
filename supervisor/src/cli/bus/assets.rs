//! `drover bus init` and `drover bus upgrade`.

use std::collections::BTreeMap;
use std::time::Duration;

use drover_actors::bus::assets::Difference;
use drover_actors::bus::upgrade::{Outcome, Wishes, bring_up};
use drover_schemas::size::ByteSize;
use serde::Serialize;

use super::super::Global;
use super::super::exit::CliError;
use super::super::output::{render, table};

/// What is the operator's to choose. What is left out stays as it is, or is the default where it is new.
#[derive(Debug, clap::Args)]
pub struct AssetArgs {
    /// How long events are kept, in hours; 0 for ever.
    #[arg(long, value_name = "HOURS")]
    max_age_hours: Option<u32>,
    /// How much of them is kept, as 10GiB.
    #[arg(long, value_name = "SIZE")]
    max_size: Option<ByteSize>,
    /// Copies of each asset in a cluster.
    #[arg(long, value_name = "COPIES", value_parser = clap::value_parser!(u8).range(1..=5))]
    replicas: Option<u8>,
    /// The server's window for duplicates of events, in milliseconds.
    #[arg(long, value_name = "MS")]
    duplicate_window_ms: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Told {
    asset: String,
    outcome: &'static str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    settings: BTreeMap<&'static str, String>,
}

pub(super) async fn run(args: &AssetArgs, change: bool, global: &Global) -> Result<(), CliError> {
    let client = global.connect.connect().await?;
    let js = async_nats::jetstream::new(client.nats().clone());
    let wishes = Wishes {
        events_max_age: args.max_age_hours.map(|hours| Duration::from_secs(u64::from(hours) * 3_600)),
        events_max_bytes: args.max_size.map(|size| i64::try_from(size.0).unwrap_or(i64::MAX)),
        replicas: args.replicas.map(usize::from),
        duplicate_window: args.duplicate_window_ms.map(Duration::from_millis),
    };
    let done = bring_up(&js, &global.connect.root, &wishes, change).await.map_err(CliError::Assets)?;
    let told: Vec<Told> = done.into_iter().map(|(asset, outcome)| tell(asset, outcome)).collect();
    global.output.print(&told, |told| describe(told))
}

fn tell(asset: String, outcome: Outcome) -> Told {
    let (outcome, differences) = match outcome {
        Outcome::Created => ("created", Vec::new()),
        Outcome::Unchanged => ("unchanged", Vec::new()),
        Outcome::Changed(differences) => ("changed", differences),
        Outcome::Differs(differences) => ("differs", differences),
    };
    let setting = |d: Difference| (d.setting, format!("{} -> {}", d.found, d.expected));
    Told { asset, outcome, settings: differences.into_iter().map(setting).collect() }
}

fn describe(told: &[Told]) -> String {
    let mut rows = table(&[]);
    for Told { asset, outcome, settings } in told {
        rows.add_row([asset.as_str(), outcome]);
        for (setting, change) in settings {
            rows.add_row(["", &format!("{setting}: {change}")]);
        }
    }
    let mut text = render(&mut rows);
    if told.iter().any(|one| one.outcome == "differs") {
        text.push_str("\nnothing of these was changed: `drover bus upgrade` does");
    }
    if told.iter().any(|one| one.outcome == "changed" && one.settings.contains_key("compression")) {
        text.push_str(
            "\nwhat is stored already stays compressed until it is as old as events are kept; where the server cannot \
             read it, `nats stream purge` is the only way, and loses it",
        );
    }
    text
}
