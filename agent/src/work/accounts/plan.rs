//! What becomes of the files of users: pure, and the same again if it is asked for again.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::ops::RangeInclusive;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use drover_schemas::guest::{
    AccountChange, MAX_ACCOUNTS, PasswordState, UserAddRequest, UserInfo, UsersRequest, UsersResult,
};
use drover_schemas::{ErrorBody, ErrorCode};

use super::system::{Files, default_shell, today};
use super::table::{Table, fields, members, number};
use super::{MAX_SHOWN, conflict, invalid, shorten};

/// Numbers of people, as systems have them that say nothing else; others are the system's.
const PEOPLE: RangeInclusive<u32> = 1000..=60_000;
/// The most groups that are shown of a user, and taken along by work in its folder.
const MAX_GROUPS: usize = 64;
/// The most that a hash of a password may have.
const MAX_HASH: usize = 384;
/// No password fits. Not a lock (`!`): an SSH server without PAM would refuse keys for that.
const NO_PASSWORD: &[u8] = b"*";

const PASSWD: &str = "/etc/passwd";

/// A user as the files have it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct User {
    pub(super) name: String,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// All of them, its own first.
    pub(super) groups: Vec<u32>,
    pub(super) home: PathBuf,
}

/// What does not stand in the files.
#[derive(Debug, Clone)]
pub(super) struct Setting {
    /// Days since 1970.
    pub(super) day: u64,
    /// What a new user gets when it logs in.
    pub(super) shell: String,
}

impl Setting {
    pub(super) fn of(root: &Path) -> Self {
        Self { day: today(), shell: default_shell(root) }
    }
}

/// What is wrong with a request whatever the guest is.
pub(super) fn check(request: &UserAddRequest) -> Result<(), ErrorBody> {
    let UserAddRequest { user: name, uid, gecos, home, shell, password_hash, .. } = request;
    let first = |b: &u8| b.is_ascii_lowercase() || *b == b'_';
    let is_name = name.len() <= 32
        && name.as_bytes().first().is_some_and(first)
        && name.bytes().all(|b| first(&b) || b.is_ascii_digit() || matches!(b, b'-' | b'.'));
    if !is_name {
        let text = format!(
            "{:?} is no name of a user: use up to 32 small letters, digits, '-', '_' and '.', a letter or '_' first",
            shorten(name, 60)
        );
        return Err(invalid(text, "user"));
    }
    if uid.is_some_and(|uid| !PEOPLE.contains(&uid)) {
        let text = format!("a user's uid is {} to {}; others are the system's", PEOPLE.start(), PEOPLE.end());
        return Err(invalid(text, "uid"));
    }
    let is_field = |text: &str, most| text.len() <= most && !text.chars().any(|c| c == ':' || c.is_control());
    if gecos.as_ref().is_some_and(|text| !is_field(text, 256)) {
        return Err(invalid("gecos has at most 256 bytes and no ':' or control character", "gecos"));
    }
    for (field, path) in [("home", home), ("shell", shell)] {
        let is_path = |path: &String| {
            is_field(path, 256)
                && path.starts_with('/')
                && path.len() > 1
                && !path.split('/').any(|part| part == "..")
        };
        if path.as_ref().is_some_and(|path| !is_path(path)) {
            return Err(invalid(
                format!("{field} is an absolute path of at most 256 bytes, without ':' and '..'"),
                field,
            ));
        }
    }
    if password_hash.is_some() && request.no_password {
        return Err(invalid("password_hash and no_password exclude each other", "no_password"));
    }
    // The text itself is never said.
    if password_hash.as_ref().is_some_and(|hash| !is_hash(hash.reveal())) {
        let text =
            "password_hash is none of crypt(5), such as `openssl passwd -6` makes; a password is not taken";
        return Err(invalid(text, "password_hash"));
    }
    Ok(())
}

fn is_hash(text: &str) -> bool {
    let mut parts = text.split('$');
    let (empty, method) = (parts.next(), parts.next().unwrap_or_default());
    let is_plain =
        |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'/' | b'$' | b'=' | b',' | b'-' | b'_');
    empty == Some("")
        && text.len() <= MAX_HASH
        && matches!(method, "y" | "gy" | "7" | "2a" | "2b" | "2y" | "5" | "6")
        && parts.next_back().is_some_and(|last| last.len() >= 20)
        && text.bytes().all(is_plain)
}

fn text(field: Option<&[u8]>, most: usize) -> String {
    shorten(&String::from_utf8_lossy(field.unwrap_or_default()), most)
}

/// The user of a name.
///
/// # Errors
/// `not_found`, or what is wrong with its line.
pub(super) fn find(files: &Files, name: &str) -> Result<User, ErrorBody> {
    known(files, name)?.ok_or_else(|| {
        let name = shorten(name, 60);
        let text = format!("no user {name:?} in {PASSWD} of the guest");
        ErrorBody::new(ErrorCode::NotFound, text).with("user", name)
    })
}

