//! The file that the bus server's configuration is made from, and what is wrong with it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use drover_schemas::Token;
use drover_schemas::size::ByteSize;
use drover_schemas::verbs::Role;
use nkeys::{KeyPair, KeyPairType};
use serde::Deserialize;

use super::password;

/// Who shares the bus, and how the servers of it are run. `config/bus.yaml` explains every key.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BusFile {
    /// One account, or one for each namespace.
    pub mode: Mode,
    /// First token of every subject.
    #[serde(default = "root")]
    pub root: Token,
    /// The servers; one makes no cluster.
    pub servers: Vec<Server>,
    /// Name of the cluster; the root if left out.
    #[serde(default)]
    pub cluster_name: Option<Token>,
    /// Where JetStream stores.
    pub store_dir: PathBuf,
    /// The server's log; what it denies stands there.
    #[serde(default)]
    pub log_file: Option<PathBuf>,
    /// The largest message.
    #[serde(default = "max_payload")]
    pub max_payload: ByteSize,
    /// What JetStream may use of memory.
    #[serde(default = "max_memory")]
    pub max_memory: ByteSize,
    /// What JetStream may use of the disk.
    #[serde(default = "max_storage")]
    pub max_storage: ByteSize,
    /// How long a reply may be awaited across accounts, and a stream be silent, in seconds.
    #[serde(default = "response_threshold_s")]
    pub response_threshold_s: u64,
    /// Transport security; mutual with `ca`.
    #[serde(default)]
    pub tls: Option<TlsFiles>,
    /// A host may make the stream and the buckets if they are absent.
    #[serde(default)]
    pub hosts_may_create: bool,
    /// Hosts, by the names that they have on the bus.
    pub hosts: Vec<Login>,
    /// Who operates hosts and the bus.
    pub admins: Vec<Login>,
    /// Who follows the servers' logs and tells the audit what they denied.
    #[serde(default)]
    pub auditors: Vec<Login>,
    /// Namespaces with their users.
    #[serde(default)]
    pub namespaces: Vec<Namespace>,
}

/// How namespaces are kept apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// By permissions in one account.
    Single,
    /// By an account for each.
    Tenants,
}

/// A server of the bus.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Server {
    /// Its name.
    pub name: Token,
    /// Address and port for clients.
    pub listen: String,
    /// Address and port for the other servers, as they reach it.
    #[serde(default)]
    pub cluster: Option<String>,
}

/// Files in PEM.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// The server's certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Authorities; with them, whoever connects needs a certificate of one.
    #[serde(default)]
    pub ca: Option<PathBuf>,
}

/// A user without roles of a namespace.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Login {
    /// The user, and the last part of its inbox prefix.
    pub name: Token,
    /// The public nkey.
    #[serde(default)]
    pub nkey: Option<String>,
    /// A file with the bcrypt hash of the password.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
}

/// A namespace.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Namespace {
    /// Its name; in mode `tenants` that of its account too.
    pub name: Token,
    /// Its users.
    #[serde(default)]
    pub users: Vec<User>,
}

/// A user of a namespace.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    /// The user, and the last part of its inbox prefix.
    pub name: Token,
    /// What it may do.
    pub roles: BTreeSet<ClientRole>,
    /// The public nkey.
    #[serde(default)]
    pub nkey: Option<String>,
    /// A file with the bcrypt hash of the password.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
}

/// A role within a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClientRole {
    /// Looks.
    Reader,
    /// Creates, starts, stops and deletes VMs.
    Operator,
    /// Runs commands and moves files in guests.
    Guest,
}

impl ClientRole {
    pub(super) const fn role(self) -> Role {
        match self {
            Self::Reader => Role::Reader,
            Self::Operator => Role::Operator,
            Self::Guest => Role::Guest,
        }
    }
}

fn root() -> Token {
    Token::new("drover").unwrap_or_else(|_| unreachable!("a literal of the token grammar"))
}

