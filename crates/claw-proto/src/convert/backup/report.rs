//! How the snapshots of an instance stand.

use std::collections::BTreeSet;

use claw_core::backup::{BackupReport, MAX_LISTED, SnapshotCause, SnapshotHealth, SnapshotInfo};
use claw_core::name::{ImageRef, InstanceName, SnapshotName};
use claw_core::stamp::{Digest, Generation};

use super::offsite;
use crate::convert::session::text;
use crate::convert::time::{timestamp_from_wire, timestamp_to_wire};
use crate::convert::violation::Violations;
use crate::node::v1 as node;

/// How the snapshots of one instance stand.
#[must_use]
pub fn backup_status_to_wire(instance: &InstanceName, report: &BackupReport) -> node::BackupStatus {
    node::BackupStatus { instance: instance.to_string(), report: Some(report_to_wire(report)) }
}

/// How the snapshots of one instance stand.
///
/// # Errors
/// Every wrong field at once.
pub fn backup_status_from_wire(
    wire: &node::BackupStatus,
) -> Result<(InstanceName, BackupReport), Violations> {
    let mut v = Violations::default();
    let instance = v.take("instance", InstanceName::parse(&wire.instance));
    let report = match wire.report.as_ref().map(report_from_wire) {
        Some(Ok(report)) => Some(report),
        Some(Err(more)) => {
            v.extend(more.below("report"));
            None
        }
        None => {
            v.push("report", "must be given");
            None
        }
    };
    match (instance, report) {
        (Some(instance), Some(report)) => Ok((instance, report)),
        _ => Err(v),
    }
}

/// How the snapshots of an instance stand: the newest [`MAX_LISTED`].
#[must_use]
pub fn report_to_wire(report: &BackupReport) -> node::BackupReport {
    let left_out = report.snapshots.len().saturating_sub(MAX_LISTED);
    node::BackupReport {
        snapshots: report.snapshots.iter().skip(left_out).map(snapshot_to_wire).collect(),
        stored_bytes: report.stored_bytes,
        next_due: report.next_due.map(timestamp_to_wire),
        overdue: report.overdue,
        problem: text(&report.problem),
        verified_at: report.verified_at.map(timestamp_to_wire),
        drilled_at: report.drilled_at.map(timestamp_to_wire),
        offsite: Some(offsite::report_to_wire(&report.offsite)),
    }
}

/// How the snapshots of an instance stand.
///
/// # Errors
/// Every wrong field at once.
pub fn report_from_wire(wire: &node::BackupReport) -> Result<BackupReport, Violations> {
    let mut v = Violations::default();
    let actual = wire.snapshots.len();
    if actual > MAX_LISTED {
        let text = format!("must have at most {MAX_LISTED} entries, has {actual}");
        return Err(Violations::one("snapshots", text));
    }
    let (mut snapshots, mut names) = (Vec::with_capacity(actual), BTreeSet::new());
    for (index, snapshot) in wire.snapshots.iter().enumerate() {
        let field = format!("snapshots[{index}]");
        match snapshot_from_wire(snapshot) {
            Ok(snapshot) => {
                if !names.insert(snapshot.name.clone()) {
                    v.push(&format!("{field}.name"), "appears twice");
                }
                snapshots.push(snapshot);
            }
            Err(more) => v.extend(more.below(&field)),
        }
    }
    let time = |at: &Option<prost_types::Timestamp>| at.as_ref().map(timestamp_from_wire);
    let none = node::OffsiteReport::default();
    let report = BackupReport {
        snapshots,
        stored_bytes: wire.stored_bytes,
        next_due: time(&wire.next_due),
        overdue: wire.overdue,
        problem: text(&wire.problem),
        verified_at: time(&wire.verified_at),
        drilled_at: time(&wire.drilled_at),
        offsite: offsite::report_from_wire(&mut v, wire.offsite.as_ref().unwrap_or(&none)),
    };
    v.into_result().map(|()| report)
}

/// A snapshot as its host lists it.
#[must_use]
pub fn snapshot_to_wire(snapshot: &SnapshotInfo) -> node::SnapshotInfo {
    let health = match snapshot.health {
        SnapshotHealth::Sound => node::SnapshotHealth::Sound,
        SnapshotHealth::Damaged => node::SnapshotHealth::Damaged,
    };
    node::SnapshotInfo {
        name: snapshot.name.to_string(),
        id: snapshot.id.as_bytes().to_vec(),
        taken_at: Some(timestamp_to_wire(snapshot.taken_at)),
        cause: cause_to_wire(snapshot.cause).into(),
        image: snapshot.image.to_string(),
        generation: snapshot.generation.0,
        files: snapshot.files,
        bytes: snapshot.bytes,
        added_bytes: snapshot.added_bytes,
        health: health.into(),
        offsite: snapshot.offsite,
    }
}

/// A snapshot as its host lists it.
///
/// # Errors
/// Every wrong field at once.
pub fn snapshot_from_wire(wire: &node::SnapshotInfo) -> Result<SnapshotInfo, Violations> {
    let mut v = Violations::default();
    let name = v.take("name", SnapshotName::parse(&wire.name));
    let id = Digest::from_slice(&wire.id);
    if id.is_none() {
        v.push("id", format!("must be 32 bytes, has {}", wire.id.len()));
    }
    let taken_at = wire.taken_at.as_ref().map(timestamp_from_wire);
    if taken_at.is_none() {
        v.push("taken_at", "must be given");
    }
    let known = CAUSES.iter().find(|(_, cause)| i32::from(*cause) == wire.cause);
    if known.is_none() {
        v.push("cause", format!("unknown value {}", wire.cause));
    }
    let image = v.take("image", ImageRef::parse(&wire.image));
    let health = match node::SnapshotHealth::try_from(wire.health) {
        Ok(node::SnapshotHealth::Unspecified | node::SnapshotHealth::Sound) => {
            Some(SnapshotHealth::Sound)
        }
        Ok(node::SnapshotHealth::Damaged) => Some(SnapshotHealth::Damaged),
        Err(_) => {
            v.push("health", format!("unknown value {}", wire.health));
            None
        }
    };
    let parts = (name, id, taken_at, known, image, health);
    let (Some(name), Some(id), Some(taken_at), Some((cause, _)), Some(image), Some(health)) = parts
    else {
        return Err(v);
    };
    Ok(SnapshotInfo {
        name,
        id,
        taken_at,
        cause: *cause,
        image,
        generation: Generation(wire.generation),
        files: wire.files,
        bytes: wire.bytes,
        added_bytes: wire.added_bytes,
        health,
        offsite: wire.offsite,
    })
}

/// Causes, core and wire.
const CAUSES: [(SnapshotCause, node::SnapshotCause); 7] = [
    (SnapshotCause::Scheduled, node::SnapshotCause::Scheduled),
    (SnapshotCause::Requested, node::SnapshotCause::Requested),
    (SnapshotCause::Pause, node::SnapshotCause::Pause),
    (SnapshotCause::Update, node::SnapshotCause::Update),
    (SnapshotCause::Restore, node::SnapshotCause::Restore),
    (SnapshotCause::Final, node::SnapshotCause::Final),
    (SnapshotCause::Import, node::SnapshotCause::Import),
];

/// Why a snapshot was taken.
#[must_use]
pub fn cause_to_wire(cause: SnapshotCause) -> node::SnapshotCause {
    let known = CAUSES.iter().find(|(core, _)| *core == cause);
    known.map_or(node::SnapshotCause::Unspecified, |(_, wire)| *wire)
}
