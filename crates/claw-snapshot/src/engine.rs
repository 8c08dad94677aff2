//! Errors of the engine, in our form, and limits on what it takes of the machine.

use std::fmt;
use std::num::NonZeroUsize;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use rustic_core::RusticError;

use crate::backend::Backend;
use crate::storage::StorageError;

/// Something inside the engine, or in what is done in its place, failed; its own words.
pub struct EngineError(Words);

enum Words {
    Engine(Box<RusticError>),
    Ours(Box<dyn std::error::Error + Send + Sync>),
}

/// A failure below an operation on a repository.
#[derive(Debug, thiserror::Error)]
pub enum RepositoryError {
    /// The storage failed.
    #[error("the repository's storage failed")]
    Storage(#[source] StorageError),
    /// The engine refused or found something wrong in the repository.
    #[error("{doing} failed")]
    Engine {
        /// What was being done.
        doing: &'static str,
        /// The engine's words.
        #[source]
        source: EngineError,
    },
}

/// Keeps this process, with every thread it starts from now on, to so many processors.
///
/// The engine starts a thread per processor and stage, and each holds blobs in memory: on a large
/// host the worker would need many times its limit. Call it first in the worker's `main`.
///
/// # Errors
///
/// When the kernel refuses.
pub fn limit_processors(count: NonZeroUsize) -> Result<(), nix::Error> {
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this)?;
    let mut limited = CpuSet::new();
    let mut taken = 0;
    for processor in 0..CpuSet::count() {
        if taken < count.get() && allowed.is_set(processor)? {
            limited.set(processor)?;
            taken += 1;
        }
    }
    sched_setaffinity(this, &limited)
}

impl RepositoryError {
    /// What went wrong while `doing`: the storage when it had a hand in it, else the engine.
    pub(crate) fn new(doing: &'static str, backend: &Backend, source: Box<RusticError>) -> Self {
        match backend.take_failure() {
            Some(fault) => Self::Storage(fault),
            None => Self::engine(doing, source),
        }
    }

    /// What the engine says to something that needs no storage.
    pub(crate) fn engine(doing: &'static str, source: Box<RusticError>) -> Self {
        Self::Engine { doing, source: source.into() }
    }

    /// What was read or is to be written cannot be used.
    pub(crate) fn unusable(
        doing: &'static str,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        Self::Engine { doing, source: EngineError::ours(source) }
    }

    /// Whether the storage was full.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Storage(fault) if fault.is_full())
    }

    /// Whether the given credential does not open the repository.
    #[must_use]
    pub fn is_wrong_credential(&self) -> bool {
        let Self::Engine { source: EngineError(Words::Engine(source)), .. } = self else {
            return false;
        };
        source.is_incorrect_password()
    }
}

impl From<StorageError> for RepositoryError {
    fn from(fault: StorageError) -> Self {
        Self::Storage(fault)
    }
}

impl EngineError {
    /// Of what is done in the engine's place.
    pub(crate) fn ours(source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self(Words::Ours(Box::new(source)))
    }
}

impl fmt::Display for EngineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Words::Engine(fault) => {
                let words = fault.display_log();
                // One line; the engine formats for people at terminals.
                f.write_str(&words.split_whitespace().collect::<Vec<_>>().join(" "))
            }
            Words::Ours(fault) => fmt::Display::fmt(fault, f),
        }
    }
}

impl fmt::Debug for EngineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for EngineError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.0 {
            Words::Engine(_) => None,
            Words::Ours(fault) => fault.source(),
        }
    }
}

impl From<Box<RusticError>> for EngineError {
    fn from(source: Box<RusticError>) -> Self {
        Self(Words::Engine(source))
    }
}
