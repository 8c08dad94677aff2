//! Files that hold secrets: created whole or not at all, and closed to everybody else.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

use zeroize::Zeroizing;

/// Readable and writable by the owner only.
pub(crate) const SECRET: u32 = 0o600;
/// Readable by everybody: certificates.
pub(crate) const PUBLIC: u32 = 0o644;
/// A directory of the owner only.
const SECRET_DIRECTORY: u32 = 0o700;
/// Nothing here is larger; protects against a wrong path.
const MAX_SIZE: u64 = 1024 * 1024;

/// Why a file or directory of an identity could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum PrivateFileError {
    /// The file is not there.
    #[error("{} does not exist", path.display())]
    Absent {
        /// The file.
        path: PathBuf,
    },
    /// There is a file already; nothing was changed.
    #[error("{} exists already and is not overwritten", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// Others than the owner have access to a secret.
    #[error(
        "{} has mode {mode:04o}, others could have read it; make a new one, or if you are sure: \
         chmod go= {}",
        path.display(),
        path.display()
    )]
    Loose {
        /// The file or directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Not a regular file, or much too large.
    #[error("{} is no regular file of at most 1 MiB", path.display())]
    Unsuitable {
        /// The path.
        path: PathBuf,
    },
    /// Reading failed.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Writing failed; the file does not exist or is complete.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Creates `path` with `contents`: whole and durable when this returns, absent otherwise.
///
/// Never replaces a file; of two racing writers one wins and the other gets
/// [`PrivateFileError::Exists`].
pub(crate) fn create(path: &Path, contents: &[u8], mode: u32) -> Result<(), PrivateFileError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::AlreadyExists => PrivateFileError::Exists { path: path.to_owned() },
        _ => PrivateFileError::Write { path: path.to_owned(), source },
    };
    let temporary = temporary_beside(path);
    let written = write_synced(&temporary, contents, mode)
        // Unlike a rename, a link never replaces what is there.
        .and_then(|()| fs::hard_link(&temporary, path));
    let removed = fs::remove_file(&temporary);
    written.map_err(failed)?;
    removed.map_err(failed)?;
    sync_directory(parent(path)).map_err(failed)
}

/// Reads a secret; refuses a file that anybody but the owner has access to.
pub(crate) fn read_secret(path: &Path) -> Result<Zeroizing<Vec<u8>>, PrivateFileError> {
    let file = open(path)?;
    let mode = file.metadata().map_err(|source| unreadable(path, source))?.permissions().mode();
    refuse_loose(path, mode)?;
    read_all(path, file)
}

/// Reads a file that is no secret, as text.
pub(crate) fn read_text(path: &Path) -> Result<String, PrivateFileError> {
    let bytes = read_all(path, open(path)?)?;
    String::from_utf8(bytes.to_vec()).map_err(|error| {
        unreadable(path, io::Error::new(io::ErrorKind::InvalidData, error.utf8_error()))
    })
}

/// Makes sure of a directory of mode 0700; the parent must exist.
pub(crate) fn ensure_directory(path: &Path) -> Result<(), PrivateFileError> {
    let failed = |source| PrivateFileError::Write { path: path.to_owned(), source };
    match DirBuilder::new().mode(SECRET_DIRECTORY).create(path) {
        Ok(()) => sync_directory(parent(path)).map_err(failed),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let metadata = fs::metadata(path).map_err(|source| unreadable(path, source))?;
            if !metadata.is_dir() {
                return Err(failed(io::ErrorKind::NotADirectory.into()));
            }
            refuse_loose(path, metadata.permissions().mode())
        }
        Err(error) => Err(failed(error)),
    }
}

/// Makes the names in a directory durable.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn write_synced(path: &Path, contents: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(contents)?;
    file.sync_all()
}

fn temporary_beside(path: &Path) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    parent(path).join(format!(".{name}.{}.{number}.new", process::id()))
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn open(path: &Path) -> Result<File, PrivateFileError> {
    let file = File::open(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => PrivateFileError::Absent { path: path.to_owned() },
        _ => unreadable(path, source),
    })?;
    let metadata = file.metadata().map_err(|source| unreadable(path, source))?;
    if !metadata.is_file() || metadata.len() > MAX_SIZE {
        return Err(PrivateFileError::Unsuitable { path: path.to_owned() });
    }
    Ok(file)
}

fn read_all(path: &Path, file: File) -> Result<Zeroizing<Vec<u8>>, PrivateFileError> {
    // Reserved at once, so that growing leaves no copy behind.
    let mut contents = Zeroizing::new(Vec::with_capacity(64 * 1024));
    file.take(MAX_SIZE).read_to_end(&mut contents).map_err(|source| unreadable(path, source))?;
    Ok(contents)
}

fn refuse_loose(path: &Path, mode: u32) -> Result<(), PrivateFileError> {
    let mode = mode & 0o7777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    Err(PrivateFileError::Loose { path: path.to_owned(), mode })
}

fn unreadable(path: &Path, source: io::Error) -> PrivateFileError {
    PrivateFileError::Read { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn created_files_are_private_and_leave_nothing_beside() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        create(&path, b"secret", SECRET).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(read_secret(&path).unwrap().as_slice(), b"secret");
        let again = create(&path, b"other", SECRET);
        assert!(matches!(again, Err(PrivateFileError::Exists { .. })));
        assert_eq!(read_secret(&path).unwrap().as_slice(), b"secret");
        assert_eq!(names(directory.path()), ["key"]);
    }

    #[test]
    fn loose_secrets_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        create(&path, b"secret", SECRET).unwrap();
        for mode in [0o640, 0o604, 0o620, 0o601] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let refused = read_secret(&path).unwrap_err();
            assert!(
                matches!(refused, PrivateFileError::Loose { mode: found, .. } if found == mode)
            );
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
        assert!(read_secret(&path).is_ok());
    }

    #[test]
    fn failures_name_what_is_wrong() {
        let directory = tempfile::tempdir().unwrap();
        let absent = directory.path().join("absent");
        assert!(matches!(read_secret(&absent), Err(PrivateFileError::Absent { .. })));
        let nowhere = absent.join("key");
        assert!(matches!(create(&nowhere, b"", SECRET), Err(PrivateFileError::Write { .. })));
        assert!(matches!(read_secret(directory.path()), Err(PrivateFileError::Unsuitable { .. })));
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        assert!(matches!(
            ensure_directory(directory.path()),
            Err(PrivateFileError::Loose { mode: 0o755, .. })
        ));
    }
}
