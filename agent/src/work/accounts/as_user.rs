//! Work on files with the rights of a user and no others.

use std::fs;

use drover_schemas::{ErrorBody, ErrorCode};

use super::plan::User;
use crate::work::guest_error;

/// Nobody's number.
const NONE: libc::uid_t = libc::uid_t::MAX;

/// Runs `work` on a thread of its own that has the user's rights to files. In all else it stays root's, so the user can
/// neither signal nor trace it; with the thread its rights end.
pub(super) fn run<T: Send>(
    user: &User,
    work: impl FnOnce() -> Result<T, ErrorBody> + Send,
) -> Result<T, ErrorBody> {
    let User { uid, gid, groups, .. } = user;
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("as-user".into()).spawn_scoped(scope, || {
            become_user(*uid, *gid, groups)?;
            work()
        });
        let thread = thread.map_err(|error| guest_error(format!("cannot start a thread: {error}")))?;
        thread.join().unwrap_or_else(|_| {
            Err(ErrorBody::new(ErrorCode::Internal, "the agent's work in a user's folder failed"))
        })
    })
}

fn become_user(uid: u32, gid: u32, groups: &[u32]) -> Result<(), ErrorBody> {
    if uid == 0 {
        return Ok(());
    }
    let failed = |what: &str| guest_error(format!("cannot take the rights of user {uid}: {what}"));
    // SAFETY: plain system calls that concern this thread alone; the list outlives the call. The library's `setgroups`
    // would change every thread.
    unsafe {
        if libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) != 0 {
            return Err(failed(&std::io::Error::last_os_error().to_string()));
        }
        libc::setfsgid(gid);
        libc::setfsuid(uid);
        // These calls tell of no failure: they answer what was before.
        let is_so =
            libc::setfsgid(NONE).cast_unsigned() == gid && libc::setfsuid(NONE).cast_unsigned() == uid;
        if !is_so { Err(failed("the kernel refuses")) } else { Ok(()) }
    }
}

/// A guest that shares its host's kernel may have no users but root.
///
/// # Errors
/// `unsupported`
pub(super) fn is_mapped(uid: u32) -> Result<(), ErrorBody> {
    // Without the file there are no namespaces, and every number is a user.
    let Ok(map) = fs::read_to_string("/proc/self/uid_map") else { return Ok(()) };
    if maps(&map, uid) {
        return Ok(());
    }
    let text =
        format!("this guest is made of processes and shares its host's kernel, which gives it no user {uid}");
    Err(ErrorBody::new(ErrorCode::Unsupported, text).with("uid", uid))
}

fn maps(map: &str, uid: u32) -> bool {
    map.lines().any(|line| {
        let mut numbers = line.split_ascii_whitespace().map_while(|number| number.parse::<u64>().ok());
        match (numbers.next(), numbers.next(), numbers.next()) {
            (Some(first), Some(_), Some(count)) => {
                (first..first.saturating_add(count)).contains(&u64::from(uid))
            }
            _ => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    use super::*;

    #[test]
    fn a_user_has_no_rights_of_roots_and_only_while_it_works() {
        if !nix::unistd::geteuid().is_root() {
            return println!("SKIP: needs root");
        }
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let (secret, made) = (dir.path().join("secret"), dir.path().join("made"));
        fs::write(&secret, "x").unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o640)).unwrap();
        let user = User { uid: 4321, gid: 4322, groups: vec![4322], ..User::default() };
        let read = run(&user, || {
            fs::write(&made, "y").unwrap();
            Ok(fs::read(&secret).map_err(|error| error.kind()))
        });
        assert_eq!(read.unwrap(), Err(std::io::ErrorKind::PermissionDenied));
        let made = fs::metadata(&made).unwrap();
        assert_eq!((made.uid(), made.gid()), (4321, 4322));
        assert_eq!(fs::read(&secret).unwrap(), b"x");
        let root = User::default();
        assert_eq!(run(&root, || Ok(fs::read(&secret).unwrap())).unwrap(), b"x");
    }

    #[test]
    fn numbers_that_are_users_are_told_from_others() {
        let whole = "         0          0 4294967295\n";
        assert!(maps(whole, 0) && maps(whole, 1000));
        let one = "0 100007 1\n";
        assert!(maps(one, 0) && !maps(one, 1000) && !maps("", 0) && !maps("a b c", 0));
    }
}
