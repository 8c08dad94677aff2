//! What the tests of this crate share: a repository in a temporary directory, data to snapshot,
//! directories as text to be compared, and Debian's restic.

#![allow(dead_code, reason = "every test file uses a part of it")]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

use claw_core::time::Timestamp;
use claw_snapshot::{
    Access, Credential, DirectoryStorage, OpenDirectoryError, Parent, RecoveryPassword, Repository,
    RepositorySecret, SnapshotId, SnapshotRequest, Source, Storage, Watcher,
};
use nix::sys::statvfs::statvfs;
use tempfile::TempDir;

/// A repository and a source, removed when dropped.
pub(crate) struct Fixture {
    pub(crate) directory: TempDir,
}

/// Long after every file of a test was written, so that nothing is racy.
pub(crate) const LATER: i64 = 4_000_000_000_000;

impl Fixture {
    pub(crate) fn new() -> Self {
        let fixture = Self { directory: tempfile::tempdir().unwrap() };
        fs::create_dir(fixture.source()).unwrap();
        fixture
    }

    /// In memory where there is room for it: for tests that write so much that they would measure
    /// the disk.
    pub(crate) fn roomy() -> Self {
        const ROOM: u64 = 2 << 30;
        let memory = Path::new("/dev/shm");
        let free = statvfs(memory).map(|room| room.blocks_available() * room.fragment_size());
        let directory = match free {
            Ok(free) if free >= ROOM => tempfile::tempdir_in(memory),
            _ => tempfile::tempdir(),
        };
        let fixture = Self { directory: directory.unwrap() };
        fs::create_dir(fixture.source()).unwrap();
        fixture
    }

    /// With a repository in it.
    pub(crate) fn with_repository() -> Self {
        let fixture = Self::new();
        Repository::create(fixture.storage(), &secret(), &recovery(), &mut rand::rng()).unwrap();
        fixture
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn source(&self) -> PathBuf {
        self.path("source")
    }

    /// After an operation that failed, threads of the engine may hold the repository a little.
    pub(crate) fn storage(&self) -> Arc<dyn Storage> {
        for _ in 0..1000 {
            match DirectoryStorage::open(&self.path("repo"), Access::Exclusive) {
                Err(OpenDirectoryError::Busy { .. }) => sleep(Duration::from_millis(10)),
                opened => return Arc::new(opened.unwrap()),
            }
        }
        panic!("the repository is held for ten seconds");
    }

    pub(crate) fn open(&self) -> Repository {
        Repository::open(self.storage(), &Credential::Secret(secret())).unwrap()
    }

    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.source().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// A snapshot of the source by the repository.
    pub(crate) fn snapshot(&self, repository: &Repository, time: i64) -> SnapshotId {
        let source = Source::openclaw(&self.source());
        let taken = repository.snapshot(&request(time), &source, Watcher::none()).unwrap();
        taken.snapshot.id
    }

    /// Debian's restic on the repository, with the recovery password.
    pub(crate) fn restic(&self, arguments: &[&str]) -> String {
        restic(&self.path("repo"), recovery().expose(), arguments)
    }
}

pub(crate) fn secret() -> RepositorySecret {
    RepositorySecret::from_bytes([7; 32])
}

pub(crate) fn recovery() -> RecoveryPassword {
    RecoveryPassword::parse(&"0".repeat(32)).unwrap()
}

pub(crate) fn request(time: i64) -> SnapshotRequest {
    SnapshotRequest {
        host: "shop".to_owned(),
        time: Timestamp::from_millis(time),
        tags: BTreeSet::from(["test".to_owned()]),
        parent: Parent::Latest,
    }
}

/// Bytes that do not compress, the same for the same seed.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        // xorshift64*
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Runs a command to its end; a command that is absent is a failure that says what to do.
#[expect(clippy::disallowed_methods, reason = "tests run programs as they are")]
pub(crate) fn run(program: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(program);
    command.args(arguments).envs(environment.iter().copied());
    command.output().unwrap_or_else(|fault| {
        panic!("cannot run {program}: {fault}; hint: apt-get install restic util-linux zstd")
    })
}

pub(crate) fn restic(repository: &Path, password: &str, arguments: &[&str]) -> String {
    let environment =
        [("RESTIC_PASSWORD", password), ("RESTIC_REPOSITORY", repository.to_str().unwrap())];
    let all = [&["--no-cache"], arguments].concat();
    let output = run("restic", &all, &environment);
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "restic {arguments:?}: {text}");
    text
}

/// A directory as text: kind, mode, owner, size, time, attributes, content of every entry.
pub(crate) fn describe(root: &Path) -> String {
    let mut text = String::new();
    let mut inodes = Vec::new();
    describe_entry(root, Path::new("."), &mut inodes, &mut text);
    text
}

fn describe_entry(root: &Path, path: &Path, inodes: &mut Vec<u64>, text: &mut String) {
    let full = root.join(path);
    let metadata = fs::symlink_metadata(&full).unwrap();
    let kind = metadata.file_type();
    write!(
        text,
        "{} {:o} {}:{} {}.{:09}",
        path.display(),
        metadata.mode(),
        metadata.uid(),
        metadata.gid(),
        metadata.mtime(),
        metadata.mtime_nsec()
    )
    .unwrap();
    for name in xattr::list(&full).unwrap() {
        let value = xattr::get(&full, &name).unwrap().unwrap_or_default();
        write!(text, " {}={}", name.display(), String::from_utf8_lossy(&value)).unwrap();
    }
    if kind.is_symlink() {
        write!(text, " -> {}", fs::read_link(&full).unwrap().display()).unwrap();
    } else if kind.is_file() {
        let content = fs::read(&full).unwrap();
        let hash = claw_snapshot::FileId::of(&content);
        write!(text, " {} {hash}", content.len()).unwrap();
        if metadata.nlink() > 1 {
            let known = inodes.iter().position(|inode| *inode == metadata.ino());
            let number = known.unwrap_or_else(|| {
                inodes.push(metadata.ino());
                inodes.len() - 1
            });
            write!(text, " link {number} of {}", metadata.nlink()).unwrap();
        }
    } else if kind.is_fifo() || kind.is_socket() {
        text.push_str(" special");
    }
    text.push('\n');
    if kind.is_dir() {
        let mut names: Vec<_> =
            fs::read_dir(&full).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort_by(|one, other| one.as_bytes().cmp(other.as_bytes()));
        for name in names {
            describe_entry(root, &path.join(name), inodes, text);
        }
    }
}
