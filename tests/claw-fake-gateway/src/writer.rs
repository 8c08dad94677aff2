//! A database in WAL mode that is written without end, with a log of what was acknowledged beside it.
//!
//! It is what a snapshot of a running gateway has to cope with: the log `state/acked` lies in the same
//! volume, and a number is appended to it only after its row was committed to `state/openclaw.sqlite`. So in
//! every copy that is of one moment, the database has every row that the log names.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rusqlite::Connection;
use thiserror::Error;

use crate::log;

/// Bytes of a row: several rows to a page of 4 096, so that pages are written again and again.
const ROW: [u8; 500] = [b'x'; 500];

/// Why the writer ended.
#[derive(Debug, Error)]
enum WriteError {
    #[error("writing the database: {0}")]
    Database(#[from] rusqlite::Error),
    #[error("writing the log of what was acknowledged: {0}")]
    Log(#[from] std::io::Error),
}

/// Starts to write below `dir` in a thread of its own, resting for `pause` after each row.
pub(crate) fn start(dir: &Path, pause: Duration) {
    let dir: PathBuf = dir.to_owned();
    let work = move || {
        if let Err(error) = write(&dir, pause) {
            log::error(&format!("the writer ended: {error}"));
        }
    };
    if let Err(error) = thread::Builder::new().name("writer".to_owned()).spawn(work) {
        log::error(&format!("starting the writer: {error}"));
    }
}

/// Returns only when it fails.
fn write(dir: &Path, pause: Duration) -> Result<(), WriteError> {
    let database = Connection::open(dir.join("openclaw.sqlite"))?;
    database.pragma_update(None, "journal_mode", "wal")?;
    // What is kept is what a kill leaves; nothing waits for the disk, so commits come fast.
    database.pragma_update(None, "synchronous", "normal")?;
    database.execute_batch("CREATE TABLE IF NOT EXISTS row (id INTEGER PRIMARY KEY, text BLOB)")?;
    let mut acked = OpenOptions::new().create(true).append(true).open(dir.join("acked"))?;
    let mut insert = database.prepare("INSERT INTO row (text) VALUES (?1)")?;
    loop {
        let id = insert.insert([ROW.as_slice()])?;
        acked.write_all(format!("{id}\n").as_bytes())?;
        thread::sleep(pause);
    }
}
