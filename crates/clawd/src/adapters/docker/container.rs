//! How a gateway's container is made, and how one is read. Pure.

use std::collections::HashMap;
use std::net::IpAddr;

use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, ContainerState as State,
    ContainerStateStatusEnum as Status, ContainerUpdateBody, EndpointIpamConfig, EndpointSettings,
    HealthConfig, HostConfig, HostConfigLogConfig, Mount, MountType, NetworkingConfig,
    ResourcesUlimits, RestartPolicy, RestartPolicyNameEnum,
};
use claw_core::observed::{ContainerState, Exit, ObservedContainer};
use claw_core::plan::ContainerPlan;
use claw_core::stamp::{Digest, Generation};
use claw_core::time::Timestamp;
use claw_core::unit::{CpuMillis, PidsLimit};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::events::OomLog;
use super::{DIGEST_LABEL, GENERATION_LABEL, INSTANCE_LABEL, LOG_FILE_SIZE, LOG_FILES};
use crate::ports::Mounts;

/// Exit status of a process that SIGKILL ended: 128 + 9.
const KILLED: i64 = 137;

/// Between ordinary processes (0) and a certain victim (1000): when the whole host is out of memory,
/// a container goes before the host's own services do.
const OOM_SCORE: i64 = 500;

/// The container of a plan.
pub(super) fn create_body(plan: &ContainerPlan, mounts: &Mounts) -> ContainerCreateBody {
    let labels = [
        (INSTANCE_LABEL, plan.instance.to_string()),
        (GENERATION_LABEL, plan.generation.to_string()),
        (DIGEST_LABEL, plan.digest.to_string()),
    ];
    let endpoint = EndpointSettings {
        ipam_config: Some(EndpointIpamConfig {
            ipv4_address: Some(plan.address.to_string()),
            ..EndpointIpamConfig::default()
        }),
        ..EndpointSettings::default()
    };
    ContainerCreateBody {
        image: Some(plan.image.to_string()),
        hostname: Some(plan.hostname.clone()),
        user: Some("1000:1000".to_owned()),
        env: Some(plan.env.iter().map(|(name, value)| format!("{name}={value}")).collect()),
        labels: Some(labels.map(|(name, value)| (name.to_owned(), value)).into()),
        // The image's own check runs a program in the container; the agent asks over the network.
        healthcheck: Some(HealthConfig {
            test: Some(vec!["NONE".to_owned()]),
            ..HealthConfig::default()
        }),
        stop_timeout: Some(i64::try_from(plan.stop_grace.as_secs()).unwrap_or(i64::MAX)),
        host_config: Some(host_config(plan, mounts)),
        networking_config: Some(NetworkingConfig {
            endpoints_config: Some(HashMap::from([(plan.network.clone(), endpoint)])),
        }),
        ..ContainerCreateBody::default()
    }
}

/// Hardening (measured to work with OpenClaw 2026.9.6), limits and mounts. No port is published.
fn host_config(plan: &ContainerPlan, mounts: &Mounts) -> HostConfig {
    let memory = i64::try_from(plan.resources.memory.bytes()).unwrap_or(i64::MAX);
    let log_options = [("max-size", LOG_FILE_SIZE), ("max-file", LOG_FILES)];
    let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    HostConfig {
        readonly_rootfs: Some(true),
        tmpfs: Some(HashMap::from([owned(("/tmp", "rw,noexec,nosuid,nodev,size=256m,mode=1777"))])),
        cap_drop: Some(vec!["ALL".to_owned()]),
        security_opt: Some(vec!["no-new-privileges".to_owned()]),
        ipc_mode: Some("private".to_owned()),
        privileged: Some(false),
        publish_all_ports: Some(false),
        // A core file would hold the secrets.
        ulimits: Some(vec![ResourcesUlimits {
            name: Some("core".to_owned()),
            soft: Some(0),
            hard: Some(0),
        }]),
        memory: Some(memory),
        // Memory and swap together: no swap on top.
        memory_swap: Some(memory),
        nano_cpus: Some(nano_cpus(plan.resources.cpu)),
        pids_limit: Some(pids_limit(plan.resources.pids)),
        oom_score_adj: Some(OOM_SCORE),
        init: Some(false),
        // The agent brings it back, with back-off.
        restart_policy: Some(RestartPolicy {
            name: Some(RestartPolicyNameEnum::NO),
            ..RestartPolicy::default()
        }),
        mounts: Some(vec![
            bind(&mounts.data.to_string_lossy(), plan.state_dir, false),
            bind(&mounts.secrets.to_string_lossy(), &format!("{}/.env", plan.state_dir), true),
        ]),
        network_mode: Some(plan.network.clone()),
        dns: Some(vec![plan.dns.to_string()]),
        log_config: Some(HostConfigLogConfig {
            typ: Some("json-file".to_owned()),
            config: Some(log_options.map(owned).into()),
        }),
        ..HostConfig::default()
    }
}

