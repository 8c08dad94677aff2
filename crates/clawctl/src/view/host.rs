//! A host as clawctl prints it; its YAML can be applied again.

use std::collections::BTreeMap;
use std::time::Duration;

use claw_core::time::Timestamp;
use claw_proto::convert::timestamp_from_wire;
use claw_proto::fleet::v1 as fleet;
use claw_proto::node::v1 as node;
use serde::Serialize;

use super::firewall::FirewallStatusView;
use super::instance::host_state_text;
use super::migration::StorageView;
use super::{Resource, id, share, time};
use crate::file::Kind;
use crate::file::firewall::FirewallDocument;

/// A machine that runs clawd.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct HostView {
    kind: Kind,
    pub(crate) name: String,
    labels: BTreeMap<String, String>,
    pub(crate) cordoned: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    firewall: Option<FirewallDocument>,
    /// Where its repositories are copied to.
    #[serde(skip_serializing_if = "Option::is_none")]
    offsite: Option<StorageView>,
    pub(crate) status: HostStatusView,
    pub(crate) etag: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    create_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    update_time: Option<String>,
}

/// What is known of a host.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct HostStatusView {
    pub(crate) state: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_seen_time: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    agent_version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    docker_version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    kernel_version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    boot_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    resources: Option<ResourcesView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    desired: Option<StampView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    persisted: Option<StampView>,
    applying_generation: u64,
    last_result_generation: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    refused_reason: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    strays: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    runtime_problem: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate_expire_time: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    clone_alarm: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    firewall: Option<FirewallStatusView>,
    #[serde(skip)]
    last_seen: Option<Timestamp>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct ResourcesView {
    memory_total_bytes: u64,
    memory_available_bytes: u64,
    cpu_count: u32,
    cpu_permille: u32,
    load1_centi: u32,
    load5_centi: u32,
    load15_centi: u32,
    disk_total_bytes: u64,
    disk_available_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_pressure: Option<PressureView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_pressure: Option<PressureView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    io_pressure: Option<PressureView>,
    uptime_seconds: i64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct PressureView {
    some_avg10_centi: u32,
    full_avg10_centi: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct StampView {
    epoch: u64,
    generation: u64,
}

impl From<fleet::Host> for HostView {
    fn from(wire: fleet::Host) -> Self {
        let text = |at: Option<_>| at.map(|at| time::text(timestamp_from_wire(&at)));
        Self {
            kind: Kind::Host,
            name: id(&wire.name).to_owned(),
            labels: wire.labels,
            cordoned: wire.cordoned,
            firewall: wire.firewall.map(FirewallDocument::from),
            offsite: wire.offsite.map(StorageView::from),
            status: wire.status.unwrap_or_default().into(),
            etag: wire.etag,
            create_time: text(wire.create_time),
            update_time: text(wire.update_time),
        }
    }
}

impl From<fleet::HostStatus> for HostStatusView {
    fn from(wire: fleet::HostStatus) -> Self {
        let text = |at: Option<_>| at.map(|at| time::text(timestamp_from_wire(&at)));
        let stamp =
            |stamp: node::Stamp| StampView { epoch: stamp.epoch, generation: stamp.generation };
        Self {
            state: host_state_text(wire.state),
            last_seen: wire.last_seen_time.as_ref().map(timestamp_from_wire),
            last_seen_time: text(wire.last_seen_time),
            agent_version: wire.agent_version,
            docker_version: wire.docker_version,
            kernel_version: wire.kernel_version,
            boot_id: wire.boot_id,
            resources: wire.resources.map(ResourcesView::from),
            desired: wire.desired.map(stamp),
            persisted: wire.persisted.map(stamp),
            applying_generation: wire.applying_generation,
            last_result_generation: wire.last_result_generation,
            refused_reason: wire.refused.map(|refusal| refusal.reason).unwrap_or_default(),
            strays: wire.strays,
            runtime_problem: wire.runtime_problem,
            certificate_expire_time: text(wire.certificate_expire_time),
            clone_alarm: wire.clone_alarm,
            firewall: wire.firewall.map(FirewallStatusView::from),
        }
    }
}

impl From<node::HostResources> for ResourcesView {
    fn from(wire: node::HostResources) -> Self {
        let pressure = |pressure: node::Pressure| PressureView {
            some_avg10_centi: pressure.some_avg10_centi,
            full_avg10_centi: pressure.full_avg10_centi,
        };
        Self {
            memory_total_bytes: wire.memory_total_bytes,
            memory_available_bytes: wire.memory_available_bytes,
            cpu_count: wire.cpu_count,
            cpu_permille: wire.cpu_permille,
            load1_centi: wire.load1_centi,
            load5_centi: wire.load5_centi,
            load15_centi: wire.load15_centi,
            disk_total_bytes: wire.disk_total_bytes,
            disk_available_bytes: wire.disk_available_bytes,
            cpu_pressure: wire.cpu_pressure.map(pressure),
            memory_pressure: wire.memory_pressure.map(pressure),
            io_pressure: wire.io_pressure.map(pressure),
            uptime_seconds: wire.uptime.map_or(0, |uptime| uptime.seconds),
        }
    }
}

impl ResourcesView {
    fn memory(&self) -> String {
        let used = self.memory_total_bytes.saturating_sub(self.memory_available_bytes);
        share(used, self.memory_total_bytes)
    }

    fn disk(&self) -> String {
        let used = self.disk_total_bytes.saturating_sub(self.disk_available_bytes);
        share(used, self.disk_total_bytes)
    }

    fn cpu(&self) -> String {
        format!("{}% of {}", self.cpu_permille / 10, self.cpu_count)
    }

    fn load(&self) -> String {
        let [one, five, fifteen] = [self.load1_centi, self.load5_centi, self.load15_centi]
            .map(|centi| format!("{}.{:02}", centi / 100, centi % 100));
        format!("{one} {five} {fifteen}")
    }

    fn uptime(&self) -> String {
        time::rough(Duration::from_secs(u64::try_from(self.uptime_seconds).unwrap_or(0)))
    }
}

impl HostStatusView {
    /// What somebody should look at.
    fn alarms(&self) -> String {
        let strays = match self.strays.as_slice() {
            [] => String::new(),
            strays => format!("strays: {}", strays.join(", ")),
        };
        let firewall = self.firewall.as_ref().map(FirewallStatusView::alarm).unwrap_or_default();
        let alarms =
            [&self.clone_alarm, &self.refused_reason, &self.runtime_problem, &firewall, &strays];
        let filled: Vec<&str> =
            alarms.into_iter().map(String::as_str).filter(|text| !text.is_empty()).collect();
        filled.join("; ")
    }
}

impl Resource for HostView {
    const HEADER: &'static [&'static str] =
        &["NAME", "STATE", "SEEN", "AGENT", "MEMORY", "CPU", "DISK", "UP", "NOTE"];

    fn resource(&self) -> String {
        format!("hosts/{}", self.name)
    }

    fn row(&self, now: Timestamp) -> Vec<String> {
        let status = &self.status;
        let of = |text: fn(&ResourcesView) -> String| {
            status.resources.as_ref().map(text).unwrap_or_default()
        };
        let state = if self.cordoned {
            format!("{}, cordoned", status.state)
        } else {
            status.state.clone()
        };
        vec![
            self.name.clone(),
            state,
            time::ago(status.last_seen, now),
            status.agent_version.clone(),
            of(ResourcesView::memory),
            of(ResourcesView::cpu),
            of(ResourcesView::disk),
            of(ResourcesView::uptime),
            status.alarms(),
        ]
    }

    fn details(&self, now: Timestamp) -> Vec<(&'static str, String)> {
        let status = &self.status;
        let of = |text: fn(&ResourcesView) -> String| {
            status.resources.as_ref().map(text).unwrap_or_default()
        };
        let stamp = |stamp: &Option<StampView>| {
            stamp
                .as_ref()
                .map(|s| format!("{} (epoch {})", s.generation, s.epoch))
                .unwrap_or_default()
        };
        let applying = match status.applying_generation {
            0 => String::new(),
            generation => generation.to_string(),
        };
        let labels = self.labels.iter().map(|(key, value)| format!("{key}={value}"));
        vec![
            ("name", self.name.clone()),
            ("labels", labels.collect::<Vec<_>>().join(", ")),
            ("off-site", self.offsite.as_ref().map(ToString::to_string).unwrap_or_default()),
            ("cordoned", if self.cordoned { "yes" } else { "no" }.to_owned()),
            ("state", status.state.clone()),
            ("last seen", time::ago(status.last_seen, now)),
            ("agent", status.agent_version.clone()),
            ("docker", status.docker_version.clone()),
            ("kernel", status.kernel_version.clone()),
            ("boot", status.boot_id.clone()),
            ("up", of(ResourcesView::uptime)),
            ("memory", of(ResourcesView::memory)),
            ("cpu", of(ResourcesView::cpu)),
            ("load", of(ResourcesView::load)),
            ("disk", of(ResourcesView::disk)),
            ("desired", stamp(&status.desired)),
            ("persisted", stamp(&status.persisted)),
            ("applying", applying),
            ("refused", status.refused_reason.clone()),
            ("strays", status.strays.join(", ")),
            ("docker problem", status.runtime_problem.clone()),
            ("firewall", status.firewall.as_ref().map(ToString::to_string).unwrap_or_default()),
            ("clone alarm", status.clone_alarm.clone()),
            ("certificate until", status.certificate_expire_time.clone().unwrap_or_default()),
            ("created", self.create_time.clone().unwrap_or_default()),
            ("updated", self.update_time.clone().unwrap_or_default()),
            ("etag", self.etag.clone()),
        ]
    }
}
