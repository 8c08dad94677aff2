//! Bringing a snapshot's files back, into a directory that does not exist yet.
//!
//! Nothing that exists is touched: the caller renames the finished directory to where it belongs.
//! Everything that can be known to fail is found before the directory is made; every blob is held
//! against its hash before a byte of it is written; and whatever fails takes the directory away
//! again. Memory is bounded: two threads write, and each holds one blob (see
//! [`crate::limit_processors`] for what the engine takes).
//!
//! Where to start: [`Repository::restore`]; what is checked first is in [`survey`], how files are
//! written in [`files`], what they look like afterwards in [`dress`].

mod dress;
mod files;
mod survey;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustic_core::repofile::{Node, SnapshotFile};

use crate::catalog::{self, Snapshot, SnapshotNotFound};
use crate::engine::RepositoryError;
use crate::id::SnapshotId;
use crate::progress::Watcher;
use crate::repository::Repository;
use crate::source::DATA;
use crate::tree::{BlobError, Blobs};

pub(crate) use survey::{PackSizes, Survey, hard_link};

/// What of a snapshot is restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subtree(PathBuf);

/// A restored directory: complete, durable, and still where it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Restored {
    /// Files and links.
    pub files: u64,
    /// Directories, the restored one included.
    pub directories: u64,
    /// Bytes of files.
    pub bytes: u64,
}

/// Nothing was restored, and nothing remains of the attempt.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The snapshot is absent.
    #[error("there is nothing to restore")]
    NotFound(#[from] SnapshotNotFound),
    /// It was taken of a moving source.
    #[error("snapshot {0} was taken while its source changed and cannot be restored")]
    Rough(SnapshotId),
    /// It has no such directory.
    #[error("the snapshot has no directory {0}")]
    NoSuchDirectory(PathBuf),
    /// Something in the repository is damaged.
    #[error("{path} is damaged in the repository")]
    Damaged {
        /// In the snapshot.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: BlobError,
    },
    /// A pack that is needed is absent or too short.
    #[error("{path} is damaged in the repository: pack {pack} is missing or cut off")]
    PackMissing {
        /// In the snapshot.
        path: PathBuf,
        /// The pack.
        pack: crate::FileId,
    },
    /// A socket, pipe or device: no snapshot of ours has one.
    #[error("{path} is a special file, which is never restored")]
    Special {
        /// In the snapshot.
        path: PathBuf,
    },
    /// The directory exists already.
    #[error("{0} exists already")]
    Exists(PathBuf),
    /// The file system refused.
    #[error("{doing} {path} failed")]
    Write {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The storage or the engine failed.
    #[error("reading the repository failed")]
    Repository(#[from] RepositoryError),
}

/// A directory of a snapshot, all of whose packs are there.
pub(crate) struct Opened {
    pub(crate) file: SnapshotFile,
    pub(crate) blobs: Blobs,
    pub(crate) root: Node,
    pub(crate) survey: Survey,
}

impl Subtree {
    /// The data directory of a snapshot of ours.
    #[must_use]
    pub fn data() -> Self {
        Self(PathBuf::from(DATA))
    }

    /// A directory by its path in the snapshot, as for snapshots that restic took.
    #[must_use]
    pub fn path(path: &Path) -> Self {
        Self(path.to_owned())
    }
}

impl Repository {
    /// Restores a directory of a snapshot as `into`, which must not exist while its parent must.
    /// Owners, modes, times, extended attributes, links and hard links are restored with it, so
    /// restoring other owners' files needs their rights. Holes are made where blobs are all zero.
    ///
    /// # Errors
    ///
    /// When anything cannot be restored exactly. Then `into` does not exist.
    pub fn restore(
        &self,
        id: SnapshotId,
        subtree: &Subtree,
        into: &Path,
        watcher: &Watcher,
    ) -> Result<Restored, RestoreError> {
        let Opened { blobs, root, survey, .. } = self.open_snapshot(id, subtree)?;
        fs::create_dir(into).map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => RestoreError::Exists(into.to_owned()),
            _ => RestoreError::Write { doing: "making", path: into.to_owned(), source },
        })?;
        let synced = || {
            let path = into.to_owned();
            sync(into).map_err(|source| RestoreError::Write { doing: "syncing", path, source })
        };
        let written = files::write_all(&blobs, &root, into, watcher).and_then(|()| synced());
        if let Err(fault) = written {
            // What cannot be removed now is in the way of the next attempt, which then says so.
            _ = fs::remove_dir_all(into);
            return Err(fault);
        }
        Ok(survey.restored())
    }

    /// Opens a directory of a snapshot to read all of it. Everything that can be known to fail is
    /// found now.
    pub(crate) fn open_snapshot(
        &self,
        id: SnapshotId,
        subtree: &Subtree,
    ) -> Result<Opened, RestoreError> {
        let engine = self.engine()?;
        let file = catalog::snapshot_file(&engine, id)?.ok_or(SnapshotNotFound(id))?;
        if Snapshot::of(&file).rough {
            return Err(RestoreError::Rough(id));
        }
        let blobs = self.blobs()?;
        let damaged = |source| RestoreError::Damaged { path: subtree.0.clone(), source };
        let found = blobs.find(file.tree, &subtree.0).map_err(damaged)?;
        let root = found.filter(Node::is_dir);
        let root = root.ok_or_else(|| RestoreError::NoSuchDirectory(subtree.0.clone()))?;
        let packs = PackSizes::read(self.storage.as_ref()).map_err(RepositoryError::from)?;
        let survey = Survey::of(&blobs, &packs, &subtree.0, &root)?;
        Ok(Opened { file, blobs, root, survey })
    }
}

/// Makes everything below durable, and the directory's own entry.
pub(crate) fn sync(into: &Path) -> io::Result<()> {
    nix::unistd::syncfs(File::open(into)?)?;
    match into.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => Ok(()),
    }
}
