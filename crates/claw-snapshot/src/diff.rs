//! What differs between two snapshots.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use rustic_core::TreeId;
use rustic_core::repofile::Node;

use crate::catalog::{self, SnapshotNotFound};
use crate::engine::RepositoryError;
use crate::id::SnapshotId;
use crate::repository::Repository;
use crate::tree::{BlobError, Blobs};

/// What differs, from one snapshot to another.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Differences {
    /// Entries that only the second has.
    pub added: u64,
    /// Entries that only the first has.
    pub removed: u64,
    /// Entries that both have, with other content or of another kind.
    pub changed: u64,
    /// The first of them, in order of path.
    pub first: Vec<Difference>,
}

/// One entry that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Its path in the snapshot.
    pub path: PathBuf,
    /// How it differs.
    pub kind: DifferenceKind,
}

/// How an entry differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DifferenceKind {
    /// Only the second has it.
    Added,
    /// Only the first has it.
    Removed,
    /// Both have it, with other content or of another kind.
    Changed,
}

/// Two snapshots could not be compared.
#[derive(Debug, thiserror::Error)]
pub enum DiffError {
    /// One of them is absent.
    #[error("comparing snapshots failed")]
    NotFound(#[from] SnapshotNotFound),
    /// The repository is damaged.
    #[error("comparing snapshots failed")]
    Blob(#[from] BlobError),
    /// The storage or the engine failed.
    #[error("comparing snapshots failed")]
    Repository(#[from] RepositoryError),
}

/// How many differences are kept; all are counted.
const KEPT: usize = 1000;

impl Repository {
    /// What differs from `one` to `other`: names, kinds and contents, not owners or times.
    ///
    /// # Errors
    ///
    /// When one of them is absent or cannot be read.
    pub fn diff(&self, one: SnapshotId, other: SnapshotId) -> Result<Differences, DiffError> {
        let engine = self.engine()?;
        let tree = |id| -> Result<TreeId, DiffError> {
            let file = catalog::snapshot_file(&engine, id)?.ok_or(SnapshotNotFound(id))?;
            Ok(file.tree)
        };
        let (one, other) = (tree(one)?, tree(other)?);
        let mut differences = Differences::default();
        compare(&self.blobs()?, Path::new("/"), (Some(one), Some(other)), &mut differences)?;
        Ok(differences)
    }
}

impl Differences {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.added == 0 && self.removed == 0 && self.changed == 0
    }

    fn add(&mut self, path: PathBuf, kind: DifferenceKind) {
        match kind {
            DifferenceKind::Added => self.added += 1,
            DifferenceKind::Removed => self.removed += 1,
            DifferenceKind::Changed => self.changed += 1,
        }
        if self.first.len() < KEPT {
            self.first.push(Difference { path, kind });
        }
    }
}

/// Two directories that stand at the same path, or one where the other is none.
fn compare(
    blobs: &Blobs,
    path: &Path,
    trees: (Option<TreeId>, Option<TreeId>),
    differences: &mut Differences,
) -> Result<(), BlobError> {
    if trees.0 == trees.1 {
        return Ok(());
    }
    let entries = |tree: Option<TreeId>| -> Result<BTreeMap<OsString, Node>, BlobError> {
        let nodes = tree.map_or(Ok(Vec::new()), |tree| blobs.tree(tree))?;
        Ok(nodes.into_iter().map(|node| (node.name().into_owned(), node)).collect())
    };
    let mut ones = entries(trees.0)?;
    let mut names: BTreeMap<OsString, (Option<Node>, Option<Node>)> = BTreeMap::new();
    for (name, other) in entries(trees.1)? {
        names.insert(name.clone(), (ones.remove(&name), Some(other)));
    }
    names.extend(ones.into_iter().map(|(name, one)| (name, (Some(one), None))));
    for (name, (one, other)) in names {
        let path = path.join(name);
        let kind = match (&one, &other) {
            (None, _) => Some(DifferenceKind::Added),
            (_, None) => Some(DifferenceKind::Removed),
            (Some(one), Some(other)) => {
                let same = one.node_type == other.node_type && one.content == other.content;
                (!same).then_some(DifferenceKind::Changed)
            }
        };
        if let Some(kind) = kind {
            differences.add(path.clone(), kind);
        }
        let tree = |node: Option<Node>| node.and_then(|node| node.subtree);
        compare(blobs, &path, (tree(one), tree(other)), differences)?;
    }
    Ok(())
}
