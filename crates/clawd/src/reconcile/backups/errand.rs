//! What is done once about a repository while somebody waits: archives, and repositories that move.
//!
//! Errands are not journaled: the other end of a transfer does not outlive this agent, and a fetch is asked for
//! again. They wait in one queue for the host, beside the agendas of its instances, because a repository may
//! come before its instance does.
//!
//! What it does not do: carry bytes to or from the coordinator; a [`Passage`] is opened by the session.
//!
//! Where to start: [`Errand`], then [`judge`] and [`run`].

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::rc::Rc;

use claw_core::backup::{BackupReport, SnapshotCause, SnapshotInfo};
use claw_core::name::{InstanceName, SnapshotName};
use claw_core::offsite::OffsiteStorage;
use claw_core::plan::Target;
use claw_core::time::Timestamp;
use tokio::task::JoinHandle;

use super::drill::DRILL_DATA;
use super::due::{Due, Work};
use super::job::{JobError, Order, has_room, measure, snapshot_order};
use super::ledger::Ledger;
use super::progress::Shown;
use super::request::RequestRefused;
use crate::agent::Agent;
use crate::logging::chain;
use crate::machine::Machine;
use crate::ports::{
    Carried, Offsite as _, OffsitePlace, Pipe, PipeError, RepositoryKeys, Transfers as _,
};
use crate::roster::{Elsewhere, Member};

/// Errands of a host that may wait.
const WAITING: usize = 16;

/// Something that is done once.
#[derive(Debug)]
pub enum Errand {
    /// Send a snapshot as an archive.
    Export(SnapshotName, Passage),
    /// Take a snapshot of this name of an archive.
    Import(SnapshotName, Passage),
    /// Send the repository to another host.
    Send(Passage),
    /// Take the repository that another host sends.
    Receive(RepositoryKeys, Passage),
    /// Copy a repository from a storage.
    Fetch(Box<Fetch>),
    /// Remove a repository that came for nothing.
    Discard,
}

/// A repository that is to be copied from a storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetch {
    /// The storage; none: the host's own.
    pub storage: Option<OffsiteStorage>,
    /// Where in the bucket, the storage's prefix included.
    pub path: String,
    /// What opens it.
    pub keys: RepositoryKeys,
}

type Opening = Pin<Box<dyn Future<Output = Result<Pipe, PipeError>>>>;

/// A way to the other end of a transfer, not opened yet.
pub struct Passage(Opening);

impl Passage {
    /// One that is opened like this; it is opened when the errand is accepted, so that the other end does not
    /// wait in vain while other jobs are done.
    #[must_use]
    pub fn new(opening: impl Future<Output = Result<Pipe, PipeError>> + 'static) -> Self {
        Self(Box::pin(opening))
    }
}

impl fmt::Debug for Passage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Passage").finish_non_exhaustive()
    }
}

/// What kind of errand it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ErrandKind {
    Export,
    Import,
    Send,
    Receive,
    Fetch,
    Discard,
}

impl ErrandKind {
    /// What it is called in reports; none: it is too short to be told.
    pub(super) const fn operation(self) -> Option<&'static str> {
        match self {
            Self::Export => Some("export"),
            Self::Import => Some("import"),
            Self::Send => Some("send"),
            Self::Receive | Self::Fetch => Some("fetch"),
            Self::Discard => None,
        }
    }

    const fn stage(self) -> &'static str {
        match self {
            Self::Export => "sending the snapshot",
            Self::Import => "taking a snapshot of the archive",
            Self::Send => "sending the snapshots to another host",
            Self::Receive => "receiving the snapshots from another host",
            Self::Fetch => "copying the snapshots from off-site",
            Self::Discard => "removing the snapshots",
        }
    }
}

impl fmt::Display for ErrandKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Export => "export",
            Self::Import => "import",
            Self::Send => "send",
            Self::Receive => "receive",
            Self::Fetch => "fetch",
            Self::Discard => "discard",
        })
    }
}

