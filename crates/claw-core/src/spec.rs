//! What a customer's gateway should be.
//!
//! An [`InstanceSpec`] is complete: tiers are resolved, defaults are filled in, every name is valid.
//! It says nothing about where the instance runs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use crate::backup::BackupPolicy;
use crate::firewall::NetworkPolicy;
use crate::name::{DomainName, EnvName, ImageRef, Origin, SnapshotName, StatePath};
use crate::unit::{CpuMillis, Memory, PidsLimit};

/// The port a gateway listens on (OpenClaw's default).
pub const GATEWAY_PORT: u16 = 18789;

/// The variable that carries the gateway's token; a gateway without it would invent one.
pub const GATEWAY_TOKEN: &str = "OPENCLAW_GATEWAY_TOKEN";

/// Most bytes of one instance's files, environment and secrets together: 256 KiB.
///
/// A host's whole state is bounded as well, by [`crate::host::MAX_STATE_BYTES`].
pub const MAX_CONTENT_BYTES: usize = 256 * 1024;

/// Limits of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Resources {
    /// Memory limit; swap is not granted on top.
    pub memory: Memory,
    /// CPU limit.
    pub cpu: CpuMillis,
    /// Processes and threads.
    pub pids: PidsLimit,
}

/// Whether the gateway should run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RunState {
    /// Up, and brought back whenever it is not.
    Running,
    /// Down, with data, network and configuration kept.
    Stopped,
    /// As stopped, and a snapshot of the data as it lies there is held.
    Paused,
}

/// Whether a new image is first tried on a copy of the data, cut off from every network, while the old one
/// serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Rehearsal {
    /// Where memory and disk allow; it is said when they do not.
    #[default]
    Auto,
    /// Always: without the room for it the update is refused.
    Always,
    /// Never.
    Never,
}

/// How a new image comes into force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct UpdatePolicy {
    /// Whether it is rehearsed.
    pub rehearsal: Rehearsal,
    /// How long the replaced data is kept beside the new after the update was confirmed.
    pub keep_replaced: Duration,
}

impl UpdatePolicy {
    /// The longest that replaced data may be kept: a month.
    pub const MOST_KEEP: Duration = Duration::from_secs(31 * 24 * 3600);
}

impl Default for UpdatePolicy {
    /// Rehearsed where there is room; an hour to find out that the new one is no good. Its snapshot is held
    /// much longer.
    fn default() -> Self {
        Self { rehearsal: Rehearsal::Auto, keep_replaced: Duration::from_secs(3600) }
    }
}

/// Data of an earlier time shall come back, together with the rest of the spec, as one change.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RestoreOrder {
    /// Counts such orders of this instance; a rise is carried out once.
    pub number: u64,
    /// From which snapshot.
    pub snapshot: SnapshotName,
    /// Where it is read.
    pub from: RestoreSource,
}

/// Where a snapshot is read when data of an earlier time shall come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum RestoreSource {
    /// In the host's own repository.
    #[default]
    Host,
    /// In the copy off-site, straight: the host's own repository is damaged, for example.
    Offsite,
}

/// A text that must never be shown: `Debug` and `Display` print its length only.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Secret(String);

impl Secret {
    /// Takes a secret text.
    #[must_use]
    pub const fn new(text: String) -> Self {
        Self(text)
    }

    /// The secret itself; call it only where it is written to its destination.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({} bytes)", self.0.len())
    }
}

/// How the gateway is reached from outside.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WebPolicy {
    /// Names under which the host's reverse proxy serves the gateway; with none, only under
    /// `<instance>.claw.localhost`.
    pub hostnames: BTreeSet<DomainName>,
    /// Origins from which the gateway's control UI accepts WebSockets.
    pub allowed_origins: BTreeSet<Origin>,
}

/// When a started gateway counts as healthy, and when as hung.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct HealthPolicy {
    /// From start to the first success of `/startupz`; past it the start has failed.
    pub startup_deadline: Duration,
    /// How long it must stay healthy before the deploy counts as done.
    pub min_healthy: Duration,
    /// A gateway that was healthy and has not answered for this long is restarted.
    pub hang_deadline: Duration,
}

impl Default for HealthPolicy {
    /// 180 s to start (18–28 s measured under load, 50 s when overloaded), 5 s of health, 120 s of silence.
    fn default() -> Self {
        Self {
            startup_deadline: Duration::from_secs(180),
            min_healthy: Duration::from_secs(5),
            hang_deadline: Duration::from_secs(120),
        }
    }
}

/// How long a stopping gateway may drain before it is killed: OpenClaw drains up to 315 s when busy
/// and asks for 330 s (measured, 2026.9.6).
pub const DEFAULT_STOP_GRACE: Duration = Duration::from_secs(330);

/// Everything that decides what an instance is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceSpec {
    /// What to run.
    pub image: ImageRef,
    /// Limits.
    pub resources: Resources,
    /// Up or down.
    pub run: RunState,
    /// Counts restarts asked for; a rise restarts the gateway once.
    pub restarts: u64,
    /// Counts rebuilds asked for; a rise replaces the container and keeps the data.
    pub rebuilds: u64,
    /// Plain environment variables.
    pub env: BTreeMap<EnvName, String>,
    /// Variables delivered through the tmpfs `.env`, the gateway's token among them.
    pub secrets: BTreeMap<EnvName, Secret>,
    /// The tenant's `openclaw.json`, JSON5; operator-owned keys are merged over it.
    pub config: String,
    /// Other files below the state directory, `IDENTITY.md` in the workspace among them.
    pub files: BTreeMap<StatePath, String>,
    /// Names and origins.
    pub web: WebPolicy,
    /// What its network may do.
    pub network: NetworkPolicy,
    /// Health gate.
    pub health: HealthPolicy,
    /// Time from SIGTERM to SIGKILL.
    pub stop_grace: Duration,
    /// When snapshots are taken and which are kept.
    pub backup: BackupPolicy,
    /// How a new image comes into force.
    pub update: UpdatePolicy,
    /// The data that shall come back, if any ever shall.
    pub restore: Option<RestoreOrder>,
}

impl InstanceSpec {
    /// The number of the restore that was ordered last; 0 when none ever was.
    #[must_use]
    pub fn restore_number(&self) -> u64 {
        self.restore.as_ref().map_or(0, |order| order.number)
    }

    /// The gateway's token, if the secrets have one.
    #[must_use]
    pub fn gateway_token(&self) -> Option<&Secret> {
        self.secrets.iter().find(|(name, _)| name.as_str() == GATEWAY_TOKEN).map(|(_, value)| value)
    }

    /// Bytes of configuration, files, environment and secrets together; see [`MAX_CONTENT_BYTES`].
    #[must_use]
    pub fn content_bytes(&self) -> usize {
        let env = self.env.iter().map(|(name, value)| name.as_str().len() + value.len());
        let secrets =
            self.secrets.iter().map(|(name, value)| name.as_str().len() + value.reveal().len());
        let files = self.files.iter().map(|(path, text)| path.as_str().len() + text.len());
        self.config.len() + env.chain(secrets).chain(files).sum::<usize>()
    }
}
