//! What users of the store rely on, tried on real files.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its fixtures too")]

use std::fs;
use std::num::NonZeroUsize;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;

use claw_store::rusqlite::{self, Connection};
use claw_store::{Database, Migration, OpenError, Pending, ReadError, WriteError, Writer};
use tempfile::TempDir;

const APPLICATION: i32 = 0x434c_4157;

const MIGRATIONS: &[Migration] = &[
    Migration {
        version: 1,
        sql: "CREATE TABLE item (id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE) STRICT;",
    },
    Migration {
        version: 2,
        sql: "CREATE TABLE part (
                  item INTEGER NOT NULL REFERENCES item (id),
                  late INTEGER REFERENCES item (id) DEFERRABLE INITIALLY DEFERRED
              ) STRICT;",
    },
];

struct Fixture {
    directory: TempDir,
}

impl Fixture {
    fn new() -> Self {
        Self { directory: TempDir::new().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("store.db")
    }

    fn open(&self) -> Database {
        Database::open(self.path(), APPLICATION, MIGRATIONS).unwrap()
    }

    fn writer(&self, queue: usize) -> Writer {
        self.open().writer("store-writer", NonZeroUsize::new(queue).unwrap()).unwrap()
    }
}

fn insert(writer: &Writer, text: &str) -> Pending<usize, rusqlite::Error> {
    let text = text.to_owned();
    writer.submit(move |db| db.execute("INSERT INTO item (text) VALUES (?1)", [text]))
}

fn texts(db: &Connection) -> rusqlite::Result<Vec<String>> {
    db.prepare("SELECT text FROM item ORDER BY id")?.query_map((), |row| row.get(0))?.collect()
}

fn texts_in(path: &Path) -> Vec<String> {
    texts(Database::open(path, APPLICATION, MIGRATIONS).unwrap().connection()).unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// Holds the writing thread inside a job until told, so that what follows queues up behind it.
struct Gate {
    release: Sender<()>,
    blocked: Pending<(), rusqlite::Error>,
}

impl Gate {
    fn close(writer: &Writer) -> Self {
        let (entered, has_entered) = channel();
        let (release, released): (Sender<()>, Receiver<()>) = channel();
        let blocked = writer.submit(move |_db| {
            entered.send(()).unwrap();
            released.recv().unwrap();
            Ok(())
        });
        has_entered.recv().unwrap();
        Self { release, blocked }
    }

    fn open(self) {
        self.release.send(()).unwrap();
        self.blocked.wait().unwrap();
    }
}

/// A tiny executor: proves that the future wakes without any runtime.
fn block_on<F: Future>(future: F) -> F::Output {
    #[derive(Default)]
    struct Bell {
        rung: Mutex<bool>,
        sound: Condvar,
    }
    impl Wake for Bell {
        fn wake(self: Arc<Self>) {
            *self.rung.lock().unwrap() = true;
            self.sound.notify_all();
        }
    }
    let bell = Arc::new(Bell::default());
    let waker = Waker::from(Arc::clone(&bell));
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        let rung = bell.rung.lock().unwrap();
        *bell.sound.wait_while(rung, |rung| !*rung).unwrap() = false;
    }
}

#[test]
fn new_file_is_private_and_durable_by_configuration() {
    let fixture = Fixture::new();
    let mut database = fixture.open();
    let db = database.connection();
    let pragma =
        |name: &str| db.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(pragma("synchronous"), 2);
    assert_eq!(pragma("foreign_keys"), 1);
    assert_eq!(pragma("trusted_schema"), 0);
    assert_eq!(pragma("user_version"), 2);
    assert_eq!(pragma("application_id"), i64::from(APPLICATION));
    assert_eq!(pragma("busy_timeout"), 5000);
    assert_eq!(pragma("journal_size_limit"), 16 * 1024 * 1024);
    let journal: String = db.pragma_query_value(None, "journal_mode", |row| row.get(0)).unwrap();
    assert_eq!(journal, "wal");
    for file in ["store.db", "store.db-wal", "store.db-shm"] {
        assert_eq!(mode(&fixture.directory.path().join(file)), 0o600, "{file}");
    }
}

#[test]
fn loose_file_mode_is_closed() {
    let fixture = Fixture::new();
    drop(fixture.open());
    fs::set_permissions(fixture.path(), fs::Permissions::from_mode(0o644)).unwrap();
    drop(fixture.open());
    assert_eq!(mode(&fixture.path()), 0o600);
}

#[test]
fn newer_schema_is_refused_untouched() {
    let fixture = Fixture::new();
    drop(fixture.open());
    let before = fs::read(fixture.path()).unwrap();
    let refused = Database::open(fixture.path(), APPLICATION, &MIGRATIONS[..1]);
    let error = refused.unwrap_err();
    assert!(matches!(error, OpenError::NewerSchema { found: 2, newest: 1, .. }), "{error}");
    assert!(error.to_string().contains("has schema version 2, this program knows up to 1"));
    assert_eq!(fs::read(fixture.path()).unwrap(), before);
}

#[test]
fn foreign_files_are_refused_untouched() {
    let fixture = Fixture::new();
    drop(fixture.open());
    let error = Database::open(fixture.path(), 7, MIGRATIONS).unwrap_err();
    assert!(matches!(error, OpenError::Foreign { found: APPLICATION, expected: 7, .. }), "{error}");

    let unmarked = fixture.directory.path().join("unmarked.db");
    Connection::open(&unmarked).unwrap().execute_batch("CREATE TABLE x (y);").unwrap();
    let before = fs::read(&unmarked).unwrap();
    let error = Database::open(&unmarked, APPLICATION, MIGRATIONS).unwrap_err();
    assert!(matches!(error, OpenError::Foreign { found: 0, .. }), "{error}");
    assert_eq!(fs::read(&unmarked).unwrap(), before);

    let text = fixture.directory.path().join("text");
    fs::write(&text, "not a database, but long enough to look like a header\n".repeat(100))
        .unwrap();
    let error = Database::open(&text, APPLICATION, MIGRATIONS).unwrap_err();
    assert!(matches!(error, OpenError::Read { .. }), "{error}");
}

#[test]
fn damage_is_found_at_open() {
    let fixture = Fixture::new();
    let mut database = fixture.open();
    for number in 0..2000 {
        database
            .connection()
            .execute("INSERT INTO item (text) VALUES (?1)", [format!("{number:0>200}")])
            .unwrap();
    }
    drop(database);
    let mut bytes = fs::read(fixture.path()).unwrap();
    let middle = bytes.len() / 2 / 4096 * 4096;
    bytes[middle..middle + 4096].fill(0xa5);
    fs::write(fixture.path(), bytes).unwrap();
    let error = Database::open(fixture.path(), APPLICATION, MIGRATIONS).unwrap_err();
    assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
}

#[test]
fn migrations_apply_once_and_in_order() {
    let fixture = Fixture::new();
    drop(Database::open(fixture.path(), APPLICATION, &MIGRATIONS[..1]).unwrap());
    let mut database = fixture.open();
    database.connection().execute("INSERT INTO item (text) VALUES ('kept')", ()).unwrap();
    drop(database);
    assert_eq!(texts_in(&fixture.path()), ["kept"]);

    let gap = [MIGRATIONS[0], Migration { version: 3, sql: "" }];
    let error = Database::open_in_memory(APPLICATION, &gap).unwrap_err();
    assert!(matches!(error, OpenError::MigrationOrder { expected: 2, found: 3 }), "{error}");
}

#[test]
fn failed_migration_leaves_the_version_before_it() {
    let fixture = Fixture::new();
    drop(fixture.open());
    let half =
        Migration { version: 3, sql: "CREATE TABLE third (x); INSERT INTO nowhere VALUES (1);" };
    let error =
        Database::open(fixture.path(), APPLICATION, &[MIGRATIONS, &[half]].concat()).unwrap_err();
    assert!(matches!(error, OpenError::Migrate { version: 3, .. }), "{error}");
    let dangling = Migration { version: 3, sql: "INSERT INTO part (item) VALUES (99);" };
    let error = Database::open(fixture.path(), APPLICATION, &[MIGRATIONS, &[dangling]].concat())
        .unwrap_err();
    assert!(matches!(error, OpenError::BrokenReference { version: 3, .. }), "{error}");

    let mut database = fixture.open();
    let count = |sql: &str| database.connection().query_row(sql, (), |row| row.get::<_, i64>(0));
    let mut count = count;
    assert_eq!(count("SELECT count(*) FROM sqlite_schema WHERE name = 'third'").unwrap(), 0);
    assert_eq!(count("SELECT count(*) FROM part").unwrap(), 0);
}

#[test]
fn foreign_keys_hold_for_jobs() {
    let fixture = Fixture::new();
    let writer = fixture.writer(4);
    let refused = writer.submit(|db| db.execute("INSERT INTO part (item) VALUES (99)", ())).wait();
    assert!(matches!(refused, Err(WriteError::Job(rusqlite::Error::SqliteFailure(..)))));
}

#[test]
fn jobs_that_wait_together_share_one_commit() {
    let fixture = Fixture::new();
    let writer = fixture.writer(64);
    let gate = Gate::close(&writer);
    let waiting: Vec<_> = (0..50).map(|number| insert(&writer, &number.to_string())).collect();
    let before = writer.counts();
    gate.open();
    for pending in waiting {
        assert_eq!(pending.wait().unwrap(), 1);
    }
    let after = writer.counts();
    // The gate's own batch, then one for all fifty.
    assert_eq!(after.commits - before.commits, 2);
    assert_eq!(after.jobs - before.jobs, 51);
    drop(writer);
    assert_eq!(texts_in(&fixture.path()).len(), 50);
}

#[test]
fn failing_job_undoes_only_itself() {
    #[derive(Debug, PartialEq)]
    struct Refused;

    let fixture = Fixture::new();
    let writer = fixture.writer(8);
    let gate = Gate::close(&writer);
    let first = insert(&writer, "first");
    let refused = writer.submit(|db| -> Result<(), Refused> {
        db.execute("INSERT INTO item (text) VALUES ('undone')", ()).unwrap();
        Err(Refused)
    });
    let duplicate = insert(&writer, "first");
    let panicking = writer.submit(|db| -> Result<(), Refused> {
        db.execute("INSERT INTO item (text) VALUES ('panicked')", ()).unwrap();
        panic!("this job panics on purpose")
    });
    let last = writer.submit(|db| {
        // It sees what came before it in the same transaction.
        let seen = texts(db)?;
        db.execute("INSERT INTO item (text) VALUES ('last')", ())?;
        Ok::<_, rusqlite::Error>(seen)
    });
    gate.open();
    assert_eq!(first.wait(), Ok(1));
    assert_eq!(refused.wait(), Err(WriteError::Job(Refused)));
    assert!(matches!(duplicate.wait(), Err(WriteError::Job(rusqlite::Error::SqliteFailure(..)))));
    assert_eq!(panicking.wait(), Err(WriteError::Panicked));
    assert_eq!(last.wait().unwrap(), ["first"]);
    drop(writer);
    assert_eq!(texts_in(&fixture.path()), ["first", "last"]);
}

#[test]
fn failed_commit_is_told_to_every_job_and_the_thread_survives() {
    let fixture = Fixture::new();
    let writer = fixture.writer(8);
    insert(&writer, "before").wait().unwrap();
    let gate = Gate::close(&writer);
    let innocent = insert(&writer, "innocent");
    let guilty = writer.submit(|db| db.execute("INSERT INTO part (item, late) VALUES (1, 99)", ()));
    let own_error = insert(&writer, "before");
    gate.open();
    assert!(matches!(innocent.wait(), Err(WriteError::Commit(_))));
    assert!(matches!(guilty.wait(), Err(WriteError::Commit(_))));
    assert!(matches!(own_error.wait(), Err(WriteError::Job(_))));
    assert_eq!(insert(&writer, "after").wait(), Ok(1));
    drop(writer);
    assert_eq!(texts_in(&fixture.path()), ["before", "after"]);
}

#[test]
fn full_disk_loses_nothing_that_was_confirmed() {
    let fixture = Fixture::new();
    let writer = fixture.writer(64);
    let limit = |pages: i64| {
        writer
            .submit(move |db| {
                db.pragma_update_and_check(None, "max_page_count", pages, |row| {
                    row.get::<_, i64>(0)
                })
            })
            .wait()
            .unwrap()
    };
    let pages_now = limit(1);
    limit(pages_now + 20);
    let big = "x".repeat(3000);
    let mut confirmed = Vec::new();
    let mut refused = 0;
    for round in 0..10 {
        let texts: Vec<String> = (0..5).map(|index| format!("{round}-{index}-{big}")).collect();
        let gate = Gate::close(&writer);
        let batch: Vec<_> = texts.iter().map(|text| insert(&writer, text)).collect();
        gate.open();
        for (text, pending) in texts.into_iter().zip(batch) {
            match pending.wait() {
                Ok(_rows) => confirmed.push(text),
                Err(WriteError::Job(_) | WriteError::Commit(_)) => refused += 1,
                Err(other) => panic!("{other}"),
            }
        }
    }
    assert!(!confirmed.is_empty() && refused > 0, "{} and {refused}", confirmed.len());
    limit(1_000_000);
    insert(&writer, "room again").wait().unwrap();
    confirmed.push("room again".to_owned());
    drop(writer);
    assert_eq!(texts_in(&fixture.path()), confirmed);
}

#[test]
fn full_queue_is_busy_at_once() {
    let fixture = Fixture::new();
    let writer = fixture.writer(2);
    let gate = Gate::close(&writer);
    let queued = [insert(&writer, "one"), insert(&writer, "two")];
    assert_eq!(insert(&writer, "three").wait(), Err(WriteError::Busy { capacity: 2 }));
    gate.open();
    for pending in queued {
        pending.wait().unwrap();
    }
    insert(&writer, "four").wait().unwrap();
    drop(writer);
    assert_eq!(texts_in(&fixture.path()), ["one", "two", "four"]);
}

#[test]
fn awaits_without_a_runtime() {
    let fixture = Fixture::new();
    let writer = fixture.writer(4);
    // Polled before it is answered, so that only the waker can end it.
    let gate = Gate::close(&writer);
    let pending = insert(&writer, "awaited");
    let waiter = thread::spawn(move || block_on(pending));
    gate.open();
    assert_eq!(waiter.join().unwrap(), Ok(1));
    assert_eq!(block_on(insert(&writer, "again")), Ok(1));
}

#[test]
fn dropped_answer_and_dropped_handle_still_commit() {
    let fixture = Fixture::new();
    let writer = fixture.writer(4);
    let gate = Gate::close(&writer);
    drop(insert(&writer, "nobody listens"));
    let late = insert(&writer, "late");
    let last_handle = thread::spawn(move || drop(writer));
    gate.open();
    last_handle.join().unwrap();
    assert_eq!(late.wait(), Ok(1));
    assert_eq!(texts_in(&fixture.path()), ["nobody listens", "late"]);
}

/// A power cut keeps what was synced and nothing else: the files are copied while the writer is
/// alive, before any checkpoint, and opened elsewhere.
#[test]
fn confirmed_writes_survive_a_crash_without_checkpoint() {
    let fixture = Fixture::new();
    let writer = fixture.writer(4);
    for number in 0..20 {
        insert(&writer, &format!("{number:02}")).wait().unwrap();
    }
    let crashed = fixture.directory.path().join("crashed.db");
    let crashed_wal = fixture.directory.path().join("crashed.db-wal");
    fs::copy(fixture.path(), &crashed).unwrap();
    fs::copy(fixture.directory.path().join("store.db-wal"), &crashed_wal).unwrap();
    let intact: Vec<String> = (0..20).map(|number| format!("{number:02}")).collect();

    // A torn tail: the last transaction goes as a whole, the others stay.
    let torn = fixture.directory.path().join("torn.db");
    let torn_wal = fixture.directory.path().join("torn.db-wal");
    fs::copy(&crashed, &torn).unwrap();
    let wal = fs::read(&crashed_wal).unwrap();
    fs::write(&torn_wal, &wal[..wal.len() - 100]).unwrap();

    assert_eq!(texts_in(&crashed), intact);
    assert_eq!(texts_in(&torn), intact[..19]);
}

#[test]
fn reader_sees_one_state_and_cannot_write() {
    let fixture = Fixture::new();
    let database = fixture.open();
    let reader = database.reader(NonZeroUsize::new(2).unwrap()).unwrap();
    let writer = database.writer("store-writer", NonZeroUsize::new(4).unwrap()).unwrap();
    insert(&writer, "one").wait().unwrap();
    let (before, during) = reader
        .read(|db| {
            let before = texts(db)?;
            insert(&writer, "two").wait().unwrap();
            Ok::<_, rusqlite::Error>((before, texts(db)?))
        })
        .unwrap();
    assert_eq!(before, ["one"]);
    assert_eq!(during, ["one"]);
    assert_eq!(reader.read(texts).unwrap(), ["one", "two"]);

    let refused = reader.read(|db| db.execute("DELETE FROM item", ()));
    let Err(ReadError::Query(error)) = refused else { panic!("a reader wrote") };
    assert_eq!(error.sqlite_error_code(), Some(rusqlite::ErrorCode::ReadOnly));
}

#[test]
fn reader_survives_a_panic_and_lends_to_as_many_as_it_has() {
    let database = Database::open_in_memory(APPLICATION, MIGRATIONS).unwrap();
    let reader = database.reader(NonZeroUsize::MIN).unwrap();
    let other = reader.clone();
    let panicked = thread::spawn(move || {
        other.read(|_db| -> rusqlite::Result<()> { panic!("this query panics on purpose") })
    });
    assert!(panicked.join().is_err());
    assert!(reader.read(texts).unwrap().is_empty());
    let nested = reader.read(|_outer| {
        Ok::<_, rusqlite::Error>(matches!(
            reader.read(texts),
            Err(ReadError::Busy { connections: 1 })
        ))
    });
    assert!(nested.unwrap());
}

#[test]
fn memory_databases_are_shared_with_their_readers_only() {
    let database = Database::open_in_memory(APPLICATION, MIGRATIONS).unwrap();
    let stranger = Database::open_in_memory(APPLICATION, MIGRATIONS).unwrap();
    let reader = database.reader(NonZeroUsize::MIN).unwrap();
    let elsewhere = stranger.reader(NonZeroUsize::MIN).unwrap();
    let writer = database.writer("store-writer", NonZeroUsize::new(4).unwrap()).unwrap();
    insert(&writer, "here").wait().unwrap();
    assert_eq!(reader.read(texts).unwrap(), ["here"]);
    assert!(elsewhere.read(texts).unwrap().is_empty());
    assert!(matches!(
        reader.read(|db| db.execute("DELETE FROM item", ())),
        Err(ReadError::Query(_))
    ));
}
