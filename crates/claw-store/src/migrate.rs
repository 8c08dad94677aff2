//! Numbered migrations, tracked in `PRAGMA user_version`.
//!
//! Each migration is one transaction that ends with a foreign-key check and the new version
//! number, so a crash leaves the file at a whole version. There is no way down: a file of a newer
//! program is refused, untouched.

use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};

use crate::OpenError;

/// One step of the schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Migration {
    /// The schema version that the file has afterwards. The first is 1, without gaps.
    pub version: u32,
    /// Statements without transaction control; foreign keys are checked only at the end, so a
    /// table may be rebuilt as <https://sqlite.org/lang_altertable.html#otheralter> describes.
    pub sql: &'static str,
}

/// Refuses a list that does not count 1, 2, 3, …; returns the newest version (0 for none).
pub(crate) fn newest(migrations: &[Migration]) -> Result<u32, OpenError> {
    let mut newest = 0_u32;
    for migration in migrations {
        let expected = newest.saturating_add(1);
        if migration.version != expected {
            return Err(OpenError::MigrationOrder { expected, found: migration.version });
        }
        newest = expected;
    }
    Ok(newest)
}

/// The schema version of the file.
pub(crate) fn version(connection: &Connection, path: &Path) -> Result<u32, OpenError> {
    let raw: i64 = connection
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(|source| OpenError::Read { path: path.to_owned(), source })?;
    u32::try_from(raw)
        .map_err(|_negative| OpenError::InvalidVersion { path: path.to_owned(), found: raw })
}

/// Applies what is missing. Foreign keys must be off (see [`Migration::sql`]).
pub(crate) fn apply(
    connection: &mut Connection,
    migrations: &[Migration],
    path: &Path,
) -> Result<(), OpenError> {
    for migration in migrations {
        apply_one(connection, migration, path)?;
    }
    Ok(())
}

fn apply_one(
    connection: &mut Connection,
    migration: &Migration,
    path: &Path,
) -> Result<(), OpenError> {
    let version_number = migration.version;
    let failed =
        |source| OpenError::Migrate { path: path.to_owned(), version: version_number, source };
    let transaction =
        connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
    // Read under the write lock: another process may have migrated meanwhile.
    if version(&transaction, path)? >= version_number {
        return Ok(());
    }
    transaction.execute_batch(migration.sql).map_err(failed)?;
    if let Some(table) = broken_reference(&transaction).map_err(failed)? {
        return Err(OpenError::BrokenReference {
            path: path.to_owned(),
            version: version_number,
            table,
        });
    }
    transaction.pragma_update(None, "user_version", version_number).map_err(failed)?;
    transaction.commit().map_err(failed)
}

fn broken_reference(connection: &Connection) -> rusqlite::Result<Option<String>> {
    let mut statement = connection.prepare("PRAGMA foreign_key_check")?;
    let mut rows = statement.query(())?;
    rows.next()?.map(|row| row.get(0)).transpose()
}
