//! One host of a test: its folders, its configuration and its daemon.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use drover_schemas::VmId;
use drover_schemas::id::InstallationId;
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use crate::client::Bus;
use crate::leak;
use crate::observer::Observer;
use crate::programs::Programs;
use crate::wait::{patience_factor, until};
use crate::world::{Options, URL};

/// A host. Several live side by side: each has folders, users, addresses and an installation of its own.
#[derive(Debug)]
pub struct Node {
    /// Its name on the bus.
    pub name: String,
    /// The servers of its bus; it reaches them over ways of the observer.
    pub urls: Vec<String>,
    /// The network namespace that its daemon is started in, by name; that of the test if left out.
    pub netns: Option<String>,
    /// A command before the daemon's own, which ends in `exec "$@"` or does so itself.
    pub launcher: Vec<String>,
    options: Options,
    programs: Programs,
    observer: Observer,
    folder: PathBuf,
    /// What its files and folders end with; empty for the first host.
    suffix: String,
    number: u32,
    run: PathBuf,
    state: PathBuf,
    /// All that there were, the present one last.
    installations: Vec<InstallationId>,
    daemon: Option<Child>,
}

impl Node {
    /// The `number`th host of a folder, from 0, which is not started yet.
    ///
    /// # Panics
    /// Its files cannot be written.
    #[must_use]
    pub(crate) fn new(
        number: u32,
        folder: &Path,
        options: Options,
        programs: Programs,
        observer: Observer,
    ) -> Self {
        let suffix = if number == 0 { String::new() } else { (number + 1).to_string() };
        let node = Self {
            name: format!("h{}", number + 1),
            urls: vec![URL.to_owned()],
            netns: None,
            launcher: Vec::new(),
            options,
            programs,
            observer,
            folder: folder.to_owned(),
            run: folder.join(format!("r{suffix}")),
            state: folder.join(format!("s{suffix}")),
            suffix,
            number,
            installations: Vec::new(),
            daemon: None,
        };
        fs::write(node.own("misbehave"), "").expect("write");
        node.configure(&node.config());
        node
    }

    /// A file of the host's own.
    fn own(&self, name: &str) -> PathBuf {
        match name.split_once('.') {
            Some((stem, end)) => self.folder.join(format!("{stem}{}.{end}", self.suffix)),
            None => self.folder.join(format!("{name}{}", self.suffix)),
        }
    }

