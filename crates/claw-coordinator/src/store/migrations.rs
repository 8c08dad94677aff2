//! Migrations: one row per instance, under way or ended last; and what instances have left behind.
//!
//! A row of `departed` says that a host's state confirms the removal of an instance that lives elsewhere, until the
//! host holds it no longer.

use std::collections::BTreeMap;

use claw_core::migration::{Leftover, Migration, Origin, Stage, Start, Tries};
use claw_core::name::{HostName, InstanceName, SnapshotName};
use claw_core::stamp::Generation;
use claw_core::time::Timestamp;
use claw_store::rusqlite::{Connection, OptionalExtension as _, Row, named_params};

use super::{hosts, instances, int, time, uint};
use crate::refusal::Refusal;

/// One migration as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MigrationRow {
    /// The uid of the instance.
    pub uid: String,
    /// Its name.
    pub name: InstanceName,
    /// The host that it leaves.
    pub source: HostName,
    /// The host that it moves to.
    pub target: HostName,
    /// How far it is.
    pub state: Migration,
    /// When it was begun.
    pub begun: Timestamp,
}

impl MigrationRow {
    /// Whether it is under way.
    #[must_use]
    pub fn is_active(&self) -> bool {
        !self.state.stage.is_over()
    }
}

/// An instance that lives elsewhere now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Departed {
    /// Its name.
    pub name: InstanceName,
    /// The generation of the host's state that first confirmed its removal.
    pub generation: Generation,
    /// Since when.
    pub since: Timestamp,
}

/// Columns of a row, named so that they can be joined to an instance's.
pub(super) const COLUMNS: &str = "m.uid AS m_uid, m.name AS m_name, m.source AS m_source, \
    m.target AS m_target, m.origin AS m_origin, m.stage AS m_stage, m.snapshot AS m_snapshot, \
    m.generation AS m_generation, m.restore AS m_restore, m.cleaned AS m_cleaned, \
    m.problem AS m_problem, m.begun_ms AS m_begun_ms, m.since_ms AS m_since_ms, \
    m.failed AS m_failed, m.tried AS m_tried, m.tried_ms AS m_tried_ms";

const OVER: &str = "'done', 'reverted'";

/// Every migration that is under way.
///
/// # Errors
/// [`Refusal::Internal`]
pub fn active(connection: &Connection) -> Result<Vec<MigrationRow>, Refusal> {
    let sql =
        format!("SELECT {COLUMNS} FROM migration m WHERE stage NOT IN ({OVER}) ORDER BY name");
    all(connection, &sql, ())
}

/// The migrations under way that bring an instance to a host.
///
/// # Errors
/// [`Refusal::Internal`]
pub fn arriving(connection: &Connection, host: &HostName) -> Result<Vec<MigrationRow>, Refusal> {
    let sql = format!(
        "SELECT {COLUMNS} FROM migration m
         WHERE target = ?1 AND stage NOT IN ({OVER}) ORDER BY name"
    );
    all(connection, &sql, [host.as_str()])
}

fn all(
    connection: &Connection,
    sql: &str,
    parameters: impl claw_store::rusqlite::Params,
) -> Result<Vec<MigrationRow>, Refusal> {
    let mut statement = connection.prepare_cached(sql)?;
    let rows = statement.query_map(parameters, |row| Ok(from_row(row)))?;
    let rows: Vec<Option<MigrationRow>> = rows.map(|row| row?).collect::<Result<_, Refusal>>()?;
    Ok(rows.into_iter().flatten().collect())
}

