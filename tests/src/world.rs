//! One test's world: a namespace, a folder, a nats-server, a daemon and its guests, and their end.

use std::fs::{self, File};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use drover_schemas::VmId;
use drover_schemas::id::InstallationId;
use futures_util::FutureExt as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::client::Bus;
use crate::leak;
use crate::netns::NetNs;
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
}

impl Default for Options {
    fn default() -> Self {
        Self {
            guest: "process",
            duplicate_window_ms: None,
            budget: Duration::from_secs(180),
            started: true,
            misbehaves: false,
        }
    }
}

impl Options {
    /// For a test that starts the bus and the daemon itself.
    #[must_use]
    pub fn down() -> Self {
        Self { started: false, ..Self::default() }
    }

    /// For a test that calls [`World::misbehave`].
    #[must_use]
    pub fn misbehaving() -> Self {
        Self { misbehaves: true, ..Self::default() }
    }
}

/// A host with its bus.
#[derive(Debug)]
pub struct World {
    /// A client of the bus.
    pub bus: Bus,
    /// More of the server's configuration, from its next start on: who may connect and how.
    pub nats_rules: String,
    /// A command before the daemon's own, which ends in `exec "$@"` or does so itself.
    pub launcher: Vec<String>,
    options: Options,
    programs: Programs,
    run: PathBuf,
    state: PathBuf,
    /// All that there were, the present one last.
    installations: Vec<InstallationId>,
    nats: Option<Child>,
    daemon: Option<Child>,
    folder: TempDir,
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
    let thread = std::thread::spawn(move || {
        let _namespace = NetNs::enter();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        // Bodies may spawn tasks that stay on this thread, for only it is in the namespace.
        tokio::task::LocalSet::new().block_on(&runtime, live(options, programs, body))
    });
    if let Err(panic) = thread.join().expect("the world's end does not fail") {
        std::panic::resume_unwind(panic);
    }
}

async fn live<F>(options: Options, programs: Programs, body: F) -> std::thread::Result<()>
where
    F: AsyncFnOnce(&mut World),
{
    let mut world = World::new(options, programs).await;
    let budget = world.options.budget * patience_factor();
    let lived = AssertUnwindSafe(async {
        if world.options.started {
            world.start_nats().await;
            world.start();
            world.ready().await;
        }
        let done = tokio::time::timeout(budget, Box::pin(body(&mut world))).await;
        assert!(done.is_ok(), "the test is not over within {budget:?}");
    });
    let result = lived.catch_unwind().await;
    if result.is_err() {
        let told = world.told();
        let lines: Vec<&str> = told.lines().collect();
        println!("the daemon told:\n{}", lines[lines.len().saturating_sub(60)..].join("\n"));
        let listed = world.drover(&["vm", "ls", "-o", "json", "--deadline", "5"]).await;
        println!("its VMs:\n{}", String::from_utf8_lossy(&listed.stdout));
        world.print_evidence();
        if let Some(kept) = std::env::var_os("DROVER_KEEP_LOG") {
            fs::copy(world.path("host.log"), kept).expect("the log is kept");
        }
    }
    world.end().await;
    result
}

impl World {
    async fn new(options: Options, programs: Programs) -> Self {
        // Short: the path of a socket has 108 bytes at most.
        let folder = tempfile::Builder::new().prefix("dv").tempdir().expect("a folder");
        let (run, state) = (folder.path().join("r"), folder.path().join("s"));
        fs::write(folder.path().join("misbehave"), "").expect("write");
        let world = Self {
            bus: Bus::connect(URL).await,
            nats_rules: String::new(),
            launcher: Vec::new(),
            options,
            programs,
            run,
            state,
            installations: Vec::new(),
            nats: None,
            daemon: None,
            folder,
        };
        world.configure(&world.config());
        world
    }

    /// The configuration of the host, to be changed and given to [`World::configure`].
    #[must_use]
    pub fn config(&self) -> Value {
        let overhead = if self.options.guest == "qemu" && self.emulated() { "400MiB" } else { "64MiB" };
        let mut config = json!({
            "host": "h1",
            "state_dir": self.state,
            "run_dir": self.run,
            "images_dir": self.programs.images,
            "bus": {"urls": [URL]},
            "networks": [{"name": "default", "subnet": "10.78.0.0/20"}],
            "vmm": {
                "path": self.vmm(),
                "overhead": overhead,
                "ready_timeout_ms": 10_000 * patience_factor(),
            },
            "capacity": {"cpu_ratio": 100.0},
        });
        if patience_factor() > 1 {
            config["templates_dir"] = json!(self.patient_templates());
        }
        if let Some(ms) = self.options.duplicate_window_ms {
            config["events"] = json!({"duplicate_window_ms": ms});
        }
        config
    }

