//! Snapshots and their repositories as the API shows them.

use claw_core::backup::SnapshotInfo;
use claw_core::name::InstanceName;
use claw_core::time::Timestamp;
use claw_proto::convert::backup::cause_to_wire;
use claw_proto::convert::name::{host_resource, snapshot_resource};
use claw_proto::convert::timestamp_to_wire;
use claw_proto::fleet::v1 as fleet;
use claw_proto::node::v1 as node;

use crate::fleet::snapshots::{State, state};
use crate::store::revisions::{History, RevisionRow};
use crate::store::snapshots::{RepositoryRow, SnapshotRow};

/// A snapshot.
#[must_use]
pub fn snapshot(
    row: &SnapshotRow,
    repository: &RepositoryRow,
    history: &History,
    now: Timestamp,
) -> fleet::Snapshot {
    let (state, problem) = match state(row, now) {
        State::Taking => (fleet::SnapshotState::Taking, String::new()),
        State::Ready => (fleet::SnapshotState::Ready, String::new()),
        State::Damaged => (fleet::SnapshotState::Damaged, String::new()),
        State::Deleting => (fleet::SnapshotState::Deleting, String::new()),
        State::Failed(problem) => (fleet::SnapshotState::Failed, problem),
    };
    let mut shown = fleet::Snapshot {
        name: snapshot_resource(&repository.name, &row.name),
        instance_uid: repository.uid.clone(),
        state: state.into(),
        problem,
        cause: node::SnapshotCause::Requested.into(),
        create_time: Some(timestamp_to_wire(row.taken)),
        ..fleet::Snapshot::default()
    };
    if let Some(info) = &row.listed {
        shown.set_cause(cause_to_wire(info.cause));
        shown.image = info.image.to_string();
        shown.generation = info.generation.0;
        shown.revision = history.at(info.generation, &info.image).unwrap_or(0);
        shown.files = info.files;
        shown.bytes = info.bytes;
        shown.added_bytes = info.added_bytes;
        shown.restic_id = info.id.to_string();
        shown.offsite = info.offsite;
    }
    shown
}

/// How a repository stands.
#[must_use]
pub fn repository(row: &RepositoryRow) -> fleet::SnapshotRepository {
    let report = row.report.as_ref().map(|(report, _at)| report.clone()).unwrap_or_default();
    fleet::SnapshotRepository {
        instance_uid: row.uid.clone(),
        host: host_resource(&row.host),
        stored_bytes: report.stored_bytes,
        next_due_time: report.next_due.map(timestamp_to_wire),
        overdue: report.overdue,
        problem: report.problem,
        verify_time: report.verified_at.map(timestamp_to_wire),
        drill_time: report.drilled_at.map(timestamp_to_wire),
        report_time: row.report.as_ref().map(|(_report, at)| timestamp_to_wire(*at)),
        escrowed: row.escrow.is_some(),
        delete_time: row.deleted.map(timestamp_to_wire),
        offsite: row.report.as_ref().map(|_reported| fleet::RepositoryOffsite {
            path: report.offsite.path,
            copy_time: report.offsite.copied_at.map(timestamp_to_wire),
            overdue: report.offsite.overdue,
            problem: report.offsite.problem,
        }),
    }
}

/// A spec that an instance had, with the snapshots that were taken under it.
#[must_use]
pub fn revision(
    row: RevisionRow,
    instance: &InstanceName,
    history: &History,
    listed: &[SnapshotRow],
) -> fleet::InstanceRevision {
    let is_of =
        |info: &SnapshotInfo| history.at(info.generation, &info.image) == Some(row.revision);
    let taken = listed.iter().filter(|snapshot| snapshot.listed.as_ref().is_some_and(is_of));
    fleet::InstanceRevision {
        revision: row.revision,
        generation: row.generation.0,
        create_time: Some(timestamp_to_wire(row.created)),
        snapshots: taken.map(|snapshot| snapshot_resource(instance, &snapshot.name)).collect(),
        spec: Some(row.spec),
    }
}
