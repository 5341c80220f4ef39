//! The holder and the launch of a VMM, with real processes and fake VMMs.

#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests are tests too

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use drover_actors::hypervisor::config::{BootPaths, VmConfig, VmmInput, vm_config};
use drover_actors::hypervisor::events::{EventKind, EventTail};
use drover_actors::hypervisor::notify::NotifySocket;
use drover_actors::hypervisor::process::{
    AdoptError, LaunchError, LaunchRecord, LaunchSpec, VmmProcess, adopt, destroy, launch,
};
use drover_actors::hypervisor::record::{Confinement, RING_HALF, VERSION, VisiblePath, file};
use drover_actors::hypervisor::run_dir::{RunDir, RunRoot};
use drover_actors::hypervisor::stop::{StopPlan, StopStep, stop_ladder};
use drover_actors::hypervisor::{cgroup::VmCgroup, pidfd, ring};
use drover_schemas::id::{InstallationId, VmId};
use drover_schemas::token::Token;
use rustix::process::Signal;

const HOLD: &str = env!("CARGO_BIN_EXE_drover-hold");
const DEADLINE: Duration = Duration::from_secs(20);

/// A run root of its own; whatever still runs in it ends with the test.
struct Host {
    temp: tempfile::TempDir,
    root: RunRoot,
    dir: RunDir,
    installation: InstallationId,
}

impl Host {
    fn new() -> Self {
        let temp = tempfile::Builder::new().prefix("dh").tempdir().unwrap();
        let root = RunRoot::new(temp.path()).unwrap();
        let dir = root.vm(VmId::generate());
        dir.create(None).unwrap();
        Self { temp, root, dir, installation: InstallationId::generate() }
    }

    fn script(&self, text: &str) -> PathBuf {
        let path = self.temp.path().join("vmm");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn fake(&self) -> PathBuf {
        self.script(include_str!("holder/fake_vmm.py"))
    }

    fn record(&self) -> LaunchRecord {
        LaunchRecord {
            version: VERSION,
            drover: "0.1.0".into(),
            vmm: "cloud-hypervisor v53.0.0".into(),
            installation: self.installation,
            vm_id: self.dir.vm_id(),
            namespace: Token::new("default").unwrap(),
            name: Token::new("web").unwrap(),
            incarnation: 1,
            uid: 0,
            confinement: None,
            cgroup: VmCgroup::default(),
            argv: vec![],
            env_names: vec![],
            import: serde_json::json!({"spec": "what the owner wants back"}),
        }
    }

    fn spec(&self, vmm: &Path, extra: &[&str]) -> LaunchSpec {
        LaunchSpec {
            hold_bin: HOLD.into(),
            vmm_bin: vmm.to_owned(),
            run_dir: self.dir.clone(),
            record: self.record(),
            extra_args: extra.iter().map(|&arg| arg.to_owned()).collect(),
            ready_within: DEADLINE,
        }
    }

    async fn start(&self, manners: &[&str]) -> VmmProcess {
        launch(&self.spec(&self.fake(), manners)).await.unwrap_or_else(|error| {
            panic!("{}: {}", drover_actors::chain(&error), self.dir.stderr_tail(4096))
        })
    }

    /// Starts a VM up to a booted guest.
    async fn boot(&self, manners: &[&str]) -> VmmProcess {
        let process = self.start(manners).await;
        let api = process.api();
        api.create(&self.config()).await.unwrap();
        api.boot().await.unwrap();
        process
    }

    fn config(&self) -> VmConfig {
        let spec = serde_json::from_value(serde_json::json!({
            "template": "t", "os": "linux", "cpus": 1, "memory_bytes": 64 << 20,
            "boot": {"cmdline": "x"}, "disks": [], "nics": [],
            "restart": {}, "agent": {}, "labels": {},
        }))
        .unwrap();
        let paths = BootPaths { kernel: Some("/k".into()), ..BootPaths::default() };
        let (nics, cmdline) = (vec![], String::new());
        vm_config(&VmmInput { spec: &spec, paths, run_dir: &self.dir, nics, cmdline, landlock: false })
    }

    fn console(&self) -> String {
        self.dir.console_tail(4096)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let Ok(Some(pids)) = self.dir.pid_record() else { return };
        for (pid, starttime) in [(pids.pid, pids.starttime), (pids.holder_pid, pids.holder_starttime)] {
            if pidfd::starttime(pid) == Some(starttime) {
                let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            }
        }
    }
}

async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let wait = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(DEADLINE, wait).await.is_ok(), "never: {what}");
}

