//! Users and groups, from `/etc/passwd` and `/etc/group` alone: a static program has no NSS.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, Metadata};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;

use drover_schemas::{ErrorBody, ErrorCode};

/// The most that is read of a file, in bytes.
const MAX_FILE: u64 = 4 * 1024 * 1024;

/// The most groups of a process that are set.
const MAX_GROUPS: usize = 256;

/// The most characters of a name that is shown.
const MAX_SHOWN: usize = 32;

/// Whom a command runs as, or who owns a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Every group, the primary one included.
    pub groups: Vec<u32>,
    /// Login name; the number where there is none.
    pub name: String,
    /// Home directory.
    pub home: String,
    /// Login shell.
    pub shell: String,
}

#[derive(Debug, PartialEq, Eq)]
struct Passwd<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
    shell: &'a str,
}

fn passwd(line: &str) -> Option<Passwd<'_>> {
    let mut f = line.split(':');
    let (name, _) = (f.next()?, f.next()?);
    let (uid, gid) = (f.next()?.parse().ok()?, f.next()?.parse().ok()?);
    let (_, home, shell) = (f.next()?, f.next()?, f.next().unwrap_or(""));
    Some(Passwd { name, uid, gid, home, shell })
}

/// Name, id and members of a group.
fn group(line: &str) -> Option<(&str, u32, &str)> {
    let mut f = line.split(':');
    let (name, _) = (f.next()?, f.next()?);
    Some((name, f.next()?.parse().ok()?, f.next().unwrap_or("")))
}

