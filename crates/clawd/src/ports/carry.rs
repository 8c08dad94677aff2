//! What the agent needs to carry repositories and snapshots away from the host, and to it.

use claw_core::backup::SnapshotInfo;
use claw_core::data::DataGeneration;
use claw_core::name::{InstanceName, SnapshotName};
use claw_core::offsite::OffsiteStorage;
use tokio::sync::mpsc;

use super::data::{JobProgress, RepositoryKeys, SnapshotList, SnapshotOrder, SnapshotsError};

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

/// Pieces that wait at each end of a [`Pipe`] at most.
const WAITING: usize = 4;

/// What goes through a [`Pipe`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parcel {
    /// Bytes, [`MAX_PIECE`] at most.
    Piece(Vec<u8>),
    /// The last one: everything was sent.
    End,
    /// The last one: whoever sent gave up, and why.
    GaveUp(String),
}

/// This end of a pipe through the coordinator, bounded both ways. Whoever drops an end without a last
/// parcel has gone away, and what came by then is not whole.
#[derive(Debug)]
pub struct Pipe {
    /// What goes away.
    pub out: mpsc::Sender<Parcel>,
    /// What comes.
    pub inward: mpsc::Receiver<Parcel>,
}

/// A pipe broke, or the other end gave up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the transfer was broken off: {0}")]
pub struct PipeError(pub String);

impl Pipe {
    /// Two ends of one pipe: what goes away at one comes at the other.
    #[must_use]
    pub fn pair() -> (Self, Self) {
        let (here, from_here) = mpsc::channel(WAITING);
        let (there, from_there) = mpsc::channel(WAITING);
        (Self { out: here, inward: from_there }, Self { out: there, inward: from_here })
    }

    /// The next piece; none after the last. Cancel-safe.
    ///
    /// # Errors
    /// When the other end gave up or went away.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, PipeError> {
        match self.inward.recv().await {
            Some(Parcel::Piece(piece)) => Ok(Some(piece)),
            Some(Parcel::End) => Ok(None),
            Some(Parcel::GaveUp(why)) => Err(PipeError(why)),
            None => Err(PipeError("the other end went away".to_owned())),
        }
    }

    /// Sends a parcel; waits while the other end is behind.
    ///
    /// # Errors
    /// When nobody takes it any more, with what the other end said of that.
    pub async fn give(&mut self, parcel: Parcel) -> Result<(), PipeError> {
        if self.out.send(parcel).await.is_ok() {
            return Ok(());
        }
        // Its last word may wait behind pieces.
        loop {
            match self.next().await {
                Ok(Some(_piece)) => {}
                Ok(None) => return Err(PipeError("the other end takes no more".to_owned())),
                Err(error) => return Err(error),
            }
        }
    }
}

/// Snapshots and repositories through a pipe. Each says by itself that it sent everything, or why it gave up;
/// one that is dropped leaves the other end with a pipe that broke.
pub trait Transfers {
    /// Sends a snapshot as a `tar.zst` archive with a manifest and checksums.
    fn export(
        &self,
        instance: &InstanceName,
        snapshot: &SnapshotName,
        pipe: Pipe,
        progress: &dyn Fn(JobProgress),
    ) -> impl Future<Output = Result<(), SnapshotsError>>;
    /// Takes a snapshot of what an archive holds, one of [`Transfers::export`] or OpenClaw's own. Files become
    /// the gateway's, whoever's the archive says they are. The data in use is not touched; `order.data` says
    /// nothing. Whoever made the archive is not trusted.
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
    /// has is only completed, and only if it is the same one. Repeatable, goes on where it stopped. The sender
    /// is not trusted.
    fn receive(
        &self,
        instance: &InstanceName,
        keys: &RepositoryKeys,
        pipe: Pipe,
        progress: &dyn Fn(JobProgress),
    ) -> impl Future<Output = Result<(), SnapshotsError>>;
    /// What there is of a repository that came from elsewhere; none is an empty list. Unlike
    /// [`super::Snapshots::list`] it is no use of it: it may still be discarded.
    fn arrived(
        &self,
        instance: &InstanceName,
    ) -> impl Future<Output = Result<SnapshotList, SnapshotsError>>;
    /// Removes a repository that came from elsewhere and was never used here, and what was begun of one;
    /// absent is success, any other stays and is an error. Its first listing and its first snapshot here are
    /// a use.
    fn discard(&self, instance: &InstanceName) -> impl Future<Output = Result<(), SnapshotsError>>;
}
