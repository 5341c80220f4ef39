//! What can go wrong with a folder that travels.

use std::io;
use std::path::PathBuf;

/// Why a folder did not travel whole.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// A look at, or a change of, something in the folder failed.
    #[error("cannot {act} {path}", path = shown(path))]
    File {
        /// What was to be done, as a verb.
        act: &'static str,
        /// Its path from the folder on.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file became shorter while it was read.
    #[error("{path} became shorter while it was read; try again when nobody writes it", path = shown(path))]
    Shrunk {
        /// Its path from the folder on.
        path: PathBuf,
    },
    /// Too many folders in each other.
    #[error("{path} lies deeper than {max} folders", path = shown(path), max = crate::MAX_DEPTH)]
    Deep {
        /// Its path from the folder on.
        path: PathBuf,
    },
    /// The stream could not be written.
    #[error("cannot write the stream of the folder")]
    Write {
        /// What the system said.
        source: io::Error,
    },
    /// The stream could not be read.
    #[error("cannot read the stream of the folder")]
    Read {
        /// What the system said.
        source: io::Error,
    },
    /// The stream ended before its end mark.
    #[error("the stream of the folder ends in the middle")]
    Cut,
    /// What came is no stream of a folder.
    #[error("the stream is not a folder in the format of tar: {what}")]
    Malformed {
        /// What is wrong with it.
        what: &'static str,
    },
    /// A name of the stream leads out of the folder, or is none.
    #[error("the stream names {path:?}, which is not a path below the folder")]
    Path {
        /// The name.
        path: PathBuf,
    },
    /// The stream uses something that is not read here.
    #[error("the stream uses {what}, which is not supported here")]
    Unsupported {
        /// What it uses.
        what: &'static str,
    },
    /// More came than was allowed.
    #[error("the stream holds more than the {max} {what} that were allowed")]
    TooMuch {
        /// Bytes or entries.
        what: &'static str,
        /// How many are allowed.
        max: u64,
    },
    /// The folder's name is taken.
    #[error("{path} is there already", path = path.display())]
    Taken {
        /// The name.
        path: PathBuf,
    },
}

fn shown(path: &std::path::Path) -> std::path::Display<'_> {
    if path.as_os_str().is_empty() { std::path::Path::new("the folder").display() } else { path.display() }
}

/// Makes the error of a failed system call.
pub(crate) fn failed<E: Into<io::Error>>(
    act: &'static str,
    path: &std::path::Path,
) -> impl FnOnce(E) -> TreeError {
    let path = path.to_owned();
    move |source| TreeError::File { act, path, source: source.into() }
}