    /// The templates as they are shipped, for guests that take their time to boot.
    fn patient_templates(&self) -> PathBuf {
        let folder = self.path("templates");
        fs::create_dir_all(&folder).expect("a folder");
        for (name, text) in [
            ("linux-default.yaml", include_str!("../../config/templates/linux-default.yaml")),
            ("linux-microvm.yaml", include_str!("../../config/templates/linux-microvm.yaml")),
        ] {
            let text = text.replace("ready_timeout_ms: 60000", "ready_timeout_ms: 300000");
            // Each byte of the console leaves the guest twice over there.
            let text = text.replace("panic=-1\n", "panic=-1 quiet mitigations=off\n");
            fs::write(folder.join(name), text).expect("write");
        }
        folder
    }

    /// Writes the configuration; JSON is YAML as well.
    ///
    /// # Panics
    /// It cannot be written.
    pub fn configure(&self, config: &Value) {
        fs::write(self.path("host.yaml"), config.to_string()).expect("write");
    }

    /// A file of the world's folder.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A program of drover.
    #[must_use]
    pub fn bin(&self, name: &str) -> PathBuf {
        self.programs.bins.join(name)
    }

    /// The VMM's program.
    #[must_use]
    pub fn vmm(&self) -> PathBuf {
        self.programs.vmm.clone().unwrap_or_else(|| self.bin("softvmm"))
    }

    /// Guests run in software emulation.
    #[must_use]
    pub fn emulated(&self) -> bool {
        self.programs.vmm.is_none()
    }

    /// Where run directories are.
    #[must_use]
    pub fn run_dir(&self) -> &Path {
        &self.run
    }

    /// The run directory of a VM.
    #[must_use]
    pub fn vm_dir(&self, vm_id: VmId) -> PathBuf {
        self.run.join(vm_id.to_string().to_ascii_lowercase())
    }

    /// Where the journal and disks are.
    #[must_use]
    pub fn state_dir(&self) -> &Path {
        &self.state
    }

    /// The installation, once the host was ready.
    #[must_use]
    pub fn installation(&self) -> Option<InstallationId> {
        self.installations.last().copied()
    }

    /// Process id of the daemon, while it runs.
    #[must_use]
    pub fn daemon_id(&self) -> Option<u32> {
        self.daemon.as_ref().and_then(Child::id)
    }

    /// How many descriptors of a kind, such as `inotify`, the daemon has open.
    #[must_use]
    pub fn descriptors(&self, kind: &str) -> usize {
        let Some(pid) = self.daemon_id() else { return 0 };
        let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let targets = open.filter_map(|entry| fs::read_link(entry.path()).ok());
        targets.filter(|target| target.to_string_lossy().ends_with(kind)).count()
    }