const fn max_payload() -> ByteSize {
    ByteSize::mib(1)
}

const fn max_memory() -> ByteSize {
    ByteSize::mib(256)
}

const fn max_storage() -> ByteSize {
    ByteSize::mib(10 * 1024)
}

const fn response_threshold_s() -> u64 {
    600
}

/// The file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BusFileError {
    /// It cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is not YAML, or has other keys or values than there are.
    #[error("{} is not a file for `drover bus config`; config/bus.yaml explains every key", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A value cannot be used.
    #[error("{key}: {reason}")]
    Value {
        /// Where it stands.
        key: String,
        /// Why.
        reason: String,
    },
    /// A password file cannot be read.
    #[error("{key}: read {}", path.display())]
    Password {
        /// Where it is named.
        key: String,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// How somebody proves who it is.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Secret {
    /// By the key of this public nkey.
    Nkey(String),
    /// By the password of this hash.
    Hash(String),
}

/// A file in which everything fits together.
pub struct Checked {
    pub(super) file: BusFile,
    pub(super) secrets: BTreeMap<Token, Secret>,
}

impl std::fmt::Debug for Checked {
    /// Without hashes of passwords.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Checked").field("file", &self.file).finish_non_exhaustive()
    }
}

impl BusFile {
    /// Reads a file and what it names, and checks it.
    ///
    /// # Errors
    /// [`BusFileError`] names the line or the key.
    pub fn load(path: &Path) -> Result<Checked, BusFileError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| BusFileError::Read { path: path.to_owned(), source })?;
        let file: Self = serde_saphyr::from_str(&text)
            .map_err(|source| BusFileError::Parse { path: path.to_owned(), source: source.into() })?;
        let folder = path.parent().unwrap_or_else(|| Path::new("")).to_owned();
        file.check(|file| std::fs::read_to_string(folder.join(file)))
    }

    /// Checks everything; `read` gives the text of a password file.
    pub(super) fn check(
        self,
        read: impl Fn(&Path) -> std::io::Result<String>,
    ) -> Result<Checked, BusFileError> {
        self.check_servers()?;
        self.check_numbers()?;
        let mut logins: Vec<(String, &Token, &Option<String>, &Option<PathBuf>)> = Vec::new();
        for (list, all) in [("hosts", &self.hosts), ("admins", &self.admins), ("auditors", &self.auditors)] {
            if all.is_empty() && list != "auditors" {
                return Err(value(list, "name at least one"));
            }
            logins.extend(
                all.iter()
                    .enumerate()
                    .map(|(n, l)| (format!("{list}[{n}]"), &l.name, &l.nkey, &l.password_file)),
            );
        }
        let mut namespaces = BTreeSet::new();
        for (n, namespace) in self.namespaces.iter().enumerate() {
            if !namespaces.insert(&namespace.name) {
                let key = format!("namespaces[{n}].name");
                return Err(value(&key, &format!("{} stands twice", namespace.name)));
            }
            for (m, user) in namespace.users.iter().enumerate() {
                let key = format!("namespaces[{n}].users[{m}]");
                if user.roles.is_empty() {
                    return Err(value(
                        &format!("{key}.roles"),
                        "give at least one of reader, operator, guest",
                    ));
                }
                logins.push((key, &user.name, &user.nkey, &user.password_file));
            }
        }
        let mut secrets = BTreeMap::new();
        for (key, name, nkey, password_file) in logins {
            let secret = secret(&key, nkey.as_deref(), password_file.as_deref(), &read)?;
            let known = matches!(&secret, Secret::Nkey(_)) && secrets.values().any(|other| *other == secret);
            if known {
                return Err(value(&format!("{key}.nkey"), "somebody else has this key"));
            }
            if secrets.insert(name.clone(), secret).is_some() {
                let reason = format!("{name} stands twice; a user's name is unique on the whole bus");
                return Err(value(&format!("{key}.name"), &reason));
            }
        }
        Ok(Checked { file: self, secrets })
    }

    fn check_servers(&self) -> Result<(), BusFileError> {
        let mut names = BTreeSet::new();
        for (n, server) in self.servers.iter().enumerate() {
            if !names.insert(&server.name) {
                let key = format!("servers[{n}].name");
                return Err(value(&key, &format!("{} stands twice", server.name)));
            }
            address(&format!("servers[{n}].listen"), &server.listen)?;
            let key = format!("servers[{n}].cluster");
            match &server.cluster {
                Some(text) => address(&key, text)?,
                None if self.servers.len() > 1 => {
                    return Err(value(&key, "of several servers each needs the address that the others use"));
                }
                None => {}
            }
        }
        match names.is_empty() {
            true => Err(value("servers", "name at least one")),
            false => Ok(()),
        }
    }

    fn check_numbers(&self) -> Result<(), BusFileError> {
        if !(256 << 10..=64 << 20).contains(&self.max_payload.0) {
            return Err(value("max_payload", "use 256KiB to 64MiB: a frame and its headers must fit"));
        }
        if self.response_threshold_s < 120 {
            let reason =
                "use 120 or more: a request may wait for 90 s, and a stream says something every 20 s";
            return Err(value("response_threshold_s", reason));
        }
        if self.log_file.is_none() && !self.auditors.is_empty() {
            return Err(value("log_file", "auditors follow it: give an absolute path, or name no auditors"));
        }
        if !self.store_dir.is_absolute() {
            return Err(value("store_dir", "give an absolute path"));
        }
        Ok(())
    }
}

