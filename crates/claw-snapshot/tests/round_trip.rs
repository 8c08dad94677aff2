//! What goes into a snapshot comes out of it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its fixtures too")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File, FileTimes, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::time::{Duration, UNIX_EPOCH};

use claw_snapshot::{
    AttachmentName, CreateError, Credential, Extent, KeyRole, OpenError, Parent, RecoveryPassword,
    Repository, RepositorySecret, RestoreError, SnapshotError, Source, Stillness, Subtree, Watcher,
};
use support::{Fixture, LATER, describe, noise, recovery, request, secret};

/// Data with one of each thing that a file system can do to a file.
fn odd_data(fixture: &Fixture) {
    fixture.write("plain", "hello");
    fixture.write("empty", "");
    fixture.write("deep/er/and/deeper/file", noise(1, 3_000_000));
    fixture.write("deep/text", "a line\n".repeat(100_000));
    fixture.write("cache/big", noise(2, 100_000));
    fixture.write("tmp/x", "x");
    fixture.write("nested/cache/kept", "kept");
    let at = |name: &str| fixture.source().join(name);
    fs::create_dir(at("empty-directory")).unwrap();
    symlink("../plain", at("deep/link")).unwrap();
    symlink("/etc/shadow", at("outside")).unwrap();
    symlink("nowhere", at("dangling")).unwrap();
    fs::hard_link(at("plain"), at("deep/second-name")).unwrap();
    fs::hard_link(at("plain"), at("zz-third-name")).unwrap();
    for (name, mode) in [("setuid", 0o4755), ("secret", 0o600), ("none", 0o000)] {
        fixture.write(name, name);
        fs::set_permissions(at(name), Permissions::from_mode(mode)).unwrap();
    }
    fs::set_permissions(at("nested"), Permissions::from_mode(0o2750)).unwrap();
    fs::write(at("").join(OsStr::from_bytes(b"bad-\xff\"\\\n-name")), "odd name").unwrap();
    fs::write(at("ünï"), "unicode").unwrap();
    let sparse = File::create(at("sparse")).unwrap();
    sparse.write_all_at(b"begin", 0).unwrap();
    sparse.write_all_at(b"end", 20 << 20).unwrap();
    sparse.set_len(30 << 20).unwrap();
    xattr::set(at("plain"), "user.note", b"kept").unwrap();
    xattr::set(at("deep"), "user.of-directory", b"\0\xff").unwrap();
    let times = FileTimes::new();
    let old = UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
    File::open(at("secret")).unwrap().set_times(times.set_modified(old)).unwrap();
    if nix::unistd::geteuid().is_root() {
        chown(at("secret"), Some(1000), Some(2000)).unwrap();
        std::os::unix::fs::lchown(at("dangling"), Some(1000), Some(2000)).unwrap();
        chown(fixture.source(), Some(1000), Some(1000)).unwrap();
    }
    File::open(at("deep/er")).unwrap().set_times(times.set_modified(old)).unwrap();
}

#[test]
fn everything_comes_back() {
    let fixture = Fixture::with_repository();
    odd_data(&fixture);
    let _socket = UnixListener::bind(fixture.source().join("socket")).unwrap();
    let repository = fixture.open();
    let source = Source::openclaw(&fixture.source());
    let taken = repository.snapshot(&request(LATER), &source, Watcher::none()).unwrap();
    assert_eq!(taken.special, 1);
    assert!(repository.verify(Extent::Everything).unwrap().is_sound());

    let into = fixture.path("restored");
    let restored =
        repository.restore(taken.snapshot.id, &Subtree::data(), &into, &Watcher::none()).unwrap();
    assert_eq!(restored.directories, taken.directories);
    assert_eq!(Some(restored.files), taken.snapshot.files);

    // What is left out, is left out of the comparison.
    for name in ["cache", "tmp"] {
        let path = fixture.source().join(name);
        let modified = fs::metadata(&path).unwrap().modified().unwrap();
        for entry in fs::read_dir(&path).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        File::open(&path).unwrap().set_modified(modified).unwrap();
    }
    let top = fs::metadata(fixture.source()).unwrap().modified().unwrap();
    fs::remove_file(fixture.source().join("socket")).unwrap();
    File::open(fixture.source()).unwrap().set_modified(top).unwrap();
    assert_eq!(describe(&into), describe(&fixture.source()));
    let sparse = fs::metadata(into.join("sparse")).unwrap();
    assert!(sparse.blocks() * 512 < sparse.len() / 4, "{} blocks", sparse.blocks());
}

