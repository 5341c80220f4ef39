//! What can go wrong with the journal, at start and later.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;

use drover_schemas::codec::EncodeError;
use drover_schemas::error::{ErrorBody, ErrorCode};
use drover_schemas::{Token, VmId};

use super::rows::RowError;

/// The state folder could not be opened. Nothing in it was changed, unless it says so.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder or a small file in it could not be read or written.
    #[error("{operation} {}", path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The folder was written by a newer drover.
    #[error(
        "the state folder {} has version {found}, this drover reads up to {supported}: run the newer drover, or start this one with the folder that the upgrade kept beside it; nothing was changed", path.display()
    )]
    Newer {
        /// The state folder.
        path: PathBuf,
        /// Version of the folder.
        found: u32,
        /// The newest version that this drover reads.
        supported: u32,
    },
    /// The journal of an older drover could not be brought to this version.
    #[error(
        "the journal could not be migrated from version {from} to {to}; it is as it was: run the older drover, or restore it from a backup"
    )]
    Migrate {
        /// What it has.
        from: u32,
        /// What it was to have.
        to: u32,
        /// What redb said.
        #[source]
        source: Box<redb::Error>,
    },
    /// The file with the version cannot be understood, or is missing beside a journal.
    #[error("{} does not hold the version of a state folder ({reason}): restore it from a backup; nothing was changed", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Another daemon uses the folder.
    #[error("the state folder {} is in use by process {}: stop it first, or give this daemon a folder of its own", path.display(), holder.as_deref().unwrap_or("(unknown)"))]
    InUse {
        /// The state folder.
        path: PathBuf,
        /// Process id of the other daemon, as it wrote it.
        holder: Option<String>,
    },
    /// The journal was made by another installation.
    #[error(
        "the journal belongs to installation {journal}, the state folder to {folder}: one of them was copied from another host"
    )]
    Installation {
        /// The id inside the journal.
        journal: String,
        /// The id in the file `installation`.
        folder: String,
    },
    /// The journal is damaged.
    #[error("the journal {} is damaged and was left as it is: restore it from a backup (`drover journal restore`), or move it away: VMs that still run are then listed by `drover host orphans` and left alone", path.display())]
    Damaged {
        /// The journal.
        path: PathBuf,
        /// What redb found.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The journal could not be read or prepared.
    #[error("open the journal {}", path.display())]
    Open {
        /// The journal.
        path: PathBuf,
        /// What redb said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The writer's thread could not be started.
    #[error("start the journal's writer")]
    Thread {
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

/// A commit or a read failed. Cheap to clone: one failure answers a whole group.
#[derive(Debug, Clone, thiserror::Error)]
pub enum JournalError {
    /// The journal was closed.
    #[error("the journal is closed")]
    Closed,
    /// The disk is full; deletes and ends of VMs still commit.
    #[error("the disk of the state folder is full")]
    NoSpace,
    /// The outbox is too full for this kind of batch.
    #[error("the outbox is {percent} % full: the bus has not taken events for too long")]
    OutboxFull {
        /// How full.
        percent: u32,
    },
    /// The disk failed; nothing of the batch is kept.
    #[error("write to the journal")]
    Write {
        /// What redb said.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// A read failed.
    #[error("read {table} from the journal")]
    Read {
        /// The table.
        table: &'static str,
        /// What redb said.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// A row cannot be used.
    #[error("read row {key} of {table}")]
    Row {
        /// The table.
        table: &'static str,
        /// The row.
        key: String,
        /// Why.
        #[source]
        source: Arc<RowError>,
    },
    /// A row cannot be written.
    #[error("encode a row for {table}")]
    Encode {
        /// The table.
        table: &'static str,
        /// Why.
        #[source]
        source: Arc<EncodeError>,
    },
    /// The networks that verbs made cannot be read or written.
    #[error("the networks in the journal cannot be {step}")]
    Networks {
        /// Which.
        step: &'static str,
        /// Why.
        #[source]
        source: Arc<serde_json::Error>,
    },
    /// The writer panicked; nothing of the batch is kept.
    #[error("the journal's writer panicked on this batch: {message}")]
    Panicked {
        /// What it said.
        message: String,
    },
    /// The name belongs to another VM of this host.
    #[error("the name {namespace}/{name} belongs to VM {holder}")]
    NameTaken {
        /// The namespace.
        namespace: Token,
        /// The name.
        name: Token,
        /// Who has it.
        holder: VmId,
    },
    /// The address belongs to another VM.
    #[error("the address {ipv4} of network {network} belongs to VM {holder}")]
    AddressTaken {
        /// The network.
        network: Token,
        /// The address.
        ipv4: Ipv4Addr,
        /// Who has it.
        holder: VmId,
    },
    /// The Unix user belongs to another VM.
    #[error("the user {uid} belongs to VM {holder}")]
    UidTaken {
        /// The user.
        uid: u32,
        /// Who has it.
        holder: VmId,
    },
    /// The outbox has another event with this sequence, or a later one was acknowledged.
    #[error("event {seq} of {key} exists already")]
    SeqTaken {
        /// The VM.
        key: VmId,
        /// The sequence.
        seq: u64,
    },
}

impl JournalError {
    /// What a client is told.
    #[must_use]
    pub fn to_body(&self) -> ErrorBody {
        let code = match self {
            Self::NoSpace | Self::OutboxFull { .. } => ErrorCode::ResourceExhausted,
            Self::Closed | Self::Write { .. } => ErrorCode::Unavailable,
            Self::NameTaken { .. } => ErrorCode::AlreadyExists,
            _ => ErrorCode::Internal,
        };
        ErrorBody::new(code, format!("{self}; see the host's log")).with("cause", "journal")
    }
}
