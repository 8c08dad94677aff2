//! SQLite as a durable store: opens a file safely, migrates it, and commits in groups.
//!
//! What it is for: the coordinator's fleet database and the agent's journal. It owns everything
//! about SQLite that is the same for both: file permissions, pragmas, numbered migrations, the
//! refusal of a schema from a newer program, one writing thread and a few reading connections.
//!
//! What it deliberately does not do: it knows no table and no query, it has no runtime (its
//! futures are plain [`Future`]s and work under any executor), and it never retries a
//! job on its own.
//!
//! # Durability
//!
//! The file is in WAL mode with `synchronous=FULL`: when [`Pending`] resolves to `Ok`, the
//! transaction that holds the job's writes has been fsynced and survives a power cut. Until then
//! nothing may be assumed, and an error says that nothing of that job was kept.
//!
//! # Where to start
//!
//! [`Database::open`], then [`Database::reader`] and [`Database::writer`]:
//!
//! ```
//! use std::num::NonZeroUsize;
//! use claw_store::{Database, Migration, rusqlite};
//!
//! const MIGRATIONS: &[Migration] = &[Migration {
//!     version: 1,
//!     sql: "CREATE TABLE note (id INTEGER PRIMARY KEY, text TEXT NOT NULL) STRICT;",
//! }];
//!
//! let database = Database::open_in_memory(0x434c_4157, MIGRATIONS)?;
//! let reader = database.reader(NonZeroUsize::MIN)?;
//! let writer = database.writer("notes", NonZeroUsize::MIN)?;
//! let id = writer
//!     .submit(|db| -> rusqlite::Result<i64> {
//!         db.execute("INSERT INTO note (text) VALUES ('x')", ())?;
//!         Ok(db.last_insert_rowid())
//!     })
//!     .wait()?; // or `.await`
//! let text: String = reader
//!     .read(|db| db.query_row("SELECT text FROM note WHERE id = ?1", [id], |row| row.get(0)))?;
//! assert_eq!(text, "x");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod database;
mod migrate;
mod pending;
mod reader;
mod writer;

pub use database::{Database, OpenError};
pub use migrate::Migration;
pub use pending::{Pending, WriteError};
pub use reader::{ReadError, Reader};
/// The exact rusqlite that this crate's closures receive.
pub use rusqlite;
pub use writer::{StartError, Writer, WriterCounts};
