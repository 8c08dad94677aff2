//! Long operations on an instance as its report shows them.

use claw_core::cutover::{Deployment, RefusedTarget};
use claw_core::data::DataGeneration;
use claw_core::name::ImageRef;
use claw_core::report::{BackupSummary, OperationReport};

use crate::convert::session::text;
use crate::convert::time::{timestamp_from_wire, timestamp_to_wire};
use crate::convert::violation::Violations;
use crate::node::v1 as node;

/// Operations by name.
const KINDS: [&str; 11] = [
    "update", "restore", "snapshot", "verify", "drill", "prune", "offsite", "export", "import",
    "send", "fetch",
];
/// What agents that are newer than this program do.
const OTHER: &str = "other";

pub(in crate::convert) fn operation_to_wire(operation: &OperationReport) -> node::OperationReport {
    node::OperationReport {
        kind: operation.kind.to_owned(),
        stage: text(&operation.stage),
        permille: operation.permille,
        since: Some(timestamp_to_wire(operation.since)),
    }
}

/// An operation of a kind that is newer than this program must not end the session.
pub(in crate::convert) fn operation_from_wire(
    wire: &node::OperationReport,
) -> Result<OperationReport, Violations> {
    if let Some(permille) = wire.permille.filter(|permille| *permille > 1000) {
        return Err(Violations::one("permille", format!("must be at most 1000, is {permille}")));
    }
    Ok(OperationReport {
        kind: KINDS.into_iter().find(|kind| *kind == wire.kind).unwrap_or(OTHER),
        stage: text(&wire.stage),
        permille: wire.permille,
        since: wire.since.as_ref().map(timestamp_from_wire).unwrap_or_default(),
    })
}

pub(in crate::convert) fn active_to_wire(active: &Deployment) -> node::Deployment {
    let data_generation = active.data.number();
    node::Deployment { image: active.image.to_string(), data_generation }
}

pub(in crate::convert) fn active_from_wire(
    wire: &node::Deployment,
) -> Result<Deployment, Violations> {
    let mut v = Violations::default();
    let image = v.take("image", ImageRef::parse(&wire.image));
    let data = DataGeneration::new(wire.data_generation);
    if data.is_none() {
        v.push("data_generation", "must be positive");
    }
    let (Some(image), Some(data)) = (image, data) else { return Err(v) };
    Ok(Deployment { image, data })
}

pub(in crate::convert) fn refused_to_wire(refused: &RefusedTarget) -> node::RefusedTarget {
    node::RefusedTarget {
        image: refused.image.to_string(),
        restore: refused.restore,
        rebuilds: refused.rebuilds,
        problem: text(&refused.problem),
        at: Some(timestamp_to_wire(refused.at)),
    }
}

pub(in crate::convert) fn refused_from_wire(
    wire: &node::RefusedTarget,
) -> Result<RefusedTarget, Violations> {
    let mut v = Violations::default();
    let Some(image) = v.take("image", ImageRef::parse(&wire.image)) else { return Err(v) };
    Ok(RefusedTarget {
        image,
        restore: wire.restore,
        rebuilds: wire.rebuilds,
        problem: text(&wire.problem),
        at: wire.at.as_ref().map(timestamp_from_wire).unwrap_or_default(),
    })
}

pub(in crate::convert) fn summary_to_wire(summary: &BackupSummary) -> node::BackupSummary {
    node::BackupSummary {
        last_at: summary.last_at.map(timestamp_to_wire),
        count: summary.count,
        overdue: summary.overdue,
        problem: text(&summary.problem),
    }
}

pub(in crate::convert) fn summary_from_wire(wire: &node::BackupSummary) -> BackupSummary {
    BackupSummary {
        last_at: wire.last_at.as_ref().map(timestamp_from_wire),
        count: wire.count,
        overdue: wire.overdue,
        problem: text(&wire.problem),
    }
}
