//! One test's world: a namespace, a folder, a nats-server, its hosts with their guests, and their end.

use std::fs;
use std::ops::{Deref, DerefMut};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use futures_util::FutureExt as _;
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::client::Bus;
use crate::netns::apart;
use crate::node::{Node, signal, spawn};
use crate::observer::{Observer, goes_without};
use crate::programs::Programs;
use crate::wait::{patience_factor, until};

/// Where the bus of every world is, in its own namespace.
pub const URL: &str = "nats://127.0.0.1:4222";

/// What a world is made of.
#[derive(Debug, Clone)]
pub struct Options {
    /// `process` or `qemu`.
    pub guest: &'static str,
    /// The server's window for duplicates.
    pub duplicate_window_ms: Option<u64>,
    /// How long the whole test may take.
    pub budget: Duration,
    /// Start the bus and the daemon, and wait until they are ready.
    pub started: bool,
    /// The test tells its VMMs to misbehave, which only `softvmm` does.
    pub misbehaves: bool,
    /// How many hosts there are: `h1`, `h2` and so on.
    pub hosts: u32,
    /// All that the hosts say and hear is held against the published contract. A test goes without if what it measures
    /// would be the observer, or if nothing is said.
    pub observed: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            guest: "process",
            duplicate_window_ms: None,
            budget: Duration::from_secs(180),
            started: true,
            misbehaves: false,
            hosts: 1,
            observed: true,
        }
    }
}

impl Options {
    /// For a test that starts the bus and the daemon itself.
    #[must_use]
    pub fn down() -> Self {
        Self { started: false, ..Self::default() }
    }

    /// For a test that calls [`Node::misbehave`].
    #[must_use]
    pub fn misbehaving() -> Self {
        Self { misbehaves: true, ..Self::default() }
    }

    /// For a test with several hosts on one bus.
    #[must_use]
    pub fn fleet(hosts: u32) -> Self {
        Self { hosts, ..Self::default() }
    }
}

/// A bus with its hosts. Most tests have one host, so a world is used as its first one.
#[derive(Debug)]
pub struct World {
    /// A client of the bus.
    pub bus: Bus,
    /// More of the server's configuration, from its next start on: who may connect and how.
    pub nats_rules: String,
    /// The hosts, `h1` first.
    pub hosts: Vec<Node>,
    /// Sees all that they say and hear.
    pub observer: Observer,
    options: Options,
    programs: Programs,
    nats: Option<Child>,
    folder: TempDir,
}

impl Deref for World {
    type Target = Node;

    fn deref(&self) -> &Node {
        &self.hosts[0]
    }
}

impl DerefMut for World {
    fn deref_mut(&mut self) -> &mut Node {
        &mut self.hosts[0]
    }
}

/// Runs `body` in a world of its own, on a thread in a namespace of its own, and takes the world away.
///
/// # Panics
/// `body` does, or takes too long.
pub fn run<F>(test: &str, options: Options, body: F)
where
    F: AsyncFnOnce(&mut World) + Send + 'static,
{
    let programs = match Programs::find(&options) {
        Ok(programs) => programs,
        Err(reason) => return println!("SKIP {test}: {reason}"),
    };
    if !options.observed {
        goes_without(test);
    }
    apart(async move || live(options, programs, body).await);
}

async fn live<F>(options: Options, programs: Programs, body: F) -> std::thread::Result<()>
where
    F: AsyncFnOnce(&mut World),
{
    let mut world = World::new(options, programs).await;
    let budget = world.options.budget;
    let result = within(budget, async {
        if world.options.started {
            world.start_nats().await;
            world.hosts.iter_mut().for_each(Node::start);
            world.ready().await;
        }
        body(&mut world).await;
    })
    .await;
    if result.is_err() {
        let listed = world.drover(&["vm", "ls", "-o", "json", "--deadline", "5"]).await;
        println!("the VMs:\n{}", String::from_utf8_lossy(&listed.stdout));
        world.hosts.iter().for_each(Node::print_evidence);
    }
    let held = world.end().await;
    result.and_then(|()| held.map_err(fails))
}

/// A test fails for this.
pub(crate) fn fails(reason: String) -> Box<dyn std::any::Any + Send> {
    println!("{reason}");
    Box::new(reason)
}

/// Carries out a test's body, which may take so long; catches its panic.
pub(crate) async fn within(budget: Duration, body: impl Future<Output = ()>) -> std::thread::Result<()> {
    let budget = budget * patience_factor();
    let lived = AssertUnwindSafe(async {
        let done = tokio::time::timeout(budget, Box::pin(body)).await;
        assert!(done.is_ok(), "the test is not over within {budget:?}");
    });
    lived.catch_unwind().await
}

