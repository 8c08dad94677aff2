//! What the API shows: rows joined with what hosts said last.

mod migration;
pub mod snapshots;

use std::collections::BTreeMap;

use claw_core::name::{HostName, InstanceName};
use claw_core::report::Phase;
use claw_core::time::Timestamp;
use claw_proto::convert::firewall::detail::report_to_wire;
use claw_proto::convert::name::{host_resource, instance_resource};
use claw_proto::convert::session::{
    instance_report_to_wire, phase_to_wire, resources_to_wire, stamp_to_wire,
};
use claw_proto::convert::timestamp_to_wire;
use claw_proto::fleet::v1 as fleet;
use claw_proto::node::v1 as node;

use crate::registry::{Registry, Snapshot};
use crate::store::audit::AuditRow;
use crate::store::hosts::HostRow;
use crate::store::instances::InstanceRow;
use crate::store::tokens::TokenRow;

/// Instances that are wanted on a host, and when they were deleted.
pub type Wanted = BTreeMap<InstanceName, Option<Timestamp>>;

/// A host.
#[must_use]
pub fn host(row: &HostRow, wanted: &Wanted, registry: &Registry, now: Timestamp) -> fleet::Host {
    let known = registry.snapshot(&row.name, now);
    fleet::Host {
        name: host_resource(&row.name),
        labels: row.labels.clone(),
        cordoned: row.cordoned,
        status: Some(host_status(row, wanted, known, registry.host_state(row, now))),
        etag: row.etag(),
        create_time: Some(timestamp_to_wire(row.created)),
        update_time: Some(timestamp_to_wire(row.updated)),
        firewall: row.firewall.clone(),
        offsite: row.offsite.as_ref().map(|stored| offsite(&stored.shown)),
    }
}

fn offsite(shown: &node::OffsiteStorage) -> fleet::HostOffsite {
    fleet::HostOffsite {
        endpoint: shown.endpoint.clone(),
        region: shown.region.clone(),
        bucket: shown.bucket.clone(),
        prefix: shown.prefix.clone(),
        addressing: shown.addressing,
        bandwidth: shown.bandwidth,
        keys_set: true,
    }
}

fn host_status(
    row: &HostRow,
    wanted: &Wanted,
    known: Snapshot,
    state: fleet::HostState,
) -> fleet::HostStatus {
    let strays = strays(&known, wanted);
    let hello = known.hello;
    let reported = known.status.is_some();
    let status = known.status.map(|(status, _at)| status).unwrap_or_default();
    let text =
        |of: fn(&claw_core::report::Hello) -> String| hello.as_ref().map(of).unwrap_or_default();
    fleet::HostStatus {
        state: state.into(),
        last_seen_time: known.last_seen.or(row.last_seen).map(timestamp_to_wire),
        agent_version: text(|hello| hello.agent_version.clone()),
        docker_version: text(|hello| hello.docker_version.clone().unwrap_or_default()),
        kernel_version: text(|hello| hello.kernel_version.clone()),
        boot_id: text(|hello| hello.boot_id.clone()),
        resources: known.resources.as_ref().map(resources_to_wire),
        desired: Some(stamp_to_wire(&row.stamp)),
        persisted: known.persisted.as_ref().map(stamp_to_wire),
        applying_generation: status.applying.map_or(0, |(generation, _since)| generation.0),
        last_result_generation: status.last_result.map_or(0, |generation| generation.0),
        refused: status
            .refused
            .map(|(stamp, reason)| node::Refusal { stamp: Some(stamp_to_wire(&stamp)), reason }),
        strays,
        runtime_problem: status.runtime_problem.unwrap_or_default(),
        certificate_expire_time: row.certificate_expires.map(timestamp_to_wire),
        clone_alarm: known.clone_alarm.unwrap_or_default(),
        firewall: reported.then(|| report_to_wire(&status.firewall)),
    }
}