impl Checked {
    pub(super) fn server(&self, name: Option<&Token>) -> Result<&Server, BusFileError> {
        let servers = &self.file.servers;
        let names = || servers.iter().map(|s| s.name.as_str()).collect::<Vec<_>>().join(", ");
        match name {
            Some(name) => servers
                .iter()
                .find(|server| server.name == *name)
                .ok_or_else(|| value("servers", &format!("there is no {name}, only {}", names()))),
            None if servers.len() > 1 => {
                Err(value("servers", &format!("say for which of them, with --for: {}", names())))
            }
            None => servers.first().ok_or_else(|| value("servers", "name at least one")),
        }
    }
}

fn value(key: &str, reason: &str) -> BusFileError {
    BusFileError::Value { key: key.to_owned(), reason: reason.to_owned() }
}

fn address(key: &str, text: &str) -> Result<(), BusFileError> {
    let good = text.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && !host.contains([' ', '/']) && port.parse::<u16>().is_ok()
    });
    match good {
        true => Ok(()),
        false => Err(value(key, &format!("{text:?} is no address with a port, as 0.0.0.0:4222"))),
    }
}

fn secret(
    key: &str,
    nkey: Option<&str>,
    password_file: Option<&Path>,
    read: &impl Fn(&Path) -> std::io::Result<String>,
) -> Result<Secret, BusFileError> {
    match (nkey, password_file) {
        (Some(nkey), None) => {
            let pair = KeyPair::from_public_key(nkey);
            match pair.is_ok_and(|pair| pair.key_pair_type() == KeyPairType::User) {
                true => Ok(Secret::Nkey(nkey.to_owned())),
                false => {
                    let reason = "this is no public key of a user (56 characters that begin with U)";
                    Err(value(&format!("{key}.nkey"), reason))
                }
            }
        }
        (None, Some(path)) => {
            let key = format!("{key}.password_file");
            let text = read(path).map_err(|source| BusFileError::Password {
                key: key.clone(),
                path: path.to_owned(),
                source,
            })?;
            match password::is_hash(text.trim()) {
                true => Ok(Secret::Hash(text.trim().to_owned())),
                false => {
                    let reason = format!(
                        "{} holds no bcrypt hash; `drover bus password` makes one of a password",
                        path.display()
                    );
                    Err(value(&key, &reason))
                }
            }
        }
        _ => Err(value(key, "give exactly one of nkey and password_file")),
    }
}
