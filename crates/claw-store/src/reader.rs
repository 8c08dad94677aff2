//! Reading connections, shared by a bounded number of threads at a time.
//!
//! Reads block the calling thread. With WAL they neither wait for the writer nor hold it up; each
//! sees the one committed state that was current when it began.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::Connection;

/// How long [`Reader::read`] waits for a connection before it says [`ReadError::Busy`].
const WAIT: Duration = Duration::from_secs(5);

/// A handle on a pool of read-only connections; clones share the pool.
#[derive(Clone)]
pub struct Reader {
    pool: Arc<Pool>,
}

/// Why nothing was read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError<E> {
    /// Every connection stayed in use for 5 seconds.
    #[error("all {connections} reading connections are in use")]
    Busy {
        /// Size of the pool.
        connections: usize,
    },
    /// The closure itself returned an error.
    #[error(transparent)]
    Query(E),
    /// The read transaction could not begin or end.
    #[error("cannot begin reading")]
    Begin(#[source] rusqlite::Error),
}

impl Reader {
    pub(crate) fn new(connections: Vec<Connection>) -> Self {
        let size = connections.len();
        let pool = Pool { idle: Mutex::new(connections), returned: Condvar::new(), size };
        Self { pool: Arc::new(pool) }
    }

    /// Runs `query` in one read transaction: all its statements see the same state.
    ///
    /// Blocks: from async code, keep the query short or move the call to a blocking thread. A
    /// write inside `query` fails with SQLite's "attempt to write a readonly database".
    ///
    /// # Errors
    ///
    /// See [`ReadError`].
    pub fn read<T, E>(
        &self,
        query: impl FnOnce(&Connection) -> Result<T, E>,
    ) -> Result<T, ReadError<E>> {
        let lease = self.pool.lease();
        let Some(connection) = &lease.connection else {
            return Err(ReadError::Busy { connections: self.pool.size });
        };
        let reading = Reading::begin(connection).map_err(ReadError::Begin)?;
        let outcome = query(connection);
        reading.end().map_err(ReadError::Begin)?;
        outcome.map_err(ReadError::Query)
    }
}

/// A read transaction under way; ended also when the query panics. Its statements are prepared once per
/// connection, which rusqlite's own transactions do anew each time.
struct Reading<'connection> {
    connection: &'connection Connection,
}

impl<'connection> Reading<'connection> {
    fn begin(connection: &'connection Connection) -> rusqlite::Result<Self> {
        connection.prepare_cached("BEGIN DEFERRED")?.execute(())?;
        Ok(Self { connection })
    }

    fn end(self) -> rusqlite::Result<()> {
        // `drop` does nothing more once this has succeeded.
        self.connection.prepare_cached("COMMIT")?.execute(()).map(drop)
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        if !self.connection.is_autocommit() {
            // If it fails, the next BEGIN of this connection reports it.
            let _ended = self.connection.execute_batch("ROLLBACK");
        }
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Reader").field("connections", &self.pool.size).finish()
    }
}

struct Pool {
    idle: Mutex<Vec<Connection>>,
    returned: Condvar,
    size: usize,
}

impl Pool {
    fn lease(&self) -> Lease<'_> {
        let (mut idle, _timed_out) = self
            .returned
            .wait_timeout_while(self.lock(), WAIT, |idle| idle.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        Lease { pool: self, connection: idle.pop() }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection on loan, or none when the wait timed out; it goes back even after a panic.
struct Lease<'pool> {
    pool: &'pool Pool,
    connection: Option<Connection>,
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.pool.lock().push(connection);
            self.pool.returned.notify_one();
        }
    }
}
