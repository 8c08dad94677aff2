//! Looking for damage: what is broken, and which snapshots and files it hits.
//!
//! Structure is always looked at: every index, snapshot and key file is held against the hash that
//! is its name, every pack must be there in its size, every tree must be readable, every blob of
//! every file must be known. Data is read as far as asked: whole packs against their hashes, and
//! every blob in them decrypted, unpacked and held against its own, in rotation, so that after so
//! many runs everything was read.
//!
//! A finding is a result, not an error: the run goes on and names everything that is affected.

mod hits;
mod packs;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use rustic_core::repofile::{IndexFile, IndexId, SnapshotFile, SnapshotId as EngineSnapshotId};
use rustic_core::{BlobId, Id};

use crate::backend::Backend;
use crate::engine::RepositoryError;
use crate::id::{FileId, SnapshotId};
use crate::repository::{Engine, Repository};
use crate::restore::PackSizes;
use crate::storage::{FileKind, StorageError};
use packs::Packs;

/// How much data is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Extent {
    /// None: structure only.
    #[default]
    Structure,
    /// One part of the packs.
    Part(Rotation),
    /// Every pack.
    Everything,
}

/// One part of a whole that is read part by part. Which pack is in which part depends on its name
/// alone, so that nothing needs to be remembered but the number of the last part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rotation {
    part: u32,
    of: u32,
}

/// What was looked at and what was found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verified {
    /// Snapshots that were looked at.
    pub snapshots: u64,
    /// Packs that are there.
    pub packs: u64,
    /// Packs that were read.
    pub read_packs: u64,
    /// Their bytes.
    pub read_bytes: u64,
    /// Blobs in them that were decrypted and are what their names say.
    pub read_blobs: u64,
    /// What is broken.
    pub damage: Vec<Damage>,
    /// What is lost by it, per snapshot that lost something.
    pub affected: BTreeMap<SnapshotId, Affected>,
}

/// Something broken in the storage.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Damage {
    /// A file's content is not what its name says, or cannot be read at all.
    Corrupt {
        /// Its kind.
        kind: FileKind,
        /// Its name.
        id: FileId,
        /// Why it cannot be read, when it is not just its content.
        unreadable: Option<String>,
    },
    /// An index names a pack that is absent.
    PackMissing(FileId),
    /// A pack has another size than its index says.
    PackSize {
        /// The pack.
        id: FileId,
        /// By the index.
        expected: u32,
        /// In the storage.
        found: u32,
    },
    /// A pack is what its name says, and a blob in it is not: it was broken before it was written.
    Blob {
        /// The blob.
        id: FileId,
        /// The pack.
        pack: FileId,
    },
    /// A blob that a snapshot needs is in no index.
    BlobMissing(FileId),
    /// A tree is there and cannot be used.
    Tree {
        /// The tree.
        id: FileId,
        /// Why not.
        reason: String,
    },
}

/// What of a snapshot is lost.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Affected {
    /// Files and directories that cannot be restored; when the whole snapshot is lost: zero.
    pub count: u64,
    /// The first of them, by their path in the snapshot; when the whole snapshot is lost: none.
    pub paths: Vec<PathBuf>,
}

/// The repository could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// It could not be listed.
    #[error("listing the repository failed")]
    Storage(#[from] StorageError),
    /// The engine or the storage failed.
    #[error("verifying failed")]
    Repository(#[from] RepositoryError),
}

impl Rotation {
    /// Part `part` (from 0) of `of`; nothing when there is no such part.
    #[must_use]
    pub const fn new(part: u32, of: u32) -> Option<Self> {
        if part < of { Some(Self { part, of }) } else { None }
    }

    fn has(self, pack: FileId) -> bool {
        let [a, b, c, d, ..] = *pack.as_bytes();
        u32::from_be_bytes([a, b, c, d]) % self.of == self.part
    }
}

impl Extent {
    fn has(self, pack: FileId) -> bool {
        match self {
            Self::Structure => false,
            Self::Part(rotation) => rotation.has(pack),
            Self::Everything => true,
        }
    }
}

impl Verified {
    /// Whether nothing is broken.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.damage.is_empty() && self.affected.is_empty()
    }
}