/// An errand that was accepted, as it waits.
#[derive(Debug)]
pub(super) struct Accepted {
    pub(super) instance: InstanceName,
    at: Timestamp,
    pub(super) task: Task,
}

/// What is to be done, with its passage being opened.
#[derive(Debug)]
pub(super) enum Task {
    Export(SnapshotName, Entrance),
    Import(SnapshotName, Entrance),
    Send(Entrance),
    Receive(RepositoryKeys, Entrance),
    Fetch(OffsitePlace, RepositoryKeys),
    Discard,
}

impl Task {
    pub(super) const fn kind(&self) -> ErrandKind {
        match self {
            Self::Export(..) => ErrandKind::Export,
            Self::Import(..) => ErrandKind::Import,
            Self::Send(_) => ErrandKind::Send,
            Self::Receive(..) => ErrandKind::Receive,
            Self::Fetch(..) => ErrandKind::Fetch,
            Self::Discard => ErrandKind::Discard,
        }
    }

    /// The same once more, if it can be done again: what came through a pipe cannot.
    pub(super) fn again(&self) -> Option<Self> {
        match self {
            Self::Fetch(place, keys) => Some(Self::Fetch(place.clone(), keys.clone())),
            _ => None,
        }
    }
}

/// A passage that is being opened; given up when this is dropped.
#[derive(Debug)]
pub(super) struct Entrance(JoinHandle<Result<Pipe, PipeError>>);

impl Entrance {
    fn open(passage: Passage) -> Self {
        Self(tokio::task::spawn_local(passage.0))
    }

    async fn opened(&mut self) -> Result<Pipe, PipeError> {
        let opened = (&mut self.0).await;
        opened.unwrap_or_else(|_ended| Err(PipeError("the agent gave it up".to_owned())))
    }
}

impl Drop for Entrance {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Errands that wait, in the order in which they were accepted.
#[derive(Debug, Default)]
pub(super) struct Errands {
    waiting: VecDeque<Accepted>,
    /// What is being fetched now.
    fetching: Option<(InstanceName, OffsitePlace)>,
}

impl Errands {
    /// What is to be done now, as agendas.
    pub(super) fn agendas(&self) -> impl Iterator<Item = (InstanceName, Vec<Due>)> {
        self.waiting.iter().map(|accepted| {
            let work = Work::Errand(accepted.task.kind());
            (accepted.instance.clone(), vec![Due { at: accepted.at, work }])
        })
    }

    /// Takes one up. Must be called within a `LocalSet`.
    ///
    /// # Errors
    /// Too many wait; or a fetch has nowhere to fetch from.
    pub(super) fn accept(
        &mut self,
        instance: InstanceName,
        errand: Errand,
        elsewhere: &Elsewhere,
        at: Timestamp,
    ) -> Result<(), RequestRefused> {
        if let Errand::Fetch(fetch) = &errand {
            let place = place(fetch, elsewhere)?;
            if self.is_fetched(&instance, &place) {
                return Ok(());
            }
        }
        if self.waiting.len() >= WAITING {
            return Err(RequestRefused::TooManyErrands);
        }
        let task = match errand {
            Errand::Export(name, passage) => Task::Export(name, Entrance::open(passage)),
            Errand::Import(name, passage) => Task::Import(name, Entrance::open(passage)),
            Errand::Send(passage) => Task::Send(Entrance::open(passage)),
            Errand::Receive(keys, passage) => Task::Receive(keys, Entrance::open(passage)),
            Errand::Fetch(fetch) => Task::Fetch(place(&fetch, elsewhere)?, fetch.keys),
            Errand::Discard => Task::Discard,
        };
        self.waiting.push_back(Accepted { instance, at, task });
        Ok(())
    }

    /// Whether an import under this name waits.
    pub(super) fn imports(&self, instance: &InstanceName, name: &SnapshotName) -> bool {
        let is_it = |task: &Task| matches!(task, Task::Import(known, _) if known == name);
        self.waiting.iter().any(|accepted| accepted.instance == *instance && is_it(&accepted.task))
    }

