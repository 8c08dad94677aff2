//! Opening: file mode, identity of the file, pragmas, integrity, migrations.
//!
//! Nothing is written to a file before it has been recognised as ours and not newer than this
//! program.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use crate::migrate::{self, Migration};
use crate::reader::Reader;
use crate::writer::{StartError, Writer};

/// How long a statement waits for a lock of another connection.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// The WAL file is cut back to this many bytes after a checkpoint.
const JOURNAL_SIZE_LIMIT: i64 = 16 * 1024 * 1024;
/// Statements that each connection keeps compiled; more than either program has.
const STATEMENT_CACHE: usize = 128;
/// The writer keeps the pages that it changes: without this (SQLite's default is 2 MB) a group of 512 jobs reads
/// its own pages back. In KiB, negative as the pragma wants it (<https://sqlite.org/pragma.html#pragma_cache_size>).
const WRITER_CACHE_KIB: i64 = -16 * 1024;
/// Pages of 4 KiB in the WAL before a commit copies them into the database: one group of large jobs fills
/// SQLite's default of 1000 several times over, and each copy is two more fsyncs. Equal to
/// [`JOURNAL_SIZE_LIMIT`].
const CHECKPOINT_PAGES: i64 = 4096;
/// Owner only; SQLite gives `-wal` and `-shm` the mode of the main file.
const FILE_MODE: u32 = 0o600;

/// An open, migrated database with its one writable connection.
#[derive(Debug)]
pub struct Database {
    connection: Connection,
    target: Target,
}

/// Why a database could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file could not be created or given mode 0600.
    #[error("cannot create {} with mode 0600", path.display())]
    Create {
        /// The database file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// SQLite could not open the file.
    #[error("cannot open database {}", path.display())]
    Open {
        /// The database file.
        path: PathBuf,
        /// What SQLite said.
        #[source]
        source: rusqlite::Error,
    },
    /// The header could not be read: usually the file is no SQLite database.
    #[error("cannot read database {}", path.display())]
    Read {
        /// The database file.
        path: PathBuf,
        /// What SQLite said.
        #[source]
        source: rusqlite::Error,
    },
    /// A pragma was refused.
    #[error("cannot configure database {}", path.display())]
    Configure {
        /// The database file.
        path: PathBuf,
        /// What SQLite said.
        #[source]
        source: rusqlite::Error,
    },
    /// The file belongs to another program.
    #[error(
        "{} belongs to another program: application id {found:#010x}, expected {expected:#010x}",
        path.display()
    )]
    Foreign {
        /// The database file.
        path: PathBuf,
        /// `PRAGMA application_id` of the file; 0 with tables in it is foreign as well.
        found: i32,
        /// What this program writes.
        expected: i32,
    },
    /// A newer program has migrated this file.
    #[error(
        "{} has schema version {found}, this program knows up to {newest}: install the newer \
         program again, or restore a copy from before the upgrade",
        path.display()
    )]
    NewerSchema {
        /// The database file.
        path: PathBuf,
        /// Schema version of the file.
        found: u32,
        /// Newest schema version that this program can read.
        newest: u32,
    },
    /// `PRAGMA user_version` is negative.
    #[error("{} has the impossible schema version {found}", path.display())]
    InvalidVersion {
        /// The database file.
        path: PathBuf,
        /// What the file says.
        found: i64,
    },
    /// `PRAGMA quick_check` found damage.
    #[error("{} is damaged: {finding}", path.display())]
    Damaged {
        /// The database file.
        path: PathBuf,
        /// First finding of SQLite.
        finding: String,
    },
    /// The list of migrations in this program is wrong.
    #[error("migration {found} stands where {expected} is expected")]
    MigrationOrder {
        /// The number that comes next.
        expected: u32,
        /// The number that was listed.
        found: u32,
    },
    /// A migration failed; the file is still at the version before it.
    #[error("cannot migrate {} to schema version {version}", path.display())]
    Migrate {
        /// The database file.
        path: PathBuf,
        /// The version that was not reached.
        version: u32,
        /// What SQLite said.
        #[source]
        source: rusqlite::Error,
    },
    /// A migration left a row without the row it refers to; it was rolled back.
    #[error("schema version {version} of {} would break references of table {table}", path.display())]
    BrokenReference {
        /// The database file.
        path: PathBuf,
        /// The version that was not reached.
        version: u32,
        /// The table with the dangling row.
        table: String,
    },
}