#[test]
fn the_next_snapshot_reads_and_stores_only_what_changed() {
    let fixture = Fixture::with_repository();
    for number in 0..20 {
        fixture.write(&format!("file-{number}"), noise(number, 200_000));
    }
    let repository = fixture.open();
    let first = fixture.snapshot(&repository, LATER);
    fixture.write("file-3", noise(99, 200_000));
    let source = Source::openclaw(&fixture.source());
    let second = repository.snapshot(&request(LATER + 1), &source, Watcher::none()).unwrap();
    assert_eq!(second.snapshot.parent, Some(first));
    let added = second.snapshot.added_bytes.unwrap();
    assert!((200_000..300_000).contains(&added), "{added}");
    let differences = repository.diff(first, second.snapshot.id).unwrap();
    assert_eq!((differences.added, differences.removed, differences.changed), (0, 0, 1));
    assert_eq!(differences.first[0].path.to_str(), Some("/data/file-3"));

    let list = repository.snapshots().unwrap();
    assert_eq!(list.len(), 2);
    assert_eq!(list[1], second.snapshot);
    assert_eq!(list[0].host, "shop");
    assert_eq!(list[0].tags, BTreeSet::from(["test".to_owned()]));
    assert_eq!(list[0].time.millis(), LATER);
    assert_eq!(list[0].files, Some(20));
    assert!(repository.diff(first, first).unwrap().is_empty());
}

#[test]
fn a_change_that_keeps_size_and_time_is_seen() {
    let fixture = Fixture::with_repository();
    fixture.write("state", "before");
    let modified = fs::metadata(fixture.source().join("state")).unwrap().modified().unwrap();
    let repository = fixture.open();
    // The snapshot is begun in the second of the change: its times prove nothing.
    let begun = modified.duration_since(UNIX_EPOCH).unwrap().as_millis();
    let first = fixture.snapshot(&repository, i64::try_from(begun).unwrap());
    fixture.write("state", "AFTER!");
    File::options()
        .write(true)
        .open(fixture.source().join("state"))
        .unwrap()
        .set_modified(modified)
        .unwrap();
    let second = fixture.snapshot(&repository, LATER);
    assert_eq!(repository.diff(first, second).unwrap().changed, 1);
}

#[test]
fn attachments_come_with_the_snapshot() {
    let fixture = Fixture::with_repository();
    fixture.write("file", "x");
    let repository = fixture.open();
    let name = |text| AttachmentName::parse(text).unwrap();
    let attachments = BTreeMap::from([
        (name("spec"), noise(5, 300_000)),
        (name("image-digest"), b"sha256:aa".to_vec()),
        (name("empty"), Vec::new()),
    ]);
    let source = Source { attachments: attachments.clone(), ..Source::openclaw(&fixture.source()) };
    let taken = repository.snapshot(&request(LATER), &source, Watcher::none()).unwrap();
    assert_eq!(repository.attachments(taken.snapshot.id).unwrap(), attachments);
    let into = fixture.path("restored");
    repository.restore(taken.snapshot.id, &Subtree::data(), &into, &Watcher::none()).unwrap();
    assert_eq!(fs::read_dir(into).unwrap().count(), 1);
}

#[test]
fn another_attachment_of_the_same_size_is_not_taken_for_the_old_one() {
    let fixture = Fixture::with_repository();
    fixture.write("file", "x");
    let repository = fixture.open();
    let name = AttachmentName::parse("spec").unwrap();
    for content in ["one", "two", "six", "two"] {
        let attachments = BTreeMap::from([(name.clone(), content.as_bytes().to_vec())]);
        let source =
            Source { attachments: attachments.clone(), ..Source::openclaw(&fixture.source()) };
        let taken = repository.snapshot(&request(LATER), &source, Watcher::none()).unwrap();
        assert_eq!(repository.attachments(taken.snapshot.id).unwrap(), attachments, "{content}");
    }
}

