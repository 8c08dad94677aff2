//! Between our [`Storage`] and the engine's own trait: translates names, keeps what the engine
//! would forget, and refuses what it would get wrong.
//!
//! Two hazards are answered here. The engine swallows errors of its source and goes on to write a
//! snapshot that lacks files: a [`Gate`] refuses the snapshot file then. And it wraps errors until
//! nobody can tell a full disk from a bug: the first failure of the storage is kept as it was.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use rustic_core::{
    BytesList, ErrorKind, FileType, Id, ReadBackend, RusticError, RusticResult, WriteBackend,
};

use crate::id::FileId;
use crate::storage::{FileKind, Storage, StorageError};

/// Says whether a snapshot may be written now.
pub(crate) trait Gate: Send + Sync {
    /// Whether everything that belongs into the snapshot was read.
    fn is_open(&self) -> bool;
}

/// A storage as the engine sees it.
pub(crate) struct Backend {
    storage: Arc<dyn Storage>,
    gate: Option<Arc<dyn Gate>>,
    /// Files that the engine must not see, because they are damaged.
    hidden: BTreeSet<FileId>,
    failure: Mutex<Option<StorageError>>,
}

/// Why the gate refused.
#[derive(Debug, thiserror::Error)]
#[error("the source was not read completely")]
struct GateClosed;

impl Backend {
    pub(crate) fn new(storage: Arc<dyn Storage>) -> Self {
        Self { storage, gate: None, hidden: BTreeSet::new(), failure: Mutex::new(None) }
    }

    pub(crate) fn gated(storage: Arc<dyn Storage>, gate: Arc<dyn Gate>) -> Self {
        Self { gate: Some(gate), ..Self::new(storage) }
    }

    pub(crate) fn hiding(storage: Arc<dyn Storage>, hidden: BTreeSet<FileId>) -> Self {
        Self { hidden, ..Self::new(storage) }
    }

    /// The first thing that the storage could not do since it was last asked.
    pub(crate) fn take_failure(&self) -> Option<StorageError> {
        self.failure().take()
    }

    fn failure(&self) -> MutexGuard<'_, Option<StorageError>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep<T>(&self, result: Result<T, StorageError>) -> RusticResult<T> {
        result.map_err(|fault| {
            self.failure().get_or_insert_with(|| fault.duplicate());
            RusticError::with_source(ErrorKind::Backend, "the storage failed", fault)
        })
    }

    fn may_write(&self, kind: FileKind) -> RusticResult<()> {
        if kind != FileKind::Snapshot {
            return Ok(());
        }
        let failed = self.failure().is_some();
        let open = self.gate.as_ref().is_none_or(|gate| gate.is_open());
        if open && !failed {
            return Ok(());
        }
        Err(RusticError::with_source(ErrorKind::Backend, "no snapshot is written", GateClosed))
    }
}

impl ReadBackend for Backend {
    fn location(&self) -> String {
        self.storage.location()
    }

    fn list_with_size(&self, tpe: FileType) -> RusticResult<Vec<(Id, u32)>> {
        let files = self.keep(self.storage.list(kind(tpe)))?;
        let seen = files.into_iter().filter(|(id, _)| !self.hidden.contains(id));
        Ok(seen.map(|(id, size)| (id.engine(), size)).collect())
    }

    fn read_full(&self, tpe: FileType, id: &Id) -> RusticResult<Bytes> {
        self.keep(self.storage.read(kind(tpe), FileId::from(*id)))
    }

    fn read_partial(
        &self,
        tpe: FileType,
        id: &Id,
        _cacheable: bool,
        offset: u32,
        length: u32,
    ) -> RusticResult<Bytes> {
        let start = u64::from(offset);
        let range = Range { start, end: start + u64::from(length) };
        self.keep(self.storage.read_range(kind(tpe), FileId::from(*id), range))
    }

    fn warmup_path(&self, _tpe: FileType, id: &Id) -> String {
        FileId::from(*id).to_string()
    }
}

impl WriteBackend for Backend {
    fn create(&self) -> RusticResult<()> {
        self.keep(self.storage.prepare())
    }

    fn write_bytes(
        &self,
        tpe: FileType,
        id: &Id,
        _cacheable: bool,
        content: BytesList,
    ) -> RusticResult<()> {
        let kind = kind(tpe);
        self.may_write(kind)?;
        self.keep(self.storage.write(kind, FileId::from(*id), content.slice()))
    }

    fn remove(&self, tpe: FileType, id: &Id, _cacheable: bool) -> RusticResult<()> {
        self.keep(self.storage.remove(kind(tpe), FileId::from(*id)))
    }
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backend").field("storage", &self.storage).finish_non_exhaustive()
    }
}

fn kind(tpe: FileType) -> FileKind {
    match tpe {
        FileType::Config => FileKind::Config,
        FileType::Index => FileKind::Index,
        FileType::Key => FileKind::Key,
        FileType::Snapshot => FileKind::Snapshot,
        FileType::Pack => FileKind::Pack,
    }
}
