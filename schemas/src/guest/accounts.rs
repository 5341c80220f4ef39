//! `users`, `user_add`, `user_rm`, `keys` and `keys_change`: who may log in to the guest, and with which SSH keys.

use serde::{Deserialize, Serialize};

use crate::secret::Secret;

/// The most users, or keys of one, of an answer.
pub const MAX_ACCOUNTS: usize = 500;
/// The most keys that are added or removed by one request.
pub const MAX_KEYS_CHANGED: usize = 64;
/// The longest line of a key, in bytes.
pub const MAX_KEY_LINE: usize = 8 * 1024;

/// Lists the guest's users.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct UsersRequest {
    /// Those of the system too; else root and people.
    #[serde(default)]
    pub all: bool,
    /// Only those after this one, in the order of names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

/// What a password can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PasswordState {
    /// There is none that fits: keys may log in.
    #[default]
    None,
    /// There is one.
    Set,
    /// The account is locked; some SSH servers refuse its keys too.
    Locked,
    /// It is empty: whoever knows the name is let in where the system allows that.
    Empty,
    /// A state that this reader does not know.
    #[serde(other)]
    Unknown,
}

/// A user of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct UserInfo {
    /// Its name.
    pub name: String,
    /// Its number.
    pub uid: u32,
    /// The number of its own group.
    pub gid: u32,
    /// The groups that it is in beside its own, sorted; at most 64.
    #[serde(default)]
    pub groups: Vec<String>,
    /// The full name, or what else is said of it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub gecos: String,
    /// Its folder.
    pub home: String,
    /// What it gets when it logs in.
    pub shell: String,
    /// What its password can do.
    pub password: PasswordState,
}

/// The guest's users.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct UsersResult {
    /// In the order of names.
    pub users: Vec<UserInfo>,
    /// There are more, after the last of these.
    #[serde(default)]
    pub more: bool,
}

/// Makes a user, or brings the one of that name to what is asked. What is left out stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct UserAddRequest {
    /// Its name: small letters, digits, `-`, `_` and `.`, at most 32.
    pub user: String,
    /// Its number; the next free one of people if left out. Another than it has is a `conflict`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Its own group, which must be there; one of its name if left out, which is made. Another than it has is a
    /// `conflict`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub primary_group: Option<String>,
    /// All groups that it is in beside its own; they must be there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<Vec<String>>,
    /// The full name, or what else is said of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gecos: Option<String>,
    /// Its folder, which is made if it is not there; `/home/` and its name if left out. Another than it has is a
    /// `conflict`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub home: Option<String>,
    /// What it gets when it logs in, which must be there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shell: Option<String>,
    /// Its password as crypt(5) has it, such as `$6$…` or `$y$…` (made by `openssl passwd -6` or `mkpasswd`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_hash: Option<Secret>,
    /// It has no password that fits, and logs in with keys alone; a new user is so unless it gets one.
    #[serde(default)]
    pub no_password: bool,
    /// Whether it may act as root by `sudo`, without a password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sudo: Option<bool>,
}

/// What became of a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AccountChange {
    /// It was so already.
    #[default]
    None,
    /// It is new.
    Made,
    /// It was brought to what was asked.
    Changed,
    /// A change that this reader does not know.
    #[serde(other)]
    Unknown,
}

/// A user as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct UserAddResult {
    /// What was done.
    pub change: AccountChange,
    /// How it is.
    pub user: UserInfo,
    /// Its folder was made.
    #[serde(default)]
    pub home_made: bool,
}

/// Removes a user, its own group if nobody else is in that, and what gives it `sudo`. Never root's or the system's.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct UserRmRequest {
    /// Its name.
    pub user: String,
    /// Its folder too, with all that is in it.
    #[serde(default)]
    pub remove_home: bool,
    /// Kill its processes; else it is `conflict` while there are some.
    #[serde(default)]
    pub force: bool,
}

/// What was removed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct UserRmResult {
    /// The number that it had.
    pub uid: u32,
    /// Its folder, if that was removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub home: Option<String>,
    /// How many processes were killed.
    #[serde(default)]
    pub killed: u32,
}

/// Lists the SSH keys that log in as a user.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct KeysRequest {
    /// The user, by name.
    pub user: String,
}

/// An SSH key that logs in.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct AuthorizedKey {
    /// `SHA256:` and what `ssh-keygen -l` shows.
    pub fingerprint: String,
    /// Its type, such as `ssh-ed25519`.
    #[serde(rename = "type")]
    pub kind: String,
    /// How long it is, in bits.
    pub bits: u32,
    /// What its owner calls it, at most 200 bytes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub comment: String,
    /// What is said of its use, at most 500 bytes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub options: String,
}

/// The SSH keys that log in as a user, from `.ssh/authorized_keys` of its folder.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct KeysResult {
    /// The file; it need not be there.
    pub path: String,
    /// In the order of the file.
    pub keys: Vec<AuthorizedKey>,
    /// Lines that are neither keys that the agent knows, nor comments.
    #[serde(default)]
    pub other_lines: u32,
    /// There are more keys than these.
    #[serde(default)]
    pub more: bool,
    /// Why the SSH server may not take them, as far as is seen.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// Changes the SSH keys that log in as a user.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct KeysChangeRequest {
    /// The user, by name.
    pub user: String,
    /// Keys to add, each a line as in `id_ed25519.pub`. One that is there stays as it is.
    #[serde(default)]
    pub add: Vec<String>,
    /// Keys to remove: fingerprints (`SHA256:…`) or lines. One that is not there is `not_found`.
    #[serde(default)]
    pub remove: Vec<String>,
    /// Remove every key that is not in `add`, and lines that are none; comments stay.
    #[serde(default)]
    pub replace: bool,
    /// Take keys with options (`from="…" ssh-ed25519 …`), also in the place of those with other options.
    #[serde(default)]
    pub allow_options: bool,
}

/// What became of the keys.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct KeysChangeResult {
    /// The file.
    pub path: String,
    /// Those that are new, or have other options.
    #[serde(default)]
    pub added: Vec<AuthorizedKey>,
    /// How many keys and other lines were removed.
    #[serde(default)]
    pub removed: u32,
    /// How many keys there are now.
    pub total: u32,
    /// Why the SSH server may not take them, as far as is seen.
    #[serde(default)]
    pub warnings: Vec<String>,
}
