//! What the owner of the guest lets the host do: a file in the guest, read at each request.
//!
//! ```text
//! # /etc/drover-agent/policy: one verb a line, and what of it
//! ping
//! info
//! shutdown
//! exec user=app              # as this user, in none but its own groups
//! get /var/log /srv/app      # in and below these folders
//! put /srv/app
//! keys_change user=app       # the SSH keys of this user
//! user_add user=app          # with a group and a folder of its own, and no other groups or sudo
//! ```
//!
//! Where the file is, every verb that it does not name is refused, and so is what of a verb it does not name; `ping`
//! always works, and `configure`: whether what that declares may be done is looked at when it is due. Lines of one verb add up. A verb that this agent does not know allows nothing and harms
//! nothing, so one file does for agents of several versions. The file counts only if it and its folder belong to root
//! and nobody else may write them; one that is not so, cannot be read or has a condition that is none refuses
//! everything: a mistake never allows more than was meant.
//!
//! The host cannot widen it, unless it may act as root by what is allowed: `exec` without a user, `put` or `unpack`
//! without a folder (or with one that root's programs read), `upgrade`, and what sets users and keys without a user. Whatever is
//! allowed, the file, the agent's program and its folder in `/run` cannot be written or removed by the verbs of files.
//! A hard link is a name like any other: who of the guest may link a file into an allowed folder may show it.

mod reach;
mod rules;

use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use drover_schemas::guest::{ExecRequest, UserAddRequest, verb};
use drover_schemas::{ErrorBody, ErrorCode};

use self::reach::Limits;
pub use self::reach::Reach;
use self::rules::Rules;
use crate::RUN_DIR;
use crate::account::Account;
use crate::{account, command, facts};

/// Where the file is.
pub const POLICY: &str = "/etc/drover-agent/policy";
/// The most that is read of it, in bytes.
const MAX_POLICY: u64 = 64 * 1024;

/// The policy of a guest.
#[derive(Debug)]
pub struct Policy {
    file: PathBuf,
    /// What no verb of files may write or remove where there is a policy, beside the agent's program.
    kept: Vec<PathBuf>,
}

impl Default for Policy {
    /// That of the guest that this agent is in.
    fn default() -> Self {
        Self::new(POLICY.into(), [RUN_DIR.into()])
    }
}

/// What of one request is allowed.
#[derive(Debug, Clone, Default)]
pub struct Permit {
    /// As whom a command may run, or whom a verb of users may concern; anybody if there are none.
    users: Option<Vec<String>>,
    /// Where it may touch files.
    pub reach: Reach,
}

impl Policy {
    /// The policy of a file, which may not be there; no verb of files may change it, nor what is `kept`.
    #[must_use]
    pub fn new(file: PathBuf, kept: impl IntoIterator<Item = PathBuf>) -> Self {
        let folder = file.parent().map(Path::to_owned);
        let kept = kept.into_iter().chain(folder).chain([file.clone()]);
        Self { kept: kept.collect(), file }
    }

    /// What of a verb the host may ask for now.
    ///
    /// # Errors
    /// `permission_denied`
    pub fn check(&self, wanted: &str) -> Result<Permit, ErrorBody> {
        let file = self.file.display();
        let broken = |reason: String| {
            let text = format!(
                "the guest's {file} {reason}; until its owner has mended it in the guest only ping is allowed"
            );
            refusal(text, wanted)
        };
        let rules = match self.read() {
            Ok(None) => return Ok(Permit::default()),
            Ok(Some(rules)) => rules,
            Err(_) if rules::is_always_allowed(wanted) => return Ok(Permit::default()),
            Err(reason) => return Err(broken(reason)),
        };
        let Some(rule) = rules.of(wanted) else {
            let text = format!("the owner of the guest does not allow {wanted:?}: {file} does not name it");
            return Err(refusal(text, wanted));
        };
        // Where it is now: an upgrade moves it.
        let kept = self.kept.iter().cloned().chain(facts::program()).collect();
        let limits = Limits { verb: wanted.to_owned(), folders: rule.folders.clone(), kept };
        Ok(Permit { users: rule.users.clone(), reach: Reach::within(Arc::new(limits)) })
    }

    /// The verbs that are allowed, of those that the agent has; `None` where there is no policy.
    #[must_use]
    pub fn allowed(&self, verbs: &[String]) -> Option<Vec<String>> {
        let rules = self.read().transpose()?.unwrap_or_default();
        Some(verbs.iter().filter(|verb| rules.of(verb).is_some()).cloned().collect())
    }

