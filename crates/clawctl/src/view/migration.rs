//! Moves of instances and storages off-site as clawctl prints them.

use std::fmt;

use claw_proto::convert::timestamp_from_wire;
use claw_proto::fleet::v1 as fleet;
use claw_proto::node::v1 as node;
use serde::Serialize;

use super::{enum_text, id, size, time};

/// The move of an instance to another host.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct MigrationView {
    /// Such as `preparing`.
    stage: String,
    source_host: String,
    target_host: String,
    /// `host` or `offsite`.
    source: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    snapshot: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    begin_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stage_time: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    problem: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    permille: Option<u32>,
}

/// Where a host copies its repositories to.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct StorageView {
    endpoint: String,
    region: String,
    bucket: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    prefix: String,
    /// `path` or `host`.
    addressing: String,
    /// Bytes per second; 0: no limit.
    bandwidth: u64,
    keys_set: bool,
}

impl From<fleet::Migration> for MigrationView {
    fn from(wire: fleet::Migration) -> Self {
        let text = |at: Option<_>| at.map(|at| time::text(timestamp_from_wire(&at)));
        let stage = fleet::MigrationStage::try_from(wire.stage).ok();
        let source = fleet::MigrationSource::try_from(wire.source).ok();
        Self {
            stage: enum_text(stage.map(|s| s.as_str_name()), "MIGRATION_STAGE_", wire.stage),
            source_host: id(&wire.source_host).to_owned(),
            target_host: id(&wire.target_host).to_owned(),
            source: enum_text(source.map(|s| s.as_str_name()), "MIGRATION_SOURCE_", wire.source),
            snapshot: id(&wire.snapshot).to_owned(),
            begin_time: text(wire.begin_time),
            stage_time: text(wire.stage_time),
            problem: wire.problem,
            permille: wire.permille.map(|permille| permille.min(1000)),
        }
    }
}

impl MigrationView {
    /// Whether it is under way.
    pub(crate) fn goes_on(&self) -> bool {
        !matches!(self.stage.as_str(), "done" | "reverted")
    }
}

impl fmt::Display for MigrationView {
    /// `preparing, vps1 to vps2, 25%: the connection broke`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {} to {}", self.stage, self.source_host, self.target_host)?;
        if let Some(permille) = self.permille {
            write!(f, ", {}%", permille / 10)?;
        }
        if self.problem.is_empty() { Ok(()) } else { write!(f, ": {}", self.problem) }
    }
}

impl From<fleet::HostOffsite> for StorageView {
    fn from(wire: fleet::HostOffsite) -> Self {
        let addressing = node::BucketAddressing::try_from(wire.addressing).ok();
        let addressing = addressing.map(|a| a.as_str_name());
        Self {
            addressing: enum_text(addressing, "BUCKET_ADDRESSING_", wire.addressing),
            endpoint: wire.endpoint,
            region: wire.region,
            bucket: wire.bucket,
            prefix: wire.prefix,
            bandwidth: wire.bandwidth,
            keys_set: wire.keys_set,
        }
    }
}

impl fmt::Display for StorageView {
    /// `https://s3.example/claws/fleet, at most 8MiB/s`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.endpoint, self.bucket)?;
        if !self.prefix.is_empty() {
            write!(f, "/{}", self.prefix)?;
        }
        if self.bandwidth > 0 {
            write!(f, ", at most {}/s", size(self.bandwidth))?;
        }
        if self.keys_set { Ok(()) } else { f.write_str(", no keys") }
    }
}