fn is_gone(pid: u32) -> bool {
    pidfd::starttime(pid).is_none()
}

#[tokio::test]
async fn a_vmm_that_dies_early_is_seen_at_once_with_its_words() {
    let host = Host::new();
    let vmm = host.script("#!/bin/sh\necho 'no hypervisor here' >&2\nexit 3\n");
    let began = std::time::Instant::now();
    match launch(&host.spec(&vmm, &[])).await {
        Err(LaunchError::Died { exit, stderr_tail }) => {
            assert_eq!((exit.code, exit.signal), (Some(3), None));
            assert!(stderr_tail.contains("no hypervisor here"), "{stderr_tail}");
        }
        other => panic!("{other:?}"),
    }
    assert!(began.elapsed() < DEADLINE, "it waited for the socket");
    assert!(!host.dir.is_held().unwrap());
}

#[tokio::test]
async fn a_program_that_cannot_be_executed_is_told_by_step_and_reason() {
    let host = Host::new();
    match launch(&host.spec(Path::new("/nonexistent/vmm"), &[])).await {
        Err(LaunchError::SetUp(error)) => {
            assert_eq!((error.step.as_str(), error.errno), ("execute /nonexistent/vmm", libc::ENOENT));
        }
        other => panic!("{other:?}"),
    }
    let exit = host.dir.exit_record().unwrap().unwrap();
    assert!(exit.spawn_error.is_some());
    assert!(matches!(
        adopt(&host.dir, host.installation).await,
        Err(AdoptError::NothingThere { exit: Some(_), .. })
    ));
}

