//! Between our [`Storage`] and the engine's own trait: translates names, keeps what the engine
//! would forget, and refuses what it would get wrong.
//!
//! Two hazards are answered here. The engine wraps errors until nobody can tell a full disk from a
//! bug: the first failure of the storage is kept as it was. And when it fails, its threads go on
//! writing for a while: [`Backend::close`] waits for them and lets them begin nothing more.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use rustic_core::{
    BytesList, ErrorKind, FileType, Id, ReadBackend, RusticError, RusticResult, WriteBackend,
};

use crate::id::FileId;
use crate::storage::{FileKind, Storage, StorageError};

/// A storage as the engine sees it.
pub(crate) struct Backend {
    location: String,
    /// Files that the engine must not see, because they are damaged.
    hidden: BTreeSet<FileId>,
    failure: Mutex<Option<StorageError>>,
    work: Mutex<Work>,
    /// Told when nothing is under way any more.
    idle: Condvar,
}

/// What the engine's threads do with the storage.
struct Work {
    /// Nothing when closed, so that the storage's lock does not depend on threads of the engine.
    storage: Option<Arc<dyn Storage>>,
    under_way: usize,
    /// Packs that were written, whole or, when it failed, perhaps.
    written: BTreeSet<FileId>,
}

/// One call to the storage.
struct Turn<'a> {
    backend: &'a Backend,
    /// There until the turn ends.
    storage: Option<Arc<dyn Storage>>,
}

/// The operation is over.
#[derive(Debug, thiserror::Error)]
#[error("the operation has ended")]
struct Closed;

impl Backend {
    pub(crate) fn new(storage: Arc<dyn Storage>) -> Self {
        Self {
            location: storage.location(),
            hidden: BTreeSet::new(),
            failure: Mutex::new(None),
            work: Mutex::new(Work {
                storage: Some(storage),
                under_way: 0,
                written: BTreeSet::new(),
            }),
            idle: Condvar::new(),
        }
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

    /// Waits for what is under way and lets nothing more begin. Gives the packs that were
    /// written, those included of which only the storage knows whether they were.
    pub(crate) fn close(&self) -> BTreeSet<FileId> {
        let mut work = self.work();
        work.storage = None;
        let mut work = self
            .idle
            .wait_while(work, |work| work.under_way > 0)
            .unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut work.written)
    }

    fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with the storage, unless the operation is over.
    fn with<T>(
        &self,
        call: impl FnOnce(&dyn Storage) -> Result<T, StorageError>,
    ) -> RusticResult<T> {
        let turn = {
            let mut work = self.work();
            let storage = work.storage.clone();
            work.under_way += 1;
            Turn { backend: self, storage }
        };
        let Some(storage) = &turn.storage else {
            return Err(RusticError::with_source(ErrorKind::Backend, "nothing is begun", Closed));
        };
        call(storage.as_ref()).map_err(|fault| {
            self.failure().get_or_insert_with(|| fault.duplicate());
            RusticError::with_source(ErrorKind::Backend, "the storage failed", fault)
        })
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        // Before anybody is told that nothing is under way: this may be the last that holds it.
        self.storage = None;
        let mut work = self.backend.work();
        work.under_way -= 1;
        if work.under_way == 0 {
            self.backend.idle.notify_all();
        }
    }
}

impl ReadBackend for Backend {
    fn location(&self) -> String {
        self.location.clone()
    }

    fn list_with_size(&self, tpe: FileType) -> RusticResult<Vec<(Id, u32)>> {
        let files = self.with(|storage| storage.list(kind(tpe)))?;
        let seen = files.into_iter().filter(|(id, _)| !self.hidden.contains(id));
        Ok(seen.map(|(id, size)| (id.engine(), size)).collect())
    }

    fn read_full(&self, tpe: FileType, id: &Id) -> RusticResult<Bytes> {
        self.with(|storage| storage.read(kind(tpe), FileId::from(*id)))
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
        self.with(|storage| storage.read_range(kind(tpe), FileId::from(*id), range))
    }

    fn warmup_path(&self, _tpe: FileType, id: &Id) -> String {
        FileId::from(*id).to_string()
    }
}

impl WriteBackend for Backend {
    fn create(&self) -> RusticResult<()> {
        self.with(|storage| storage.prepare())
    }

    fn write_bytes(
        &self,
        tpe: FileType,
        id: &Id,
        _cacheable: bool,
        content: BytesList,
    ) -> RusticResult<()> {
        let kind = kind(tpe);
        let id = FileId::from(*id);
        if kind == FileKind::Pack {
            self.work().written.insert(id);
        }
        self.with(|storage| storage.write(kind, id, content.slice()))
    }

    fn remove(&self, tpe: FileType, id: &Id, _cacheable: bool) -> RusticResult<()> {
        self.with(|storage| storage.remove(kind(tpe), FileId::from(*id)))
    }
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backend").field("location", &self.location).finish_non_exhaustive()
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
