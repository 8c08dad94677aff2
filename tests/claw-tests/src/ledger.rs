//! Whether a copy of a gateway's data has everything that was acknowledged when it was made.
//!
//! A fake gateway that was started with `CLAW_FAKE_WRITER_MS` commits rows to `state/openclaw.sqlite` in WAL
//! mode and then appends their numbers to `state/acked` in the same volume.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rusqlite::Connection;

/// What a copy holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ledger {
    /// Rows that were acknowledged, all of which are there.
    pub acked: usize,
    /// Rows in the database.
    pub rows: usize,
}

/// Reads the copy in `dir`, which may be written to: opening a database replays its log.
///
/// # Errors
/// When an acknowledged row is missing, the database is damaged, or there is none.
pub fn read(dir: &Path) -> Result<Ledger> {
    let state = dir.join("state");
    let text =
        fs::read_to_string(state.join("acked")).context("no log of what was acknowledged")?;
    // Only whole lines: the last one may have been cut off in the middle.
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let acked = whole.lines().map(str::parse).collect::<Result<Vec<i64>, _>>()?;
    let file = state.join("openclaw.sqlite");
    ensure!(file.exists(), "no database");
    let database = Connection::open(file)?;
    let found: String = database.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
    ensure!(found == "ok", "the database is damaged: {found}");
    let mut exists = database.prepare("SELECT 1 FROM row WHERE id = ?1")?;
    for id in &acked {
        let there = exists.exists([id])?;
        ensure!(there, "row {id} of {} was acknowledged and is missing", acked.len());
    }
    let rows: i64 = database.query_row("SELECT count(*) FROM row", [], |row| row.get(0))?;
    Ok(Ledger { acked: acked.len(), rows: usize::try_from(rows)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn make(dir: &Path, rows: i64, acked: &str) {
        let state = dir.join("state");
        let _ = fs::remove_dir_all(&state);
        fs::create_dir_all(&state).unwrap();
        let database = Connection::open(state.join("openclaw.sqlite")).unwrap();
        database.execute_batch("CREATE TABLE row (id INTEGER PRIMARY KEY, text BLOB)").unwrap();
        for id in 1..=rows {
            database.execute("INSERT INTO row VALUES (?1, 'x')", [id]).unwrap();
        }
        fs::write(state.join("acked"), acked).unwrap();
    }

    #[test]
    fn a_row_that_was_acknowledged_and_is_missing_is_found() {
        let dir = std::env::temp_dir().join(format!("ledger-{}", std::process::id()));
        make(&dir, 3, "1\n2\n");
        assert_eq!(read(&dir).unwrap(), Ledger { acked: 2, rows: 3 });
        make(&dir, 3, "1\n2\n3\n4");
        assert_eq!(read(&dir).unwrap(), Ledger { acked: 3, rows: 3 });
        make(&dir, 3, "1\n2\n3\n4\n");
        let error = read(&dir).unwrap_err().to_string();
        assert_eq!(error, "row 4 of 4 was acknowledged and is missing");
        fs::remove_dir_all(dir).unwrap();
    }
}
