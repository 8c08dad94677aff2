//! Snapshots as hosts listed them last, and how each repository stands.
//!
//! Keyed by the instance's uid, so that they stay when the instance goes and a new one of its name does
//! not see them. What is stored follows the host: a row that was asked for and is not listed yet is the
//! only one of our own making.

use std::collections::BTreeMap;
use std::time::Duration;

use claw_core::backup::{BackupReport, SnapshotInfo};
use claw_core::name::{HostName, ImageRef, InstanceName, SnapshotName};
use claw_core::stamp::{Digest, Generation};
use claw_core::time::Timestamp;
use claw_proto::convert::backup::{report_from_wire, report_to_wire, snapshot_to_wire};
use claw_proto::node::v1 as node;
use claw_store::rusqlite::{Connection, OptionalExtension as _, Row, named_params};

use super::instances::{self, InstanceRow};
use super::{int, revisions, time, time_or_none, uint};
use crate::clock::before;
use crate::page::Page;
use crate::refusal::{Fault, Refusal};

/// How long snapshots, specs and escrow of a deleted instance are kept: as its last snapshot is held on the
/// host ([`claw_core::backup::FINAL_HELD`]).
pub const DELETED_KEPT: Duration = claw_core::backup::FINAL_HELD;
/// A snapshot that was asked for and is not listed by then has failed.
pub const TAKEN_WITHIN: Duration = Duration::from_secs(6 * 3600);
/// How long a snapshot that failed is shown.
pub const FAILED_SHOWN: Duration = Duration::from_secs(24 * 3600);
/// A snapshot that is still listed by then was not forgotten after all.
pub const FORGOTTEN_WITHIN: Duration = Duration::from_secs(3600);

/// What a snapshot shows, roughly.
const ROW_BYTES: usize = 1024;

/// How the repository of an instance stands.
#[derive(Debug, Clone, PartialEq)]
pub struct RepositoryRow {
    /// The uid of the instance.
    pub uid: String,
    /// Its name.
    pub name: InstanceName,
    /// The host that holds it.
    pub host: HostName,
    /// The host's generation that brought the instance: what was kept before is of another of its name.
    pub since: Generation,
    /// When the instance was deleted; later, when its host had removed it.
    pub deleted: Option<Timestamp>,
    /// What the host said last, without the list, and when; `None` before.
    pub report: Option<(BackupReport, Timestamp)>,
    /// Digest of all that the host said last.
    pub digest: Option<Digest>,
    /// Digest of the escrow that is stored.
    pub escrow: Option<Digest>,
}

/// One snapshot.
#[derive(Debug, Clone, PartialEq)]
pub struct SnapshotRow {
    /// Its name.
    pub name: SnapshotName,
    /// When it was begun; while it is not listed, when it was asked for.
    pub taken: Timestamp,
    /// As its host lists it; `None` while it does not.
    pub listed: Option<SnapshotInfo>,
    /// When the host was asked to forget it.
    pub forgetting: Option<Timestamp>,
    /// Why it could not be taken; empty when nobody knows of a problem.
    pub problem: String,
}

const REPOSITORY: &str =
    "uid, name, host, since, deleted_ms, report, reported_ms, digest, escrow_digest";
const SNAPSHOT: &str = "name, taken_ms, listed, forgetting_ms, problem";

/// The repository of an instance by its uid.
///
/// # Errors
/// [`Refusal::Internal`]
pub fn repository(connection: &Connection, uid: &str) -> Result<Option<RepositoryRow>, Refusal> {
    connection
        .prepare_cached(&format!("SELECT {REPOSITORY} FROM repository WHERE uid = ?1"))?
        .query_row([uid], |row| Ok(repository_from_row(row)))
        .optional()?
        .transpose()
}

/// The repository of the instance of this name that was deleted last, on one host or on any.
///
/// # Errors
/// [`Refusal::Internal`]
pub fn deleted_last(
    connection: &Connection,
    name: &InstanceName,
    host: Option<&HostName>,
) -> Result<Option<RepositoryRow>, Refusal> {
    connection
        .prepare_cached(&format!(
            "SELECT {REPOSITORY} FROM repository
             WHERE name = ?1 AND deleted_ms IS NOT NULL AND (?2 = '' OR host = ?2)
             ORDER BY deleted_ms DESC, uid LIMIT 1"
        ))?
        .query_row((name.as_str(), host.map_or("", HostName::as_str)), |row| {
            Ok(repository_from_row(row))
        })
        .optional()?
        .transpose()
}

