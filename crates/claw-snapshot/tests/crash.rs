//! A process that dies, and a storage that is full, at any point.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its fixtures too")]

mod support;

use std::collections::BTreeSet;
use std::io::{self, BufRead, BufReader};
use std::ops::Range;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use claw_snapshot::{
    Credential, Extent, FileId, FileKind, PruneError, Repository, RepositoryError, SnapshotError,
    Source, Storage, StorageAction, StorageError, Subtree, Watcher,
};
use support::{Fixture, LATER, describe, noise, request, run, secret};

/// A storage whose writes and removals fail from a certain one on.
#[derive(Debug)]
struct Full {
    inner: Arc<dyn Storage>,
    /// How many are left that succeed.
    left: AtomicU64,
}

impl Full {
    fn refuse(&self, action: StorageAction, kind: FileKind) -> Result<(), StorageError> {
        let left = |left: u64| left.checked_sub(1);
        match self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, left) {
            Ok(_) => Ok(()),
            Err(_) => Err(StorageError {
                action,
                kind,
                name: "any".to_owned(),
                source: io::Error::from_raw_os_error(nix::libc::ENOSPC),
            }),
        }
    }
}

impl Storage for Full {
    fn location(&self) -> String {
        self.inner.location()
    }
    fn prepare(&self) -> Result<(), StorageError> {
        self.inner.prepare()
    }
    fn list(&self, kind: FileKind) -> Result<Vec<(FileId, u32)>, StorageError> {
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
        self.refuse(StorageAction::Write, kind)?;
        self.inner.write(kind, id, parts)
    }
    fn remove(&self, kind: FileKind, id: FileId) -> Result<(), StorageError> {
        self.refuse(StorageAction::Remove, kind)?;
        self.inner.remove(kind, id)
    }
}

fn with_space(fixture: &Fixture, writes: u64) -> Repository {
    let storage = Full { inner: fixture.storage(), left: AtomicU64::new(writes) };
    Repository::open(Arc::new(storage), &Credential::Secret(secret())).unwrap()
}

#[test]
fn a_full_storage_at_any_write_of_a_snapshot_leaves_the_others() {
    let fixture = Fixture::with_repository();
    fixture.write("old", noise(1, 300_000));
    let first = fixture.snapshot(&fixture.open(), LATER);
    // Three packs of data, one of trees, an index, a snapshot.
    fixture.write("new", noise(2, 9_000_000));
    let source = Source::openclaw(&fixture.source());
    let mut refused = 0;
    for writes in 0.. {
        let repository = with_space(&fixture, writes);
        let result = repository.snapshot(&request(LATER + 1), &source, Watcher::none());
        drop(repository);
        let repository = fixture.open();
        let verified = repository.verify(Extent::Everything).unwrap();
        assert!(verified.is_sound(), "after {writes}: {verified:?}");
        match result {
            Ok(_) => break,
            Err(SnapshotError::Repository(fault)) => assert!(fault.is_full(), "{fault:?}"),
            Err(other) => panic!("after {writes}: {other:?}"),
        }
        refused += 1;
        assert_eq!(repository.snapshots().unwrap().len(), 1);
        assert!(refused < 50);
    }
    // What earlier attempts wrote was used by the next, so each needed fewer writes.
    assert!(refused >= 3, "{refused}");
    let repository = fixture.open();
    assert_eq!(repository.snapshots().unwrap().len(), 2);
    repository.restore(first, &Subtree::data(), &fixture.path("out"), &Watcher::none()).unwrap();
    drop(repository);
    assert!(fixture.restic(&["check", "--read-data"]).contains("no errors"));
}

#[test]
fn a_full_storage_at_any_step_of_a_prune_leaves_every_snapshot() {
    let fixture = Fixture::with_repository();
    let repository = fixture.open();
    let mut snapshots = Vec::new();
    for number in 0..6 {
        fixture.write("changing", noise(number, 1_000_000));
        fixture.write(&format!("kept-{number}"), noise(100 + number, 50_000));
        snapshots.push(fixture.snapshot(&repository, LATER + i64::try_from(number).unwrap()));
    }
    repository.forget(&snapshots[0..4].iter().copied().collect()).unwrap();
    drop(repository);
    let before = fixture.open().stored_bytes().unwrap();
    let mut refused = 0;
    let mut unhindered = 0;
    // The first pass marks, the next ones remove.
    for steps in 0.. {
        let result = with_space(&fixture, steps).prune(Duration::ZERO);
        let repository = fixture.open();
        let verified = repository.verify(Extent::Everything).unwrap();
        assert!(verified.is_sound(), "after {steps}: {verified:?}");
        assert_eq!(repository.snapshots().unwrap().len(), 2);
        match result {
            Ok(_) => unhindered += 1,
            Err(PruneError::Repository(fault)) => {
                assert!(fault.is_full(), "{fault:?}");
                refused += 1;
            }
            Err(other) => panic!("after {steps}: {other:?}"),
        }
        if unhindered == 3 {
            break;
        }
        assert!(steps < 100);
    }
    assert!(refused >= 3, "{refused}");
    // Two snapshots of a megabyte each, and what they share; before there were six.
    let after = fixture.open().stored_bytes().unwrap();
    assert!(after < before / 2, "{before} {after}");
    let into = fixture.path("out");
    fixture.open().restore(snapshots[5], &Subtree::data(), &into, &Watcher::none()).unwrap();
    assert_eq!(describe(&into), describe(&fixture.source()));
    assert!(fixture.restic(&["check", "--read-data"]).contains("no errors"));
}