#[test]
fn what_exists_is_not_touched() {
    let fixture = Fixture::with_repository();
    fixture.write("file", "x");
    let repository = fixture.open();
    let id = fixture.snapshot(&repository, LATER);
    let into = fixture.path("taken");
    fs::create_dir(&into).unwrap();
    let refused = repository.restore(id, &Subtree::data(), &into, &Watcher::none()).unwrap_err();
    assert!(matches!(refused, RestoreError::Exists(_)), "{refused:?}");
    assert_eq!(fs::read_dir(&into).unwrap().count(), 0);
    let absent = Subtree::path(std::path::Path::new("data/../.."));
    let refused =
        repository.restore(id, &absent, &fixture.path("new"), &Watcher::none()).unwrap_err();
    assert!(matches!(refused, RestoreError::NoSuchDirectory(_)), "{refused:?}");
    let unknown = "0".repeat(64).parse().unwrap();
    let refused = repository
        .restore(unknown, &Subtree::data(), &fixture.path("new"), &Watcher::none())
        .unwrap_err();
    assert!(matches!(refused, RestoreError::NotFound(_)), "{refused:?}");
    assert!(!fixture.path("new").exists());
}

#[test]
fn a_rough_snapshot_is_a_parent_and_nothing_else() {
    let fixture = Fixture::with_repository();
    fixture.write("file", noise(1, 500_000));
    let repository = fixture.open();
    let moving = Source { stillness: Stillness::Moving, ..Source::openclaw(&fixture.source()) };
    let rough = repository.snapshot(&request(LATER), &moving, Watcher::none()).unwrap().snapshot;
    assert!(rough.rough);
    assert!(repository.snapshots().unwrap()[0].rough);
    let refused = repository
        .restore(rough.id, &Subtree::data(), &fixture.path("new"), &Watcher::none())
        .unwrap_err();
    assert!(matches!(refused, RestoreError::Rough(_)), "{refused:?}");
    let source = Source::openclaw(&fixture.source());
    let exact = repository.snapshot(&request(LATER + 1), &source, Watcher::none()).unwrap();
    assert_eq!(exact.snapshot.parent, Some(rough.id));
    assert!(exact.snapshot.added_bytes.unwrap() < 5_000);
    let absent = claw_snapshot::SnapshotRequest {
        parent: Parent::Of("0".repeat(64).parse().unwrap()),
        ..request(LATER)
    };
    let refused = repository.snapshot(&absent, &source, Watcher::none()).unwrap_err();
    assert!(matches!(refused, SnapshotError::Parent(_)), "{refused:?}");
}

#[test]
fn keys_open_and_are_replaced() {
    let fixture = Fixture::with_repository();
    let refused = Repository::create(fixture.storage(), &secret(), &recovery(), &mut rand::rng());
    assert!(matches!(refused, Err(CreateError::Exists { .. })), "{refused:?}");
    let open = |credential: &Credential| Repository::open(fixture.storage(), credential);
    open(&Credential::Recovery(recovery())).unwrap();
    let new = RepositorySecret::generate(&mut rand::rng());
    let other = RecoveryPassword::generate(&mut rand::rng());
    for credential in [Credential::Secret(new.clone()), Credential::Recovery(other)] {
        let refused = open(&credential);
        assert!(matches!(refused, Err(OpenError::WrongCredential { .. })), "{refused:?}");
    }
    let repository = fixture.open();
    repository
        .replace_key(KeyRole::Agent, &Credential::Secret(new.clone()), &mut rand::rng())
        .unwrap();
    drop(repository);
    let refused = open(&Credential::Secret(secret()));
    assert!(matches!(refused, Err(OpenError::WrongCredential { .. })), "{refused:?}");
    open(&Credential::Recovery(recovery())).unwrap();
    open(&Credential::Secret(new.clone())).unwrap();
    // A damaged key file does not hide the others.
    for entry in fs::read_dir(fixture.path("repo/keys")).unwrap() {
        let path = entry.unwrap().path();
        if fs::read_to_string(&path).unwrap().contains("claw-recovery") {
            fs::write(&path, "garbage").unwrap();
        }
    }
    open(&Credential::Secret(new)).unwrap();
    fs::remove_file(fixture.path("repo/config")).unwrap();
    let refused = open(&Credential::Secret(secret()));
    assert!(matches!(refused, Err(OpenError::Absent { .. })), "{refused:?}");
}
