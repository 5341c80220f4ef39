//! `drover vm user` and `drover vm keys`: who may log in to the guest, and with which SSH keys.

use std::path::PathBuf;
use std::time::Duration;

use drover_schemas::Token;
use drover_schemas::guest::{
    AccountChange, AuthorizedKey, KeysChangeRequest, KeysChangeResult, KeysRequest, KeysResult,
    PasswordState, UserAddRequest, UserAddResult, UserInfo, UserRmRequest, UserRmResult, UsersRequest,
    UsersResult,
};
use drover_schemas::secret::Secret;
use tokio::io::AsyncReadExt as _;

use super::super::Global;
use super::super::exit::CliError;
use super::super::output::{render, table};
use super::guest::{Guest, plain};
use crate::client::Client;

/// Another program of the guest may hold the lock of its users.
const DEADLINE: Duration = Duration::from_secs(60);
/// The most that is read of a file of keys or of a hash.
const MAX_FILE: u64 = 1 << 20;

/// Verbs of a guest's users.
#[derive(Debug, clap::Subcommand)]
pub enum UserCommand {
    /// Make a user, or bring the one of that name to what is asked; what is left out stays as it is.
    Add(Box<AddArgs>),
    /// Remove a user; never root or one of the guest's system.
    Rm {
        /// The VM.
        name: Token,
        /// The user.
        user: String,
        /// Its folder too, with all that is in it.
        #[arg(long)]
        remove_home: bool,
        /// Kill its processes; else it is refused while there are some.
        #[arg(long)]
        force: bool,
    },
    /// List root and the users that are people.
    Ls {
        /// The VM.
        name: Token,
        /// Those of the guest's system too.
        #[arg(long)]
        all: bool,
    },
}

/// How a user is to be.
#[derive(Debug, clap::Args)]
pub struct AddArgs {
    /// The VM.
    name: Token,
    /// The user.
    user: String,
    /// Its number; the next free one if left out.
    #[arg(long)]
    uid: Option<u32>,
    /// Its own group, which must be there; one of its name if left out.
    #[arg(long, value_name = "GROUP")]
    primary_group: Option<String>,
    /// All groups that it is in beside its own; `--groups ''` for none.
    #[arg(long, value_name = "GROUP,…", value_delimiter = ',')]
    groups: Option<Vec<String>>,
    /// The full name, or what else is said of it.
    #[arg(long, value_name = "TEXT")]
    gecos: Option<String>,
    /// Its folder; /home/USER if left out.
    #[arg(long, value_name = "PATH")]
    home: Option<String>,
    /// What it gets when it logs in.
    #[arg(long, value_name = "PATH")]
    shell: Option<String>,
    /// A file with its password as crypt(5) has it, such as `openssl passwd -6` makes; `-` for standard input.
    #[arg(long, value_name = "FILE", conflicts_with = "no_password")]
    password_hash_file: Option<PathBuf>,
    /// It logs in with keys alone, as new users do.
    #[arg(long)]
    no_password: bool,
    /// Let it act as root by sudo, without a password; `--sudo false` takes that away.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    sudo: Option<bool>,
}

