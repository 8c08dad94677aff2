//! A repository in a local directory, in restic's layout.
//!
//! Besides restic's own directories there are `partial/`, where files are written before they get
//! their name, and `lock`, which is flocked while the repository is open: rustic takes no locks of
//! its own. Restic ignores both. It does not honour the locks of restic itself.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::{Access, FileKind, Storage, StorageAction, StorageError, pack_directory};
use crate::id::FileId;

const PARTIAL: &str = "partial";
const LOCK: &str = "lock";
const LOCKS_OF_RESTIC: &str = "locks";

/// A repository's files in a directory, and the lock on them until it is dropped.
#[derive(Debug)]
pub struct DirectoryStorage {
    root: PathBuf,
    access: Access,
    /// Numbers the files in `partial/`.
    next: AtomicU64,
    /// The pack that was read last: what follows in it is mostly read next.
    open_pack: Mutex<Option<(FileId, Arc<File>)>>,
    /// Held, never read.
    _lock: File,
}

/// The directory could not be opened as a storage.
#[derive(Debug, thiserror::Error)]
pub enum OpenDirectoryError {
    /// Another process has it open.
    #[error("the repository {path} is in use by another process")]
    Busy {
        /// The directory.
        path: PathBuf,
    },
    /// The directory or something in it could not be made or opened.
    #[error("opening {path} failed")]
    Open {
        /// The directory or file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl DirectoryStorage {
    /// Opens a directory and locks it; with [`Access::Exclusive`] it is made when absent, and
    /// whatever a killed process left half written is removed. Does not wait for the lock.
    ///
    /// # Errors
    ///
    /// When another process has it open, or it could not be opened.
    pub fn open(root: &Path, access: Access) -> Result<Self, OpenDirectoryError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| OpenDirectoryError::Open { path, source }
        };
        if access == Access::Exclusive {
            make_directory(root).map_err(failed(root))?;
        }
        let path = root.join(LOCK);
        let mut options = OpenOptions::new();
        options.read(true).write(access == Access::Exclusive).mode(0o600);
        let lock = options
            .create(access == Access::Exclusive)
            .truncate(false)
            .open(&path)
            .map_err(failed(&path))?;
        match access {
            Access::Shared => lock.try_lock_shared(),
            Access::Exclusive => lock.try_lock(),
        }
        .map_err(|fault| match fault {
            TryLockError::WouldBlock => OpenDirectoryError::Busy { path: root.to_owned() },
            TryLockError::Error(source) => OpenDirectoryError::Open { path, source },
        })?;
        let (root_path, next) = (root.to_owned(), AtomicU64::new(0));
        let open_pack = Mutex::new(None);
        let storage = Self { root: root_path, access, next, open_pack, _lock: lock };
        if access == Access::Exclusive {
            storage.sweep().map_err(failed(&root.join(PARTIAL)))?;
        }
        Ok(storage)
    }

    /// Removes what was being written when a process died. Only under the exclusive lock.
    fn sweep(&self) -> io::Result<()> {
        let partial = self.root.join(PARTIAL);
        make_directory(&partial)?;
        for entry in fs::read_dir(&partial)? {
            fs::remove_file(entry?.path())?;
        }
        // Restic honours no lock of ours: while it has its own, what it writes is its.
        let locks = self.root.join(LOCKS_OF_RESTIC);
        if locks.try_exists()? && fs::read_dir(&locks)?.next().is_some() {
            return Ok(());
        }
        for directory in FileKind::MANY.into_iter().flat_map(|kind| self.directories(kind)) {
            if directory.try_exists()? {
                sweep_temporary(&directory)?;
            }
        }
        Ok(())
    }

    fn path(&self, kind: FileKind, id: FileId) -> PathBuf {
        let mut path = self.root.join(kind.directory());
        let name = id.to_string();
        match kind {
            FileKind::Config => return path,
            FileKind::Pack => path.push(pack_directory(id)),
            FileKind::Key | FileKind::Snapshot | FileKind::Index => {}
        }
        path.push(name);
        path
    }

    fn directories(&self, kind: FileKind) -> Vec<PathBuf> {
        let top = self.root.join(kind.directory());
        if kind != FileKind::Pack {
            return vec![top];
        }
        (0..=u8::MAX).map(|first| top.join(format!("{first:02x}"))).collect()
    }

    fn make_all(&self) -> io::Result<()> {
        make_directory(&self.root.join(PARTIAL))?;
        make_directory(&self.root.join(LOCKS_OF_RESTIC))?;
        for kind in FileKind::MANY {
            make_directory(&self.root.join(kind.directory()))?;
        }
        for directory in self.directories(FileKind::Pack) {
            make_directory(&directory)?;
        }
        sync_directory(&self.root.join(FileKind::Pack.directory()))?;
        sync_directory(&self.root)?;
        // The repository's own entry in its parent.
        match self.root.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => sync_directory(parent),
            _ => Ok(()),
        }
    }

    /// A file to read parts of.
    fn opened(&self, kind: FileKind, id: FileId) -> io::Result<Arc<File>> {
        let open_pack = || self.open_pack.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, file)) = open_pack().as_ref().filter(|(open, _)| *open == id) {
            return Ok(Arc::clone(file));
        }
        let file = Arc::new(File::open(self.path(kind, id))?);
        if kind == FileKind::Pack {
            *open_pack() = Some((id, Arc::clone(&file)));
        }
        Ok(file)
    }

    fn write_parts(&self, path: &Path, parts: &[Bytes]) -> io::Result<()> {
        if self.access == Access::Shared {
            return Err(ErrorKind::ReadOnlyFilesystem.into());
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let partial = self.root.join(PARTIAL).join(number.to_string());
        let written = write_new(&partial, parts).and_then(|()| fs::rename(&partial, path));
        if written.is_err() {
            // It is swept at the next start too.
            _ = fs::remove_file(&partial);
        }
        written?;
        sync_parent(path)
    }
}

