//! What people ask for once about snapshots, and whether it is accepted.
//!
//! A request is answered when it is accepted, which is when it is in the journal: from then on it is done even
//! if the agent is ended. What comes of it is told by the instance's operation and its report.

use claw_core::name::{InstanceName, SnapshotName};
use claw_core::plan::Target;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};

use super::errand::Errand;
use super::ledger::Ledger;
use super::record::Ask;
use super::retention::need;
use crate::roster::Member;

/// Requests that may wait to be accepted.
const WAITING: usize = 16;
/// Accepted requests of one instance that may wait to be carried out.
const ACCEPTED: usize = 8;

/// Something that is asked for once.
#[derive(Debug)]
pub struct BackupRequest {
    /// Of which instance.
    pub instance: InstanceName,
    /// What.
    pub work: BackupWork,
    /// Told when it is accepted, or why it is not.
    pub reply: oneshot::Sender<Result<(), String>>,
}

/// What is asked for.
#[derive(Debug)]
pub enum BackupWork {
    /// Take a snapshot under this name.
    Take(SnapshotName),
    /// Forget a snapshot.
    Forget(SnapshotName),
    /// Look for damage in everything.
    Verify(Extent),
    /// Carry a snapshot or a repository away or here. Accepted is not journaled: an agent that is ended does
    /// not take it up again.
    Errand(Errand),
}

/// How much of everything is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Indexes, trees and lists.
    Structure,
    /// All data as well, which takes long.
    Data,
}

/// The way into the loop of snapshots.
#[derive(Debug, Clone)]
pub(in crate::reconcile) struct BackupsHandle(mpsc::Sender<BackupRequest>);

impl BackupsHandle {
    pub(super) fn new() -> (Self, mpsc::Receiver<BackupRequest>) {
        let (sender, receiver) = mpsc::channel(WAITING);
        (Self(sender), receiver)
    }

    /// Asks for something; never waits. Every answer comes through the request's `reply`, that too many
    /// requests wait among them; none comes when the loop has ended.
    pub(in crate::reconcile) fn request(&self, request: BackupRequest) {
        if let Err(TrySendError::Full(request)) = self.0.try_send(request) {
            // Whoever asked may be gone.
            drop(request.reply.send(Err(RequestRefused::Full.to_string())));
        }
    }
}

/// Why a request is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum RequestRefused {
    #[error("too many requests about snapshots wait; try again in a moment")]
    Full,
    #[error("instance {0} is not on this host")]
    Unknown(InstanceName),
    #[error("instance {0} is being removed")]
    Removed(InstanceName),
    #[error("instance {0} has no data yet")]
    NoData(InstanceName),
    #[error("the snapshots of instance {0} are not known yet; try again in a moment")]
    NotLooked(InstanceName),
    #[error("there is a snapshot {0} already")]
    Exists(SnapshotName),
    #[error("there is no snapshot {0}")]
    Absent(SnapshotName),
    #[error("snapshot {0} stays: {1}")]
    Needed(SnapshotName, &'static str),
    #[error("instance {0} has no snapshots that could be verified")]
    Nothing(InstanceName),
    #[error("{ACCEPTED} requests of instance {0} wait already; try again later")]
    TooMany(InstanceName),
    #[error("too many transfers of this host wait already; try again later")]
    TooManyErrands,
    #[error("this host has no off-site storage")]
    NoStorage,
    #[error("instance {0} has no snapshots that could be sent")]
    NothingToSend(InstanceName),
    #[error("instance {0} has a repository on this host, which stays")]
    HasRepository(InstanceName),
    #[error("instance {0} is on this host, and its repository stays")]
    Here(InstanceName),
}

/// What to add to what was accepted; none: it is there already, or no ask (see [`super::errand::judge`]).
///
/// # Errors
/// [`RequestRefused`].
pub(super) fn judge(
    work: &BackupWork,
    member: &Member,
    ledger: &Ledger,
) -> Result<Option<Ask>, RequestRefused> {
    let name = member.effective.name.clone();
    if member.effective.target == Target::Removed {
        return Err(RequestRefused::Removed(name));
    }
    let Some(list) = ledger.snapshots() else { return Err(RequestRefused::NotLooked(name)) };
    let found = |wanted: &SnapshotName| list.iter().find(|snapshot| snapshot.name == *wanted);
    let ask = match work {
        BackupWork::Take(wanted) => {
            if found(wanted).is_some() || ledger.record.takes(wanted) {
                return Err(RequestRefused::Exists(wanted.clone()));
            }
            if !member.data_present {
                return Err(RequestRefused::NoData(name));
            }
            Ask::Take(wanted.clone())
        }
        BackupWork::Forget(wanted) => {
            let snapshot = found(wanted).ok_or_else(|| RequestRefused::Absent(wanted.clone()))?;
            if let Some(why) = need(list, &ledger.needs(member), snapshot) {
                return Err(RequestRefused::Needed(wanted.clone(), why));
            }
            Ask::Forget(wanted.clone())
        }
        BackupWork::Verify(_) if list.is_empty() => return Err(RequestRefused::Nothing(name)),
        BackupWork::Verify(Extent::Data) => Ask::Data,
        BackupWork::Verify(Extent::Structure) => Ask::Structure,
        BackupWork::Errand(_) => return Ok(None),
    };
    if ledger.record.asks.contains(&ask) {
        return Ok(None);
    }
    if ledger.record.asks.len() >= ACCEPTED {
        return Err(RequestRefused::TooMany(name));
    }
    Ok(Some(ask))
}
