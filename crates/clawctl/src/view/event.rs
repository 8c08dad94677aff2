//! Events of a host as clawctl prints them.

use claw_core::time::Timestamp;
use claw_proto::convert::timestamp_from_wire;
use claw_proto::node::v1 as node;
use serde::Serialize;

use super::{Resource, enum_text, id, time};

/// One thing that happened on a host.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EventView {
    sequence: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    at: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    instance: String,
    kind: String,
    severity: String,
    message: String,
}

impl From<node::Event> for EventView {
    fn from(wire: node::Event) -> Self {
        let severity = node::Severity::try_from(wire.severity).ok();
        let severity_name = severity.map(|severity| severity.as_str_name());
        Self {
            sequence: wire.sequence,
            at: wire.at.map(|at| time::text(timestamp_from_wire(&at))),
            instance: id(&wire.instance).to_owned(),
            kind: wire.kind,
            severity: enum_text(severity_name, "SEVERITY_", wire.severity),
            message: wire.message,
        }
    }
}

impl Resource for EventView {
    const HEADER: &'static [&'static str] =
        &["EVENT", "TIME", "SEVERITY", "INSTANCE", "KIND", "MESSAGE"];

    fn resource(&self) -> String {
        format!("events/{}", self.sequence)
    }

    fn row(&self, _now: Timestamp) -> Vec<String> {
        vec![
            self.sequence.to_string(),
            self.at.clone().unwrap_or_default(),
            self.severity.clone(),
            self.instance.clone(),
            self.kind.clone(),
            self.message.clone(),
        ]
    }

    fn details(&self, now: Timestamp) -> Vec<(&'static str, String)> {
        Self::HEADER.iter().copied().zip(self.row(now)).collect()
    }
}
