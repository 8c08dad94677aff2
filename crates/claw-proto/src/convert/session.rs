//! The agent's stream: greetings, reports, events.
//!
//! `x_to_wire` cannot fail. `x_from_wire` checks what an agent or coordinator says: a peer is
//! authenticated, not trusted.

use std::collections::BTreeMap;
use std::time::Duration;

use claw_core::event::{Event, EventKind, Severity};
use claw_core::name::{HostName, InstanceName};
use claw_core::observed::Exit;
use claw_core::report::{
    BlockedTraffic, HealthChange, Hello, HostResources, InstanceReport, Phase, Pressure,
    StatusReport, Usage,
};
use claw_core::stamp::{Digest, Epoch, Generation, Stamp};

use super::backup::{
    active_from_wire, active_to_wire, operation_from_wire, operation_to_wire, part,
    refused_from_wire, refused_to_wire, summary_from_wire, summary_to_wire,
};
use super::firewall::detail::{
    blocked_from_wire, blocked_to_wire, report_from_wire, report_to_wire,
};
use super::time::{duration_from_wire, duration_to_wire, timestamp_from_wire, timestamp_to_wire};
use super::violation::Violations;
use crate::node::v1 as node;

pub use super::spec::{decode_host_state, encode_host_state};

/// Most characters of any text for a person; longer ones are cut.
const MAX_TEXT: usize = 2000;

pub(super) fn text(text: &str) -> String {
    text.chars().take(MAX_TEXT).collect()
}

/// A stamp.
#[must_use]
pub fn stamp_to_wire(stamp: &Stamp) -> node::Stamp {
    node::Stamp {
        epoch: stamp.epoch.0,
        generation: stamp.generation.0,
        digest: stamp.digest.as_bytes().to_vec(),
    }
}

/// A stamp.
///
/// # Errors
/// A digest that is not 32 bytes long.
pub fn stamp_from_wire(field: &str, wire: &node::Stamp) -> Result<Stamp, Violations> {
    let digest = Digest::from_slice(&wire.digest).ok_or_else(|| {
        let message = format!("must be 32 bytes, has {}", wire.digest.len());
        Violations::one(&format!("{field}.digest"), message)
    })?;
    Ok(Stamp { epoch: Epoch(wire.epoch), generation: Generation(wire.generation), digest })
}

/// A greeting.
#[must_use]
pub fn hello_to_wire(hello: &Hello) -> node::Hello {
    node::Hello {
        host: hello.host.to_string(),
        boot_id: hello.boot_id.clone(),
        agent_version: hello.agent_version.clone(),
        protocol_version: hello.protocol_version,
        persisted: hello.persisted.as_ref().map(stamp_to_wire),
        inventory: hello.inventory.iter().map(ToString::to_string).collect(),
        docker_version: hello.docker_version.clone().unwrap_or_default(),
        kernel_version: hello.kernel_version.clone(),
        oldest_event: hello.oldest_event,
        next_event: hello.next_event,
    }
}

/// A greeting.
///
/// # Errors
/// Every wrong field at once.
pub fn hello_from_wire(wire: &node::Hello) -> Result<Hello, Violations> {
    let mut v = Violations::default();
    let host = v.take("hello.host", HostName::parse(&wire.host));
    if wire.boot_id.is_empty() || wire.boot_id.len() > 64 {
        v.push("hello.boot_id", "must have 1 to 64 characters");
    }
    let persisted = wire.persisted.as_ref().map(|stamp| stamp_from_wire("hello.persisted", stamp));
    let persisted = match persisted.transpose() {
        Ok(stamp) => stamp,
        Err(more) => {
            v.extend(more);
            None
        }
    };
    let mut inventory = std::collections::BTreeSet::new();
    for (index, name) in wire.inventory.iter().enumerate() {
        inventory.extend(v.take(&format!("hello.inventory[{index}]"), InstanceName::parse(name)));
    }
    if wire.next_event < wire.oldest_event {
        v.push("hello.next_event", "must not be below oldest_event");
    }
    let Some(host) = host else { return Err(v) };
    let docker_version = (!wire.docker_version.is_empty()).then(|| text(&wire.docker_version));
    let hello = Hello {
        host,
        boot_id: wire.boot_id.clone(),
        agent_version: text(&wire.agent_version),
        protocol_version: wire.protocol_version,
        persisted,
        inventory,
        docker_version,
        kernel_version: text(&wire.kernel_version),
        oldest_event: wire.oldest_event,
        next_event: wire.next_event,
    };
    v.into_result().map(|()| hello)
}