fn read(path: &str) -> String {
    let mut text = Vec::new();
    if let Ok(file) = File::open(path) {
        // A guest without the file has no names; numbers still work.
        let _ = file.take(MAX_FILE).read_to_end(&mut text);
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// Looks up `name`, `uid`, `name:group` or `uid:gid` in the guest's files.
///
/// # Errors
/// `not_found` for a name that is not there.
pub fn resolve(text: &str) -> Result<Account, ErrorBody> {
    resolve_in(text, &read("/etc/passwd"), &read("/etc/group"))
}

/// The names of users, by number.
#[must_use]
pub fn names(uids: &BTreeSet<u32>) -> BTreeMap<u32, String> {
    let file = read("/etc/passwd");
    let known = file.lines().filter_map(passwd).filter(|user| uids.contains(&user.uid));
    let mut names = BTreeMap::new();
    // Of several names for one number the first is the one that programs show.
    for user in known {
        names.entry(user.uid).or_insert_with(|| user.name.chars().take(MAX_SHOWN).collect());
    }
    names
}

/// The account of the agent itself.
#[must_use]
pub fn own() -> Account {
    let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    let fallback = |uid: u32| Account {
        uid,
        gid,
        groups: vec![gid],
        name: uid.to_string(),
        home: if uid == 0 { "/root".to_owned() } else { "/".to_owned() },
        shell: "/bin/sh".to_owned(),
    };
    Account { gid, ..resolve(&uid.to_string()).unwrap_or_else(|_| fallback(uid)) }
}

/// Whether nobody but these users, one of whom it belongs to, can write a file.
#[must_use]
pub fn is_theirs_alone(facts: &Metadata, users: &[u32]) -> bool {
    users.contains(&facts.uid()) && facts.mode() & 0o022 == 0
}

/// Puts `names`, by name or number, in the place of an account's further groups.
///
/// # Errors
/// `not_found` for a name that is not there.
pub fn with_groups(account: &mut Account, names: &[String]) -> Result<(), ErrorBody> {
    with_groups_in(account, names, &read("/etc/group"))
}

fn with_groups_in(account: &mut Account, names: &[String], group_file: &str) -> Result<(), ErrorBody> {
    if names.len() >= MAX_GROUPS {
        let text = format!("{} groups; a process has at most {MAX_GROUPS}", names.len());
        return Err(ErrorBody::new(ErrorCode::InvalidArgument, text));
    }
    let mut groups = vec![account.gid];
    for name in names {
        let found = group_file.lines().filter_map(group).find(|(known, ..)| known == name);
        let id = found.map(|(_, id, _)| id).or_else(|| name.parse().ok());
        let id = id.ok_or_else(|| missing("group", name, "/etc/group"))?;
        if !groups.contains(&id) {
            groups.push(id);
        }
    }
    account.groups = groups;
    Ok(())
}

fn missing(what: &str, name: &str, file: &str) -> ErrorBody {
    ErrorBody::new(ErrorCode::NotFound, format!("no {what} {name:?} in {file} of the guest")).with(what, name)
}

fn resolve_in(text: &str, passwd_file: &str, group_file: &str) -> Result<Account, ErrorBody> {
    let (user, wanted_group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let by_number = user.parse::<u32>().ok();
    let entry = passwd_file
        .lines()
        .filter_map(passwd)
        .find(|p| p.name == user || by_number.is_some_and(|uid| p.uid == uid));
    let (uid, own_gid, name, home, shell) = match (entry, by_number) {
        (Some(p), _) => (p.uid, p.gid, p.name, p.home, p.shell),
        // A number needs no entry; its group is the same number, as is usual.
        (None, Some(uid)) => (uid, uid, user, "/", ""),
        (None, None) => return Err(missing("user", user, "/etc/passwd")),
    };
    let gid = match wanted_group {
        None => own_gid,
        Some(wanted) => {
            let found = group_file.lines().filter_map(group).find(|(name, ..)| *name == wanted);
            match (found, wanted.parse::<u32>()) {
                (Some((_, gid, _)), _) | (None, Ok(gid)) => gid,
                (None, Err(_)) => return Err(missing("group", wanted, "/etc/group")),
            }
        }
    };
    let mut groups = vec![gid];
    for (_, id, members) in group_file.lines().filter_map(group) {
        if members.split(',').any(|m| m == name) && !groups.contains(&id) && groups.len() < MAX_GROUPS {
            groups.push(id);
        }
    }
    let or = |text: &str, other: &str| if text.is_empty() { other.to_owned() } else { text.to_owned() };
    Ok(Account { uid, gid, groups, name: name.to_owned(), home: or(home, "/"), shell: or(shell, "/bin/sh") })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nweb:x:1001:1002:Web,,,:/srv/web:\nbroken\n";
    const GROUP: &str = "root:x:0:\nweb:x:1002:\nadm:x:4:syslog,web\nwww:x:33:web\n";

    #[test]
    fn users_come_with_their_groups() {
        let web = resolve_in("web", PASSWD, GROUP).unwrap();
        assert_eq!((web.uid, web.gid, web.groups), (1001, 1002, vec![1002, 4, 33]));
        assert_eq!((web.home.as_str(), web.shell.as_str()), ("/srv/web", "/bin/sh"));
        assert_eq!(resolve_in("1001", PASSWD, GROUP).unwrap().name, "web");
        assert_eq!(resolve_in("web:adm", PASSWD, GROUP).unwrap().gid, 4);
        assert_eq!(resolve_in("web:77", PASSWD, GROUP).unwrap().groups, [77, 4, 33]);
    }

    #[test]
    fn groups_can_be_chosen() {
        let mut web = resolve_in("web", PASSWD, GROUP).unwrap();
        with_groups_in(&mut web, &["adm".into(), "77".into(), "web".into()], GROUP).unwrap();
        assert_eq!(web.groups, [1002, 4, 77]);
        with_groups_in(&mut web, &[], GROUP).unwrap();
        assert_eq!(web.groups, [1002]);
        let missing = with_groups_in(&mut web, &["nope".into()], GROUP).unwrap_err();
        assert_eq!((missing.code, web.groups), (ErrorCode::NotFound, vec![1002]));
    }

    #[test]
    fn numbers_need_no_entry_and_names_do() {
        let account = resolve_in("70000", PASSWD, GROUP).unwrap();
        assert_eq!((account.uid, account.gid, account.home.as_str()), (70000, 70000, "/"));
        assert_eq!(resolve_in("nobody", PASSWD, GROUP).unwrap_err().code, ErrorCode::NotFound);
        assert_eq!(resolve_in("web:nope", PASSWD, GROUP).unwrap_err().code, ErrorCode::NotFound);
        assert!(resolve_in("", "", "").is_err());
    }
}
