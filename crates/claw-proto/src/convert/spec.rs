//! Instances on the wire: the API's `InstanceSpec` and the agent's `InstanceAssignment`.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use claw_core::firewall::NetworkPolicy;
use claw_core::host::HostState;
use claw_core::name::{DomainName, EnvName, ImageRef, InstanceName, Origin, StatePath};
use claw_core::spec::{
    HealthPolicy, InstanceSpec, MAX_CONTENT_BYTES, Resources, RunState, Secret, WebPolicy,
};
use claw_core::unit::{CpuMillis, Memory, PidsLimit};
use prost::Message as _;

use super::backup::{
    backup_policy_from_wire, backup_policy_to_wire, offsite_storage_from_wire,
    offsite_storage_to_wire, part, restore_from_wire, restore_to_wire, update_policy_from_wire,
    update_policy_to_wire,
};
use super::firewall::{
    host_policy_from_wire, host_policy_to_wire, network_policy_from_wire, network_policy_to_wire,
};
use super::time::{duration_from_wire, duration_to_wire};
use super::violation::Violations;
use crate::node::v1 as node;

pub use super::api_spec::{Counters, IDENTITY_PATH, instance_spec, keep_secrets, redact};

/// Most entries of any map or list of a spec.
pub(super) const MAX_ENTRIES: usize = 256;

/// A host's state as the bytes that its digest is over.
#[must_use]
pub fn encode_host_state(state: &HostState) -> Bytes {
    let wire = node::HostState {
        instances: state.instances.iter().map(|(name, spec)| assignment(name, spec)).collect(),
        confirm_removal: state.confirm_removal.iter().map(ToString::to_string).collect(),
        firewall: unless_default(&state.firewall, host_policy_to_wire),
        offsite: state.offsite.as_ref().map(offsite_storage_to_wire),
    };
    wire.encode_to_vec().into()
}

/// A host's state from its bytes.
///
/// # Errors
/// Every wrong field of every instance, or one violation that says the bytes are no such message.
pub fn decode_host_state(bytes: &[u8]) -> Result<HostState, Violations> {
    let wire = node::HostState::decode(bytes)
        .map_err(|error| Violations::one("host_state", format!("not decodable: {error}")))?;
    let mut violations = Violations::default();
    let mut state = HostState::default();
    for (index, assignment) in wire.instances.into_iter().enumerate() {
        let field = format!("instances[{index}]");
        let name = violations.take(&format!("{field}.name"), InstanceName::parse(&assignment.name));
        match spec_from_assignment(assignment) {
            Ok(spec) => {
                let taken = name.and_then(|name| state.instances.insert(name, spec));
                if taken.is_some() {
                    violations.push(&format!("{field}.name"), "appears twice");
                }
            }
            Err(more) => violations.extend(more.below(&field)),
        }
    }
    for (index, name) in wire.confirm_removal.iter().enumerate() {
        let field = format!("confirm_removal[{index}]");
        let parsed = violations.take(&field, InstanceName::parse(name));
        state.confirm_removal.extend(parsed);
    }
    if let Some(firewall) = &wire.firewall {
        match host_policy_from_wire(firewall) {
            Ok(policy) => state.firewall = policy,
            Err(more) => violations.extend(more.below("firewall")),
        }
    }
    match wire.offsite.as_ref().map(offsite_storage_from_wire).transpose() {
        Ok(storage) => state.offsite = storage,
        Err(more) => violations.extend(more.below("offsite")),
    }
    violations.into_result().map(|()| state)
}

/// One instance's assignment as bytes for its own snapshots: names of secrets, no values.
#[must_use]
pub fn encode_assignment_without_secrets(name: &InstanceName, spec: &InstanceSpec) -> Vec<u8> {
    let mut wire = assignment(name, spec);
    wire.secrets.values_mut().for_each(String::clear);
    wire.encode_to_vec()
}

/// One instance's assignment from its bytes.
///
/// # Errors
/// Every wrong field, or one violation that says the bytes are no such message.
pub fn decode_assignment(bytes: &[u8]) -> Result<(InstanceName, InstanceSpec), Violations> {
    let wire = node::InstanceAssignment::decode(bytes)
        .map_err(|error| Violations::one("assignment", format!("not decodable: {error}")))?;
    let mut violations = Violations::default();
    let name = violations.take("name", InstanceName::parse(&wire.name));
    match (name, spec_from_assignment(wire)) {
        (Some(name), Ok(spec)) => Ok((name, spec)),
        (_, Ok(_)) => Err(violations),
        (_, Err(more)) => {
            violations.extend(more);
            Err(violations)
        }
    }
}

/// A default is left out: a state without any policy has the bytes, and so the digest, that it had before
/// there were policies.
fn unless_default<T: Default + PartialEq, W>(policy: &T, to_wire: fn(&T) -> W) -> Option<W> {
    (*policy != T::default()).then(|| to_wire(policy))
}

