//! Join tokens, gateway tokens, recovery passwords and audit entries as clawctl prints them.

use claw_core::time::Timestamp;
use claw_proto::convert::timestamp_from_wire;
use claw_proto::fleet::v1 as fleet;
use serde::Serialize;

use super::{Resource, id, time};

/// A one-time token, without its secret.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct JoinTokenView {
    name: String,
    pub(crate) host: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) expire_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    use_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    create_time: Option<String>,
    #[serde(skip)]
    expires: Option<Timestamp>,
}

/// What `token create` answers; the only view that holds a join token's secret.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NewTokenView {
    #[serde(flatten)]
    pub(crate) stored: JoinTokenView,
    pub(crate) token: String,
    /// The command that joins the host.
    pub(crate) join_command: String,
}

/// What `gateway-token` answers.
#[derive(Serialize)]
pub(crate) struct GatewayTokenView {
    pub(crate) instance: String,
    pub(crate) token: String,
}

/// What `recovery-password` answers.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RecoveryPasswordView {
    pub(crate) instance: String,
    pub(crate) recovery_password: String,
    /// Where the repository lies on the instance's host.
    pub(crate) repository: String,
}

/// Who did what.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AuditView {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<String>,
    principal: String,
    source: String,
    method: String,
    resource: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    summary: String,
}

impl From<fleet::JoinToken> for JoinTokenView {
    fn from(wire: fleet::JoinToken) -> Self {
        let text = |at: Option<_>| at.map(|at| time::text(timestamp_from_wire(&at)));
        Self {
            name: id(&wire.name).to_owned(),
            host: id(&wire.host).to_owned(),
            expires: wire.expire_time.as_ref().map(timestamp_from_wire),
            expire_time: text(wire.expire_time),
            use_time: text(wire.use_time),
            create_time: text(wire.create_time),
        }
    }
}

impl From<fleet::AuditEntry> for AuditView {
    fn from(wire: fleet::AuditEntry) -> Self {
        Self {
            name: id(&wire.name).to_owned(),
            time: wire.time.map(|at| time::text(timestamp_from_wire(&at))),
            principal: wire.principal,
            source: wire.source,
            method: wire.method,
            resource: wire.resource,
            summary: wire.summary,
        }
    }
}

impl JoinTokenView {
    fn state(&self, now: Timestamp) -> &'static str {
        match (&self.use_time, self.expires) {
            (Some(_), _) => "used",
            (None, Some(end)) if end <= now => "expired",
            (None, _) => "usable",
        }
    }
}

impl Resource for JoinTokenView {
    const HEADER: &'static [&'static str] = &["TOKEN", "HOST", "STATE", "EXPIRES"];

    fn resource(&self) -> String {
        format!("joinTokens/{}", self.name)
    }

    fn row(&self, now: Timestamp) -> Vec<String> {
        let expires = self.expire_time.clone().unwrap_or_default();
        vec![self.name.clone(), self.host.clone(), self.state(now).to_owned(), expires]
    }

    fn details(&self, now: Timestamp) -> Vec<(&'static str, String)> {
        vec![
            ("token", self.name.clone()),
            ("host", self.host.clone()),
            ("state", self.state(now).to_owned()),
            ("expires", self.expire_time.clone().unwrap_or_default()),
            ("used", self.use_time.clone().unwrap_or_default()),
            ("created", self.create_time.clone().unwrap_or_default()),
        ]
    }
}

impl Resource for AuditView {
    const HEADER: &'static [&'static str] =
        &["ENTRY", "TIME", "WHO", "FROM", "METHOD", "RESOURCE", "WHAT"];

    fn resource(&self) -> String {
        format!("auditEntries/{}", self.name)
    }

    fn row(&self, _now: Timestamp) -> Vec<String> {
        vec![
            self.name.clone(),
            self.time.clone().unwrap_or_default(),
            self.principal.clone(),
            self.source.clone(),
            id(&self.method).to_owned(),
            self.resource.clone(),
            self.summary.clone(),
        ]
    }

    fn details(&self, _now: Timestamp) -> Vec<(&'static str, String)> {
        vec![
            ("entry", self.name.clone()),
            ("time", self.time.clone().unwrap_or_default()),
            ("who", self.principal.clone()),
            ("from", self.source.clone()),
            ("method", self.method.clone()),
            ("resource", self.resource.clone()),
            ("what", self.summary.clone()),
        ]
    }
}
