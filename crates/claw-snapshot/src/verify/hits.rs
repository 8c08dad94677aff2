//! Which snapshots and files need something that is broken.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use rustic_core::TreeId;
use rustic_core::repofile::{Node, NodeType, SnapshotFile};

use super::{Affected, Damage, Verified};
use crate::id::{FileId, SnapshotId};
use crate::restore::PackSizes;
use crate::tree::{BlobError, Blobs};

/// How many paths are kept per snapshot; all are counted.
const KEPT: usize = 100;

/// Walks snapshots; trees that are whole are walked once, whatever number of snapshots has them.
pub(super) struct Hits<'a> {
    blobs: &'a Blobs,
    packs: &'a PackSizes,
    bad: &'a BTreeSet<FileId>,
    whole: BTreeSet<TreeId>,
}

/// A directory on the way down.
struct Level {
    tree: TreeId,
    path: PathBuf,
    nodes: std::vec::IntoIter<Node>,
    whole: bool,
}

impl<'a> Hits<'a> {
    pub(super) fn new(blobs: &'a Blobs, packs: &'a PackSizes, bad: &'a BTreeSet<FileId>) -> Self {
        Self { blobs, packs, bad, whole: BTreeSet::new() }
    }

    pub(super) fn find(mut self, snapshots: &[SnapshotFile], verified: &mut Verified) {
        for file in snapshots {
            let mut affected = Affected::default();
            self.walk(file.tree, &mut affected, &mut verified.damage);
            if affected.count > 0 {
                verified.affected.insert(SnapshotId::from(file.id), affected);
            }
        }
    }

    fn walk(&mut self, root: TreeId, affected: &mut Affected, damage: &mut Vec<Damage>) {
        let mut stack = Vec::new();
        match self.enter(root, Path::new("/"), affected, damage) {
            Some(level) => stack.push(level),
            None => return,
        }
        while let Some(level) = stack.last_mut() {
            let Some(node) = level.nodes.next() else {
                let whole = level.whole;
                if whole {
                    self.whole.insert(level.tree);
                }
                stack.pop();
                if let Some(parent) = stack.last_mut() {
                    parent.whole &= whole;
                }
                continue;
            };
            let path = level.path.join(node.name());
            match (&node.node_type, node.subtree) {
                (NodeType::Dir, Some(tree)) if !self.whole.contains(&tree) => {
                    match self.enter(tree, &path, affected, damage) {
                        Some(next) => stack.push(next),
                        None => level.whole = false,
                    }
                }
                (NodeType::File, _) if !self.is_whole(&node, damage) => {
                    level.whole = false;
                    affected.add(path);
                }
                _ => {}
            }
        }
    }

    /// A tree's entries; when it cannot be read, everything below it is lost.
    fn enter(
        &self,
        tree: TreeId,
        path: &Path,
        affected: &mut Affected,
        damage: &mut Vec<Damage>,
    ) -> Option<Level> {
        let id = FileId::from(tree.into_inner());
        let read = match self.blobs.place(&tree) {
            None => Err(Damage::BlobMissing(id)),
            // A missing pack is known already.
            Some(place) if !self.packs.have(place) => {
                affected.add(path.to_owned());
                return None;
            }
            Some(_) => self.blobs.tree(tree).map_err(|fault| tree_damage(id, &fault)),
        };
        match read {
            Ok(nodes) => {
                // Readable, and of a pack that is damaged elsewhere: reported with the pack.
                let (path, nodes) = (path.to_owned(), nodes.into_iter());
                Some(Level { tree, path, nodes, whole: true })
            }
            Err(found) => {
                damage.push(found);
                affected.add(path.to_owned());
                None
            }
        }
    }

    fn is_whole(&self, node: &Node, damage: &mut Vec<Damage>) -> bool {
        let mut whole = true;
        for blob in node.content.iter().flatten() {
            let id = FileId::from(blob.into_inner());
            let place = self.blobs.place(blob);
            if place.is_none() {
                damage.push(Damage::BlobMissing(id));
            }
            whole &= place.is_some_and(|place| self.packs.have(place)) && !self.is_bad(node, id);
        }
        whole
    }

    /// A blob of a damaged pack may be whole itself: it is read to know.
    fn is_bad(&self, _node: &Node, id: FileId) -> bool {
        use rustic_core::BlobId;
        use rustic_core::repofile::BlobType;
        self.bad.contains(&id)
            && self.blobs.read(BlobId::from(id.engine()), BlobType::Data).is_err()
    }
}

impl Affected {
    fn add(&mut self, path: PathBuf) {
        self.count += 1;
        if self.paths.len() < KEPT {
            self.paths.push(path);
        }
    }
}

fn tree_damage(id: FileId, fault: &BlobError) -> Damage {
    use std::error::Error;
    let mut reason = fault.to_string();
    if let Some(source) = fault.source() {
        reason.push_str(": ");
        reason.push_str(&source.to_string());
    }
    Damage::Tree { id, reason }
}