impl Storage for DirectoryStorage {
    fn location(&self) -> String {
        self.root.display().to_string()
    }

    fn prepare(&self) -> Result<(), StorageError> {
        self.make_all().map_err(|source| StorageError {
            action: StorageAction::Prepare,
            kind: FileKind::Config,
            name: self.location(),
            source,
        })
    }

    fn list(&self, kind: FileKind) -> Result<Vec<(FileId, u32)>, StorageError> {
        let failed = |path: &Path, source| StorageError {
            action: StorageAction::List,
            kind,
            name: path.display().to_string(),
            source,
        };
        if kind == FileKind::Config {
            let path = self.root.join(kind.directory());
            return match fs::metadata(&path).and_then(|metadata| size(&metadata)) {
                Ok(size) => Ok(vec![(FileId::from_bytes([0; 32]), size)]),
                // Absent only when the directory around it is there.
                Err(fault) if fault.kind() == ErrorKind::NotFound && self.root.is_dir() => {
                    Ok(Vec::new())
                }
                Err(fault) => Err(failed(&path, fault)),
            };
        }
        let mut files = Vec::new();
        for directory in self.directories(kind) {
            list_directory(&directory, &mut files).map_err(|source| failed(&directory, source))?;
        }
        Ok(files)
    }

    fn read(&self, kind: FileKind, id: FileId) -> Result<Bytes, StorageError> {
        let path = self.path(kind, id);
        fs::read(&path).map(Bytes::from).map_err(|source| StorageError {
            action: StorageAction::Read,
            kind,
            name: id.to_string(),
            source,
        })
    }

