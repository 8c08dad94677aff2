//! What the agent must not forget: desired state, intents, instances, events.
//!
//! One SQLite file. Everything here is durable (fsynced) once the returned future has resolved; the
//! desired state, which holds secrets, is sealed. Growth is bounded: steps and events are rings.
//!
//! What it does not do: decide anything. A full disk is an error like any other here
//! ([`WriteFailure::Full`]); what may go on without a journal is decided in
//! [`crate::reconcile::execute`].
//!
//! Where to start: [`Journal::open`], then [`Remembered`], the row of an instance.

mod events;
mod stored;
mod versions;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use claw_core::address::Slot;
use claw_core::name::InstanceName;
use claw_core::observed::{Exit, Record};
use claw_core::plan::StopReason;
use claw_core::stamp::{Digest, Epoch, Generation, Stamp};
use claw_core::time::Timestamp;
use claw_identity::seal::{SealError, SealKey, SealKeyError};
use claw_store::rusqlite::{self, Connection, OptionalExtension as _, params};
use claw_store::{Database, Migration, Pending, ReadError, Reader, WriteError, Writer};
use zeroize::Zeroizing;

pub use events::{EventRange, Events, NewEvent};
pub use stored::Unreadable;
pub use versions::{Role, Versions};

/// "CLWD" in ASCII: marks a database as an agent's journal.
const APPLICATION_ID: i32 = 0x434c_5744;
/// Steps that are kept.
const MAX_STEPS: i64 = 2000;
/// Jobs that may wait for the writing thread.
const QUEUE: NonZeroUsize = NonZeroUsize::new(1024).unwrap();
/// What the desired state is sealed for.
const STATE_CONTEXT: &[u8] = b"clawd/desired-state";

const MIGRATIONS: &[Migration] = &[
    Migration {
        version: 1,
        sql: "
CREATE TABLE desired_state (
    id         INTEGER PRIMARY KEY CHECK (id = 1),
    epoch      INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    digest     BLOB NOT NULL,
    sealed     BLOB NOT NULL
) STRICT;
CREATE TABLE instance (
    name   TEXT PRIMARY KEY,
    slot   INTEGER NOT NULL UNIQUE,
    record TEXT NOT NULL
) STRICT;
CREATE TABLE step (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    instance   TEXT NOT NULL,
    generation INTEGER NOT NULL,
    step       TEXT NOT NULL,
    intent_at  INTEGER NOT NULL,
    outcome    TEXT,
    outcome_at INTEGER
) STRICT;
CREATE INDEX step_open ON step (id) WHERE outcome IS NULL;
CREATE TABLE event (
    sequence INTEGER PRIMARY KEY,
    at       INTEGER NOT NULL,
    instance TEXT,
    kind     TEXT NOT NULL,
    severity INTEGER NOT NULL,
    message  TEXT NOT NULL
) STRICT;
",
    },
    Migration {
        version: 2,
        sql: "
CREATE TABLE note (
    key   TEXT PRIMARY KEY,
    value BLOB NOT NULL
) STRICT;
",
    },
    Migration { version: 3, sql: versions::TABLES },
    // From here on a record may say that an instance's data is not on the disk: an agent that does not know
    // that would start it on an empty directory, and must not open this file.
    Migration { version: 4, sql: "-- No table changes." },
];

/// Things of the host, not of an instance, that the next agent must know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Note {
    /// The host's policy whose rules are the last good ones, encoded as on the wire.
    HostPolicy,
    /// The host's policy that was reverted last: digest, the time until which it is not
    /// tried again, and why.
    RevertedPolicy,
    /// Totals of refused traffic.
    Tally,
    /// Images that specs have named here, and since when nobody needs them.
    Images,
}

impl Note {
    const ALL: [Self; 4] = [Self::HostPolicy, Self::RevertedPolicy, Self::Tally, Self::Images];