fn known(files: &Files, name: &str) -> Result<Option<User>, ErrorBody> {
    // References to elsewhere are no users.
    if name.is_empty() || name.starts_with(['+', '-', '#']) {
        return Ok(None);
    }
    let Some(line) = files.passwd.get(name)? else { return Ok(None) };
    let field = |n| fields(line).nth(n);
    let (Some(uid), Some(gid)) = (number(field(2)), number(field(3))) else {
        return Err(conflict(
            format!("the line of {name:?} in {PASSWD} of the guest is broken; mend it there"),
            "broken",
        ));
    };
    let home = PathBuf::from(OsStr::from_bytes(field(5).unwrap_or_default()));
    let mut groups = vec![gid];
    for line in files.group.lines() {
        let (id, list) = (number(fields(line).nth(2)), fields(line).nth(3).unwrap_or_default());
        if let Some(id) = id.filter(|id| !groups.contains(id))
            && groups.len() < MAX_GROUPS
            && members(list).any(|one| one == name.as_bytes())
        {
            groups.push(id);
        }
    }
    Ok(Some(User { name: name.to_owned(), uid, gid, groups, home }))
}

fn password(files: &Files, line: &[u8]) -> PasswordState {
    let name = fields(line).next().unwrap_or_default();
    let own = fields(line).nth(1).unwrap_or_default();
    let shadow = files.shadow.iter().flat_map(Table::lines);
    let hash = match own {
        b"x" => shadow.filter(|line| fields(line).next() == Some(name)).find_map(|line| fields(line).nth(1)),
        own => Some(own),
    };
    match hash {
        Some(b"") => PasswordState::Empty,
        Some([b'!', ..]) => PasswordState::Locked,
        Some(hash) if hash.len() >= 13 => PasswordState::Set,
        _ => PasswordState::None,
    }
}

fn shown(files: &Files, line: &[u8], groups: &BTreeMap<&[u8], BTreeSet<&[u8]>>) -> Option<UserInfo> {
    let field = |n| fields(line).nth(n);
    let name = field(0)?;
    if name.is_empty() || matches!(name[0], b'+' | b'-' | b'#') {
        return None;
    }
    let of = groups.get(name).into_iter().flatten().take(MAX_GROUPS);
    Some(UserInfo {
        name: text(Some(name), 64),
        uid: number(field(2))?,
        gid: number(field(3))?,
        groups: of.map(|group| text(Some(group), 64)).collect(),
        gecos: text(field(4), 256),
        home: text(field(5), 256),
        shell: text(field(6), 256),
        password: password(files, line),
    })
}

/// Which groups name whom.
fn memberships(group: &Table) -> BTreeMap<&[u8], BTreeSet<&[u8]>> {
    let mut all: BTreeMap<&[u8], BTreeSet<&[u8]>> = BTreeMap::new();
    for line in group.lines() {
        let name = fields(line).next().unwrap_or_default();
        for member in members(fields(line).nth(3).unwrap_or_default()) {
            all.entry(member).or_default().insert(name);
        }
    }
    all
}

/// A user that is there, as it is shown.
pub(super) fn info(files: &Files, user: &User) -> UserInfo {
    let line = files.passwd.get(&user.name).ok().flatten().unwrap_or_default();
    shown(files, line, &memberships(&files.group)).unwrap_or_default()
}

/// `users`
pub(super) fn list(files: &Files, request: &UsersRequest) -> UsersResult {
    let groups = memberships(&files.group);
    let is_wanted = |line: &&[u8]| {
        let uid = number(fields(line).nth(2));
        let is_after =
            request.after.as_ref().is_none_or(|after| fields(line).next() > Some(after.as_bytes()));
        is_after && (request.all || uid.is_some_and(|uid| uid == 0 || PEOPLE.contains(&uid)))
    };
    let mut lines: Vec<&[u8]> = files.passwd.lines().filter(is_wanted).collect();
    lines.sort_by_key(|line| fields(line).next());
    let mut result = UsersResult::default();
    let mut room = MAX_SHOWN;
    for user in lines.into_iter().filter_map(|line| shown(files, line, &groups)) {
        let texts = [&user.name, &user.gecos, &user.home, &user.shell].map(String::len).iter().sum::<usize>();
        let size = 120 + texts + user.groups.iter().map(|group| group.len() + 4).sum::<usize>();
        if result.users.len() >= MAX_ACCOUNTS || size > room {
            result.more = true;
            break;
        }
        room -= size;
        result.users.push(user);
    }
    result
}

