//! Migrations as the API shows them.

use claw_core::migration::{Origin, Stage};
use claw_core::report::OperationReport;
use claw_proto::convert::name::{host_resource, snapshot_resource};
use claw_proto::convert::timestamp_to_wire;
use claw_proto::fleet::v1::{self as fleet, MigrationSource, MigrationStage};

use crate::registry::Registry;
use crate::store::migrations::MigrationRow;

/// A migration, with how far its hosts say that it is.
pub(super) fn shown(row: &MigrationRow, registry: &Registry) -> fleet::Migration {
    let stage = &row.state.stage;
    let snapshot = stage.snapshot().map(|snapshot| snapshot_resource(&row.name, snapshot));
    let problem = match stage.problem() {
        "" => row.state.tries.problem.as_str(),
        problem => problem,
    };
    fleet::Migration {
        stage: stage_to_wire(stage).into(),
        source_host: host_resource(&row.source),
        target_host: host_resource(&row.target),
        source: match row.state.origin {
            Origin::Host => MigrationSource::Host,
            Origin::Offsite => MigrationSource::Offsite,
        }
        .into(),
        snapshot: snapshot.unwrap_or_default(),
        begin_time: Some(timestamp_to_wire(row.begun)),
        stage_time: Some(timestamp_to_wire(row.state.since)),
        problem: problem.to_owned(),
        permille: operation(row, registry).and_then(|operation| operation.permille),
    }
}

/// What the host that works on it says of the work.
fn operation(row: &MigrationRow, registry: &Registry) -> Option<OperationReport> {
    let (host, kind) = match row.state.stage {
        Stage::Preparing | Stage::Syncing { .. } => (&row.source, "send"),
        Stage::Starting(_) => (&row.target, "restore"),
        _ => return None,
    };
    let (report, _at) = registry.instance(host, &row.name).report?;
    report.operation.filter(|operation| operation.kind == kind)
}

fn stage_to_wire(stage: &Stage) -> MigrationStage {
    match stage {
        Stage::Preparing => MigrationStage::Preparing,
        Stage::Stopping { .. } => MigrationStage::Stopping,
        Stage::Syncing { .. } => MigrationStage::Syncing,
        Stage::Fetching { .. } => MigrationStage::Fetching,
        Stage::Starting(_) => MigrationStage::Starting,
        Stage::Reverting { .. } => MigrationStage::Reverting,
        Stage::Done { .. } => MigrationStage::Done,
        Stage::Reverted { .. } => MigrationStage::Reverted,
    }
}
