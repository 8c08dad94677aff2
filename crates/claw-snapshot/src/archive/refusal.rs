//! Why an archive is not unpacked.

use std::io;
use std::path::PathBuf;

/// Nothing was unpacked, nothing outside of the new directory was touched, and it is gone again.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The directory exists already.
    #[error("{0} exists already")]
    Exists(PathBuf),
    /// It is compressed neither with zstd nor with gzip.
    #[error("it is no archive: neither zstd nor gzip")]
    NoArchive,
    /// It could not be read, or its compression is damaged.
    #[error("reading the archive failed")]
    Read(#[source] io::Error),
    /// It ends before its end.
    #[error("the archive is cut off")]
    CutOff,
    /// It is no tar, or one that no program writes.
    #[error("the archive is malformed: {0}")]
    Malformed(&'static str),
    /// The manifest is absent, or says what cannot be.
    #[error("the manifest is not understood: {0}")]
    Manifest(&'static str),
    /// A name that leads out of the archive, or none.
    #[error("{0:?} is no path in an archive")]
    Path(PathBuf),
    /// Something at a place where an archive of this kind has nothing.
    #[error("{0:?} does not belong in such an archive")]
    Unexpected(PathBuf),
    /// Two entries of one name.
    #[error("{0:?} is there twice")]
    Duplicate(PathBuf),
    /// An entry below a symbolic link.
    #[error("{0:?} lies behind a symbolic link")]
    BehindLink(PathBuf),
    /// A symbolic link that leads, or could lead, out of the data.
    #[error("the link {path:?} leads out of the archive, to {target:?}")]
    LinkOut {
        /// The link.
        path: PathBuf,
        /// Its target.
        target: PathBuf,
    },
    /// A hard link to what is no earlier file of the archive.
    #[error("the hard link {path:?} has no file, it names {target:?}")]
    HardLink {
        /// The link.
        path: PathBuf,
        /// What it names.
        target: PathBuf,
    },
    /// A device, pipe, or something stranger.
    #[error("{0:?} is a special file")]
    Special(PathBuf),
    /// A file that would run with its owner's rights.
    #[error("{0:?} has a set-user-ID or set-group-ID bit")]
    SetId(PathBuf),
    /// More entries than are allowed.
    #[error("it has more than {0} entries")]
    TooManyEntries(u64),
    /// More bytes than are allowed, unpacked.
    #[error("it has more than {0} bytes")]
    TooManyBytes(u64),
    /// A file is not what the archive's checksums say.
    #[error("the checksum of {0:?} is wrong")]
    Checksum(PathBuf),
    /// The file system refused.
    #[error("{doing} {path:?} failed")]
    Write {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl UnpackError {
    /// Whether it failed because the disk is full.
    #[must_use]
    pub fn is_full(&self) -> bool {
        let full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
        matches!(self, Self::Write { source, .. } if full.contains(&source.kind()))
    }
}
