//! The engine's errors as the agent hears them: what they mean, and one line of words.

use std::error::Error;
use std::io::ErrorKind;

use claw_snapshot::{
    FreezeError, RepositoryError, RestoreError, SnapshotError, StorageError, VerifyError,
};

use super::protocol::{Fault, FaultKind};
use crate::logging::chain;

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
    Fault { kind: kind(error), problem: chain(error) }
}

/// An error of [`claw_snapshot::Repository::restore`].
pub(super) fn restore_fault(error: &RestoreError) -> Fault {
    let damaged = matches!(
        error,
        RestoreError::Damaged { .. }
            | RestoreError::PackMissing { .. }
            | RestoreError::Repository(RepositoryError::Engine { .. })
    );
    let kind = if damaged { FaultKind::Damaged } else { kind(error) };
    Fault { kind, problem: chain(error) }
}

fn kind(error: &(dyn Error + 'static)) -> FaultKind {
    let causes = std::iter::successors(Some(error), |&error| error.source());
    let full = |error: &(dyn Error + 'static)| {
        let storage = error.downcast_ref::<StorageError>().is_some_and(StorageError::is_full);
        storage || error.downcast_ref::<std::io::Error>().is_some_and(is_full)
    };
    if causes.into_iter().any(full) { FaultKind::Full } else { FaultKind::Failed }
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
