//! Cuts links, kills servers and daemons, and mends all of it again.

use std::collections::BTreeSet;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{Rng as _, SeedableRng as _};
use tokio::time::Instant;

use super::Tally;
use crate::cluster::net::Place;
use crate::cluster::{Cluster, SIZE};
use crate::wait::pass;

/// How many things are broken at once.
const AT_ONCE: usize = 2;

/// What can be broken.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// A server is killed.
    Server,
    /// A server is cut off from the other two.
    Split,
    /// A daemon is killed.
    Daemon,
    /// A daemon stands still, and then goes on as if no time had passed.
    Frozen,
    /// A host is cut off from every server.
    Alone,
    /// Clients are cut off from a server.
    Client,
    /// A host is cut off from a server.
    Link,
}

/// In some order, and then in another.
const ROUND: [Kind; 9] = [
    Kind::Server,
    Kind::Split,
    Kind::Daemon,
    Kind::Daemon,
    Kind::Frozen,
    Kind::Alone,
    Kind::Alone,
    Kind::Client,
    Kind::Link,
];

/// Something that is broken until it is mended.
#[derive(Debug)]
enum Fault {
    /// Frames from the first to the second of each pair are lost.
    Cut(BTreeSet<(Place, Place)>),
    /// A server is dead.
    Server(usize),
    /// A daemon is dead.
    Daemon(usize),
    /// A daemon is stopped by a signal.
    Frozen(usize),
}

/// See [the module](self).
#[derive(Debug)]
pub(super) struct Faults {
    random: StdRng,
    round: Vec<Kind>,
    broken: Vec<Fault>,
    pub tally: Tally,
}

impl Faults {
    pub(super) fn new(seed: u64) -> Self {
        let random = StdRng::seed_from_u64(seed ^ 0x6375_7473);
        Self { random, round: Vec::new(), broken: Vec::new(), tally: Tally::default() }
    }

    /// Breaks and mends until the time is over or a client has failed; leaves everything whole.
    pub(super) async fn make(&mut self, cluster: &mut Cluster, until: Instant, failed: impl Fn() -> bool) {
        while Instant::now() < until && !failed() {
            pass(Duration::from_millis(self.random.random_range(100..1_200))).await;
            let mends = !self.broken.is_empty() && self.random.random_bool(0.5);
            if mends || self.broken.len() == AT_ONCE {
                let at = self.random.random_range(0..self.broken.len());
                self.mend(cluster, at);
            } else {
                self.break_one(cluster).await;
            }
        }
        while !self.broken.is_empty() {
            self.mend(cluster, 0);
        }
    }

    async fn break_one(&mut self, cluster: &mut Cluster) {
        let fault = self.choose();
        match &fault {
            Fault::Cut(_) => self.tally.cuts += 1,
            Fault::Server(number) => {
                cluster.servers.kill(*number).await;
                self.tally.servers += 1;
            }
            Fault::Daemon(number) => {
                cluster.hosts[*number].kill().await;
                self.tally.daemons += 1;
            }
            Fault::Frozen(number) => {
                cluster.hosts[*number].freeze();
                self.tally.frozen += 1;
            }
        }
        self.broken.push(fault);
        self.cut(cluster);
    }

    fn mend(&mut self, cluster: &mut Cluster, at: usize) {
        match self.broken.swap_remove(at) {
            Fault::Cut(_) => {}
            Fault::Server(number) => cluster.servers.start(number),
            Fault::Daemon(number) => cluster.hosts[number].start(),
            Fault::Frozen(number) => cluster.hosts[number].thaw(),
        }
        self.cut(cluster);
    }

    fn cut(&self, cluster: &Cluster) {
        let cuts = self.broken.iter().filter_map(|fault| match fault {
            Fault::Cut(pairs) => Some(pairs),
            _ => None,
        });
        cluster.net.cut_only(&cuts.flatten().copied().collect());
    }

    /// The next kind of the round that is possible beside what is broken; every kind has its turn.
    fn choose(&mut self) -> Fault {
        let next = loop {
            match self.round.iter().position(|kind| self.is_possible(*kind)) {
                Some(at) => break self.round.remove(at),
                None => {
                    let mut round = ROUND;
                    round.shuffle(&mut self.random);
                    self.round.extend(round);
                }
            }
        };
        let one = self.random.random_range(0..SIZE);
        let servers = || (0..SIZE).map(Place::Server);
        match next {
            Kind::Server => Fault::Server(one),
            Kind::Split => self.part([Place::Server(one)], servers().filter(|s| *s != Place::Server(one))),
            Kind::Daemon => Fault::Daemon(one),
            Kind::Frozen => Fault::Frozen(one),
            Kind::Alone => self.part([Place::Host(one)], servers()),
            Kind::Client => self.part([Place::Client], [Place::Server(one)]),
            Kind::Link => {
                let other = self.random.random_range(0..SIZE);
                self.part([Place::Host(one)], [Place::Server(other)])
            }
        }
    }

    fn is_possible(&self, kind: Kind) -> bool {
        match kind {
            // Without two of three servers nothing is stored, so one at a time is in trouble.
            Kind::Server | Kind::Split => !self.broken.iter().any(|fault| match fault {
                Fault::Server(_) => true,
                Fault::Cut(pairs) => pairs.iter().any(|(a, b)| is_server(*a) && is_server(*b)),
                Fault::Daemon(_) | Fault::Frozen(_) => false,
            }),
            Kind::Daemon | Kind::Frozen => {
                !self.broken.iter().any(|fault| matches!(fault, Fault::Daemon(_) | Fault::Frozen(_)))
            }
            Kind::Alone | Kind::Client | Kind::Link => true,
        }
    }

    /// A cut between each of the one and each of the others, in one direction or both.
    fn part(
        &mut self,
        these: impl IntoIterator<Item = Place>,
        those: impl IntoIterator<Item = Place>,
    ) -> Fault {
        let those: Vec<Place> = those.into_iter().collect();
        let (mut there, mut back) = (BTreeSet::new(), BTreeSet::new());
        for this in these {
            for that in &those {
                there.insert((this, *that));
                back.insert((*that, this));
            }
        }
        match self.random.random_range(0..4) {
            0 => Fault::Cut(there),
            1 => Fault::Cut(back),
            _ => Fault::Cut(&there | &back),
        }
    }
}

const fn is_server(node: Place) -> bool {
    matches!(node, Place::Server(_))
}
