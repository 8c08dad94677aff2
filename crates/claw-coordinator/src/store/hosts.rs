//! Hosts: labels, cordon, and the stamp of the state that is wanted on each.

use std::collections::BTreeMap;

use claw_core::firewall::HostPolicy;
use claw_core::name::HostName;
use claw_core::offsite::OffsiteStorage;
use claw_core::stamp::{Digest, Epoch, Generation, Stamp};
use claw_core::time::Timestamp;
use claw_identity::seal::SealKey;
use claw_proto::convert::backup::offsite_storage_from_wire;
use claw_proto::convert::firewall::host_policy_from_wire;
use claw_proto::fleet::v1 as fleet;
use claw_proto::node::v1 as node;
use claw_store::rusqlite::{Connection, OptionalExtension as _, Row, named_params};

use super::{int, migrations, time, time_or_none, uint};
use crate::page::Page;
use crate::refusal::{Fault, Refusal};

/// One host as stored.
#[derive(Debug, Clone, PartialEq)]
pub struct HostRow {
    /// Its name.
    pub name: HostName,
    /// Unique for ever.
    pub uid: String,
    /// The operator's labels.
    pub labels: BTreeMap<String, String>,
    /// Takes no new instances.
    pub cordoned: bool,
    /// What may come in, as it was given; `None` for the default.
    pub firewall: Option<node::HostFirewall>,
    /// Where its repositories are copied to, if anywhere.
    pub offsite: Option<StoredOffsite>,
    /// Rises with every change of labels, cordon, firewall or off-site storage.
    pub revision: u64,
    /// When it was registered.
    pub created: Timestamp,
    /// When it was last changed.
    pub updated: Timestamp,
    /// When it last enrolled.
    pub joined: Option<Timestamp>,
    /// Its certificates are denylisted.
    pub revoked: bool,
    /// When its newest certificate ends.
    pub certificate_expires: Option<Timestamp>,
    /// When its last session ended.
    pub last_seen: Option<Timestamp>,
    /// The state wanted on it.
    pub stamp: Stamp,
    /// Rises when its journal of events began anew.
    pub event_stream: u64,
    /// Sequence number of the next event that is wanted.
    pub next_event: u64,
}

/// A storage off-site: the API's view of it, and all of it sealed.
#[derive(Clone, PartialEq)]
pub struct StoredOffsite {
    /// Without its keys.
    pub shown: node::OffsiteStorage,
    /// With them.
    sealed: Vec<u8>,
}

impl StoredOffsite {
    /// Seals a storage for the host with this uid.
    ///
    /// # Errors
    /// [`Refusal::Internal`]
    pub(crate) fn seal(
        uid: &str,
        storage: &node::OffsiteStorage,
        seal: &SealKey,
    ) -> Result<Self, Refusal> {
        let plain = claw_proto::encode(storage);
        let sealed =
            seal.seal(&offsite_context(uid), &plain, &mut rand::rng()).map_err(Fault::Seal)?;
        let mut shown = storage.clone();
        shown.access_key.clear();
        shown.secret_key.clear();
        Ok(Self { shown, sealed })
    }
}

impl std::fmt::Debug for StoredOffsite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StoredOffsite").field("shown", &self.shown).finish_non_exhaustive()
    }
}

fn offsite_context(uid: &str) -> Vec<u8> {
    format!("hosts/{uid}/offsite").into_bytes()
}

impl HostRow {
    /// Where its repositories are copied to, with the keys.
    ///
    /// # Errors
    /// [`Refusal::Internal`] when they do not open.
    pub fn offsite_storage(&self, seal: &SealKey) -> Result<Option<OffsiteStorage>, Refusal> {
        let Some(stored) = &self.offsite else { return Ok(None) };
        let what = || format!("off-site storage of hosts/{}", self.name);
        let opened = seal
            .open(&offsite_context(&self.uid), &stored.sealed)
            .map_err(|source| Fault::Sealed { what: what(), source })?;
        let wire: node::OffsiteStorage =
            claw_proto::decode(&opened).map_err(|source| Fault::Stored { what: what(), source })?;
        let storage = offsite_storage_from_wire(&wire);
        storage.map(Some).map_err(|faults| Refusal::damaged(what(), faults))
    }

    /// Changes with every change of labels, cordon, firewall or off-site storage.
    #[must_use]
    pub fn etag(&self) -> String {
        super::etag(&self.uid, self.revision)
    }

    /// What may come in.
    ///
    /// # Errors
    /// [`Refusal::Invalid`] when what is stored is no longer valid.
    pub fn host_policy(&self) -> Result<HostPolicy, Refusal> {
        let parsed = self.firewall.as_ref().map(host_policy_from_wire).transpose();
        let field = || format!("hosts/{}.firewall", self.name);
        parsed
            .map(Option::unwrap_or_default)
            .map_err(|violations| Refusal::Invalid(violations.below(&field())))
    }
}

