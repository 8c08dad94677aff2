//! Flipped bits and lost files are found and named, and a restore refuses them.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its fixtures too")]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use claw_snapshot::{
    Damage, Extent, FileId, FileKind, Repository, RestoreError, Rotation, SnapshotId, Source,
    Subtree, Verified, Watcher,
};
use support::{Fixture, LATER, noise, request};

/// Two snapshots: both have `old`, the second has `new` too.
fn two(fixture: &Fixture) -> (Repository, SnapshotId, SnapshotId, BTreeSet<PathBuf>) {
    let repository = fixture.open();
    fixture.write("old", noise(1, 300_000));
    let first = fixture.snapshot(&repository, LATER);
    let before = files(&fixture.path("repo/data"));
    fixture.write("directory/new", noise(2, 300_000));
    let second = fixture.snapshot(&repository, LATER + 1);
    let after = files(&fixture.path("repo/data"));
    let packs = after.difference(&before).cloned().collect();
    (repository, first, second, packs)
}

fn files(directory: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.insert(path);
        }
    }
    found
}

/// The pack that is large: it holds the data and not the trees.
fn data_pack(packs: &BTreeSet<PathBuf>) -> &Path {
    packs.iter().max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap()
}

fn tree_pack(packs: &BTreeSet<PathBuf>) -> &Path {
    packs.iter().min_by_key(|path| fs::metadata(path).unwrap().len()).unwrap()
}

fn flip(path: &Path) {
    let mut content = fs::read(path).unwrap();
    let middle = content.len() / 2;
    content[middle] ^= 0x10;
    fs::write(path, content).unwrap();
}

fn paths(verified: &Verified, id: SnapshotId) -> Vec<&str> {
    let affected = verified.affected.get(&id);
    affected.iter().flat_map(|a| a.paths.iter().map(|path| path.to_str().unwrap())).collect()
}

#[track_caller]
fn refuses(fixture: &Fixture, repository: &Repository, id: SnapshotId) -> RestoreError {
    let into = fixture.path("refused");
    let refused = repository.restore(id, &Subtree::data(), &into, &Watcher::none()).unwrap_err();
    assert!(!into.exists());
    refused
}

#[track_caller]
fn restores(fixture: &Fixture, repository: &Repository, id: SnapshotId) {
    let into = fixture.path("restored");
    repository.restore(id, &Subtree::data(), &into, &Watcher::none()).unwrap();
    fs::remove_dir_all(into).unwrap();
}

/// What a host with bad memory writes: a pack whose hash is right and whose content is not.
#[test]
fn a_blob_that_was_broken_before_it_was_written_is_found() {
    let fixture = Fixture::with_repository();
    let (repository, first, second, packs) = two(&fixture);
    let sound = repository.verify(Extent::Everything).unwrap();
    assert!(sound.is_sound() && sound.read_blobs > 4, "{sound:?}");
    drop(repository);
    let pack = data_pack(&packs);
    flip(pack);
    let content = fs::read(pack).unwrap();
    fs::remove_file(pack).unwrap();
    let id = FileId::of(&content);
    fixture.storage().write(FileKind::Pack, id, &[content.into()]).unwrap();
    let repository = fixture.open();
    repository.rebuild_index().unwrap();
    assert!(repository.verify(Extent::Structure).unwrap().is_sound());
    let verified = repository.verify(Extent::Everything).unwrap();
    let [Damage::Blob { pack, .. }] = verified.damage.as_slice() else { panic!("{verified:?}") };
    assert_eq!(*pack, id);
    assert_eq!(verified.read_blobs, sound.read_blobs - 1);
    assert_eq!(paths(&verified, second), ["/data/directory/new"]);
    assert!(!verified.affected.contains_key(&first));
    restores(&fixture, &repository, first);
    let refused = refuses(&fixture, &repository, second);
    assert!(matches!(refused, RestoreError::Damaged { .. }), "{refused:?}");
}

#[test]
fn a_flipped_bit_in_data_is_found_in_its_part() {
    let fixture = Fixture::with_repository();
    let (repository, first, second, packs) = two(&fixture);
    flip(data_pack(&packs));
    assert!(repository.verify(Extent::Structure).unwrap().is_sound());
    let verified = repository.verify(Extent::Everything).unwrap();
    assert!(
        matches!(verified.damage[..], [Damage::Corrupt { kind: FileKind::Pack, .. }]),
        "{:?}",
        verified.damage
    );
    assert_eq!(paths(&verified, second), ["/data/directory/new"]);
    assert_eq!(verified.affected.len(), 1);
    let parts = (0..5).filter_map(|part| Rotation::new(part, 5));
    let found: Vec<_> = parts
        .map(|part| repository.verify(Extent::Part(part)).unwrap())
        .map(|verified| (verified.read_packs, verified.is_sound()))
        .collect();
    assert_eq!(found.iter().filter(|(_, sound)| !sound).count(), 1, "{found:?}");
    assert_eq!(found.iter().map(|(read, _)| read).sum::<u64>(), verified.packs);
    let refused = refuses(&fixture, &repository, second);
    assert!(matches!(&refused, RestoreError::Damaged { path, .. } if path.ends_with("new")));
    restores(&fixture, &repository, first);
}

