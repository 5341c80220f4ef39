//! The system's files of users: read whole, and replaced one by one.

use std::fs::{self, File};
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use drover_schemas::{ErrorBody, ErrorCode};

use super::table::Table;
use super::{below, guest_error, invalid, said_of};
use crate::facts::unix_ms;
use crate::work::whole::replace;

/// The most that is read of a file.
const MAX_FILE: u64 = 4 << 20;

/// What is in the files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Files {
    pub(super) passwd: Table,
    pub(super) group: Table,
    /// A small system may have none: then passwords stand in the first.
    pub(super) shadow: Option<Table>,
    pub(super) gshadow: Option<Table>,
}

/// A regular file; `None` if there is none.
fn read(root: &Path, path: &'static str) -> Result<Option<Vec<u8>>, ErrorBody> {
    let at = below(root, path);
    let refused = |what: &str| {
        guest_error(format!("{path} of the guest {what}; users cannot be changed over the link"))
    };
    let opened = File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(&at);
    let file = match opened {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => return Err(refused("is a link")),
        opened => opened.map_err(said_of("open", &at))?,
    };
    let is_file = file.metadata().is_ok_and(|facts| facts.is_file() && facts.len() <= MAX_FILE);
    if !is_file {
        return Err(refused("is no file of at most 4 MiB"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut bytes).map_err(said_of("read", &at))?;
    Ok(Some(bytes))
}

impl Files {
    pub(super) fn read(root: &Path) -> Result<Self, ErrorBody> {
        let table = |path| Ok::<_, ErrorBody>(read(root, path)?.map(|bytes| Table::parse(path, &bytes)));
        let needed = |path| {
            let none =
                || guest_error(format!("the guest has no {path}, and so no users that could be changed"));
            table(path)?.ok_or_else(none)
        };
        Ok(Self {
            passwd: needed("/etc/passwd")?,
            group: needed("/etc/group")?,
            shadow: table("/etc/shadow")?,
            gshadow: table("/etc/gshadow")?,
        })
    }

    /// Writes what is not as it was before. A user is there once its line of `passwd` is, so that comes last; one that
    /// goes has no password and no groups before it is gone, and who asks again ends what was begun.
    pub(super) fn save(&self, root: &Path, before: &Self) -> Result<(), ErrorBody> {
        let tables = [
            (Some(&self.group), Some(&before.group), "etc/group", 0o644),
            (self.gshadow.as_ref(), before.gshadow.as_ref(), "etc/gshadow", 0o600),
            (self.shadow.as_ref(), before.shadow.as_ref(), "etc/shadow", 0o600),
            (Some(&self.passwd), Some(&before.passwd), "etc/passwd", 0o644),
        ];
        for (now, before, path, mode) in tables {
            if let Some(now) = now.filter(|_| now != before) {
                let path = root.join(path);
                replace(&path, &now.bytes(), mode).map_err(said_of("write", &path))?;
            }
        }
        Ok(())
    }
}

/// Days since 1970.
pub(super) fn today() -> u64 {
    unix_ms() / 86_400_000
}

/// What people use, if it is there.
pub(super) fn default_shell(root: &Path) -> String {
    let bash = "/bin/bash";
    if is_program(root, bash).is_ok() { bash } else { "/bin/sh" }.to_owned()
}

/// # Errors
/// `invalid_argument`: who has no shell cannot log in.
pub(super) fn is_program(root: &Path, path: &str) -> Result<(), ErrorBody> {
    let facts = fs::metadata(below(root, path));
    if facts.is_ok_and(|facts| facts.is_file() && facts.permissions().mode() & 0o111 != 0) {
        return Ok(());
    }
    Err(invalid(format!("the guest has no program {path:?}; name a shell that is there"), "shell"))
}

/// Whether a user may act as root.
#[derive(Debug)]
pub(super) struct Sudo {
    path: PathBuf,
    /// What the file is to have; `None` if there is to be no file.
    text: Option<String>,
    is_asked: bool,
}

impl Sudo {
    /// # Errors
    /// `unsupported` if it is wanted where there is no sudo.
    pub(super) fn of(root: &Path, name: &str, wanted: Option<bool>) -> Result<Self, ErrorBody> {
        let dir = root.join("etc/sudoers.d");
        if wanted == Some(true) && !dir.is_dir() {
            let text = "the guest has no sudo (no /etc/sudoers.d); install it, or leave sudo out";
            return Err(ErrorBody::new(ErrorCode::Unsupported, text).with("field", "sudo"));
        }
        // Of names with a point sudo reads no file.
        let path = dir.join(format!("drover-{}", name.replace('.', "%")));
        let text =
            format!("# By the host, over the link of drover-agent.\n{name} ALL=(ALL:ALL) NOPASSWD: ALL\n");
        Ok(Self { path, text: (wanted == Some(true)).then_some(text), is_asked: wanted.is_some() })
    }

    /// Makes it so; says whether it was not.
    pub(super) fn set(&self) -> Result<bool, ErrorBody> {
        let Self { path, text, is_asked } = self;
        match text {
            Some(text) if fs::read(path).ok().as_deref() != Some(text.as_bytes()) => {
                replace(path, text.as_bytes(), 0o440).map_err(said_of("write", path))?;
                Ok(true)
            }
            None if *is_asked => match fs::remove_file(path) {
                Ok(()) => Ok(true),
                Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                    Ok(false)
                }
                Err(error) => Err(said_of("remove", path)(error)),
            },
            _ => Ok(false),
        }
    }
}
