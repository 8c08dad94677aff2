//! What is remembered of an instance, as JSON in its row.
//!
//! Kept apart from [`Remembered`] so that a change of the agent's types is no silent change of the
//! file. Unknown fields are ignored: an older agent can open the journal of a newer one with the same
//! schema version.

mod cutover;

use claw_core::name::NameError;
use claw_core::observed::{Exit, Record};
use claw_core::plan::StopReason;
use claw_core::restart::RestartHistory;
use claw_core::stamp::Digest;
use claw_core::time::Timestamp;
use claw_store::rusqlite;
use serde::{Deserialize, Serialize};

use super::{HealthyRun, Remembered, StartIntent, StopIntent};

/// Why a journal's content makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// SQLite could not read.
    #[error("cannot query")]
    Query(#[from] rusqlite::Error),
    /// A name is invalid.
    #[error("it holds an invalid name")]
    Name(#[source] NameError),
    /// A data directory has the number 0.
    #[error("it holds the impossible data directory 0")]
    Data,
    /// A slot is out of range.
    #[error("it holds the impossible slot {slot}")]
    Slot {
        /// The number.
        slot: u8,
    },
    /// A digest is no SHA-256.
    #[error("{column} is no digest")]
    Digest {
        /// Where.
        column: &'static str,
    },
    /// A stop has an unknown reason.
    #[error("unknown reason of a stop: {reason:?}")]
    Reason {
        /// The reason.
        reason: String,
    },
    /// A record is no JSON of the known form.
    #[error("cannot parse what is remembered of an instance")]
    Record(#[from] serde_json::Error),
}

#[derive(Serialize, Deserialize, Default)]
#[serde(default)]
struct StoredRecord {
    restarts_done: u64,
    started_with_secrets: Option<String>,
    history_spec: Option<String>,
    failures: Vec<i64>,
    files: Option<String>,
    restart_count: u64,
    died: bool,
    last_exit: Option<StoredExit>,
    seen_exit: Option<(String, i64)>,
    stop: Option<StoredStop>,
    start: Option<StoredStart>,
    boot: Option<String>,
    healthy: Option<StoredHealthy>,
    versions: cutover::StoredVersions,
}

#[derive(Serialize, Deserialize)]
struct StoredExit {
    code: i64,
    oom: bool,
    at: i64,
}

#[derive(Serialize, Deserialize)]
struct StoredStop {
    container: String,
    reason: String,
    until: i64,
}

#[derive(Serialize, Deserialize)]
struct StoredStart {
    at: i64,
    secrets: String,
    restarts: u64,
}

#[derive(Serialize, Deserialize)]
struct StoredHealthy {
    container: String,
    since: i64,
    healthy_since: i64,
}

/// As text for the row.
pub(super) fn encode(remembered: &Remembered) -> String {
    let Remembered { record, files, restart_count, died, last_exit, seen_exit, .. } = remembered;
    let hex = |digest: Option<Digest>| digest.map(|digest| digest.to_string());
    let stored = StoredRecord {
        restarts_done: record.restarts_done,
        started_with_secrets: hex(record.started_with_secrets),
        history_spec: hex(record.history.spec()),
        failures: record.history.failures().iter().map(|at| at.millis()).collect(),
        files: hex(*files),
        restart_count: *restart_count,
        died: *died,
        last_exit: last_exit.map(|exit| StoredExit {
            code: exit.code,
            oom: exit.oom,
            at: exit.at.millis(),
        }),
        seen_exit: seen_exit.as_ref().map(|(id, at)| (id.clone(), at.millis())),
        stop: remembered.stop.as_ref().map(|stop| StoredStop {
            container: stop.container.clone(),
            reason: stop.reason.to_string(),
            until: stop.until.millis(),
        }),
        start: remembered.start.as_ref().map(|start| StoredStart {
            at: start.at.millis(),
            secrets: start.secrets.to_string(),
            restarts: start.restarts,
        }),
        boot: remembered.boot.clone(),
        healthy: remembered.healthy.as_ref().map(|run| StoredHealthy {
            container: run.container.clone(),
            since: run.since.millis(),
            healthy_since: run.healthy_since.millis(),
        }),
        versions: cutover::StoredVersions::of(record),
    };
    // Numbers, texts and lists: nothing that JSON cannot hold.
    serde_json::to_string(&stored).unwrap_or_default()
}

/// From the text of the row.
pub(super) fn decode(text: &str) -> Result<Remembered, Unreadable> {
    let stored: StoredRecord = serde_json::from_str(text)?;
    let failures = stored.failures.into_iter().map(Timestamp::from_millis).collect();
    let mut record = Record {
        restarts_done: stored.restarts_done,
        started_with_secrets: digest("started_with_secrets", stored.started_with_secrets)?,
        history: RestartHistory::restore(digest("history_spec", stored.history_spec)?, failures),
        ..Record::default()
    };
    stored.versions.into_record(&mut record)?;
    let exit = |exit: StoredExit| Exit {
        code: exit.code,
        oom: exit.oom,
        at: Timestamp::from_millis(exit.at),
    };
    Ok(Remembered {
        record,
        files: digest("files", stored.files)?,
        restart_count: stored.restart_count,
        died: stored.died,
        last_exit: stored.last_exit.map(exit),
        seen_exit: stored.seen_exit.map(|(id, at)| (id, Timestamp::from_millis(at))),
        stop: stored.stop.map(stop).transpose()?,
        start: stored.start.map(start).transpose()?,
        boot: stored.boot,
        healthy: stored.healthy.map(|run| HealthyRun {
            container: run.container,
            since: Timestamp::from_millis(run.since),
            healthy_since: Timestamp::from_millis(run.healthy_since),
        }),
    })
}

fn digest(column: &'static str, text: Option<String>) -> Result<Option<Digest>, Unreadable> {
    text.map(|text| Digest::from_hex(&text).ok_or(Unreadable::Digest { column })).transpose()
}

fn stop(stop: StoredStop) -> Result<StopIntent, Unreadable> {
    const REASONS: [StopReason; 7] = [
        StopReason::Wanted,
        StopReason::Restart,
        StopReason::Replacement,
        StopReason::Removal,
        StopReason::Revert,
        StopReason::StartupDeadline,
        StopReason::Hung,
    ];
    let known = REASONS.into_iter().find(|reason| reason.to_string() == stop.reason);
    let reason = known.ok_or(Unreadable::Reason { reason: stop.reason })?;
    Ok(StopIntent { container: stop.container, reason, until: Timestamp::from_millis(stop.until) })
}

fn start(start: StoredStart) -> Result<StartIntent, Unreadable> {
    let secrets =
        Digest::from_hex(&start.secrets).ok_or(Unreadable::Digest { column: "start.secrets" })?;
    Ok(StartIntent { at: Timestamp::from_millis(start.at), secrets, restarts: start.restarts })
}

/// SQLite has signed numbers only; a generation beyond 2^63 will not be seen.
pub(super) fn to_i64(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The way back.
pub(super) fn to_u64(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}
