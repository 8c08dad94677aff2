//! What the agent needs for the data of instances: directories, snapshots, trials.

use std::collections::BTreeSet;
use std::path::PathBuf;

use claw_core::address::InstanceNetwork;
use claw_core::backup::{SnapshotCause, SnapshotInfo};
use claw_core::data::DataGeneration;
use claw_core::name::{ImageRef, InstanceName, SnapshotName};
use claw_core::observed::Exit;
use claw_core::plan::ContainerPlan;
use claw_core::spec::Secret;
use claw_core::stamp::{Digest, Generation};
use claw_core::time::Timestamp;

use super::{Mounts, PipeError, RuntimeError};

/// How far a long job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct JobProgress {
    /// Bytes that are done.
    pub done_bytes: u64,
    /// Bytes in all, as far as anybody knows; 0: nobody does.
    pub total_bytes: u64,
}

impl JobProgress {
    /// The part that is done, in thousandths.
    #[must_use]
    pub fn permille(self) -> Option<u32> {
        let done = self.done_bytes.min(self.total_bytes);
        let part = done.saturating_mul(1000).checked_div(self.total_bytes)?;
        u32::try_from(part).ok()
    }
}

/// Why something could not be done to the data of an instance.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// There is no such directory.
    #[error("{} does not exist", .0.display())]
    Absent(PathBuf),
    /// There is not enough room on the file system.
    #[error("no room for {}", .path.display())]
    Full {
        /// What could not be written.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Anything else.
    #[error("{doing} {}", .path.display())]
    Io {
        /// What was being done, such as "copying".
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
}

/// How large a data directory is, and how much more would fit beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Measure {
    /// Bytes that its files take on the disk.
    pub bytes: u64,
    /// Files, directories and links.
    pub entries: u64,
    /// Bytes that the agent may still write to the same file system.
    pub free_bytes: u64,
    /// Bytes of that file system.
    pub total_bytes: u64,
}

/// Whether anybody writes to a directory while it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writers {
    /// Nobody does: whatever is read is whole, and anything that changes meanwhile is an error.
    Nobody,
    /// As nobody, but only for a moment, in which a container is held still: nothing is made durable.
    Held,
    /// Somebody may: what vanishes or changes meanwhile is no error, and the result is good only as
    /// the beginning of a later copy.
    Somebody,
}

/// What a copy has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Copied {
    /// Files that were written.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Whether blocks are shared with the original (reflink).
    pub shared: bool,
}

/// Data directories of instances. Blocking work runs on a thread of its own; nothing follows a symbolic
/// link that a container may have planted.
pub trait Volumes {
    /// The directories that an instance has; what was left half-made is not among them.
    fn generations(
        &self,
        instance: &InstanceName,
    ) -> impl Future<Output = Result<BTreeSet<DataGeneration>, VolumeError>>;
    /// How large one is. One that is absent has no bytes.
    fn measure(
        &self,
        instance: &InstanceName,
        data: DataGeneration,
    ) -> impl Future<Output = Result<Measure, VolumeError>>;
    /// Makes `into` hold exactly what `from` holds, `tmp/` left empty: contents, owners, modes, times,
    /// links, extended attributes. Repeatable: what is the same already is left alone, told by size and
    /// times of both and by what was written earlier, so the second time takes a walk and no more. What
    /// `into` has and `from` has not is removed. Durable when it returns, but for [`Writers::Held`].
    fn copy(
        &self,
        instance: &InstanceName,
        from: DataGeneration,
        into: DataGeneration,
        writers: Writers,
        progress: &dyn Fn(JobProgress),
    ) -> impl Future<Output = Result<Copied, VolumeError>>;
    /// Removes one, and what was left half-made of it; gone is success.
    fn remove(
        &self,
        instance: &InstanceName,
        data: DataGeneration,
    ) -> impl Future<Output = Result<(), VolumeError>>;
}

/// A snapshot that shall be taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotOrder {
    /// Whose.
    pub instance: InstanceName,
    /// Of which directory.
    pub data: DataGeneration,
    /// What it is called; one that exists already is not taken again, it is returned.
    pub name: SnapshotName,
    /// Why.
    pub cause: SnapshotCause,
    /// Now.
    pub at: Timestamp,
    /// The image that ran on the data.
    pub image: ImageRef,
    /// The host state's generation that `assignment` is of.
    pub generation: Generation,
    /// The exact spec as on the wire, secrets left out: they are the coordinator's to keep.
    pub assignment: Vec<u8>,
}

/// Lets an instance stand still for the fraction of a second that a snapshot needs.
pub trait Quiesce {
    /// Nothing of the instance writes from here on.
    fn hold(&self) -> impl Future<Output = Result<(), RuntimeError>>;
    /// It goes on. Called whenever `hold` was, whatever became of the snapshot.
    fn release(&self) -> impl Future<Output = Result<(), RuntimeError>>;
}

/// How much of a repository is verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VerifyDepth {
    /// Every index, tree and listed pack; no data.
    Structure,
    /// As structure, and the data of one part of the packs, `part` (from 0) of `parts`.
    Data {
        /// Which part.
        part: u32,
        /// Of how many.
        parts: u32,
    },
}

/// What a verification found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verification {
    /// What is damaged, in words, at most 64 lines; empty: nothing.
    pub damage: Vec<String>,
    /// Snapshots that need something of it.
    pub affected: BTreeSet<SnapshotName>,
}

/// What opens an instance's repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepositoryKeys {
    /// The agent's own, 64 hexadecimal digits: a password for restic.
    pub secret: Secret,
    /// For people, with plain restic.
    pub recovery: Secret,
}

