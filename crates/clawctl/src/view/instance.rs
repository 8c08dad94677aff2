//! An instance as clawctl prints it; its YAML can be applied again.

use claw_core::time::Timestamp;
use claw_proto::convert::timestamp_from_wire;
use claw_proto::fleet::v1 as fleet;
use claw_proto::node::v1 as node;
use serde::Serialize;

use super::firewall::BlockedView;
use super::migration::MigrationView;
use super::operation::{ActiveView, BackupView, OperationView, RefusedView};
use super::{Resource, enum_text, id, share, short_image, time, yes_no};
use crate::file::Kind;
use crate::file::spec::SpecDocument;

/// A customer's gateway.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct InstanceView {
    kind: Kind,
    pub(crate) name: String,
    uid: String,
    pub(crate) host: String,
    pub(crate) spec: SpecDocument,
    pub(crate) status: StatusView,
    pub(crate) etag: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    create_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    update_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delete_time: Option<String>,
    /// Rises with every change of the spec; absent from coordinators that do not count.
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<u64>,
    /// The move to another host that is under way, or how the last one ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    migration: Option<MigrationView>,
    #[serde(skip)]
    started: Option<Timestamp>,
}

/// What an instance is.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct StatusView {
    /// Where it is on its way, such as `running`.
    pub(crate) phase: String,
    /// Why.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) message: String,
    /// The desired spec has reached the host's disk.
    persisted: bool,
    /// The report is about the present spec and not an older one.
    pub(crate) current: bool,
    /// Whether the host can be reached.
    pub(crate) host_state: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    report_time: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) step: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    container_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    started_at: Option<String>,
    restart_count: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_exit: Option<ExitView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    healthy_since: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ready: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<UsageView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) blocked: Option<BlockedView>,
    /// The long operation under way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) operation: Option<OperationView>,
    /// What passed the gate last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) active: Option<ActiveView>,
    /// What was tried, failed, and is not tried again by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) refused: Option<RefusedView>,
    /// How its snapshots stand.
    #[serde(skip_serializing_if = "Option::is_none")]
    backup: Option<BackupView>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    health_history: Vec<HealthView>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct ExitView {
    code: i64,
    oom: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    at: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct UsageView {
    memory_bytes: u64,
    memory_limit_bytes: u64,
    cpu_usage_us: u64,
    pids: u64,
    oom_kills: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct HealthView {
    #[serde(skip_serializing_if = "Option::is_none")]
    at: Option<String>,
    phase: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
}

impl From<fleet::Instance> for InstanceView {
    fn from(wire: fleet::Instance) -> Self {
        let text = |at: Option<_>| at.map(|at| time::text(timestamp_from_wire(&at)));
        let status = wire.status.unwrap_or_default();
        let started = status.report.as_ref().and_then(|report| report.started_at.as_ref());
        Self {
            kind: Kind::Instance,
            name: id(&wire.name).to_owned(),
            uid: wire.uid,
            host: id(&wire.host).to_owned(),
            started: started.map(timestamp_from_wire),
            spec: wire.spec.unwrap_or_default().into(),
            status: status.into(),
            etag: wire.etag,
            create_time: text(wire.create_time),
            update_time: text(wire.update_time),
            delete_time: text(wire.delete_time),
            revision: Some(wire.revision).filter(|revision| *revision > 0),
            migration: wire.migration.map(MigrationView::from),
        }
    }
}

impl From<fleet::InstanceStatus> for StatusView {
    fn from(wire: fleet::InstanceStatus) -> Self {
        let text = |at: Option<_>| at.map(|at| time::text(timestamp_from_wire(&at)));
        let report = wire.report.unwrap_or_default();
        let message = if wire.message.is_empty() { report.message } else { wire.message };
        Self {
            phase: phase_text(wire.phase),
            message,
            persisted: wire.persisted,
            current: wire.current,
            host_state: host_state_text(wire.host_state),
            report_time: text(wire.report_time),
            step: report.step,
            container_id: report.container_id,
            started_at: text(report.started_at),
            restart_count: report.restart_count,
            last_exit: report.last_exit.map(|exit| ExitView {
                code: exit.code,
                oom: exit.oom,
                at: text(exit.at),
            }),
            healthy_since: text(report.healthy_since),
            ready: report.ready,
            usage: report.usage.map(|usage| UsageView {
                memory_bytes: usage.memory_bytes,
                memory_limit_bytes: usage.memory_limit_bytes,
                cpu_usage_us: usage.cpu_usage_us,
                pids: usage.pids,
                oom_kills: usage.oom_kills,
            }),
            blocked: report.blocked.map(BlockedView::from),
            operation: report.operation.map(OperationView::from),
            active: report.active.map(ActiveView::from),
            refused: report.refused.map(RefusedView::from),
            backup: report.backup.map(BackupView::from),
            health_history: report
                .health_history
                .into_iter()
                .map(|change| HealthView {
                    at: text(change.at),
                    phase: phase_text(change.phase),
                    message: change.message,
                })
                .collect(),
        }
    }
}

impl InstanceView {
    /// The phase, with what makes it doubtful.
    pub(crate) fn state(&self) -> String {
        let status = &self.status;
        let phase = if self.delete_time.is_some() { "deleting" } else { &status.phase };
        match status.host_state.as_str() {
            "online" | "" if status.current || self.delete_time.is_some() => phase.to_owned(),
            "online" | "" => format!("{phase} (old spec)"),
            host => format!("{phase} (host {host})"),
        }
    }

    /// What somebody should know at a glance.
    fn note(&self) -> String {
        let status = &self.status;
        let operation = status.operation.as_ref().map(OperationView::brief);
        let refused = status.refused.as_ref().map(|refused| format!("{} refused", refused.kind()));
        let moving = self.migration.as_ref().filter(|migration| migration.goes_on());
        let moving = moving.map(|migration| format!("moving: {migration}"));
        operation.into_iter().chain(refused).chain(moving).collect::<Vec<_>>().join("; ")
    }

    /// Of operations, version and snapshots.
    fn version_details(&self, now: Timestamp) -> Vec<(&'static str, String)> {
        let status = &self.status;
        let text = |value: Option<String>| value.unwrap_or_default();
        let refused = status.refused.as_ref();
        vec![
            ("operation", text(status.operation.as_ref().map(ToString::to_string))),
            ("migration", text(self.migration.as_ref().map(ToString::to_string))),
            ("active", text(status.active.as_ref().map(ToString::to_string))),
            ("refused", text(refused.map(ToString::to_string))),
            ("hint", text(refused.map(|refused| refused.hint(&self.name)))),
            ("backup", text(status.backup.as_ref().map(|backup| backup.summary(now)))),
        ]
    }
}

impl Resource for InstanceView {
    const HEADER: &'static [&'static str] =
        &["NAME", "HOST", "PHASE", "READY", "RESTARTS", "MEMORY", "UP", "BACKUP", "IMAGE", "NOTE"];

    fn resource(&self) -> String {
        format!("instances/{}", self.name)
    }

    fn row(&self, now: Timestamp) -> Vec<String> {
        let status = &self.status;
        let usage = status.usage.as_ref();
        vec![
            self.name.clone(),
            self.host.clone(),
            self.state(),
            status.ready.map(yes_no).unwrap_or_default(),
            status.restart_count.to_string(),
            usage
                .map(|usage| share(usage.memory_bytes, usage.memory_limit_bytes))
                .unwrap_or_default(),
            time::ago(self.started, now),
            status.backup.as_ref().map(|backup| backup.brief(now)).unwrap_or_default(),
            short_image(&self.spec.image),
            self.note(),
        ]
    }

    fn details(&self, now: Timestamp) -> Vec<(&'static str, String)> {
        let status = &self.status;
        let exit = status.last_exit.as_ref().map(|exit| {
            let why = if exit.oom { "out of memory" } else { "exit" };
            format!("{why}, status {}, at {}", exit.code, exit.at.as_deref().unwrap_or("?"))
        });
        let usage = status.usage.as_ref();
        let begin = vec![
            ("name", self.name.clone()),
            ("uid", self.uid.clone()),
            ("host", self.host.clone()),
            ("phase", self.state()),
            ("message", status.message.clone()),
            ("step", status.step.clone()),
        ];
        let rest = vec![
            ("ready", status.ready.map(yes_no).unwrap_or_default()),
            ("persisted", yes_no(status.persisted)),
            ("up", time::ago(self.started, now)),
            ("healthy since", status.healthy_since.clone().unwrap_or_default()),
            ("restarts", status.restart_count.to_string()),
            ("last exit", exit.unwrap_or_default()),
            (
                "memory",
                usage.map(|u| share(u.memory_bytes, u.memory_limit_bytes)).unwrap_or_default(),
            ),
            ("processes", usage.map(|usage| usage.pids.to_string()).unwrap_or_default()),
            ("oom kills", usage.map(|usage| usage.oom_kills.to_string()).unwrap_or_default()),
            ("blocked", status.blocked.as_ref().map(BlockedView::attempts).unwrap_or_default()),
            ("names asked", status.blocked.as_ref().map(BlockedView::names).unwrap_or_default()),
            ("container", status.container_id.chars().take(12).collect()),
            ("image", self.spec.image.clone()),
            ("tier", self.spec.tier.clone().unwrap_or_default()),
            ("hostnames", self.spec.hostnames.join(", ")),
            ("created", self.create_time.clone().unwrap_or_default()),
            ("updated", self.update_time.clone().unwrap_or_default()),
            ("deleted", self.delete_time.clone().unwrap_or_default()),
            ("revision", self.revision.map(|number| number.to_string()).unwrap_or_default()),
            ("etag", self.etag.clone()),
        ];
        let mut pairs = [begin, self.version_details(now), rest].concat();
        for change in &status.health_history {
            let at = change.at.as_deref().unwrap_or("?");
            let line = format!("{at}  {}  {}", change.phase, change.message);
            pairs.push(("health", line.trim_end().to_owned()));
        }
        pairs
    }
}

/// `PHASE_CRASH_LOOP` is `crash-loop`.
pub(crate) fn phase_text(number: i32) -> String {
    let name = node::Phase::try_from(number).ok();
    enum_text(name.map(|phase| phase.as_str_name()), "PHASE_", number)
}

/// `HOST_STATE_ONLINE` is `online`.
pub(crate) fn host_state_text(number: i32) -> String {
    let name = fleet::HostState::try_from(number).ok();
    enum_text(name.map(|state| state.as_str_name()), "HOST_STATE_", number)
}
