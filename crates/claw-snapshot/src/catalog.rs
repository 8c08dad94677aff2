//! The list of a repository's snapshots.

use std::collections::BTreeSet;

use claw_core::time::Timestamp;
use rustic_core::repofile::{SnapshotFile, SnapshotId as EngineSnapshotId};

use crate::engine::RepositoryError;
use crate::id::SnapshotId;
use crate::repository::{Engine, Repository};

/// A tag of snapshots whose source was moving.
pub(crate) const ROUGH: &str = "claw-rough";

/// A snapshot, as far as its file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Its name.
    pub id: SnapshotId,
    /// When it was begun, as whoever asked for it said.
    pub time: Timestamp,
    /// Whose data it is.
    pub host: String,
    /// For what it was taken.
    pub tags: BTreeSet<String>,
    /// Its source was [`crate::Stillness::Moving`]: good as a parent, never to be restored.
    pub rough: bool,
    /// The parent that it was compared with.
    pub parent: Option<SnapshotId>,
    /// Files and links in it, when the program that wrote it counted them.
    pub files: Option<u64>,
    /// Bytes of these files: what a restore takes.
    pub bytes: Option<u64>,
    /// Bytes by which the repository grew for it.
    pub added_bytes: Option<u64>,
}

/// There is no such snapshot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no snapshot {0}")]
pub struct SnapshotNotFound(pub SnapshotId);

impl Repository {
    /// Every snapshot, the oldest first.
    ///
    /// # Errors
    ///
    /// When the listing or one of the snapshots could not be read.
    pub fn snapshots(&self) -> Result<Vec<Snapshot>, RepositoryError> {
        let files = snapshot_files(&self.engine()?)?;
        let mut snapshots: Vec<_> = files.iter().map(Snapshot::of).collect();
        snapshots.sort_by_key(|snapshot| (snapshot.time, snapshot.id));
        Ok(snapshots)
    }
}

impl Snapshot {
    pub(crate) fn of(file: &SnapshotFile) -> Self {
        let summary = file.summary.as_ref();
        let tags: BTreeSet<String> = file.tags.iter().cloned().collect();
        Self {
            id: SnapshotId::from(file.id),
            time: Timestamp::from_millis(file.time.timestamp().as_millisecond()),
            host: file.hostname.clone(),
            rough: tags.contains(ROUGH),
            tags: tags.into_iter().filter(|tag| tag != ROUGH).collect(),
            parent: file.parent.map(SnapshotId::from),
            files: summary.map(|summary| summary.total_files_processed),
            bytes: summary.map(|summary| summary.total_bytes_processed),
            added_bytes: summary.map(|summary| summary.data_added_packed),
        }
    }
}

/// Every snapshot file; an unreadable one is an error.
pub(crate) fn snapshot_files(engine: &Engine) -> Result<Vec<SnapshotFile>, RepositoryError> {
    engine.repository.get_all_snapshots().map_err(engine.fault("reading the snapshots"))
}

/// One snapshot file; nothing when it is absent.
pub(crate) fn snapshot_file(
    engine: &Engine,
    id: SnapshotId,
) -> Result<Option<SnapshotFile>, RepositoryError> {
    let name = EngineSnapshotId::from(id.file().engine());
    let fault = engine.fault("listing the snapshots");
    if !engine.repository.list::<EngineSnapshotId>().map_err(fault)?.any(|other| other == name) {
        return Ok(None);
    }
    let mut file: SnapshotFile =
        engine.repository.get_file(&name).map_err(engine.fault("reading a snapshot"))?;
    file.id = name;
    Ok(Some(file))
}
