//! The index: which blob lies in which pack. It can always be made again from the packs, each of
//! which ends with a list of what is in it.

use std::collections::{BTreeMap, BTreeSet};

use rustic_core::RepairIndexOptions;
use rustic_core::repofile::IndexFile;

use crate::engine::RepositoryError;
use crate::id::FileId;
use crate::repository::Repository;
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
        let mut known = BTreeSet::new();
        let fault = engine.fault("reading the index");
        for index in engine.repository.stream_files::<IndexFile>().map_err(&fault)? {
            let (_, index) = index.map_err(&fault)?;
            for pack in &index.packs {
                let id = FileId::from(pack.id.into_inner());
                if stored.get(&id) != Some(&pack.pack_size()) {
                    lost.insert(id);
                }
                known.insert(id);
            }
            known.extend(index.packs_to_delete.iter().map(|p| FileId::from(p.id.into_inner())));
        }
        if lost.is_empty() && stored.keys().all(|id| known.contains(id)) {
            return Ok(0);
        }
        engine
            .repository
            .repair_index(&RepairIndexOptions::default(), false)
            .map_err(engine.fault("mending the index"))?;
        Ok(u64::try_from(lost.len()).unwrap_or(u64::MAX))
    }
}