#[test]
fn pruning_waits_and_never_removes_everything() {
    let fixture = Fixture::with_repository();
    let repository = fixture.open();
    assert!(matches!(repository.prune(Duration::ZERO), Err(PruneError::NothingToKeep)));
    fixture.write("file", noise(1, 1_000_000));
    let first = fixture.snapshot(&repository, LATER);
    fixture.write("file", noise(2, 1_000_000));
    let second = fixture.snapshot(&repository, LATER + 1);
    let unknown = BTreeSet::from(["0".repeat(64).parse().unwrap(), first]);
    repository.forget(&unknown).unwrap_err();
    assert_eq!(repository.snapshots().unwrap().len(), 2);
    repository.forget(&BTreeSet::from([first])).unwrap();
    let marked = repository.prune(Duration::from_secs(3600)).unwrap();
    assert!(marked.marked_packs > 0, "{marked:?}");
    assert_eq!(marked.removed_packs, 0);
    let waiting = repository.prune(Duration::from_secs(3600)).unwrap();
    assert_eq!(waiting.removed_packs, 0, "{waiting:?}");
    let removed = repository.prune(Duration::ZERO).unwrap();
    assert!(removed.removed_bytes > 1_000_000, "{removed:?}");
    assert!(repository.verify(Extent::Everything).unwrap().is_sound());
    repository.forget(&BTreeSet::from([second])).unwrap();
    assert!(matches!(repository.prune(Duration::ZERO), Err(PruneError::NothingToKeep)));
}

#[test]
fn packs_that_no_index_names_are_removed_when_every_index_was_read() {
    let fixture = Fixture::with_repository();
    fixture.write("file", noise(1, 1_000_000));
    let first = fixture.snapshot(&fixture.open(), LATER);
    let stray = FileId::of(b"stray");
    let storage = fixture.storage();
    storage.write(FileKind::Pack, stray, &[Bytes::from_static(b"half a run's work")]).unwrap();
    let strays = |storage: &dyn Storage| {
        let packs = storage.list(FileKind::Pack).unwrap();
        packs.iter().filter(|(id, _)| *id == stray).count()
    };
    // An index that is gone makes good packs look like strays.
    let (index, _) = storage.list(FileKind::Index).unwrap()[0];
    let content = storage.read(FileKind::Index, index).unwrap();
    storage.remove(FileKind::Index, index).unwrap();
    let packs = storage.list(FileKind::Pack).unwrap().len();
    drop(storage);
    fixture.open().prune(Duration::ZERO).unwrap_err();
    assert_eq!(fixture.storage().list(FileKind::Pack).unwrap().len(), packs);
    // One that cannot be read does so too.
    let storage = fixture.storage();
    storage.write(FileKind::Index, index, std::slice::from_ref(&content)).unwrap();
    let unreadable = FileId::of(b"unreadable");
    storage.write(FileKind::Index, unreadable, &[Bytes::from_static(b"no index")]).unwrap();
    drop(storage);
    fixture.open().prune(Duration::ZERO).unwrap_err();
    let storage = fixture.storage();
    assert_eq!(storage.list(FileKind::Pack).unwrap().len(), packs);
    storage.remove(FileKind::Index, unreadable).unwrap();
    drop(storage);
    let pruned = fixture.open().prune(Duration::ZERO).unwrap();
    assert_eq!(pruned.swept_packs, 1);
    assert_eq!(strays(fixture.storage().as_ref()), 0);
    let repository = fixture.open();
    assert_eq!(repository.prune(Duration::ZERO).unwrap().swept_packs, 0);
    assert!(repository.verify(Extent::Everything).unwrap().is_sound());
    repository.restore(first, &Subtree::data(), &fixture.path("out"), &Watcher::none()).unwrap();
}

