//! Bodies of `host.<host>.volume.*`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::spec::DiskFs;
use crate::Token;
use crate::size::ByteSize;

/// Request of `volume.create`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VolumeCreateRequest {
    /// Whose it is.
    pub namespace: Token,
    /// The name that specs use.
    pub name: Token,
    /// Its length, a multiple of 1 MiB; only what is written takes room of the host.
    pub size_bytes: ByteSize,
    /// What it is formatted with; `none` if left out.
    #[serde(default)]
    pub fs: DiskFs,
    /// The label of that file system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
}

/// Reply of `volume.create`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VolumeCreateReply {
    /// It was there already, and nothing was done.
    #[serde(default)]
    pub already: bool,
}

/// Request of `volume.grow`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VolumeGrowRequest {
    /// Whose it is.
    pub namespace: Token,
    /// Its name.
    pub name: Token,
    /// Its new length, a multiple of 1 MiB and never less than it has: what is at its end may be in use. A file system on
    /// it stays as long as it is until somebody in the guest makes it longer (`resize2fs`).
    pub size_bytes: ByteSize,
}

/// A VM that is up and does not see yet that a volume is longer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VolumeSeenLater {
    /// Its name.
    pub name: Token,
    /// Why; with its next start it does.
    pub reason: String,
}

/// Reply of `volume.grow`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VolumeGrowReply {
    /// It was that long already; VMs were told once more.
    #[serde(default)]
    pub already: bool,
    /// VMs that are up and do not see it yet, the first 100. The VM that writes to it sees it while it runs.
    pub later: Vec<VolumeSeenLater>,
}

/// Request of `volume.remove`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VolumeRemoveRequest {
    /// Whose it is.
    pub namespace: Token,
    /// Its name.
    pub name: Token,
}

/// Request of `volume.list`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VolumesRequest {
    /// Whose they are.
    pub namespace: Token,
    /// At most this many; 100 if left out, 500 at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// `next_cursor` of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// Reply of `volume.list`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VolumesReply {
    /// Volumes by name.
    pub volumes: Vec<VolumeInfo>,
    /// Where the next page begins; absent on the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// A volume of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VolumeInfo {
    /// Its name.
    pub name: Token,
    /// Its length.
    pub size_bytes: u64,
    /// What it takes of the host.
    pub written_bytes: u64,
    /// VMs of any state that name it, the first 100.
    pub used_by: Vec<Token>,
}
