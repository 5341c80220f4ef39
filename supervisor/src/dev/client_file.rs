//! `client.json`: how the clients of this machine find and enter the bus of a running `drover dev`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::DevError;
use super::state::{StateDir, default_root};

const NAME: &str = "client.json";

/// Where the bus is, and who may enter.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientFile {
    /// URL of the server.
    pub url: String,
    /// The user.
    pub user: String,
    /// The password.
    pub password: String,
}

impl std::fmt::Debug for ClientFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientFile").field("url", &self.url).finish_non_exhaustive()
    }
}

impl ClientFile {
    /// That of the running `drover dev`, if there is one: in the folder of `DROVER_DEV_STATE`, or
    /// the default one.
    ///
    /// # Errors
    /// The file is there and cannot be read.
    pub fn find() -> Result<Option<Self>, DevError> {
        let root = match std::env::var_os("DROVER_DEV_STATE").map(PathBuf::from) {
            Some(root) => root,
            None => match default_root() {
                Ok(root) => root,
                Err(_) => return Ok(None),
            },
        };
        Self::read(&root.join(NAME))
    }

    fn read(path: &std::path::Path) -> Result<Option<Self>, DevError> {
        match std::fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|source| DevError::Decode { path: path.to_owned(), source }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(DevError::File { action: "read", path: path.to_owned(), source }),
        }
    }

    pub(super) fn write(&self, state: &StateDir) -> Result<(), DevError> {
        let text = serde_json::to_string_pretty(self)
            .map_err(|source| DevError::Decode { path: state.path(NAME), source })?;
        state.write_private(NAME, &text).map(drop)
    }

    /// The file may be gone already; then there is nothing to do.
    pub(super) fn remove(state: &StateDir) {
        let _ = std::fs::remove_file(state.path(NAME));
    }
}
