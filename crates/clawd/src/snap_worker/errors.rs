//! The engine's errors as the agent hears them: what they mean, and one line of words.

use std::error::Error;
use std::io::ErrorKind;

use claw_snapshot::{
    AttachmentsError, ExportError, FreezeError, ReplicateError, RepositoryError, RestoreError,
    S3Fault, SnapshotError, StorageError, UnpackError, VerifyError,
};

use super::pieces::Cut;
use super::protocol::{Fault, FaultKind, OUT_OF_MEMORY};
use crate::logging::chain;

/// What zstd says when it can have no more (`ZSTD_getErrorString` of zstd_errors.h).
const ZSTD_OUT_OF_MEMORY: &str = "Allocation error : not enough memory";

/// A failure of no special meaning.
pub(super) fn failed(problem: impl Into<String>) -> Fault {
    Fault { kind: FaultKind::Failed, problem: problem.into() }
}

/// There is no snapshot of that name.
pub(super) fn not_found(name: &str) -> Fault {
    Fault { kind: FaultKind::NotFound, problem: format!("there is no snapshot {name}") }
}

/// Any error: full when a file system was, in whatever depth.
pub(super) fn fault(error: &(dyn Error + 'static)) -> Fault {
    let problem = chain(error);
    if problem.contains(ZSTD_OUT_OF_MEMORY) {
        return Fault { kind: FaultKind::Ended, problem: format!("{OUT_OF_MEMORY}: {problem}") };
    }
    Fault { kind: kind(error), problem }
}

/// An error of copying a repository.
pub(super) fn replicate_fault(error: &ReplicateError) -> Fault {
    let kind = match error {
        ReplicateError::OtherRepository(_) => FaultKind::OtherRepository,
        ReplicateError::Damaged { .. } => FaultKind::Damaged,
        // The storage elsewhere: this host is not full.
        ReplicateError::Copy(source) if source.s3_fault().is_some() => FaultKind::Failed,
        _ => kind(error),
    };
    let problem = match error {
        ReplicateError::OtherRepository(place) => place.clone(),
        _ => chain(error),
    };
    Fault { kind, problem }
}

/// An error of unpacking an archive. What is too large for the room that there is, is no fault of the archive.
pub(super) fn unpack_fault(error: &UnpackError) -> Fault {
    let too_large = matches!(error, UnpackError::TooManyBytes(_) | UnpackError::TooManyEntries(_));
    let kind = if too_large { FaultKind::Full } else { kind(error) };
    Fault { kind, problem: chain(error) }
}

/// An error of writing a snapshot as an archive.
pub(super) fn export_fault(error: &ExportError) -> Fault {
    match error {
        ExportError::Snapshot(source) => restore_fault(source),
        ExportError::Attachments(AttachmentsError::Blob(_)) | ExportError::Size(_) => {
            Fault { kind: FaultKind::Damaged, problem: chain(error) }
        }
        _ => fault(error),
    }
}

/// An error of [`claw_snapshot::Repository::restore`].
pub(super) fn restore_fault(error: &RestoreError) -> Fault {
    let damaged = matches!(
        error,
        RestoreError::Damaged { .. }
            | RestoreError::PackMissing { .. }
            | RestoreError::Repository(RepositoryError::Engine { .. })
    );
    let kind = if damaged && !is_away(error) { FaultKind::Damaged } else { kind(error) };
    Fault { kind, problem: chain(error) }
}

/// Whether a storage elsewhere could not be read, which says nothing of what is in it.
fn is_away(error: &(dyn Error + 'static)) -> bool {
    let causes = std::iter::successors(Some(error), |&error| error.source());
    let mut storage = causes.filter_map(|error| error.downcast_ref::<StorageError>());
    storage
        .find_map(StorageError::s3_fault)
        .is_some_and(|fault| !matches!(fault, S3Fault::Absent | S3Fault::Short | S3Fault::Altered))
}

fn kind(error: &(dyn Error + 'static)) -> FaultKind {
    let causes = std::iter::successors(Some(error), |&error| error.source());
    let mut found = FaultKind::Failed;
    for error in causes {
        let storage = error.downcast_ref::<StorageError>();
        let io = storage.map(|error| &error.source).or_else(|| error.downcast_ref());
        if io.is_some_and(is_cut) {
            return FaultKind::Pipe;
        }
        if storage.is_some_and(StorageError::is_full) || io.is_some_and(is_full) {
            found = FaultKind::Full;
        }
    }
    found
}

fn is_cut(error: &std::io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<Cut>())
}

fn is_full(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

impl From<RepositoryError> for Fault {
    /// Of reading: what the engine cannot read is damaged.
    fn from(error: RepositoryError) -> Self {
        let kind = match &error {
            RepositoryError::Engine { .. } => FaultKind::Damaged,
            RepositoryError::Storage(_) => kind(&error),
        };
        Self { kind, problem: chain(&error) }
    }
}

impl From<SnapshotError> for Fault {
    fn from(error: SnapshotError) -> Self {
        fault(&error)
    }
}

impl From<FreezeError> for Fault {
    fn from(error: FreezeError) -> Self {
        fault(&error)
    }
}

impl From<StorageError> for Fault {
    fn from(error: StorageError) -> Self {
        fault(&error)
    }
}

impl From<VerifyError> for Fault {
    fn from(error: VerifyError) -> Self {
        fault(&error)
    }
}
