//! The index: which blob lies in which pack. It can always be made again from the packs, each of
//! which ends with a list of what is in it. Packs that no index names hold what a failed or killed
//! run wrote; they are taken up by [`Repository::mend_index`] or removed by [`Repository::sweep`].

use std::collections::{BTreeMap, BTreeSet};

use rustic_core::RepairIndexOptions;
use rustic_core::repofile::{IndexFile, IndexId};

use crate::engine::RepositoryError;
use crate::id::FileId;
use crate::repository::{Engine, Repository};
use crate::storage::FileKind;

impl Repository {
    /// Removes index files that are damaged and reads what they said from the packs again. What
    /// [`Repository::verify`] found to be lost only because of an index is there again then.
    /// Gives the number of files that were removed.
    ///
    /// # Errors
    ///
    /// When the storage or the engine failed; it can be repeated.
    pub fn rebuild_index(&self) -> Result<u64, RepositoryError> {
        let mut removed = 0;
        for (id, _) in self.storage.list(FileKind::Index)? {
            if FileId::of(&self.storage.read(FileKind::Index, id)?) != id {
                self.storage.remove(FileKind::Index, id)?;
                removed += 1;
            }
        }
        self.mend_index()?;
        Ok(removed)
    }

    /// Makes the index say what the storage has. Packs that a killed run wrote get known, so
    /// that their content is not written again; packs that are lost get unknown, so that it is.
    pub(crate) fn mend_index(&self) -> Result<u64, RepositoryError> {
        let engine = self.engine()?;
        let stored: BTreeMap<FileId, u32> =
            self.storage.list(FileKind::Pack)?.into_iter().collect();
        let mut lost = BTreeSet::new();
        let known = indexed(&engine, |id, size| {
            if stored.get(&id) != Some(&size) {
                lost.insert(id);
            }
        })?;
        if lost.is_empty() && stored.keys().all(|id| known.contains(id)) {
            return Ok(0);
        }
        engine
            .repository
            .repair_index(&RepairIndexOptions::default(), false)
            .map_err(engine.fault("mending the index"))?;
        Ok(u64::try_from(lost.len()).unwrap_or(u64::MAX))
    }

    /// Removes those of these packs that no index names. Safe when nothing that a snapshot needs
    /// can be among them, and nobody else writes to the storage: the exclusive lock of
    /// [`crate::DirectoryStorage`] sees to that.
    ///
    /// When any index cannot be read, nothing is removed.
    pub(crate) fn sweep(
        &self,
        candidates: impl IntoIterator<Item = FileId>,
    ) -> Result<u64, RepositoryError> {
        let known = indexed(&self.engine()?, |_, _| ())?;
        let mut removed = 0;
        for id in candidates.into_iter().filter(|id| !known.contains(id)) {
            self.storage.remove(FileKind::Pack, id)?;
            removed += 1;
        }
        Ok(removed)
    }
}

/// Every pack that an index names, those marked for removal included. `packs` is told the others
/// with their sizes.
fn indexed(
    engine: &Engine,
    mut packs: impl FnMut(FileId, u32),
) -> Result<BTreeSet<FileId>, RepositoryError> {
    let mut known = BTreeSet::new();
    let ids: Vec<IndexId> =
        engine.repository.list().map_err(engine.fault("listing the index"))?.collect();
    // One after the other: what is not in the answer may be removed, so none may be left out.
    for id in ids {
        let index: IndexFile =
            engine.repository.get_file(&id).map_err(engine.fault("reading the index"))?;
        for pack in &index.packs {
            let id = FileId::from(pack.id.into_inner());
            packs(id, pack.pack_size());
            known.insert(id);
        }
        known.extend(index.packs_to_delete.iter().map(|p| FileId::from(p.id.into_inner())));
    }
    Ok(known)
}
