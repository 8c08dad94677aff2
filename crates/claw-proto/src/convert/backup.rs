//! Snapshots, their policies, and changes of image and data on the wire.
//!
//! Paths of violations are relative to the message: `retention.daily`, `report.snapshots[3].name`. Where
//! to start: [`backup_policy_from_wire`] for what is wanted, [`report_from_wire`] for how it stands.

use std::time::Duration;

use claw_core::backup::{BackupPolicy, Retention};
use claw_core::name::SnapshotName;
use claw_core::spec::{Rehearsal, RestoreOrder, UpdatePolicy};

use super::time::{duration_from_wire, duration_to_wire};
use super::violation::Violations;
use crate::node::v1 as node;

pub mod escrow;
mod offsite;
mod operation;
mod report;

pub use offsite::{offsite_storage_from_wire, offsite_storage_to_wire};
pub(super) use operation::{
    active_from_wire, active_to_wire, operation_from_wire, operation_to_wire, refused_from_wire,
    refused_to_wire, summary_from_wire, summary_to_wire,
};
pub use report::{
    backup_status_from_wire, backup_status_to_wire, cause_to_wire, report_from_wire,
    report_to_wire, snapshot_from_wire, snapshot_to_wire,
};

/// When snapshots are taken and which are kept, every default spelled out.
#[must_use]
pub fn backup_policy_to_wire(policy: &BackupPolicy) -> node::BackupPolicy {
    let or_zero = |duration: Option<Duration>| duration_to_wire(duration.unwrap_or_default());
    let Retention { last, hourly, daily, weekly, monthly } = policy.retention;
    node::BackupPolicy {
        every: Some(or_zero(policy.every)),
        retention: Some(node::Retention { last, hourly, daily, weekly, monthly }),
        drill_every: Some(or_zero(policy.drill_every)),
        offsite: offsite::policy_to_wire(policy.offsite).into(),
    }
}

/// When snapshots are taken and which are kept.
///
/// # Errors
/// Every wrong field at once.
pub fn backup_policy_from_wire(wire: &node::BackupPolicy) -> Result<BackupPolicy, Violations> {
    let mut v = Violations::default();
    let default = BackupPolicy::default();
    let every =
        Bounds { field: "every", least: BackupPolicy::LEAST_EVERY, most: BackupPolicy::MOST_EVERY };
    let drill = Bounds {
        field: "drill_every",
        least: BackupPolicy::LEAST_DRILL_EVERY,
        most: BackupPolicy::MOST_DRILL_EVERY,
    };
    let policy = BackupPolicy {
        every: every.or_none(&mut v, wire.every.as_ref(), default.every),
        retention: wire.retention.as_ref().map_or(default.retention, |r| retention(&mut v, r)),
        drill_every: drill.or_none(&mut v, wire.drill_every.as_ref(), default.drill_every),
        offsite: offsite::policy_from_wire(&mut v, wire.offsite),
    };
    v.into_result().map(|()| policy)
}

fn retention(v: &mut Violations, wire: &node::Retention) -> Retention {
    let node::Retention { last, hourly, daily, weekly, monthly } = *wire;
    let all = [
        ("last", last),
        ("hourly", hourly),
        ("daily", daily),
        ("weekly", weekly),
        ("monthly", monthly),
    ];
    for (kind, count) in all.iter().filter(|(_, count)| *count > Retention::MOST) {
        let most = Retention::MOST;
        v.push(&format!("retention.{kind}"), format!("must be at most {most}, is {count}"));
    }
    if all.iter().all(|(_, count)| *count == 0) {
        v.push("retention", "must keep some: one of the counts must be above 0");
    }
    Retention { last, hourly, daily, weekly, monthly }
}

/// A duration with its bounds, or zero for "never".
struct Bounds {
    field: &'static str,
    least: Duration,
    most: Duration,
}

impl Bounds {
    fn or_none(
        &self,
        v: &mut Violations,
        wire: Option<&prost_types::Duration>,
        default: Option<Duration>,
    ) -> Option<Duration> {
        let Some(wire) = wire else { return default };
        let duration = v.take(self.field, duration_from_wire(wire))?;
        if duration.is_zero() {
            return None;
        }
        if duration < self.least || duration > self.most {
            let (least, most) = (self.least.as_secs(), self.most.as_secs());
            v.push(self.field, format!("must be 0 s or between {least} s and {most} s"));
        }
        Some(duration)
    }
}

/// How a new image comes into force, every default spelled out.
#[must_use]
pub fn update_policy_to_wire(policy: &UpdatePolicy) -> node::UpdatePolicy {
    let rehearsal = match policy.rehearsal {
        Rehearsal::Auto => node::Rehearsal::Auto,
        Rehearsal::Always => node::Rehearsal::Always,
        Rehearsal::Never => node::Rehearsal::Never,
    };
    node::UpdatePolicy {
        rehearsal: rehearsal.into(),
        keep_replaced: Some(duration_to_wire(policy.keep_replaced)),
    }
}

/// How a new image comes into force.
///
/// # Errors
/// Every wrong field at once.
pub fn update_policy_from_wire(wire: &node::UpdatePolicy) -> Result<UpdatePolicy, Violations> {
    let mut v = Violations::default();
    let default = UpdatePolicy::default();
    let rehearsal = match node::Rehearsal::try_from(wire.rehearsal) {
        Ok(node::Rehearsal::Unspecified | node::Rehearsal::Auto) => Rehearsal::Auto,
        Ok(node::Rehearsal::Always) => Rehearsal::Always,
        Ok(node::Rehearsal::Never) => Rehearsal::Never,
        Err(_) => {
            v.push("rehearsal", format!("unknown value {}", wire.rehearsal));
            default.rehearsal
        }
    };
    let keep = wire.keep_replaced.as_ref().map(duration_from_wire).transpose();
    let keep = v.take("keep_replaced", keep).flatten().unwrap_or(default.keep_replaced);
    if keep > UpdatePolicy::MOST_KEEP {
        let most = UpdatePolicy::MOST_KEEP.as_secs();
        v.push("keep_replaced", format!("must be at most {most} s"));
    }
    v.into_result().map(|()| UpdatePolicy { rehearsal, keep_replaced: keep })
}

/// That data of an earlier time shall come back.
#[must_use]
pub fn restore_to_wire(order: &RestoreOrder) -> node::RestoreOrder {
    node::RestoreOrder {
        number: order.number,
        snapshot: order.snapshot.to_string(),
        from: offsite::source_to_wire(order.from).into(),
    }
}

/// That data of an earlier time shall come back.
///
/// # Errors
/// Every wrong field at once.
pub fn restore_from_wire(wire: &node::RestoreOrder) -> Result<RestoreOrder, Violations> {
    let mut v = Violations::default();
    if wire.number == 0 {
        v.push("number", "must be positive");
    }
    let from = offsite::source_from_wire(&mut v, wire.from);
    let Some(snapshot) = v.take("snapshot", SnapshotName::parse(&wire.snapshot)) else {
        return Err(v);
    };
    v.into_result().map(|()| RestoreOrder { number: wire.number, snapshot, from })
}

/// A part of a spec from its message; its faults are kept below `field`, and its default stands for it.
pub(super) fn part<W, T: Default>(
    v: &mut Violations,
    field: &str,
    wire: Option<&W>,
    from_wire: fn(&W) -> Result<T, Violations>,
) -> T {
    match wire.map(from_wire).transpose() {
        Ok(part) => part.unwrap_or_default(),
        Err(more) => {
            v.extend(more.below(field));
            T::default()
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
