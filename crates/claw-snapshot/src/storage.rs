//! Where a repository's files lie: the port, and its adapters, a local directory and S3.
//!
//! A storage knows names and bytes, nothing of what they mean. What every implementation must
//! keep: a written file is durable and complete or absent, and a listing that could not be read is
//! an error, never an empty one (a prune that sees no snapshots would delete everything).
//!
//! Where to start: [`Storage`], [`DirectoryStorage`], [`S3Storage`].

mod directory;
mod s3;

use std::fmt;
use std::io;
use std::ops::Range;

use bytes::Bytes;

use crate::id::FileId;

pub use directory::{DirectoryStorage, OpenDirectoryError};
pub use s3::{
    DEBIAN_CA_FILE, S3Addressing, S3Fault, S3Patience, S3Secret, S3Settings, S3SettingsError,
    S3Storage,
};

/// What an opened repository may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reading; several processes at once.
    Shared,
    /// Reading and writing; one process, and nobody reads meanwhile.
    Exclusive,
}

/// The kinds of files that a repository has; the names are those of restic's layout
/// (<https://restic.readthedocs.io/en/stable/100_references.html>).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FileKind {
    /// The one configuration file. It has no id.
    Config,
    /// A key file: the repository's master key under a password.
    Key,
    /// A snapshot: time, host, tags, root tree.
    Snapshot,
    /// An index: which blob lies where in which pack.
    Index,
    /// A pack: many blobs, each compressed and encrypted.
    Pack,
}

/// Files of a repository. Blocking; used from several threads at once.
pub trait Storage: fmt::Debug + Send + Sync + 'static {
    /// Where it is, for messages. Holds no secret.
    fn location(&self) -> String;

    /// Makes everything that must exist before the first file is written. Repeatable.
    ///
    /// # Errors
    ///
    /// When something of it could not be made durable.
    fn prepare(&self) -> Result<(), StorageError>;

    /// Every file of a kind with its size in bytes, in no particular order. Of
    /// [`FileKind::Config`]: one entry whose id means nothing, or none.
    ///
    /// # Errors
    ///
    /// When any part of the listing could not be read, or the place itself is absent.
    fn list(&self, kind: FileKind) -> Result<Vec<(FileId, u32)>, StorageError>;

    /// A whole file.
    ///
    /// # Errors
    ///
    /// When it is absent or could not be read.
    fn read(&self, kind: FileKind, id: FileId) -> Result<Bytes, StorageError>;

    /// These bytes of a file.
    ///
    /// # Errors
    ///
    /// When the file is absent, shorter than the range, or could not be read.
    fn read_range(
        &self,
        kind: FileKind,
        id: FileId,
        range: Range<u64>,
    ) -> Result<Bytes, StorageError>;

    /// Writes a file, as parts that follow one another. When it returns, the file is durable.
    ///
    /// # Errors
    ///
    /// When it could not be written; then it is absent under this name, or as it was before.
    fn write(&self, kind: FileKind, id: FileId, parts: &[Bytes]) -> Result<(), StorageError>;

    /// Removes a file; an absent one counts as removed. Durable when it returns, except for packs.
    ///
    /// # Errors
    ///
    /// When it may still be there.
    fn remove(&self, kind: FileKind, id: FileId) -> Result<(), StorageError>;
}

/// A storage could not do something to one of its files.
#[derive(Debug, thiserror::Error)]
#[error("{action} {kind} {name} failed")]
pub struct StorageError {
    /// What was being done.
    pub action: StorageAction,
    /// To a file of which kind.
    pub kind: FileKind,
    /// To which file: its name, or a directory's.
    pub name: String,
    /// Why it failed.
    #[source]
    pub source: io::Error,
}

/// What can be done to files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StorageAction {
    /// [`Storage::prepare`].
    Prepare,
    /// [`Storage::list`].
    List,
    /// [`Storage::read`] or [`Storage::read_range`].
    Read,
    /// [`Storage::write`].
    Write,
    /// [`Storage::remove`].
    Remove,
}

impl FileKind {
    /// The kinds that have many files.
    pub const MANY: [Self; 4] = [Self::Key, Self::Snapshot, Self::Index, Self::Pack];

    /// The name of the kind's directory, or of the configuration file.
    #[must_use]
    pub const fn directory(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Key => "keys",
            Self::Snapshot => "snapshots",
            Self::Index => "index",
            Self::Pack => "data",
        }
    }
}

impl StorageError {
    /// Whether it failed because the storage is full.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(
            self.source.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
        )
    }

    /// What was wrong, when the storage is one behind a network.
    #[must_use]
    pub fn s3_fault(&self) -> Option<&S3Fault> {
        self.source.get_ref()?.downcast_ref()
    }

    /// A copy whose source is the kind and text of the original, for a second holder.
    pub(crate) fn duplicate(&self) -> Self {
        let source = match (self.source.raw_os_error(), self.s3_fault()) {
            (Some(code), _) => io::Error::from_raw_os_error(code),
            (None, Some(fault)) => io::Error::new(self.source.kind(), fault.clone()),
            (None, None) => io::Error::new(self.source.kind(), self.source.to_string()),
        };
        Self { action: self.action, kind: self.kind, name: self.name.clone(), source }
    }
}

impl fmt::Display for FileKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Config => "configuration",
            Self::Key => "key",
            Self::Snapshot => "snapshot",
            Self::Index => "index",
            Self::Pack => "pack",
        })
    }
}

impl fmt::Display for StorageAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prepare => "preparing",
            Self::List => "listing",
            Self::Read => "reading",
            Self::Write => "writing",
            Self::Remove => "removing",
        })
    }
}

/// Restic spreads packs over 256 directories named by the first byte.
fn pack_directory(id: FileId) -> String {
    let [first, ..] = id.as_bytes();
    format!("{first:02x}")
}