/// What a host shows besides its labels and firewall, roughly.
const ROW_BYTES: usize = 1024;

const COLUMNS: &str = "name, uid, message, cordoned, firewall, offsite, offsite_sealed, revision, created_ms, updated_ms, joined_ms, \
    revoked, certificate_expires_ms, last_seen_ms, epoch, generation, digest, event_stream, \
    next_event";

/// A host, if it exists.
///
/// # Errors
/// [`Refusal::Internal`]
pub fn find(connection: &Connection, name: &HostName) -> Result<Option<HostRow>, Refusal> {
    connection
        .prepare_cached(&format!("SELECT {COLUMNS} FROM host WHERE name = ?1"))?
        .query_row([name.as_str()], |row| Ok(from_row(row)))
        .optional()?
        .transpose()
}

/// A host that must exist.
///
/// # Errors
/// [`Refusal::NotFound`]
pub fn load(connection: &Connection, name: &HostName) -> Result<HostRow, Refusal> {
    find(connection, name)?.ok_or_else(|| Refusal::NotFound { resource: format!("hosts/{name}") })
}

/// One page by name, and the token of the next.
///
/// # Errors
/// [`Refusal::Internal`]
pub fn list(connection: &Connection, page: &Page) -> Result<(Vec<HostRow>, String), Refusal> {
    let sql = format!("SELECT {COLUMNS} FROM host WHERE name > ?1 ORDER BY name LIMIT ?2");
    let mut statement = connection.prepare_cached(&sql)?;
    let after = page.after.as_deref().unwrap_or_default();
    let rows = statement.query_map((after, page.fetch()), |row| Ok(from_row(row)))?;
    let weight = |host: &HostRow| {
        let labels = host.labels.iter().map(|(key, value)| key.len() + value.len());
        let firewall = host.firewall.as_ref().map_or(0, |wire| claw_proto::encode(wire).len());
        ROW_BYTES + firewall + labels.sum::<usize>()
    };
    page.collect(rows.map(|row| row?), weight, |host| host.name.to_string())
}

/// Names of all hosts.
///
/// # Errors
/// [`Refusal::Internal`]
pub fn names(connection: &Connection) -> Result<Vec<HostName>, Refusal> {
    let mut statement = connection.prepare_cached("SELECT name FROM host ORDER BY name")?;
    let names = statement.query_map((), |row| row.get::<_, String>(0))?;
    names.map(|name| parse_name(&name?)).collect()
}

/// How many hosts have joined and may come.
///
/// # Errors
/// [`Refusal::Internal`]
pub fn joined(connection: &Connection) -> Result<usize, Refusal> {
    let sql = "SELECT count(*) FROM host WHERE joined_ms IS NOT NULL AND revoked = 0";
    let count: i64 = connection.query_row(sql, (), |row| row.get(0))?;
    Ok(usize::try_from(count).unwrap_or(0))
}

pub(crate) fn insert(connection: &Connection, host: &HostRow) -> Result<(), Refusal> {
    connection.execute(
        "INSERT INTO host (name, uid, message, cordoned, firewall, revision, created_ms, updated_ms, epoch,
                           generation, digest)
         VALUES (:name, :uid, :message, :cordoned, :firewall, :revision, :created, :updated, :epoch,
                 :generation, :digest)",
        named_params! {
            ":name": host.name.as_str(),
            ":uid": host.uid,
            ":message": encode_labels(&host.labels),
            ":cordoned": host.cordoned,
            ":firewall": host.firewall.as_ref().map(claw_proto::encode),
            ":revision": int(host.revision),
            ":created": host.created.millis(),
            ":updated": host.updated.millis(),
            ":epoch": int(host.stamp.epoch.0),
            ":generation": int(host.stamp.generation.0),
            ":digest": host.stamp.digest.as_bytes(),
        },
    )?;
    Ok(())
}

/// Writes labels, cordon, firewall, off-site storage, revision, time of change and revocation.
pub(crate) fn update(connection: &Connection, host: &HostRow) -> Result<(), Refusal> {
    connection
        .prepare_cached(
            "UPDATE host SET message = ?2, cordoned = ?3, revision = ?4, updated_ms = ?5,
                             revoked = ?6, firewall = ?7, offsite = ?8, offsite_sealed = ?9
             WHERE name = ?1",
        )?
        .execute((
            host.name.as_str(),
            encode_labels(&host.labels),
            host.cordoned,
            int(host.revision),
            host.updated.millis(),
            host.revoked,
            host.firewall.as_ref().map(claw_proto::encode),
            host.offsite.as_ref().map(|offsite| claw_proto::encode(&offsite.shown)),
            host.offsite.as_ref().map(|offsite| &offsite.sealed),
        ))?;
    Ok(())
}

