//! `backup:` and `update:` of an instance document, which is also how clawctl prints them.
//!
//! Numbers and times are passed on as they are: ranges are the coordinator's business, which names every
//! wrong one at once.

use claw_proto::convert::duration_to_wire;
use claw_proto::node::v1 as node;
use serde::{Deserialize, Serialize};

use super::quantity::{Interval, Span};

/// When snapshots are taken and which are kept; see `BackupPolicy` of `claw.node.v1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct BackupDocument {
    /// Between two scheduled snapshots; without it a day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) every: Option<Interval>,
    /// Without it 3 last, 7 daily, 4 weekly and 3 monthly ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) retention: Option<RetentionDocument>,
    /// Between two restore drills; without it 30 days.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) drill_every: Option<Interval>,
    /// Without it `auto`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) offsite: Option<OffsiteDocument>,
}

/// Whether snapshots are copied off-site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum OffsiteDocument {
    /// Where the host has a storage.
    Auto,
    /// A host without a storage is a problem that is told.
    Required,
    Never,
}

/// How many scheduled snapshots are kept; what is not said is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct RetentionDocument {
    #[serde(skip_serializing_if = "is_zero")]
    last: u32,
    #[serde(skip_serializing_if = "is_zero")]
    hourly: u32,
    #[serde(skip_serializing_if = "is_zero")]
    daily: u32,
    #[serde(skip_serializing_if = "is_zero")]
    weekly: u32,
    #[serde(skip_serializing_if = "is_zero")]
    monthly: u32,
}

/// How a new image comes into force; see `UpdatePolicy` of `claw.node.v1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct UpdateDocument {
    /// Without it `auto`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) rehearsal: Option<RehearsalDocument>,
    /// How long the replaced data is kept after the update; without it an hour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) keep_replaced: Option<Span>,
}

/// Whether a new image is first tried on a copy of the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RehearsalDocument {
    /// Where memory and disk allow.
    Auto,
    /// Or there is no update.
    Always,
    Never,
}

impl BackupDocument {
    /// For the API.
    pub(crate) fn to_wire(self) -> node::BackupPolicy {
        node::BackupPolicy {
            every: self.every.map(|every| duration_to_wire(every.0)),
            retention: self.retention.map(RetentionDocument::to_wire),
            drill_every: self.drill_every.map(|every| duration_to_wire(every.0)),
            offsite: OffsiteDocument::to_wire(self.offsite).into(),
        }
    }
}

impl OffsiteDocument {
    fn to_wire(document: Option<Self>) -> node::OffsitePolicy {
        match document {
            None => node::OffsitePolicy::Unspecified,
            Some(Self::Auto) => node::OffsitePolicy::Auto,
            Some(Self::Required) => node::OffsitePolicy::Required,
            Some(Self::Never) => node::OffsitePolicy::Never,
        }
    }

    fn from_wire(wire: node::OffsitePolicy) -> Option<Self> {
        match wire {
            node::OffsitePolicy::Unspecified => None,
            node::OffsitePolicy::Auto => Some(Self::Auto),
            node::OffsitePolicy::Required => Some(Self::Required),
            node::OffsitePolicy::Never => Some(Self::Never),
        }
    }
}

impl RetentionDocument {
    fn to_wire(self) -> node::Retention {
        let Self { last, hourly, daily, weekly, monthly } = self;
        node::Retention { last, hourly, daily, weekly, monthly }
    }
}

impl UpdateDocument {
    /// For the API.
    pub(crate) fn to_wire(self) -> node::UpdatePolicy {
        let rehearsal = match self.rehearsal {
            None => node::Rehearsal::Unspecified,
            Some(RehearsalDocument::Auto) => node::Rehearsal::Auto,
            Some(RehearsalDocument::Always) => node::Rehearsal::Always,
            Some(RehearsalDocument::Never) => node::Rehearsal::Never,
        };
        node::UpdatePolicy {
            rehearsal: rehearsal.into(),
            keep_replaced: self.keep_replaced.map(|span| duration_to_wire(span.0)),
        }
    }
}

impl From<node::BackupPolicy> for BackupDocument {
    fn from(wire: node::BackupPolicy) -> Self {
        let retention = wire.retention.map(|kept| {
            let node::Retention { last, hourly, daily, weekly, monthly } = kept;
            RetentionDocument { last, hourly, daily, weekly, monthly }
        });
        let offsite = OffsiteDocument::from_wire(wire.offsite());
        Self {
            every: wire.every.map(|every| Interval::from_wire(every.seconds, every.nanos)),
            retention,
            drill_every: wire
                .drill_every
                .map(|every| Interval::from_wire(every.seconds, every.nanos)),
            offsite,
        }
    }
}

impl From<node::UpdatePolicy> for UpdateDocument {
    fn from(wire: node::UpdatePolicy) -> Self {
        let rehearsal = match wire.rehearsal() {
            node::Rehearsal::Unspecified => None,
            node::Rehearsal::Auto => Some(RehearsalDocument::Auto),
            node::Rehearsal::Always => Some(RehearsalDocument::Always),
            node::Rehearsal::Never => Some(RehearsalDocument::Never),
        };
        Self {
            rehearsal,
            keep_replaced: wire.keep_replaced.map(|span| Span::from_wire(span.seconds, span.nanos)),
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}