/// Every snapshot of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SnapshotList {
    /// Oldest first. Those of a moving source are left out.
    pub snapshots: Vec<SnapshotInfo>,
    /// Bytes that the repository takes.
    pub stored_bytes: u64,
    /// The first 16 hexadecimal digits of the repository's id; empty when there is none.
    pub repository: String,
}

/// Why a job on snapshots failed.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotsError {
    /// There is no such snapshot.
    #[error("there is no snapshot {0}")]
    NotFound(SnapshotName),
    /// There is not enough room; nothing was damaged, and what was begun is swept by the next job.
    #[error("no room for {doing}: {problem}")]
    Full {
        /// What was being done.
        doing: &'static str,
        /// What the job said.
        problem: String,
    },
    /// The instance could not be held or did not go on.
    #[error("the instance could not be held still")]
    Quiesce(#[source] RuntimeError),
    /// Something that is needed is damaged in the repository; nothing that is live was touched.
    #[error("the repository is damaged: {0}")]
    Damaged(String),
    /// The job said that it failed.
    #[error("{doing}: {problem}")]
    Failed {
        /// What was being done.
        doing: &'static str,
        /// What the job said.
        problem: String,
    },
    /// The process of the job could not be started, was killed (by the kernel for want of memory, for
    /// example), or does not speak.
    #[error("the process that was {doing} ended: {problem}")]
    Worker {
        /// What was being done.
        doing: &'static str,
        /// How.
        problem: String,
    },
    /// No progress for too long.
    #[error("{doing} made no progress for {} s", .after.as_secs())]
    Stuck {
        /// What was being done.
        doing: &'static str,
        /// For how long.
        after: std::time::Duration,
    },
    /// Another repository is where this one should be; nothing was changed. With its place.
    #[error("{0} has another repository")]
    OtherRepository(String),
    /// The pipe that it needs broke, or its other end gave up.
    #[error("{doing}")]
    Pipe {
        /// What was being done.
        doing: &'static str,
        /// Why.
        #[source]
        source: PipeError,
    },
    /// The keys of the repository cannot be read or kept.
    #[error("the keys of the repository cannot be used")]
    Keys(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Snapshots of instances: one repository each, in a child process each time. Jobs of one instance wait
/// for each other.
pub trait Snapshots {
    /// Takes one, and reads it back. With `quiesce` the instance is up: a live pass, then it is held while
    /// what changed is copied aside, then the rest is archived. Makes the repository if there is none.
    fn take<Q: Quiesce>(
        &self,
        order: &SnapshotOrder,
        quiesce: Option<&Q>,
        progress: &dyn Fn(JobProgress),
    ) -> impl Future<Output = Result<SnapshotInfo, SnapshotsError>>;
    /// What there is; an instance without a repository has none.
    fn list(
        &self,
        instance: &InstanceName,
    ) -> impl Future<Output = Result<SnapshotList, SnapshotsError>>;
    /// Brings one back into a directory that must not exist; complete and durable when it returns, and
    /// absent otherwise.
    fn restore(
        &self,
        instance: &InstanceName,
        snapshot: &SnapshotName,
        into: DataGeneration,
        progress: &dyn Fn(JobProgress),
    ) -> impl Future<Output = Result<(), SnapshotsError>>;
    /// Forgets snapshots and gives back the room of what nothing else needs; absent ones are success. With
    /// none it only sweeps.
    fn forget(
        &self,
        instance: &InstanceName,
        snapshots: &BTreeSet<Digest>,
        progress: &dyn Fn(JobProgress),
    ) -> impl Future<Output = Result<(), SnapshotsError>>;
    /// Looks for damage.
    fn verify(
        &self,
        instance: &InstanceName,
        depth: VerifyDepth,
        progress: &dyn Fn(JobProgress),
    ) -> impl Future<Output = Result<Verification, SnapshotsError>>;
    /// What opens the repository; none when there is none.
    fn keys(
        &self,
        instance: &InstanceName,
    ) -> impl Future<Output = Result<Option<RepositoryKeys>, SnapshotsError>>;
}

/// A container beside an instance's own: a rehearsal, a drill, a migration. It carries no label of
/// instances, has no route to anywhere, little CPU and I/O, and there is one at most per instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trial {
    /// What it runs, with which limits and environment.
    pub container: ContainerPlan,
    /// On which data and secrets.
    pub mounts: Mounts,
    /// The network on which only the host reaches it; none: no network at all.
    pub network: Option<InstanceNetwork>,
    /// What is run instead of the gateway, such as `openclaw doctor --fix`.
    pub command: Option<Vec<String>>,
}

/// What a trial is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TrialState {
    /// It runs.
    Running,
    /// It ended; with the end of what it printed, at most 2 000 characters.
    Exited(Exit, String),
    /// There is none.
    Gone,
}

/// Trials of images on data (Docker).
pub trait Trials {
    /// Makes and starts one; one that is there is removed first.
    fn start_trial(&self, trial: &Trial) -> impl Future<Output = Result<(), RuntimeError>>;
    /// What it is doing.
    fn trial_state(
        &self,
        instance: &InstanceName,
    ) -> impl Future<Output = Result<TrialState, RuntimeError>>;
    /// Ends and removes it with its network; gone is success.
    fn remove_trial(
        &self,
        instance: &InstanceName,
    ) -> impl Future<Output = Result<(), RuntimeError>>;
    /// Instances that have one.
    fn trials(&self) -> impl Future<Output = Result<BTreeSet<InstanceName>, RuntimeError>>;
}
