//! What a run makes for itself on the bus and the disk, and takes away: a stream and buckets under a name of its own, and
//! a journal.

use async_nats::jetstream::{self, Context};
use drover_actors::bus::assets::{AssetsConfig, AssetsError, ensure};
use drover_actors::journal::{self, JournalConfig, JournalError, JournalHandle, OpenError};
use drover_schemas::token::TokenError;
use drover_schemas::{Token, VmId};
use tempfile::TempDir;

use crate::client::Client;

/// Why there is no row.
#[derive(Debug, thiserror::Error)]
pub enum ScratchError {
    /// The name of the run is none.
    #[error("name the stream of the run")]
    Name(#[source] TokenError),
    /// No folder.
    #[error("make a folder for the journal")]
    Folder(#[source] std::io::Error),
    /// The journal did not open.
    #[error("open the journal")]
    Open(#[source] OpenError),
    /// The journal did not take something.
    #[error("write to the journal")]
    Journal(#[source] JournalError),
    /// The bus has no room, or this connection may not make streams.
    #[error("make the stream of the run; the connection may not be allowed to")]
    Assets(#[source] AssetsError),
    /// The stream did not take a message.
    #[error("publish to the stream of the run")]
    Publish(#[source] jetstream::context::PublishError),
    /// A claim was not made.
    #[error("claim a name in the bucket of the run")]
    Claim(#[source] drover_actors::bus::claims::ClaimError),
    /// The events did not get there.
    #[error("the events were not stored in time")]
    Late,
}

/// A run's own place.
pub struct Scratch {
    /// JetStream over the client's connection.
    pub js: Context,
    /// The names on the bus.
    pub assets: AssetsConfig,
    /// The journal.
    pub journal: JournalHandle,
    _folder: TempDir,
}

impl Scratch {
    /// Makes it.
    ///
    /// # Errors
    /// [`ScratchError`]; nothing is left then.
    pub async fn make(client: &Client) -> Result<Self, ScratchError> {
        let name = format!("drover-bench-{}", VmId::generate().to_string().to_lowercase());
        let root = Token::new(&name).map_err(ScratchError::Name)?;
        let assets = AssetsConfig { events_max_bytes: 64 << 20, ..AssetsConfig::new(root) };
        let folder = tempfile::tempdir().map_err(ScratchError::Folder)?;
        let config = JournalConfig { reserve_bytes: 1, ..JournalConfig::new(folder.path()) };
        let journal = journal::open(&config).map_err(ScratchError::Open)?;
        let scratch = Self { js: jetstream::new(client.nats().clone()), assets, journal, _folder: folder };
        match ensure(&scratch.js, &scratch.assets).await {
            Ok(_) => Ok(scratch),
            Err(source) => {
                scratch.remove().await;
                Err(ScratchError::Assets(source))
            }
        }
    }

    /// Takes away what is on the bus; the folder goes with it.
    pub async fn remove(self) {
        for stream in self.assets.streams() {
            // What was not made cannot be removed.
            let _ = self.js.delete_stream(stream.name).await;
        }
    }
}
