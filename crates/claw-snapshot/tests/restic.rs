//! Debian's restic on our repositories, and ours on one that restic wrote.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its fixtures too")]

mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::Arc;

use claw_snapshot::{Access, Credential, DirectoryStorage, Extent, Repository, Subtree, Watcher};
use support::{Fixture, LATER, describe, noise, restic};
use zeroize::Zeroizing;

fn data(fixture: &Fixture) {
    fixture.write("state/db", noise(1, 1_500_000));
    fixture.write("notes.txt", "hello\n".repeat(1000));
    fixture.write("we\"ird\\name", "odd");
    symlink("notes.txt", fixture.source().join("link")).unwrap();
    fs::hard_link(fixture.source().join("notes.txt"), fixture.source().join("second")).unwrap();
    fs::create_dir(fixture.source().join("empty")).unwrap();
}

#[test]
fn restic_reads_checks_compares_and_restores_ours() {
    let fixture = Fixture::with_repository();
    data(&fixture);
    let repository = fixture.open();
    let first = fixture.snapshot(&repository, LATER);
    let before = describe(&fixture.source());
    fixture.write("notes.txt", "changed");
    fixture.write("new", "new");
    let second = fixture.snapshot(&repository, LATER + 1);
    drop(repository);

    let check = fixture.restic(&["check", "--read-data"]);
    assert!(check.contains("no errors were found"), "{check}");
    let diff = fixture.restic(&["diff", &first.to_string(), &second.to_string()]);
    for line in ["M    /data/notes.txt", "+    /data/new"] {
        assert!(diff.contains(line), "{diff}");
    }
    let target = fixture.path("out");
    fixture.restic(&["restore", &first.to_string(), "--target", target.to_str().unwrap()]);
    assert_eq!(describe(&target.join("data")), before);
    let list = fixture.restic(&["snapshots"]);
    assert!(list.contains("shop") && list.contains("test"), "{list}");
    // Restic prunes what we forget; we read what restic wrote anew.
    fixture.restic(&["forget", "--prune", &first.to_string()]);
    let repository = fixture.open();
    assert!(repository.verify(Extent::Everything).unwrap().is_sound());
    assert_eq!(repository.snapshots().unwrap().len(), 1);
    let into = fixture.path("ours");
    repository.restore(second, &Subtree::data(), &into, &Watcher::none()).unwrap();
    assert_eq!(describe(&into), describe(&fixture.source()));
    // And a snapshot after that continues it.
    fixture.snapshot(&repository, LATER + 2);
    drop(repository);
    assert!(fixture.restic(&["check", "--read-data"]).contains("no errors were found"));
}

#[test]
fn ours_reads_verifies_and_restores_what_restic_wrote() {
    let fixture = Fixture::new();
    data(&fixture);
    let path = fixture.path("theirs");
    let password = "a password of a person";
    restic(&path, password, &["init"]);
    let source = fixture.source();
    let source = source.to_str().unwrap();
    restic(&path, password, &["backup", "--host", "shop", source]);
    fixture.write("new", noise(3, 100_000));
    restic(&path, password, &["backup", "--host", "shop", source]);

    let storage = || Arc::new(DirectoryStorage::open(&path, Access::Exclusive).unwrap());
    let credential = Credential::Foreign(Zeroizing::new(password.to_owned()));
    let repository = Repository::open(storage(), &credential).unwrap();
    let snapshots = repository.snapshots().unwrap();
    assert_eq!(snapshots.len(), 2);
    assert_eq!(repository.diff(snapshots[0].id, snapshots[1].id).unwrap().added, 1);
    let verified = repository.verify(Extent::Everything).unwrap();
    assert!(verified.is_sound(), "{verified:?}");
    assert!(repository.attachments(snapshots[0].id).unwrap().is_empty());
    let into = fixture.path("out");
    let subtree = Subtree::path(&fixture.source());
    repository.restore(snapshots[1].id, &subtree, &into, &Watcher::none()).unwrap();
    assert_eq!(describe(&into), describe(&fixture.source()));
    let taken = fixture.snapshot(&repository, LATER);
    drop(repository);
    assert!(restic(&path, password, &["check", "--read-data"]).contains("no errors were found"));
    restic(&path, password, &["ls", &taken.to_string()]);
}
