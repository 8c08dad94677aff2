//! The agent's journal, read from outside while the agent lives or lies dead.

use anyhow::{Context, Result};
use claw_lab::LabHost;
use rusqlite::{Connection, OpenFlags};

use crate::unit::outside;

/// One journaled step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What was to be done, such as `start-container`.
    pub name: String,
    /// `done`, `interrupted`, or why it failed; `None` while it is open.
    pub outcome: Option<String>,
}

/// The steps of an instance, oldest first.
///
/// # Errors
/// When the host is off or there is no journal.
pub fn steps(host: &LabHost, instance: &str) -> Result<Vec<Step>> {
    let path = outside(host, "/var/lib/clawd/journal.db")?;
    let database = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_WRITE)
        .context("cannot open the journal")?;
    database.busy_timeout(std::time::Duration::from_secs(2))?;
    let mut select =
        database.prepare("SELECT step, outcome FROM step WHERE instance = ?1 ORDER BY id")?;
    let rows = select.query_map([instance], |row| {
        let text: String = row.get(0)?;
        let name = text.split(' ').next().unwrap_or_default().to_owned();
        Ok(Step { name, outcome: row.get(1)? })
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}
