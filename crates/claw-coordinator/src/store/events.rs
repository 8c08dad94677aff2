//! What happened on hosts: the agents' own events, and a few of the coordinator's (sequence 0).

use claw_core::event::Severity;
use claw_core::name::{HostName, InstanceName};
use claw_core::time::Timestamp;
use claw_proto::convert::{timestamp_from_wire, timestamp_to_wire};
use claw_proto::node::v1 as node;
use claw_store::rusqlite::{Connection, named_params};

use super::hosts::HostRow;
use super::{hosts, int, time, uint};
use crate::page::Page;
use crate::refusal::Refusal;

/// Most events kept per host; older ones go when it is exceeded.
pub const KEPT: i64 = 10_000;

/// What an event shows besides its message, roughly.
const ROW_BYTES: usize = 256;

/// An event that the coordinator itself reports of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnEvent {
    /// What kind of thing, such as `clone_alarm`.
    pub kind: &'static str,
    /// How much it matters.
    pub severity: Severity,
    /// One sentence for a person.
    pub message: String,
}

/// One event as stored.
#[derive(Debug, Clone, PartialEq)]
pub struct EventRow {
    /// Position among all events.
    pub id: i64,
    /// The event.
    pub event: node::Event,
}

/// Stores what is new of `batch`; returns the sequence number up to which everything is stored.
///
/// A gap is noted and passed over: what the host has lost will not come, and a session that ended for
/// it would end for ever.
pub(crate) fn append(
    connection: &Connection,
    host: &HostRow,
    batch: &[node::Event],
    now: Timestamp,
) -> Result<u64, Refusal> {
    let mut next = host.next_event;
    for event in batch {
        if event.sequence < next {
            continue;
        }
        if event.sequence > next {
            append_own(connection, &host.name, now, &lost(next, event.sequence))?;
        }
        insert(connection, &host.name, host.event_stream, event)?;
        next = event.sequence.saturating_add(1);
    }
    if next != host.next_event {
        hosts::set_events(connection, &host.name, host.event_stream, next)?;
        trim(connection, &host.name)?;
    }
    Ok(next.saturating_sub(1))
}

/// That the events from `first` up to but without `next` never came.
pub(crate) fn lost(first: u64, next: u64) -> OwnEvent {
    OwnEvent {
        kind: "events_lost",
        severity: Severity::Warning,
        message: format!("events {first} to {} were lost on the host", next.saturating_sub(1)),
    }
}

pub(crate) fn append_own(
    connection: &Connection,
    host: &HostName,
    at: Timestamp,
    event: &OwnEvent,
) -> Result<(), Refusal> {
    own(connection, host, "", at, event)
}

/// As [`append_own`], of an instance.
pub(crate) fn append_about(
    connection: &Connection,
    host: &HostName,
    instance: &InstanceName,
    at: Timestamp,
    event: &OwnEvent,
) -> Result<(), Refusal> {
    own(connection, host, instance.as_str(), at, event)
}

fn own(
    connection: &Connection,
    host: &HostName,
    instance: &str,
    at: Timestamp,
    event: &OwnEvent,
) -> Result<(), Refusal> {
    connection
        .prepare_cached(
            "INSERT INTO event (host, stream, sequence, at_ms, instance, kind, severity, message)
             VALUES (?1, 0, 0, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute((
            host.as_str(),
            at.millis(),
            instance,
            event.kind,
            severity_to_wire(event.severity),
            &event.message,
        ))?;
    trim(connection, host)
}

/// One page, oldest first, and the token of the next.
///
/// # Errors
/// [`Refusal::Internal`]
pub fn list(
    connection: &Connection,
    host: &HostName,
    instance: Option<&InstanceName>,
    page: &Page,
) -> Result<(Vec<EventRow>, String), Refusal> {
    let filter = if instance.is_some() { "instance = ?2" } else { "?2 = ''" };
    let mut statement = connection.prepare_cached(&format!(
        "SELECT id, sequence, at_ms, instance, kind, severity, message FROM event
         WHERE host = ?1 AND {filter} AND id > ?3 ORDER BY id LIMIT ?4"
    ))?;
    let instance = instance.map(InstanceName::as_str).unwrap_or_default();
    let after = page.after_number(0)?;
    let rows = statement.query_map((host.as_str(), instance, after, page.fetch()), |row| {
        let event = node::Event {
            sequence: uint(row, "sequence")?,
            at: Some(timestamp_to_wire(time(row, "at_ms")?)),
            instance: row.get("instance")?,
            kind: row.get("kind")?,
            severity: row.get("severity")?,
            message: row.get("message")?,
        };
        Ok(EventRow { id: row.get("id")?, event })
    })?;
    let weight = |row: &EventRow| ROW_BYTES + row.event.message.len();
    page.collect(rows.map(|row| Ok(row?)), weight, |row| row.id.to_string())
}

fn insert(
    connection: &Connection,
    host: &HostName,
    stream: u64,
    event: &node::Event,
) -> Result<(), Refusal> {
    connection
        .prepare_cached(
            "INSERT INTO event (host, stream, sequence, at_ms, instance, kind, severity, message)
             VALUES (:host, :stream, :sequence, :at, :instance, :kind, :severity, :message)",
        )?
        .execute(named_params! {
            ":host": host.as_str(),
            ":stream": int(stream),
            ":sequence": int(event.sequence),
            ":at": event.at.as_ref().map(timestamp_from_wire).unwrap_or_default().millis(),
            ":instance": event.instance,
            ":kind": event.kind,
            ":severity": event.severity,
            ":message": event.message,
        })?;
    Ok(())
}

fn trim(connection: &Connection, host: &HostName) -> Result<(), Refusal> {
    connection
        .prepare_cached(
            "DELETE FROM event WHERE host = ?1 AND id <= (
                 SELECT id FROM event WHERE host = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)",
        )?
        .execute((host.as_str(), KEPT))?;
    Ok(())
}

fn severity_to_wire(severity: Severity) -> i32 {
    match severity {
        Severity::Info => node::Severity::Info,
        Severity::Warning => node::Severity::Warning,
        Severity::Error => node::Severity::Error,
    }
    .into()
}
