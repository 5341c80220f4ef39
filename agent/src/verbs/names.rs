//! `stat`, `ls`, `rm`, `mkdir`: names, and not what is in files.

use std::collections::BTreeMap;
use std::fs::{Permissions, remove_dir_all};
use std::os::unix::fs::PermissionsExt as _;

use drover_schemas::body::guest::Empty;
use drover_schemas::guest::{
    DirEntry, FileKind, FileStat, LsReply, LsRequest, MAX_ENTRIES, MkdirRequest, RmRequest, StatRequest,
};
use rustix::fs::{self, AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::held::{self, Name};
use super::{Effect, file, invalid, partial, reply};
use crate::dedupe::Outcome;
use crate::policy::Reach;

/// What the names and link targets of one answer may take, in bytes.
const MAX_TEXT: usize = 48 * 1024;

pub(super) async fn stat(request: StatRequest, reach: &Reach) -> Outcome {
    let (path, reach) = (file::path(&request.path)?, reach.clone());
    file::blocking(move || {
        let path = match &request.partial {
            None => path,
            Some(token) => {
                partial::check(token)?;
                let name = Name::find(path)?;
                reach.looks(&name.dir, &name.name)?;
                name.beside(&partial::name(&name.name, token))
            }
        };
        let refused = |e: &std::io::Error| file::refused("look at", std::path::Path::new(&request.path), e);
        // What a put has left is looked at through the folder that is held, whose path is a magic link.
        let handle = if request.partial.is_some() {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            fs::open(&path, flags, Mode::empty()).map_err(|e| refused(&e.into()))?
        } else {
            let handle = held::look(&path, request.follow).map_err(|e| refused(&e))?;
            reach.reads(&handle)?;
            handle
        };
        let stat = fs::fstat(&handle).map_err(|e| refused(&e.into()))?;
        let mut shown = show(&stat);
        if shown.kind == FileKind::Symlink {
            shown.target = Some(target(&handle, "").map_err(|e| refused(&e.into()))?);
        }
        if request.ranges && shown.kind == FileKind::File {
            let file = held::readable(&handle).map_err(|e| refused(&e))?;
            shown.ranges = Some(held::data(&file, shown.size_bytes).map_err(|e| refused(&e))?);
        }
        Ok(shown)
    })
    .await
    .and_then(|shown| reply(&shown))
}

pub(super) async fn ls(request: LsRequest, reach: &Reach) -> Outcome {
    let (path, reach) = (file::path(&request.path)?, reach.clone());
    let limit = request.limit.unwrap_or(MAX_ENTRIES);
    if limit == 0 || limit > MAX_ENTRIES {
        return Err(invalid(format!("limit must be 1 to {MAX_ENTRIES}")));
    }
    file::blocking(move || {
        let refused = |e: &std::io::Error| file::refused("list", &path, e);
        let dir = held::open(&path, OFlags::RDONLY | OFlags::DIRECTORY).map_err(|e| refused(&e))?;
        reach.reads(&dir)?;
        list(&dir, request.after.as_deref().unwrap_or(""), limit as usize).map_err(|e| refused(&e.into()))
    })
    .await
    .and_then(|page| reply(&page))
}

/// The first names after `after`, in memory that does not grow with the folder.
fn list(dir: &std::os::fd::OwnedFd, after: &str, limit: usize) -> Result<LsReply, Errno> {
    let mut page: BTreeMap<String, FileStat> = BTreeMap::new();
    let (mut unreadable, mut more, mut text) = (0, false, 0);
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().to_str() else {
            unreadable += 1;
            continue;
        };
        if matches!(name, "." | "..") || name <= after {
            continue;
        }
        if page.len() >= limit && page.last_key_value().is_some_and(|(last, _)| name > last.as_str()) {
            more = true;
            continue;
        }
        page.insert(name.to_owned(), FileStat::default());
        if page.len() > limit {
            page.pop_last();
            more = true;
        }
    }
    let mut entries = Vec::with_capacity(page.len());
    for (name, _) in page {
        let stat = match fs::statat(dir, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            // It has gone meanwhile.
            Err(Errno::NOENT) => continue,
            Err(errno) => return Err(errno),
        };
        let mut stat = show(&stat);
        if stat.kind == FileKind::Symlink {
            stat.target = target(dir, &name).ok();
        }
        text += name.len() + stat.target.as_ref().map_or(0, String::len);
        if text > MAX_TEXT && !entries.is_empty() {
            more = true;
            break;
        }
        entries.push(DirEntry { name, stat });
    }
    Ok(LsReply { entries, more, unreadable })
}

