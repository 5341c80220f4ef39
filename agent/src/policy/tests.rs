use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::*;

struct Guest {
    dir: tempfile::TempDir,
    policy: Policy,
}

impl Guest {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        for folder in ["etc", "etc/drover-agent", "usr", "srv", "srv/app", "secret"] {
            fs::create_dir(root.join(folder)).unwrap();
            fs::set_permissions(root.join(folder), Permissions::from_mode(0o755)).unwrap();
        }
        fs::write(root.join("usr/agent"), "").unwrap();
        let policy = Policy::new(root.join("etc/drover-agent/policy"), [root.join("usr/agent")]);
        Self { dir, policy }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(path)
    }

    fn says(&self, text: &str) {
        fs::write(&self.policy.file, text.replace('@', &format!("{}/", self.path("").display()))).unwrap();
        fs::set_permissions(&self.policy.file, Permissions::from_mode(0o644)).unwrap();
    }

    fn changes(&self, verb: &str, path: &str) -> Result<(), ErrorBody> {
        let path = self.path(path);
        let folder = File::open(path.parent().unwrap()).unwrap();
        self.policy.check(verb)?.reach.changes(&folder, path.file_name().unwrap())
    }
}

#[test]
fn the_file_counts_only_if_it_is_its_owners() {
    let guest = Guest::new();
    let (policy, file) = (&guest.policy, guest.policy.file.clone());
    let verbs = ["ping", "info", "exec"].map(str::to_owned);
    assert!(policy.check("exec").is_ok(), "no file is no restriction");
    assert_eq!(policy.allowed(&verbs), None);
    guest.says("info\n");
    assert!(policy.check("info").is_ok() && policy.check("ping").is_ok());
    let refused = policy.check("exec").unwrap_err();
    assert_eq!((refused.code, refused.details["policy"].as_str()), (ErrorCode::PermissionDenied, "guest"));
    assert_eq!(policy.allowed(&verbs).unwrap(), ["ping", "info"]);
    let broken = |why: &str| {
        let refused = policy.check("info").unwrap_err();
        assert!(refused.message.contains(why), "{refused}");
        assert!(policy.check("ping").is_ok());
        assert_eq!(policy.allowed(&verbs).unwrap(), ["ping"]);
    };
    fs::set_permissions(&file, Permissions::from_mode(0o664)).unwrap();
    broken("writable by nobody else");
    guest.says("info\n");
    fs::set_permissions(guest.path("etc/drover-agent"), Permissions::from_mode(0o777)).unwrap();
    broken("folder that must belong to root");
    fs::set_permissions(guest.path("etc/drover-agent"), Permissions::from_mode(0o755)).unwrap();
    guest.says("info here\n");
    broken("no condition of info");
    fs::write(&file, vec![b'#'; MAX_POLICY as usize + 1]).unwrap();
    broken("at most 65536 bytes");
    fs::write(&file, [0xff]).unwrap();
    broken("cannot be read");
    fs::remove_file(&file).unwrap();
    symlink("nowhere", &file).unwrap();
    broken("leads nowhere");
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    broken("is no file");
}

#[test]
fn files_are_reached_below_their_folders_and_over_no_link() {
    let guest = Guest::new();
    guest.says("put @srv/app\nrm @srv/app\nget @srv/app\n");
    symlink(guest.path("secret"), guest.path("srv/app/out")).unwrap();
    symlink(guest.path("srv/app"), guest.path("in")).unwrap();
    assert!(guest.changes("put", "srv/app/x").is_ok());
    assert!(guest.changes("put", "in/x").is_ok(), "where it really is counts");
    for outside in ["secret/x", "srv/app/out/x", "srv/apple", "srv/x"] {
        let refused = guest.changes("put", outside).unwrap_err();
        assert_eq!(refused.code, ErrorCode::PermissionDenied, "{outside}");
    }
    let get = guest.policy.check("get").unwrap().reach;
    fs::write(guest.path("secret/key"), "").unwrap();
    symlink(guest.path("secret/key"), guest.path("srv/app/key")).unwrap();
    get.reads(&File::open(guest.path("srv/app/key")).unwrap()).unwrap_err();
    fs::write(guest.path("srv/app/own"), "").unwrap();
    get.reads(&File::open(guest.path("srv/app/own")).unwrap()).unwrap();
}

