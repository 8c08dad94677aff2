//! An instance's directory, and what two trees have in common.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use claw_core::data::DataGeneration;
use claw_core::name::InstanceName;
use clawd::adapters::files::Owner;
use clawd::adapters::volumes::DirectoryVolumes;
use clawd::ports::{Copied, VolumeError, Volumes, Writers};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

pub(crate) const FIRST: DataGeneration = DataGeneration::FIRST;
pub(crate) const SECOND: DataGeneration = FIRST.next();

/// Extended attributes that a tenant's programs may set.
pub(crate) const XATTR: &str = "user.claw.test";

/// An instance whose first data directory is there and empty.
#[derive(Debug)]
pub(crate) struct Ground {
    _dir: Option<tempfile::TempDir>,
    data: PathBuf,
    pub(crate) volumes: DirectoryVolumes,
    pub(crate) instance: InstanceName,
}

impl Ground {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ground = Self::at(&dir.path().join("lib"));
        Self { _dir: Some(dir), ..ground }
    }

    pub(crate) fn at(data: &Path) -> Self {
        let owner = Owner { uid: 1000, gid: 1000 };
        let instance = InstanceName::parse("demo").unwrap();
        let volumes = DirectoryVolumes::new(data.to_owned(), owner);
        let ground = Self { _dir: None, data: data.to_owned(), volumes, instance };
        let first = ground.path(FIRST);
        fs::create_dir_all(&first).unwrap();
        fs::set_permissions(&first, PermissionsExt::from_mode(0o700)).unwrap();
        std::os::unix::fs::chown(&first, Some(1000), Some(1000)).unwrap();
        ground
    }

    pub(crate) fn home(&self) -> PathBuf {
        self.data.join("instances/demo")
    }

    pub(crate) fn path(&self, data: DataGeneration) -> PathBuf {
        self.home().join(data.to_string())
    }

    /// A file or directory of the original.
    pub(crate) fn first(&self, path: &str) -> PathBuf {
        self.path(FIRST).join(path)
    }

    /// A file or directory of the copy.
    pub(crate) fn second(&self, path: &str) -> PathBuf {
        self.path(SECOND).join(path)
    }

    pub(crate) fn write(&self, path: &str, text: &str) {
        let path = self.first(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub(crate) async fn try_copy(&self, writers: Writers) -> Result<Copied, VolumeError> {
        self.volumes.copy(&self.instance, FIRST, SECOND, writers, &|_| {}).await
    }

    pub(crate) async fn copy(&self, writers: Writers) -> Copied {
        self.try_copy(writers).await.unwrap()
    }

    pub(crate) async fn is_complete(&self) -> bool {
        self.volumes.generations(&self.instance).await.unwrap().contains(&SECOND)
    }

    #[track_caller]
    pub(crate) fn assert_same(&self) {
        assert_same(&self.path(FIRST), &self.path(SECOND));
    }

    /// Waits until nothing that was written so far is too new to count as settled.
    pub(crate) async fn settle(&self) {
        settle(&self.data).await;
    }
}

/// A file system in memory that this thread and those it starts see alone.
pub(crate) fn in_memory(place: &Path, options: &str) {
    const NOTHING: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(NOTHING, "/", NOTHING, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NOTHING).unwrap();
    mount(Some("claw"), place, Some("tmpfs"), MsFlags::empty(), Some(options)).unwrap();
}

/// Waits until the clock of a file system is more than a second on.
pub(crate) async fn settle(dir: &Path) {
    wait(dir, Duration::from_millis(1010)).await;
}

/// Waits until the clock of a file system is a step on, however coarse it is (jiffies, before Linux 6.13).
pub(crate) async fn tick(dir: &Path) {
    wait(dir, Duration::from_millis(10)).await;
}

async fn wait(dir: &Path, length: Duration) {
    let probe = dir.join("clock");
    let now = || {
        fs::write(&probe, "tick").unwrap();
        let stat = fs::metadata(&probe).unwrap();
        Duration::new(stat.mtime().try_into().unwrap(), stat.mtime_nsec().try_into().unwrap())
    };
    let begin = now();
    while now() <= begin + length {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    fs::remove_file(probe).unwrap();
}

/// An entry, as far as a copy must be the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    kind: &'static str,
    mode: u32,
    owner: (u32, u32),
    modified: (i64, i64),
    content: Vec<u8>,
    extended: Option<Vec<u8>>,
    /// The first of its names in the tree.
    name: Option<PathBuf>,
}

/// Everything in a tree that a copy must have.
pub(crate) fn tree(root: &Path) -> BTreeMap<PathBuf, Entry> {
    let mut found = BTreeMap::new();
    let mut names = BTreeMap::new();
    let mut open = vec![PathBuf::new()];
    while let Some(dir) = open.pop() {
        let mut here: Vec<PathBuf> =
            fs::read_dir(root.join(&dir)).unwrap().map(|e| e.unwrap().file_name().into()).collect();
        here.sort();
        for name in here {
            let path = dir.join(name);
            if let Some(entry) = entry(root, &path, &mut names) {
                if entry.kind == "directory" && path != Path::new("tmp") {
                    open.push(path.clone());
                }
                found.insert(path, entry);
            }
        }
        open.sort();
        open.reverse();
    }
    found
}

fn entry(root: &Path, path: &Path, names: &mut BTreeMap<u64, PathBuf>) -> Option<Entry> {
    let full = root.join(path);
    let stat = fs::symlink_metadata(&full).unwrap();
    let (kind, content) = if stat.is_dir() {
        ("directory", Vec::new())
    } else if stat.is_symlink() {
        ("link", fs::read_link(&full).unwrap().as_os_str().as_bytes().to_vec())
    } else if stat.is_file() {
        ("file", fs::read(&full).unwrap())
    } else {
        return None;
    };
    let name = (kind == "file")
        .then(|| names.entry(stat.ino()).or_insert_with(|| path.to_owned()).clone());
    let extended = (kind != "link").then(|| extended(&full)).flatten();
    let (mode, owner) = (stat.mode() & 0o7777, (stat.uid(), stat.gid()));
    let modified = (stat.mtime(), stat.mtime_nsec());
    Some(Entry { kind, mode, owner, modified, content, extended, name })
}

fn extended(path: &Path) -> Option<Vec<u8>> {
    let mut value = vec![0; 256];
    let length = rustix::fs::lgetxattr(path, XATTR, &mut value).ok()?;
    value.truncate(length);
    Some(value)
}

pub(crate) fn extend(path: &Path, value: &[u8]) {
    rustix::fs::lsetxattr(path, XATTR, value, rustix::fs::XattrFlags::empty()).unwrap();
}

#[track_caller]
pub(crate) fn assert_same(from: &Path, into: &Path) {
    let (from, into) = (tree(from), tree(into));
    for (path, entry) in &from {
        assert_eq!(into.get(path), Some(entry), "{path:?}");
    }
    let more: Vec<_> = into.keys().filter(|path| !from.contains_key(*path)).collect();
    assert!(more.is_empty(), "more than there should be: {more:?}");
}