    const fn key(self) -> &'static str {
        match self {
            Self::HostPolicy => "firewall.host-policy",
            Self::RevertedPolicy => "firewall.reverted-policy",
            Self::Tally => "firewall.tally",
            Self::Images => "images",
        }
    }
}

/// The agent's journal.
#[derive(Debug)]
pub struct Journal {
    writer: Writer,
    reader: Reader,
    seal: SealKey,
    events: Events,
}

/// What a journal held when it was opened.
#[derive(Debug, Default)]
pub struct Recovered {
    /// The desired state that was persisted last.
    pub state: Option<PersistedState>,
    /// Every instance that this host holds.
    pub instances: BTreeMap<InstanceName, (Slot, Remembered)>,
    /// Steps that had an intent and no outcome: the agent was ended in their midst.
    pub interrupted: u64,
    /// Notes of the host.
    pub notes: BTreeMap<Note, Vec<u8>>,
    /// What instances can go back to.
    pub versions: BTreeMap<InstanceName, Versions>,
    /// Notes about instances' snapshots.
    pub backup_notes: BTreeMap<InstanceName, Vec<u8>>,
}

/// A desired state as it was persisted.
pub struct PersistedState {
    /// Which one it is.
    pub stamp: Stamp,
    /// Its bytes; `None` when they cannot be unsealed, because the seal key was lost.
    pub bytes: Option<Zeroizing<Vec<u8>>>,
}

/// Prints no content: a state holds secrets.
impl std::fmt::Debug for PersistedState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PersistedState").field("stamp", &self.stamp).finish_non_exhaustive()
    }
}

/// What is remembered of one instance.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Remembered {
    /// What the plan looks at. The back-off points in it are not stored: a new agent tries at once.
    pub record: Record,
    /// Digest of the files that were delivered.
    pub files: Option<Digest>,
    /// Times the agent has brought it back.
    pub restart_count: u64,
    /// It ended by itself and has not been started since.
    pub died: bool,
    /// How the last run ended.
    pub last_exit: Option<Exit>,
    /// The exit that was counted last: container and time.
    pub seen_exit: Option<(String, Timestamp)>,
    /// The stop that is wanted or under way.
    pub stop: Option<StopIntent>,
    /// The start that is under way.
    pub start: Option<StartIntent>,
    /// The boot of the host in which it was started last.
    pub boot: Option<String>,
    /// The run that passed its gate last.
    pub healthy: Option<HealthyRun>,
}

/// A container is being stopped on purpose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopIntent {
    /// Docker's id.
    pub container: String,
    /// Why.
    pub reason: StopReason,
    /// An end after this is no longer the one that was wanted.
    pub until: Timestamp,
}

/// A container is being started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartIntent {
    /// When; a run that began later is the one that was wanted.
    pub at: Timestamp,
    /// See [`Record::started_with_secrets`].
    pub secrets: Digest,
    /// See [`Record::restarts_done`].
    pub restarts: u64,
}

/// A run that passed its gate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthyRun {
    /// Docker's id.
    pub container: String,
    /// When the run began.
    pub since: Timestamp,
    /// When it passed.
    pub healthy_since: Timestamp,
}

/// How a step ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepOutcome {
    /// The step's row.
    pub id: i64,
    /// `done`, `preempted`, or why it failed.
    pub outcome: String,
}

