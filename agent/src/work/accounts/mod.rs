//! `users`, `user_add`, `user_rm`, `keys` and `keys_change`: who may log in to the guest, and with which SSH keys.
//!
//! The files of `/etc` are changed by the agent itself, not by programs of the guest: those differ between systems in
//! what they can and say. The lock is theirs all the same, and each file takes its place in one step: first what stands
//! for nothing without a user, then the user, and the other way round when it goes.
//!
//! What lies in a user's folder is done with that user's rights ([`as_user`]): links, pipes and mounts that it has laid
//! lead nowhere that it could not go by itself.

mod as_user;
mod home;
mod key;
mod keys;
mod lock;
mod plan;
mod processes;
mod ssh;
mod system;
mod table;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use drover_schemas::guest::{
    AccountChange, KeysChangeRequest, KeysChangeResult, KeysRequest, KeysResult, UserAddRequest,
    UserAddResult, UserRmRequest, UserRmResult, UsersRequest, UsersResult,
};
use drover_schemas::{ErrorBody, ErrorCode};

use self::keys::Change;
use self::lock::Lock;
use self::plan::{Setting, User};
use self::system::Files;
use super::guest_error;
use super::whole::said;

/// What the texts of one answer may take, in bytes.
const MAX_SHOWN: usize = 48 * 1024;

/// How long between two looks at what others hold.
const PAUSE: Duration = Duration::from_millis(20);

#[expect(clippy::disallowed_methods, reason = "on a thread of its own, which holds up nobody")]
fn pause() {
    std::thread::sleep(PAUSE);
}

/// A path of the guest's below a root; never above it.
fn below(root: &Path, path: impl AsRef<Path>) -> PathBuf {
    let path = path.as_ref();
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// What the system said about a path, as an error of the guest's.
fn said_of(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ErrorBody + use<> {
    let said = said(what, path);
    move |error| guest_error(said(error))
}

/// As much of a guest's text as is shown.
fn shorten(text: &str, bytes: usize) -> String {
    text[..text.floor_char_boundary(bytes)].to_owned()
}

fn invalid(text: impl Into<String>, field: &str) -> ErrorBody {
    ErrorBody::new(ErrorCode::InvalidArgument, text).with("field", field)
}

fn conflict(text: impl Into<String>, cause: &str) -> ErrorBody {
    ErrorBody::new(ErrorCode::Conflict, text).with("cause", cause)
}

/// The system whose users they are: the guest's own but for tests.
#[derive(Debug, Clone, Copy)]
pub(crate) struct System<'a>(pub(crate) &'a Path);

impl System<'_> {
    /// `users`
    pub(crate) fn users(self, request: &UsersRequest) -> Result<UsersResult, ErrorBody> {
        Ok(plan::list(&Files::read(self.0)?, request))
    }

    /// `user_add`
    pub(crate) fn add(
        self,
        request: &UserAddRequest,
        begins: impl FnOnce(),
    ) -> Result<UserAddResult, ErrorBody> {
        plan::check(request)?;
        let _lock = Lock::take(self.0)?;
        let before = Files::read(self.0)?;
        let mut files = before.clone();
        let (mut change, user) = plan::add(&mut files, request, &Setting::of(self.0))?;
        as_user::is_mapped(user.uid)?;
        if let Some(shell) = &request.shell {
            system::is_program(self.0, shell)?;
        }
        let home = home::look(self.0, &user)?;
        let sudo = system::Sudo::of(self.0, &user.name, request.sudo)?;
        begins();
        files.save(self.0, &before)?;
        let home_made = home.make(&user)?;
        if sudo.set()? || home_made {
            change = if change == AccountChange::None { AccountChange::Changed } else { change };
        }
        Ok(UserAddResult { change, user: plan::info(&files, &user), home_made })
    }

    /// `user_rm`
    pub(crate) fn remove(
        self,
        request: &UserRmRequest,
        begins: impl FnOnce(),
    ) -> Result<UserRmResult, ErrorBody> {
        let lock = Lock::take(self.0)?;
        let before = Files::read(self.0)?;
        let mut files = before.clone();
        let user = plan::remove(&mut files, &request.user)?;
        let home = if request.remove_home { home::to_remove(self.0, &files, &user)? } else { None };
        let processes = processes::of(user.uid)?;
        if !processes.is_empty() && !request.force {
            let text = format!(
                "{} processes of {:?} run, such as {}; end them, or set force",
                processes.len(),
                user.name,
                processes[0]
            );
            return Err(conflict(text, "processes"));
        }
        begins();
        let mut killed = processes::kill(user.uid, request.force)?;
        system::Sudo::of(self.0, &user.name, Some(false))?.set()?;
        files.save(self.0, &before)?;
        drop(lock);
        // One that logged in until a moment ago.
        killed += processes::kill(user.uid, request.force)?;
        let home = home.map(home::Held::remove).transpose()?;
        Ok(UserRmResult { uid: user.uid, home, killed })
    }

    fn user(self, name: &str) -> Result<User, ErrorBody> {
        plan::find(&Files::read(self.0)?, name)
    }

    /// The number of a user, for who looks whether it is one that may be asked for.
    pub(crate) fn uid(self, name: &str) -> Result<u32, ErrorBody> {
        Ok(self.user(name)?.uid)
    }

    /// `keys`
    pub(crate) fn keys(self, request: &KeysRequest) -> Result<KeysResult, ErrorBody> {
        let user = self.user(&request.user)?;
        let root = self.0.to_owned();
        let whose = user.clone();
        let found = as_user::run(&user, move || ssh::Folder::look(&root, &whose)?.read())?;
        Ok(KeysResult { path: found.path, warnings: found.warnings, ..keys::list(&found.text) })
    }

    /// `keys_change`
    pub(crate) fn change_keys(
        self,
        request: &KeysChangeRequest,
        begins: impl FnOnce() + Send,
    ) -> Result<KeysChangeResult, ErrorBody> {
        let change = Change::parse(request)?;
        let _turn = ssh::turn();
        let user = self.user(&request.user)?;
        let root = self.0.to_owned();
        let whose = user.clone();
        as_user::run(&user, move || {
            let folder = ssh::Folder::look(&root, &whose)?;
            let before = folder.read()?;
            let after = change.apply(&before.text)?;
            begins();
            let warnings = folder.write(&before, &after.text)?;
            let keys::Changed { added, removed, total, .. } = after;
            Ok(KeysChangeResult { path: before.path, added, removed, total, warnings })
        })
    }
}

#[cfg(test)]
mod tests;