    fn read(&self) -> Result<Option<Rules>, String> {
        let is_there = |error: &io::Error| error.kind() != ErrorKind::NotFound;
        if let Some(folder) = self.file.parent() {
            match fs::metadata(folder) {
                Ok(facts) => owned(&facts).map_err(|what| format!("lies in a folder that {what}"))?,
                Err(error) if is_there(&error) => return Err(format!("cannot be reached: {error}")),
                Err(_) => return Ok(None),
            }
        }
        // Without waiting: what is there in the place of a file may be a pipe.
        let file = match File::options().read(true).custom_flags(libc::O_NONBLOCK).open(&self.file) {
            Ok(file) => file,
            Err(error) if is_there(&error) => return Err(format!("cannot be opened: {error}")),
            // A link that leads nowhere is a mistake.
            Err(_) if fs::symlink_metadata(&self.file).is_ok() => return Err("leads nowhere".to_owned()),
            Err(_) => return Ok(None),
        };
        let facts = file.metadata().map_err(|e| format!("cannot be looked at: {e}"))?;
        owned(&facts)?;
        if !facts.is_file() || facts.len() > MAX_POLICY {
            return Err(format!("is no file of at most {MAX_POLICY} bytes"));
        }
        let mut text = String::new();
        file.take(MAX_POLICY).read_to_string(&mut text).map_err(|e| format!("cannot be read: {e}"))?;
        Rules::parse(&text).map(Some)
    }
}

/// Whether nobody but root, or the agent's own user, can change a file.
fn owned(facts: &Metadata) -> Result<(), String> {
    if account::is_theirs_alone(facts, &[0, nix::unistd::geteuid().as_raw()]) {
        return Ok(());
    }
    Err("must belong to root and be writable by nobody else".to_owned())
}

fn refusal(text: String, verb: &str) -> ErrorBody {
    ErrorBody::new(ErrorCode::PermissionDenied, text).with("policy", "guest").with("verb", verb)
}

impl Permit {
    /// Whether a command may run as it is asked for.
    ///
    /// # Errors
    /// `permission_denied`, or why there is no such user.
    pub fn runs(&self, request: &ExecRequest) -> Result<(), ErrorBody> {
        let Some(users) = &self.users else { return Ok(()) };
        let asked = command::account(request)?.unwrap_or_else(account::own);
        if users.iter().filter_map(|user| account::resolve(user).ok()).any(|user| is_within(&asked, &user)) {
            return Ok(());
        }
        let text = format!(
            "the owner of the guest allows commands as {} only, in the groups that the guest gives them; name the user",
            users.join(" or ")
        );
        Err(refusal(text, verb::EXEC).with("users", users.join(" ")))
    }

    /// Whether a verb of users may concern the user of a number.
    ///
    /// # Errors
    /// `permission_denied`
    pub fn concerns(&self, verb: &str, uid: u32) -> Result<(), ErrorBody> {
        let Some(users) = &self.users else { return Ok(()) };
        if users.iter().filter_map(|user| account::resolve(user).ok()).any(|user| user.uid == uid) {
            return Ok(());
        }
        Err(of_users(verb, users))
    }

    /// Whether a user may be made or changed so. Who may add one user gets no rights of others by that.
    ///
    /// # Errors
    /// `permission_denied`
    pub fn adds(&self, request: &UserAddRequest) -> Result<(), ErrorBody> {
        let Some(users) = &self.users else { return Ok(()) };
        if !users.contains(&request.user) {
            return Err(of_users(verb::USER_ADD, users));
        }
        let UserAddRequest { uid, primary_group, groups, home, sudo, .. } = request;
        if uid.is_some()
            || primary_group.is_some()
            || groups.is_some()
            || home.is_some()
            || *sudo == Some(true)
        {
            let text = format!(
                "the owner of the guest allows {} with a number, a group and a folder of its own only: leave uid, \
                 primary_group, groups, home and sudo out",
                verb::USER_ADD
            );
            return Err(refusal(text, verb::USER_ADD));
        }
        Ok(())
    }
}

fn of_users(verb: &str, users: &[String]) -> ErrorBody {
    let text = format!("the owner of the guest allows {verb} for {} only", users.join(" and "));
    refusal(text, verb).with("users", users.join(" "))
}

/// Whether somebody has no rights that `user` does not have.
fn is_within(asked: &Account, user: &Account) -> bool {
    let has = |group: &u32| *group == user.gid || user.groups.contains(group);
    asked.uid == user.uid && has(&asked.gid) && asked.groups.iter().all(has)
}

#[cfg(test)]
mod tests;