    fn read_range(
        &self,
        kind: FileKind,
        id: FileId,
        range: Range<u64>,
    ) -> Result<Bytes, StorageError> {
        let read = self.opened(kind, id).and_then(|file| read_part(&file, &range));
        read.map_err(|source| StorageError {
            action: StorageAction::Read,
            kind,
            name: id.to_string(),
            source,
        })
    }

    fn write(&self, kind: FileKind, id: FileId, parts: &[Bytes]) -> Result<(), StorageError> {
        self.write_parts(&self.path(kind, id), parts).map_err(|source| StorageError {
            action: StorageAction::Write,
            kind,
            name: id.to_string(),
            source,
        })
    }

    fn remove(&self, kind: FileKind, id: FileId) -> Result<(), StorageError> {
        let path = self.path(kind, id);
        *self.open_pack.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let removed = match fs::remove_file(&path) {
            Err(fault) if fault.kind() == ErrorKind::NotFound => Ok(()),
            Ok(()) if kind != FileKind::Pack => sync_parent(&path),
            other => other,
        };
        removed.map_err(|source| StorageError {
            action: StorageAction::Remove,
            kind,
            name: id.to_string(),
            source,
        })
    }
}

fn make_directory(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(fault) if fault.kind() == ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        made => made,
    }
}

/// What restic calls a file until it is whole: the id, `-tmp-` and a number.
fn is_temporary(name: &OsStr) -> bool {
    name.to_str().and_then(|name| name.split_once("-tmp-")).is_some_and(|(id, number)| {
        id.parse::<FileId>().is_ok() && number.bytes().all(|byte| byte.is_ascii_digit())
    })
}

fn sweep_temporary(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if is_temporary(&entry.file_name()) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn list_directory(directory: &Path, files: &mut Vec<(FileId, u32)>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        // What is not named by an id is not ours: another program's half-written file.
        let Some(id) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        files.push((id, size(&entry.metadata()?)?));
    }
    Ok(())
}

/// Sizes are 32 bits wide in the format.
fn size(metadata: &fs::Metadata) -> io::Result<u32> {
    u32::try_from(metadata.len()).map_err(|_| ErrorKind::FileTooLarge.into())
}

fn read_part(file: &File, range: &Range<u64>) -> io::Result<Bytes> {
    let length = usize::try_from(range.end.saturating_sub(range.start))
        .map_err(|_| io::Error::from(ErrorKind::FileTooLarge))?;
    let mut buffer = vec![0; length];
    file.read_exact_at(&mut buffer, range.start)?;
    Ok(Bytes::from(buffer))
}

fn write_new(path: &Path, parts: &[Bytes]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    for part in parts {
        file.write_all(part)?;
    }
    file.sync_all()?;
    // It is read again in a day at the earliest. Left to the kernel, it would be this process that
    // has to make room at its memory limit. That it goes is only asked for.
    _ = posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
    Ok(())
}

fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), sync_directory)
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn storage() -> (tempfile::TempDir, DirectoryStorage) {
        let directory = tempfile::tempdir().unwrap();
        let storage =
            DirectoryStorage::open(&directory.path().join("repo"), Access::Exclusive).unwrap();
        storage.prepare().unwrap();
        (directory, storage)
    }

    #[test]
    fn what_was_written_is_read_and_listed() {
        let (_directory, storage) = storage();
        for kind in FileKind::MANY {
            let parts = [Bytes::from_static(b"one"), Bytes::from_static(b"two")];
            let id = FileId::of(b"onetwo");
            storage.write(kind, id, &parts).unwrap();
            assert_eq!(storage.read(kind, id).unwrap(), "onetwo");
            assert_eq!(storage.read_range(kind, id, 2..4).unwrap(), "et");
            assert!(storage.read_range(kind, id, 4..9).is_err());
            assert_eq!(storage.list(kind).unwrap(), [(id, 6)]);
            storage.remove(kind, id).unwrap();
            storage.remove(kind, id).unwrap();
            assert_eq!(storage.list(kind).unwrap(), []);
            assert!(storage.read(kind, id).is_err());
        }
    }

    #[test]
    fn a_missing_directory_is_not_an_empty_one() {
        let (directory, storage) = storage();
        assert!(storage.list(FileKind::Config).unwrap().is_empty());
        fs::remove_dir(directory.path().join("repo/snapshots")).unwrap();
        assert!(storage.list(FileKind::Snapshot).is_err());
        fs::remove_dir(directory.path().join("repo/data/7f")).unwrap();
        assert!(storage.list(FileKind::Pack).is_err());
        fs::rename(directory.path().join("repo"), directory.path().join("away")).unwrap();
        assert!(storage.list(FileKind::Config).is_err());
    }

    #[test]
    fn one_writes_or_several_read() {
        let (directory, storage) = storage();
        let root = directory.path().join("repo");
        for access in [Access::Shared, Access::Exclusive] {
            let refused = DirectoryStorage::open(&root, access).unwrap_err();
            assert!(matches!(refused, OpenDirectoryError::Busy { .. }), "{refused:?}");
        }
        drop(storage);
        let first = DirectoryStorage::open(&root, Access::Shared).unwrap();
        let second = DirectoryStorage::open(&root, Access::Shared).unwrap();
        assert!(first.write(FileKind::Index, FileId::of(b""), &[]).is_err());
        assert!(DirectoryStorage::open(&root, Access::Exclusive).is_err());
        drop((first, second));
        DirectoryStorage::open(&root, Access::Exclusive).unwrap();
    }

    #[test]
    fn leftovers_are_swept_and_nothing_else() {
        let (directory, storage) = storage();
        let root = directory.path().join("repo");
        let id = FileId::of(b"x");
        storage.write(FileKind::Index, id, &[Bytes::from_static(b"x")]).unwrap();
        drop(storage);
        fs::write(root.join("partial/3"), "half").unwrap();
        let storage = DirectoryStorage::open(&root, Access::Exclusive).unwrap();
        assert_eq!(fs::read_dir(root.join("partial")).unwrap().count(), 0);
        assert_eq!(storage.list(FileKind::Index).unwrap(), [(id, 1)]);
        let mode = fs::metadata(&root).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }

    #[test]
    fn what_a_killed_restic_left_is_swept_unless_restic_is_at_work() {
        let (directory, storage) = storage();
        let root = directory.path().join("repo");
        drop(storage);
        let id = FileId::of(b"x");
        let leftovers =
            [format!("index/{id}-tmp-12"), format!("data/{}/{id}-tmp-7", pack_directory(id))];
        let lock = root.join(LOCKS_OF_RESTIC).join("lock");
        fs::write(&lock, "").unwrap();
        for leftover in &leftovers {
            fs::write(root.join(leftover), "half").unwrap();
        }
        fs::write(root.join("index/x-tmp-y"), "another's").unwrap();
        drop(DirectoryStorage::open(&root, Access::Exclusive).unwrap());
        assert!(leftovers.iter().all(|leftover| root.join(leftover).exists()));
        fs::remove_file(lock).unwrap();
        drop(DirectoryStorage::open(&root, Access::Shared).unwrap());
        assert!(leftovers.iter().all(|leftover| root.join(leftover).exists()));
        drop(DirectoryStorage::open(&root, Access::Exclusive).unwrap());
        assert!(!leftovers.iter().any(|leftover| root.join(leftover).exists()));
        assert!(root.join("index/x-tmp-y").exists());
    }

    #[test]
    fn a_failed_write_leaves_nothing() {
        let (directory, storage) = storage();
        let root = directory.path().join("repo");
        fs::remove_dir(root.join("index")).unwrap();
        let id = FileId::of(b"x");
        assert!(storage.write(FileKind::Index, id, &[Bytes::from_static(b"x")]).is_err());
        assert_eq!(fs::read_dir(root.join("partial")).unwrap().count(), 0);
    }
}
