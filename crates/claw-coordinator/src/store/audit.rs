//! Who did what. Append-only: triggers refuse anything else.

use claw_core::time::Timestamp;
use claw_store::rusqlite::{Connection, named_params};

use super::time;
use crate::page::Page;
use crate::refusal::Refusal;

/// What an entry shows besides its summary, roughly.
const ROW_BYTES: usize = 512;

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Who, such as `operator/alice`, or `system`.
    pub principal: String,
    /// From where.
    pub source: String,
    /// The method, such as `claw.fleet.v1.HostService/CreateHost`.
    pub method: String,
    /// The resource, such as `hosts/a`.
    pub resource: String,
    /// What was changed; never a secret.
    pub summary: String,
}

/// One entry as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditRow {
    /// Counts from 1 without gaps.
    pub id: i64,
    /// When.
    pub at: Timestamp,
    /// What.
    pub entry: Entry,
}

pub(crate) fn append(connection: &Connection, at: Timestamp, entry: &Entry) -> Result<(), Refusal> {
    connection
        .prepare_cached(
            "INSERT INTO audit (at_ms, principal, source, method, resource, summary)
             VALUES (:at, :principal, :source, :method, :resource, :summary)",
        )?
        .execute(named_params! {
            ":at": at.millis(),
            ":principal": entry.principal,
            ":source": entry.source,
            ":method": entry.method,
            ":resource": entry.resource,
            ":summary": entry.summary,
        })?;
    Ok(())
}

/// One page, newest first, of one resource or of all, and the token of the next.
///
/// # Errors
/// [`Refusal::Internal`]
pub fn list(
    connection: &Connection,
    resource: &str,
    page: &Page,
) -> Result<(Vec<AuditRow>, String), Refusal> {
    let filter = if resource.is_empty() { "?1 = ''" } else { "resource = ?1" };
    let mut statement = connection.prepare_cached(&format!(
        "SELECT id, at_ms, principal, source, method, resource, summary FROM audit
         WHERE {filter} AND id < ?2 ORDER BY id DESC LIMIT ?3"
    ))?;
    let before = page.after_number(i64::MAX)?;
    let rows = statement.query_map((resource, before, page.fetch()), |row| {
        Ok(AuditRow {
            id: row.get("id")?,
            at: time(row, "at_ms")?,
            entry: Entry {
                principal: row.get("principal")?,
                source: row.get("source")?,
                method: row.get("method")?,
                resource: row.get("resource")?,
                summary: row.get("summary")?,
            },
        })
    })?;
    let weight = |row: &AuditRow| ROW_BYTES + row.entry.summary.len();
    page.collect(rows.map(|row| Ok(row?)), weight, |row| row.id.to_string())
}
