//! Instances: the API's spec without secret values, and the values sealed beside it.

use std::collections::BTreeMap;

use claw_core::name::{HostName, InstanceName};
use claw_core::spec::RestoreOrder;
use claw_core::stamp::Generation;
use claw_core::time::Timestamp;
use claw_identity::seal::SealKey;
use claw_proto::convert::backup::{restore_from_wire, restore_to_wire};
use claw_proto::convert::spec::{Counters, redact};
use claw_proto::fleet::v1 as fleet;
use claw_proto::node::v1 as node;
use claw_store::rusqlite::{Connection, OptionalExtension as _, Row, named_params};

use super::migrations::{self, MigrationRow};
use super::{int, snapshots, time, time_or_none, uint};
use crate::page::Page;
use crate::refusal::{Fault, Refusal};

/// One instance as stored. `spec` holds the names of secrets with empty values.
#[derive(Clone)]
pub struct InstanceRow {
    /// Its name.
    pub name: InstanceName,
    /// Unique for ever.
    pub uid: String,
    /// Where it is.
    pub host: HostName,
    /// What it should be; secrets empty.
    pub spec: fleet::InstanceSpec,
    /// The secrets, sealed.
    pub sealed: Vec<u8>,
    /// Restarts, rebuilds and restores asked for.
    pub counters: Counters,
    /// Rises with every change of the spec.
    pub revision: u64,
    /// The host's generation that brought its last change.
    pub generation: Generation,
    /// When it was created.
    pub created: Timestamp,
    /// When its spec was last changed.
    pub updated: Timestamp,
    /// When it was deleted; its host still removes it.
    pub deleted: Option<Timestamp>,
    /// Its move to another host, under way or ended last.
    pub migration: Option<MigrationRow>,
}

impl InstanceRow {
    /// Changes with every change of the spec.
    #[must_use]
    pub fn etag(&self) -> String {
        super::etag(&self.uid, self.revision)
    }

    /// The spec with its secrets.
    ///
    /// # Errors
    /// [`Refusal::Internal`] when they do not open.
    pub fn full_spec(&self, seal: &SealKey) -> Result<fleet::InstanceSpec, Refusal> {
        open_spec(&self.uid, &format!("instances/{}", self.name), &self.spec, &self.sealed, seal)
    }

    /// Takes a spec with its secrets.
    pub(crate) fn set_spec(
        &mut self,
        mut full: fleet::InstanceSpec,
        seal: &SealKey,
    ) -> Result<(), Refusal> {
        let secrets = fleet::InstanceSpec { secrets: full.secrets.clone(), ..Default::default() };
        let plain = claw_proto::encode(&secrets);
        self.sealed =
            seal.seal(&context(&self.uid), &plain, &mut rand::rng()).map_err(Fault::Seal)?;
        redact(&mut full);
        self.spec = full;
        Ok(())
    }
}

impl std::fmt::Debug for InstanceRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InstanceRow")
            .field("name", &self.name)
            .field("uid", &self.uid)
            .field("host", &self.host)
            .field("revision", &self.revision)
            .finish_non_exhaustive()
    }
}

/// A spec with its secrets, from what is stored of it.
pub(super) fn open_spec(
    uid: &str,
    what: &str,
    spec: &fleet::InstanceSpec,
    sealed: &[u8],
    seal: &SealKey,
) -> Result<fleet::InstanceSpec, Refusal> {
    let what = || what.to_owned();
    let opened = seal
        .open(&context(uid), sealed)
        .map_err(|source| Fault::Sealed { what: what(), source })?;
    let secrets: fleet::InstanceSpec =
        claw_proto::decode(&opened).map_err(|source| Fault::Stored { what: what(), source })?;
    Ok(fleet::InstanceSpec { secrets: secrets.secrets, ..spec.clone() })
}

/// What an instance shows besides its spec, roughly.
const ROW_BYTES: usize = 2048;

const COLUMNS: &str = "i.name AS name, i.uid AS uid, i.host AS host, i.spec AS spec, \
    i.sealed AS sealed, i.restarts AS restarts, i.rebuilds AS rebuilds, i.restore AS restore, \
    i.revision AS revision, i.generation AS generation, i.created_ms AS created_ms, \
    i.updated_ms AS updated_ms, i.deleted_ms AS deleted_ms";

/// Instances with the rest of the query, each joined with its migration.
fn select(rest: &str) -> String {
    let migration = migrations::COLUMNS;
    format!(
        "SELECT {COLUMNS}, {migration} FROM instance i LEFT JOIN migration m ON m.uid = i.uid {rest}"
    )
}