impl Database {
    /// Opens `path`, creates it (mode 0600) when absent, and migrates it to the newest version.
    ///
    /// The directory must exist. `application_id` is written into the header of a new file and
    /// demanded of an existing one. `PRAGMA quick_check` reads the whole file, about 1 s per GB
    /// from the page cache.
    ///
    /// # Errors
    ///
    /// See [`OpenError`]; a file that is foreign, newer or damaged is left as it was.
    pub fn open(
        path: impl AsRef<Path>,
        application_id: i32,
        migrations: &[Migration],
    ) -> Result<Self, OpenError> {
        let path = path.as_ref();
        create_private(path)
            .map_err(|source| OpenError::Create { path: path.to_owned(), source })?;
        Self::prepare(Target::File(path.to_owned()), application_id, migrations)
    }

    /// A private database in memory, gone with its last connection; for tests of what is built on
    /// this crate. It behaves like a file except for durability: readers and the writer exclude
    /// each other, because there is no WAL.
    ///
    /// # Errors
    ///
    /// See [`OpenError`].
    pub fn open_in_memory(
        application_id: i32,
        migrations: &[Migration],
    ) -> Result<Self, OpenError> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        // A name with a leading slash is shared within the process:
        // https://sqlite.org/src/file/src/memdb.c
        let uri = format!("file:/claw-{}-{number}?vfs=memdb", process::id());
        Self::prepare(Target::Memory(uri), application_id, migrations)
    }

    /// The writable connection, for programs that need no writing thread.
    #[must_use]
    pub fn connection(&mut self) -> &mut Connection {
        &mut self.connection
    }

    /// `connections` read-only connections to the same database.
    ///
    /// # Errors
    ///
    /// [`OpenError::Open`] or [`OpenError::Configure`].
    pub fn reader(&self, connections: NonZeroUsize) -> Result<Reader, OpenError> {
        (0..connections.get())
            .map(|_index| {
                let connection = self.target.open(OpenFlags::SQLITE_OPEN_READ_ONLY)?;
                configure_any(&connection).map_err(|source| self.target.refused(source))?;
                Ok(connection)
            })
            .collect::<Result<Vec<_>, OpenError>>()
            .map(Reader::new)
    }

    /// Hands the writable connection to a thread called `thread_name` (Linux shows 15 bytes) that
    /// commits in groups; at most `queue` jobs wait.
    ///
    /// # Errors
    ///
    /// [`StartError`] when the thread cannot be started.
    pub fn writer(self, thread_name: &str, queue: NonZeroUsize) -> Result<Writer, StartError> {
        Writer::start(self.connection, thread_name, queue)
    }

    fn prepare(
        target: Target,
        application_id: i32,
        migrations: &[Migration],
    ) -> Result<Self, OpenError> {
        let newest = migrate::newest(migrations)?;
        let mut connection = target.open(OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        configure_any(&connection).map_err(|source| target.refused(source))?;
        let path = target.path();
        let state = recognise(&connection, application_id, path)?;
        let found = migrate::version(&connection, path)?;
        if found > newest {
            return Err(OpenError::NewerSchema { path: path.to_owned(), found, newest });
        }
        if state == Contents::Ours {
            quick_check(&connection, path)?;
        }
        configure_writer(&connection, application_id).map_err(|source| target.refused(source))?;
        migrate::apply(&mut connection, migrations, path)?;
        connection
            .pragma_update(None, "foreign_keys", true)
            .map_err(|source| target.refused(source))?;
        Ok(Self { connection, target })
    }
}

/// What can be connected to again.
#[derive(Debug)]
enum Target {
    File(PathBuf),
    Memory(String),
}

