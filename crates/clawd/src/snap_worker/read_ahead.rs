//! Reading packs of a storage behind a network in larger parts than the engine asks for.
//!
//! A restore asks for one part of a file at a time, mostly one behind the other. Over a network each would be a
//! request. What is read ahead grows while the parts follow one another, so that scattered ones cost little.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use claw_snapshot::{FileId, FileKind, Storage, StorageError};

/// What is read at least.
const LEAST: u64 = 64 << 10;
/// What is read at most, beside what was asked for.
const MOST: u64 = 1 << 20;
/// Windows that are kept: some for each of the restore's threads.
const KEPT: usize = 8;

/// A storage that is read ahead of.
#[derive(Debug)]
pub(super) struct ReadAhead<S> {
    files: S,
    packs: BTreeMap<FileId, u32>,
    /// The one that was used last is the first.
    windows: Mutex<VecDeque<Window>>,
}

#[derive(Debug, Clone)]
struct Window {
    id: FileId,
    start: u64,
    bytes: Bytes,
}

impl<S: Storage> ReadAhead<S> {
    /// Lists the packs once.
    pub(super) fn new(files: S) -> Result<Self, StorageError> {
        let packs = files.list(FileKind::Pack)?.into_iter().collect();
        Ok(Self { files, packs, windows: Mutex::default() })
    }

    fn windows(&self) -> MutexGuard<'_, VecDeque<Window>> {
        self.windows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is there already of what is asked for.
    fn known(&self, id: FileId, range: &Range<u64>) -> Option<Bytes> {
        let mut windows = self.windows();
        let place = windows.iter().position(|window| window.holds(id, range))?;
        let window = windows.remove(place)?;
        let found = window.cut(range);
        windows.push_front(window);
        found
    }

    /// The part to be read instead of what is asked for.
    fn wider(&self, id: FileId, range: &Range<u64>, size: u32) -> Range<u64> {
        let ahead = self.windows().iter().filter_map(|window| window.before(id, range.start)).max();
        let ahead = ahead.map_or(LEAST, |length| (2 * length).clamp(LEAST, MOST));
        let end = range.start.saturating_add(ahead).min(u64::from(size)).max(range.end);
        range.start..end
    }
}

impl Window {
    fn end(&self) -> u64 {
        self.start.saturating_add(u64::try_from(self.bytes.len()).unwrap_or(u64::MAX))
    }

    fn holds(&self, id: FileId, range: &Range<u64>) -> bool {
        self.id == id && self.start <= range.start && range.end <= self.end()
    }

    /// Its length, when it ends a little before this place.
    fn before(&self, id: FileId, place: u64) -> Option<u64> {
        let length = self.end() - self.start;
        let follows = self.start <= place && place <= self.end().saturating_add(length);
        (self.id == id && follows).then_some(length)
    }

    fn cut(&self, range: &Range<u64>) -> Option<Bytes> {
        let first = usize::try_from(range.start.checked_sub(self.start)?).ok()?;
        let last = usize::try_from(range.end.checked_sub(self.start)?).ok()?;
        (first <= last && last <= self.bytes.len()).then(|| self.bytes.slice(first..last))
    }
}

impl<S: Storage> Storage for ReadAhead<S> {
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
        let size = match self.packs.get(&id) {
            Some(size) if kind == FileKind::Pack => *size,
            _ => return self.files.read_range(kind, id, range),
        };
        if let Some(known) = self.known(id, &range) {
            return Ok(known);
        }
        let wider = self.wider(id, &range, size);
        let bytes = self.files.read_range(kind, id, wider.clone())?;
        let window = Window { id, start: wider.start, bytes };
        let Some(found) = window.cut(&range) else {
            return self.files.read_range(kind, id, range);
        };
        let mut windows = self.windows();
        windows.push_front(window);
        windows.truncate(KEPT);
        Ok(found)
    }

    fn write(&self, kind: FileKind, id: FileId, parts: &[Bytes]) -> Result<(), StorageError> {
        self.files.write(kind, id, parts)
    }

    fn remove(&self, kind: FileKind, id: FileId) -> Result<(), StorageError> {
        self.files.remove(kind, id)
    }
}

#[cfg(test)]
mod tests {
    use claw_snapshot::{Access, DirectoryStorage};

    use super::*;

    /// Counts what is asked for.
    #[derive(Debug)]
    struct Counting {
        files: DirectoryStorage,
        asked: Mutex<Vec<u64>>,
    }

    impl Storage for Counting {
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
            self.asked.lock().expect("whole").push(range.end - range.start);
            self.files.read_range(kind, id, range)
        }

        fn write(&self, kind: FileKind, id: FileId, parts: &[Bytes]) -> Result<(), StorageError> {
            self.files.write(kind, id, parts)
        }

        fn remove(&self, kind: FileKind, id: FileId) -> Result<(), StorageError> {
            self.files.remove(kind, id)
        }
    }

    /// A pack of 3 MB whose byte at `n` is `n / 1000`, modulo 256.
    fn pack() -> (tempfile::TempDir, ReadAhead<Counting>, FileId, Vec<u8>) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("repo");
        let files = DirectoryStorage::open(&path, Access::Exclusive).expect("a storage");
        files.prepare().expect("prepared");
        let content: Vec<u8> = (0..3000_u32).flat_map(|n| vec![n.to_le_bytes()[0]; 1000]).collect();
        let id = FileId::of(&content);
        let written = files.write(FileKind::Pack, id, &[Bytes::from(content.clone())]);
        written.expect("written");
        let counting = Counting { files, asked: Mutex::default() };
        (directory, ReadAhead::new(counting).expect("listed"), id, content)
    }

    #[test]
    fn what_follows_is_read_at_once() {
        let (_directory, storage, id, content) = pack();
        for (place, part) in content.chunks(1000).enumerate() {
            let start = u64::try_from(place).expect("small") * 1000;
            let read = storage.read_range(FileKind::Pack, id, start..start + 1000).expect("read");
            assert_eq!(read, part, "{start}");
        }
        let asked = storage.files.asked.lock().expect("whole").clone();
        assert!(asked.len() < 12, "{asked:?}");
        assert!(asked.iter().all(|bytes| *bytes <= MOST), "{asked:?}");
    }

    #[test]
    fn what_is_scattered_costs_little() {
        let (_directory, storage, id, content) = pack();
        let places: Vec<u64> = (0..20).map(|n| 2_900_000 - n * 140_000).collect();
        for start in places {
            let read = storage.read_range(FileKind::Pack, id, start..start + 10).expect("read");
            let first = usize::try_from(start).expect("small");
            assert_eq!(Some(&read[..]), content.get(first..first + 10));
        }
        let asked = storage.files.asked.lock().expect("whole").clone();
        assert!(asked.iter().all(|bytes| *bytes <= LEAST), "{asked:?}");
        let all = 0..u64::try_from(content.len()).expect("small");
        assert_eq!(storage.read_range(FileKind::Pack, id, all).expect("read"), content);
        assert!(storage.read_range(FileKind::Pack, id, 2_999_999..3_000_001).is_err());
    }
}
