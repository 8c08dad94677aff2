//! The container of an instance, completely described.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use crate::data::DataGeneration;
use crate::name::{ImageRef, InstanceName};
use crate::plan::DesiredInstance;
use crate::spec::{InstanceSpec, Resources};
use crate::stamp::{Digest, Generation};

/// Where the state directory is mounted (OpenClaw's own default for user `node`).
pub(crate) const STATE_DIR: &str = "/home/node/.openclaw";

/// The container's name, and its network's: `claw-<instance>`.
#[must_use]
pub fn container_name(instance: &InstanceName) -> String {
    format!("claw-{instance}")
}

/// The name of an instance's network: `claw-<instance>`.
#[must_use]
pub fn network_name(instance: &InstanceName) -> String {
    format!("claw-{instance}")
}

/// Everything Docker is told; an adapter adds only where data and secrets lie on the host.
///
/// Hardening is not a choice and therefore not here: uid 1000, read-only root, tmpfs `/tmp`, all
/// capabilities dropped, no new privileges (measured to work with OpenClaw 2026.9.6).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerPlan {
    /// The instance, for labels and paths.
    pub instance: InstanceName,
    /// Label `dev.claw.generation`.
    pub generation: Generation,
    /// Label `dev.claw.spec-digest`.
    pub digest: Digest,
    /// `claw-<instance>`.
    pub name: String,
    /// Fixed per instance: OpenClaw's owner lease crash-loops a container that returns under
    /// another hostname.
    pub hostname: String,
    /// What to run.
    pub image: ImageRef,
    /// Environment, without any secret.
    pub env: BTreeMap<String, String>,
    /// Limits.
    pub resources: Resources,
    /// Name of its network.
    pub network: String,
    /// Its fixed address there.
    pub address: IpAddr,
    /// Where it resolves names: the bridge.
    pub dns: IpAddr,
    /// Which of the instance's data directories is mounted.
    pub data: DataGeneration,
    /// Where the state directory is mounted in the container.
    pub state_dir: &'static str,
    /// Docker's own stop timeout.
    pub stop_grace: Duration,
}

/// The container of an instance.
#[must_use]
pub fn container_plan(desired: &DesiredInstance, spec: &InstanceSpec) -> ContainerPlan {
    ContainerPlan {
        instance: desired.name.clone(),
        generation: desired.generation,
        digest: container_digest(desired, spec),
        name: container_name(&desired.name),
        hostname: desired.name.to_string(),
        image: spec.image.clone(),
        env: environment(spec),
        resources: spec.resources,
        network: network_name(&desired.name),
        address: desired.network.container(),
        dns: desired.network.gateway(),
        data: desired.data,
        state_dir: STATE_DIR,
        stop_grace: spec.stop_grace,
    }
}

/// Digest of what cannot change without a new container. CPU and process limits can, and are left
/// out; memory cannot, because Node's heap limit follows it.
#[must_use]
pub fn container_digest(desired: &DesiredInstance, spec: &InstanceSpec) -> Digest {
    let mut text = format!(
        "v2\nimage {}\ndata {}\nmemory {}\nrebuilds {}\nnetwork {} {}\ngrace {}\n",
        spec.image,
        desired.data,
        spec.resources.memory.bytes(),
        spec.rebuilds,
        desired.network.subnet(),
        desired.network.bridge(),
        spec.stop_grace.as_secs(),
    );
    for (name, value) in environment(spec) {
        text.push_str(&format!("env {name} {} {value}\n", value.len()));
    }
    Digest::of(text.as_bytes())
}

/// The platform's variables; the spec's own cannot replace them.
fn environment(spec: &InstanceSpec) -> BTreeMap<String, String> {
    let mut env: BTreeMap<String, String> =
        spec.env.iter().map(|(name, value)| (name.to_string(), value.clone())).collect();
    let heap = spec.resources.memory.heap_limit_mib();
    let platform = [
        ("NODE_OPTIONS", format!("--max-old-space-size={heap}")),
        // With a read-only root OpenClaw exits 78 with a misleading database error without it.
        ("XDG_CACHE_HOME", format!("{STATE_DIR}/cache")),
        ("npm_config_cache", "/tmp/npm".to_owned()),
        ("OPENCLAW_DISABLE_BONJOUR", "1".to_owned()),
        ("OPENCLAW_NO_AUTO_UPDATE", "1".to_owned()),
    ];
    env.extend(platform.map(|(name, value)| (name.to_owned(), value)));
    env
}