/// Stores a migration; the one before of the same instance is replaced.
pub(crate) fn put(connection: &Connection, row: &MigrationRow) -> Result<(), Refusal> {
    let stage = &row.state.stage;
    let (generation, restore) = match stage {
        Stage::Stopping { generation } | Stage::Reverting { generation, .. } => {
            (Some(*generation), None)
        }
        Stage::Starting(start) => (Some(start.generation), Some(start.restore)),
        _ => (None, None),
    };
    let cleaned = matches!(stage, Stage::Reverting { leftover: Leftover::Nothing, .. });
    connection
        .prepare_cached(
            "INSERT OR REPLACE INTO migration (uid, name, source, target, origin, stage, snapshot,
                 generation, restore, cleaned, problem, begun_ms, since_ms, failed, tried, tried_ms)
             VALUES (:uid, :name, :source, :target, :origin, :stage, :snapshot, :generation,
                 :restore, :cleaned, :problem, :begun, :since, :failed, :tried, :tried_at)",
        )?
        .execute(named_params! {
            ":uid": row.uid,
            ":name": row.name.as_str(),
            ":source": row.source.as_str(),
            ":target": row.target.as_str(),
            ":origin": origin_text(row.state.origin),
            ":stage": stage_text(stage),
            ":snapshot": stage.snapshot().map(SnapshotName::as_str),
            ":generation": generation.map(|generation| int(generation.0)),
            ":restore": restore.map(int),
            ":cleaned": cleaned,
            ":problem": stage.problem(),
            ":begun": row.begun.millis(),
            ":since": row.state.since.millis(),
            ":failed": row.state.tries.failed,
            ":tried": row.state.tries.problem,
            ":tried_at": row.state.tries.at.millis(),
        })?;
    Ok(())
}

/// Forgets the migration of an instance that is about to be gone.
pub(super) fn delete_of(connection: &Connection, name: &InstanceName) -> Result<(), Refusal> {
    connection.execute("DELETE FROM migration WHERE name = ?1", [name.as_str()])?;
    Ok(())
}

/// What a host still has to remove.
///
/// # Errors
/// [`Refusal::Internal`]
pub fn departed(connection: &Connection, host: &HostName) -> Result<Vec<Departed>, Refusal> {
    let mut statement = connection.prepare_cached(
        "SELECT name, generation, since_ms FROM departed WHERE host = ?1 ORDER BY name",
    )?;
    let rows = statement.query_map([host.as_str()], |row| {
        let generation = Generation(uint(row, "generation")?);
        Ok((row.get::<_, String>("name")?, generation, time(row, "since_ms")?))
    })?;
    rows.map(|row| {
        let (name, generation, since) = row?;
        Ok(Departed { name: instances::parse_name(&name)?, generation, since })
    })
    .collect()
}

/// Names that a host may hold, by now or still, and since when those that it shall not.
///
/// # Errors
/// [`Refusal::Internal`]
pub fn names_on_host(
    connection: &Connection,
    host: &HostName,
) -> Result<BTreeMap<InstanceName, Option<Timestamp>>, Refusal> {
    let mut names = instances::names_of_host(connection, host)?;
    for left in departed(connection, host)? {
        names.entry(left.name).or_insert(Some(left.since));
    }
    for moving in arriving(connection, host)? {
        names.entry(moving.name).or_insert(None);
    }
    Ok(names)
}

/// Whether a host still has to remove an instance that lives elsewhere.
///
/// # Errors
/// [`Refusal::Internal`]
pub fn has_departed(
    connection: &Connection,
    host: &HostName,
    name: &InstanceName,
) -> Result<bool, Refusal> {
    let found = connection
        .prepare_cached("SELECT 1 FROM departed WHERE host = ?1 AND name = ?2")?
        .query_row((host.as_str(), name.as_str()), |_row| Ok(()))
        .optional()?;
    Ok(found.is_some())
}

/// From now on the host's state confirms the removal.
pub(crate) fn depart(
    connection: &Connection,
    host: &HostName,
    departed: &Departed,
) -> Result<(), Refusal> {
    connection
        .prepare_cached(
            "INSERT OR REPLACE INTO departed (host, name, generation, since_ms)
             VALUES (?1, ?2, ?3, ?4)",
        )?
        .execute((
            host.as_str(),
            departed.name.as_str(),
            int(departed.generation.0),
            departed.since.millis(),
        ))?;
    Ok(())
}

/// The host has removed it.
pub(crate) fn forget_departed(
    connection: &Connection,
    host: &HostName,
    name: &InstanceName,
) -> Result<(), Refusal> {
    connection
        .prepare_cached("DELETE FROM departed WHERE host = ?1 AND name = ?2")?
        .execute((host.as_str(), name.as_str()))?;
    Ok(())
}

/// The host itself is forgotten.
pub(super) fn forget_host(connection: &Connection, host: &HostName) -> Result<(), Refusal> {
    connection.execute("DELETE FROM departed WHERE host = ?1", [host.as_str()])?;
    Ok(())
}

