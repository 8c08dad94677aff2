//! A source that stands still for a moment only: a rough snapshot, a held listing with copies of
//! what changed, and the snapshot of that moment, taken when everything has changed already.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its fixtures too")]

mod support;

use std::fs::{self, File};
use std::sync::Arc;

use claw_core::time::Timestamp;
use claw_snapshot::{
    Extent, FreezeError, Frozen, Listing, Parent, SnapshotError, SnapshotRequest, Source,
    SourceFaultReason, Stillness, Subtree, Watcher,
};
use support::{Fixture, LATER, describe, noise, request};

fn moving(fixture: &Fixture) -> Source {
    Source { stillness: Stillness::Moving, ..Source::openclaw(&fixture.source()) }
}

fn hold(fixture: &Fixture, listing: &Listing, name: &str) -> Result<Frozen, FreezeError> {
    let staging = fixture.path(name);
    fs::create_dir(&staging).unwrap();
    let time = Timestamp::from_millis(LATER + 1);
    Frozen::hold(&Source::openclaw(&fixture.source()), listing.clone(), &staging, time)
}

#[test]
fn the_snapshot_is_of_the_moment_and_only_changes_are_copied() {
    let fixture = Fixture::with_repository();
    for number in 0..40 {
        fixture.write(&format!("{}/{number}", number % 4), noise(number, 30_000));
    }
    let repository = fixture.open();
    let rough = repository.snapshot(&request(LATER), &moving(&fixture), Watcher::none()).unwrap();
    fixture.write("1/5", noise(100, 40_000));
    fixture.write("new/file", noise(101, 50_000));
    fs::remove_file(fixture.source().join("2/6")).unwrap();
    let modified = fs::metadata(fixture.source().join("3/7")).unwrap().modified().unwrap();
    fixture.write("3/7", noise(102, 30_000));
    let quiet = File::options().write(true).open(fixture.source().join("3/7")).unwrap();
    quiet.set_modified(modified).unwrap();

    let at_the_moment = describe(&fixture.source());
    let frozen = hold(&fixture, &rough.listing, "staging").unwrap();
    assert_eq!((frozen.copied(), frozen.copied_bytes()), (3, 120_000));
    for number in 0..40 {
        fixture.write(&format!("{}/{number}", number % 4), noise(200 + number, 31_000));
    }
    fs::remove_dir_all(fixture.source().join("new")).unwrap();

    let request = SnapshotRequest { parent: Parent::Of(rough.snapshot.id), ..request(LATER + 1) };
    let taken = repository.snapshot_frozen(&request, Arc::new(frozen), Watcher::none()).unwrap();
    assert!(!taken.snapshot.rough);
    assert!(taken.snapshot.added_bytes.unwrap() < 150_000);
    let into = fixture.path("out");
    repository.restore(taken.snapshot.id, &Subtree::data(), &into, &Watcher::none()).unwrap();
    assert_eq!(describe(&into), at_the_moment);
    assert!(repository.verify(Extent::Everything).unwrap().is_sound());
}

#[test]
fn a_file_that_is_neither_copied_nor_in_the_repository_is_a_fault() {
    let fixture = Fixture::with_repository();
    fixture.write("file", noise(1, 30_000));
    let repository = fixture.open();
    let rough = repository.snapshot(&request(LATER), &moving(&fixture), Watcher::none()).unwrap();
    let frozen = hold(&fixture, &rough.listing, "staging").unwrap();
    assert_eq!(frozen.copied(), 0);
    let request = SnapshotRequest { parent: Parent::Nothing, ..request(LATER + 1) };
    let refused =
        repository.snapshot_frozen(&request, Arc::new(frozen), Watcher::none()).unwrap_err();
    let SnapshotError::Source { count: 1, faults } = refused else { panic!("{refused:?}") };
    assert!(matches!(faults[0].reason, SourceFaultReason::NotStaged), "{faults:?}");
}

#[test]
fn what_changed_at_the_rough_snapshots_time_is_copied() {
    let fixture = Fixture::with_repository();
    fixture.write("file", noise(1, 30_000));
    let repository = fixture.open();
    // Begun before the file was written, so that its times prove nothing.
    let rough = repository.snapshot(&request(0), &moving(&fixture), Watcher::none()).unwrap();
    assert_eq!(hold(&fixture, &rough.listing, "staging").unwrap().copied(), 1);
    let full = fixture.path("staging");
    fs::write(full.join("0"), "in the way").unwrap();
    let time = Timestamp::from_millis(LATER);
    let source = Source::openclaw(&fixture.source());
    let refused = Frozen::hold(&source, rough.listing, &full, time).unwrap_err();
    assert!(matches!(refused, FreezeError::Copy { .. }), "{refused:?}");
}

#[test]
fn a_copy_is_read_though_its_times_are_those_of_the_parent() {
    let fixture = Fixture::with_repository();
    fixture.write("file", noise(1, 30_000));
    let repository = fixture.open();
    // Its times prove nothing, then and later.
    let rough = repository.snapshot(&request(0), &moving(&fixture), Watcher::none()).unwrap();
    let path = fixture.source().join("file");
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    fixture.write("file", noise(2, 30_000));
    File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
    let frozen = hold(&fixture, &rough.listing, "staging").unwrap();
    let request = SnapshotRequest { parent: Parent::Of(rough.snapshot.id), ..request(LATER) };
    let taken = repository.snapshot_frozen(&request, Arc::new(frozen), Watcher::none()).unwrap();
    let into = fixture.path("out");
    repository.restore(taken.snapshot.id, &Subtree::data(), &into, &Watcher::none()).unwrap();
    assert_eq!(describe(&into), describe(&fixture.source()));
}