#[test]
fn a_lost_data_pack_is_found_by_structure_and_mended_from_the_source() {
    let fixture = Fixture::with_repository();
    let (repository, first, second, packs) = two(&fixture);
    fs::remove_file(data_pack(&packs)).unwrap();
    let verified = repository.verify(Extent::Structure).unwrap();
    assert!(matches!(verified.damage[..], [Damage::PackMissing(_)]), "{:?}", verified.damage);
    assert_eq!(paths(&verified, second), ["/data/directory/new"]);
    assert_eq!(paths(&verified, first), [""; 0]);
    let refused = refuses(&fixture, &repository, second);
    assert!(matches!(refused, RestoreError::PackMissing { .. }), "{refused:?}");
    restores(&fixture, &repository, first);
    // The next snapshot does not trust the index about what is lost.
    let source = Source::openclaw(&fixture.source());
    let taken = repository.snapshot(&request(LATER + 2), &source, Watcher::none()).unwrap();
    assert_eq!(taken.lost_packs, 1);
    restores(&fixture, &repository, taken.snapshot.id);
    restores(&fixture, &repository, second);
    assert!(repository.verify(Extent::Everything).unwrap().is_sound());
    drop(repository);
    assert!(fixture.restic(&["check", "--read-data"]).contains("no errors"));
}

#[test]
fn a_pack_that_was_cut_off_is_found_by_structure() {
    let fixture = Fixture::with_repository();
    let (repository, _, second, packs) = two(&fixture);
    let content = fs::read(data_pack(&packs)).unwrap();
    fs::write(data_pack(&packs), &content[..content.len() / 2]).unwrap();
    let verified = repository.verify(Extent::Structure).unwrap();
    assert!(matches!(verified.damage[..], [Damage::PackSize { .. }]), "{:?}", verified.damage);
    assert_eq!(paths(&verified, second), ["/data/directory/new"]);
    refuses(&fixture, &repository, second);
}

#[test]
fn damaged_trees_lose_what_is_below_them() {
    for lost in [true, false] {
        let fixture = Fixture::with_repository();
        let (repository, first, second, packs) = two(&fixture);
        let pack = tree_pack(&packs);
        if lost {
            fs::remove_file(pack).unwrap();
        } else {
            // Every tree of the pack, not the middle one only.
            let mut content = fs::read(pack).unwrap();
            content.iter_mut().for_each(|byte| *byte ^= 0x10);
            fs::write(pack, content).unwrap();
        }
        let verified = repository.verify(Extent::Everything).unwrap();
        assert!(!verified.damage.is_empty());
        assert_eq!(paths(&verified, second), ["/"]);
        assert!(!verified.affected.contains_key(&first));
        refuses(&fixture, &repository, second);
        restores(&fixture, &repository, first);
    }
}

#[test]
fn damaged_snapshots_indexes_and_keys_are_named() {
    let fixture = Fixture::with_repository();
    let (repository, first, second, _) = two(&fixture);
    flip(&fixture.path(&format!("repo/snapshots/{first}")));
    let verified = repository.verify(Extent::Structure).unwrap();
    assert_eq!(verified.affected.keys().collect::<Vec<_>>(), [&first]);
    assert!(matches!(
        verified.damage[..],
        [Damage::Corrupt { kind: FileKind::Snapshot, id, .. }] if id == first.file()
    ));
    restores(&fixture, &repository, second);

    let fixture = Fixture::with_repository();
    let (repository, _, _, _) = two(&fixture);
    for kind in ["index", "keys"] {
        let file = files(&fixture.path("repo").join(kind)).pop_first().unwrap();
        flip(&file);
    }
    let verified = repository.verify(Extent::Structure).unwrap();
    let kinds: BTreeSet<_> = verified
        .damage
        .iter()
        .filter_map(|damage| match damage {
            Damage::Corrupt { kind, .. } => Some(*kind),
            _ => None,
        })
        .collect();
    assert_eq!(kinds, BTreeSet::from([FileKind::Key, FileKind::Index]));
    assert!(!verified.affected.is_empty());
}

#[test]
fn a_damaged_index_is_made_again_from_the_packs() {
    let fixture = Fixture::with_repository();
    let (repository, first, second, _) = two(&fixture);
    for file in files(&fixture.path("repo/index")) {
        flip(&file);
    }
    let source = Source::openclaw(&fixture.source());
    repository.snapshot(&request(LATER + 9), &source, Watcher::none()).unwrap_err();
    assert_eq!(repository.verify(Extent::Structure).unwrap().affected.len(), 2);
    assert_eq!(repository.rebuild_index().unwrap(), 2);
    assert!(repository.verify(Extent::Everything).unwrap().is_sound());
    for id in [first, second] {
        restores(&fixture, &repository, id);
    }
    assert_eq!(repository.rebuild_index().unwrap(), 0);
    repository.snapshot(&request(LATER + 9), &source, Watcher::none()).unwrap();
    drop(repository);
    assert!(fixture.restic(&["check", "--read-data"]).contains("no errors"));
}

#[test]
fn a_listing_that_fails_is_no_empty_repository() {
    let fixture = Fixture::with_repository();
    let (repository, _, _, _) = two(&fixture);
    fs::rename(fixture.path("repo/snapshots"), fixture.path("away")).unwrap();
    repository.snapshots().unwrap_err();
    repository.prune(std::time::Duration::ZERO).unwrap_err();
    repository.verify(Extent::Structure).unwrap_err();
    let source = Source::openclaw(&fixture.source());
    repository.snapshot(&request(LATER + 9), &source, Watcher::none()).unwrap_err();
    fs::rename(fixture.path("away"), fixture.path("repo/snapshots")).unwrap();
    assert!(repository.verify(Extent::Everything).unwrap().is_sound());
    assert_eq!(repository.snapshots().unwrap().len(), 2);
}
