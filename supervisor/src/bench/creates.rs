//! Rows of starts: one after another, and many at once, beside the same by hand, by turns.

use drover_schemas::Token;
use tokio::time::Instant;

use super::byhand::ByHand;
use super::report::{Goal, Row};
use super::sample::Sample;
use super::vms::Vms;
use crate::client::ClientError;

const BY_HAND: &str =
    "the same VMM by hand, without holder: TAP, firewall, disks, cgroup, configuration, agent";

/// VMs one after another; each is removed before the next.
pub async fn one_by_one(vms: &Vms, hand: &Result<ByHand, String>, count: usize) -> Result<Row, ClientError> {
    let (mut drover, mut bare) = (Sample::default(), Sample::default());
    let mut why = hand.as_ref().err().cloned();
    for _ in 0..count.max(1) {
        let (vm, took) = vms.create(None).await?;
        drover.push(took);
        vms.delete(&vm.name).await?;
        if let (Ok(hand), None) = (hand, &why) {
            match bare.time(hand.start(1)).await {
                Ok(running) => hand.stop(running).await,
                Err(error) => why = Some(drover_actors::chain(&error).to_string()),
            }
        }
    }
    let limit = why.map_or_else(|| Ok(bare.percentiles(1e3)), Err);
    Ok(Row::new("create to agent ready", "ms", drover.percentiles(1e3))
        .against(BY_HAND, limit)
        .goal(Goal::MoreAtMost(15.0)))
}

/// `count` VMs at once, `rounds` times: until the last has answered.
pub async fn at_once(
    vms: &Vms,
    hand: &Result<ByHand, String>,
    count: usize,
    rounds: usize,
) -> Result<Row, ClientError> {
    let (mut drover, mut bare) = (Sample::default(), Sample::default());
    let mut why = hand.as_ref().err().cloned();
    for _ in 0..rounds.max(1) {
        let began = Instant::now();
        let made = futures_util::future::try_join_all((0..count).map(|_| vms.create(None))).await?;
        drover.push(began.elapsed());
        let names: Vec<Token> = made.into_iter().map(|(vm, _)| vm.name).collect();
        vms.delete_many(names).await;
        if let (Ok(hand), None) = (hand, &why) {
            match bare.time(hand.start(count)).await {
                Ok(running) => hand.stop(running).await,
                Err(error) => why = Some(drover_actors::chain(&error).to_string()),
            }
        }
    }
    let limit = why.map_or_else(|| Ok(bare.percentiles(1e3)), Err);
    Ok(Row::new(&format!("{count} creates at once, the last one's agent"), "ms", drover.percentiles(1e3))
        .against("the same number by hand at once, firewall in one transaction", limit)
        .goal(Goal::RatioAtMost(1.2)))
}