/// A status.
#[must_use]
pub fn status_to_wire(status: &StatusReport) -> node::Status {
    node::Status {
        persisted: status.persisted.as_ref().map(stamp_to_wire),
        applying_generation: status.applying.map_or(0, |(generation, _)| generation.0),
        applying_since: status.applying.map(|(_, since)| timestamp_to_wire(since)),
        last_result_generation: status.last_result.map_or(0, |generation| generation.0),
        refused: status.refused.as_ref().map(|(stamp, reason)| node::Refusal {
            stamp: Some(stamp_to_wire(stamp)),
            reason: reason.clone(),
        }),
        instances: status.instances.values().map(instance_report_to_wire).collect(),
        runtime_problem: status.runtime_problem.clone().unwrap_or_default(),
        firewall: Some(report_to_wire(&status.firewall)),
    }
}

/// A status.
///
/// # Errors
/// Every wrong field at once.
pub fn status_from_wire(wire: &node::Status) -> Result<StatusReport, Violations> {
    let mut v = Violations::default();
    let stamp = |v: &mut Violations, field: &str, wire: Option<&node::Stamp>| {
        let parsed = wire.map(|stamp| stamp_from_wire(field, stamp)).transpose();
        parsed.map_err(|more| v.extend(more)).ok().flatten()
    };
    let persisted = stamp(&mut v, "status.persisted", wire.persisted.as_ref());
    let refused = wire.refused.as_ref().and_then(|refusal| {
        let refused = stamp(&mut v, "status.refused.stamp", refusal.stamp.as_ref())?;
        Some((refused, text(&refusal.reason)))
    });
    let mut instances = BTreeMap::new();
    for (index, report) in wire.instances.iter().enumerate() {
        match instance_report_from_wire(report) {
            Ok(report) => {
                instances.insert(report.name.clone(), report);
            }
            Err(more) => v.extend(more.below(&format!("status.instances[{index}]"))),
        }
    }
    let since = wire.applying_since.as_ref().map(timestamp_from_wire).unwrap_or_default();
    let generation = |number: u64| (number > 0).then_some(Generation(number));
    let status = StatusReport {
        persisted,
        applying: generation(wire.applying_generation).map(|applying| (applying, since)),
        last_result: generation(wire.last_result_generation),
        refused,
        instances,
        runtime_problem: (!wire.runtime_problem.is_empty()).then(|| text(&wire.runtime_problem)),
        firewall: wire.firewall.as_ref().map(report_from_wire).unwrap_or_default(),
    };
    v.into_result().map(|()| status)
}

/// An instance as its host reports it.
#[must_use]
pub fn instance_report_to_wire(report: &InstanceReport) -> node::InstanceReport {
    let step = report.step.as_ref();
    node::InstanceReport {
        name: report.name.to_string(),
        generation: report.generation.0,
        phase: phase_to_wire(report.phase).into(),
        message: text(&report.message),
        step: step.map(|(step, _)| text(step)).unwrap_or_default(),
        step_since: step.map(|(_, since)| timestamp_to_wire(*since)),
        container_id: report.container_id.clone().unwrap_or_default(),
        started_at: report.started_at.map(timestamp_to_wire),
        restart_count: report.restart_count,
        last_exit: report.last_exit.as_ref().map(exit_to_wire),
        healthy_since: report.healthy_since.map(timestamp_to_wire),
        ready: report.ready,
        health_history: report.health_history.iter().map(health_change_to_wire).collect(),
        usage: report.usage.as_ref().map(usage_to_wire),
        blocked: Some(blocked_to_wire(&report.blocked)),
        operation: report.operation.as_ref().map(operation_to_wire),
        active: report.active.as_ref().map(active_to_wire),
        refused: report.refused.as_ref().map(refused_to_wire),
        backup: Some(summary_to_wire(&report.backup)),
    }
}

