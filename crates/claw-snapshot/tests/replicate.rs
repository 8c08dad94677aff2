//! A copy of a repository elsewhere: complete at every moment, never more broken than the source.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its fixtures too")]

mod support;
#[path = "support/s3.rs"]
mod support_s3;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use claw_snapshot::{
    Access, Credential, DirectoryStorage, Extent, FileId, FileKind, Removal, ReplicateError,
    Repository, Storage, StorageAction, StorageError, Subtree, Watcher, replicate,
};
use support::{Fixture, LATER, describe, noise, recovery, secret};
use support_s3::Moto;

/// A storage that does so many more steps, then none; counts what was written.
#[derive(Debug)]
struct Flaky {
    inner: Arc<dyn Storage>,
    left: AtomicU64,
    written: AtomicU64,
    unlisted: Option<FileKind>,
}

impl Flaky {
    fn new(inner: Arc<dyn Storage>, steps: u64) -> Self {
        Self { inner, left: steps.into(), written: 0.into(), unlisted: None }
    }

    fn step(&self, action: StorageAction, kind: FileKind) -> Result<(), StorageError> {
        let left = |left: u64| left.checked_sub(1);
        match self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, left) {
            Ok(_) => Ok(()),
            Err(_) => Err(broken(action, kind)),
        }
    }
}

fn broken(action: StorageAction, kind: FileKind) -> StorageError {
    let source = io::ErrorKind::ConnectionReset.into();
    StorageError { action, kind, name: "any".to_owned(), source }
}

