//! The agent's journal, read from outside while the agent lives or lies dead.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use claw_lab::LabHost;
use nix::sched::{CloneFlags, setns, unshare};
use rusqlite::Connection;

/// Where it is, on the host.
const JOURNAL: &str = "/var/lib/clawd/journal.db";

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
    let init = host.pid().context("the host is off")?;
    let mounts = File::open(format!("/proc/{init}/ns/mnt"))?;
    // SQLite resolves links by itself, and would leave the host through /proc/PID/root: a thread of its
    // own goes there instead.
    std::thread::scope(|scope| {
        let read = scope.spawn(|| {
            unshare(CloneFlags::CLONE_FS)?;
            setns(mounts, CloneFlags::CLONE_NEWNS)?;
            read(Path::new(JOURNAL), instance)
        });
        read.join().map_err(|_| anyhow!("the reading thread panicked"))?
    })
}

fn read(journal: &Path, instance: &str) -> Result<Vec<Step>> {
    anyhow::ensure!(journal.exists(), "there is no journal");
    let database = Connection::open(journal).context("cannot open the journal")?;
    database.busy_timeout(Duration::from_secs(2))?;
    let mut select =
        database.prepare("SELECT step, outcome FROM step WHERE instance = ?1 ORDER BY id")?;
    let rows = select.query_map([instance], |row| {
        let text: String = row.get(0)?;
        let name = text.split(' ').next().unwrap_or_default().to_owned();
        Ok(Step { name, outcome: row.get(1)? })
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}