fn target(dir: &impl std::os::fd::AsFd, name: &str) -> Result<String, Errno> {
    Ok(String::from_utf8_lossy(fs::readlinkat(dir, name, Vec::new())?.as_bytes()).into_owned())
}

fn show(stat: &Stat) -> FileStat {
    let kind = match held::kind(stat) {
        FileType::RegularFile => FileKind::File,
        FileType::Directory => FileKind::Directory,
        FileType::Symlink => FileKind::Symlink,
        FileType::Fifo => FileKind::Fifo,
        FileType::Socket => FileKind::Socket,
        FileType::CharacterDevice | FileType::BlockDevice => FileKind::Device,
        _ => FileKind::Other,
    };
    FileStat {
        kind,
        size_bytes: stat.st_size.cast_unsigned(),
        allocated_bytes: stat.st_blocks.cast_unsigned() * 512,
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime_ms: held::mtime_ms(stat),
        target: None,
        ranges: None,
    }
}

/// Removes a name. Once it has begun it goes on, whatever becomes of the caller.
pub(super) async fn rm(request: RmRequest, reach: &Reach, effect: &Effect) -> Outcome {
    let path = file::path(&request.path)?;
    let name = file::blocking(move || Name::find(path)).await?;
    reach.changes(&name.dir, &name.name)?;
    effect.begins();
    file::blocking(move || {
        let Some(stat) = name.stat()? else {
            return Err(name.refused("remove", Errno::NOENT));
        };
        if held::kind(&stat) != FileType::Directory {
            return fs::unlinkat(&name.dir, &name.name, AtFlags::empty())
                .map_err(|e| name.refused("remove", e));
        }
        if request.recursive {
            // Goes by descriptors and follows no link, whatever is swapped in meanwhile.
            return remove_dir_all(name.beside(&name.name)).map_err(|e| name.refused("remove", e));
        }
        fs::unlinkat(&name.dir, &name.name, AtFlags::REMOVEDIR).map_err(|errno| match errno {
            Errno::NOTEMPTY | Errno::EXIST => invalid(format!(
                "{} is not empty; set recursive to remove what is in it",
                name.path.display()
            )),
            errno => name.refused("remove", errno),
        })
    })
    .await?;
    reply(&Empty {})
}

pub(super) async fn mkdir(request: MkdirRequest, reach: &Reach, effect: &Effect) -> Outcome {
    let (path, reach) = (file::path(&request.path)?, reach.clone());
    let mode = file::mode(request.mode.unwrap_or(0o755))?;
    effect.begins();
    file::blocking(move || {
        if request.parents {
            file::above(&path, &reach)?;
        }
        let name = Name::find(path)?;
        reach.changes(&name.dir, &name.name)?;
        match fs::mkdirat(&name.dir, &name.name, Mode::from_raw_mode(0o700)) {
            Ok(()) => {}
            Err(Errno::EXIST) if request.parents => {
                return match name.stat()? {
                    Some(stat) if held::kind(&stat) == FileType::Directory => Ok(()),
                    _ => Err(name.refused("make the directory", Errno::EXIST)),
                };
            }
            Err(errno) => return Err(name.refused("make the directory", errno)),
        }
        // By its descriptor, for the umask is not the caller's.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = fs::openat(&name.dir, &name.name, flags, Mode::empty());
        let made: std::fs::File = made.map_err(|e| name.refused("open", e))?.into();
        made.set_permissions(Permissions::from_mode(mode)).map_err(|e| name.refused("set the mode of", e))
    })
    .await?;
    reply(&Empty {})
}
