//! The import of a file as an image, over the bus, beside `sha256sum` of the same file, which is what has to be done at
//! the least; and beside `cp` and fsync, which is what a store cannot do without.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use drover_actors::chain;
use drover_schemas::body::image::ImageImportRequest;
use drover_schemas::body::spec::ImageKind;
use drover_schemas::token::TokenError;
use drover_schemas::{ErrorCode, Token};

use super::content::{self, ContentError};
use super::program::{self, ProgramError};
use super::report::Row;
use super::sample::{Percentiles, Sample};
use crate::client::{Client, ClientError};

/// An import reads and writes a lot.
const DEADLINE: Duration = Duration::from_secs(85);

/// Why there is no row.
#[derive(Debug, thiserror::Error)]
enum ImportRowError {
    /// There is no file.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// Its path is no text.
    #[error("the path {path:?} is not UTF-8")]
    Path {
        /// It.
        path: PathBuf,
    },
    /// The name of the run is none.
    #[error("name the image of the run")]
    Name(#[from] TokenError),
    /// The host did not take it.
    #[error("import it")]
    Host(#[from] ClientError),
    /// The programs beside did not run.
    #[error("do it by hand")]
    Program(#[from] ProgramError),
    /// The copy cannot be removed.
    #[error("remove the copy")]
    Remove(#[source] std::io::Error),
    /// The digests differ.
    #[error("the host says that it is {ours}, and sha256sum {theirs}")]
    Differs {
        /// The host's.
        ours: String,
        /// The program's.
        theirs: String,
    },
}

/// Images that a run has imported.
#[derive(Debug)]
pub struct Imports {
    client: Client,
    host: Token,
    asked: Mutex<BTreeMap<Token, ImageImportRequest>>,
}

impl Imports {
    /// None yet.
    pub fn new(client: Client, host: Token) -> Self {
        Self { client, host, asked: Mutex::default() }
    }

    fn asked(&self) -> std::sync::MutexGuard<'_, BTreeMap<Token, ImageImportRequest>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Imports a file; gives the digest that the host found.
    async fn import(&self, path: &str) -> Result<(Token, String), ImportRowError> {
        let name = Token::new(&format!("bench-{:08x}", rand::random::<u32>()))?;
        let request = ImageImportRequest {
            name: name.clone(),
            kind: ImageKind::Disk,
            path: Some(path.to_owned()),
            url: None,
            oci: None,
            signature: None,
            sha256: None,
            replace: false,
        };
        // Noted before it is asked for: an import that is given up may still come about.
        self.asked().insert(name.clone(), request.clone());
        let reply = self.client.image_import(&self.host, &request, DEADLINE).await?;
        Ok((name, reply.image.sha256))
    }

    async fn remove(&self, name: &Token) -> Result<(), ClientError> {
        match self.client.image_remove(&self.host, name.clone(), DEADLINE).await {
            Err(ClientError::Refused(body)) if body.code == ErrorCode::NotFound => {}
            Err(error) => return Err(error),
            Ok(_) => {}
        }
        self.asked().remove(name);
        Ok(())
    }

    /// Removes all that are left.
    pub async fn clean_up(&self) {
        let asked = self.asked().clone();
        for (name, request) in asked {
            // The same again waits for one that is under way; else it fails, for the file is gone.
            let _ = self.client.image_import(&self.host, &request, DEADLINE).await;
            if let Err(error) = self.remove(&name).await {
                tracing::warn!(image = %name, error = %chain(&error), "an image of the bench is left");
            }
        }
    }

    /// Imports of a file of `size` bytes in `place`, one of the host's directories for imports.
    pub async fn rows(&self, place: Option<&Path>, size: u64, rounds: usize) -> Vec<Row> {
        let what = format!("import of {} MiB", size >> 20);
        let row = |sample: Percentiles| Row::new(&what, "ms", sample);
        let Some(place) = place else {
            let why = "name one of the host's directories for imports with --import-dir";
            return vec![row(Percentiles::default()).unmeasured(why)];
        };
        match self.measure(place, size, rounds.max(1)).await {
            Ok(Measured { drover, hashed, copied }) => {
                let mut first = row(drover).against("sha256sum of the same file", Ok(hashed));
                first.note = Some("over the bus, and lasting; half of the file is holes".to_owned());
                let second = Row::new(&format!("{what}, beside a copy"), "ms", drover)
                    .against("cp of the same file, and fsync", Ok(copied));
                vec![first, second]
            }
            Err(error) => vec![row(Percentiles::default()).unmeasured(&chain(&error).to_string())],
        }
    }

    async fn measure(&self, place: &Path, size: u64, rounds: usize) -> Result<Measured, ImportRowError> {
        // The file, what the store has of it, and one copy; if the file system knows holes, less.
        let folder = content::folder(place, size.saturating_mul(3))?;
        let (path, copy) = (folder.path().join("image"), folder.path().join("copy"));
        content::write(&path, size).await?;
        let text = path.to_str().ok_or_else(|| ImportRowError::Path { path: path.clone() })?;
        let (mut drover, mut hashed, mut copied) = (Sample::default(), Sample::default(), Sample::default());
        for _ in 0..rounds {
            let (name, ours) = drover.time(self.import(text)).await?;
            self.remove(&name).await?;
            let theirs = hashed.time(program::run("sha256sum", [&path], None)).await?;
            let theirs = theirs.split_whitespace().next().unwrap_or_default().to_owned();
            if ours != theirs {
                return Err(ImportRowError::Differs { ours, theirs });
            }
            copied.time(copy_and_sync(&path, &copy)).await?;
            std::fs::remove_file(&copy).map_err(ImportRowError::Remove)?;
        }
        let [drover, hashed, copied] = [drover, hashed, copied].map(|sample| sample.percentiles(1e3));
        Ok(Measured { drover, hashed, copied })
    }
}

struct Measured {
    drover: Percentiles,
    hashed: Percentiles,
    copied: Percentiles,
}

async fn copy_and_sync(path: &Path, copy: &Path) -> Result<(), ProgramError> {
    program::run("cp", ["--reflink=never".as_ref(), path.as_os_str(), copy.as_os_str()], None).await?;
    program::run("sync", [copy], None).await.map(drop)
}