#[test]
fn the_policy_and_the_agent_are_out_of_reach_whatever_is_allowed() {
    let guest = Guest::new();
    guest.says("put\nrm\nunpack\nmkdir\n");
    symlink(guest.path("etc"), guest.path("srv/etc")).unwrap();
    for kept in [
        "etc/drover-agent/policy",
        "etc/drover-agent/other",
        "etc/drover-agent",
        "etc",
        "srv/etc/drover-agent",
        "usr/agent",
        "usr",
    ] {
        for verb in ["put", "rm", "unpack", "mkdir"] {
            let refused = guest.changes(verb, kept).unwrap_err();
            assert!(refused.message.contains("the host cannot change it"), "{verb} {kept}: {refused}");
        }
    }
    assert!(guest.changes("put", "usr/other").is_ok());
    assert!(guest.changes("put", "secret/x").is_ok());
    // The link itself is a name like any other.
    assert!(guest.changes("rm", "srv/etc").is_ok());
}

#[test]
fn a_command_runs_as_whom_the_policy_names_and_in_no_further_group() {
    let guest = Guest::new();
    guest.says("exec user=nobody\n");
    let permit = guest.policy.check("exec").unwrap();
    let as_user = |user: Option<&str>, groups: Option<&[&str]>| {
        let groups = groups.map(|g| g.iter().map(|g| (*g).to_owned()).collect());
        permit.runs(&ExecRequest { user: user.map(str::to_owned), groups, ..ExecRequest::default() })
    };
    let nobody = account::resolve("nobody").unwrap();
    as_user(Some("nobody"), None).unwrap();
    as_user(Some(&nobody.uid.to_string()), Some(&[])).unwrap();
    for (user, groups) in [
        (None, None),
        (Some("root"), None),
        (Some("0"), None),
        (Some("nobody:root"), None),
        (Some("nobody:0"), None),
        (Some("nobody"), Some(&["root"][..])),
    ] {
        let refused = as_user(user, groups).unwrap_err();
        assert_eq!(refused.code, ErrorCode::PermissionDenied, "{user:?} {groups:?}");
    }
}

#[test]
fn verbs_of_users_concern_those_that_are_named() {
    let guest = Guest::new();
    guest.says("keys user=root\nuser_add user=app\nuser_rm\n");
    let keys = guest.policy.check("keys").unwrap();
    keys.concerns("keys", 0).unwrap();
    let refused = keys.concerns("keys", 1).unwrap_err();
    assert_eq!((refused.code, refused.details["users"].as_str()), (ErrorCode::PermissionDenied, "root"));
    guest.policy.check("user_rm").unwrap().concerns("user_rm", 1).unwrap();
    assert!(guest.policy.check("keys_change").is_err());

    let adds = guest.policy.check("user_add").unwrap();
    let app = || UserAddRequest { user: "app".into(), ..Default::default() };
    adds.adds(&UserAddRequest { shell: Some("/bin/sh".into()), sudo: Some(false), ..app() }).unwrap();
    for more in [
        UserAddRequest { user: "web".into(), ..app() },
        UserAddRequest { uid: Some(1000), ..app() },
        UserAddRequest { groups: Some(vec!["disk".into()]), ..app() },
        UserAddRequest { primary_group: Some("disk".into()), ..app() },
        UserAddRequest { home: Some("/usr/lib/systemd/system/x.service.d".into()), ..app() },
        UserAddRequest { sudo: Some(true), ..app() },
    ] {
        assert_eq!(adds.adds(&more).unwrap_err().code, ErrorCode::PermissionDenied, "{more:?}");
        Permit::default().adds(&more).unwrap();
    }
}
