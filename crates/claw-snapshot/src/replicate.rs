//! Copying a repository's files from one storage to another: off-site, or back.
//!
//! It knows names and bytes, and needs no key: what it copies stays encrypted. The copy is a
//! repository of its own, which plain restic reads and [`crate::Repository::open`] opens.
//!
//! Files come in the order in which they need one another and go in the opposite one, so that at
//! every moment, also when it is interrupted, each snapshot that the copy lists is complete. What
//! is there in its size is not copied again. One file is in memory at a time.
//!
//! What it deliberately does not do: it does not know whether the source has lost something. What
//! the source lacks is removed from the copy only when the caller says so, see [`Removal`].
//!
//! Where to start: [`replicate`].

use std::collections::BTreeMap;

use crate::id::FileId;
use crate::progress::{Progress, Watcher};
use crate::storage::{FileKind, Storage, StorageError};

/// In this order files need nothing that comes later.
const COPIED: [FileKind; 4] = [FileKind::Key, FileKind::Pack, FileKind::Index, FileKind::Snapshot];
/// In this order nothing that is left needs what is gone.
const REMOVED: [FileKind; 4] = [FileKind::Snapshot, FileKind::Index, FileKind::Pack, FileKind::Key];

/// What becomes of files that the copy has and the source has not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// They stay.
    Withheld,
    /// They are removed, when the source has at least one snapshot. Only for a source whose
    /// structure was just verified: a pack that it lost is to be fetched from the copy, not to be
    /// removed from it.
    Mirrored,
}

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Replicated {
    /// Files that were copied.
    pub copied: u64,
    /// Their bytes.
    pub copied_bytes: u64,
    /// Files that were there already.
    pub present: u64,
    /// Files that were removed because the source has them no more.
    pub removed: u64,
    /// Files that the source has no more and that stay.
    pub withheld: u64,
}

/// The copy is not what the source is. Every snapshot that it lists is complete.
#[derive(Debug, thiserror::Error)]
pub enum ReplicateError {
    /// The source has no configuration, so it is no repository or has lost everything.
    #[error("{0} is no repository")]
    NoRepository(String),
    /// The copy is one of another repository. Nothing was changed.
    #[error("{0} has another repository")]
    OtherRepository(String),
    /// A file of the source is not what its name says. It was not copied.
    #[error("{kind} {id} is damaged in the source")]
    Damaged {
        /// Its kind.
        kind: FileKind,
        /// Its name.
        id: FileId,
    },
    /// A file was written and is not there in its size.
    #[error("{kind} {id} was copied and is not there")]
    NotStored {
        /// Its kind.
        kind: FileKind,
        /// Its name.
        id: FileId,
    },
    /// The source's storage failed.
    #[error("the source failed")]
    Source(#[source] StorageError),
    /// The copy's storage failed.
    #[error("the copy failed")]
    Copy(#[source] StorageError),
}

/// The files of a storage with their sizes.
struct Files(BTreeMap<(FileKind, FileId), u32>);

/// Makes `to` have what `from` has. Nobody else may write to either meanwhile. The watcher is
/// told what was copied.
///
/// # Errors
///
/// When anything could not be listed, read or written. Nothing is removed then. It can be
/// repeated, and goes on where it stopped.
pub fn replicate(
    from: &dyn Storage,
    to: &dyn Storage,
    removal: Removal,
    watcher: &Watcher,
) -> Result<Replicated, ReplicateError> {
    let configuration = configuration(from)
        .map_err(ReplicateError::Source)?
        .ok_or_else(|| ReplicateError::NoRepository(from.location()))?;
    let source = Files::list(from).map_err(ReplicateError::Source)?;
    to.prepare().map_err(ReplicateError::Copy)?;
    let there = self::configuration(to).map_err(ReplicateError::Copy)?;
    if there.as_ref().is_some_and(|there| *there != configuration) {
        return Err(ReplicateError::OtherRepository(to.location()));
    }
    let copy = Files::list(to).map_err(ReplicateError::Copy)?;
    let mut run = Run { from, to, watcher, done: Replicated::default() };
    for kind in COPIED {
        run.copy_missing(kind, &source, &copy)?;
        // After the keys, without which it opens for nobody.
        if kind == FileKind::Key && there.is_none() {
            let id = FileId::from_bytes([0; 32]);
            run.write(FileKind::Config, id, configuration.clone())?;
        }
    }
    let has_snapshots = source.of(FileKind::Snapshot).next().is_some();
    let removal = if has_snapshots { removal } else { Removal::Withheld };
    for kind in REMOVED {
        run.remove_surplus(kind, &source, &copy, removal)?;
    }
    Ok(run.done)
}

/// One call of [`replicate`].
struct Run<'a> {
    from: &'a dyn Storage,
    to: &'a dyn Storage,
    watcher: &'a Watcher,
    done: Replicated,
}

impl Run<'_> {
    fn copy_missing(
        &mut self,
        kind: FileKind,
        source: &Files,
        copy: &Files,
    ) -> Result<(), ReplicateError> {
        let before = self.done.copied;
        for (id, size) in source.of(kind) {
            if copy.size(kind, id) == Some(size) {
                self.done.present += 1;
                continue;
            }
            let content = self.from.read(kind, id).map_err(ReplicateError::Source)?;
            if FileId::of(&content) != id {
                return Err(ReplicateError::Damaged { kind, id });
            }
            self.write(kind, id, content)?;
        }
        if self.done.copied == before {
            return Ok(());
        }
        let stored: BTreeMap<FileId, u32> =
            self.to.list(kind).map_err(ReplicateError::Copy)?.into_iter().collect();
        match source.of(kind).find(|(id, size)| stored.get(id) != Some(size)) {
            Some((id, _)) => Err(ReplicateError::NotStored { kind, id }),
            None => Ok(()),
        }
    }

