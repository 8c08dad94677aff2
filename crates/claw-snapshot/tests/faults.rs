//! A source that cannot be read completely gives no snapshot.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its fixtures too")]

mod support;

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use claw_snapshot::{
    Extent, SnapshotError, Source, SourceFaultReason, Stillness, Subtree, Taken, Watcher,
};
use support::{Fixture, LATER, noise, request, run};

const NOBODY: u32 = 65534;

/// What happens to the source after its file `a` was listed and before any is read.
fn disturbed(
    fixture: &Fixture,
    stillness: Stillness,
    disturb: impl FnOnce(&Path) + Send + 'static,
) -> Result<Taken, SnapshotError> {
    let repository = fixture.open();
    let root = fixture.source();
    let disturb = Mutex::new(Some(disturb));
    let watcher = Watcher::new(move |progress| {
        // The directory and its attachments' directory come first, then `a`.
        if progress.bytes > 0
            && let Some(disturb) = disturb.lock().unwrap().take()
        {
            disturb(&root);
        }
    });
    let source = Source { stillness, ..Source::openclaw(&fixture.source()) };
    let result = repository.snapshot(&request(LATER), &source, watcher);
    let count = usize::from(result.is_ok());
    assert_eq!(repository.snapshots().unwrap().len(), count);
    assert!(repository.verify(Extent::Everything).unwrap().is_sound());
    result
}

#[track_caller]
fn check(
    disturb: impl Fn(&Path) + Send + Clone + 'static,
    expected: impl Fn(&SourceFaultReason) -> bool,
) {
    let fixture = || {
        let fixture = Fixture::with_repository();
        fixture.write("a", noise(1, 300_000));
        fixture.write("b", noise(2, 300_000));
        fixture
    };
    let still = fixture();
    let refused = disturbed(&still, Stillness::Still, disturb.clone()).unwrap_err();
    let SnapshotError::Source { count, faults } = refused else { panic!("{refused:?}") };
    assert_eq!((count, faults.len()), (1, 1), "{faults:?}");
    assert_eq!(faults[0].path, PathBuf::from("a"));
    assert!(expected(&faults[0].reason), "{faults:?}");

    let moving = fixture();
    let taken = disturbed(&moving, Stillness::Moving, disturb).unwrap();
    assert!(taken.snapshot.rough);
    assert_eq!(taken.moved, 1);
    // The next one, of a source that stands still, has everything that is there by then.
    let repository = moving.open();
    let next = moving.snapshot(&repository, LATER + 1);
    let into = moving.path("out");
    repository.restore(next, &Subtree::data(), &into, &Watcher::none()).unwrap();
    assert_eq!(support::describe(&into), support::describe(&moving.source()));
}

#[test]
fn a_file_that_vanishes() {
    check(
        |root| fs::remove_file(root.join("a")).unwrap(),
        |reason| matches!(reason, SourceFaultReason::Vanished),
    );
}

#[test]
fn a_file_that_shrinks() {
    check(
        |root| File::options().write(true).open(root.join("a")).unwrap().set_len(9).unwrap(),
        |reason| matches!(reason, SourceFaultReason::Changed),
    );
}

#[test]
fn a_file_that_is_written_anew_in_its_size() {
    check(
        |root| fs::write(root.join("a"), noise(9, 300_000)).unwrap(),
        |reason| matches!(reason, SourceFaultReason::Changed),
    );
}

#[test]
fn a_file_that_becomes_another() {
    check(
        |root| {
            fs::write(root.join("c"), noise(9, 300_000)).unwrap();
            fs::rename(root.join("c"), root.join("a")).unwrap();
        },
        |reason| matches!(reason, SourceFaultReason::Changed),
    );
}

#[test]
fn a_file_that_becomes_a_link_is_not_followed() {
    check(
        |root| {
            fs::remove_file(root.join("a")).unwrap();
            symlink("/etc/passwd", root.join("a")).unwrap();
        },
        |reason| matches!(reason, SourceFaultReason::Changed),
    );
}

/// Root may read everything, so a process of nobody does it.
#[test]
fn a_file_that_must_not_be_read() {
    let fixture = Fixture::new();
    fixture.write("readable", "x");
    fixture.write("directory/secret", "y");
    let directory = fixture.directory.path();
    let probe = directory.join("probe");
    fs::copy(env!("CARGO_BIN_EXE_claw-snapshot-probe"), &probe).unwrap();
    let open = fs::Permissions::from_mode(0o755);
    fs::set_permissions(directory, open).unwrap();
    fs::create_dir(fixture.path("home")).unwrap();
    if nix::unistd::geteuid().is_root() {
        chown(fixture.path("home"), Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let repository = fixture.path("home/repo");
    let (probe, repository) = (probe.to_str().unwrap(), repository.to_str().unwrap());
    let source = fixture.source();
    let source = source.to_str().unwrap();
    let as_nobody = |arguments: &[&str]| {
        let id = NOBODY.to_string();
        let prefix = ["--reuid", &id, "--regid", &id, "--clear-groups", probe];
        if nix::unistd::geteuid().is_root() {
            run("setpriv", &[&prefix, arguments].concat(), &[])
        } else {
            run(probe, arguments, &[])
        }
    };
    assert!(as_nobody(&["create", repository]).status.success());
    let snapshot = || as_nobody(&["snapshot", repository, source, "4000000000000"]);
    for path in ["directory/secret", "directory"] {
        let path = fixture.source().join(path);
        let readable = fs::metadata(&path).unwrap().permissions();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
        let output = snapshot();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success());
        assert!(text.contains("1 entries could not be taken, first: directory"), "{text}");
        assert!(text.contains("ermission denied"), "{text}");
        fs::set_permissions(&path, readable).unwrap();
    }
    let output = snapshot();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_source_that_is_absent_or_no_directory() {
    let fixture = Fixture::with_repository();
    fixture.write("file", "x");
    let repository = fixture.open();
    for path in ["source/absent", "source/file"] {
        let source = Source::openclaw(&fixture.path(path));
        let refused = repository.snapshot(&request(LATER), &source, Watcher::none()).unwrap_err();
        assert!(matches!(refused, SnapshotError::Source { count: 1, .. }), "{refused:?}");
    }
    symlink("/etc", fixture.path("link")).unwrap();
    let source = Source::openclaw(&fixture.path("link"));
    repository.snapshot(&request(LATER), &source, Watcher::none()).unwrap_err();
    assert!(repository.snapshots().unwrap().is_empty());
}
