//! Imported images on disk. `sha256/<digest>` is a content, `names/<name>.json` says what a name means, `tmp/` is
//! what is being written. Each appears under its name only when it is whole and durable, so a crash leaves a file
//! below `tmp`, which a start removes, or a content without a name, which `image.gc` does. All of it blocks.

use std::fs::{self, File, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use drover_schemas::VmId;
use drover_schemas::body::spec::{ImageFormat, ImageKind};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tracing::warn;

use super::error::ImportError;
use super::head::{self, Head};
use super::hex;

/// What is read and written in one go.
const CHUNK: usize = 1 << 20;
/// What is written or, if it is nothing but zeros, left out: raw disks are mostly empty.
const BLOCK: usize = 64 << 10;
static ZEROS: [u8; BLOCK] = [0; BLOCK];
/// Room that an import leaves on the file system, which others may share.
const SPARE: u64 = 16 << 20;
/// A description of a name is never longer.
const MAX_NAME_BYTES: u64 = 64 * 1024;

/// What a name means.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// The name.
    pub name: String,
    /// What it is good for.
    pub kind: ImageKind,
    /// SHA-256 of the content.
    pub sha256: String,
    /// Its length.
    pub size_bytes: u64,
    /// Its format.
    #[serde(default, skip_serializing_if = "ImageFormat::is_raw")]
    pub format: ImageFormat,
    /// The length of the disk, where its format says another than the file's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virtual_bytes: Option<u64>,
    /// When it was imported.
    pub imported_unix_ms: u64,
    /// It came from the fleet, and goes with what the fleet means by the name.
    #[serde(default)]
    pub from_fleet: bool,
    /// The signature that came with it, as `minisign` writes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
    /// The key whose signature was checked then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signer: Option<String>,
}