/// `user_add`, in the files.
///
/// # Errors
/// `conflict` for what cannot be changed, `not_found` for groups that are not there.
pub(super) fn add(
    files: &mut Files,
    request: &UserAddRequest,
    setting: &Setting,
) -> Result<(AccountChange, User), ErrorBody> {
    let (name, before) = (&request.user, files.clone());
    let is_new = match known(files, name)? {
        None => {
            make(files, request, setting)?;
            true
        }
        Some(user) => {
            change(files, request, &user, setting)?;
            false
        }
    };
    if let Some(wanted) = &request.groups {
        set_groups(files, name, wanted)?;
    }
    let user = find(files, name)?;
    Ok(match is_new {
        true => (AccountChange::Made, user),
        false if *files == before => (AccountChange::None, user),
        false => (AccountChange::Changed, user),
    })
}

fn group_id(files: &Files, name: &str, field: &str) -> Result<u32, ErrorBody> {
    let line = if name.is_empty() { None } else { files.group.get(name)? };
    line.and_then(|line| number(fields(line).nth(2))).ok_or_else(|| {
        let text =
            format!("no group {:?} in /etc/group of the guest; make it there first", shorten(name, 60));
        ErrorBody::new(ErrorCode::NotFound, text).with("field", field)
    })
}

fn taken(table: &Table) -> BTreeSet<u32> {
    table.lines().filter_map(|line| number(fields(line).nth(2))).collect()
}

/// The one after the highest: a number that somebody had is not given to the next at once.
fn next(taken: &BTreeSet<u32>) -> Option<u32> {
    let after = taken.range(PEOPLE).next_back().map_or(*PEOPLE.start(), |last| last + 1);
    (after..=*PEOPLE.end()).next().or_else(|| PEOPLE.clone().find(|id| !taken.contains(id)))
}

fn full() -> ErrorBody {
    ErrorBody::new(ErrorCode::ResourceExhausted, "every number of a user or a group is taken in the guest")
}

fn make(files: &mut Files, request: &UserAddRequest, setting: &Setting) -> Result<(), ErrorBody> {
    let name = &request.user;
    let uids = taken(&files.passwd);
    let uid = match request.uid {
        Some(uid) if uids.contains(&uid) => {
            return Err(
                conflict(format!("another user of the guest has the uid {uid}"), "uid").with("field", "uid")
            );
        }
        Some(uid) => uid,
        None => next(&uids).ok_or_else(full)?,
    };
    let gid = match &request.primary_group {
        Some(group) => group_id(files, group, "primary_group")?,
        None => own_group(files, name, uid)?,
    };
    let hash = request.password_hash.as_ref().map_or(NO_PASSWORD, |hash| hash.reveal().as_bytes());
    if let Some(shadow) = &mut files.shadow {
        shadow.set(name, shadow_line(name, hash, setting.day))?;
    }
    let home = request.home.clone().unwrap_or_else(|| format!("/home/{name}"));
    let shell = request.shell.as_ref().unwrap_or(&setting.shell);
    let gecos = request.gecos.as_deref().unwrap_or_default();
    let mut line = format!("{name}:").into_bytes();
    line.extend_from_slice(if files.shadow.is_some() { b"x" } else { hash });
    line.extend_from_slice(format!(":{uid}:{gid}:{gecos}:{home}:{shell}").as_bytes());
    files.passwd.set(name, line)
}

fn shadow_line(name: &str, hash: &[u8], day: u64) -> Vec<u8> {
    [name.as_bytes(), b":", hash, format!(":{day}:0:99999:7:::").as_bytes()].concat()
}

/// The group of a new user's own name.
fn own_group(files: &mut Files, name: &str, uid: u32) -> Result<u32, ErrorBody> {
    if let Some(line) = files.group.get(name)? {
        let (id, list) = (number(fields(line).nth(2)), fields(line).nth(3).unwrap_or_default());
        let is_used = files.passwd.lines().any(|line| number(fields(line).nth(3)) == id);
        // What a request has left that ended half-way; any other group gives rights that nobody asked for.
        return match id.filter(|id| PEOPLE.contains(id)) {
            Some(id) if !is_used && members(list).next().is_none() => Ok(id),
            _ => {
                let text =
                    format!("the guest has a group {name:?}; to put the user in it name it as primary_group");
                Err(conflict(text, "group").with("field", "primary_group"))
            }
        };
    }
    let gids = taken(&files.group);
    let gid = if gids.contains(&uid) { next(&gids).ok_or_else(full)? } else { uid };
    files.group.set(name, format!("{name}:x:{gid}:").into_bytes())?;
    if let Some(gshadow) = &mut files.gshadow {
        gshadow.set(name, format!("{name}:!::").into_bytes())?;
    }
    Ok(gid)
}

