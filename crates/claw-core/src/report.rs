//! What a host reports upwards: resources, instances, progress. Observed, never assumed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use crate::cutover::{Deployment, RefusedTarget};
use crate::firewall::{Port, Protocol};
use crate::name::{HostName, InstanceName};
use crate::observed::Exit;
use crate::stamp::{Generation, Stamp};
use crate::time::Timestamp;

/// Where an instance is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// The host has not said anything of it yet.
    Pending,
    /// The image is being pulled.
    Pulling,
    /// Steps are being carried out.
    Applying,
    /// Started; the health gate has not passed yet.
    Starting,
    /// Serving, and past the health gate.
    Running,
    /// It passed the gate once and does not answer now.
    Unhealthy,
    /// Down, waiting to start again.
    BackingOff,
    /// It crashed too often; attempts are rare now.
    CrashLoop,
    /// Down, as wanted.
    Stopped,
    /// Down, as wanted, and a snapshot of its data is held.
    Paused,
    /// A step failed; it is tried again.
    Failed,
    /// Being removed.
    Removing,
    /// Gone from the host, data set aside.
    Removed,
}

impl Phase {
    /// Every phase with its name in the API.
    pub const ALL: [(Self, &'static str); 13] = [
        (Self::Pending, "pending"),
        (Self::Pulling, "pulling"),
        (Self::Applying, "applying"),
        (Self::Starting, "starting"),
        (Self::Running, "running"),
        (Self::Unhealthy, "unhealthy"),
        (Self::BackingOff, "backing_off"),
        (Self::CrashLoop, "crash_loop"),
        (Self::Stopped, "stopped"),
        (Self::Paused, "paused"),
        (Self::Failed, "failed"),
        (Self::Removing, "removing"),
        (Self::Removed, "removed"),
    ];
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::ALL.iter().find(|(phase, _)| phase == self).map_or("unknown", |(_, n)| n);
        f.write_str(name)
    }
}

/// One instance as its host reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceReport {
    /// Which.
    pub name: InstanceName,
    /// The generation that this report is about.
    pub generation: Generation,
    /// Where it is on its way.
    pub phase: Phase,
    /// Why, for a person; empty when all is well. Never holds a secret.
    pub message: String,
    /// The step under way and since when.
    pub step: Option<(String, Timestamp)>,
    /// Docker's id of the container.
    pub container_id: Option<String>,
    /// When the present run was started.
    pub started_at: Option<Timestamp>,
    /// Times the agent has brought it back since it was created.
    pub restart_count: u64,
    /// How the last run ended.
    pub last_exit: Option<Exit>,
    /// Since when it has been healthy.
    pub healthy_since: Option<Timestamp>,
    /// Last answer of `/readyz`.
    pub ready: Option<bool>,
    /// Latest changes of health, newest last, at most 16.
    pub health_history: Vec<HealthChange>,
    /// From the container's cgroup.
    pub usage: Option<Usage>,
    /// What the firewall has refused it.
    pub blocked: BlockedTraffic,
    /// The long operation under way.
    pub operation: Option<OperationReport>,
    /// The image and data that passed the gate last; what a failure leads back to.
    pub active: Option<Deployment>,
    /// The image or restore that was tried, failed, and is not tried again by itself.
    pub refused: Option<RefusedTarget>,
    /// How its snapshots stand, in short.
    pub backup: BackupSummary,
}

/// A long operation on an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperationReport {
    /// What it is: "update", "restore", "snapshot", "verify", "drill", "prune".
    pub kind: &'static str,
    /// What it is doing, such as "copying the data".
    pub stage: String,
    /// How much of the stage is done, in thousandths; none while nobody can know.
    pub permille: Option<u32>,
    /// Since when it has been under way.
    pub since: Timestamp,
}

/// How the snapshots of an instance stand, in short; all of it is in [`crate::backup::BackupReport`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BackupSummary {
    /// When the newest sound snapshot was begun.
    pub last_at: Option<Timestamp>,
    /// How many there are.
    pub count: u32,
    /// The next one is late.
    pub overdue: bool,
    /// Why the last job failed; empty when it did not.
    pub problem: String,
}