/// A bind mount; unlike a `-v` volume, one whose source is missing is refused.
fn bind(source: &str, target: &str, read_only: bool) -> Mount {
    Mount {
        typ: Some(MountType::BIND),
        source: Some(source.to_owned()),
        target: Some(target.to_owned()),
        read_only: Some(read_only),
        ..Mount::default()
    }
}

/// A change of limits.
pub(super) fn update_body(cpu: CpuMillis, pids: PidsLimit) -> ContainerUpdateBody {
    ContainerUpdateBody {
        nano_cpus: Some(nano_cpus(cpu)),
        pids_limit: Some(pids_limit(pids)),
        ..ContainerUpdateBody::default()
    }
}

fn nano_cpus(cpu: CpuMillis) -> i64 {
    i64::try_from(cpu.nano()).unwrap_or(i64::MAX)
}

fn pids_limit(pids: PidsLimit) -> i64 {
    i64::try_from(pids.count()).unwrap_or(i64::MAX)
}

/// The instance that a container's label names.
pub(super) fn instance_of(found: &ContainerInspectResponse) -> Option<String> {
    label(found, INSTANCE_LABEL)
}

/// The digest that a container's label holds.
pub(super) fn digest_of(found: &ContainerInspectResponse) -> Option<Digest> {
    Digest::from_hex(&label(found, DIGEST_LABEL)?)
}

/// Whether a container runs and is not frozen.
pub(super) fn is_running(found: &ContainerInspectResponse) -> bool {
    status(found) == Some(Status::RUNNING)
}

/// Whether a container runs and is frozen.
pub(super) fn is_frozen(found: &ContainerInspectResponse) -> bool {
    status(found) == Some(Status::PAUSED)
}

fn status(found: &ContainerInspectResponse) -> Option<Status> {
    found.state.as_ref()?.status
}

fn label(found: &ContainerInspectResponse, name: &str) -> Option<String> {
    found.config.as_ref()?.labels.as_ref()?.get(name).cloned()
}

/// A container in our terms; `None` if the answer lacks what makes it one.
pub(super) fn observed(
    found: ContainerInspectResponse,
    oom_log: &OomLog,
) -> Option<ObservedContainer> {
    let spec_digest = digest_of(&found);
    let generation = label(&found, GENERATION_LABEL).and_then(|text| text.parse().ok());
    let id = found.id?;
    let state = state(found.state.as_ref()?, oom_log.last(&id));
    let limits = found.host_config.unwrap_or_default();
    let positive = |limit: Option<i64>| limit.and_then(|l| u64::try_from(l).ok()).unwrap_or(0);
    let networks = found.network_settings.and_then(|settings| settings.networks);
    let address = networks.unwrap_or_default().into_values().find_map(|network| {
        let address: IpAddr = network.ip_address?.parse().ok()?;
        Some(address)
    });
    Some(ObservedContainer {
        id,
        spec_digest,
        generation: generation.map(Generation),
        state,
        nano_cpus: positive(limits.nano_cpus),
        pids_limit: positive(limits.pids_limit),
        address,
    })
}

/// What a container is doing; `oom` is when the last out-of-memory event of it was seen.
pub(super) fn state(state: &State, oom: Option<Timestamp>) -> ContainerState {
    let at = |text: &Option<String>| text.as_deref().and_then(instant).unwrap_or_default();
    match state.status {
        Some(Status::CREATED) => ContainerState::Created,
        Some(Status::PAUSED) => ContainerState::Paused,
        // Docker 29 has a state of its own for a process that was told to end and lives.
        Some(Status::RUNNING | Status::STOPPING) => ContainerState::Running {
            since: at(&state.started_at),
            pid: state.pid.and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0),
        },
        // "restarting" is down between two attempts of Docker's own, which ours never makes.
        _ => {
            let code = state.exit_code.unwrap_or(0);
            let event = oom.is_some_and(|oom| oom >= at(&state.started_at));
            // Docker's flag says that something in the container was killed for want of memory in
            // this run; that it was the gateway shows in its exit status.
            let oom = code == KILLED && (state.oom_killed == Some(true) || event);
            ContainerState::Exited(Exit { code, oom, at: at(&state.finished_at) })
        }
    }
}

/// A point in time as Docker writes it; year 1 stands for never and is none.
pub(super) fn instant(text: &str) -> Option<Timestamp> {
    let time = OffsetDateTime::parse(text, &Rfc3339).ok().filter(|time| time.year() > 1)?;
    let millis = time.unix_timestamp_nanos() / 1_000_000;
    i64::try_from(millis).ok().map(Timestamp::from_millis)
}

#[cfg(test)]
pub(super) mod tests;
