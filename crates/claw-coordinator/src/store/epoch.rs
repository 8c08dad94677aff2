//! What is known of the database as a whole, and how a restored copy is recognised.
//!
//! A file beside the database holds how often the coordinator was started and how many audit
//! entries there were. A database that knows less than the file was restored from a copy: every
//! host's epoch rises, so that no agent can take an old state for a new one. What this misses, an
//! agent's greeting shows (see [`crate::fleet::epoch`]).

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

use claw_core::time::Timestamp;
use claw_identity::seal::SealKey;
use claw_store::rusqlite::{Connection, named_params};

use super::{Store, StoreError};
use crate::refusal::{Fault, Refusal};

/// Name of the high-water file in the data directory.
pub const HIGH_WATER: &str = "high-water";
/// What the request key is sealed for.
const REQUEST_KEY: &[u8] = b"meta/request-key";

/// How far the database has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HighWater {
    /// Starts of the coordinator.
    pub starts: i64,
    /// Number of the newest audit entry.
    pub audit: i64,
}

pub(super) fn create(
    connection: &Connection,
    seal: &SealKey,
    server_names: &[String],
    now: Timestamp,
) -> Result<(), Refusal> {
    let rng = &mut rand::rng();
    let key: [u8; 32] = rand::random();
    let sealed = seal.seal(REQUEST_KEY, &key, rng).map_err(Fault::Seal)?;
    connection.execute(
        "INSERT INTO meta (id, epoch, starts, created_ms, server_names, request_key, state_format)
         VALUES (1, 1, 0, :now, :names, :key, '')",
        named_params! { ":now": now.millis(), ":names": server_names.join("\n"), ":key": sealed },
    )?;
    Ok(())
}

pub(super) fn request_key(connection: &Connection, seal: &SealKey) -> Result<Vec<u8>, Refusal> {
    let sealed: Vec<u8> =
        connection.query_row("SELECT request_key FROM meta", (), |row| row.get(0))?;
    let opened = seal.open(REQUEST_KEY, &sealed).map_err(|source| Fault::Sealed {
        what: "the fleet; is seal.key its own?".into(),
        source,
    })?;
    Ok(opened.to_vec())
}

/// Names of the server's certificate, as given to `init`.
///
/// # Errors
/// [`Refusal`]
pub fn server_names(connection: &Connection) -> Result<Vec<String>, Refusal> {
    let names: String =
        connection.query_row("SELECT server_names FROM meta", (), |row| row.get(0))?;
    Ok(names.lines().map(str::to_owned).collect())
}

/// Epoch of hosts that are registered from now on.
pub(crate) fn current(connection: &Connection) -> Result<u64, Refusal> {
    let epoch: i64 = connection.query_row("SELECT epoch FROM meta", (), |row| row.get(0))?;
    Ok(u64::try_from(epoch).unwrap_or(1))
}

/// Counts a start; raises every epoch when the database knows less than `seen`.
///
/// # Errors
/// [`Refusal`]
pub fn start(connection: &Connection, seen: Option<HighWater>) -> Result<Started, Refusal> {
    let known = high_water(connection)?;
    let restored = seen.is_some_and(|seen| seen.starts > known.starts || seen.audit > known.audit);
    let starts = known.starts.max(seen.unwrap_or_default().starts).saturating_add(1);
    connection.execute("UPDATE meta SET starts = ?1", [starts])?;
    if restored {
        connection.execute("UPDATE meta SET epoch = epoch + 1", ())?;
        connection.execute("UPDATE host SET epoch = epoch + 1", ())?;
    }
    Ok(Started { restored, high_water: high_water(connection)? })
}

/// What a start found.
#[derive(Debug, Clone, Copy)]
pub struct Started {
    /// The database was restored from an older copy.
    pub restored: bool,
    /// How far it has come.
    pub high_water: HighWater,
}

/// How far the database has come.
///
/// # Errors
/// [`Refusal`]
pub fn high_water(connection: &Connection) -> Result<HighWater, Refusal> {
    let starts = connection.query_row("SELECT starts FROM meta", (), |row| row.get(0))?;
    let audit =
        connection.query_row("SELECT coalesce(max(id), 0) FROM audit", (), |row| row.get(0))?;
    Ok(HighWater { starts, audit })
}

/// Version of the form in which host states are encoded; see [`super::host_state`].
pub(super) fn state_format(connection: &Connection) -> Result<String, Refusal> {
    Ok(connection.query_row("SELECT state_format FROM meta", (), |row| row.get(0))?)
}

pub(super) fn set_state_format(connection: &Connection, format: &str) -> Result<(), Refusal> {
    connection.execute("UPDATE meta SET state_format = ?1", [format])?;
    Ok(())
}

impl HighWater {
    /// Reads the file; `None` when there is none.
    ///
    /// # Errors
    /// [`StoreError::HighWater`]
    pub fn load(data_dir: &Path) -> Result<Option<Self>, StoreError> {
        let path = data_dir.join(HIGH_WATER);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(StoreError::HighWater { path, source }),
        };
        let value = |key: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
                .and_then(|value| value.parse().ok())
        };
        match (value("starts"), value("audit")) {
            (Some(starts), Some(audit)) => Ok(Some(Self { starts, audit })),
            _ => {
                let source = io::Error::new(io::ErrorKind::InvalidData, "not a high-water file");
                Err(StoreError::HighWater { path, source })
            }
        }
    }

    /// Replaces the file, durably.
    ///
    /// # Errors
    /// [`StoreError::HighWater`]
    pub fn save(&self, data_dir: &Path) -> Result<(), StoreError> {
        let path = data_dir.join(HIGH_WATER);
        let next = data_dir.join(format!("{HIGH_WATER}.next"));
        let write = || {
            let mut file = fs::File::create(&next)?;
            writeln!(file, "starts={}\naudit={}", self.starts, self.audit)?;
            file.sync_all()?;
            fs::rename(&next, &path)?;
            fs::File::open(data_dir)?.sync_all()
        };
        write().map_err(|source| StoreError::HighWater { path: path.clone(), source })
    }
}

impl Store {
    /// How far the database has come.
    ///
    /// # Errors
    /// [`Refusal`]
    pub fn high_water(&self) -> Result<HighWater, Refusal> {
        self.read(|connection, _keys| high_water(connection))
    }
}