/// A probe that is snapshotting, ended when it says that it is so far.
#[expect(clippy::disallowed_methods, reason = "the process is to be killed at a certain line")]
fn killed_at(fixture: &Fixture, line: usize) -> Option<String> {
    let mut child: Child = Command::new(env!("CARGO_BIN_EXE_claw-snapshot-probe"))
        .arg("snapshot")
        .args([fixture.path("repo"), fixture.source()])
        .arg((LATER + i64::try_from(line).unwrap()).to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let reached = lines.nth(line).transpose().unwrap();
    child.kill().unwrap();
    let status = child.wait().unwrap();
    reached.filter(|_| !status.success())
}

#[test]
fn a_killed_snapshot_is_continued_by_the_next() {
    let fixture = Fixture::with_repository();
    for number in 0..70 {
        fixture.write(&format!("{}/{number}", number % 7), noise(number, 100_000));
    }
    let killed = (0..8).filter(|line| killed_at(&fixture, *line).is_some()).count();
    assert!(killed >= 6, "{killed}");
    let repository = fixture.open();
    let verified = repository.verify(Extent::Everything).unwrap();
    assert!(verified.is_sound(), "{verified:?}");
    let written = repository.stored_bytes().unwrap();
    let source = Source::openclaw(&fixture.source());
    let taken = repository.snapshot(&request(LATER + 100), &source, Watcher::none()).unwrap();
    let added = taken.snapshot.added_bytes.unwrap();
    assert!(added + written < 9_000_000, "{written} were there, {added} were added");
    let into = fixture.path("out");
    repository.restore(taken.snapshot.id, &Subtree::data(), &into, &Watcher::none()).unwrap();
    assert_eq!(describe(&into), describe(&fixture.source()));
    drop(repository);
    assert!(fixture.restic(&["check", "--read-data"]).contains("no errors"));
}

/// A file system that is really full, in a mount namespace of its own. Needs root, as the lab does.
#[test]
fn a_full_disk_refuses_the_snapshot_and_a_restore_and_keeps_the_rest() {
    let fixture = Fixture::new();
    fixture.write("first", noise(1, 3_500_000));
    let probe = env!("CARGO_BIN_EXE_claw-snapshot-probe");
    let mount = fixture.path("small");
    std::fs::create_dir(&mount).unwrap();
    let script = r#"
        set -eu
        mount -t tmpfs -o size=9m none "$SMALL"
        "$PROBE" create "$SMALL/repo" >/dev/null
        id=$("$PROBE" snapshot "$SMALL/repo" "$SOURCE" 4000000000000 | sed -n 's/^snapshot //p')
        head -c 9000000 /dev/urandom > "$SOURCE/second"
        if "$PROBE" snapshot "$SMALL/repo" "$SOURCE" 4000000000001; then exit 1; fi
        test -z "$(ls "$SMALL/repo/partial")"
        test "$(du -sk "$SMALL/repo" | cut -f1)" -lt 4000
        "$PROBE" verify "$SMALL/repo"
        head -c 3000000 /dev/zero > "$SMALL/other"
        "$PROBE" restore "$SMALL/repo" "$id" "$OUT" >/dev/null
        if "$PROBE" restore "$SMALL/repo" "$id" "$SMALL/out"; then exit 1; fi
        test ! -e "$SMALL/out"
        rm "$SOURCE/second" "$SMALL/other"
        "$PROBE" snapshot "$SMALL/repo" "$SOURCE" 4000000000002 | grep ^snapshot
    "#;
    let (out, source) = (fixture.path("out"), fixture.source());
    let environment = [
        ("PROBE", probe),
        ("SMALL", mount.to_str().unwrap()),
        ("SOURCE", source.to_str().unwrap()),
        ("OUT", out.to_str().unwrap()),
    ];
    let output = run("unshare", &["--mount", "sh", "-c", script], &environment);
    let errors = String::from_utf8_lossy(&output.stderr);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{errors}");
    assert!(text.contains("sound true"), "{text}");
    assert_eq!(errors.matches("No space left on device").count(), 2, "{errors}");
}

#[test]
fn a_full_storage_says_so() {
    let fixture = Fixture::with_repository();
    fixture.write("file", "x");
    let repository = with_space(&fixture, 0);
    let source = Source::openclaw(&fixture.source());
    let refused = repository.snapshot(&request(LATER), &source, Watcher::none()).unwrap_err();
    let SnapshotError::Repository(RepositoryError::Storage(fault)) = refused else {
        panic!("{refused:?}")
    };
    assert!(fault.is_full());
    assert_eq!(fault.to_string(), "writing pack any failed");
}
