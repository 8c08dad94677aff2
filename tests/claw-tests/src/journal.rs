//! The agent's journal, read from outside while the agent lives or lies dead.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use claw_lab::LabHost;
use nix::sched::{CloneFlags, setns, unshare};
use rusqlite::{Connection, OptionalExtension as _};
use serde_json::Value;

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
    look(host, |journal| read_steps(journal, instance))
}

/// What is remembered of an instance's versions: `active`, `cutover` with its `stage`, `replaced` and so on.
///
/// # Errors
/// When the host is off, or the instance is not known.
pub fn record(host: &LabHost, instance: &str) -> Result<Value> {
    let text: String = look(host, |journal| {
        let select = "SELECT record FROM instance WHERE name = ?1";
        Ok(journal.query_row(select, [instance], |row| row.get(0))?)
    })?;
    let mut record: Value = serde_json::from_str(&text)?;
    Ok(record["versions"].take())
}

/// How far the change of an instance's version is, such as `probing`; `None` when there is none.
///
/// # Errors
/// As [`record`].
pub fn stage(host: &LabHost, instance: &str) -> Result<Option<String>> {
    let stage = record(host, instance)?["cutover"]["stage"].take();
    let named = stage.as_object().and_then(|stage| stage.keys().next().cloned());
    Ok(named.or_else(|| stage.as_str().map(str::to_owned)))
}

/// Changes what is remembered of an instance's snapshots while no agent runs, such as when a drill was done
/// last: nobody can turn the clock of one host alone.
///
/// # Errors
/// When the host is off, or nothing is remembered of the instance.
pub fn edit_backup_note(
    host: &LabHost,
    instance: &str,
    edit: impl FnOnce(&mut Value) + Send,
) -> Result<()> {
    look(host, |journal| {
        let select = "SELECT value FROM backup_note WHERE instance = ?1";
        let note: Vec<u8> = journal.query_row(select, [instance], |row| row.get(0))?;
        let mut note = serde_json::from_slice(&note)?;
        edit(&mut note);
        let update = "UPDATE backup_note SET value = ?2 WHERE instance = ?1";
        journal.execute(update, (instance, serde_json::to_vec(&note)?))?;
        Ok(())
    })
}

/// A note about the host itself, such as `images`; `null` when there is none.
///
/// # Errors
/// When the host is off or there is no journal.
pub fn host_note(host: &LabHost, key: &'static str) -> Result<Value> {
    look(host, |journal| read_note(journal, key))
}

/// Changes a note about the host itself while no agent runs, such as since when an image is not needed.
///
/// # Errors
/// When the host is off or there is no journal.
pub fn edit_host_note(
    host: &LabHost,
    key: &'static str,
    edit: impl FnOnce(&mut Value) + Send,
) -> Result<()> {
    look(host, |journal| {
        let mut note = read_note(journal, key)?;
        edit(&mut note);
        let update = "UPDATE note SET value = ?2 WHERE key = ?1";
        journal.execute(update, (key, serde_json::to_vec(&note)?))?;
        Ok(())
    })
}

fn read_note(journal: &Connection, key: &str) -> Result<Value> {
    let select = "SELECT value FROM note WHERE key = ?1";
    let note: Option<Vec<u8>> = journal.query_row(select, [key], |row| row.get(0)).optional()?;
    note.map_or(Ok(Value::Null), |note| Ok(serde_json::from_slice(&note)?))
}

/// Reads the journal with the host's files in view.
fn look<T: Send>(host: &LabHost, read: impl FnOnce(&Connection) -> Result<T> + Send) -> Result<T> {
    let init = host.pid().context("the host is off")?;
    let mounts = File::open(format!("/proc/{init}/ns/mnt"))?;
    // SQLite resolves links by itself, and would leave the host through /proc/PID/root: a thread of its
    // own goes there instead.
    std::thread::scope(|scope| {
        let read = scope.spawn(move || {
            unshare(CloneFlags::CLONE_FS)?;
            setns(mounts, CloneFlags::CLONE_NEWNS)?;
            let journal = Path::new(JOURNAL);
            anyhow::ensure!(journal.exists(), "there is no journal");
            let database = Connection::open(journal).context("cannot open the journal")?;
            database.busy_timeout(Duration::from_secs(2))?;
            read(&database)
        });
        read.join().map_err(|_| anyhow!("the reading thread panicked"))?
    })
}

fn read_steps(journal: &Connection, instance: &str) -> Result<Vec<Step>> {
    let mut select =
        journal.prepare("SELECT step, outcome FROM step WHERE instance = ?1 ORDER BY id")?;
    let rows = select.query_map([instance], |row| {
        let text: String = row.get(0)?;
        let name = text.split(' ').next().unwrap_or_default().to_owned();
        Ok(Step { name, outcome: row.get(1)? })
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}
