//! A repository without the snapshots whose files are damaged.
//!
//! The engine reads every snapshot before it does anything, and gives up at the first that it cannot read: one
//! flipped bit would hide all the others from whoever wants to restore them. Looking for damage and removing
//! what nothing needs go without this: the one has to see it, the other must not take a snapshot for absent.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use claw_snapshot::{FileId, FileKind, Storage, StorageError};

/// Files of a repository, those of damaged snapshots left out.
#[derive(Debug)]
pub(super) struct SoundStorage {
    files: Arc<dyn Storage>,
    damaged: BTreeSet<FileId>,
}

impl SoundStorage {
    /// Holds every snapshot's file against its name.
    pub(super) fn new(files: Arc<dyn Storage>) -> Result<Self, StorageError> {
        let mut damaged = BTreeSet::new();
        for (id, _) in files.list(FileKind::Snapshot)? {
            if FileId::of(&files.read(FileKind::Snapshot, id)?) != id {
                damaged.insert(id);
            }
        }
        Ok(Self { files, damaged })
    }

    /// Those that are left out.
    pub(super) fn damaged(&self) -> impl Iterator<Item = &FileId> {
        self.damaged.iter()
    }

    /// Everything.
    pub(super) fn into_files(self) -> Arc<dyn Storage> {
        self.files
    }
}

impl Storage for SoundStorage {
    fn location(&self) -> String {
        self.files.location()
    }

    fn prepare(&self) -> Result<(), StorageError> {
        self.files.prepare()
    }

    fn list(&self, kind: FileKind) -> Result<Vec<(FileId, u32)>, StorageError> {
        let mut listed = self.files.list(kind)?;
        if kind == FileKind::Snapshot {
            listed.retain(|(id, _)| !self.damaged.contains(id));
        }
        Ok(listed)
    }

    fn read(&self, kind: FileKind, id: FileId) -> Result<Bytes, StorageError> {
        self.files.read(kind, id)
    }

    fn read_range(
        &self,
        kind: FileKind,
        id: FileId,
        range: Range<u64>,
    ) -> Result<Bytes, StorageError> {
        self.files.read_range(kind, id, range)
    }

    fn write(&self, kind: FileKind, id: FileId, parts: &[Bytes]) -> Result<(), StorageError> {
        self.files.write(kind, id, parts)
    }

    fn remove(&self, kind: FileKind, id: FileId) -> Result<(), StorageError> {
        self.files.remove(kind, id)
    }
}
