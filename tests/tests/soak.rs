//! The daemon is killed again and again while VMs are made, changed and deleted: at the end model, bus,
//! journal, processes and events agree.
//!
//! `DROVER_SOAK_SECONDS` (20), `DROVER_SOAK_KILLS` and `DROVER_SOAK_SEED` make it longer or another.

use std::time::Duration;

use drover_tests::soak::{self, Plan};
use drover_tests::world::{Options, run};

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

fn soak(test: &'static str, guest: &'static str, plan: Plan) {
    let time = Duration::from_secs(number("DROVER_SOAK_SECONDS").unwrap_or(20));
    let seed = number("DROVER_SOAK_SEED").unwrap_or_else(rand::random);
    let kills = number("DROVER_SOAK_KILLS").unwrap_or(u64::MAX);
    let plan = Plan { seed, time, kills, ..plan };
    let options = Options { guest, budget: time + Duration::from_secs(400), ..Options::default() };
    println!("{test}: seed {seed}, at most {} s", time.as_secs());
    run(test, options, async move |world| {
        let tally = soak::run(world, &plan).await;
        println!("{test}: seed {seed}: {tally:?}");
        assert!(tally.kills > 0 && tally.operations > 0, "{tally:?}");
    });
}

#[test]
fn nothing_is_lost_or_doubled_by_kills_of_the_daemon() {
    let test = "nothing_is_lost_or_doubled_by_kills_of_the_daemon";
    let (names, longest_life) = (3, Duration::from_millis(1_500));
    soak(test, "process", Plan { seed: 0, time: Duration::ZERO, kills: 0, workers: 6, names, longest_life });
}

#[test]
fn nothing_is_lost_or_doubled_with_real_kernels() {
    let (names, longest_life) = (1, Duration::from_secs(6));
    let test = "nothing_is_lost_or_doubled_with_real_kernels";
    soak(test, "qemu", Plan { seed: 0, time: Duration::ZERO, kills: 0, workers: 2, names, longest_life });
}
