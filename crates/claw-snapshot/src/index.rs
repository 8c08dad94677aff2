//! The index: which blob lies in which pack. It can always be made again from the packs, each of
//! which ends with a list of what is in it. Packs that no index names hold what a failed or killed
//! run wrote; they are taken up by [`Repository::mend_index`] or removed by [`Repository::sweep`].

pub(crate) mod places;

use std::collections::{BTreeMap, BTreeSet};

use rustic_core::RepairIndexOptions;

use crate::codec::Codec;
use crate::engine::RepositoryError;
use crate::id::FileId;
use crate::repository::{Engine, Repository};
use crate::storage::FileKind;
use places::{NamedPacks, Places, each_index};

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
        let codec = self.codec(&engine)?;
        self.mended_places(&engine, &codec).map(|(_, lost)| lost)
    }

    /// As [`Repository::mend_index`], and gives what the index says then.
    pub(crate) fn mended_places(
        &self,
        engine: &Engine,
        codec: &Codec,
    ) -> Result<(Places, u64), RepositoryError> {
        let storage = self.storage.as_ref();
        let stored: BTreeMap<FileId, u32> = storage.list(FileKind::Pack)?.into_iter().collect();
        let (mut places, mut named) = (Places::default(), NamedPacks::default());
        each_index(storage, codec, &BTreeSet::new(), |index| {
            named.add(&index);
            index.packs.iter().for_each(|pack| places.add(pack));
        })?;
        let lost = named.live.iter().filter(|(id, size)| stored.get(id) != Some(size)).count();
        if lost == 0 && stored.keys().all(|id| named.has(*id)) {
            places.sort();
            return Ok((places, 0));
        }
        drop((places, stored));
        engine
            .repository
            .repair_index(&RepairIndexOptions::default(), false)
            .map_err(engine.fault("mending the index"))?;
        Ok((
            Places::read(storage, codec, &BTreeSet::new())?,
            u64::try_from(lost).unwrap_or(u64::MAX),
        ))
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
        let codec = self.codec(&self.engine()?)?;
        let mut named = NamedPacks::default();
        each_index(self.storage.as_ref(), &codec, &BTreeSet::new(), |index| named.add(&index))?;
        let mut removed = 0;
        for id in candidates.into_iter().filter(|id| !named.has(*id)) {
            self.storage.remove(FileKind::Pack, id)?;
            removed += 1;
        }
        Ok(removed)
    }
}
