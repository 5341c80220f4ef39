use super::*;

fn installation() -> InstallationId {
    InstallationId::from_u128(0xfeed)
}

fn dirs(root: &Path, names: &[&str]) {
    for name in names {
        fs::create_dir_all(root.join(name)).unwrap();
        fs::write(root.join(name).join("cgroup.procs"), "").unwrap();
    }
}

#[test]
fn a_host_without_cgroups_runs_vms_without_limits_and_says_why() {
    let temp = tempfile::tempdir().unwrap();
    let groups = Cgroups::open_at(temp.path(), "", installation());
    assert!(groups.problem().unwrap().contains("no cgroups"));
    let limits = CgroupLimits { memory_bytes: 1, pids: 1, cpus: 1 };
    assert_eq!(groups.create(VmId::from_u128(1), 1, &limits).unwrap(), VmCgroup::default());
}

#[test]
fn of_v1_each_mounted_hierarchy_is_used_below_our_own_cgroup() {
    let temp = tempfile::tempdir().unwrap();
    dirs(temp.path(), &["memory", "memory/daemon", "pids"]);
    let own = "4:memory:/daemon\n3:pids:/not/visible/here\n2:cpu,cpuacct:/\n";
    let groups = Cgroups::open_at(temp.path(), own, installation());
    assert_eq!(groups.problem(), None);
    let group = groups.of(VmId::from_u128(1));
    let name = "drover-00000000000000000000001zqd";
    assert_eq!(
        group.dirs,
        [
            temp.path().join("memory/daemon").join(name).join("00000000000000000000000001"),
            temp.path().join("pids").join(name).join("00000000000000000000000001"),
        ]
    );
}

#[test]
fn of_v2_the_controllers_are_passed_on() {
    let temp = tempfile::tempdir().unwrap();
    dirs(temp.path(), &["", "service"]);
    fs::write(temp.path().join("cgroup.controllers"), "memory pids").unwrap();
    let groups = Cgroups::open_at(temp.path(), "0::/service\n", installation());
    assert_eq!(groups.problem(), None);
    let control = fs::read_to_string(temp.path().join("service/cgroup.subtree_control")).unwrap();
    assert_eq!(control, "+memory +pids");
}

#[tokio::test]
async fn a_real_cgroup_counts_limits_kills_and_goes() {
    let own = InstallationId::generate();
    let groups = Cgroups::open(own, &Launcher::Direct { reason: String::new() });
    if let Some(problem) = groups.problem() {
        eprintln!("skipped: {problem}");
        return;
    }
    let id = VmId::generate();
    let group = groups.create(id, 1, &CgroupLimits { memory_bytes: 64 << 20, pids: 16, cpus: 2 }).unwrap();
    assert!(group.dirs.iter().all(|dir| dir.is_dir()));
    let mut child = tokio::process::Command::new("sleep").arg("1000").kill_on_drop(true).spawn().unwrap();
    let pid = child.id().unwrap();
    for dir in &group.dirs {
        fs::write(dir.join("cgroup.procs"), pid.to_string()).unwrap();
    }
    assert_eq!(group.pids(), [i32::try_from(pid).unwrap()]);
    assert_eq!(group.oom_kills(), Some(0));
    assert!(group.memory_bytes().is_some());
    let read = |file: &str| group.dirs.iter().find_map(|dir| fs::read_to_string(dir.join(file)).ok());
    let shares = read("cpu.shares").or_else(|| read("cpu.weight")).map(|text| text.trim().to_owned());
    assert!(shares.is_none_or(|shares| ["2048", "200"].contains(&&*shares)));
    group.kill();
    let status = child.wait().await.unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
    group.remove(Duration::from_secs(5)).await.unwrap();
    group.remove(Duration::from_secs(5)).await.unwrap();
    assert!(!group.dirs.iter().any(|dir| dir.exists()));
    groups.remove_base().unwrap();
}
