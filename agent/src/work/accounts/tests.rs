//! Users and keys of a system in a folder.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::PathBuf;

use drover_schemas::guest::{PasswordState, UserInfo};
use drover_schemas::secret::Secret;

use super::key::tests::ed25519;
use super::*;

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\ndaemon:x:2:2::/:/bin/false\n\nrubbish\nold:x:1005:1005::/home/old:/bin/sh\n+@nis::::::\n";
const GROUP: &str = "root:x:0:\nadm:x:4:syslog,old\nusers:x:100:\nold:x:1005:\n";
const SHADOW: &str = "root:$6$abcdefgh$hash:19000:0:99999:7:::\nold:!:19000::::::\n";
const HASH: &str = "$6$saltsalt$Zm9vYmFyYmF6cXV4Zm9vYmFyYmF6cXV4";

struct Guest(tempfile::TempDir);

impl Guest {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let guest = Self(dir);
        fs::set_permissions(guest.0.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for folder in ["etc", "etc/skel", "etc/skel/.config", "home", "bin", "root", "srv"] {
            fs::create_dir(guest.path(folder)).unwrap();
            fs::set_permissions(guest.path(folder), fs::Permissions::from_mode(0o755)).unwrap();
        }
        for (name, text, mode) in [
            ("etc/passwd", PASSWD, 0o644),
            ("etc/group", GROUP, 0o644),
            ("etc/shadow", SHADOW, 0o640),
            ("etc/gshadow", "root:*::\nadm:*::syslog,old\n", 0o640),
            ("etc/skel/.profile", "hello\n", 0o644),
            ("etc/skel/.config/deep", "deep\n", 0o644),
            ("bin/sh", "", 0o755),
        ] {
            fs::write(guest.path(name), text).unwrap();
            fs::set_permissions(guest.path(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        guest
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    fn system(&self) -> System<'_> {
        System(self.0.path())
    }

    fn add(&self, request: &UserAddRequest) -> Result<UserAddResult, ErrorBody> {
        self.system().add(request, || ())
    }

    fn remove(&self, name: &str) -> Result<UserRmResult, ErrorBody> {
        let request = UserRmRequest { user: name.into(), remove_home: true, force: false };
        self.system().remove(&request, || ())
    }

    fn keys(&self, request: KeysChangeRequest) -> Result<KeysChangeResult, ErrorBody> {
        self.system().change_keys(&request, || ())
    }

    /// Every file, for what must not change.
    fn files(&self) -> Vec<String> {
        ["etc/passwd", "etc/group", "etc/shadow", "etc/gshadow"].map(|name| self.text(name)).to_vec()
    }
}

fn web() -> UserAddRequest {
    UserAddRequest { user: "web".into(), ..Default::default() }
}

/// Numbers of users are given away by root alone.
fn is_root() -> bool {
    let is_root = nix::unistd::geteuid().is_root();
    if !is_root {
        println!("SKIP: needs root");
    }
    is_root
}

#[test]
fn a_user_is_made_changed_and_removed() {
    if !is_root() {
        return;
    }
    let guest = Guest::new();
    let before = guest.files();
    let made = guest.add(&web()).unwrap();
    let user = UserInfo {
        name: "web".into(),
        uid: 1006,
        gid: 1006,
        home: "/home/web".into(),
        shell: "/bin/sh".into(),
        ..Default::default()
    };
    assert_eq!(made, UserAddResult { change: AccountChange::Made, user: user.clone(), home_made: true });
    // Before what refers to elsewhere, and the rest as it was.
    let line = "web:x:1006:1006::/home/web:/bin/sh\n";
    assert_eq!(guest.text("etc/passwd"), PASSWD.replace("+@", &format!("{line}+@")));
    assert!(guest.text("etc/shadow").starts_with(&format!("{SHADOW}web:*:")));
    assert!(guest.text("etc/gshadow").ends_with("\nweb:!::\n"));
    assert_eq!(fs::metadata(guest.path("etc/shadow")).unwrap().mode() & 0o777, 0o640);
    for (name, mode, text) in [(".profile", 0o644, "hello\n"), (".config/deep", 0o644, "deep\n")] {
        let path = guest.path("home/web").join(name);
        let facts = fs::metadata(&path).unwrap();
        assert_eq!((facts.uid(), facts.gid(), facts.mode() & 0o700), (1006, 1006, mode & 0o700));
        assert_eq!(fs::read_to_string(path).unwrap(), text);
    }
    assert_eq!(fs::metadata(guest.path("home/web")).unwrap().mode() & 0o777, 0o700);

    assert_eq!(guest.add(&web()).unwrap().change, AccountChange::None);
    let more = UserAddRequest {
        groups: Some(vec!["adm".into(), "users".into()]),
        gecos: Some("Web".into()),
        password_hash: Some(Secret::new(HASH)),
        ..web()
    };
    let changed = guest.add(&more).unwrap();
    assert_eq!(changed.change, AccountChange::Changed);
    assert_eq!(
        (changed.user.groups, changed.user.password),
        (vec!["adm".into(), "users".into()], PasswordState::Set)
    );
    assert_eq!(guest.add(&more).unwrap().change, AccountChange::None);
    assert!(guest.text("etc/gshadow").contains("adm:*::syslog,old,web\n"));
    let less = UserAddRequest { groups: Some(vec!["users".into()]), no_password: true, ..web() };
    let changed = guest.add(&less).unwrap().user;
    assert_eq!((changed.groups, changed.password), (vec!["users".to_owned()], PasswordState::None));

    let listed = guest.system().users(&UsersRequest::default()).unwrap();
    let names: Vec<_> = listed.users.iter().map(|user| user.name.as_str()).collect();
    assert_eq!(names, ["old", "root", "web"]);
    assert_eq!(
        listed.users.iter().map(|user| user.password).collect::<Vec<_>>(),
        [PasswordState::Locked, PasswordState::Set, PasswordState::None]
    );
    let after = UsersRequest { all: true, after: Some("daemon".into()) };
    assert_eq!(guest.system().users(&after).unwrap().users.len(), 3);

    symlink("/etc", guest.path("home/web/etc")).unwrap();
    let gone = guest.remove("web").unwrap();
    assert_eq!(gone, UserRmResult { uid: 1006, home: Some("/home/web".into()), killed: 0 });
    assert_eq!(guest.files(), before);
    assert!(!guest.path("home/web").exists() && guest.path("etc/passwd").exists());
    assert_eq!(guest.remove("web").unwrap_err().code, ErrorCode::NotFound);
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    if !is_root() {
        return;
    }
    let guest = Guest::new();
    fs::create_dir(guest.path("srv/open")).unwrap();
    fs::set_permissions(guest.path("srv/open"), fs::Permissions::from_mode(0o777)).unwrap();
    fs::create_dir(guest.path("srv/taken")).unwrap();
    let before = guest.files();
    let refused = |request: UserAddRequest, code: ErrorCode, field: &str| {
        let begun = std::cell::Cell::new(false);
        let error = guest.system().add(&request, || begun.set(true)).unwrap_err();
        assert_eq!(
            (error.code, error.details.get("field").map(String::as_str)),
            (code, Some(field)),
            "{error:?}"
        );
        assert!(!begun.get());
        assert_eq!(guest.files(), before);
    };
    use ErrorCode::{Conflict, InvalidArgument, NotFound, Unsupported};
    for name in ["", "Web", "a b", "1web", "a:b", "a\nb", "../x", "ä", &"a".repeat(33)] {
        refused(UserAddRequest { user: name.into(), ..web() }, InvalidArgument, "user");
    }
    for uid in [0, 999, 65_534, u32::MAX] {
        refused(UserAddRequest { uid: Some(uid), ..web() }, InvalidArgument, "uid");
    }
    refused(UserAddRequest { uid: Some(1005), ..web() }, Conflict, "uid");
    for home in ["home", "/", "/a/../b", "/a:b", "/a\nb"] {
        refused(UserAddRequest { home: Some(home.into()), ..web() }, InvalidArgument, "home");
    }
    refused(UserAddRequest { home: Some("/srv/taken".into()), ..web() }, Conflict, "home");
    refused(UserAddRequest { home: Some("/srv/open/web".into()), ..web() }, Conflict, "home");
    refused(UserAddRequest { shell: Some("/bin/none".into()), ..web() }, InvalidArgument, "shell");
    refused(UserAddRequest { gecos: Some("a:b".into()), ..web() }, InvalidArgument, "gecos");
    refused(UserAddRequest { groups: Some(vec!["none".into()]), ..web() }, NotFound, "groups");
    refused(UserAddRequest { primary_group: Some("none".into()), ..web() }, NotFound, "primary_group");
    // A group that has rights is not taken for the user's own.
    refused(UserAddRequest { user: "adm".into(), ..web() }, Conflict, "primary_group");
    refused(UserAddRequest { sudo: Some(true), ..web() }, Unsupported, "sudo");
    let old = || UserAddRequest { user: "old".into(), ..web() };
    refused(UserAddRequest { uid: Some(1007), ..old() }, Conflict, "uid");
    refused(UserAddRequest { home: Some("/srv/old".into()), ..old() }, Conflict, "home");
    refused(UserAddRequest { primary_group: Some("users".into()), ..old() }, Conflict, "primary_group");
    for hash in ["", "secret", "$1$salt$hash", "$6$salt$a:b", "$6$a$\n", "$6$salt$", "!"] {
        refused(
            UserAddRequest { password_hash: Some(Secret::new(hash)), ..web() },
            InvalidArgument,
            "password_hash",
        );
    }
    let both = UserAddRequest { no_password: true, password_hash: Some(Secret::new(HASH)), ..web() };
    refused(both, InvalidArgument, "no_password");
    let system = guest.add(&UserAddRequest { user: "daemon".into(), ..web() }).unwrap_err();
    assert_eq!(system.details["cause"], "system_user");
    for name in ["root", "daemon"] {
        assert_eq!(guest.remove(name).unwrap_err().details["cause"], "system_user");
    }
    for name in ["", "+@nis", "none", "rubbish\n"] {
        assert_eq!(guest.remove(name).unwrap_err().code, NotFound);
    }
    assert_eq!(guest.files(), before);
}

#[test]
fn sudo_comes_and_goes_with_its_user() {
    if !is_root() {
        return;
    }
    let guest = Guest::new();
    fs::create_dir(guest.path("etc/sudoers.d")).unwrap();
    let request = UserAddRequest { user: "a.b".into(), sudo: Some(true), ..web() };
    assert_eq!(guest.add(&request).unwrap().change, AccountChange::Made);
    let file = "etc/sudoers.d/drover-a%b";
    assert!(guest.text(file).ends_with("\na.b ALL=(ALL:ALL) NOPASSWD: ALL\n"));
    assert_eq!(fs::metadata(guest.path(file)).unwrap().mode() & 0o777, 0o440);
    assert_eq!(guest.add(&request).unwrap().change, AccountChange::None);
    assert_eq!(
        guest.add(&UserAddRequest { sudo: None, ..request.clone() }).unwrap().change,
        AccountChange::None
    );
    assert_eq!(
        guest.add(&UserAddRequest { sudo: Some(false), ..request.clone() }).unwrap().change,
        AccountChange::Changed
    );
    assert!(!guest.path(file).exists());
    guest.add(&request).unwrap();
    guest.remove("a.b").unwrap();
    assert!(!guest.path(file).exists());
}

#[test]
fn files_that_are_no_files_are_left_alone() {
    let guest = Guest::new();
    fs::rename(guest.path("etc/passwd"), guest.path("etc/real")).unwrap();
    symlink("real", guest.path("etc/passwd")).unwrap();
    assert!(guest.add(&web()).unwrap_err().message.contains("is a link"));
    fs::remove_file(guest.path("etc/passwd")).unwrap();
    nix::unistd::mkfifo(&guest.path("etc/passwd"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    assert!(guest.add(&web()).unwrap_err().message.contains("is no file"));
    fs::remove_file(guest.path("etc/passwd")).unwrap();
    assert!(guest.add(&web()).unwrap_err().message.contains("has no /etc/passwd"));
}

#[test]
fn keys_are_laid_as_sshd_demands_it() {
    if !is_root() {
        return;
    }
    let guest = Guest::new();
    guest.add(&web()).unwrap();
    let [one, two] = [1, 2].map(ed25519);
    let file = guest.path("home/web/.ssh/authorized_keys");
    let add =
        |key: &String| KeysChangeRequest { user: "web".into(), add: vec![key.clone()], ..Default::default() };
    let done = guest.keys(add(&one)).unwrap();
    assert_eq!((done.path.as_str(), done.added.len(), done.total), ("/home/web/.ssh/authorized_keys", 1, 1));
    assert_eq!(done.warnings, [""; 0]);
    for (path, mode) in [(file.clone(), 0o600), (guest.path("home/web/.ssh"), 0o700)] {
        let facts = fs::metadata(path).unwrap();
        assert_eq!((facts.uid(), facts.gid(), facts.mode() & 0o7777), (1006, 1006, mode));
    }
    // What is too open is closed where that is the agent's to do, and told where it is not.
    fs::set_permissions(guest.path("home/web/.ssh"), fs::Permissions::from_mode(0o775)).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
    fs::set_permissions(guest.path("home/web"), fs::Permissions::from_mode(0o770)).unwrap();
    let listed = guest.system().keys(&KeysRequest { user: "web".into() }).unwrap();
    assert_eq!((listed.keys.len(), listed.warnings.len()), (1, 3), "{listed:?}");
    let done = guest.keys(add(&one)).unwrap();
    assert_eq!((done.added.len(), done.warnings.len()), (0, 1), "{done:?}");
    assert!(done.warnings[0].starts_with("/home/web can be written"));
    assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
    guest.keys(add(&two)).unwrap();
    let listed = guest.system().keys(&KeysRequest { user: "web".into() }).unwrap();
    let remove = listed.keys.iter().map(|key| key.fingerprint.clone()).collect();
    let done = guest.keys(KeysChangeRequest { user: "web".into(), remove, ..Default::default() }).unwrap();
    assert_eq!((done.removed, done.total, fs::read_to_string(&file).unwrap().as_str()), (2, 0, ""));
    let absent = KeysChangeRequest { user: "web".into(), remove: vec![one.clone()], ..Default::default() };
    assert_eq!(guest.keys(absent).unwrap_err().code, ErrorCode::NotFound);
    assert_eq!(
        guest.keys(KeysChangeRequest { user: "nobody".into(), ..add(&one) }).unwrap_err().code,
        ErrorCode::NotFound
    );
    assert_eq!(fs::read_dir(guest.path("home/web/.ssh")).unwrap().count(), 1);
}

#[test]
fn a_user_leads_roots_work_nowhere() {
    if !is_root() {
        return;
    }
    let guest = Guest::new();
    guest.add(&web()).unwrap();
    let home = guest.path("home/web");
    let mine = |path: &PathBuf| std::os::unix::fs::lchown(path, Some(1006), Some(1006)).unwrap();
    let add = || KeysChangeRequest { user: "web".into(), add: vec![ed25519(1)], ..Default::default() };
    let refused = |code: ErrorCode| {
        let (error, read) =
            (guest.keys(add()).unwrap_err(), guest.system().keys(&KeysRequest { user: "web".into() }));
        assert_eq!(error.code, code, "{error:?}");
        read.err()
    };
    // `.ssh` of somebody else.
    let (ssh, root) = (home.join(".ssh"), guest.path("root/.ssh"));
    fs::create_dir(&root).unwrap();
    symlink(&root, &ssh).unwrap();
    mine(&ssh);
    assert_eq!(refused(ErrorCode::Conflict).unwrap().details["cause"], "link");
    fs::remove_file(&ssh).unwrap();
    // A folder that is not its own.
    fs::create_dir(&ssh).unwrap();
    fs::set_permissions(&ssh, fs::Permissions::from_mode(0o755)).unwrap();
    assert!(refused(ErrorCode::PermissionDenied).is_none());
    mine(&ssh);
    // The file is a link, a pipe, a folder, or a file that only root reads.
    let file = ssh.join("authorized_keys");
    let secret = guest.path("etc/shadow");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    symlink(&secret, &file).unwrap();
    assert!(refused(ErrorCode::Conflict).is_some());
    fs::remove_file(&file).unwrap();
    fs::hard_link(&secret, &file).unwrap();
    assert_eq!(refused(ErrorCode::PermissionDenied).unwrap().code, ErrorCode::PermissionDenied);
    fs::remove_file(&file).unwrap();
    nix::unistd::mkfifo(&file, nix::sys::stat::Mode::from_bits_truncate(0o666)).unwrap();
    mine(&file);
    assert!(refused(ErrorCode::Conflict).is_some());
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    mine(&file);
    assert!(refused(ErrorCode::Conflict).is_some());
    fs::remove_dir(&file).unwrap();
    // What the agent writes beside it does not go through a link either.
    symlink(guest.path("root/planted"), ssh.join(".authorized_keys.drover")).unwrap();
    guest.keys(add()).unwrap();
    assert!(!guest.path("root/planted").exists() && fs::symlink_metadata(&file).unwrap().is_file());
    assert!(fs::read_dir(&root).unwrap().next().is_none());

    // A folder that is not the user's is not removed with it.
    fs::remove_dir_all(&home).unwrap();
    symlink(guest.path("root"), &home).unwrap();
    mine(&home);
    let error = guest.remove("web").unwrap_err();
    assert_eq!((error.code, error.details["cause"].as_str()), (ErrorCode::Conflict, "home"));
    assert!(guest.text("etc/passwd").contains("web:x:1006") && guest.path("root/.ssh").exists());
}

proptest::proptest! {
    #[test]
    fn any_files_keep_what_is_not_asked_for(
        passwd in proptest::collection::vec(proptest::num::u8::ANY, 0..200),
        group in "([a-c]{1,2}:x:[0-9]{1,4}:[a-c,]{0,4}\n){0,4}",
        shadow in proptest::option::of("([a-c]{1,2}:[!*x]:1:\n){0,4}"),
        groups in proptest::option::of(proptest::collection::vec("[a-c]", 0..3)),
    ) {
        let table = |path, bytes: &[u8]| table::Table::parse(path, bytes);
        let before = Files {
            passwd: table("/etc/passwd", &passwd),
            group: table("/etc/group", group.as_bytes()),
            shadow: shadow.as_ref().map(|text| table("/etc/shadow", text.as_bytes())),
            gshadow: None,
        };
        let setting = Setting { day: 1, shell: "/bin/sh".into() };
        let request = UserAddRequest { user: "web".into(), groups, gecos: Some("w".into()), ..Default::default() };
        let mut files = before.clone();
        let _ = plan::list(&files, &UsersRequest { all: true, after: None });
        if let Ok((_, user)) = plan::add(&mut files, &request, &setting) {
            let (again, same) = plan::add(&mut files.clone(), &request, &setting).unwrap();
            assert_eq!((again, &same), (AccountChange::None, &user));
            let listed = plan::list(&files, &UsersRequest { all: true, after: None });
            assert!(listed.more || listed.users.iter().any(|one| one.name == "web" && one.uid == user.uid));
            // What was there is there, in its order.
            let after: Vec<&[u8]> = files.passwd.lines().collect();
            let mut rest = after.iter();
            assert!(before.passwd.lines().all(|line| rest.any(|kept| *kept == line)));
            if plan::remove(&mut files, "web").is_ok() {
                assert_eq!(files.passwd, before.passwd);
            }
        }
    }
}