/// An instance as its host reports it.
///
/// # Errors
/// Every wrong field at once.
pub fn instance_report_from_wire(
    wire: &node::InstanceReport,
) -> Result<InstanceReport, Violations> {
    let mut v = Violations::default();
    let name = v.take("name", InstanceName::parse(&wire.name));
    let phase = phase_from_wire(&mut v, "phase", wire.phase);
    let mut health_history = Vec::new();
    for change in wire.health_history.iter().rev().take(16).rev() {
        health_history.push(HealthChange {
            at: change.at.as_ref().map(timestamp_from_wire).unwrap_or_default(),
            phase: phase_from_wire(&mut v, "health_history.phase", change.phase),
            message: text(&change.message),
        });
    }
    let blocked: BlockedTraffic = part(&mut v, "blocked", wire.blocked.as_ref(), blocked_from_wire);
    let operation =
        part(&mut v, "operation", wire.operation.as_ref(), |w| operation_from_wire(w).map(Some));
    let active = part(&mut v, "active", wire.active.as_ref(), |w| active_from_wire(w).map(Some));
    let refused =
        part(&mut v, "refused", wire.refused.as_ref(), |w| refused_from_wire(w).map(Some));
    let since = wire.step_since.as_ref().map(timestamp_from_wire).unwrap_or_default();
    let Some(name) = name else { return Err(v) };
    let report = InstanceReport {
        name,
        generation: Generation(wire.generation),
        phase,
        message: text(&wire.message),
        step: (!wire.step.is_empty()).then(|| (text(&wire.step), since)),
        container_id: (!wire.container_id.is_empty()).then(|| text(&wire.container_id)),
        started_at: wire.started_at.as_ref().map(timestamp_from_wire),
        restart_count: wire.restart_count,
        last_exit: wire.last_exit.as_ref().map(exit_from_wire),
        healthy_since: wire.healthy_since.as_ref().map(timestamp_from_wire),
        ready: wire.ready,
        health_history,
        usage: wire.usage.as_ref().map(usage_from_wire),
        blocked,
        operation,
        active,
        refused,
        backup: wire.backup.as_ref().map(summary_from_wire).unwrap_or_default(),
    };
    v.into_result().map(|()| report)
}

/// Phases, wire and core.
const PHASES: [(Phase, node::Phase); 13] = [
    (Phase::Pending, node::Phase::Pending),
    (Phase::Pulling, node::Phase::Pulling),
    (Phase::Applying, node::Phase::Applying),
    (Phase::Starting, node::Phase::Starting),
    (Phase::Running, node::Phase::Running),
    (Phase::Unhealthy, node::Phase::Unhealthy),
    (Phase::BackingOff, node::Phase::BackingOff),
    (Phase::CrashLoop, node::Phase::CrashLoop),
    (Phase::Stopped, node::Phase::Stopped),
    (Phase::Paused, node::Phase::Paused),
    (Phase::Failed, node::Phase::Failed),
    (Phase::Removing, node::Phase::Removing),
    (Phase::Removed, node::Phase::Removed),
];

/// A phase.
#[must_use]
pub fn phase_to_wire(phase: Phase) -> node::Phase {
    PHASES
        .iter()
        .find(|(core, _)| *core == phase)
        .map_or(node::Phase::Unspecified, |(_, wire)| *wire)
}

fn phase_from_wire(v: &mut Violations, field: &str, wire: i32) -> Phase {
    let known = PHASES.iter().find(|(_, phase)| i32::from(*phase) == wire);
    if known.is_none() {
        v.push(field, format!("unknown value {wire}"));
    }
    known.map_or(Phase::Pending, |(phase, _)| *phase)
}

fn exit_to_wire(exit: &Exit) -> node::Exit {
    node::Exit { code: exit.code, oom: exit.oom, at: Some(timestamp_to_wire(exit.at)) }
}

fn exit_from_wire(wire: &node::Exit) -> Exit {
    let at = wire.at.as_ref().map(timestamp_from_wire).unwrap_or_default();
    Exit { code: wire.code, oom: wire.oom, at }
}

fn health_change_to_wire(change: &HealthChange) -> node::HealthChange {
    node::HealthChange {
        at: Some(timestamp_to_wire(change.at)),
        phase: phase_to_wire(change.phase).into(),
        message: text(&change.message),
    }
}

fn usage_to_wire(usage: &Usage) -> node::Usage {
    node::Usage {
        memory_bytes: usage.memory_bytes,
        memory_limit_bytes: usage.memory_limit_bytes,
        cpu_usage_us: usage.cpu_usage_us,
        pids: usage.pids,
        oom_kills: usage.oom_kills,
    }
}

fn usage_from_wire(wire: &node::Usage) -> Usage {
    Usage {
        memory_bytes: wire.memory_bytes,
        memory_limit_bytes: wire.memory_limit_bytes,
        cpu_usage_us: wire.cpu_usage_us,
        pids: wire.pids,
        oom_kills: wire.oom_kills,
    }
}

