//! The directory of the parent snapshot that stands where a new one is written: what did not
//! change since need not be read.

use std::collections::BTreeMap;

use rustic_core::jiff::Timestamp;
use rustic_core::repofile::Node;
use serde::Deserialize;

use crate::codec::Codec;
use crate::id::FileId;
use crate::index::places::{BlobKind, Places};
use crate::storage::{FileKind, Storage};

/// A directory of the parent, by escaped names.
#[derive(Debug)]
pub(super) struct ParentTree {
    pub(super) id: FileId,
    nodes: BTreeMap<String, ParentNode>,
}

/// The parent's entry, as far as it matters.
#[derive(Debug)]
pub(super) struct ParentNode {
    kind: String,
    modified: Option<Timestamp>,
    changed: Option<Timestamp>,
    inode: u64,
    size: u64,
    content: Vec<FileId>,
    pub(super) subtree: Option<FileId>,
}

/// How an entry stands to the parent's.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Likeness {
    /// The parent has none of this name.
    New,
    /// The parent's is another, or may be.
    Changed,
    /// It is the parent's.
    Same,
}

/// A tree in JSON. Of its many fields only these are looked at, which saves most of the time.
#[derive(Deserialize)]
struct TreeContent {
    nodes: Option<Vec<NodeContent>>,
}

#[derive(Deserialize)]
struct NodeContent {
    name: String,
    #[serde(rename = "type")]
    kind: String,
    mtime: Option<Timestamp>,
    ctime: Option<Timestamp>,
    #[serde(default)]
    inode: u64,
    #[serde(default)]
    size: u64,
    content: Option<Vec<FileId>>,
    subtree: Option<FileId>,
}

impl ParentTree {
    /// Nothing when it cannot be used: then everything in it is read anew. That it is damaged is
    /// for a verification to say.
    pub(super) fn read(
        storage: &dyn Storage,
        codec: &mut Codec,
        places: &Places,
        id: FileId,
    ) -> Option<Self> {
        let place = places.find(BlobKind::Tree, id)?;
        let sealed = storage.read_range(FileKind::Pack, place.pack, place.range()).ok()?;
        let content = codec.open_blob(&sealed, place.unpacked).ok()?;
        if FileId::of(&content) != id {
            return None;
        }
        let tree: TreeContent = serde_json::from_slice(&content).ok()?;
        let nodes = tree.nodes.unwrap_or_default().into_iter().map(NodeContent::into_entry);
        Some(Self { id, nodes: nodes.collect() })
    }

    pub(super) fn node(&self, name: &str) -> Option<&ParentNode> {
        self.nodes.get(name)
    }
}

impl NodeContent {
    fn into_entry(self) -> (String, ParentNode) {
        let node = ParentNode {
            kind: self.kind,
            modified: self.mtime,
            changed: self.ctime,
            inode: self.inode,
            size: self.size,
            content: self.content.unwrap_or_default(),
            subtree: self.subtree,
        };
        (self.name, node)
    }
}

impl ParentNode {
    /// Whether a file's content, or a link, is that of the parent. A change time of zero says that
    /// times prove nothing (see [`crate::source::node::of_entry`]).
    pub(super) fn is_same(&self, node: &Node) -> bool {
        let meta = &node.meta;
        let kind = if node.is_file() { "file" } else { "symlink" };
        let untrusted = Some(Timestamp::UNIX_EPOCH);
        let changed = self.changed.zip(meta.ctime).is_none_or(|(one, other)| one == other);
        self.kind == kind
            && self.size == meta.size
            && self.inode == meta.inode
            && self.modified == meta.mtime
            && changed
            && self.changed != untrusted
            && meta.ctime != untrusted
    }

    pub(super) fn content(&self) -> &[FileId] {
        &self.content
    }
}
