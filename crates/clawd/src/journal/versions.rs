//! The versions that an instance can go back to, and notes about its snapshots.
//!
//! A version is the whole spec, secrets included, and therefore sealed: the one that passed its gate last,
//! and the one that it replaced, whose data is still there.

use std::collections::BTreeMap;

use claw_core::name::InstanceName;
use claw_identity::seal::SealKey;
use claw_store::Pending;
use claw_store::rusqlite::{self, Connection, params};
use zeroize::Zeroizing;

use super::{Journal, Remembered, Unreadable, WriteFailure, outcome_of, save, stored};

/// What a version is sealed for; the instance and the role follow.
const CONTEXT: &str = "clawd/version";

/// The tables.
pub(super) const TABLES: &str = "
CREATE TABLE version (
    instance TEXT NOT NULL,
    role     TEXT NOT NULL,
    sealed   BLOB NOT NULL,
    PRIMARY KEY (instance, role)
) STRICT, WITHOUT ROWID;
CREATE TABLE backup_note (
    instance TEXT PRIMARY KEY,
    value    BLOB NOT NULL
) STRICT;
";

/// What a version is to its instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// It passed the gate last; a failed change leads back to it.
    Confirmed,
    /// The one before, whose data is kept for a while.
    Replaced,
}

impl Role {
    const ALL: [Self; 2] = [Self::Confirmed, Self::Replaced];

    const fn name(self) -> &'static str {
        match self {
            Self::Confirmed => "confirmed",
            Self::Replaced => "replaced",
        }
    }
}

/// The versions of one instance, encoded. Prints no content: a spec holds secrets.
#[derive(Clone, Default)]
pub struct Versions(BTreeMap<Role, Zeroizing<Vec<u8>>>);

impl Versions {
    /// One of them.
    #[must_use]
    pub fn of(&self, role: Role) -> Option<&[u8]> {
        self.0.get(&role).map(|bytes| bytes.as_slice())
    }
}

impl std::fmt::Debug for Versions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Journal {
    /// Records what is remembered of an instance together with versions that take the place of those
    /// before. Durable when it returns.
    ///
    /// # Errors
    /// [`WriteFailure`]; nothing was kept then.
    pub async fn keep_versions(
        &self,
        name: &InstanceName,
        remembered: &Remembered,
        versions: &[(Role, &[u8])],
    ) -> Result<(), WriteFailure> {
        let mut sealed = Vec::new();
        for (role, bytes) in versions {
            let bytes = self.seal.seal(&context(name, *role), bytes, &mut rand::rng())?;
            sealed.push((role.name(), bytes));
        }
        let (name, record) = (name.clone(), stored::encode(remembered));
        let job = self.writer.submit(move |db| {
            save(db, &name, &record)?;
            let mut insert = db.prepare_cached(
                "INSERT INTO version (instance, role, sealed) VALUES (?1, ?2, ?3)
                 ON CONFLICT (instance, role) DO UPDATE SET sealed = excluded.sealed",
            )?;
            sealed.iter().try_for_each(|(role, bytes)| {
                insert.execute(params![name.as_str(), role, bytes]).map(|_rows| ())
            })
        });
        outcome_of(job.await)
    }

    /// Keeps a note about an instance's snapshots in place of the one before. Durable soon; the returned job
    /// may be dropped.
    pub fn backup_note(&self, name: &InstanceName, value: Vec<u8>) -> Pending<(), rusqlite::Error> {
        let name = name.clone();
        self.writer.submit(move |db| {
            db.prepare_cached(
                "INSERT INTO backup_note (instance, value) VALUES (?1, ?2)
                 ON CONFLICT (instance) DO UPDATE SET value = excluded.value",
            )?
            .execute(params![name.as_str(), value])
            .map(|_rows| ())
        })
    }
}

/// Drops what belongs to an instance.
pub(super) fn forget(db: &Connection, name: &InstanceName) -> rusqlite::Result<()> {
    db.execute("DELETE FROM version WHERE instance = ?1", [name.as_str()])?;
    db.execute("DELETE FROM backup_note WHERE instance = ?1", [name.as_str()]).map(|_rows| ())
}

/// The versions of every instance. One that cannot be unsealed is left out: its instance has nothing to go
/// back to then, and says so when that matters.
pub(super) fn recover(
    db: &Connection,
    seal: &SealKey,
) -> Result<BTreeMap<InstanceName, Versions>, Unreadable> {
    let mut found: BTreeMap<InstanceName, Versions> = BTreeMap::new();
    let mut select = db.prepare("SELECT instance, role, sealed FROM version")?;
    let mut rows = select.query(())?;
    while let Some(row) = rows.next()? {
        let (name, role, sealed): (String, String, Vec<u8>) =
            (row.get(0)?, row.get(1)?, row.get(2)?);
        let name = InstanceName::parse(&name).map_err(Unreadable::Name)?;
        let Some(role) = Role::ALL.into_iter().find(|known| known.name() == role) else { continue };
        match seal.open(&context(&name, role), &sealed) {
            Ok(bytes) => {
                found.entry(name).or_default().0.insert(role, bytes);
            }
            Err(error) => {
                tracing::error!(instance = name.as_str(), %error, "a version cannot be unsealed");
            }
        }
    }
    Ok(found)
}

/// The notes about every instance's snapshots.
pub(super) fn notes(db: &Connection) -> Result<BTreeMap<InstanceName, Vec<u8>>, Unreadable> {
    let mut found = BTreeMap::new();
    let mut select = db.prepare("SELECT instance, value FROM backup_note")?;
    let mut rows = select.query(())?;
    while let Some(row) = rows.next()? {
        let name: String = row.get(0)?;
        let name = InstanceName::parse(&name).map_err(Unreadable::Name)?;
        found.insert(name, row.get(1)?);
    }
    Ok(found)
}

fn context(name: &InstanceName, role: Role) -> Vec<u8> {
    format!("{CONTEXT}/{name}/{}", role.name()).into_bytes()
}
