//! What of a VM is still there: processes, network, files, cgroups.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use drover_schemas::VmId;
use drover_schemas::body::status::VmStatus;
use drover_schemas::id::InstallationId;

use crate::netns::nsenter;
use crate::node::Node;

/// Processes that bear the mark of `vm_id`, or work in its run directory below `run`.
#[must_use]
pub fn processes(run: &Path, vm_id: VmId) -> Vec<(i32, String)> {
    let mark = format!("DROVER_VM_ID={vm_id}");
    let dir = run.join(vm_id.to_string().to_ascii_lowercase()).display().to_string();
    find(|command, environment| command.contains(&dir) || environment.split('\0').any(|v| v == mark))
}

/// Every process that works below `run`.
#[must_use]
pub fn all_processes(run: &Path) -> Vec<(i32, String)> {
    let dir = format!("{}/", run.display());
    find(|command, _| command.contains(&dir))
}

/// The VMMs that work below `run`, by process id, and which VM each is of.
#[must_use]
pub fn vmms(run: &Path) -> Vec<(i32, VmId)> {
    let dir = format!("{}/", run.display());
    let of = |command: &str| {
        let name = command.split_once(&dir)?.1.get(..26)?;
        name.to_ascii_uppercase().parse().ok()
    };
    // The holder's command line has that of its VMM within it.
    let is_vmm = |command: &str| command.contains("--api-socket") && !command.contains("drover-hold");
    let all = all_processes(run).into_iter().filter(|(_, command)| is_vmm(command));
    all.filter_map(|(pid, command)| Some((pid, of(&command)?))).collect()
}

fn find(matches: impl Fn(&str, &str) -> bool) -> Vec<(i32, String)> {
    let text = |path: PathBuf| {
        fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    };
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    pids.filter_map(|entry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let command = text(entry.path().join("cmdline"));
        // A process that has ended and waits for its parent has no command line.
        let live = !command.is_empty() && matches(&command, &text(entry.path().join("environ")));
        live.then(|| (pid, command.replace('\0', " ")))
    })
    .collect()
}

/// The installation's own cgroup in each hierarchy.
#[must_use]
pub fn cgroups(installation: InstallationId) -> Vec<PathBuf> {
    let name = format!("drover-{}", installation.to_string().to_ascii_lowercase());
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    own.lines()
        .filter_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let (controllers, path) = (parts.next()?, parts.next()?);
            let root = Path::new("/sys/fs/cgroup").join(controllers.trim_start_matches("name="));
            Some(root.join(path.trim_start_matches('/')).join(&name))
        })
        .filter(|dir| dir.is_dir())
        .collect()
}

/// The cgroups of a VM's VMMs in the scopes of systemd.
#[must_use]
pub fn scopes(installation: InstallationId, vm_id: VmId) -> Vec<PathBuf> {
    let slice =
        format!("/sys/fs/cgroup/drover.slice/drover-{}.slice", installation.to_string().to_ascii_lowercase());
    let unit = format!("drover-vm-{}-", vm_id.to_string().to_ascii_lowercase());
    let entries = fs::read_dir(slice).into_iter().flatten().flatten();
    let scopes = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&unit));
    scopes.map(|entry| entry.path().join("vmm")).filter(|dir| dir.is_dir()).collect()
}

/// What a VM that is down or deleted still has of a runtime, in words; `vm` is a status of when it ran.
///
/// # Panics
/// `ip` or `nft` cannot be run.
#[must_use]
pub fn runtime(host: &Node, vm: &VmStatus) -> Vec<String> {
    let mut left: Vec<String> = processes(host.run_dir(), vm.vm_id)
        .into_iter()
        .map(|(pid, c)| format!("process {pid} {c}"))
        .collect();
    let links = shown(host, "ip", &["-j", "-d", "link"]);
    if links.contains(&vm.vm_id.to_string()) {
        left.push("a TAP".into());
    }
    let rules = shown(host, "nft", &["list", "ruleset"]);
    left.extend(
        vm.nics.iter().filter(|nic| rules.contains(&nic.tap)).map(|nic| format!("rules of {}", nic.tap)),
    );
    let name = vm.vm_id.to_string().to_ascii_lowercase();
    let installation = host.installation();
    let groups = installation.map(cgroups).unwrap_or_default().into_iter().map(|base| base.join(&name));
    let groups: Vec<PathBuf> =
        groups.chain(installation.map(|id| scopes(id, vm.vm_id)).unwrap_or_default()).collect();
    left.extend(groups.iter().filter(|dir| dir.exists()).map(|dir| format!("cgroup {}", dir.display())));
    left
}

/// What a deleted VM still has, in words.
///
/// # Panics
/// As [`runtime`].
#[must_use]
pub fn anything(host: &Node, vm: &VmStatus) -> Vec<String> {
    let mut left = runtime(host, vm);
    left.extend(files(host, vm.vm_id));
    left
}

/// The folders that a VM still has.
#[must_use]
pub fn files(host: &Node, vm_id: VmId) -> Vec<String> {
    let name = vm_id.to_string().to_ascii_lowercase();
    let dirs = [host.run_dir().join(&name), host.state_dir().join("disks").join(&name)];
    dirs.iter().filter(|dir| dir.exists()).map(|dir| dir.display().to_string()).collect()
}

fn shown(host: &Node, program: &str, args: &[&str]) -> String {
    let mut words = host.netns.as_deref().map(nsenter).unwrap_or_default();
    words.push(program.to_owned());
    let done = Command::new(&words[0]).args(&words[1..]).args(args).output().expect("the program is there");
    assert!(done.status.success(), "{program}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8_lossy(&done.stdout).into_owned()
}
