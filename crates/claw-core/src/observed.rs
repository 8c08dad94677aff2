//! What an instance is, as its host sees it. Values only; the agent's ports fill them in.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::cutover::{Cutover, Deployment, RefusedTarget, Replaced};
use crate::data::DataGeneration;
use crate::reclaim::Reclaimed;
use crate::restart::RestartHistory;
use crate::stamp::{Digest, Generation};
use crate::time::Timestamp;

/// Everything [`crate::plan::plan`] may look at.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ObservedInstance {
    /// Whether the image that the spec names is on the host.
    pub image_present: bool,
    /// The instance's own network.
    pub network: Option<ObservedNetwork>,
    /// The instance's container, found by label, never by name.
    pub container: Option<ObservedContainer>,
    /// Whether the data directory exists with its owner and mode.
    pub data_present: bool,
    /// Digest of the secrets file on tmpfs.
    pub secrets: Option<Digest>,
    /// Digest of the delivered files as the journal has it, if all of them still exist.
    pub files: Option<Digest>,
    /// Whether the reverse proxy serves exactly the wanted virtual host.
    pub proxy_current: bool,
    /// Whether the firewall's rules for exactly its network policy are in force.
    pub firewalled: bool,
    /// Whether a snapshot of the data as it lies there, of an instance that is down, is held.
    pub at_rest: RestSnapshot,
    /// What the probes of this run of the container have seen.
    pub health: Health,
    /// What the journal remembers.
    pub record: Record,
}

/// Whether there is a snapshot of the data of an instance that is down, taken since it went down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RestSnapshot {
    /// Not yet.
    #[default]
    Missing,
    /// There is.
    Held,
    /// It failed again and again; the data itself is where it was.
    GivenUp,
}

/// The instance's bridge network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedNetwork {
    /// Docker's id.
    pub id: String,
    /// Subnet in CIDR notation.
    pub subnet: String,
    /// Name of the bridge interface.
    pub bridge: String,
}

/// The instance's container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedContainer {
    /// Docker's id.
    pub id: String,
    /// Label `dev.claw.spec-digest`.
    pub spec_digest: Option<Digest>,
    /// Label `dev.claw.generation`.
    pub generation: Option<Generation>,
    /// What it is doing.
    pub state: ContainerState,
    /// CPU limit in billionths of a core, as Docker has it.
    pub nano_cpus: u64,
    /// Processes limit, as Docker has it.
    pub pids_limit: u64,
    /// Address on the instance's network while running.
    pub address: Option<IpAddr>,
}

/// What a container is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerState {
    /// Made, never started.
    Created,
    /// Running since a point in time.
    Running {
        /// When its first process was started.
        since: Timestamp,
        /// Its first process, in the host's numbering.
        pid: u32,
    },
    /// Frozen.
    Paused,
    /// Ended.
    Exited(Exit),
}

/// How a container ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// Exit status; 137 is SIGKILL.
    pub code: i64,
    /// Whether the kernel's out-of-memory killer ended it.
    pub oom: bool,
    /// When.
    pub at: Timestamp,
}

/// What the probes of the present run have seen.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Health {
    /// First time in this run that `/startupz` succeeded directly and through the reverse proxy,
    /// with no failure since that lasted past the hang deadline.
    pub healthy_since: Option<Timestamp>,
    /// Last time any probe was answered, a draining answer included.
    pub last_answer: Option<Timestamp>,
    /// The last answer was "draining": the gateway is finishing its work and must be let be.
    pub draining: bool,
    /// Last answer of `/readyz`.
    pub ready: Option<bool>,
    /// Why the last probe failed, in words.
    pub problem: Option<String>,
}

/// What the agent's journal remembers of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Record {
    /// The spec's restart counter that was last carried out.
    pub restarts_done: u64,
    /// Digest of the secrets with which the present run was started.
    pub started_with_secrets: Option<Digest>,
    /// Crashes and failed starts.
    pub history: RestartHistory,
    /// The last attempt to pull the image failed; do not try again before this.
    pub pull_not_before: Option<Timestamp>,
    /// A step failed; do not try again before this.
    pub retry_not_before: Option<Timestamp>,
    /// Image and data that passed the gate last.
    pub active: Option<Deployment>,
    /// The change of image or data under way.
    pub cutover: Option<Cutover>,
    /// The number of the restore order that was carried out, or given up, last.
    pub restored: u64,
    /// What failed and is not tried again by itself.
    pub refused: Option<RefusedTarget>,
    /// Changes that failed in a row.
    pub reverts: u32,
    /// Data that was in use before the last confirmed change.
    pub replaced: Option<Replaced>,
    /// Data that nobody needs any more and that is to be deleted: what was made for changes that failed.
    pub doomed: BTreeSet<DataGeneration>,
    /// The data in use is not on the disk: a snapshot is the only copy of it.
    pub reclaimed: Option<Reclaimed>,
}