fn change(
    files: &mut Files,
    request: &UserAddRequest,
    user: &User,
    setting: &Setting,
) -> Result<(), ErrorBody> {
    let (name, uid) = (&request.user, user.uid);
    if uid != 0 && !PEOPLE.contains(&uid) {
        return Err(of_the_system(name, uid));
    }
    let differs = |field: &str, now: String| {
        let text = format!("the user {name:?} is there with another {field} ({now}), which is not changed");
        Err(conflict(text, field).with("field", field))
    };
    if request.uid.is_some_and(|wanted| wanted != uid) {
        return differs("uid", uid.to_string());
    }
    if let Some(group) = &request.primary_group
        && group_id(files, group, "primary_group")? != user.gid
    {
        return differs("primary_group", user.gid.to_string());
    }
    if request.home.as_ref().is_some_and(|home| Path::new(home) != user.home) {
        return differs("home", user.home.display().to_string());
    }
    for (field, value) in [(4, &request.gecos), (6, &request.shell)] {
        if let Some(value) = value {
            files.passwd.set_field(name, field, value.as_bytes())?;
        }
    }
    let hash = request.password_hash.as_ref().map(|hash| hash.reveal().as_bytes());
    let Some(hash) = hash.or(request.no_password.then_some(NO_PASSWORD)) else { return Ok(()) };
    let Some(shadow) = &mut files.shadow else { return files.passwd.set_field(name, 1, hash) };
    let now = shadow.get(name)?.map(|line| fields(line).nth(1).unwrap_or_default().to_vec());
    match now {
        Some(now) if now == hash => {}
        Some(_) => {
            shadow.set_field(name, 1, hash)?;
            shadow.set_field(name, 2, setting.day.to_string().as_bytes())?;
        }
        None => shadow.set(name, shadow_line(name, hash, setting.day))?,
    }
    files.passwd.set_field(name, 1, b"x")
}

fn of_the_system(name: &str, uid: u32) -> ErrorBody {
    conflict(
        format!(
            "{name:?} ({uid}) is a user of the guest's system; people are {} to {}",
            PEOPLE.start(),
            PEOPLE.end()
        ),
        "system_user",
    )
    .with("uid", uid)
}

fn set_groups(files: &mut Files, name: &str, wanted: &[String]) -> Result<(), ErrorBody> {
    if wanted.len() > MAX_GROUPS {
        return Err(invalid(format!("at most {MAX_GROUPS} groups"), "groups"));
    }
    for group in wanted {
        group_id(files, group, "groups")?;
    }
    let gid = find(files, name)?.gid;
    let own: BTreeSet<Vec<u8>> = files
        .group
        .lines()
        .filter(|line| number(fields(line).nth(2)) == Some(gid))
        .filter_map(|line| fields(line).next().map(<[u8]>::to_vec))
        .collect();
    // Its own group needs no mention, and keeps one that is there.
    let is_wanted = |group: &[u8]| {
        let is_named = wanted.iter().any(|wanted| wanted.as_bytes() == group);
        (!own.contains(group)).then_some(is_named)
    };
    files.group.set_member(3, name, is_wanted);
    if let Some(gshadow) = &mut files.gshadow {
        gshadow.set_member(3, name, is_wanted);
    }
    Ok(())
}

/// `user_rm`, in the files; says whom.
///
/// # Errors
/// `not_found`, and `conflict` for root and users of the system.
pub(super) fn remove(files: &mut Files, name: &str) -> Result<User, ErrorBody> {
    let user = find(files, name)?;
    if !PEOPLE.contains(&user.uid) {
        return Err(of_the_system(name, user.uid));
    }
    let same = |line: &&[u8]| number(fields(line).nth(2)) == Some(user.uid);
    if files.passwd.lines().filter(same).count() > 1 {
        let text = format!("another user of the guest has the uid {} too; remove it in the guest", user.uid);
        return Err(conflict(text, "shared_uid"));
    }
    files.passwd.remove(name)?;
    let (group, gid) = (files.group.get(name)?, Some(user.gid));
    let is_own = group.is_some_and(|line| {
        let others = members(fields(line).nth(3).unwrap_or_default()).any(|one| one != name.as_bytes());
        number(fields(line).nth(2)) == gid && !others
    });
    let is_free = is_own && !files.passwd.lines().any(|line| number(fields(line).nth(3)) == gid);
    if is_free {
        files.group.remove(name)?;
    }
    files.group.set_member(3, name, |_| Some(false));
    if let Some(gshadow) = &mut files.gshadow {
        if is_free {
            gshadow.remove(name)?;
        }
        gshadow.set_member(2, name, |_| Some(false));
        gshadow.set_member(3, name, |_| Some(false));
    }
    if let Some(shadow) = &mut files.shadow {
        shadow.remove(name)?;
    }
    Ok(user)
}