#[tokio::test]
async fn a_cgroup_that_is_not_there_fails_the_start_before_the_vmm_runs() {
    let host = Host::new();
    let mut spec = host.spec(&host.fake(), &[]);
    spec.record.cgroup.dirs = vec!["/nonexistent/cgroup".into()];
    match launch(&spec).await {
        Err(LaunchError::SetUp(error)) => assert!(error.step.contains("/nonexistent/cgroup"), "{error:?}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(host.dir.pid_record().unwrap(), None);
}

#[tokio::test]
async fn a_vmm_that_never_answers_is_killed() {
    let host = Host::new();
    let vmm = host.script("#!/bin/sh\necho waiting >&2\nexec sleep 1000\n");
    let mut spec = host.spec(&vmm, &[]);
    spec.ready_within = Duration::from_millis(300);
    match launch(&spec).await {
        Err(LaunchError::NotReady { stderr_tail, last, .. }) => {
            assert!(stderr_tail.contains("waiting") && last.is_connect(), "{stderr_tail}");
        }
        other => panic!("{other:?}"),
    }
    assert!(is_gone(host.dir.pid_record().unwrap().unwrap().pid));
    assert_eq!(host.dir.exit_record().unwrap().unwrap().signal, Some(libc::SIGKILL));
}

#[tokio::test]
async fn the_vmm_sees_its_marks_and_nothing_else_of_the_daemons_environment() {
    let host = Host::new();
    let process = host.start(&[]).await;
    assert!(pidfd::has_env(process.pid(), "DROVER_VM_ID", &host.dir.vm_id().to_string()));
    assert!(!pidfd::has_env(process.pid(), "HOME", &std::env::var("HOME").unwrap_or_default()));
    let record = host.dir.launch_record().unwrap().unwrap();
    assert_eq!(record.import, host.record().import);
    assert!(record.argv.contains(&"--no-shutdown".to_owned()), "{:?}", record.argv);
    assert!(record.env_names.contains(&"DROVER_INSTALLATION".to_owned()));
}

#[tokio::test]
async fn console_and_events_are_kept_and_the_daemon_is_told() {
    let host = Host::new();
    let notices = NotifySocket::bind(&host.root).unwrap();
    let process = host.boot(&[]).await;
    let told = tokio::time::timeout(DEADLINE, notices.recv()).await.unwrap().unwrap();
    assert_eq!(told, host.dir.vm_id());
    let mut tail = EventTail::at(process.record().events_offset);
    let mut kinds = Vec::new();
    eventually("the event of the boot", || {
        kinds.extend(tail.poll(&host.dir).unwrap().iter().map(|event| event.kind()));
        kinds.contains(&EventKind::Booted)
    })
    .await;
    eventually("output of the guest", || host.console().contains("guest is up")).await;
    std::io::Write::write_all(&mut host.dir.open_console_in().unwrap(), b"knock\n").unwrap();
    eventually("an echo of the input", || host.console().contains("echo knock")).await;
}

#[tokio::test]
async fn a_flood_on_the_console_stays_within_its_cap_and_keeps_its_offsets() {
    let host = Host::new();
    let _process = host.boot(&["--fake", "flood"]).await;
    let all = "guest is up\n".len() as u64 + 80_000 * 20;
    eventually("the whole flood", || ring::end(&host.dir, file::CONSOLE).unwrap() >= all).await;
    for name in ["console.log", "console.log.1"] {
        assert!(std::fs::metadata(host.dir.file(name)).unwrap().len() <= RING_HALF + 64, "{name}");
    }
    // Line n is at a known offset for as long as it is kept.
    let n = 79_000_u64;
    let line = ring::read(&host.dir, file::CONSOLE, 12 + n * 20, 20).unwrap();
    assert_eq!(String::from_utf8(line.data).unwrap(), format!("{n:019}\n"));
}

#[tokio::test]
async fn offsets_go_on_in_the_next_process() {
    let host = Host::new();
    let first = host.boot(&[]).await;
    eventually("output", || host.console().contains("guest is up")).await;
    first.signal(Signal::KILL).unwrap();
    assert_eq!(first.wait_exit().await.signal, Some(libc::SIGKILL));
    let end = ring::end(&host.dir, file::CONSOLE).unwrap();
    let second = host.boot(&[]).await;
    assert_eq!(second.record().console_offset, end);
    assert!(second.record().events_offset > 0);
    eventually("more output", || ring::end(&host.dir, file::CONSOLE).unwrap() > end).await;
}

#[tokio::test]
async fn a_vmm_outlives_the_daemon_and_is_adopted() {
    let host = Host::new();
    host.dir.prepare(None).unwrap();
    host.dir.write_record(file::RECORD, &host.record()).unwrap();
    let lock = host.dir.open_lock().unwrap();
    lock.lock().unwrap();
    // A daemon that starts a holder and is killed with everything in its process group.
    let mut daemon = tokio::process::Command::new("/bin/sh");
    daemon.arg("-c").arg("\"$@\"; kill -9 0").arg("daemon").arg(HOLD);
    daemon.arg("--run-dir").arg(host.dir.path()).arg("--").arg(host.fake());
    daemon.arg("--api-socket").arg(format!("path={}", host.dir.api_socket().display()));
    daemon.arg("--event-monitor").arg(format!("path={}", host.dir.event_fifo().display()));
    let status = daemon.stdin(lock).process_group(0).status().await.unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGKILL));
    assert!(host.dir.is_held().unwrap());

    let mut adopted = None;
    for _ in 0..1000 {
        match adopt(&host.dir, host.installation).await {
            Ok((process, ping)) => {
                assert_eq!(ping.pid, process.pid());
                adopted = Some(process);
                break;
            }
            // The fake has not bound its socket yet.
            Err(AdoptError::Silent { .. }) => tokio::time::sleep(Duration::from_millis(10)).await,
            Err(other) => panic!("{other:?}"),
        }
    }
    let process = adopted.unwrap();
    process.api().create(&host.config()).await.unwrap();
    process.api().boot().await.unwrap();
    eventually("output after the daemon's death", || host.console().contains("guest is up")).await;
    process.signal(Signal::TERM).unwrap();
    assert_eq!(process.wait_exit().await.signal, Some(libc::SIGTERM));
    match adopt(&host.dir, host.installation).await {
        Err(AdoptError::Ended { exit }) => assert_eq!(exit.signal, Some(libc::SIGTERM)),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_process_of_another_installation_is_left_alone() {
    let host = Host::new();
    let process = host.start(&[]).await;
    let other = InstallationId::generate();
    assert!(matches!(adopt(&host.dir, other).await, Err(AdoptError::NotOurs { .. })));
    assert!(!process.has_ended());
}

#[tokio::test]
async fn a_second_start_in_the_same_directory_is_refused() {
    let host = Host::new();
    let process = host.start(&[]).await;
    let again = launch(&host.spec(&host.fake(), &[])).await;
    assert!(matches!(again, Err(LaunchError::AlreadyHeld { .. })), "{again:?}");
    assert!(!process.has_ended());
    assert!(host.dir.remove().is_err());
    assert!(destroy(&host.dir, host.installation, &VmCgroup::default()).await);
    assert!(process.has_ended());
    host.dir.remove().unwrap();
    host.dir.remove().unwrap();
}

#[tokio::test]
async fn what_a_vmm_leaves_behind_ends_with_it() {
    let host = Host::new();
    let helper = host.temp.path().join("helper.pid");
    let vmm = host.script(&format!(
        "#!/bin/sh\nsetsid sh -c 'echo $$ > {0}.new; mv {0}.new {0}; exec sleep 1000' &\n\
         while [ ! -e {0} ]; do :; done\nexit 5\n",
        helper.display()
    ));
    match launch(&host.spec(&vmm, &[])).await {
        Err(LaunchError::Died { exit, .. }) => assert_eq!(exit.code, Some(5)),
        other => panic!("{other:?}"),
    }
    let pid = std::fs::read_to_string(&helper).unwrap().trim().parse().unwrap();
    assert!(is_gone(pid));
}

#[tokio::test]
async fn a_lost_holder_leaves_the_vmm_running_and_the_end_unrecorded() {
    let host = Host::new();
    let process = host.start(&[]).await;
    process.kill_holder().unwrap();
    let holder = process.record().holder_pid;
    eventually("the end of the holder", || is_gone(holder)).await;
    assert_eq!(process.api().ping().await.unwrap().pid, process.pid());
    process.signal(Signal::KILL).unwrap();
    let exit = process.wait_exit().await;
    assert!(exit.unrecorded.is_some() && exit.signal.is_none(), "{exit:?}");
}

async fn ladder(host: &Host, manners: &[&str], plan: StopPlan) -> (Option<StopStep>, Vec<StopStep>, bool) {
    let process = host.boot(manners).await;
    let agent = async { Err("no agent here".to_owned()) };
    let report = stop_ladder(&process.api(), &process, &VmCgroup::default(), plan, agent).await;
    assert_eq!(report.exit.is_some(), process.has_ended());
    let steps = report.steps.iter().map(|outcome| outcome.step).collect();
    (report.stopped_by, steps, process.has_ended())
}

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[tokio::test]
async fn the_ladder_stops_at_the_first_rung_that_holds() {
    use StopStep::{Agent, Kill, PowerButton, VmShutdown, VmmShutdown};
    let (by, steps, ended) = ladder(&Host::new(), &[], StopPlan::whole(ms(10_000))).await;
    assert_eq!((by, steps, ended), (Some(PowerButton), vec![Agent, PowerButton, VmmShutdown], true));

    let deaf = StopPlan { power_button: Some(ms(200)), ..StopPlan::whole(ms(10_000)) };
    let (by, steps, ended) = ladder(&Host::new(), &["--fake", "deaf"], deaf).await;
    assert_eq!(
        (by, steps, ended),
        (Some(VmShutdown), vec![Agent, PowerButton, VmShutdown, VmmShutdown], true)
    );

    let (by, steps, ended) = ladder(&Host::new(), &["deaf", "stubborn"], StopPlan::force()).await;
    assert_eq!((by, steps, ended), (Some(Kill), vec![VmShutdown, VmmShutdown, Kill], true));
}

#[tokio::test]
async fn without_force_a_deaf_guest_stays_on() {
    let gentle = StopPlan { power_button: Some(ms(200)), ..StopPlan::gentle(ms(400)) };
    let (by, steps, ended) = ladder(&Host::new(), &["deaf"], gentle).await;
    assert_eq!((by, steps, ended), (None, vec![StopStep::Agent, StopStep::PowerButton], false));
}

/// A confinement in which the fake can run, and nothing more.
fn confined(host: &Host, uid: u32) -> Confinement {
    let show = |path: &Path, writable| VisiblePath { path: path.to_owned(), writable };
    let system = ["/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache"];
    let mut paths: Vec<VisiblePath> = system.iter().map(|path| show(Path::new(path), false)).collect();
    paths.push(show(&host.fake(), false));
    paths.push(show(Path::new("/nothing/is/here"), false));
    paths.push(show(host.dir.path(), false));
    paths.push(show(&host.dir.sockets(), true));
    let devices = vec!["/dev/null".to_owned(), "/dev/urandom".to_owned(), "/dev/not-here".to_owned()];
    Confinement { uid, paths, devices, files: 64, processes: 32 }
}

fn names(path: impl AsRef<Path>) -> Vec<String> {
    let entries = std::fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = entries.collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_confined_vmm_has_a_user_a_root_and_devices_of_its_own_and_no_privilege() {
    if !nix::unistd::geteuid().is_root() {
        return println!("SKIP a_confined_vmm_has_a_user…: needs root");
    }
    const UID: u32 = 234_567;
    let host = Host::new();
    let mut spec = host.spec(&host.fake(), &[]);
    spec.record.confinement = Some(confined(&host, UID));
    host.dir.create(Some(UID)).unwrap();
    let process = launch(&spec).await.unwrap_or_else(|e| panic!("{}", drover_actors::chain(&e)));
    let proc = PathBuf::from(format!("/proc/{}", process.pid()));
    let status = std::fs::read_to_string(proc.join("status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("{name} is not in {status}")).split_whitespace().collect::<Vec<_>>()
    };
    let user = UID.to_string();
    assert_eq!(field("Uid"), [&user; 4]);
    assert_eq!(field("Gid"), [&user; 4]);
    assert_eq!(field("Groups"), [""; 0]);
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(set), ["0000000000000000"], "{set}");
    }
    assert_eq!(field("NoNewPrivs"), ["1"]);
    let limits = std::fs::read_to_string(proc.join("limits")).unwrap();
    for (name, value) in [("Max open files", "64"), ("Max processes", "32"), ("Max core file size", "0")] {
        let line = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        assert_eq!(line.split_whitespace().take(2).collect::<Vec<_>>(), [value, value], "{name}");
    }
    // Its root: what was named, and the ways to it.
    assert_eq!(names(proc.join("root/dev")), ["null", "urandom"]);
    let own = host.dir.path().strip_prefix("/").unwrap();
    assert!(names(proc.join("root").join(own)).contains(&"s".to_owned()));
    let beside = names(proc.join("root").join(own.parent().unwrap()));
    assert_eq!(beside.len(), 2, "the run directory and the program: {beside:?}");
    assert!(!proc.join("root/etc/passwd").exists() && !proc.join("root/root").exists());
    // Another root is its own affair: the host has no mount more than before.
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(host.dir.path().to_str().unwrap()), "{mounts}");
    // It answers through its socket, and its events get out.
    assert_eq!(process.api().ping().await.unwrap().pid, process.pid());
    eventually("an event", || {
        let events = ring::tail(&host.dir, file::EVENTS, 4096).map(|chunk| chunk.data).unwrap_or_default();
        String::from_utf8_lossy(&events).contains("starting")
    })
    .await;
    process.signal(Signal::KILL).unwrap();
    process.wait_exit().await;
    eventually("the end of the holder", || !host.dir.is_held().unwrap()).await;
    host.dir.remove().unwrap();
}

#[tokio::test]
async fn what_cannot_be_confined_does_not_run_and_says_why() {
    if !nix::unistd::geteuid().is_root() {
        return println!("SKIP what_cannot_be_confined_does_not_run_and_says_why: needs root");
    }
    let host = Host::new();
    let mut spec = host.spec(&host.fake(), &[]);
    let mut confinement = confined(&host, 234_568);
    // A file where a device should be.
    let file = host.temp.path().join("file");
    std::fs::write(&file, "").unwrap();
    confinement.devices.push(file.display().to_string());
    spec.record.confinement = Some(confinement);
    let refused = launch(&spec).await.unwrap_err();
    let LaunchError::SetUp(error) = &refused else { panic!("{refused:?}") };
    assert!(error.step.contains("confine the VMM: make") && error.step.contains("file"), "{error:?}");
    assert!(host.dir.pid_record().unwrap().is_none());
}