/// The host's resources.
#[must_use]
pub fn resources_to_wire(resources: &HostResources) -> node::HostResources {
    let [load1_centi, load5_centi, load15_centi] = resources.load_centi;
    let pressure = |index: usize| {
        resources.pressure.as_ref().and_then(|all| all.get(index)).map(|p| node::Pressure {
            some_avg10_centi: p.some_avg10_centi,
            full_avg10_centi: p.full_avg10_centi,
        })
    };
    node::HostResources {
        memory_total_bytes: resources.memory_total_bytes,
        memory_available_bytes: resources.memory_available_bytes,
        cpu_count: resources.cpu_count,
        cpu_permille: resources.cpu_permille,
        load1_centi,
        load5_centi,
        load15_centi,
        disk_total_bytes: resources.disk_total_bytes,
        disk_available_bytes: resources.disk_available_bytes,
        cpu_pressure: pressure(0),
        memory_pressure: pressure(1),
        io_pressure: pressure(2),
        uptime: Some(duration_to_wire(resources.uptime)),
    }
}

/// The host's resources; an uptime that is no duration counts as zero.
#[must_use]
pub fn resources_from_wire(wire: &node::HostResources) -> HostResources {
    let pressure = |wire: Option<&node::Pressure>| {
        wire.map(|p| Pressure {
            some_avg10_centi: p.some_avg10_centi,
            full_avg10_centi: p.full_avg10_centi,
        })
    };
    let all = [
        pressure(wire.cpu_pressure.as_ref()),
        pressure(wire.memory_pressure.as_ref()),
        pressure(wire.io_pressure.as_ref()),
    ];
    let uptime = wire.uptime.as_ref().and_then(|uptime| duration_from_wire(uptime).ok());
    HostResources {
        memory_total_bytes: wire.memory_total_bytes,
        memory_available_bytes: wire.memory_available_bytes,
        cpu_count: wire.cpu_count,
        cpu_permille: wire.cpu_permille,
        load_centi: [wire.load1_centi, wire.load5_centi, wire.load15_centi],
        disk_total_bytes: wire.disk_total_bytes,
        disk_available_bytes: wire.disk_available_bytes,
        pressure: match all {
            [Some(cpu), Some(memory), Some(io)] => Some([cpu, memory, io]),
            _ => None,
        },
        uptime: uptime.unwrap_or(Duration::ZERO),
    }
}

/// An event.
#[must_use]
pub fn event_to_wire(event: &Event) -> node::Event {
    let severity = match event.severity {
        Severity::Info => node::Severity::Info,
        Severity::Warning => node::Severity::Warning,
        Severity::Error => node::Severity::Error,
    };
    node::Event {
        sequence: event.sequence,
        at: Some(timestamp_to_wire(event.at)),
        instance: event.instance.as_ref().map(ToString::to_string).unwrap_or_default(),
        kind: event.kind.to_string(),
        severity: severity.into(),
        message: text(&event.message),
    }
}

/// An event.
///
/// # Errors
/// Every wrong field at once.
pub fn event_from_wire(wire: &node::Event) -> Result<Event, Violations> {
    let mut v = Violations::default();
    let instance = if wire.instance.is_empty() {
        None
    } else {
        v.take("event.instance", InstanceName::parse(&wire.instance))
    };
    let kind = EventKind::parse(&wire.kind);
    if kind.is_none() {
        v.push("event.kind", format!("unknown kind {:?}", text(&wire.kind)));
    }
    let severity = match node::Severity::try_from(wire.severity) {
        Ok(node::Severity::Info) => Some(Severity::Info),
        Ok(node::Severity::Warning) => Some(Severity::Warning),
        Ok(node::Severity::Error) => Some(Severity::Error),
        Ok(node::Severity::Unspecified) | Err(_) => {
            v.push("event.severity", format!("unknown value {}", wire.severity));
            None
        }
    };
    let (Some(kind), Some(severity)) = (kind, severity) else { return Err(v) };
    let event = Event {
        sequence: wire.sequence,
        at: wire.at.as_ref().map(timestamp_from_wire).unwrap_or_default(),
        instance,
        kind,
        severity,
        message: text(&wire.message),
    };
    v.into_result().map(|()| event)
}

#[cfg(test)]
mod tests;
