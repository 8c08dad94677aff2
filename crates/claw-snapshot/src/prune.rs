//! Forgetting snapshots, and later removing what no snapshot needs.

use std::collections::BTreeSet;
use std::time::Duration;

use rustic_core::repofile::SnapshotId as EngineSnapshotId;
use rustic_core::{PruneOptions, PrunePlan, jiff};

use crate::catalog::{self, SnapshotNotFound};
use crate::engine::RepositoryError;
use crate::id::SnapshotId;
use crate::repository::{Engine, Repository};
use crate::storage::FileKind;

/// What a prune did. It works in two phases: packs that nothing needs are marked, and a later
/// prune removes those that were marked long enough ago.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pruned {
    /// Packs that no index named and that were removed: a failed run had written them.
    pub swept_packs: u64,
    /// Packs that were removed, marked by an earlier prune.
    pub removed_packs: u64,
    /// Their bytes.
    pub removed_bytes: u64,
    /// Packs that are marked and remain until their time is over.
    pub marked_packs: u64,
    /// Bytes of packs that were written anew without their unneeded parts.
    pub repacked_bytes: u64,
}

/// Snapshots could not be forgotten.
#[derive(Debug, thiserror::Error)]
pub enum ForgetError {
    /// One of them is absent; none was forgotten.
    #[error("forgetting snapshots failed")]
    NotFound(#[from] SnapshotNotFound),
    /// The storage or the engine failed. Some may be forgotten.
    #[error("forgetting snapshots failed")]
    Repository(#[from] RepositoryError),
}

/// Nothing was removed that a snapshot needs.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    /// There is no snapshot, so everything would be removed.
    #[error("the repository has no snapshot, so that nothing would remain of it")]
    NothingToKeep,
    /// The grace period is longer than the calendar.
    #[error("the grace period is too long")]
    Grace,
    /// The storage or the engine failed.
    #[error("pruning failed")]
    Repository(#[from] RepositoryError),
}

impl Repository {
    /// Removes snapshots. Their data remains until [`Repository::prune`].
    ///
    /// # Errors
    ///
    /// When one is absent or cannot be removed.
    pub fn forget(&self, ids: &BTreeSet<SnapshotId>) -> Result<(), ForgetError> {
        let engine = self.engine()?;
        let listed: BTreeSet<_> = catalog::snapshot_files(&engine)?
            .iter()
            .map(|file| SnapshotId::from(file.id))
            .collect();
        if let Some(absent) = ids.difference(&listed).next() {
            return Err(SnapshotNotFound(*absent).into());
        }
        let names: Vec<_> =
            ids.iter().map(|id| EngineSnapshotId::from(id.file().engine())).collect();
        engine.repository.delete_snapshots(&names).map_err(engine.fault("removing snapshots"))?;
        Ok(())
    }

    /// Marks what no snapshot needs, and removes what was marked at least `grace` ago. Packs that
    /// are mostly unneeded are written anew without the rest. Every snapshot and tree is read
    /// first; when one cannot be, or lacks anything, nothing happens. Nobody else may write to the
    /// storage meanwhile.
    ///
    /// Packs that no index names are removed at once: a failed or killed run had written them.
    ///
    /// # Errors
    ///
    /// When there is no snapshot at all, or anything could not be read or written. Interrupted at
    /// any moment, every snapshot is still complete. What a failed run had written and no index
    /// names is removed as far as the storage allows; the next prune removes the rest.
    pub fn prune(&self, grace: Duration) -> Result<Pruned, PruneError> {
        let engine = self.engine()?;
        if catalog::snapshot_files(&engine)?.is_empty() {
            return Err(PruneError::NothingToKeep);
        }
        let seconds = i64::try_from(grace.as_secs()).map_err(|_| PruneError::Grace)?;
        let grace = jiff::Span::new().try_seconds(seconds).map_err(|_| PruneError::Grace)?;
        let options = PruneOptions::default().keep_delete(grace);
        let mut plan = plan(&engine, &options)?;
        let mut swept_packs = 0;
        // The plan is there, so every blob that a snapshot needs is in an index.
        if plan.stats.packs_unref > 0 {
            let listed = self.storage.list(FileKind::Pack).map_err(RepositoryError::from)?;
            swept_packs = self.sweep(listed.into_iter().map(|(id, _)| id))?;
            plan = self::plan(&engine, &options)?;
        }
        let stats = &plan.stats;
        let pruned = Pruned {
            swept_packs,
            removed_packs: stats.packs_to_delete.remove,
            removed_bytes: stats.size_to_delete.remove,
            marked_packs: stats.packs_to_delete.keep + stats.packs.unused + stats.packs_unref,
            repacked_bytes: stats.size_sum().repack,
        };
        let done = engine.repository.prune(&options, plan).map_err(engine.fault("pruning"));
        let written = engine.backend.close();
        if let Err(fault) = done {
            // What failed first is what is told.
            _ = self.sweep(written);
            return Err(fault.into());
        }
        Ok(pruned)
    }
}

/// Fails when anything that a snapshot needs is in no index.
fn plan(engine: &Engine, options: &PruneOptions) -> Result<PrunePlan, RepositoryError> {
    let fault = engine.fault("planning what to prune");
    engine.repository.prune_plan(options).map_err(fault)
}