fn assignment(name: &InstanceName, spec: &InstanceSpec) -> node::InstanceAssignment {
    node::InstanceAssignment {
        name: name.to_string(),
        image: spec.image.to_string(),
        memory_bytes: spec.resources.memory.bytes(),
        cpu_millis: spec.resources.cpu.millis(),
        pids_limit: spec.resources.pids.count(),
        running: spec.run == RunState::Running,
        restarts: spec.restarts,
        rebuilds: spec.rebuilds,
        env: spec.env.iter().map(|(k, v)| (k.to_string(), v.clone())).collect(),
        secrets: spec.secrets.iter().map(|(k, v)| (k.to_string(), v.reveal().to_owned())).collect(),
        config: spec.config.clone(),
        files: spec.files.iter().map(|(k, v)| (k.to_string(), v.clone())).collect(),
        hostnames: spec.web.hostnames.iter().map(ToString::to_string).collect(),
        allowed_origins: spec.web.allowed_origins.iter().map(ToString::to_string).collect(),
        startup_deadline: Some(duration_to_wire(spec.health.startup_deadline)),
        min_healthy: Some(duration_to_wire(spec.health.min_healthy)),
        hang_deadline: Some(duration_to_wire(spec.health.hang_deadline)),
        stop_grace: Some(duration_to_wire(spec.stop_grace)),
        network: unless_default(&spec.network, network_policy_to_wire),
        paused: spec.run == RunState::Paused,
        backup: unless_default(&spec.backup, backup_policy_to_wire),
        update: unless_default(&spec.update, update_policy_to_wire),
        restore: spec.restore.as_ref().map(restore_to_wire),
    }
}

fn spec_from_assignment(wire: node::InstanceAssignment) -> Result<InstanceSpec, Violations> {
    let mut v = Violations::default();
    let image = v.take("image", ImageRef::parse(&wire.image));
    let resources = resources(&mut v, "", wire.memory_bytes, wire.cpu_millis, wire.pids_limit);
    let env = env(&mut v, "env", wire.env);
    let secrets = env_names(&mut v, "secrets", wire.secrets, Secret::new);
    let files = files(&mut v, "files", wire.files);
    let web = web(&mut v, &wire.hostnames, &wire.allowed_origins);
    let startup_deadline = bounded(&mut v, STARTUP_DEADLINE, wire.startup_deadline.as_ref());
    let min_healthy = bounded(&mut v, MIN_HEALTHY, wire.min_healthy.as_ref());
    let hang_deadline = bounded(&mut v, HANG_DEADLINE, wire.hang_deadline.as_ref());
    let stop_grace = bounded(&mut v, STOP_GRACE, wire.stop_grace.as_ref());
    let network = network(&mut v, wire.network.as_ref());
    let run = run_state(&mut v, wire.running, wire.paused);
    let backup = part(&mut v, "backup", wire.backup.as_ref(), backup_policy_from_wire);
    let update = part(&mut v, "update", wire.update.as_ref(), update_policy_from_wire);
    let restore =
        part(&mut v, "restore", wire.restore.as_ref(), |order| restore_from_wire(order).map(Some));
    let (Some(image), Some(resources)) = (image, resources) else { return Err(v) };
    let spec = InstanceSpec {
        image,
        resources,
        run,
        restarts: wire.restarts,
        rebuilds: wire.rebuilds,
        env,
        secrets,
        config: wire.config,
        files,
        web,
        network,
        health: HealthPolicy { startup_deadline, min_healthy, hang_deadline },
        stop_grace,
        backup,
        update,
        restore,
    };
    check_content(&mut v, &spec);
    v.into_result().map(|()| spec)
}

fn run_state(v: &mut Violations, running: bool, paused: bool) -> RunState {
    match (running, paused) {
        (true, false) => RunState::Running,
        (false, false) => RunState::Stopped,
        (false, true) => RunState::Paused,
        (true, true) => {
            v.push("paused", "must not be set together with running");
            RunState::Paused
        }
    }
}

/// A duration field with its bounds and default.
#[derive(Debug, Clone, Copy)]
pub(super) struct DurationField {
    pub(super) field: &'static str,
    pub(super) default: Duration,
    pub(super) min: Duration,
    pub(super) max: Duration,
}

const HOUR: Duration = Duration::from_secs(3600);

/// From 1 s to 1 h.
pub(super) const STARTUP_DEADLINE: DurationField = DurationField {
    field: "health.startup_deadline",
    default: Duration::from_secs(180),
    min: Duration::from_secs(1),
    max: HOUR,
};

/// From 0 s to 10 min.
pub(super) const MIN_HEALTHY: DurationField = DurationField {
    field: "health.min_healthy",
    default: Duration::from_secs(5),
    min: Duration::ZERO,
    max: Duration::from_secs(600),
};

