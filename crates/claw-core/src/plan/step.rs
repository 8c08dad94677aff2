//! What the agent can do to a host. A step leaves nothing to decide, and doing it twice does no harm.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::address::InstanceNetwork;
use crate::data::DataGeneration;
use crate::name::{ImageRef, StatePath};
use crate::plan::{ContainerPlan, VirtualHost};
use crate::spec::Secret;
use crate::stamp::Digest;
use crate::unit::{CpuMillis, PidsLimit};

/// Why a running container is ended. Journaled with the step: it tells a wanted end from a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StopReason {
    /// The spec says stopped.
    Wanted,
    /// A restart was asked for, or secrets changed.
    Restart,
    /// Another container takes its place.
    Replacement,
    /// The instance is being deleted.
    Removal,
    /// The version that was tried failed; the one before comes back.
    Revert,
    /// It did not become healthy in time; counts as a failure.
    StartupDeadline,
    /// It stopped answering; counts as a failure.
    Hung,
}

impl StopReason {
    /// Whether the end counts against the restart policy.
    #[must_use]
    pub const fn is_failure(self) -> bool {
        matches!(self, Self::StartupDeadline | Self::Hung)
    }
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Wanted => "wanted",
            Self::Restart => "restart",
            Self::Replacement => "replacement",
            Self::Removal => "removal",
            Self::Revert => "revert",
            Self::StartupDeadline => "startup deadline",
            Self::Hung => "hung",
        })
    }
}

/// One effect on the machine, within one instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Fetch an image; long, and given up for a newer target.
    PullImage {
        /// Which.
        image: ImageRef,
    },
    /// Make the instance's bridge network.
    CreateNetwork {
        /// Its addresses.
        network: InstanceNetwork,
    },
    /// Remove a network that is ours.
    RemoveNetwork {
        /// Docker's id.
        id: String,
    },
    /// Make the data directory if needed and put the files there, owned by uid 1000.
    DeliverFiles {
        /// Which of the data directories.
        data: DataGeneration,
        /// Path → content.
        files: BTreeMap<StatePath, String>,
        /// Their digest, journaled once they are in place.
        digest: Digest,
    },
    /// Put the secrets file on tmpfs, 0600, uid 1000.
    WriteSecrets {
        /// The `.env`.
        text: Secret,
        /// Its digest.
        digest: Digest,
    },
    /// Remove the secrets file.
    RemoveSecrets,
    /// Make the container.
    CreateContainer {
        /// Everything about it.
        container: Box<ContainerPlan>,
    },
    /// Start the instance's container.
    StartContainer {
        /// Digest of the secrets it starts with.
        secrets: Digest,
        /// The restart counter that is carried out by this.
        restarts: u64,
    },
    /// Thaw a frozen container.
    UnpauseContainer {
        /// Docker's id.
        id: String,
    },
    /// SIGTERM, then SIGKILL after the grace.
    StopContainer {
        /// Docker's id.
        id: String,
        /// Time to drain.
        grace: Duration,
        /// Why.
        reason: StopReason,
    },
    /// Remove a stopped container.
    RemoveContainer {
        /// Docker's id.
        id: String,
    },
    /// Change limits of a container in place.
    UpdateLimits {
        /// Docker's id.
        id: String,
        /// New CPU limit.
        cpu: CpuMillis,
        /// New processes limit.
        pids: PidsLimit,
    },
    /// Make one data directory hold exactly what another does; what is the same already is left alone.
    CopyData {
        /// Of which nobody writes.
        from: DataGeneration,
        /// Of which nobody reads.
        into: DataGeneration,
    },
    /// Let an image migrate the state in a data directory, once, in a container without a network.
    MigrateData {
        /// Everything about the container but what it runs.
        container: Box<ContainerPlan>,
    },
    /// Delete a data directory that is not in use.
    DropData {
        /// Which.
        data: DataGeneration,
    },
    /// Make the reverse proxy serve the instance.
    PublishProxy {
        /// How.
        host: VirtualHost,
    },
    /// Make the reverse proxy forget the instance.
    UnpublishProxy,
    /// Move the data out of the way; nothing deletes it.
    SetDataAside,
    /// Drop the instance from the journal and free its slot.
    Forget,
}

impl Step {
    /// The step's name, without its particulars; stable, for journals, events and tests.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::PullImage { .. } => "pull-image",
            Self::CreateNetwork { .. } => "create-network",
            Self::RemoveNetwork { .. } => "remove-network",
            Self::DeliverFiles { .. } => "deliver-files",
            Self::WriteSecrets { .. } => "write-secrets",
            Self::RemoveSecrets => "remove-secrets",
            Self::CreateContainer { .. } => "create-container",
            Self::StartContainer { .. } => "start-container",
            Self::UnpauseContainer { .. } => "unpause-container",
            Self::StopContainer { .. } => "stop-container",
            Self::RemoveContainer { .. } => "remove-container",
            Self::UpdateLimits { .. } => "update-limits",
            Self::CopyData { .. } => "copy-data",
            Self::MigrateData { .. } => "migrate-data",
            Self::DropData { .. } => "drop-data",
            Self::PublishProxy { .. } => "publish-proxy",
            Self::UnpublishProxy => "unpublish-proxy",
            Self::SetDataAside => "set-data-aside",
            Self::Forget => "forget",
        }
    }
}

impl fmt::Display for Step {
    /// The name, and what an operator needs to know; never content of files or secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        match self {
            Self::PullImage { image } => write!(f, " {image}"),
            Self::CreateNetwork { network } => {
                write!(f, " {} {}", network.bridge(), network.subnet())
            }
            Self::DeliverFiles { files, .. } => {
                let paths: Vec<&str> = files.keys().map(StatePath::as_str).collect();
                write!(f, " {}", paths.join(" "))
            }
            Self::CreateContainer { container } => write!(
                f,
                " {} image={} memory={} cpu={} address={}",
                container.name,
                container.image,
                container.resources.memory,
                container.resources.cpu,
                container.address
            ),
            Self::StopContainer { id, grace, reason } => {
                write!(f, " {} grace={}s reason={reason}", short(id), grace.as_secs())
            }
            Self::RemoveContainer { id }
            | Self::RemoveNetwork { id }
            | Self::UnpauseContainer { id } => write!(f, " {}", short(id)),
            Self::UpdateLimits { id, cpu, pids } => {
                write!(f, " {} cpu={cpu} pids={pids}", short(id))
            }
            Self::CopyData { from, into } => write!(f, " {from} -> {into}"),
            Self::MigrateData { container } => {
                write!(f, " {} image={}", container.data, container.image)
            }
            Self::DropData { data } => write!(f, " {data}"),
            Self::PublishProxy { host } => {
                write!(f, " {} -> {}", host.hostnames.join(","), host.upstream)
            }
            Self::StartContainer { .. }
            | Self::WriteSecrets { .. }
            | Self::RemoveSecrets
            | Self::UnpublishProxy
            | Self::SetDataAside
            | Self::Forget => Ok(()),
        }
    }
}

fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}
