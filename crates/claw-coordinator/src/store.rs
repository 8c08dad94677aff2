//! The fleet database: rows, and transactions that carry their own audit entry.
//!
//! What it is for: everything that must survive a restart. One module per table; the SQL stays in
//! them. [`Store::mutate`] is the only way in which a caller of the API changes anything.
//!
//! What it does not do: decide. Which change is allowed is said in [`crate::fleet`].

pub mod audit;
pub mod certificates;
pub mod epoch;
pub mod escrow;
pub mod events;
pub mod host_state;
pub mod hosts;
pub mod instances;
pub mod migrations;
pub mod mutation;
pub mod requests;
pub mod revisions;
mod schema;
pub mod snapshots;
pub mod tokens;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use claw_core::tier::TierCatalogue;
use claw_identity::seal::{SealKey, SealKeyError};
use claw_store::rusqlite::{self, Connection, Row};
use claw_store::{Database, OpenError, Reader, StartError, Writer};

use crate::refusal::{Fault, Refusal};
use claw_core::time::Timestamp;
use tokio::sync::Semaphore;

/// Jobs that may wait for the writing thread; more are told to come back.
const QUEUE: usize = 8192;
/// Reading connections.
const READERS: usize = 4;

/// The open database with what is needed to read and write it.
#[derive(Debug, Clone)]
pub struct Store {
    writer: Writer,
    reader: Reader,
    /// As many longer queries at a time as leave a connection for short ones; the others wait without a thread.
    long: Arc<Semaphore>,
    keys: Arc<Keys>,
}

/// What rows cannot be made or read without.
#[derive(Debug)]
pub struct Keys {
    /// Seals secrets.
    pub seal: SealKey,
    /// The tiers that specs may name.
    pub tiers: TierCatalogue,
    /// Keeps digests of requests from being guessed by whoever reads the file.
    pub request_key: Vec<u8>,
}

/// Why the fleet's data could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Nothing has been initialised.
    #[error(
        "{} does not exist\nhint: make a fleet first: claw-coordinator init --name <dns name>",
        path.display()
    )]
    Absent {
        /// The database.
        path: PathBuf,
    },
    /// The database.
    #[error("cannot open the fleet database")]
    Open(#[from] OpenError),
    /// The writing thread.
    #[error("cannot start writing")]
    Start(#[from] StartError),
    /// The seal key.
    #[error("cannot use the seal key")]
    Seal(#[from] SealKeyError),
    /// A statement.
    #[error("cannot read the fleet database")]
    Read(#[from] rusqlite::Error),
    /// The high-water mark beside the database.
    #[error("cannot use {}", path.display())]
    HighWater {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// What is stored cannot be used.
    #[error("the fleet database cannot be used")]
    Contents(#[source] Box<Refusal>),
}

impl From<Refusal> for StoreError {
    fn from(refusal: Refusal) -> Self {
        Self::Contents(Box::new(refusal))
    }
}

/// Name of the database in the data directory.
pub const DATABASE: &str = "fleet.db";
/// Name of the seal key in the data directory.
pub const SEAL_KEY: &str = "seal.key";

impl Store {
    /// Opens the database of an initialised fleet.
    ///
    /// # Errors
    /// [`StoreError`]
    pub fn open(data_dir: &Path, tiers: TierCatalogue) -> Result<Self, StoreError> {
        let path = data_dir.join(DATABASE);
        if !path.exists() {
            return Err(StoreError::Absent { path });
        }
        let seal = SealKey::load_or_create(&data_dir.join(SEAL_KEY), &mut rand::rng())?;
        let mut database = Database::open(&path, schema::APPLICATION_ID, schema::MIGRATIONS)?;
        let request_key = epoch::request_key(database.connection(), &seal)?;
        let filling = database.connection().unchecked_transaction()?;
        revisions::fill(&filling)?;
        filling.commit()?;
        let reader = database.reader(NonZeroUsize::new(READERS).unwrap_or(NonZeroUsize::MIN))?;
        let queue = NonZeroUsize::new(QUEUE).unwrap_or(NonZeroUsize::MIN);
        let writer = database.writer("fleet-writer", queue)?;
        let keys = Arc::new(Keys { seal, tiers, request_key });
        Ok(Self { writer, reader, long: Arc::new(Semaphore::new(READERS / 2)), keys })
    }

    /// Makes the database and seal key of a new fleet.
    ///
    /// # Errors
    /// [`StoreError`]
    pub fn create(
        data_dir: &Path,
        server_names: &[String],
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let seal = SealKey::load_or_create(&data_dir.join(SEAL_KEY), &mut rand::rng())?;
        let path = data_dir.join(DATABASE);
        let mut database = Database::open(&path, schema::APPLICATION_ID, schema::MIGRATIONS)?;
        epoch::create(database.connection(), &seal, server_names, now)?;
        Ok(())
    }

    /// Runs a query in one read transaction. Blocks: keep it short.
    ///
    /// # Errors
    /// What the query returned, or that the database is overloaded.
    pub fn read<T>(
        &self,
        query: impl FnOnce(&Connection, &Keys) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        self.reader.read(|connection| query(connection, &self.keys)).map_err(Refusal::from)
    }

    /// Runs a longer query on a thread that may block.
    ///
    /// # Errors
    /// As [`Store::read`].
    pub async fn read_long<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Connection, &Keys) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let store = self.clone();
        // An error means that it was closed, which nobody does.
        let _permit = self.long.acquire().await.ok();
        tokio::task::spawn_blocking(move || store.read(query)).await.map_err(Fault::Task)?
    }

    /// Runs a change that no caller asked for; it is durable when this returns.
    ///
    /// # Errors
    /// What the job returned, or that the database is overloaded; nothing was changed then.
    pub async fn write<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Connection, &Keys) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let keys = Arc::clone(&self.keys);
        self.writer.submit(move |connection| job(connection, &keys)).await.map_err(Refusal::from)
    }

    /// The keys.
    #[must_use]
    pub fn keys(&self) -> &Arc<Keys> {
        &self.keys
    }

    pub(crate) fn writer(&self) -> &Writer {
        &self.writer
    }
}

/// A number as SQLite keeps it.
pub(crate) fn int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// A number that is not negative.
pub(crate) fn uint(row: &Row<'_>, column: &str) -> rusqlite::Result<u64> {
    let value: i64 = row.get(column)?;
    Ok(u64::try_from(value).unwrap_or(0))
}

/// A point in time.
pub(crate) fn time(row: &Row<'_>, column: &str) -> rusqlite::Result<Timestamp> {
    row.get(column).map(Timestamp::from_millis)
}

/// A point in time that may be absent.
pub(crate) fn time_or_none(row: &Row<'_>, column: &str) -> rusqlite::Result<Option<Timestamp>> {
    row.get::<_, Option<i64>>(column).map(|millis| millis.map(Timestamp::from_millis))
}

/// 128 random bits in hex: an id that is never used twice.
#[must_use]
pub fn random_id() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// Changes with every revision, and never the same for two resources of one name.
pub(crate) fn etag(uid: &str, revision: u64) -> String {
    let short: String = uid.chars().take(8).collect();
    format!("{short}.{revision}")
}