/// Verbs of the SSH keys that log in as a user.
#[derive(Debug, clap::Subcommand)]
pub enum KeysCommand {
    /// List the keys, by fingerprint.
    Ls {
        /// The VM.
        name: Token,
        /// The user.
        user: String,
    },
    /// Add keys; those that are there stay.
    Add(KeysArgs),
    /// Remove keys.
    Rm {
        /// The VM.
        name: Token,
        /// The user.
        user: String,
        /// Fingerprints, such as SHA256:…
        #[arg(value_name = "FINGERPRINT", required_unless_present = "files")]
        fingerprints: Vec<String>,
        /// A file of public keys, `-` for standard input; may be repeated.
        #[arg(long = "file", value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Let these be all keys: others are removed.
    Set(KeysArgs),
}

/// Keys of a user.
#[derive(Debug, clap::Args)]
pub struct KeysArgs {
    /// The VM.
    name: Token,
    /// The user.
    user: String,
    /// A file of public keys, such as ~/.ssh/id_ed25519.pub, `-` for standard input; may be repeated.
    #[arg(long = "file", value_name = "FILE", required_unless_present = "keys")]
    files: Vec<PathBuf>,
    /// A public key, as one argument; may be repeated.
    #[arg(long = "key", value_name = "KEY")]
    keys: Vec<String>,
    /// Take keys with options before them, also in the place of those with others.
    #[arg(long)]
    allow_options: bool,
}

impl UserCommand {
    pub(super) const fn name(&self) -> &Token {
        match self {
            Self::Add(args) => &args.name,
            Self::Rm { name, .. } | Self::Ls { name, .. } => name,
        }
    }
}

impl KeysCommand {
    pub(super) const fn name(&self) -> &Token {
        match self {
            Self::Add(args) | Self::Set(args) => &args.name,
            Self::Ls { name, .. } | Self::Rm { name, .. } => name,
        }
    }
}

/// A file, or standard input.
async fn text(path: &PathBuf) -> Result<String, CliError> {
    let failed = |source| CliError::File { action: "read", path: path.clone(), source };
    let mut text = String::new();
    if path.as_os_str() == "-" {
        tokio::io::stdin().take(MAX_FILE).read_to_string(&mut text).await.map_err(failed)?;
    } else {
        let file = tokio::fs::File::open(path).await.map_err(failed)?;
        file.take(MAX_FILE).read_to_string(&mut text).await.map_err(failed)?;
    }
    Ok(text)
}

/// The keys of files: their lines but for comments.
async fn lines(files: &[PathBuf]) -> Result<Vec<String>, CliError> {
    let mut keys = Vec::new();
    for file in files {
        let text = text(file).await?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let before = keys.len();
        keys.extend(lines.map(str::to_owned));
        if keys.len() == before {
            return Err(CliError::Usage(format!("{} has no key in it", file.display())));
        }
    }
    Ok(keys)
}

pub(super) async fn user(command: &UserCommand, client: &Client, global: &Global) -> Result<(), CliError> {
    let guest = Guest::new(client, command.name(), global.deadline(DEADLINE));
    match command {
        UserCommand::Add(args) => {
            let password_hash = match &args.password_hash_file {
                Some(path) => Some(Secret::new(text(path).await?.trim())),
                None => None,
            };
            let groups = args
                .groups
                .as_ref()
                .map(|groups| groups.iter().filter(|group| !group.is_empty()).cloned().collect::<Vec<_>>());
            let request = UserAddRequest {
                user: args.user.clone(),
                uid: args.uid,
                primary_group: args.primary_group.clone(),
                groups,
                gecos: args.gecos.clone(),
                home: args.home.clone(),
                shell: args.shell.clone(),
                password_hash,
                no_password: args.no_password,
                sudo: args.sudo,
            };
            let done: UserAddResult = guest.change("user_add", &request).await?;
            global.output.print(&done, show_added)
        }
        UserCommand::Rm { user, remove_home, force, .. } => {
            let request = UserRmRequest { user: user.clone(), remove_home: *remove_home, force: *force };
            let gone: UserRmResult = guest.change("user_rm", &request).await?;
            global.output.print(&gone, show_removed)
        }
        UserCommand::Ls { all, .. } => {
            let mut users: Vec<UserInfo> = Vec::new();
            loop {
                let after = users.last().map(|user| user.name.clone());
                let page: UsersResult = guest.ask("users", &UsersRequest { all: *all, after }).await?;
                let is_last = !page.more || page.users.is_empty();
                users.extend(page.users);
                if is_last {
                    break;
                }
            }
            global.output.print(&users, |users| show_users(users))
        }
    }
}

pub(super) async fn keys(command: &KeysCommand, client: &Client, global: &Global) -> Result<(), CliError> {
    let guest = Guest::new(client, command.name(), global.deadline(DEADLINE));
    let (args, replace) = match command {
        KeysCommand::Ls { user, .. } => {
            let listed: KeysResult = guest.ask("keys", &KeysRequest { user: user.clone() }).await?;
            return global.output.print(&listed, show_keys);
        }
        KeysCommand::Rm { user, fingerprints, files, .. } => {
            let mut remove = fingerprints.clone();
            remove.extend(lines(files).await?);
            let request = KeysChangeRequest { user: user.clone(), remove, ..Default::default() };
            let done: KeysChangeResult = guest.change("keys_change", &request).await?;
            return global.output.print(&done, show_changed);
        }
        KeysCommand::Add(args) => (args, false),
        KeysCommand::Set(args) => (args, true),
    };
    let mut add = args.keys.clone();
    add.extend(lines(&args.files).await?);
    let request = KeysChangeRequest {
        user: args.user.clone(),
        add,
        remove: Vec::new(),
        replace,
        allow_options: args.allow_options,
    };
    let done: KeysChangeResult = guest.change("keys_change", &request).await?;
    global.output.print(&done, show_changed)
}

fn show_added(done: &UserAddResult) -> String {
    let what = match done.change {
        AccountChange::Made => "made",
        AccountChange::Changed => "changed",
        AccountChange::None | AccountChange::Unknown => "as it was",
    };
    format!("{} ({}) {what}, {}", plain(&done.user.name), done.user.uid, plain(&done.user.home))
}

fn show_removed(gone: &UserRmResult) -> String {
    let home = gone.home.as_ref().map_or_else(String::new, |home| format!(", with {}", plain(home)));
    let killed = if gone.killed > 0 { format!(", {} processes killed", gone.killed) } else { String::new() };
    format!("{} removed{home}{killed}", gone.uid)
}

fn show_users(users: &[UserInfo]) -> String {
    let mut table = table(&["USER", "UID", "GROUPS", "HOME", "SHELL", "PASSWORD"]);
    for user in users {
        let password = match user.password {
            PasswordState::None => "-",
            PasswordState::Set => "set",
            PasswordState::Locked => "locked",
            PasswordState::Empty => "EMPTY",
            PasswordState::Unknown => "?",
        };
        table.add_row([
            plain(&user.name),
            user.uid.to_string(),
            plain(&user.groups.join(",")),
            plain(&user.home),
            plain(&user.shell),
            password.to_owned(),
        ]);
    }
    render(&mut table)
}

fn key_table(keys: &[AuthorizedKey]) -> String {
    let mut table = table(&["FINGERPRINT", "TYPE", "BITS", "COMMENT", "OPTIONS"]);
    for key in keys {
        table.add_row([
            plain(&key.fingerprint),
            plain(&key.kind),
            key.bits.to_string(),
            plain(&key.comment),
            plain(&key.options),
        ]);
    }
    render(&mut table)
}

fn warnings(warnings: &[String]) -> String {
    warnings.iter().map(|why| format!("\nwarning: {}", plain(why))).collect()
}

fn show_keys(listed: &KeysResult) -> String {
    let other = match listed.other_lines {
        0 => String::new(),
        other => format!("\n{other} other lines"),
    };
    let more = if listed.more { "\nand more" } else { "" };
    format!("{}{other}{more}{}", key_table(&listed.keys), warnings(&listed.warnings))
}

fn show_changed(done: &KeysChangeResult) -> String {
    let KeysChangeResult { path, added, removed, total, .. } = done;
    format!(
        "{}: {} added, {removed} removed, {total} now{}",
        plain(path),
        added.len(),
        warnings(&done.warnings)
    )
}
