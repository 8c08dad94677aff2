//! What an instance's host says of long operations on it: the one under way, the version in force, the one
//! that was refused, and its snapshots in short.

use std::fmt;

use claw_core::time::Timestamp;
use claw_proto::convert::timestamp_from_wire;
use claw_proto::node::v1 as node;
use serde::Serialize;

use super::{short_image, time};

/// A long operation under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct OperationView {
    /// Such as `update` or `snapshot`.
    pub(crate) kind: String,
    /// Such as `copying the data`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) stage: String,
    /// How much of the stage is done, in thousandths; absent while nobody can know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) permille: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<String>,
}

/// An image on its data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ActiveView {
    pub(crate) image: String,
    pub(crate) data_generation: u32,
}

/// What was tried, failed, and is not tried again by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RefusedView {
    pub(crate) image: String,
    /// The restore order's number; 0 for an update.
    pub(crate) restore: u64,
    pub(crate) rebuilds: u64,
    pub(crate) problem: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    at: Option<String>,
}

/// How the snapshots of an instance stand, in short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct BackupView {
    #[serde(skip_serializing_if = "Option::is_none")]
    last_time: Option<String>,
    count: u32,
    overdue: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    problem: String,
    #[serde(skip)]
    last: Option<Timestamp>,
}

impl From<node::OperationReport> for OperationView {
    fn from(wire: node::OperationReport) -> Self {
        Self {
            kind: wire.kind,
            stage: wire.stage,
            permille: wire.permille.map(|permille| permille.min(1000)),
            since: wire.since.map(|at| time::text(timestamp_from_wire(&at))),
        }
    }
}

impl From<node::Deployment> for ActiveView {
    fn from(wire: node::Deployment) -> Self {
        Self { image: wire.image, data_generation: wire.data_generation }
    }
}

impl From<node::RefusedTarget> for RefusedView {
    fn from(wire: node::RefusedTarget) -> Self {
        Self {
            image: wire.image,
            restore: wire.restore,
            rebuilds: wire.rebuilds,
            problem: wire.problem,
            at: wire.at.map(|at| time::text(timestamp_from_wire(&at))),
        }
    }
}

impl From<node::BackupSummary> for BackupView {
    fn from(wire: node::BackupSummary) -> Self {
        let last = wire.last_at.as_ref().map(timestamp_from_wire);
        Self {
            last_time: last.map(time::text),
            count: wire.count,
            overdue: wire.overdue,
            problem: wire.problem,
            last,
        }
    }
}

impl OperationView {
    /// Whether it brings another version into force.
    pub(crate) fn changes_version(&self) -> bool {
        matches!(self.kind.as_str(), "update" | "restore")
    }

    /// `update: copying the data`.
    pub(crate) fn what(&self) -> String {
        if self.stage.is_empty() {
            self.kind.clone()
        } else {
            format!("{}: {}", self.kind, self.stage)
        }
    }

    /// `update 40%`, for a list.
    pub(super) fn brief(&self) -> String {
        match self.permille {
            Some(permille) => format!("{} {}%", self.kind, permille / 10),
            None => self.kind.clone(),
        }
    }
}

impl fmt::Display for OperationView {
    /// `update: copying the data, 40%`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what())?;
        self.permille.map_or(Ok(()), |permille| write!(f, ", {}%", permille / 10))
    }
}

impl fmt::Display for ActiveView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on gen-{}", short_image(&self.image), self.data_generation)
    }
}

impl RefusedView {
    /// `update` or `restore`.
    pub(super) fn kind(&self) -> &'static str {
        if self.restore == 0 { "update" } else { "restore" }
    }

    /// What to do about it.
    pub(crate) fn hint(&self, instance: &str) -> String {
        match self.kind() {
            "update" => {
                format!("give it another image, or try again with `clawctl rebuild {instance}`")
            }
            _ => format!(
                "roll back to another snapshot, or try again with `clawctl rebuild {instance}`"
            ),
        }
    }
}

impl fmt::Display for RefusedView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let image = short_image(&self.image);
        match self.kind() {
            "update" => write!(f, "update to {image}")?,
            _ => write!(f, "restore with {image}")?,
        }
        self.at.as_ref().map_or(Ok(()), |at| write!(f, " at {at}"))?;
        write!(f, ": {}", self.problem)
    }
}

impl BackupView {
    /// The newest one's age, for a list.
    pub(super) fn brief(&self, now: Timestamp) -> String {
        let age = time::ago(self.last, now);
        match (age.is_empty(), self.overdue) {
            (true, true) => "overdue".to_owned(),
            (false, true) => format!("{age}, overdue"),
            (_, false) => age,
        }
    }

    /// All of it in a line; empty when there is nothing to say.
    pub(super) fn summary(&self, now: Timestamp) -> String {
        let mut parts = match self.count {
            0 => Vec::new(),
            count => vec![format!("{count} snapshots")],
        };
        if self.last.is_some() {
            parts.push(format!("the newest {} ago", time::ago(self.last, now)));
        }
        if self.overdue {
            parts.push("overdue".to_owned());
        }
        if !self.problem.is_empty() {
            parts.push(format!("problem: {}", self.problem));
        }
        parts.join(", ")
    }
}