    /// Tells every VMM to misbehave from now on; see `softvmm --help`.
    ///
    /// # Panics
    /// The file cannot be written.
    pub fn misbehave(&self, faults: &str) {
        fs::write(self.path("misbehave"), faults).expect("write");
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
        let mut command = Command::new("nats-server");
        command.arg("-c").arg(self.path("nats.conf"));
        self.nats = Some(self.spawn(&mut command, "nats.log"));
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

    /// Starts the daemon.
    ///
    /// # Panics
    /// It cannot be started.
    pub fn start(&mut self) {
        let mut command = self.host_command();
        self.daemon = Some(self.spawn(&mut command, "host.log"));
    }

    fn spawn(&self, command: &mut Command, log: &str) -> Child {
        let log = File::options().create(true).append(true).open(self.path(log)).expect("a log");
        let both = log.try_clone().expect("a log");
        command.stdin(Stdio::null()).stdout(both).stderr(log).kill_on_drop(true).spawn().expect("start")
    }

    fn host_command(&self) -> Command {
        let drover = self.bin("drover");
        let mut command = match self.launcher.split_first() {
            Some((launcher, args)) => {
                let mut command = Command::new(launcher);
                command.args(args).arg(drover);
                command
            }
            None => Command::new(drover),
        };
        command.args(["host", "run", "--config"]).arg(self.path("host.yaml"));
        command
            .env("SOFTVMM_GUEST", self.options.guest)
            .env("SOFTVMM_AGENT", &self.programs.agent)
            .env("SOFTVMM_MISBEHAVE_FILE", self.path("misbehave"));
        command
    }

    /// Runs a daemon to its end, for one that cannot start.
    ///
    /// # Panics
    /// It does not end.
    pub async fn host_fails(&self) -> Output {
        let output = self.host_command().kill_on_drop(true).output();
        let output = tokio::time::timeout(Duration::from_secs(20), output).await;
        output.expect("the daemon ends").expect("run")
    }

    /// Runs the command line.
    ///
    /// # Panics
    /// It does not end.
    pub async fn drover(&self, args: &[&str]) -> Output {
        let mut command = Command::new(self.bin("drover"));
        command.args(args).env("DROVER_NATS_URL", URL).stdin(Stdio::null()).kill_on_drop(true);
        let output = tokio::time::timeout(Duration::from_secs(120), command.output()).await;
        output.expect("the command ends").expect("run")
    }

    /// Kills the daemon as a crash would.
    ///
    /// # Panics
    /// It does not run.
    pub async fn kill(&mut self) {
        let mut daemon = self.daemon.take().expect("the daemon runs");
        daemon.kill().await.expect("kill");
    }

    /// Stops the daemon in order.
    ///
    /// # Panics
    /// It does not end well.
    pub async fn stop_host(&mut self) {
        let mut daemon = self.daemon.take().expect("the daemon runs");
        signal(daemon.id(), Signal::SIGTERM);
        let status = daemon.wait().await.expect("wait");
        assert!(status.success(), "{status}");
    }

    /// Asks the daemon to stop, and does not wait for it.
    ///
    /// # Panics
    /// It does not run.
    pub fn signal_host(&self) {
        signal(self.daemon_id(), Signal::SIGTERM);
    }

    /// Waits until the host answers everything.
    ///
    /// # Panics
    /// It does not.
    pub async fn ready(&mut self) {
        let bus = &self.bus;
        let host =
            until("the host is ready", async || bus.host().await.ok().filter(|h| h.phase == "ready")).await;
        self.installations.retain(|known| *known != host.installation);
        self.installations.push(host.installation);
    }

    /// What the daemon has logged.
    #[must_use]
    pub fn told(&self) -> String {
        fs::read(self.path("host.log")).map(|t| String::from_utf8_lossy(&t).into_owned()).unwrap_or_default()
    }

    /// Prints the ends of what the holders kept of each VM, before it goes.
    fn print_evidence(&self) {
        for dir in fs::read_dir(&self.run).into_iter().flatten().flatten() {
            for name in ["console.log", "stderr.log", "events.log"] {
                let Ok(bytes) = fs::read(dir.path().join(name)) else { continue };
                let end = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(600)..]).into_owned();
                println!("-- {}/{name}:\n{end}", dir.file_name().display());
            }
        }
    }

    /// Ids of the VMMs of a VM: there must never be two.
    #[must_use]
    pub fn vmms(&self, vm_id: VmId) -> Vec<i32> {
        let program = format!("{} ", self.vmm().display());
        let all = leak::processes(&self.run, vm_id).into_iter();
        all.filter(|(_, command)| command.starts_with(&program) && command.contains("--api-socket"))
            .map(|(pid, _)| pid)
            .collect()
    }

    /// Kills the VMM of a VM.
    ///
    /// # Panics
    /// There is not exactly one.
    pub fn kill_vmm(&self, vm_id: VmId) {
        let vmms = self.vmms(vm_id);
        assert_eq!(vmms.len(), 1, "VMMs of {vm_id}");
        kill(Pid::from_raw(vmms[0]), Signal::SIGKILL).expect("kill");
    }

    /// Ends what was started, by id, and takes the folder's and the kernel's things away.
    async fn end(mut self) {
        for child in [self.daemon.take(), self.nats.take()].iter_mut().flatten() {
            let _ = child.kill().await;
        }
        let run = self.run.clone();
        until("every process of the run folder has ended", async || {
            let left = leak::all_processes(&run);
            for (pid, _) in &left {
                let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
            }
            left.is_empty().then_some(())
        })
        .await;
        // A process that has ended leaves its cgroup a moment later.
        until("every cgroup of the installation is removed", async || {
            for base in self.installations.iter().copied().flat_map(leak::cgroups) {
                let below = fs::read_dir(&base).into_iter().flatten().flatten();
                for dir in below.filter(|e| e.path().is_dir()) {
                    let _ = fs::remove_dir(dir.path());
                }
                let _ = fs::remove_dir(base);
            }
            self.installations.iter().all(|i| leak::cgroups(*i).is_empty()).then_some(())
        })
        .await;
    }
}

fn signal(id: Option<u32>, signal: Signal) {
    let id = id.and_then(|id| i32::try_from(id).ok()).expect("the process runs");
    kill(Pid::from_raw(id), signal).expect("the process runs");
}
