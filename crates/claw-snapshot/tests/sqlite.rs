//! Databases that are written to between snapshots are restored as they were, to the last byte:
//! the shared-memory file too, whose time does not tell when a mapping of it was written to.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its fixtures too")]

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt;

use claw_snapshot::{Extent, Subtree, Watcher};
use rusqlite::Connection;
use support::{Fixture, describe, noise};

const SNAPSHOTS: i64 = 20;
const ROWS: i64 = 50;

/// Write-ahead logging, and a checkpoint now and then: sometimes the rows are in the log only.
fn write_rows(database: &mut Connection, snapshot: i64) {
    let transaction = database.transaction().unwrap();
    for row in 0..ROWS {
        let number = snapshot * ROWS + row;
        let content = noise(u64::try_from(number).unwrap(), 2000);
        transaction
            .execute("INSERT INTO message (number, content) VALUES (?1, ?2)", (number, content))
            .unwrap();
    }
    transaction.commit().unwrap();
    let mode = if snapshot % 3 == 0 { "TRUNCATE" } else { "PASSIVE" };
    if snapshot % 2 == 0 {
        let checkpoint = format!("PRAGMA wal_checkpoint({mode})");
        database.query_row(&checkpoint, [], |_| Ok(())).unwrap();
    }
}

#[test]
fn every_committed_row_is_in_every_snapshot() {
    let fixture = Fixture::with_repository();
    let repository = fixture.open();
    fs::create_dir(fixture.source().join("state")).unwrap();
    let path = fixture.source().join("state/openclaw.sqlite");
    let mut database = Connection::open(&path).unwrap();
    database.pragma_update(None, "journal_mode", "wal").unwrap();
    database
        .execute("CREATE TABLE message (number INTEGER PRIMARY KEY, content BLOB)", [])
        .unwrap();
    let mut taken = Vec::new();
    for snapshot in 0..SNAPSHOTS {
        write_rows(&mut database, snapshot);
        let before = describe(&fixture.source());
        // So long after the writing that times are trusted, and not so long that all is written.
        let written = path.parent().into_iter().chain([path.as_path()]);
        let newest = written.map(|path| fs::metadata(path).unwrap().mtime()).max().unwrap();
        let time = (newest + 10) * 1000 + snapshot;
        taken.push((snapshot, fixture.snapshot(&repository, time), before));
    }
    assert!(repository.verify(Extent::Everything).unwrap().is_sound());
    for (snapshot, id, before) in taken {
        let into = fixture.path(&format!("out-{snapshot}"));
        repository.restore(id, &Subtree::data(), &into, &Watcher::none()).unwrap();
        assert_eq!(describe(&into), before);
        let restored = Connection::open(into.join("state/openclaw.sqlite")).unwrap();
        let check: String =
            restored.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(check, "ok");
        let (rows, last): (i64, i64) = restored
            .query_row("SELECT count(*), max(number) FROM message", [], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .unwrap();
        assert_eq!((rows, last), ((snapshot + 1) * ROWS, (snapshot + 1) * ROWS - 1));
    }
}