/// From 5 s to 1 h.
pub(super) const HANG_DEADLINE: DurationField = DurationField {
    field: "health.hang_deadline",
    default: Duration::from_secs(120),
    min: Duration::from_secs(5),
    max: HOUR,
};

/// From 0 s to 1 h.
pub(super) const STOP_GRACE: DurationField = DurationField {
    field: "stop_grace",
    default: claw_core::spec::DEFAULT_STOP_GRACE,
    min: Duration::ZERO,
    max: HOUR,
};

pub(super) fn bounded(
    v: &mut Violations,
    field: DurationField,
    wire: Option<&prost_types::Duration>,
) -> Duration {
    let Some(wire) = wire else { return field.default };
    let Some(duration) = v.take(field.field, duration_from_wire(wire)) else {
        return field.default;
    };
    if duration < field.min || duration > field.max {
        let (min, max) = (field.min.as_secs(), field.max.as_secs());
        v.push(field.field, format!("must be between {min} s and {max} s"));
    }
    duration
}

pub(super) fn resources(
    v: &mut Violations,
    prefix: &str,
    memory: u64,
    cpu: u64,
    pids: u64,
) -> Option<Resources> {
    let memory = v.take(&format!("{prefix}memory_bytes"), Memory::from_bytes(memory));
    let cpu = v.take(&format!("{prefix}cpu_millis"), CpuMillis::from_millis(cpu));
    let pids = v.take(&format!("{prefix}pids_limit"), PidsLimit::from_count(pids));
    Some(Resources { memory: memory?, cpu: cpu?, pids: pids? })
}

pub(super) fn env(
    v: &mut Violations,
    field: &str,
    wire: BTreeMap<String, String>,
) -> BTreeMap<EnvName, String> {
    env_names(v, field, wire, |value| value)
}

/// Variables with valid names and values without NUL (execve(2) ends a string there).
pub(super) fn env_names<T>(
    v: &mut Violations,
    field: &str,
    wire: BTreeMap<String, String>,
    wrap: impl Fn(String) -> T,
) -> BTreeMap<EnvName, T> {
    count(v, field, wire.len());
    let mut env = BTreeMap::new();
    for (name, value) in wire {
        let key = format!("{field}[{name}]");
        if value.contains('\0') {
            v.push(&key, "must not contain NUL");
        }
        if let Some(name) = v.take(&key, EnvName::parse(&name)) {
            env.insert(name, wrap(value));
        }
    }
    env
}

pub(super) fn files(
    v: &mut Violations,
    field: &str,
    wire: BTreeMap<String, String>,
) -> BTreeMap<StatePath, String> {
    count(v, field, wire.len());
    let mut files = BTreeMap::new();
    for (path, content) in wire {
        let key = format!("{field}[{path}]");
        match StatePath::parse(&path) {
            Ok(path) if path.as_str() == CONFIG_PATH => {
                v.push(&key, "is delivered through the field config");
            }
            Ok(path) => {
                files.insert(path, content);
            }
            Err(error) => v.push(&key, error),
        }
    }
    files
}

/// Where the gateway reads its configuration, below the state directory.
pub(super) const CONFIG_PATH: &str = "openclaw.json";

pub(super) fn web(v: &mut Violations, hostnames: &[String], origins: &[String]) -> WebPolicy {
    count(v, "hostnames", hostnames.len());
    count(v, "allowed_origins", origins.len());
    let mut policy = WebPolicy::default();
    for (index, hostname) in hostnames.iter().enumerate() {
        let parsed = v.take(&format!("hostnames[{index}]"), DomainName::parse(hostname));
        policy.hostnames.extend(parsed);
    }
    for (index, origin) in origins.iter().enumerate() {
        let parsed = v.take(&format!("allowed_origins[{index}]"), Origin::parse(origin));
        policy.allowed_origins.extend(parsed);
    }
    policy
}

pub(super) fn network(v: &mut Violations, wire: Option<&node::NetworkPolicy>) -> NetworkPolicy {
    match wire.map(network_policy_from_wire).transpose() {
        Ok(policy) => policy.unwrap_or_default(),
        Err(more) => {
            v.extend(more.below("network"));
            NetworkPolicy::default()
        }
    }
}

pub(super) fn check_content(v: &mut Violations, spec: &InstanceSpec) {
    let bytes = spec.content_bytes();
    if bytes > MAX_CONTENT_BYTES {
        let message = format!(
            "config, files, env and secrets together must be at most {MAX_CONTENT_BYTES} bytes, are {bytes}"
        );
        v.push("config", message);
    }
}

fn count(v: &mut Violations, field: &str, actual: usize) {
    if actual > MAX_ENTRIES {
        v.push(field, format!("must have at most {MAX_ENTRIES} entries, has {actual}"));
    }
}