/// An instance, if it exists.
///
/// # Errors
/// [`Refusal::Internal`]
pub fn find(connection: &Connection, name: &InstanceName) -> Result<Option<InstanceRow>, Refusal> {
    connection
        .prepare_cached(&select("WHERE i.name = ?1"))?
        .query_row([name.as_str()], |row| Ok(from_row(row)))
        .optional()?
        .transpose()
}

/// An instance that must exist.
///
/// # Errors
/// [`Refusal::NotFound`]
pub fn load(connection: &Connection, name: &InstanceName) -> Result<InstanceRow, Refusal> {
    find(connection, name)?
        .ok_or_else(|| Refusal::NotFound { resource: format!("instances/{name}") })
}

/// One page by name, of one host or of all, and the token of the next.
///
/// # Errors
/// [`Refusal::Internal`]
pub fn list(
    connection: &Connection,
    host: Option<&HostName>,
    page: &Page,
) -> Result<(Vec<InstanceRow>, String), Refusal> {
    let filter = if host.is_some() { "i.host = ?1" } else { "?1 = ''" };
    let sql = select(&format!("WHERE {filter} AND i.name > ?2 ORDER BY i.name LIMIT ?3"));
    let mut statement = connection.prepare_cached(&sql)?;
    let host = host.map(HostName::as_str).unwrap_or_default();
    let after = page.after.as_deref().unwrap_or_default();
    let rows = statement.query_map((host, after, page.fetch()), |row| {
        let bytes = row.get_ref("spec")?.as_blob().map_or(0, <[u8]>::len);
        Ok(from_row(row).map(|instance| (instance, bytes)))
    })?;
    let weight = |(_, bytes): &(InstanceRow, usize)| ROW_BYTES + bytes;
    let key = |(instance, _): &(InstanceRow, usize)| instance.name.to_string();
    let (rows, token) = page.collect(rows.map(|row| row?), weight, key)?;
    Ok((rows.into_iter().map(|(instance, _)| instance).collect(), token))
}

/// Every instance of a host.
///
/// # Errors
/// [`Refusal::Internal`]
pub fn of_host(connection: &Connection, host: &HostName) -> Result<Vec<InstanceRow>, Refusal> {
    let sql = select("WHERE i.host = ?1 ORDER BY i.name");
    let mut statement = connection.prepare_cached(&sql)?;
    let rows = statement.query_map([host.as_str()], |row| Ok(from_row(row)))?;
    rows.map(|row| row?).collect()
}

/// Instances from before there were repositories.
pub(super) fn without_repository(connection: &Connection) -> Result<Vec<InstanceRow>, Refusal> {
    let sql = select("WHERE i.uid NOT IN (SELECT uid FROM repository) ORDER BY i.name");
    let mut statement = connection.prepare(&sql)?;
    let rows = statement.query_map((), |row| Ok(from_row(row)))?;
    rows.map(|row| row?).collect()
}

/// Names of a host's instances, those being deleted included.
///
/// # Errors
/// [`Refusal::Internal`]
pub fn names_of_host(
    connection: &Connection,
    host: &HostName,
) -> Result<BTreeMap<InstanceName, Option<Timestamp>>, Refusal> {
    let mut statement =
        connection.prepare_cached("SELECT name, deleted_ms FROM instance WHERE host = ?1")?;
    let rows = statement.query_map([host.as_str()], |row| {
        Ok((row.get::<_, String>("name")?, time_or_none(row, "deleted_ms")?))
    })?;
    rows.map(|row| {
        let (name, deleted) = row?;
        Ok((parse_name(&name)?, deleted))
    })
    .collect()
}

/// Whether a host still has to remove an instance.
///
/// # Errors
/// [`Refusal::Internal`]
pub fn has_deleted(connection: &Connection, host: &HostName) -> Result<bool, Refusal> {
    let sql = "SELECT EXISTS (SELECT 1 FROM instance WHERE host = ?1 AND deleted_ms IS NOT NULL)";
    Ok(connection.prepare_cached(sql)?.query_row([host.as_str()], |row| row.get(0))?)
}

pub(crate) fn insert(connection: &Connection, instance: &InstanceRow) -> Result<(), Refusal> {
    connection
        .prepare_cached(
            "INSERT INTO instance (name, uid, host, spec, sealed, restarts, rebuilds, revision,
                                   generation, created_ms, updated_ms)
             VALUES (:name, :uid, :host, :spec, :sealed, :restarts, :rebuilds, :revision,
                     :generation, :created, :updated)",
        )?
        .execute(named_params! {
            ":name": instance.name.as_str(),
            ":uid": instance.uid,
            ":host": instance.host.as_str(),
            ":spec": claw_proto::encode(&instance.spec),
            ":sealed": instance.sealed,
            ":restarts": int(instance.counters.restarts),
            ":rebuilds": int(instance.counters.rebuilds),
            ":revision": int(instance.revision),
            ":generation": int(instance.generation.0),
            ":created": instance.created.millis(),
            ":updated": instance.updated.millis(),
        })?;
    Ok(())
}