pub(crate) fn set_stamp(
    connection: &Connection,
    name: &HostName,
    stamp: &Stamp,
) -> Result<(), Refusal> {
    connection
        .prepare_cached("UPDATE host SET epoch = ?2, generation = ?3, digest = ?4 WHERE name = ?1")?
        .execute((
            name.as_str(),
            int(stamp.epoch.0),
            int(stamp.generation.0),
            stamp.digest.as_bytes(),
        ))?;
    Ok(())
}

/// Notes an enrolment: the host counts as joined and is no longer revoked.
pub(crate) fn set_joined(
    connection: &Connection,
    name: &HostName,
    now: Timestamp,
) -> Result<(), Refusal> {
    connection
        .prepare_cached("UPDATE host SET joined_ms = ?2, revoked = 0 WHERE name = ?1")?
        .execute((name.as_str(), now.millis()))?;
    Ok(())
}

pub(crate) fn set_certificate_expires(
    connection: &Connection,
    name: &HostName,
    at: Timestamp,
) -> Result<(), Refusal> {
    connection
        .prepare_cached("UPDATE host SET certificate_expires_ms = ?2 WHERE name = ?1")?
        .execute((name.as_str(), at.millis()))?;
    Ok(())
}

pub(crate) fn set_last_seen(
    connection: &Connection,
    name: &HostName,
    at: Timestamp,
) -> Result<(), Refusal> {
    connection
        .prepare_cached("UPDATE host SET last_seen_ms = ?2 WHERE name = ?1")?
        .execute((name.as_str(), at.millis()))?;
    Ok(())
}

pub(crate) fn set_events(
    connection: &Connection,
    name: &HostName,
    stream: u64,
    next: u64,
) -> Result<(), Refusal> {
    connection
        .prepare_cached("UPDATE host SET event_stream = ?2, next_event = ?3 WHERE name = ?1")?
        .execute((name.as_str(), int(stream), int(next)))?;
    Ok(())
}

/// Forgets a host with its tokens and events; it must hold no instances.
pub(crate) fn delete(connection: &Connection, name: &HostName) -> Result<(), Refusal> {
    connection.execute("DELETE FROM join_token WHERE host = ?1", [name.as_str()])?;
    connection.execute("DELETE FROM event WHERE host = ?1", [name.as_str()])?;
    migrations::forget_host(connection, name)?;
    connection.execute("DELETE FROM host WHERE name = ?1", [name.as_str()])?;
    Ok(())
}

pub(super) fn parse_name(text: &str) -> Result<HostName, Refusal> {
    HostName::parse(text).map_err(|error| Refusal::damaged("name of a host", error))
}

fn encode_labels(labels: &BTreeMap<String, String>) -> Vec<u8> {
    claw_proto::encode(&fleet::Host { labels: labels.clone(), ..fleet::Host::default() })
}

fn from_row(row: &Row<'_>) -> Result<HostRow, Refusal> {
    let name = parse_name(&row.get::<_, String>("name")?)?;
    let message: fleet::Host = claw_proto::decode(&row.get::<_, Vec<u8>>("message")?)
        .map_err(|source| Fault::Stored { what: format!("hosts/{name}"), source })?;
    let firewall = row
        .get::<_, Option<Vec<u8>>>("firewall")?
        .map(|bytes| claw_proto::decode(&bytes))
        .transpose()
        .map_err(|source| Fault::Stored { what: format!("firewall of hosts/{name}"), source })?;
    let offsite = match (row.get::<_, Option<Vec<u8>>>("offsite")?, row.get("offsite_sealed")?) {
        (Some(shown), Some(sealed)) => {
            let what = || format!("off-site storage of hosts/{name}");
            let shown = claw_proto::decode(&shown)
                .map_err(|source| Fault::Stored { what: what(), source })?;
            Some(StoredOffsite { shown, sealed })
        }
        _ => None,
    };
    let digest = Digest::from_slice(&row.get::<_, Vec<u8>>("digest")?)
        .ok_or_else(|| Refusal::damaged(format!("digest of hosts/{name}"), "not 32 bytes"))?;
    Ok(HostRow {
        name,
        uid: row.get("uid")?,
        labels: message.labels,
        cordoned: row.get("cordoned")?,
        firewall,
        offsite,
        revision: uint(row, "revision")?,
        created: time(row, "created_ms")?,
        updated: time(row, "updated_ms")?,
        joined: time_or_none(row, "joined_ms")?,
        revoked: row.get("revoked")?,
        certificate_expires: time_or_none(row, "certificate_expires_ms")?,
        last_seen: time_or_none(row, "last_seen_ms")?,
        stamp: Stamp {
            epoch: Epoch(uint(row, "epoch")?),
            generation: Generation(uint(row, "generation")?),
            digest,
        },
        event_stream: uint(row, "event_stream")?,
        next_event: uint(row, "next_event")?,
    })
}