/// Traffic that the firewall has refused to an instance since it was created, and what it asked its name
/// server. Counts never fall while the agent's journal lives.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BlockedTraffic {
    /// Attempts at denied ports.
    pub ports: BTreeMap<(Protocol, Port), u64>,
    /// Attempts at destinations outside its allowlist.
    pub outside: u64,
    /// Attempts at what is closed always: metadata, the host, other instances, foreign name servers.
    pub closed: u64,
    /// Names it asked for.
    pub dns_queries: u64,
    /// Names that were refused.
    pub dns_refused: u64,
}

/// A change of health.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthChange {
    /// When.
    pub at: Timestamp,
    /// The phase from then on.
    pub phase: Phase,
    /// Why, for a person.
    pub message: String,
}

/// What a container uses, read from its cgroup (v1 or v2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Memory in bytes, without the page cache that can be dropped.
    pub memory_bytes: u64,
    /// Limit in bytes.
    pub memory_limit_bytes: u64,
    /// CPU time in microseconds since the container was started.
    pub cpu_usage_us: u64,
    /// Processes and threads.
    pub pids: u64,
    /// Kills by the out-of-memory killer within the container since it was started.
    pub oom_kills: u64,
}

/// Share of time in which some or all tasks waited, as percentages × 100 (`/proc/pressure`, PSI).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pressure {
    /// `some avg10` × 100.
    pub some_avg10_centi: u32,
    /// `full avg10` × 100.
    pub full_avg10_centi: u32,
}

/// The host's resources.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostResources {
    /// Bytes of memory.
    pub memory_total_bytes: u64,
    /// Bytes that could be used without swapping.
    pub memory_available_bytes: u64,
    /// Cores.
    pub cpu_count: u32,
    /// CPU in use since the last report, thousandths of all cores together.
    pub cpu_permille: u32,
    /// Load averages over 1, 5 and 15 minutes, × 100.
    pub load_centi: [u32; 3],
    /// Bytes of the file system that holds the agent's data.
    pub disk_total_bytes: u64,
    /// Bytes free there for the agent.
    pub disk_available_bytes: u64,
    /// Pressure, if the kernel measures it: CPU, memory, I/O.
    pub pressure: Option<[Pressure; 3]>,
    /// Time since boot.
    pub uptime: Duration,
}

/// What a host is and what it holds, said once per session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Its name; must match its certificate.
    pub host: HostName,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// Version of the agent.
    pub agent_version: String,
    /// Version of this protocol.
    pub protocol_version: u32,
    /// What it has persisted.
    pub persisted: Option<Stamp>,
    /// Instances that it holds, wanted or not.
    pub inventory: BTreeSet<InstanceName>,
    /// Version of Docker, if it answers.
    pub docker_version: Option<String>,
    /// Kernel release.
    pub kernel_version: String,
    /// First event the coordinator can still get.
    pub oldest_event: u64,
    /// Next event's sequence number.
    pub next_event: u64,
}

/// Progress of the desired state.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StatusReport {
    /// The state that is safely on the host's disk.
    pub persisted: Option<Stamp>,
    /// The state being carried out, if it is not done yet, and since when.
    pub applying: Option<(Generation, Timestamp)>,
    /// The last state that was carried out to its end (all settled, well or not).
    pub last_result: Option<Generation>,
    /// A state that was refused, and why.
    pub refused: Option<(Stamp, String)>,
    /// Every instance.
    pub instances: BTreeMap<InstanceName, InstanceReport>,
    /// Whether Docker answers; if not, why.
    pub runtime_problem: Option<String>,
    /// How the firewall stands.
    pub firewall: FirewallReport,
}

/// How a host's firewall stands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FirewallReport {
    /// The generation whose policy is in force.
    pub applied: Option<Generation>,
    /// Why the wanted policy is not in force; the last good one is.
    pub problem: Option<String>,
    /// iptables' version and backend.
    pub backend: String,
    /// Times that somebody's changes were repaired since the agent started.
    pub repairs: u64,
    /// Attempts at the host's own ports that were refused since the agent started.
    pub ingress_refused: u64,
    /// Failed logins that were seen since the agent started.
    pub login_failures: u64,
    /// Sources that are banned from SSH now.
    pub banned: u32,
}