impl World {
    async fn new(options: Options, programs: Programs) -> Self {
        // Short: the path of a socket has 108 bytes at most.
        let folder = tempfile::Builder::new().prefix("dv").tempdir().expect("a folder");
        let observer = Observer::default();
        let node =
            |number| Node::new(number, folder.path(), options.clone(), programs.clone(), observer.clone());
        Self {
            bus: Bus::connect(URL).await,
            nats_rules: String::new(),
            hosts: (0..options.hosts.max(1)).map(node).collect(),
            observer,
            options,
            programs,
            nats: None,
            folder,
        }
    }

    /// Adds a host, which is not started yet.
    pub fn add_host(&mut self) -> &mut Node {
        let number = u32::try_from(self.hosts.len()).expect("few hosts");
        let (options, programs, observer) =
            (self.options.clone(), self.programs.clone(), self.observer.clone());
        self.hosts.push(Node::new(number, self.folder.path(), options, programs, observer));
        &mut self.hosts[number as usize]
    }

    /// The host of a name.
    ///
    /// # Panics
    /// There is none.
    pub fn host(&mut self, name: &str) -> &mut Node {
        self.hosts.iter_mut().find(|host| host.name == name).expect("a host of the test")
    }

    /// A file of the world's folder.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts the bus on its own store and waits until it takes connections.
    ///
    /// # Panics
    /// It does not start.
    pub async fn start_nats(&mut self) {
        let config = format!(
            "listen: 127.0.0.1:4222\njetstream {{ store_dir: {:?}, sync_interval: always }}\n{}\n",
            self.path("js"),
            self.nats_rules
        );
        fs::write(self.path("nats.conf"), config).expect("write");
        self.start_nats_as(&self.path("nats.conf")).await;
    }

    /// Starts the bus, and a host with something changed in its configuration, and waits until it answers.
    ///
    /// # Panics
    /// They do not start.
    pub async fn up_with(&mut self, change: impl FnOnce(&mut Value)) {
        self.configure_with(change);
        self.start_nats().await;
        self.start();
        self.ready().await;
    }

    /// Starts the bus with a configuration of the test's own, which listens where the worlds' do.
    ///
    /// # Panics
    /// It does not start.
    pub async fn start_nats_as(&mut self, config: &Path) {
        let mut command = Command::new("nats-server");
        command.arg("-c").arg(config);
        self.nats = Some(spawn(&mut command, &self.path("nats.log")));
        let address = URL.trim_start_matches("nats://");
        until("nats-server", async || tokio::net::TcpStream::connect(address).await.ok()).await;
    }

    /// Stops the bus; what is stored stays.
    ///
    /// # Panics
    /// It does not stop.
    pub async fn stop_nats(&mut self) {
        let mut nats = self.nats.take().expect("the bus runs");
        signal(nats.id(), Signal::SIGTERM);
        nats.wait().await.expect("wait");
    }

    /// Runs the command line.
    ///
    /// # Panics
    /// It does not end.
    pub async fn drover(&self, args: &[&str]) -> Output {
        let output = tokio::time::timeout(Duration::from_secs(120), self.command(args).output()).await;
        output.expect("the command ends").expect("run")
    }

    /// What the command line prints; it succeeds.
    ///
    /// # Panics
    /// It fails, or does not end.
    pub async fn printed(&self, args: &[&str]) -> String {
        let done = self.drover(args).await;
        assert!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).expect("text")
    }

    /// The command line, to be run; it ends with its handle.
    #[must_use]
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.bin("drover"));
        command.args(args).env("DROVER_NATS_URL", URL).stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    /// Waits until every host that was started answers everything.
    ///
    /// # Panics
    /// One does not.
    pub async fn ready(&mut self) {
        for host in self.hosts.iter_mut().filter(|host| host.daemon_id().is_some()) {
            host.ready_on(&self.bus).await;
        }
    }

    /// Ends what was started, by id, and takes the folder's and the kernel's things away; says what the observer had
    /// against what it saw.
    async fn end(mut self) -> Result<(), String> {
        let hosts = seen(&self.hosts);
        for host in self.hosts.drain(..) {
            host.end().await;
        }
        if let Some(nats) = self.nats.as_mut() {
            let _ = nats.kill().await;
        }
        if self.options.observed { self.observer.end(&hosts) } else { Ok(()) }
    }
}

/// The names of those that an observer has seen, unless they went around it.
pub(crate) fn seen(hosts: &[Node]) -> Vec<String> {
    hosts.iter().filter(|host| host.installation().is_some()).map(|host| host.name.clone()).collect()
}
