//! Blobs and trees, each held against its hash before anything is made of it.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use rustic_core::repofile::{BlobType, MasterKey, Node, NodeType, Tree};
use rustic_core::{BlobId, PackedId, TreeId};

use crate::codec::{Codec, CodecError};
use crate::engine::{EngineError, RepositoryError};
use crate::id::FileId;
use crate::index::places::{BlobKind, Places};
use crate::repository::Repository;
use crate::storage::{FileKind, Storage, StorageError};

/// A repository with its index in memory.
pub(crate) struct Blobs {
    storage: Arc<dyn Storage>,
    places: Places,
    master: MasterKey,
    level: Option<i32>,
    /// Those that no thread uses at the moment.
    codecs: Mutex<Vec<Codec>>,
}

/// A blob or tree cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// No index knows it.
    #[error("blob {0} is in no index")]
    NotIndexed(FileId),
    /// It could not be read, decrypted or unpacked.
    #[error("blob {id} cannot be read")]
    Unreadable {
        /// The blob.
        id: FileId,
        /// Why.
        #[source]
        source: EngineError,
    },
    /// The storage failed while it was read.
    #[error("the storage failed while blob {id} was read")]
    Storage {
        /// The blob.
        id: FileId,
        /// Why.
        #[source]
        source: StorageError,
    },
    /// Its content is not what its name says.
    #[error("blob {0} has another content than its name says")]
    WrongContent(FileId),
    /// It is no tree.
    #[error("blob {id} is no tree")]
    NoTree {
        /// The blob.
        id: FileId,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A tree has an entry whose name could lead out of it.
    #[error("tree {0} has an entry that is no plain name")]
    BadName(FileId),
    /// A file has no content, or a directory no tree.
    #[error("tree {0} has an incomplete entry")]
    Incomplete(FileId),
}

/// Where a blob lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) pack: FileId,
    /// The byte after its last.
    pub(crate) end: u64,
}

impl Repository {
    pub(crate) fn blobs(&self) -> Result<Blobs, RepositoryError> {
        self.blobs_without(&BTreeSet::new())
    }

    /// As if these indexes were absent, because they are damaged.
    pub(crate) fn blobs_without(
        &self,
        hidden: &BTreeSet<FileId>,
    ) -> Result<Blobs, RepositoryError> {
        let engine = self.engine()?;
        let codec = self.codec(&engine)?;
        Ok(Blobs {
            storage: Arc::clone(&self.storage),
            places: Places::read(self.storage.as_ref(), &codec, hidden)?,
            master: self.master.clone(),
            level: engine.repository.config().zstd().ok().flatten(),
            codecs: Mutex::new(vec![codec]),
        })
    }
}

impl Blobs {
    /// A blob's content.
    pub(crate) fn read(&self, blob: BlobId, blob_type: BlobType) -> Result<Bytes, BlobError> {
        let id = FileId::from(*blob);
        let place = self.places.find(BlobKind::from(blob_type), id);
        let place = place.ok_or(BlobError::NotIndexed(id))?;
        let sealed = self
            .storage
            .read_range(FileKind::Pack, place.pack, place.range())
            .map_err(|source| BlobError::Storage { id, source })?;
        let content = self
            .open(&sealed, place.unpacked)
            .map_err(|fault| BlobError::Unreadable { id, source: EngineError::ours(fault) })?;
        if FileId::of(&content) != id {
            return Err(BlobError::WrongContent(id));
        }
        Ok(Bytes::from(content))
    }

    /// With a codec that nobody else uses.
    fn open(&self, sealed: &[u8], unpacked: Option<u32>) -> Result<Vec<u8>, CodecError> {
        let codecs = || self.codecs.lock().unwrap_or_else(PoisonError::into_inner);
        let unused = codecs().pop();
        let mut codec = match unused {
            Some(codec) => codec,
            None => Codec::new(&self.master, self.level)?,
        };
        let opened = codec.open_blob(sealed, unpacked);
        codecs().push(codec);
        opened
    }

    /// A tree's entries. Every name is a plain one, every file has content, every directory a tree.
    pub(crate) fn tree(&self, tree: TreeId) -> Result<Vec<Node>, BlobError> {
        let id = FileId::from(*tree);
        let content = self.read(BlobId::from(tree), BlobType::Tree)?;
        let tree: Tree =
            serde_json::from_slice(&content).map_err(|source| BlobError::NoTree { id, source })?;
        for node in &tree.nodes {
            if !is_plain(&node.name()) {
                return Err(BlobError::BadName(id));
            }
            let complete = match node.node_type {
                NodeType::File => node.content.is_some(),
                NodeType::Dir => node.subtree.is_some(),
                _ => true,
            };
            if !complete {
                return Err(BlobError::Incomplete(id));
            }
        }
        Ok(tree.nodes)
    }

    /// Where a blob lies; nothing when no index knows it.
    pub(crate) fn place<T: PackedId>(&self, blob: &T) -> Option<Place> {
        let id: BlobId = (*blob).into();
        let id = FileId::from(*id);
        let place = self.places.find(BlobKind::from(T::TYPE), id)?;
        Some(Place { pack: place.pack, end: place.range().end })
    }

    /// The entry at a path below a root tree; nothing when there is none.
    pub(crate) fn find(&self, root: TreeId, path: &Path) -> Result<Option<Node>, BlobError> {
        let mut found = root_node(root);
        for component in path.components() {
            let name = match component {
                Component::Normal(name) => name,
                Component::RootDir | Component::CurDir => continue,
                Component::ParentDir | Component::Prefix(_) => return Ok(None),
            };
            let Some(tree) = found.subtree else { return Ok(None) };
            let next = self.tree(tree)?.into_iter().find(|node| *node.name() == *name);
            let Some(next) = next else { return Ok(None) };
            found = next;
        }
        Ok(Some(found))
    }
}

/// A directory without metadata that has this tree.
fn root_node(tree: TreeId) -> Node {
    let metadata = rustic_core::repofile::Metadata::default();
    let mut node = Node::new_node(OsString::new().as_os_str(), NodeType::Dir, metadata);
    node.subtree = Some(tree);
    node
}

/// Whether it can only name something in its own directory.
fn is_plain(name: &std::ffi::OsStr) -> bool {
    let bytes = name.as_bytes();
    !matches!(bytes, b"" | b"." | b"..") && !bytes.iter().any(|byte| matches!(byte, b'/' | 0))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for name in ["", ".", "..", "a/b", "/etc", "../x", "a\0b"] {
            assert!(!is_plain(OsStr::new(name)), "{name:?}");
        }
        for name in ["a", "...", "..a", " ", "\n"] {
            assert!(is_plain(OsStr::new(name)), "{name:?}");
        }
    }
}
