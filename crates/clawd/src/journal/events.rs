//! The ring of events: sequence numbers without gaps, the oldest forgotten first.
//!
//! An event gets its number in the transaction that stores it, so a number that was ever shown to
//! the coordinator is never given to another event. What cannot be stored (full disk) waits in
//! memory, bounded, and is stored with the next one.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use claw_core::event::{Event, EventKind, Severity};
use claw_core::name::InstanceName;
use claw_core::time::Timestamp;
use claw_store::rusqlite::{self, Connection, Row, params};
use claw_store::{ReadError, Reader, Writer};
use tokio::sync::watch;

use super::stored::{to_i64, to_u64};

/// Events that are kept on disk.
const MAX_EVENTS: i64 = 4096;
/// Events that wait in memory while the disk is full; further ones are lost, before they get a
/// number.
const MAX_UNSAVED: usize = 256;
/// Longest message that is kept.
const MAX_MESSAGE: usize = 1000;

/// Something that happened, before it has a number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEvent {
    /// When.
    pub at: Timestamp,
    /// The instance concerned, if one is.
    pub instance: Option<InstanceName>,
    /// What kind of thing.
    pub kind: EventKind,
    /// How much it matters.
    pub severity: Severity,
    /// One sentence for a person; never holds a secret.
    pub message: String,
}

/// Which events there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventRange {
    /// The oldest that is kept; equals `next` when there is none.
    pub oldest: u64,
    /// The number of the next one.
    pub next: u64,
}

/// The ring.
#[derive(Debug)]
pub struct Events {
    writer: Writer,
    reader: Reader,
    unsaved: Rc<RefCell<VecDeque<NewEvent>>>,
    next: Rc<watch::Sender<EventRange>>,
}

impl Events {
    pub(super) fn new(writer: Writer, reader: Reader, range: EventRange) -> Self {
        let next = Rc::new(watch::Sender::new(range));
        Self { writer, reader, unsaved: Rc::default(), next }
    }

    /// Stores an event soon. Must be called within a `LocalSet`.
    pub fn append(&self, mut event: NewEvent) {
        event.message = event.message.chars().take(MAX_MESSAGE).collect();
        let mut batch: Vec<NewEvent> = self.unsaved.borrow_mut().drain(..).collect();
        batch.push(event);
        let job = self.writer.submit({
            let batch = batch.clone();
            move |db| {
                batch.iter().try_for_each(|event| insert(db, event))?;
                db.prepare_cached(
                    "DELETE FROM event WHERE sequence <= (SELECT max(sequence) FROM event) - ?1",
                )?
                .execute([MAX_EVENTS])?;
                range(db)
            }
        });
        let (unsaved, next) = (Rc::clone(&self.unsaved), Rc::clone(&self.next));
        tokio::task::spawn_local(async move {
            match job.await {
                Ok(range) => {
                    next.send_if_modified(|known| {
                        let newer = range.next > known.next;
                        if newer {
                            *known = range;
                        }
                        newer
                    });
                }
                Err(error) => {
                    tracing::warn!(error = crate::logging::chain(&error), "events not stored");
                    let mut unsaved = unsaved.borrow_mut();
                    let room = MAX_UNSAVED.saturating_sub(unsaved.len());
                    unsaved.extend(batch.into_iter().take(room));
                }
            }
        });
    }

    /// Events from a number on, at most `limit`.
    ///
    /// # Errors
    /// When SQLite cannot read.
    pub fn from(&self, first: u64, limit: u32) -> Result<Vec<Event>, ReadError<rusqlite::Error>> {
        self.reader.read(|db| {
            let mut select = db.prepare_cached(
                "SELECT sequence, at, instance, kind, severity, message FROM event
                 WHERE sequence >= ?1 ORDER BY sequence LIMIT ?2",
            )?;
            select.query_map(params![to_i64(first), limit], read)?.collect()
        })
    }

    /// Which events there are, and how to learn of new ones.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<EventRange> {
        self.next.subscribe()
    }
}

pub(super) fn range(db: &Connection) -> rusqlite::Result<EventRange> {
    db.prepare_cached("SELECT min(sequence), max(sequence) FROM event")?.query_row((), |row| {
        let (oldest, newest): (Option<i64>, Option<i64>) = (row.get(0)?, row.get(1)?);
        let next = newest.map_or(1, |newest| to_u64(newest).saturating_add(1));
        Ok(EventRange { oldest: oldest.map_or(next, to_u64), next })
    })
}

fn insert(db: &Connection, event: &NewEvent) -> rusqlite::Result<()> {
    let severity: u8 = match event.severity {
        Severity::Info => 1,
        Severity::Warning => 2,
        Severity::Error => 3,
    };
    db.prepare_cached(
        "INSERT INTO event (sequence, at, instance, kind, severity, message)
         SELECT coalesce(max(sequence), 0) + 1, ?1, ?2, ?3, ?4, ?5 FROM event",
    )?
    .execute(params![
        event.at.millis(),
        event.instance.as_ref().map(InstanceName::as_str),
        event.kind.to_string(),
        severity,
        event.message,
    ])
    .map(|_rows| ())
}

/// A kind or severity of a newer agent is shown as the nearest that is known.
fn read(row: &Row<'_>) -> rusqlite::Result<Event> {
    let instance: Option<String> = row.get(2)?;
    let kind: String = row.get(3)?;
    let severity: u8 = row.get(4)?;
    Ok(Event {
        sequence: to_u64(row.get(0)?),
        at: Timestamp::from_millis(row.get(1)?),
        instance: instance.and_then(|name| InstanceName::parse(&name).ok()),
        kind: EventKind::parse(&kind).unwrap_or(EventKind::StepDone),
        severity: match severity {
            1 => Severity::Info,
            2 => Severity::Warning,
            _ => Severity::Error,
        },
        message: row.get(5)?,
    })
}