/// Makes the row for the repository of a new instance.
pub(super) fn insert(
    connection: &Connection,
    instance: &InstanceRow,
    since: Generation,
) -> Result<(), Refusal> {
    connection
        .prepare_cached("INSERT INTO repository (uid, name, host, since) VALUES (?1, ?2, ?3, ?4)")?
        .execute((&instance.uid, instance.name.as_str(), instance.host.as_str(), int(since.0)))?;
    Ok(())
}

/// The repository of an instance that exists, or is being deleted.
///
/// # Errors
/// [`Refusal::Internal`]
pub fn of_instance(
    connection: &Connection,
    instance: &InstanceRow,
) -> Result<RepositoryRow, Refusal> {
    let row = repository(connection, &instance.uid)?
        .ok_or_else(|| Refusal::damaged(format!("instances/{}", instance.name), "no repository"))?;
    Ok(RepositoryRow { deleted: instance.deleted, ..row })
}

/// The repository that is meant by a name: of the instance of that name or, if there is none, of the one
/// that was deleted last; with a `uid`, of exactly that one.
///
/// # Errors
/// [`Refusal::NotFound`]
pub fn resolve(
    connection: &Connection,
    name: &InstanceName,
    uid: &str,
) -> Result<RepositoryRow, Refusal> {
    let not_found = || Refusal::NotFound { resource: format!("instances/{name}") };
    if !uid.is_empty() {
        let found = repository(connection, uid)?.filter(|row| row.name == *name);
        return found.ok_or_else(not_found);
    }
    match instances::find(connection, name)? {
        Some(instance) => of_instance(connection, &instance),
        None => deleted_last(connection, name, None)?.ok_or_else(not_found),
    }
}

/// The repository that a host means by a name; `None` when it has never held such an instance.
///
/// # Errors
/// [`Refusal::Internal`]
pub fn on_host(
    connection: &Connection,
    host: &HostName,
    name: &InstanceName,
) -> Result<Option<RepositoryRow>, Refusal> {
    match instances::find(connection, name)?.filter(|instance| instance.host == *host) {
        Some(instance) => of_instance(connection, &instance).map(Some),
        None => deleted_last(connection, name, Some(host)),
    }
}

/// The instance is about to be gone: what is known of its snapshots is kept for [`DELETED_KEPT`].
pub(super) fn retire(
    connection: &Connection,
    name: &InstanceName,
    now: Timestamp,
) -> Result<(), Refusal> {
    connection
        .prepare_cached(
            "UPDATE repository SET deleted_ms = ?2
             WHERE uid = (SELECT uid FROM instance WHERE name = ?1)",
        )?
        .execute((name.as_str(), now.millis()))?;
    Ok(())
}