impl Target {
    fn path(&self) -> &Path {
        match self {
            Self::File(path) => path,
            Self::Memory(_) => Path::new(":memory:"),
        }
    }

    fn open(&self, access: OpenFlags) -> Result<Connection, OpenError> {
        // Each connection is used by one thread at a time: no mutex of SQLite's own.
        let flags = OpenFlags::SQLITE_OPEN_NO_MUTEX;
        match self {
            Self::File(path) => Connection::open_with_flags(path, flags | access),
            Self::Memory(uri) => Connection::open_with_flags(
                uri,
                flags
                    | OpenFlags::SQLITE_OPEN_URI
                    | OpenFlags::SQLITE_OPEN_READ_WRITE
                    | OpenFlags::SQLITE_OPEN_CREATE,
            )
            .and_then(|connection| {
                if access == OpenFlags::SQLITE_OPEN_READ_ONLY {
                    connection.pragma_update(None, "query_only", true)?;
                }
                Ok(connection)
            }),
        }
        .map_err(|source| OpenError::Open { path: self.path().to_owned(), source })
    }

    fn refused(&self, source: rusqlite::Error) -> OpenError {
        OpenError::Configure { path: self.path().to_owned(), source }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Contents {
    Empty,
    Ours,
}

/// Creates the file when absent, makes the name durable, and closes it to everybody else.
fn create_private(path: &Path) -> io::Result<()> {
    let created =
        OpenOptions::new().read(true).write(true).create_new(true).mode(FILE_MODE).open(path);
    match created {
        Ok(file) => {
            file.sync_all()?;
            let directory = match path.parent() {
                Some(parent) if !parent.as_os_str().is_empty() => parent,
                _ => Path::new("."),
            };
            File::open(directory)?.sync_all()
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::set_permissions(path, Permissions::from_mode(FILE_MODE))
        }
        Err(error) => Err(error),
    }
}

/// Settings that every connection needs and that write nothing.
fn configure_any(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(STATEMENT_CACHE);
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    // Plans follow from the schema alone. Without it a statement with ORDER BY is compiled again whenever a
    // bound value changes, which took a third of the writer's time (measured; SQLite 3.54, STAT4).
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    connection.pragma_update(None, "trusted_schema", false)
}

fn recognise(connection: &Connection, expected: i32, path: &Path) -> Result<Contents, OpenError> {
    let unreadable = |source| OpenError::Read { path: path.to_owned(), source };
    let found: i32 = connection
        .pragma_query_value(None, "application_id", |row| row.get(0))
        .map_err(unreadable)?;
    let objects: i64 = connection
        .query_row("SELECT count(*) FROM sqlite_schema", (), |row| row.get(0))
        .map_err(unreadable)?;
    if found == expected {
        return Ok(Contents::Ours);
    }
    if found == 0 && objects == 0 {
        return Ok(Contents::Empty);
    }
    Err(OpenError::Foreign { path: path.to_owned(), found, expected })
}

fn quick_check(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    let finding: String = connection
        .query_row("PRAGMA quick_check(1)", (), |row| row.get(0))
        .map_err(|source| OpenError::Read { path: path.to_owned(), source })?;
    if finding == "ok" {
        return Ok(());
    }
    Err(OpenError::Damaged { path: path.to_owned(), finding })
}

fn configure_writer(connection: &Connection, application_id: i32) -> rusqlite::Result<()> {
    // Off while migrating, on before anyone else sees the connection.
    connection.pragma_update(None, "foreign_keys", false)?;
    connection
        .pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get::<_, String>(0))?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "cache_size", WRITER_CACHE_KIB)?;
    // Savepoints keep what they may have to undo; beyond 64 KiB that would go to a file.
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.pragma_update_and_check(None, "wal_autocheckpoint", CHECKPOINT_PAGES, |row| {
        row.get::<_, i64>(0)
    })?;
    connection.pragma_update_and_check(None, "journal_size_limit", JOURNAL_SIZE_LIMIT, |row| {
        row.get::<_, i64>(0)
    })?;
    connection.pragma_update(None, "application_id", application_id)
}