impl Repository {
    /// Looks for damage. Takes as much memory as a restore.
    ///
    /// # Errors
    ///
    /// When the storage could not be listed or the configuration not read: then nothing is known.
    pub fn verify(&self, extent: Extent) -> Result<Verified, VerifyError> {
        let mut verified = Verified::default();
        let hidden = self.verify_small_files(&mut verified)?;
        let lost: BTreeSet<_> = hidden.get(&FileKind::Snapshot).cloned().unwrap_or_default();
        for id in &lost {
            verified.affected.insert(SnapshotId::new(*id), Affected::default());
        }
        let all_hidden: BTreeSet<_> = hidden.into_values().flatten().collect();
        let open = || {
            let backend = Backend::hiding(Arc::clone(&self.storage), all_hidden.clone());
            self.engine_with(backend)
        };
        let stored: BTreeMap<_, _> = self.storage.list(FileKind::Pack)?.into_iter().collect();
        verified.packs = u64::try_from(stored.len()).unwrap_or(u64::MAX);
        let mut packs = Packs::new(self.storage.as_ref(), &self.master, extent);
        let bad_blobs = index_damage(&open()?, &mut packs, &stored, &mut verified)?;
        stored.keys().for_each(|id| packs.other(*id, &mut verified));
        let snapshots = snapshots(&open()?, &mut verified)?;
        verified.snapshots += u64::try_from(snapshots.len()).unwrap_or(u64::MAX);
        let blobs = self.blobs_without(&all_hidden)?;
        let sizes = PackSizes::read(self.storage.as_ref())?;
        hits::Hits::new(&blobs, &sizes, &bad_blobs).find(&snapshots, &mut verified);
        verified.damage.sort();
        verified.damage.dedup();
        Ok(verified)
    }

    /// Files that are held against their names always; gives those that are damaged.
    fn verify_small_files(
        &self,
        verified: &mut Verified,
    ) -> Result<BTreeMap<FileKind, BTreeSet<FileId>>, VerifyError> {
        let mut damaged: BTreeMap<FileKind, BTreeSet<FileId>> = BTreeMap::new();
        for kind in [FileKind::Key, FileKind::Index, FileKind::Snapshot] {
            for (id, _) in self.storage.list(kind)? {
                if !self.verify_file(kind, id, verified) {
                    damaged.entry(kind).or_default().insert(id);
                }
            }
        }
        Ok(damaged)
    }

    /// Whether the file's content is what its name says.
    fn verify_file(&self, kind: FileKind, id: FileId, verified: &mut Verified) -> bool {
        let unreadable = match self.storage.read(kind, id) {
            Ok(content) if FileId::of(&content) == id => return true,
            Ok(_) => None,
            Err(fault) => Some(fault.source.to_string()),
        };
        verified.damage.push(Damage::Corrupt { kind, id, unreadable });
        false
    }
}

/// Holds every index against the packs, and reads these as far as asked; gives the blobs that are
/// bad or lie in no good pack.
fn index_damage(
    engine: &Engine,
    packs: &mut Packs<'_>,
    stored: &BTreeMap<FileId, u32>,
    verified: &mut Verified,
) -> Result<BTreeSet<FileId>, RepositoryError> {
    let mut bad_blobs = BTreeSet::new();
    let fault = engine.fault("listing the index");
    let indexes: Vec<IndexId> = engine.repository.list().map_err(fault)?.collect();
    for id in indexes {
        let Ok(index) = engine.repository.get_file::<IndexFile>(&id) else {
            // Its hash was right, so it was written like this.
            let id = FileId::from(id.into_inner());
            let unreadable = Some("it is no index".to_owned());
            verified.damage.push(Damage::Corrupt { kind: FileKind::Index, id, unreadable });
            continue;
        };
        for pack in &index.packs {
            let id = FileId::from(pack.id.into_inner());
            let expected = pack.pack_size();
            match stored.get(&id) {
                Some(found) if *found == expected => {
                    bad_blobs.extend(packs.indexed(pack, verified));
                    continue;
                }
                Some(found) => {
                    verified.damage.push(Damage::PackSize { id, expected, found: *found });
                }
                None => verified.damage.push(Damage::PackMissing(id)),
            }
            bad_blobs.extend(pack.blobs.iter().map(|blob| blob_id(blob.id)));
        }
    }
    Ok(bad_blobs)
}

/// The snapshots that can be read. Others are found to be lost.
fn snapshots(
    engine: &Engine,
    verified: &mut Verified,
) -> Result<Vec<SnapshotFile>, RepositoryError> {
    let fault = engine.fault("listing the snapshots");
    let ids: Vec<EngineSnapshotId> = engine.repository.list().map_err(fault)?.collect();
    let mut files = Vec::new();
    for name in ids {
        match engine.repository.get_file::<SnapshotFile>(&name) {
            Ok(mut file) => {
                file.id = name;
                files.push(file);
            }
            Err(_) => {
                let id = FileId::from(name.into_inner());
                let unreadable = Some("it is no snapshot".to_owned());
                verified.damage.push(Damage::Corrupt { kind: FileKind::Snapshot, id, unreadable });
                verified.affected.insert(SnapshotId::new(id), Affected::default());
            }
        }
    }
    Ok(files)
}

fn blob_id(blob: BlobId) -> FileId {
    let id: Id = *blob;
    FileId::from(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rotation_reads_everything_once() {
        assert_eq!(Rotation::new(3, 3), None);
        assert_eq!(Rotation::new(0, 0), None);
        let packs: Vec<_> = (0..200_u8).map(|number| FileId::of(&[number])).collect();
        for pack in packs {
            let parts = (0..7).filter_map(|part| Rotation::new(part, 7));
            assert_eq!(parts.filter(|rotation| Extent::Part(*rotation).has(pack)).count(), 1);
        }
    }
}