/// Writes everything that can change.
pub(crate) fn update(connection: &Connection, instance: &InstanceRow) -> Result<(), Refusal> {
    connection
        .prepare_cached(
            "UPDATE instance SET host = :host, spec = :spec, sealed = :sealed, restarts = :restarts,
                 rebuilds = :rebuilds, restore = :restore, revision = :revision,
                 generation = :generation, updated_ms = :updated, deleted_ms = :deleted
             WHERE name = :name",
        )?
        .execute(named_params! {
            ":name": instance.name.as_str(),
            ":host": instance.host.as_str(),
            ":spec": claw_proto::encode(&instance.spec),
            ":sealed": instance.sealed,
            ":restarts": int(instance.counters.restarts),
            ":rebuilds": int(instance.counters.rebuilds),
            ":restore": instance.counters.restore.as_ref()
                .map(|order| claw_proto::encode(&restore_to_wire(order))),
            ":revision": int(instance.revision),
            ":generation": int(instance.generation.0),
            ":updated": instance.updated.millis(),
            ":deleted": instance.deleted.map(Timestamp::millis),
        })?;
    Ok(())
}

pub(crate) fn set_generation(
    connection: &Connection,
    name: &InstanceName,
    generation: Generation,
) -> Result<(), Refusal> {
    connection
        .prepare_cached("UPDATE instance SET generation = ?2 WHERE name = ?1")?
        .execute((name.as_str(), int(generation.0)))?;
    Ok(())
}

/// Every instance of a host counts as changed by `generation`.
pub(crate) fn set_generation_of_host(
    connection: &Connection,
    host: &HostName,
    generation: Generation,
) -> Result<(), Refusal> {
    connection.execute(
        "UPDATE instance SET generation = ?2 WHERE host = ?1",
        (host.as_str(), int(generation.0)),
    )?;
    migrations::set_generation_of_host(connection, host, generation)
}

/// Deletes the row; what is known of the instance's snapshots stays for a while.
pub(crate) fn delete(
    connection: &Connection,
    name: &InstanceName,
    now: Timestamp,
) -> Result<(), Refusal> {
    snapshots::retire(connection, name, now)?;
    migrations::delete_of(connection, name)?;
    connection.execute("DELETE FROM instance WHERE name = ?1", [name.as_str()])?;
    Ok(())
}

fn context(uid: &str) -> Vec<u8> {
    format!("instances/{uid}/secrets").into_bytes()
}

/// The restore that was ordered last, if any.
fn restore_of(row: &Row<'_>, name: &InstanceName) -> Result<Option<RestoreOrder>, Refusal> {
    let Some(bytes) = row.get::<_, Option<Vec<u8>>>("restore")? else { return Ok(None) };
    let what = || format!("instances/{name}");
    let wire: node::RestoreOrder =
        claw_proto::decode(&bytes).map_err(|source| Fault::Stored { what: what(), source })?;
    let order = restore_from_wire(&wire).map_err(|faults| Refusal::damaged(what(), faults))?;
    Ok(Some(order))
}

pub(super) fn parse_name(text: &str) -> Result<InstanceName, Refusal> {
    InstanceName::parse(text).map_err(|error| Refusal::damaged("name of an instance", error))
}

fn from_row(row: &Row<'_>) -> Result<InstanceRow, Refusal> {
    let name = parse_name(&row.get::<_, String>("name")?)?;
    let spec = claw_proto::decode(&row.get::<_, Vec<u8>>("spec")?)
        .map_err(|source| Fault::Stored { what: format!("instances/{name}"), source })?;
    Ok(InstanceRow {
        uid: row.get("uid")?,
        host: super::hosts::parse_name(&row.get::<_, String>("host")?)?,
        spec,
        sealed: row.get("sealed")?,
        counters: Counters {
            restarts: uint(row, "restarts")?,
            rebuilds: uint(row, "rebuilds")?,
            restore: restore_of(row, &name)?,
        },
        revision: uint(row, "revision")?,
        generation: Generation(uint(row, "generation")?),
        created: time(row, "created_ms")?,
        updated: time(row, "updated_ms")?,
        deleted: time_or_none(row, "deleted_ms")?,
        migration: migrations::from_row(row)?,
        name,
    })
}