/// Held there and wanted by nobody, by the newest of status and greeting.
fn strays(known: &Snapshot, wanted: &Wanted) -> Vec<String> {
    let reported = known.status.as_ref().map(|(status, _at)| {
        let held = status.instances.values().filter(|report| report.phase != Phase::Removed);
        held.map(|report| &report.name).collect::<Vec<_>>()
    });
    let greeted = || known.hello.iter().flat_map(|hello| &hello.inventory).collect();
    let held: Vec<&InstanceName> = reported.unwrap_or_else(greeted);
    held.into_iter().filter(|name| !wanted.contains_key(*name)).map(ToString::to_string).collect()
}

/// An instance.
#[must_use]
pub fn instance(
    row: &InstanceRow,
    host: &HostRow,
    registry: &Registry,
    now: Timestamp,
) -> fleet::Instance {
    fleet::Instance {
        name: instance_resource(&row.name),
        uid: row.uid.clone(),
        host: host_resource(&row.host),
        spec: Some(row.spec.clone()),
        status: Some(instance_status(row, host, registry, now)),
        etag: row.etag(),
        create_time: Some(timestamp_to_wire(row.created)),
        update_time: Some(timestamp_to_wire(row.updated)),
        delete_time: row.deleted.map(timestamp_to_wire),
        revision: row.revision,
        migration: row.migration.as_ref().map(|moving| migration::shown(moving, registry)),
    }
}

fn instance_status(
    row: &InstanceRow,
    host: &HostRow,
    registry: &Registry,
    now: Timestamp,
) -> fleet::InstanceStatus {
    let view = registry.instance(&row.host, &row.name);
    let state = registry.host_state(host, now);
    let same_epoch = view.persisted.filter(|stamp| stamp.epoch == host.stamp.epoch);
    let persisted = same_epoch.is_some_and(|stamp| stamp.generation >= row.generation);
    // A report from before this instance existed is about another one of the same name.
    let report = view.report.filter(|(_, at)| *at >= row.created);
    let current = persisted
        && report.as_ref().is_some_and(|(report, _at)| report.generation >= row.generation);
    let phase = report.as_ref().map_or(Phase::Pending, |(report, _at)| report.phase);
    let message = report.as_ref().map(|(report, _at)| report.message.clone());
    fleet::InstanceStatus {
        phase: phase_to_wire(phase).into(),
        message: message.unwrap_or_else(|| waiting(&row.host, state)),
        persisted,
        current,
        host_state: state.into(),
        report: report.as_ref().map(|(report, _at)| instance_report_to_wire(report)),
        report_time: report.as_ref().map(|(_, at)| timestamp_to_wire(*at)),
    }
}

/// Why there is no report yet.
fn waiting(host: &HostName, state: fleet::HostState) -> String {
    match state {
        fleet::HostState::Online => "its host has not reported it yet".to_owned(),
        fleet::HostState::Registered => format!("hosts/{host} has not joined yet"),
        fleet::HostState::Revoked => format!("hosts/{host} is revoked"),
        fleet::HostState::Unknown | fleet::HostState::Unspecified => {
            format!("hosts/{host} has not connected since the coordinator started")
        }
        fleet::HostState::Offline => format!("hosts/{host} is offline"),
    }
}

/// A join token.
#[must_use]
pub fn join_token(row: &TokenRow) -> fleet::JoinToken {
    fleet::JoinToken {
        name: format!("joinTokens/{}", row.id),
        host: host_resource(&row.host),
        expire_time: Some(timestamp_to_wire(row.expires)),
        use_time: row.used.as_ref().map(|(at, _serial)| timestamp_to_wire(*at)),
        create_time: Some(timestamp_to_wire(row.created)),
    }
}

/// An audit entry.
#[must_use]
pub fn audit_entry(row: AuditRow) -> fleet::AuditEntry {
    fleet::AuditEntry {
        name: format!("auditEntries/{}", row.id),
        time: Some(timestamp_to_wire(row.at)),
        principal: row.entry.principal,
        source: row.entry.source,
        method: row.entry.method,
        resource: row.entry.resource,
        summary: row.entry.summary,
    }
}