/// Forgets what was retired long enough ago, and what failed long enough ago.
pub(crate) fn delete_old(connection: &Connection, now: Timestamp) -> Result<(), Refusal> {
    let gone: Vec<String> = connection
        .prepare_cached("SELECT uid FROM repository WHERE deleted_ms < ?1")?
        .query_map([before(now, DELETED_KEPT).millis()], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    for uid in gone {
        revisions::delete(connection, &uid)?;
        connection.execute("DELETE FROM snapshot WHERE uid = ?1", [&uid])?;
        connection.execute("DELETE FROM repository WHERE uid = ?1", [&uid])?;
    }
    connection.execute(
        "DELETE FROM snapshot WHERE listed IS NULL AND taken_ms < ?1",
        [before(now, FAILED_SHOWN).millis()],
    )?;
    Ok(())
}

/// A snapshot, if it is known.
///
/// # Errors
/// [`Refusal::Internal`]
pub fn find(
    connection: &Connection,
    uid: &str,
    name: &SnapshotName,
) -> Result<Option<SnapshotRow>, Refusal> {
    connection
        .prepare_cached(&format!("SELECT {SNAPSHOT} FROM snapshot WHERE uid = ?1 AND name = ?2"))?
        .query_row((uid, name.as_str()), |row| Ok(snapshot_from_row(row)))
        .optional()?
        .transpose()
}

/// One page, newest first, and the token of the next.
///
/// # Errors
/// [`Refusal::Internal`]
pub fn list(
    connection: &Connection,
    uid: &str,
    page: &Page,
) -> Result<(Vec<SnapshotRow>, String), Refusal> {
    let (before, name) = match page.after.as_deref().map(|key| key.split_once(' ')) {
        None => (i64::MAX, ""),
        Some(Some((millis, name))) => (millis.parse().unwrap_or(i64::MIN), name),
        Some(None) => (i64::MIN, ""),
    };
    let mut statement = connection.prepare_cached(&format!(
        "SELECT {SNAPSHOT} FROM snapshot WHERE uid = ?1 AND (taken_ms, name) < (?2, ?3)
         ORDER BY taken_ms DESC, name DESC LIMIT ?4"
    ))?;
    let rows =
        statement.query_map((uid, before, name, page.fetch()), |row| Ok(snapshot_from_row(row)))?;
    let key = |row: &SnapshotRow| format!("{} {}", row.taken.millis(), row.name);
    page.collect(rows.map(|row| row?), |_row| ROW_BYTES, key)
}

/// How many snapshots an instance has, those that were only asked for included.
///
/// # Errors
/// [`Refusal::Internal`]
pub fn count(connection: &Connection, uid: &str) -> Result<usize, Refusal> {
    let count: i64 = connection
        .prepare_cached("SELECT count(*) FROM snapshot WHERE uid = ?1")?
        .query_row([uid], |row| row.get(0))?;
    Ok(usize::try_from(count).unwrap_or(usize::MAX))
}

/// Generation and image of each listed snapshot.
///
/// # Errors
/// [`Refusal::Internal`]
pub fn origins(connection: &Connection, uid: &str) -> Result<Vec<(Generation, ImageRef)>, Refusal> {
    let listed = all(connection, uid)?.into_iter().filter_map(|row| row.listed);
    Ok(listed.map(|info| (info.generation, info.image)).collect())
}

/// Every snapshot of an instance, oldest first.
///
/// # Errors
/// [`Refusal::Internal`]
pub fn all(connection: &Connection, uid: &str) -> Result<Vec<SnapshotRow>, Refusal> {
    let mut statement = connection.prepare_cached(&format!(
        "SELECT {SNAPSHOT} FROM snapshot WHERE uid = ?1 ORDER BY taken_ms, name"
    ))?;
    let rows = statement.query_map([uid], |row| Ok(snapshot_from_row(row)))?;
    rows.map(|row| row?).collect()
}

/// The repository is on another host now; whatever that one says is new.
pub(crate) fn move_to(connection: &Connection, uid: &str, host: &HostName) -> Result<(), Refusal> {
    connection
        .prepare_cached("UPDATE repository SET host = ?2, digest = NULL WHERE uid = ?1")?
        .execute((uid, host.as_str()))?;
    Ok(())
}

/// Notes that a snapshot was asked for; one that is listed already is left alone.
pub(crate) fn insert_asked(
    connection: &Connection,
    uid: &str,
    name: &SnapshotName,
    now: Timestamp,
) -> Result<(), Refusal> {
    connection
        .prepare_cached(
            "INSERT INTO snapshot (uid, name, taken_ms) VALUES (?1, ?2, ?3)
             ON CONFLICT DO UPDATE SET taken_ms = excluded.taken_ms, problem = ''
             WHERE listed IS NULL",
        )?
        .execute((uid, name.as_str(), now.millis()))?;
    Ok(())
}

/// Notes why a snapshot that was asked for could not be taken; one that is listed is left alone.
pub(crate) fn set_failed(
    connection: &Connection,
    uid: &str,
    name: &SnapshotName,
    problem: &str,
) -> Result<(), Refusal> {
    connection
        .prepare_cached(
            "UPDATE snapshot SET problem = ?3 WHERE uid = ?1 AND name = ?2 AND listed IS NULL",
        )?
        .execute((uid, name.as_str(), problem))?;
    Ok(())
}

/// Notes that a snapshot is to be forgotten; one that was never listed is gone at once.
pub(crate) fn set_forgetting(
    connection: &Connection,
    uid: &str,
    name: &SnapshotName,
    now: Timestamp,
) -> Result<(), Refusal> {
    connection
        .prepare_cached("DELETE FROM snapshot WHERE uid = ?1 AND name = ?2 AND listed IS NULL")?
        .execute((uid, name.as_str()))?;
    connection
        .prepare_cached("UPDATE snapshot SET forgetting_ms = ?3 WHERE uid = ?1 AND name = ?2")?
        .execute((uid, name.as_str(), now.millis()))?;
    Ok(())
}

/// Stores what a host says of the repository `known`; writes only rows that differ.
pub(crate) fn store_report(
    connection: &Connection,
    known: &RepositoryRow,
    report: &BackupReport,
    digest: Option<Digest>,
    now: Timestamp,
) -> Result<(), Refusal> {
    let uid = &known.uid;
    let mut before: BTreeMap<SnapshotName, SnapshotRow> =
        all(connection, uid)?.into_iter().map(|row| (row.name.clone(), row)).collect();
    for snapshot in &report.snapshots {
        let old = before.remove(&snapshot.name).and_then(|row| row.listed);
        if old.as_ref() != Some(snapshot) {
            put(connection, uid, snapshot)?;
        }
    }
    let last = known.report.as_ref().map_or("", |(last, _at)| last.problem.as_str());
    let new_problem = (report.problem != last).then_some(report.problem.as_str());
    for row in before.into_values() {
        let key = (uid, row.name.as_str());
        if row.listed.is_some() {
            connection
                .prepare_cached("DELETE FROM snapshot WHERE uid = ?1 AND name = ?2")?
                .execute(key)?;
        } else if let Some(problem) = new_problem {
            // Whatever was asked for and is not there has this to do with it, as far as anybody knows.
            connection
                .prepare_cached("UPDATE snapshot SET problem = ?3 WHERE uid = ?1 AND name = ?2")?
                .execute((key.0, key.1, problem))?;
        }
    }
    let bare = BackupReport { snapshots: Vec::new(), ..report.clone() };
    connection
        .prepare_cached(
            "UPDATE repository SET report = ?2, reported_ms = ?3, digest = ?4 WHERE uid = ?1",
        )?
        .execute((
            uid,
            claw_proto::encode(&report_to_wire(&bare)),
            now.millis(),
            digest.as_ref().map(|digest| digest.as_bytes().as_slice()),
        ))?;
    Ok(())
}

fn put(connection: &Connection, uid: &str, snapshot: &SnapshotInfo) -> Result<(), Refusal> {
    connection
        .prepare_cached(
            "INSERT INTO snapshot (uid, name, taken_ms, listed)
             VALUES (:uid, :name, :taken, :listed)
             ON CONFLICT DO UPDATE SET taken_ms = excluded.taken_ms, listed = excluded.listed,
                 problem = ''",
        )?
        .execute(named_params! {
            ":uid": uid,
            ":name": snapshot.name.as_str(),
            ":taken": snapshot.taken_at.millis(),
            ":listed": claw_proto::encode(&snapshot_to_wire(snapshot)),
        })?;
    Ok(())
}

/// A digest that may be absent.
fn digest_of(row: &Row<'_>, column: &str) -> Result<Option<Digest>, Refusal> {
    let bytes: Option<Vec<u8>> = row.get(column)?;
    bytes
        .map(|bytes| {
            Digest::from_slice(&bytes)
                .ok_or_else(|| Refusal::damaged(format!("repository.{column}"), "not 32 bytes"))
        })
        .transpose()
}

fn repository_from_row(row: &Row<'_>) -> Result<RepositoryRow, Refusal> {
    let name = instances::parse_name(&row.get::<_, String>("name")?)?;
    let report = match row.get::<_, Option<Vec<u8>>>("report")? {
        None => None,
        Some(bytes) => {
            let what = || format!("the repository of instances/{name}");
            let wire: node::BackupReport = claw_proto::decode(&bytes)
                .map_err(|source| Fault::Stored { what: what(), source })?;
            let report = report_from_wire(&wire)
                .map_err(|violations| Refusal::damaged(what(), violations))?;
            Some((report, time(row, "reported_ms")?))
        }
    };
    Ok(RepositoryRow {
        uid: row.get("uid")?,
        since: Generation(uint(row, "since")?),
        host: super::hosts::parse_name(&row.get::<_, String>("host")?)?,
        deleted: time_or_none(row, "deleted_ms")?,
        report,
        digest: digest_of(row, "digest")?,
        escrow: digest_of(row, "escrow_digest")?,
        name,
    })
}

fn snapshot_from_row(row: &Row<'_>) -> Result<SnapshotRow, Refusal> {
    let text: String = row.get("name")?;
    let damaged = |problem: &dyn std::fmt::Display| {
        Refusal::damaged(format!("snapshot {text}"), problem.to_string())
    };
    let name = SnapshotName::parse(&text).map_err(|error| damaged(&error))?;
    let listed = match row.get::<_, Option<Vec<u8>>>("listed")? {
        None => None,
        Some(bytes) => {
            let wire: node::SnapshotInfo = claw_proto::decode(&bytes)
                .map_err(|source| Fault::Stored { what: format!("snapshot {text}"), source })?;
            Some(claw_proto::convert::backup::snapshot_from_wire(&wire).map_err(|e| damaged(&e))?)
        }
    };
    Ok(SnapshotRow {
        name,
        taken: time(row, "taken_ms")?,
        listed,
        forgetting: time_or_none(row, "forgetting_ms")?,
        problem: row.get("problem")?,
    })
}