    fn write(
        &mut self,
        kind: FileKind,
        id: FileId,
        content: bytes::Bytes,
    ) -> Result<(), ReplicateError> {
        let length = u64::try_from(content.len()).unwrap_or(u64::MAX);
        self.to.write(kind, id, &[content]).map_err(ReplicateError::Copy)?;
        self.done.copied += 1;
        self.done.copied_bytes += length;
        let Replicated { copied, copied_bytes, .. } = self.done;
        self.watcher.tell(Progress { entries: copied, bytes: copied_bytes });
        Ok(())
    }

    fn remove_surplus(
        &mut self,
        kind: FileKind,
        source: &Files,
        copy: &Files,
        removal: Removal,
    ) -> Result<(), ReplicateError> {
        for (id, _) in copy.of(kind).filter(|(id, _)| source.size(kind, *id).is_none()) {
            match removal {
                Removal::Withheld => self.done.withheld += 1,
                Removal::Mirrored => {
                    self.to.remove(kind, id).map_err(ReplicateError::Copy)?;
                    self.done.removed += 1;
                }
            }
        }
        Ok(())
    }
}

impl Files {
    /// Snapshots first: what they need is listed after them, even when files are added meanwhile.
    fn list(storage: &dyn Storage) -> Result<Self, StorageError> {
        let mut files = BTreeMap::new();
        for kind in REMOVED {
            let listed = storage.list(kind)?.into_iter();
            files.extend(listed.map(|(id, size)| ((kind, id), size)));
        }
        Ok(Self(files))
    }

    fn of(&self, kind: FileKind) -> impl Iterator<Item = (FileId, u32)> {
        let first = FileId::from_bytes([0; 32]);
        let last = FileId::from_bytes([u8::MAX; 32]);
        self.0.range((kind, first)..=(kind, last)).map(|((_, id), size)| (*id, *size))
    }

    fn size(&self, kind: FileKind, id: FileId) -> Option<u32> {
        self.0.get(&(kind, id)).copied()
    }
}

/// The configuration file, when there is one. Its name says nothing.
fn configuration(storage: &dyn Storage) -> Result<Option<bytes::Bytes>, StorageError> {
    match storage.list(FileKind::Config)?.first() {
        Some((id, _)) => storage.read(FileKind::Config, *id).map(Some),
        None => Ok(None),
    }
}
