//! What the agent needs to carry repositories and snapshots away from the host, and to it.

use claw_core::backup::SnapshotInfo;
use claw_core::data::DataGeneration;
use claw_core::name::{InstanceName, SnapshotName};
use claw_core::offsite::OffsiteStorage;
use tokio::sync::mpsc;

use super::data::{JobProgress, RepositoryKeys, SnapshotOrder, SnapshotsError};

/// Most bytes of one piece that goes through a [`Pipe`].
pub const MAX_PIECE: usize = 64 * 1024;

/// Where in a storage a repository is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OffsitePlace {
    /// The storage.
    pub storage: OffsiteStorage,
    /// The repository's directory in the bucket, the storage's prefix included, without a slash at its ends.
    pub path: String,
}

/// What becomes of files that the copy off-site has and the host has not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Surplus {
    /// They stay.
    Kept,
    /// They go. Only after the host's repository was verified without a fault.
    Removed,
}

/// What a copy off-site has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Carried {
    /// Files that were copied.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Files that went.
    pub removed: u64,
}

/// Copies of repositories in an S3-compatible storage. Each is repeatable and goes on where it stopped.
pub trait Offsite {
    /// Makes the copy have what the host's repository has: first what others need, snapshots last. A
    /// directory that has another repository is refused, nothing is changed.
    fn copy_out(
        &self,
        instance: &InstanceName,
        place: &OffsitePlace,
        surplus: Surplus,
        progress: &dyn Fn(JobProgress),
    ) -> impl Future<Output = Result<Carried, SnapshotsError>>;
    /// Makes the host have the repository that is there, under these keys. A repository that the host has
    /// is only completed, and only if it is the same one.
    fn copy_in(
        &self,
        instance: &InstanceName,
        place: &OffsitePlace,
        keys: &RepositoryKeys,
        progress: &dyn Fn(JobProgress),
    ) -> impl Future<Output = Result<Carried, SnapshotsError>>;
    /// As [`super::Snapshots::restore`], read straight from the copy.
    fn restore_from(
        &self,
        instance: &InstanceName,
        place: &OffsitePlace,
        snapshot: &SnapshotName,
        into: DataGeneration,
        progress: &dyn Fn(JobProgress),
    ) -> impl Future<Output = Result<(), SnapshotsError>>;
}

/// This end of a pipe through the coordinator, bounded both ways. Closing `out` says that everything was sent;
/// `inward` ends when the other end has said so, and gives an error when the pipe broke or the other end
/// gave up.
#[derive(Debug)]
pub struct Pipe {
    /// What goes away, in pieces of [`MAX_PIECE`] at most.
    pub out: mpsc::Sender<Vec<u8>>,
    /// What comes, in such pieces.
    pub inward: mpsc::Receiver<Result<Vec<u8>, PipeError>>,
}

/// A pipe broke, or the other end gave up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the transfer was broken off: {0}")]
pub struct PipeError(pub String);

/// Snapshots and repositories through a pipe.
pub trait Transfers {
    /// Sends a snapshot as a `tar.zst` archive with a manifest and checksums.
    fn export(
        &self,
        instance: &InstanceName,
        snapshot: &SnapshotName,
        pipe: Pipe,
        progress: &dyn Fn(JobProgress),
    ) -> impl Future<Output = Result<(), SnapshotsError>>;
    /// Takes a snapshot of what an archive holds, one of [`Transfers::export`] or OpenClaw's own. The data in
    /// use is not touched; `order.data` says nothing.
    fn import(
        &self,
        order: &SnapshotOrder,
        pipe: Pipe,
        progress: &dyn Fn(JobProgress),
    ) -> impl Future<Output = Result<SnapshotInfo, SnapshotsError>>;
    /// Sends the repository to another host, whose agent receives. What is there already is not sent.
    fn send(
        &self,
        instance: &InstanceName,
        pipe: Pipe,
        progress: &dyn Fn(JobProgress),
    ) -> impl Future<Output = Result<Carried, SnapshotsError>>;
    /// Takes a repository that another host sends, to be opened with these keys. A repository that the host
    /// has is only completed, and only if it is the same one.
    fn receive(
        &self,
        instance: &InstanceName,
        keys: &RepositoryKeys,
        pipe: Pipe,
        progress: &dyn Fn(JobProgress),
    ) -> impl Future<Output = Result<(), SnapshotsError>>;
    /// Removes a repository that came from elsewhere and was never used here; absent is success, any other
    /// stays and is an error.
    fn discard(&self, instance: &InstanceName) -> impl Future<Output = Result<(), SnapshotsError>>;
}
