//! A repository that grows no further than there is room.
//!
//! What comes from elsewhere is as large as somebody else wants. Every file is weighed before it is written.

use std::io::{Error, ErrorKind};
use std::ops::Range;
use std::path::PathBuf;

use bytes::Bytes;
use claw_snapshot::{DirectoryStorage, FileId, FileKind, Storage, StorageAction, StorageError};

use super::protocol::{FaultKind, Job, Reserve};
use super::room::{self, PER_FILE, Room};

/// Files of a repository, no more than there is room for.
#[derive(Debug)]
pub(super) struct Rationed {
    files: DirectoryStorage,
    place: PathBuf,
    reserve: Reserve,
}

impl Rationed {
    pub(super) fn new(files: DirectoryStorage, job: &Job) -> Self {
        Self { files, place: job.repository.clone(), reserve: job.reserve }
    }

    fn weigh(&self, bytes: u64) -> Result<(), Error> {
        let needed = bytes.saturating_add(PER_FILE);
        room::claim(&self.place, needed, self.reserve).map_err(|fault| match fault.kind {
            FaultKind::Full => Error::new(ErrorKind::StorageFull, fault.problem),
            _ => Error::other(fault.problem),
        })?;
        let room = Room::look(&self.place, self.reserve);
        match room.map_err(|fault| Error::other(fault.problem))?.files {
            0 => Err(Error::new(
                ErrorKind::StorageFull,
                "the file system has no room for more files",
            )),
            _ => Ok(()),
        }
    }
}

impl Storage for Rationed {
    fn location(&self) -> String {
        self.files.location()
    }

    fn prepare(&self) -> Result<(), StorageError> {
        self.files.prepare()
    }

    fn list(&self, kind: FileKind) -> Result<Vec<(FileId, u32)>, StorageError> {
        self.files.list(kind)
    }

    fn read(&self, kind: FileKind, id: FileId) -> Result<Bytes, StorageError> {
        self.files.read(kind, id)
    }

    fn read_range(
        &self,
        kind: FileKind,
        id: FileId,
        range: Range<u64>,
    ) -> Result<Bytes, StorageError> {
        self.files.read_range(kind, id, range)
    }

    fn write(&self, kind: FileKind, id: FileId, parts: &[Bytes]) -> Result<(), StorageError> {
        let bytes = parts.iter().map(|part| u64::try_from(part.len()).unwrap_or(u64::MAX));
        let weighed = self.weigh(bytes.fold(0, u64::saturating_add));
        weighed.map_err(|source| {
            let name = id.to_string();
            StorageError { action: StorageAction::Write, kind, name, source }
        })?;
        self.files.write(kind, id, parts)
    }

    fn remove(&self, kind: FileKind, id: FileId) -> Result<(), StorageError> {
        self.files.remove(kind, id)
    }
}