impl Storage for Flaky {
    fn location(&self) -> String {
        self.inner.location()
    }
    fn prepare(&self) -> Result<(), StorageError> {
        self.inner.prepare()
    }
    fn list(&self, kind: FileKind) -> Result<Vec<(FileId, u32)>, StorageError> {
        if self.unlisted == Some(kind) {
            return Err(broken(StorageAction::List, kind));
        }
        self.inner.list(kind)
    }
    fn read(&self, kind: FileKind, id: FileId) -> Result<Bytes, StorageError> {
        self.inner.read(kind, id)
    }
    fn read_range(
        &self,
        kind: FileKind,
        id: FileId,
        range: Range<u64>,
    ) -> Result<Bytes, StorageError> {
        self.inner.read_range(kind, id, range)
    }
    fn write(&self, kind: FileKind, id: FileId, parts: &[Bytes]) -> Result<(), StorageError> {
        self.step(StorageAction::Write, kind)?;
        self.inner.write(kind, id, parts)?;
        self.written.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
    fn remove(&self, kind: FileKind, id: FileId) -> Result<(), StorageError> {
        self.step(StorageAction::Remove, kind)?;
        self.inner.remove(kind, id)
    }
}

fn directory(path: &Path) -> Arc<dyn Storage> {
    Arc::new(DirectoryStorage::open(path, Access::Exclusive).unwrap())
}

fn open(storage: Arc<dyn Storage>) -> Repository {
    Repository::open(storage, &Credential::Secret(secret())).unwrap()
}

fn names(storage: &dyn Storage) -> BTreeSet<(FileKind, FileId, u32)> {
    let all = FileKind::MANY.into_iter().flat_map(|kind| {
        storage.list(kind).unwrap().into_iter().map(move |(id, size)| (kind, id, size))
    });
    all.collect()
}

/// A repository with three snapshots.
fn source() -> Fixture {
    let fixture = Fixture::with_repository();
    let repository = fixture.open();
    for number in 0..3 {
        fixture.write("changing", noise(number, 1_500_000));
        fixture.write(&format!("kept-{number}"), noise(100 + number, 50_000));
        fixture.snapshot(&repository, LATER + i64::try_from(number).unwrap());
    }
    fixture
}

/// Forgets all snapshots but the last, and writes the packs anew.
fn thin_out(fixture: &Fixture) {
    let repository = fixture.open();
    let snapshots = repository.snapshots().unwrap();
    let old = snapshots[..snapshots.len() - 1].iter().map(|snapshot| snapshot.id).collect();
    repository.forget(&old).unwrap();
    repository.prune(Duration::ZERO).unwrap();
    repository.prune(Duration::ZERO).unwrap();
}

/// Every snapshot that is listed is whole.
#[track_caller]
fn is_whole(storage: Arc<dyn Storage>) -> usize {
    if storage.list(FileKind::Config).unwrap().is_empty() {
        return 0;
    }
    let repository = open(storage);
    let verified = repository.verify(Extent::Everything).unwrap();
    assert!(verified.is_sound(), "{verified:?}");
    repository.snapshots().unwrap().len()
}

#[test]
fn a_copy_is_whole_after_every_step_and_nothing_is_copied_twice() {
    let fixture = source();
    let path = fixture.path("copy");
    let mut written = 0;
    let mut interrupted = 0;
    let mut mirror = |steps: u64| {
        let copy = Flaky::new(directory(&path), steps);
        let from = fixture.storage();
        let result = replicate(from.as_ref(), &copy, Removal::Mirrored, &Watcher::none());
        written += copy.written.load(Ordering::SeqCst);
        drop((copy, from));
        is_whole(directory(&path));
        match result {
            Ok(_) => true,
            Err(ReplicateError::Copy(_)) => {
                interrupted += 1;
                false
            }
            Err(other) => panic!("{other:?}"),
        }
    };
    // One file more each time.
    while !mirror(1) {}
    assert_eq!(is_whole(directory(&path)), 3);
    let first = names(fixture.storage().as_ref());
    assert_eq!(names(directory(&path).as_ref()), first);
    thin_out(&fixture);
    while !mirror(1) {}
    let second = names(fixture.storage().as_ref());
    assert_eq!(names(directory(&path).as_ref()), second);
    assert!(interrupted > 10, "{interrupted}");
    // The configuration, all of the first time and what was new at the second.
    let expected = 1 + first.len() + second.difference(&first).count();
    assert_eq!(written, u64::try_from(expected).unwrap());
}

#[test]
fn a_copy_in_s3_is_restored_from_there_and_fetched_back() {
    let moto = Moto::start();
    let fixture = source();
    let seen = Arc::new(AtomicU64::new(0));
    let watcher = Watcher::new({
        let seen = Arc::clone(&seen);
        move |progress| seen.store(progress.bytes, Ordering::SeqCst)
    });
    let mirror = || {
        let (from, to) = (fixture.storage(), moto.storage(Access::Exclusive));
        replicate(from.as_ref(), to.as_ref(), Removal::Mirrored, &watcher).unwrap()
    };
    let first = mirror();
    let stored = fixture.open().stored_bytes().unwrap();
    assert!(first.copied_bytes > stored, "{first:?} {stored}");
    assert_eq!(seen.load(Ordering::SeqCst), first.copied_bytes);
    let again = mirror();
    assert_eq!((again.copied, again.removed, again.present + 1), (0, 0, first.copied));
    thin_out(&fixture);
    let thinned = mirror();
    assert!(thinned.removed > 3 && thinned.copied > 0, "{thinned:?}");
    let ours = names(fixture.storage().as_ref());
    assert_eq!(names(moto.storage(Access::Shared).as_ref()), ours);

    // The host is gone: what is left is the bucket and the recovery password.
    let credential = Credential::Recovery(recovery());
    let repository = Repository::open(moto.storage(Access::Shared), &credential).unwrap();
    assert!(repository.verify(Extent::Everything).unwrap().is_sound());
    let id = repository.snapshots().unwrap()[0].id;
    let into = fixture.path("out");
    repository.restore(id, &Subtree::data(), &into, &Watcher::none()).unwrap();
    assert_eq!(describe(&into), describe(&fixture.source()));
    // And the whole repository comes back.
    let back = fixture.path("back");
    let (from, to) = (moto.storage(Access::Shared), directory(&back));
    replicate(from.as_ref(), to.as_ref(), Removal::Withheld, &Watcher::none()).unwrap();
    drop(to);
    assert_eq!(is_whole(directory(&back)), 1);
}

#[test]
fn a_source_that_lost_something_takes_nothing_from_the_copy() {
    let fixture = source();
    let path = fixture.path("copy");
    let mirror = |from: &dyn Storage, removal| {
        replicate(from, directory(&path).as_ref(), removal, &Watcher::none())
    };
    mirror(fixture.storage().as_ref(), Removal::Mirrored).unwrap();
    let whole = names(directory(&path).as_ref());
    let unchanged = || assert_eq!(names(directory(&path).as_ref()), whole);

    // A listing that fails, of whatever kind.
    for kind in FileKind::MANY {
        let from = Flaky { unlisted: Some(kind), ..Flaky::new(fixture.storage(), 0) };
        let refused = mirror(&from, Removal::Mirrored).unwrap_err();
        assert!(matches!(refused, ReplicateError::Source(_)), "{refused:?}");
        drop(from);
        unchanged();
        let to = Flaky { unlisted: Some(kind), ..Flaky::new(directory(&path), 100) };
        let from = fixture.storage();
        let refused = replicate(from.as_ref(), &to, Removal::Mirrored, &Watcher::none());
        assert!(matches!(refused, Err(ReplicateError::Copy(_))), "{refused:?}");
        drop(to);
        unchanged();
    }
    // No snapshots: everything stays.
    let storage = fixture.storage();
    for (id, _) in storage.list(FileKind::Snapshot).unwrap() {
        storage.remove(FileKind::Snapshot, id).unwrap();
    }
    let (pack, _) = storage.list(FileKind::Pack).unwrap()[0];
    storage.remove(FileKind::Pack, pack).unwrap();
    drop(storage);
    let done = mirror(fixture.storage().as_ref(), Removal::Mirrored).unwrap();
    assert_eq!((done.removed, done.withheld), (0, 4));
    unchanged();
    // Nothing at all.
    fs::remove_file(fixture.path("repo/config")).unwrap();
    let refused = mirror(fixture.storage().as_ref(), Removal::Mirrored).unwrap_err();
    assert!(matches!(refused, ReplicateError::NoRepository(_)), "{refused:?}");
    unchanged();
}

#[test]
fn damage_and_other_repositories_are_not_copied_over() {
    let fixture = source();
    let path = fixture.path("copy");
    let mirror = |fixture: &Fixture| {
        let from = fixture.storage();
        replicate(from.as_ref(), directory(&path).as_ref(), Removal::Mirrored, &Watcher::none())
    };
    let storage = fixture.storage();
    let (pack, _) = storage.list(FileKind::Pack).unwrap()[0];
    let good = storage.read(FileKind::Pack, pack).unwrap();
    let mut bad = good.to_vec();
    bad[100] ^= 1;
    storage.write(FileKind::Pack, pack, &[Bytes::from(bad)]).unwrap();
    drop(storage);
    let refused = mirror(&fixture).unwrap_err();
    assert_eq!(refused.to_string(), format!("pack {pack} is damaged in the source"));
    assert_eq!(is_whole(directory(&path)), 0);
    fixture.storage().write(FileKind::Pack, pack, std::slice::from_ref(&good)).unwrap();
    mirror(&fixture).unwrap();
    // What was cut off there is copied again.
    let half = good.slice(..good.len() / 2);
    directory(&path).write(FileKind::Pack, pack, &[half]).unwrap();
    assert_eq!(mirror(&fixture).unwrap().copied, 1);
    assert_eq!(is_whole(directory(&path)), 3);

    let other = Fixture::with_repository();
    other.write("file", "x");
    other.snapshot(&other.open(), LATER);
    let refused = mirror(&other).unwrap_err();
    assert!(matches!(refused, ReplicateError::OtherRepository(_)), "{refused:?}");
    assert_eq!(is_whole(directory(&path)), 3);
}
