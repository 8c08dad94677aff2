//! What a restore will need, looked at before anything is made.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use rustic_core::TreeId;
use rustic_core::repofile::{Node, NodeType};

use super::{RestoreError, Restored};
use crate::id::FileId;
use crate::storage::{FileKind, Storage, StorageError};
use crate::tree::{BlobError, Blobs, Place};

/// The packs that the storage has.
#[derive(Debug)]
pub(crate) struct PackSizes(BTreeMap<FileId, u32>);

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    restored: Restored,
    /// Files with several names whose content counts once.
    linked: BTreeSet<(u64, u64)>,
}

impl PackSizes {
    pub(crate) fn read(storage: &dyn Storage) -> Result<Self, StorageError> {
        Ok(Self(storage.list(FileKind::Pack)?.into_iter().collect()))
    }

    /// Whether the storage has what is at this place, by the size of the pack.
    pub(crate) fn have(&self, place: Place) -> bool {
        self.0.get(&place.pack).is_some_and(|size| place.end <= u64::from(*size))
    }
}

impl Survey {
    /// Walks everything below a directory: every tree is read, every blob looked up.
    pub(crate) fn of(
        blobs: &Blobs,
        packs: &PackSizes,
        path: &Path,
        root: &Node,
    ) -> Result<Self, RestoreError> {
        let mut survey = Self::default();
        survey.restored.directories = 1;
        let mut stack: Vec<(PathBuf, TreeId)> =
            root.subtree.iter().map(|tree| (path.to_owned(), *tree)).collect();
        while let Some((path, tree)) = stack.pop() {
            let damaged = |source| RestoreError::Damaged { path: path.clone(), source };
            if let Some(place) = blobs.place(&tree).filter(|place| !packs.have(*place)) {
                return Err(RestoreError::PackMissing { path, pack: place.pack });
            }
            for node in blobs.tree(tree).map_err(damaged)? {
                let path = path.join(node.name());
                match (&node.node_type, node.subtree) {
                    (NodeType::Dir, Some(tree)) => {
                        survey.restored.directories += 1;
                        stack.push((path, tree));
                    }
                    (NodeType::File, _) => survey.file(blobs, packs, path, &node)?,
                    (NodeType::Symlink { .. }, _) => survey.restored.files += 1,
                    _ => return Err(RestoreError::Special { path }),
                }
            }
        }
        Ok(survey)
    }

    pub(crate) fn restored(&self) -> Restored {
        self.restored
    }

    fn file(
        &mut self,
        blobs: &Blobs,
        packs: &PackSizes,
        path: PathBuf,
        node: &Node,
    ) -> Result<(), RestoreError> {
        for blob in node.content.iter().flatten() {
            let Some(place) = blobs.place(blob) else {
                let source = BlobError::NotIndexed(FileId::from(blob.into_inner()));
                return Err(RestoreError::Damaged { path, source });
            };
            if !packs.have(place) {
                return Err(RestoreError::PackMissing { path, pack: place.pack });
            }
        }
        self.restored.files += 1;
        let first = hard_link(node).is_none_or(|link| self.linked.insert(link));
        if first {
            self.restored.bytes += node.meta.size;
        }
        Ok(())
    }
}

/// What a file's names have in common, when it has several.
pub(crate) fn hard_link(node: &Node) -> Option<(u64, u64)> {
    let several = node.is_file() && node.meta.links > 1 && node.meta.inode != 0;
    several.then_some((node.meta.device_id, node.meta.inode))
}