/// Reads until a chunk is full or the source has ended: a head that comes in pieces is seen whole.
fn fill(source: &mut impl io::Read, chunk: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < chunk.len() {
        match source.read(&mut chunk[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Writes `bytes` to where the file has a hole so far; zeros stay one.
fn write_data(file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    for (block, at) in bytes.chunks(BLOCK).zip((at..).step_by(BLOCK)) {
        if *block != ZEROS[..block.len()] {
            file.write_all_at(block, at)?;
        }
    }
    Ok(())
}

/// A content that was written and is not in its place yet; dropped, it is gone.
#[derive(Debug)]
pub struct Taken {
    path: PathBuf,
    /// SHA-256 of it.
    pub sha256: String,
    /// Its length.
    pub size_bytes: u64,
    /// What it is by its head.
    pub(super) head: Head,
    /// The digest of the manifest that names it in its registry.
    pub manifest: Option<String>,
}

impl Drop for Taken {
    fn drop(&mut self) {
        // In its place it is not there any more.
        let _ = fs::remove_file(&self.path);
    }
}

/// The store.
#[derive(Debug, Clone)]
pub struct Store {
    dir: PathBuf,
    /// Contents beyond this are not taken.
    max_bytes: Option<u64>,
}

impl Store {
    /// Makes the folders where they are missing, and removes what an import left that did not end.
    ///
    /// # Errors
    /// The folders cannot be made or read.
    pub fn open(dir: &Path, max_bytes: Option<u64>) -> io::Result<Self> {
        let store = Self { dir: dir.to_owned(), max_bytes };
        for folder in ["sha256", "names", "tmp", "uploads"] {
            fs::create_dir_all(dir.join(folder))?;
        }
        for left in fs::read_dir(dir.join("tmp"))? {
            fs::remove_file(left?.path())?;
        }
        Ok(store)
    }

    /// Where a content is.
    #[must_use]
    pub fn content(&self, sha256: &str) -> PathBuf {
        self.dir.join("sha256").join(sha256)
    }

    fn name(&self, name: &str) -> PathBuf {
        self.dir.join("names").join(format!("{name}.json"))
    }

    /// Every name whose content is there. One that cannot be read is told of and left alone.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn names(&self) -> io::Result<Vec<Named>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.dir.join("names"))? {
            let path = entry?.path();
            let read = || -> io::Result<Named> {
                let mut text = Vec::new();
                File::open(&path)?.take(MAX_NAME_BYTES).read_to_end(&mut text)?;
                let named: Named = serde_json::from_slice(&text)?;
                let found = fs::metadata(self.content(&named.sha256))?.len();
                match found == named.size_bytes && self.name(&named.name) == path {
                    true => Ok(named),
                    false => Err(io::Error::other(format!("its content has {found} bytes"))),
                }
            };
            match read() {
                Ok(named) => names.push(named),
                Err(error) => warn!(path = %path.display(), %error, "an imported image cannot be used"),
            }
        }
        Ok(names)
    }

    /// Room that is left, in bytes.
    ///
    /// # Errors
    /// The file system does not say.
    pub fn free(&self) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(&self.dir)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Copies what says that it has `size` bytes into the store, checked. `progress` hears how many bytes are there.
    ///
    /// # Errors
    /// [`ImportError`]; nothing is left then.
    pub fn take(
        &self,
        mut source: impl io::Read,
        size: u64,
        kind: ImageKind,
        expected: Option<&str>,
        mut progress: impl FnMut(u64),
    ) -> Result<Taken, ImportError> {
        let write = |source| ImportError::Write { path: self.dir.clone(), source };
        if let Some(limit) = self.max_bytes {
            let held = self.held().map_err(write)?;
            if held.saturating_add(size) > limit {
                return Err(ImportError::Quota { needed: size, held, limit });
            }
        }
        let left = self.free().map_err(write)?.saturating_sub(SPARE);
        if size > left {
            return Err(ImportError::Room { needed: size, left });
        }
        let path = self.dir.join("tmp").join(VmId::generate().to_string());
        let file = File::create_new(&path).map_err(write)?;
        let (sha256, head) = (String::new(), Head::default());
        let mut taken = Taken { path, sha256, size_bytes: 0, head, manifest: None };
        let (mut hasher, mut chunk) = (Sha256::new(), vec![0; CHUNK]);
        loop {
            let read = fill(&mut source, &mut chunk).map_err(ImportError::Read)?;
            let bytes = &chunk[..read];
            if taken.size_bytes == 0 {
                // What broke off says nothing of what the whole is.
                if (read as u64) < size.min(CHUNK as u64) {
                    return Err(ImportError::Changed { expected: size, found: read as u64 });
                }
                taken.head = head::check(kind, &bytes[..read.min(head::HEAD)], size)?;
            }
            if read == 0 {
                break;
            }
            let at = taken.size_bytes;
            taken.size_bytes += read as u64;
            if taken.size_bytes > size {
                break;
            }
            hasher.update(bytes);
            write_data(&file, bytes, at).map_err(write)?;
            progress(taken.size_bytes);
        }
        if taken.size_bytes != size {
            return Err(ImportError::Changed { expected: size, found: taken.size_bytes });
        }
        taken.sha256 = hex(&hasher.finalize());
        if let Some(expected) = expected.filter(|expected| *expected != taken.sha256) {
            return Err(ImportError::Digest { expected: expected.to_owned(), found: taken.sha256.clone() });
        }
        // VMMs read it as users of their own; nobody writes to it.
        file.set_permissions(Permissions::from_mode(0o444)).map_err(write)?;
        // It may end with a hole.
        file.set_len(size).map_err(write)?;
        file.sync_all().map_err(write)?;
        Ok(taken)
    }

    /// Puts a content into its place, over one that may be damaged, and lets a name mean it. Whoever has the former file
    /// open keeps it.
    ///
    /// # Errors
    /// The store cannot be written; the name means what it meant, and nothing is kept.
    pub fn put(&self, taken: &Taken, named: &Named) -> Result<(), ImportError> {
        let to = self.content(&taken.sha256);
        let known = to.exists();
        let place = || {
            fs::rename(&taken.path, &to)?;
            sync(&self.dir.join("sha256"))
        };
        self.describe(named, place).map_err(|source| {
            if !known {
                let _ = fs::remove_file(&to);
            }
            ImportError::Write { path: self.dir.clone(), source }
        })
    }

    /// Lets a name mean a content that is there, in the place of what it means.
    ///
    /// # Errors
    /// There is no such content, or the store cannot be written; the name means what it meant.
    pub fn name_it(&self, named: &Named) -> io::Result<()> {
        let content = self.content(&named.sha256);
        self.describe(named, || fs::metadata(content).map(drop))
    }

    /// Writes what a name means, and has it count once `place` has put the content where it belongs.
    fn describe(&self, named: &Named, place: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let partial = self.dir.join("tmp").join(VmId::generate().to_string());
        // All that needs room comes first.
        let written = || {
            let mut file = File::create_new(&partial)?;
            file.write_all(&serde_json::to_vec_pretty(named)?)?;
            file.sync_all()
        };
        let described = written().and_then(|()| place()).and_then(|()| {
            fs::rename(&partial, self.name(&named.name))?;
            sync(&self.dir.join("names"))
        });
        described.inspect_err(|_| {
            let _ = fs::remove_file(&partial);
        })
    }

    /// Takes a name away.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn remove_name(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.name(name))?;
        sync(&self.dir.join("names"))
    }

    /// Every content with its length, named or not.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn contents(&self) -> io::Result<Vec<(String, u64)>> {
        let entries = fs::read_dir(self.dir.join("sha256"))?;
        let sized = entries.map(|entry| {
            let entry = entry?;
            Ok((entry.file_name().to_string_lossy().into_owned(), entry.metadata()?.len()))
        });
        sized.collect()
    }

    /// What all contents take, in bytes.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn held(&self) -> io::Result<u64> {
        Ok(self.contents()?.iter().map(|(_, size)| size).sum())
    }

    /// Notes that chunks of an object are about to be written to the bus under `id`, so that they can be taken away
    /// though the daemon dies.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn note_upload(&self, id: &str, object: &str) -> io::Result<()> {
        let folder = self.dir.join("uploads");
        let mut file = File::create_new(folder.join(id))?;
        file.write_all(object.as_bytes())?;
        file.sync_all()?;
        sync(&folder)
    }

    /// The chunks are part of an object, or gone.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn forget_upload(&self, id: &str) -> io::Result<()> {
        fs::remove_file(self.dir.join("uploads").join(id))
    }

    /// Uploads that did not end: their ids with the names of the objects.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn uploads(&self) -> io::Result<Vec<(String, String)>> {
        let entries = fs::read_dir(self.dir.join("uploads"))?;
        let noted = entries.map(|entry| {
            let path = entry?.path();
            let mut object = String::new();
            File::open(&path)?.take(MAX_NAME_BYTES).read_to_string(&mut object)?;
            let id = path.file_name().map(|id| id.to_string_lossy().into_owned()).unwrap_or_default();
            Ok((id, object))
        });
        noted.collect()
    }

    /// Removes a content.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn remove_content(&self, sha256: &str) -> io::Result<()> {
        fs::remove_file(self.content(sha256))?;
        sync(&self.dir.join("sha256"))
    }
}

fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Opens a regular file below one of `dirs`. No link on the way is followed, and nothing is waited for.
///
/// # Errors
/// [`ImportError`] says what is wrong with the path.
pub fn open_below(dirs: &[PathBuf], path: &str) -> Result<File, ImportError> {
    if dirs.is_empty() {
        return Err(ImportError::NoDirectories);
    }
    let below = dirs.iter().find_map(|dir| Some((dir, Path::new(path).strip_prefix(dir).ok()?)));
    let Some((dir, rest)) = below.filter(|(_, rest)| !rest.as_os_str().is_empty()) else {
        let dirs = dirs.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(", ");
        return Err(ImportError::Outside { path: path.to_owned(), dirs });
    };
    let open = || -> io::Result<File> {
        let dir = rustix::fs::open(dir, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        Ok(rustix::fs::openat2(dir, rest, flags, Mode::empty(), resolve)?.into())
    };
    let failed = |source| ImportError::Open { path: path.to_owned(), source };
    let file = open().map_err(failed)?;
    match file.metadata().map_err(failed)?.is_file() {
        true => Ok(file),
        false => Err(ImportError::NotAFile { path: path.to_owned() }),
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