/// Every generation of this host that is waited for is this one now: its epoch has risen.
pub(super) fn set_generation_of_host(
    connection: &Connection,
    host: &HostName,
    generation: Generation,
) -> Result<(), Refusal> {
    let key = (host.as_str(), int(generation.0));
    connection.execute("UPDATE departed SET generation = ?2 WHERE host = ?1", key)?;
    connection.execute(
        "UPDATE migration SET generation = ?2
         WHERE (source = ?1 AND stage IN ('stopping', 'reverting'))
            OR (target = ?1 AND stage = 'starting')",
        key,
    )?;
    Ok(())
}

fn origin_text(origin: Origin) -> &'static str {
    match origin {
        Origin::Host => "host",
        Origin::Offsite => "offsite",
    }
}

fn stage_text(stage: &Stage) -> &'static str {
    match stage {
        Stage::Preparing => "preparing",
        Stage::Stopping { .. } => "stopping",
        Stage::Syncing { .. } => "syncing",
        Stage::Fetching { .. } => "fetching",
        Stage::Starting(_) => "starting",
        Stage::Reverting { .. } => "reverting",
        Stage::Done { .. } => "done",
        Stage::Reverted { .. } => "reverted",
    }
}

/// A row of a join: none where an instance has no migration.
pub(super) fn from_row(row: &Row<'_>) -> Result<Option<MigrationRow>, Refusal> {
    let Some(uid) = row.get::<_, Option<String>>("m_uid")? else { return Ok(None) };
    let name = instances::parse_name(&row.get::<_, String>("m_name")?)?;
    let origin = match row.get::<_, String>("m_origin")?.as_str() {
        "host" => Origin::Host,
        "offsite" => Origin::Offsite,
        other => return Err(damaged(&name, other)),
    };
    let tries = Tries {
        failed: row.get("m_failed")?,
        problem: row.get("m_tried")?,
        at: time(row, "m_tried_ms")?,
    };
    let since = time(row, "m_since_ms")?;
    let stage = stage_of(row, &name)?;
    Ok(Some(MigrationRow {
        uid,
        source: hosts::parse_name(&row.get::<_, String>("m_source")?)?,
        target: hosts::parse_name(&row.get::<_, String>("m_target")?)?,
        state: Migration { origin, stage, since, tries },
        begun: time(row, "m_begun_ms")?,
        name,
    }))
}

fn stage_of(row: &Row<'_>, name: &InstanceName) -> Result<Stage, Refusal> {
    let number = |column: &str| -> Result<u64, Refusal> {
        let value: Option<i64> = row.get(column)?;
        value.and_then(|value| u64::try_from(value).ok()).ok_or_else(|| damaged(name, column))
    };
    let generation = || number("m_generation").map(Generation);
    let snapshot = || {
        let text: Option<String> = row.get("m_snapshot")?;
        let text = text.ok_or_else(|| damaged(name, "no snapshot"))?;
        SnapshotName::parse(&text).map_err(|error| damaged(name, error))
    };
    let problem = || row.get::<_, String>("m_problem").map_err(Refusal::from);
    Ok(match row.get::<_, String>("m_stage")?.as_str() {
        "preparing" => Stage::Preparing,
        "stopping" => Stage::Stopping { generation: generation()? },
        "syncing" => Stage::Syncing { snapshot: snapshot()? },
        "fetching" => Stage::Fetching { snapshot: snapshot()? },
        "starting" => Stage::Starting(Start {
            snapshot: snapshot()?,
            restore: number("m_restore")?,
            generation: generation()?,
        }),
        "reverting" => {
            let cleaned: bool = row.get("m_cleaned")?;
            let leftover = if cleaned { Leftover::Nothing } else { Leftover::Repository };
            Stage::Reverting { problem: problem()?, generation: generation()?, leftover }
        }
        "done" => Stage::Done { snapshot: snapshot()? },
        "reverted" => Stage::Reverted { problem: problem()? },
        other => return Err(damaged(name, other)),
    })
}

fn damaged(name: &InstanceName, problem: impl std::fmt::Display) -> Refusal {
    Refusal::damaged(format!("migration of instances/{name}"), problem)
}