    /// The first of an instance, to be done now.
    pub(super) fn begin(&mut self, instance: &InstanceName) -> Option<Accepted> {
        let place = self.waiting.iter().position(|accepted| accepted.instance == *instance)?;
        let accepted = self.waiting.remove(place)?;
        self.fetching = match &accepted.task {
            Task::Fetch(place, _) => Some((instance.clone(), place.clone())),
            _ => None,
        };
        Some(accepted)
    }

    /// What was begun has ended.
    pub(super) fn ended(&mut self) {
        self.fetching = None;
    }

    /// What was begun was broken off, and is done again.
    pub(super) fn put_back(&mut self, accepted: Accepted) {
        self.fetching = None;
        self.waiting.push_front(accepted);
    }

    fn is_fetched(&self, instance: &InstanceName, place: &OffsitePlace) -> bool {
        let now = self.fetching.iter().map(|(of, from)| (of, from));
        let later = self.waiting.iter().filter_map(|accepted| match &accepted.task {
            Task::Fetch(from, _) => Some((&accepted.instance, from)),
            _ => None,
        });
        now.chain(later).any(|(of, from)| of == instance && from == place)
    }
}

impl Accepted {
    /// The same once more, if it can be done again.
    pub(super) fn again(&self) -> Option<Self> {
        let task = self.task.again()?;
        Some(Self { instance: self.instance.clone(), at: self.at, task })
    }
}

/// Whether an errand may be done for an instance; `known` is what is known of it, if it is on this host.
///
/// # Errors
/// [`RequestRefused`].
pub(super) fn judge(
    name: &InstanceName,
    errand: &Errand,
    known: Option<(&Member, &Ledger)>,
) -> Result<(), RequestRefused> {
    match errand {
        Errand::Export(..) | Errand::Import(..) | Errand::Send(_) => {
            let (member, ledger) = known.ok_or_else(|| RequestRefused::Unknown(name.clone()))?;
            judge_here(name, errand, member, ledger)
        }
        Errand::Receive(..) | Errand::Fetch(_) => match known {
            None => Ok(()),
            Some((_, ledger)) => match ledger.repository() {
                None => Err(RequestRefused::NotLooked(name.clone())),
                Some("") => Ok(()),
                Some(_) => Err(RequestRefused::HasRepository(name.clone())),
            },
        },
        Errand::Discard => match known {
            None => Ok(()),
            Some(_) => Err(RequestRefused::Here(name.clone())),
        },
    }
}

fn judge_here(
    name: &InstanceName,
    errand: &Errand,
    member: &Member,
    ledger: &Ledger,
) -> Result<(), RequestRefused> {
    if member.effective.target == Target::Removed {
        return Err(RequestRefused::Removed(name.clone()));
    }
    let list = ledger.snapshots().ok_or_else(|| RequestRefused::NotLooked(name.clone()))?;
    let exists = |wanted: &SnapshotName| list.iter().any(|snapshot| snapshot.name == *wanted);
    match errand {
        Errand::Export(wanted, _) if !exists(wanted) => Err(RequestRefused::Absent(wanted.clone())),
        Errand::Import(wanted, _) if exists(wanted) || ledger.record.takes(wanted) => {
            Err(RequestRefused::Exists(wanted.clone()))
        }
        Errand::Send(_) if list.is_empty() => Err(RequestRefused::NothingToSend(name.clone())),
        _ => Ok(()),
    }
}

/// What an errand has done.
#[derive(Debug)]
pub(super) enum Did {
    /// Something left the host; nothing here has changed.
    Sent,
    /// An archive is a snapshot now.
    Imported(SnapshotInfo),
    /// A repository is here, complete.
    Arrived,
    /// A repository is gone.
    Discarded,
}

/// Carries out an errand. `order` is of the instance, if that is on this host.
///
/// # Errors
/// [`JobError`].
pub(super) async fn run<M: Machine>(
    agent: &Rc<Agent<M>>,
    (instance, task): (&InstanceName, &mut Task),
    order: Option<&Order>,
) -> Result<Did, JobError> {
    let shown = Shown::new(agent, instance, task.kind().operation());
    shown.stage(task.kind().stage());
    let (machine, progress) = (&agent.machine, |progress| shown.progress(progress));
    let store = machine.snapshots();
    match task {
        Task::Export(name, entrance) => {
            let pipe = entrance.opened().await?;
            store.export(instance, name, pipe, &progress).await?;
            Ok(Did::Sent)
        }
        Task::Import(name, entrance) => {
            let mut pipe = entrance.opened().await?;
            let Some(order) = order else { return Err(JobError::NoData) };
            let order = match prepare_import(agent, order, name).await {
                Ok(order) => order,
                Err(error) => {
                    give_up(&mut pipe, &error).await;
                    return Err(error);
                }
            };
            Ok(Did::Imported(store.import(&order, pipe, &progress).await?))
        }
        Task::Send(entrance) => {
            let pipe = entrance.opened().await?;
            log_carried(instance, "sent", store.send(instance, pipe, &progress).await?);
            Ok(Did::Sent)
        }
        Task::Receive(keys, entrance) => {
            let mut pipe = entrance.opened().await?;
            if let Err(error) = check_room(agent, instance).await {
                give_up(&mut pipe, &error).await;
                return Err(error);
            }
            store.receive(instance, keys, pipe, &progress).await?;
            Ok(Did::Arrived)
        }
        Task::Fetch(place, keys) => {
            check_room(agent, instance).await?;
            let carried = store.copy_in(instance, place, keys, &progress).await?;
            log_carried(instance, "fetched", carried);
            Ok(Did::Arrived)
        }
        Task::Discard => {
            store.discard(instance).await?;
            Ok(Did::Discarded)
        }
    }
}

/// How the snapshots of an instance stand that is not on this host (yet).
pub(super) async fn report<M: Machine>(
    agent: &Agent<M>,
    instance: &InstanceName,
    outcome: &Result<Did, JobError>,
) -> BackupReport {
    let problem = |problem: String| BackupReport { problem, ..BackupReport::default() };
    match outcome {
        Err(error) => problem(chain(error)),
        Ok(Did::Arrived) => match agent.machine.snapshots().arrived(instance).await {
            Ok(list) => BackupReport {
                snapshots: list.snapshots,
                stored_bytes: list.stored_bytes,
                ..BackupReport::default()
            },
            Err(error) => problem(chain(&error)),
        },
        Ok(_) => BackupReport::default(),
    }
}

async fn prepare_import<M: Machine>(
    agent: &Agent<M>,
    order: &Order,
    name: &SnapshotName,
) -> Result<crate::ports::SnapshotOrder, JobError> {
    check_room(agent, order.instance()).await?;
    snapshot_order(agent, order, name.clone(), SnapshotCause::Import)
}

/// Nobody knows how much comes; nothing is begun on a disk that has no room for anything.
async fn check_room<M: Machine>(agent: &Agent<M>, instance: &InstanceName) -> Result<(), JobError> {
    has_room(&measure(agent, instance, DRILL_DATA).await?, 0)
}

async fn give_up(pipe: &mut Pipe, error: &JobError) {
    // The other end may be gone.
    let _told = pipe.give(crate::ports::Parcel::GaveUp(chain(error))).await;
}

fn place(fetch: &Fetch, elsewhere: &Elsewhere) -> Result<OffsitePlace, RequestRefused> {
    let storage = fetch.storage.as_ref().or(elsewhere.storage.as_ref());
    let storage = storage.ok_or(RequestRefused::NoStorage)?.clone();
    Ok(OffsitePlace { storage, path: fetch.path.clone() })
}

fn log_carried(instance: &InstanceName, done: &str, carried: Carried) {
    let Carried { files, bytes, .. } = carried;
    tracing::info!(instance = instance.as_str(), files, bytes, "its repository was {done}");
}
