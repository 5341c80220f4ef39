//! Three hosts on a bus of three servers, each in a network namespace of its own behind one switch.
//!
//! Clients are in the test's namespace. Links are cut with [`net::Net`]; servers and daemons are killed and started
//! again one by one.

pub mod net;
pub mod servers;

use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;

use crate::client::Bus;
use crate::netns::apart;
use crate::node::Node;
use crate::observer::Observer;
use crate::programs::Programs;
use crate::wait::until_within;
use crate::world::{Options, fails, seen, within};
use net::{Net, Place};
use servers::Servers;

/// How many hosts and how many servers.
pub const SIZE: usize = 3;
/// The labels that each host has.
pub const LABELS: [&[&str]; SIZE] = [&["left"], &["left", "right"], &["right"]];
/// How long the parts may take to find each other: servers elect leaders for each stream.
const ASSEMBLY: Duration = Duration::from_secs(120);

/// See [the module](self).
#[derive(Debug)]
pub struct Cluster {
    /// The links.
    pub net: Net,
    /// The bus.
    pub servers: Servers,
    /// The hosts, `h1` first.
    pub hosts: Vec<Node>,
    /// A client of each server alone.
    pub buses: Vec<Bus>,
    /// A client of whichever server can be reached.
    pub bus: Bus,
    observer: Observer,
    _folder: TempDir,
}

/// Runs `body` with a cluster of its own, and takes it away.
///
/// # Panics
/// `body` does, or takes too long.
pub fn run<F>(test: &str, options: Options, body: F)
where
    F: AsyncFnOnce(&mut Cluster) + Send + 'static,
{
    let programs = match Programs::find(&options) {
        Ok(programs) => programs,
        Err(reason) => return println!("SKIP {test}: {reason}"),
    };
    apart(async move || {
        let mut cluster = Cluster::make(&options, &programs).await;
        let result = within(options.budget, async {
            cluster.start().await;
            body(&mut cluster).await;
        })
        .await;
        if result.is_err() {
            cluster.servers.print_evidence();
            cluster.hosts.iter().for_each(Node::print_evidence);
        }
        let hosts = seen(&cluster.hosts);
        for host in cluster.hosts {
            host.end().await;
        }
        let held = if options.observed { cluster.observer.end(&hosts) } else { Ok(()) };
        result.and_then(|()| held.map_err(fails))
    });
}

impl Cluster {
    async fn make(options: &Options, programs: &Programs) -> Self {
        // Short: the path of a socket has 108 bytes at most.
        let folder = tempfile::Builder::new().prefix("dv").tempdir().expect("a folder");
        let net = Net::make((0..SIZE).flat_map(|number| [Place::Server(number), Place::Host(number)]));
        let urls: Vec<String> = (0..SIZE).map(Servers::url).collect();
        let (mut hosts, mut buses, observer) = (Vec::new(), Vec::new(), Observer::default());
        for (number, url) in urls.iter().enumerate() {
            let nth = u32::try_from(number).expect("few hosts");
            let mut host = Node::new(nth, folder.path(), options.clone(), programs.clone(), observer.clone());
            host.netns = Some(net.namespace(Place::Host(number)).to_owned());
            host.urls.clone_from(&urls);
            let mut config = host.config();
            config["events"] = json!({"replicas": SIZE});
            config["labels"] =
                LABELS[number].iter().map(|label| ((*label).to_owned(), json!("yes"))).collect();
            // VMMs that start while everything else does not fail for want of a processor.
            config["vmm"]["ready_timeout_ms"] = json!(60_000);
            host.configure(&config);
            hosts.push(host);
            buses.push(Bus::connect(url).await);
        }
        let servers = Servers::make(&net, SIZE);
        Self { net, servers, hosts, buses, bus: Bus::connect_to(&urls).await, observer, _folder: folder }
    }

    async fn start(&mut self) {
        for number in 0..SIZE {
            self.servers.start(number);
        }
        self.servers.listening().await;
        self.hosts.iter_mut().for_each(Node::start);
        self.quiet().await;
    }

    /// Waits until every host answers everything and has told every event.
    ///
    /// # Panics
    /// One does not get there.
    pub async fn quiet(&mut self) {
        for host in &mut self.hosts {
            let bus = &self.bus;
            until_within(ASSEMBLY, &format!("{} is quiet", host.name), async || {
                bus.host_info(&host.name).await.ok().filter(|host| host.phase == "ready" && host.outbox == 0)
            })
            .await;
            host.ready_on(bus).await;
        }
    }

    /// Which server leads a stream, as soon as one does.
    ///
    /// # Panics
    /// None does.
    pub async fn leader(&self, stream: &str) -> usize {
        let js = async_nats::jetstream::new(self.bus.nats.clone());
        until_within(ASSEMBLY, &format!("{stream} has a leader"), async || {
            let found = js.get_stream(stream).await.ok()?;
            self.servers.number(found.cached_info().cluster.as_ref()?.leader.as_deref()?)
        })
        .await
    }
}