    /// The configuration of the host, to be changed and given to [`Node::configure`].
    #[must_use]
    pub fn config(&self) -> Value {
        let overhead = if self.options.guest == "qemu" && self.emulated() { "400MiB" } else { "64MiB" };
        let mut config = json!({
            "host": self.name,
            "state_dir": self.state,
            "run_dir": self.run,
            "images_dir": self.programs.images,
            "bus": {"urls": self.ways()},
            "networks": [{"name": "default", "subnet": format!("10.{}.0.0/20", 78 + 2 * self.number)}],
            "vmm": {
                "path": self.vmm(),
                "overhead": overhead,
                "ready_timeout_ms": 10_000 * patience_factor(),
            },
            "users_dir": self.folder.join("users"),
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

    /// Where the host connects.
    fn ways(&self) -> Vec<String> {
        let way = |url: &String| self.observer.way(&self.name, self.netns.as_deref(), url);
        if self.options.observed { self.urls.iter().map(way).collect() } else { self.urls.clone() }
    }

    /// The templates as they are shipped, for guests that take their time to boot.
    fn patient_templates(&self) -> PathBuf {
        let folder = self.folder.join("templates");
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
        fs::write(self.own("host.yaml"), config.to_string()).expect("write");
    }

    /// Writes the configuration with something changed.
    ///
    /// # Panics
    /// It cannot be written.
    pub fn configure_with(&self, change: impl FnOnce(&mut Value)) {
        let mut config = self.config();
        change(&mut config);
        self.configure(&config);
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

    /// Where the images are that come with the host.
    #[must_use]
    pub fn images_dir(&self) -> &Path {
        &self.programs.images
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
        fs::write(self.own("misbehave"), faults).expect("write");
    }

    /// Starts the daemon.
    ///
    /// # Panics
    /// It cannot be started.
    pub fn start(&mut self) {
        self.start_with(&[]);
    }

    /// Starts the daemon with more arguments.
    ///
    /// # Panics
    /// It cannot be started.
    pub fn start_with(&mut self, args: &[&str]) {
        let mut command = self.host_command();
        command.args(args);
        self.daemon = Some(spawn(&mut command, &self.own("host.log")));
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
        command.args(["host", "run", "--config"]).arg(self.own("host.yaml"));
        command
            .env("SOFTVMM_GUEST", self.options.guest)
            .env("SOFTVMM_AGENT", &self.programs.agent)
            .env("SOFTVMM_MISBEHAVE_FILE", self.own("misbehave"));
        if let Some(name) = &self.netns {
            let file = File::open(format!("/run/netns/{name}")).expect("the namespace is there");
            // SAFETY: `setns` is a bare system call; nothing is allocated and no lock is taken.
            unsafe {
                command
                    .pre_exec(move || setns(&file, CloneFlags::CLONE_NEWNET).map_err(std::io::Error::from));
            }
        }
        command
    }

    /// Another agent for the guests of processes that are booted from the daemon's next start on.
    pub fn has_agent(&mut self, program: PathBuf) {
        self.programs.agent = program;
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

    /// Kills the daemon as a crash would.
    ///
    /// # Panics
    /// It does not run.
    pub async fn kill(&mut self) {
        let mut daemon = self.daemon.take().expect("the daemon runs");
        daemon.kill().await.expect("kill");
        // As the kernel closes them: nothing is delivered to it any more.
        until("its connections end", async || (self.observer.connections(&self.name) == 0).then_some(()))
            .await;
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

    /// Waits until the daemon has ended by itself.
    ///
    /// # Panics
    /// It does not, or ends well.
    pub async fn gives_up(&mut self) {
        let mut daemon = self.daemon.take().expect("the daemon runs");
        let ended = tokio::time::timeout(Duration::from_secs(60) * patience_factor(), daemon.wait()).await;
        let status = ended.expect("the daemon ends").expect("wait");
        assert!(!status.success(), "{status}");
    }

    /// Asks the daemon to stop, and does not wait for it.
    ///
    /// # Panics
    /// It does not run.
    pub fn signal_host(&self) {
        signal(self.daemon_id(), Signal::SIGTERM);
    }

    /// The daemon does nothing any more, and is there all the same, until [`Node::thaw`].
    ///
    /// # Panics
    /// It does not run.
    pub fn freeze(&self) {
        signal(self.daemon_id(), Signal::SIGSTOP);
    }

    /// Ends [`Node::freeze`].
    ///
    /// # Panics
    /// It does not run.
    pub fn thaw(&self) {
        signal(self.daemon_id(), Signal::SIGCONT);
    }

    /// Waits until the host answers everything.
    ///
    /// # Panics
    /// It does not.
    pub async fn ready_on(&mut self, bus: &Bus) {
        let what = format!("{} is ready", self.name);
        let host =
            until(&what, async || bus.host_info(&self.name).await.ok().filter(|h| h.phase == "ready")).await;
        self.installations.retain(|known| *known != host.installation);
        self.installations.push(host.installation);
    }

    /// What the daemon has logged.
    #[must_use]
    pub fn told(&self) -> String {
        let log = fs::read(self.own("host.log"));
        log.map(|t| String::from_utf8_lossy(&t).into_owned()).unwrap_or_default()
    }

    /// Prints the end of the log, and of what the holders kept of each VM, before they go.
    pub(crate) fn print_evidence(&self) {
        let told = self.told();
        let lines: Vec<&str> = told.lines().collect();
        println!("the daemon of {} told:\n{}", self.name, lines[lines.len().saturating_sub(60)..].join("\n"));
        for dir in fs::read_dir(&self.run).into_iter().flatten().flatten() {
            for name in ["console.log", "stderr.log", "events.log"] {
                let Ok(bytes) = fs::read(dir.path().join(name)) else { continue };
                let end = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(600)..]).into_owned();
                println!("-- {}/{name}:\n{end}", dir.file_name().display());
            }
        }
        if let Some(kept) = std::env::var_os("DROVER_KEEP_LOG") {
            let kept = PathBuf::from(kept).with_added_extension(&self.name);
            fs::copy(self.own("host.log"), kept).expect("the log is kept");
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

    /// Ends what was started, by id, and takes the kernel's things away.
    pub(crate) async fn end(mut self) {
        if let Some(daemon) = self.daemon.as_mut() {
            let _ = daemon.kill().await;
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

/// Starts a program whose output goes to a log.
pub(crate) fn spawn(command: &mut Command, log: &Path) -> Child {
    let log = File::options().create(true).append(true).open(log).expect("a log");
    let both = log.try_clone().expect("a log");
    command.stdin(Stdio::null()).stdout(both).stderr(log).kill_on_drop(true).spawn().expect("start")
}

/// Signals a program that runs.
pub(crate) fn signal(id: Option<u32>, signal: Signal) {
    let id = id.and_then(|id| i32::try_from(id).ok()).expect("the process runs");
    kill(Pid::from_raw(id), signal).expect("the process runs");
}