/// Why a journal could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenFailure {
    /// The database itself.
    #[error("cannot open the journal")]
    Database(#[from] claw_store::OpenError),
    /// Its thread.
    #[error("cannot start the journal")]
    Start(#[from] claw_store::StartError),
    /// The key that seals the desired state.
    #[error("cannot use the journal's seal key")]
    SealKey(#[from] SealKeyError),
    /// Its content.
    #[error("cannot read the journal")]
    Read(#[from] ReadError<Unreadable>),
    /// Closing what an earlier agent left open.
    #[error("cannot write to the journal")]
    Write(#[from] WriteFailure),
}

/// Why something was not journaled.
#[derive(Debug, thiserror::Error)]
pub enum WriteFailure {
    /// No room on the disk.
    #[error("the disk of the journal is full")]
    Full,
    /// The desired state is too large to be sealed.
    #[error("cannot seal the desired state")]
    Seal(#[from] SealError),
    /// Anything else.
    #[error("cannot write to the journal")]
    Write(#[source] WriteError<rusqlite::Error>),
}

impl Journal {
    /// Opens `directory/journal.db`, makes it when absent, and closes steps that were left open.
    ///
    /// Blocks; the directory must exist.
    ///
    /// # Errors
    /// [`OpenFailure`]; a full disk at this point is not fatal: open steps stay open then.
    pub fn open(directory: &Path, now: Timestamp) -> Result<(Self, Recovered), OpenFailure> {
        let database = Database::open(directory.join("journal.db"), APPLICATION_ID, MIGRATIONS)?;
        let seal = SealKey::load_or_create(&directory.join("seal.key"), &mut rand::rng())?;
        let reader = database.reader(NonZeroUsize::MIN)?;
        let writer = database.writer("clawd-journal", QUEUE)?;
        let mut recovered = reader.read(|db| recover(db, &seal))?;
        let range = reader.read(events::range).map_err(read_failed)?;
        let events = Events::new(writer.clone(), reader.clone(), range);
        match outcome_of(writer.submit(move |db| close_open_steps(db, now)).wait()) {
            Ok(interrupted) => recovered.interrupted = interrupted,
            Err(WriteFailure::Full) => {}
            Err(failure) => return Err(failure.into()),
        }
        Ok((Self { writer, reader, seal, events }, recovered))
    }

    /// The ring of events.
    #[must_use]
    pub const fn events(&self) -> &Events {
        &self.events
    }

    /// Persists a desired state together with the instances that it adds.
    ///
    /// # Errors
    /// [`WriteFailure`]; nothing was kept then.
    pub async fn persist_state(
        &self,
        stamp: &Stamp,
        bytes: &[u8],
        added: Vec<(InstanceName, Slot)>,
    ) -> Result<(), WriteFailure> {
        let sealed = self.seal.seal(STATE_CONTEXT, bytes, &mut rand::rng())?;
        let stamp = *stamp;
        let job = self.writer.submit(move |db| {
            db.prepare_cached(
                "INSERT INTO desired_state (id, epoch, generation, digest, sealed)
                 VALUES (1, ?1, ?2, ?3, ?4)
                 ON CONFLICT (id) DO UPDATE SET epoch = excluded.epoch,
                     generation = excluded.generation, digest = excluded.digest,
                     sealed = excluded.sealed",
            )?
            .execute(params![
                stored::to_i64(stamp.epoch.0),
                stored::to_i64(stamp.generation.0),
                stamp.digest.as_bytes().as_slice(),
                sealed,
            ])?;
            added.iter().try_for_each(|(name, slot)| add_instance(db, name, *slot))
        });
        outcome_of(job.await)
    }

    /// Keeps a note in place of the one before. Durable soon; the returned job may be dropped.
    pub fn note(&self, note: Note, value: Vec<u8>) -> Pending<(), rusqlite::Error> {
        self.writer.submit(move |db| {
            db.prepare_cached(
                "INSERT INTO note (key, value) VALUES (?1, ?2)
                 ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            )?
            .execute(params![note.key(), value])
            .map(|_rows| ())
        })
    }

    /// Adds an instance.
    ///
    /// # Errors
    /// [`WriteFailure`]; nothing was kept then.
    pub async fn add(&self, name: &InstanceName, slot: Slot) -> Result<(), WriteFailure> {
        let name = name.clone();
        outcome_of(self.writer.submit(move |db| add_instance(db, &name, slot)).await)
    }

    /// Records what is about to be done to an instance, and what is remembered of it from then on;
    /// returns the rows of the steps in their order.
    ///
    /// # Errors
    /// [`WriteFailure`]; nothing was kept then.
    pub async fn begin(
        &self,
        name: &InstanceName,
        remembered: &Remembered,
        generation: Generation,
        steps: Vec<String>,
        now: Timestamp,
    ) -> Result<Vec<i64>, WriteFailure> {
        let (name, record) = (name.clone(), stored::encode(remembered));
        let job = self.writer.submit(move |db| {
            save(db, &name, &record)?;
            let mut insert = db.prepare_cached(
                "INSERT INTO step (instance, generation, step, intent_at) VALUES (?1, ?2, ?3, ?4)",
            )?;
            let generation = stored::to_i64(generation.0);
            let ids = steps
                .iter()
                .map(|step| insert.insert(params![name.as_str(), generation, step, now.millis()]))
                .collect::<rusqlite::Result<Vec<i64>>>()?;
            if let Some(last) = ids.last() {
                db.prepare_cached("DELETE FROM step WHERE id <= ?1")?
                    .execute([last - MAX_STEPS])?;
            }
            Ok(ids)
        });
        outcome_of(job.await)
    }

    /// Records how steps ended, and what is remembered of the instance now. Durable soon; the
    /// returned job may be dropped.
    pub fn finish(
        &self,
        name: &InstanceName,
        remembered: &Remembered,
        outcomes: Vec<StepOutcome>,
        now: Timestamp,
    ) -> Pending<(), rusqlite::Error> {
        let (name, record) = (name.clone(), stored::encode(remembered));
        self.writer.submit(move |db| {
            save(db, &name, &record)?;
            let mut update =
                db.prepare_cached("UPDATE step SET outcome = ?2, outcome_at = ?3 WHERE id = ?1")?;
            outcomes.iter().try_for_each(|step| {
                update.execute(params![step.id, step.outcome, now.millis()]).map(|_rows| ())
            })
        })
    }

    /// Drops an instance; its slot is free again.
    ///
    /// # Errors
    /// [`WriteFailure`]; nothing was kept then.
    pub async fn forget(&self, name: &InstanceName) -> Result<(), WriteFailure> {
        let name = name.clone();
        let job = self.writer.submit(move |db| {
            versions::forget(db, &name)?;
            db.execute("DELETE FROM instance WHERE name = ?1", [name.as_str()]).map(|_rows| ())
        });
        outcome_of(job.await)
    }

    /// Ends when the writing thread has answered; writes nothing.
    ///
    /// # Errors
    /// [`WriteFailure`] when it cannot begin a transaction.
    pub async fn answer(&self) -> Result<(), WriteFailure> {
        outcome_of(self.writer.submit(|_db| Ok(())).await)
    }

    /// The latest steps, oldest first: generation, step and outcome. For tests and support.
    ///
    /// # Errors
    /// When SQLite cannot read.
    pub fn steps(&self, name: &InstanceName) -> Result<Vec<String>, ReadError<rusqlite::Error>> {
        self.reader.read(|db| {
            let mut select = db.prepare_cached(
                "SELECT step || ': ' || coalesce(outcome, 'open') FROM step
                 WHERE instance = ?1 ORDER BY id",
            )?;
            select.query_map([name.as_str()], |row| row.get(0))?.collect()
        })
    }

    /// Lets the journal grow to `pages` pages at most, as if the disk were full from then on.
    ///
    /// # Errors
    /// [`WriteFailure`].
    #[cfg(feature = "testing")]
    pub async fn limit_pages(&self, pages: i64) -> Result<(), WriteFailure> {
        let job = self.writer.submit(move |db| {
            // The answer is the limit that is in force; it is never below the present size.
            db.query_row(&format!("PRAGMA max_page_count = {pages}"), (), |row| {
                row.get::<_, i64>(0)
            })
            .map(|_limit| ())
        });
        outcome_of(job.await)
    }
}

fn add_instance(db: &Connection, name: &InstanceName, slot: Slot) -> rusqlite::Result<()> {
    db.prepare_cached("INSERT INTO instance (name, slot, record) VALUES (?1, ?2, ?3)")?
        .execute(params![name.as_str(), slot.number(), stored::encode(&Remembered::default())])
        .map(|_rows| ())
}

fn save(db: &Connection, name: &InstanceName, record: &str) -> rusqlite::Result<()> {
    db.prepare_cached("UPDATE instance SET record = ?2 WHERE name = ?1")?
        .execute(params![name.as_str(), record])
        .map(|_rows| ())
}

fn close_open_steps(db: &Connection, now: Timestamp) -> rusqlite::Result<u64> {
    let closed = db.execute(
        "UPDATE step SET outcome = 'interrupted', outcome_at = ?1 WHERE outcome IS NULL",
        [now.millis()],
    )?;
    Ok(u64::try_from(closed).unwrap_or(u64::MAX))
}

fn recover(db: &Connection, seal: &SealKey) -> Result<Recovered, Unreadable> {
    let row = db
        .query_row("SELECT epoch, generation, digest, sealed FROM desired_state", (), |row| {
            let digest: Vec<u8> = row.get(2)?;
            let sealed: Vec<u8> = row.get(3)?;
            Ok((row.get(0)?, row.get(1)?, digest, sealed))
        })
        .optional()?;
    let state = row
        .map(|(epoch, generation, digest, sealed)| {
            let digest =
                Digest::from_slice(&digest).ok_or(Unreadable::Digest { column: "digest" })?;
            let epoch = Epoch(stored::to_u64(epoch));
            let stamp = Stamp { epoch, generation: Generation(stored::to_u64(generation)), digest };
            Ok::<_, Unreadable>(PersistedState {
                stamp,
                bytes: seal.open(STATE_CONTEXT, &sealed).ok(),
            })
        })
        .transpose()?;
    let mut instances = BTreeMap::new();
    let mut select = db.prepare("SELECT name, slot, record FROM instance")?;
    let mut rows = select.query(())?;
    while let Some(row) = rows.next()? {
        let (name, slot, record): (String, u8, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let name = InstanceName::parse(&name).map_err(Unreadable::Name)?;
        let slot = Slot::new(slot).ok_or(Unreadable::Slot { slot })?;
        instances.insert(name, (slot, stored::decode(&record)?));
    }
    let mut notes = BTreeMap::new();
    for note in Note::ALL {
        let mut select = db.prepare_cached("SELECT value FROM note WHERE key = ?1")?;
        let value = select.query_row([note.key()], |row| row.get::<_, Vec<u8>>(0)).optional()?;
        notes.extend(value.map(|value| (note, value)));
    }
    let (versions, backup_notes) = (versions::recover(db, seal)?, versions::notes(db)?);
    Ok(Recovered { state, instances, interrupted: 0, notes, versions, backup_notes })
}

fn read_failed(error: ReadError<rusqlite::Error>) -> OpenFailure {
    OpenFailure::Read(match error {
        ReadError::Busy { connections } => ReadError::Busy { connections },
        ReadError::Query(source) => ReadError::Query(source.into()),
        ReadError::Begin(source) => ReadError::Begin(source),
    })
}

/// Tells a full disk from other failures.
pub(crate) fn outcome_of<T>(
    outcome: Result<T, WriteError<rusqlite::Error>>,
) -> Result<T, WriteFailure> {
    outcome.map_err(|error| {
        let source = match &error {
            WriteError::Job(source) => Some(source),
            WriteError::Commit(source) => Some(Arc::as_ref(source)),
            WriteError::Busy { .. } | WriteError::Panicked | WriteError::Stopped => None,
        };
        match source.and_then(rusqlite::Error::sqlite_error_code) {
            Some(rusqlite::ErrorCode::DiskFull) => WriteFailure::Full,
            _ => WriteFailure::Write(error),
        }
    })
}

#[cfg(test)]
mod tests;
