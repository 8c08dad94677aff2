//! What happened on a host, in words that operators search for.

use std::fmt;

use crate::name::InstanceName;
use crate::time::Timestamp;

/// How much an event matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// For the record.
    Info,
    /// Somebody should look.
    Warning,
    /// A customer is affected.
    Error,
}

/// Kinds of events; the names are part of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EventKind {
    /// A new desired state was persisted.
    StatePersisted,
    /// A desired state was refused.
    StateRefused,
    /// A step of a plan was carried out.
    StepDone,
    /// A step of a plan failed.
    StepFailed,
    /// The gateway passed its health gate.
    Healthy,
    /// The gateway does not answer, or not well.
    Unhealthy,
    /// The gateway ended by itself.
    Exited,
    /// The gateway was killed for want of memory.
    OutOfMemory,
    /// The gateway crashes again and again; attempts are rare now.
    CrashLoop,
    /// A container that an earlier agent made was taken over as it is.
    Adopted,
    /// An instance was removed; its data was set aside.
    Removed,
    /// Docker does not answer.
    RuntimeLost,
    /// Docker answers again.
    RuntimeBack,
    /// The agent started.
    AgentStarted,
    /// The host's certificate was renewed.
    CertificateRenewed,
    /// A new firewall policy is in force.
    FirewallApplied,
    /// A firewall policy could not be put in force, or was reverted; the last good one is in force.
    FirewallReverted,
    /// Somebody changed the firewall and it was repaired.
    FirewallRepaired,
    /// An instance makes many attempts at a denied port.
    TrafficBurst,
    /// A source was banned from SSH.
    SourceBanned,
    /// A snapshot was taken and read back.
    SnapshotTaken,
    /// A snapshot could not be taken.
    SnapshotFailed,
    /// No snapshot has been taken for longer than the schedule allows.
    BackupOverdue,
    /// Something in a repository of snapshots is damaged.
    SnapshotDamaged,
    /// A snapshot was restored beside the instance, booted and passed the gate.
    DrillPassed,
    /// A restored snapshot did not boot.
    DrillFailed,
    /// A new image, or data of an earlier time, is being brought into force.
    CutoverStarted,
    /// It passed its gate and is in force.
    CutoverConfirmed,
    /// It failed; image, data and configuration are as before.
    CutoverReverted,
    /// It was refused before anything was touched.
    CutoverRefused,
    /// Snapshots wait for too long to be copied off-site, or must be and the host has no storage.
    OffsiteOverdue,
    /// A repository could not be copied off-site.
    OffsiteFailed,
    /// It could be copied again.
    OffsiteRecovered,
    /// An image that nobody needs any more was removed from the host.
    ImageRemoved,
    /// The data of a paused instance leaves the disk for want of room; a verified snapshot holds it.
    DataReclaimed,
    /// Data that had left the disk is back from its snapshot.
    DataRecovered,
}

impl EventKind {
    /// Every kind with its name in the API.
    pub const ALL: [(Self, &'static str); 36] = [
        (Self::StatePersisted, "state_persisted"),
        (Self::StateRefused, "state_refused"),
        (Self::StepDone, "step_done"),
        (Self::StepFailed, "step_failed"),
        (Self::Healthy, "healthy"),
        (Self::Unhealthy, "unhealthy"),
        (Self::Exited, "exited"),
        (Self::OutOfMemory, "out_of_memory"),
        (Self::CrashLoop, "crash_loop"),
        (Self::Adopted, "adopted"),
        (Self::Removed, "removed"),
        (Self::RuntimeLost, "runtime_lost"),
        (Self::RuntimeBack, "runtime_back"),
        (Self::AgentStarted, "agent_started"),
        (Self::CertificateRenewed, "certificate_renewed"),
        (Self::FirewallApplied, "firewall_applied"),
        (Self::FirewallReverted, "firewall_reverted"),
        (Self::FirewallRepaired, "firewall_repaired"),
        (Self::TrafficBurst, "traffic_burst"),
        (Self::SourceBanned, "source_banned"),
        (Self::SnapshotTaken, "snapshot_taken"),
        (Self::SnapshotFailed, "snapshot_failed"),
        (Self::BackupOverdue, "backup_overdue"),
        (Self::SnapshotDamaged, "snapshot_damaged"),
        (Self::DrillPassed, "drill_passed"),
        (Self::DrillFailed, "drill_failed"),
        (Self::CutoverStarted, "cutover_started"),
        (Self::CutoverConfirmed, "cutover_confirmed"),
        (Self::CutoverReverted, "cutover_reverted"),
        (Self::CutoverRefused, "cutover_refused"),
        (Self::OffsiteOverdue, "offsite_overdue"),
        (Self::OffsiteFailed, "offsite_failed"),
        (Self::OffsiteRecovered, "offsite_recovered"),
        (Self::ImageRemoved, "image_removed"),
        (Self::DataReclaimed, "data_reclaimed"),
        (Self::DataRecovered, "data_recovered"),
    ];

    /// The kind with this name, if there is one.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == name).map(|(kind, _)| *kind)
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::ALL.iter().find(|(kind, _)| kind == self).map_or("unknown", |(_, n)| n);
        f.write_str(name)
    }
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Rises by one with every event of a host, without gaps, for the life of its journal.
    pub sequence: u64,
    /// When, by the host's clock.
    pub at: Timestamp,
    /// The instance concerned, if one is.
    pub instance: Option<InstanceName>,
    /// What kind of thing.
    pub kind: EventKind,
    /// How much it matters.
    pub severity: Severity,
    /// One sentence for a person; never holds a secret.
    pub message: String,
}
