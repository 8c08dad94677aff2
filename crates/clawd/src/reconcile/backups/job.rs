//! Carries out one job on an instance's snapshots, through the ports. Decides nothing.
//!
//! Where to start: [`run`].

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use claw_core::backup::{SnapshotCause, SnapshotHealth, SnapshotInfo};
use claw_core::cutover::Migration;
use claw_core::data::DataGeneration;
use claw_core::name::{ImageRef, InstanceName, NameError, SnapshotName};
use claw_core::plan::{DesiredInstance, Target};
use claw_core::stamp::{Digest, Generation};
use claw_core::unit::MIB;
use claw_proto::convert::spec::encode_assignment_without_secrets;

use super::drill;
use super::due::{Room, Work};
use super::progress::Shown;
use super::record::{Ask, DATA_PARTS, Looked};
use super::retention::{Needs, need};
use crate::agent::Agent;
use crate::machine::Machine;
use crate::ports::{
    Carried, Clock as _, Measure, Offsite as _, OffsitePlace, PipeError, RepositoryKeys,
    RuntimeError, SnapshotList, SnapshotOrder, Snapshots as _, SnapshotsError, Surplus,
    Verification, VerifyDepth, VolumeError, Volumes as _,
};
use crate::reconcile::deadline::{Elapsed, within};
use crate::reconcile::freeze::Freezer;
use crate::reconcile::trial::TrialFailure;
use crate::roster::Member;

/// A job as a whole: its silence is bounded by the port, much closer; this is for what never ends and is
/// never silent.
pub(super) const JOB: Duration = Duration::from_secs(12 * 3600);
/// Walking through a data directory of a million files on a busy disk.
const MEASURE: Duration = Duration::from_secs(120);
/// The disk is kept free by this part of it: Docker, logs and the journal need room while snapshots wait.
const RESERVE_PART: u64 = 20;
/// At most so much is kept free.
const RESERVE_MOST: u64 = 2048 * MIB;

/// A job with everything that it needs to know.
#[derive(Debug)]
pub(super) struct Order {
    /// What is to be done.
    pub(super) work: Work,
    /// For whom.
    pub(super) member: Member,
    /// What ran last on the data in use, if anybody knows.
    pub(super) described: Option<Rc<DesiredInstance>>,
    /// What is held, oldest first.
    pub(super) list: Vec<SnapshotInfo>,
    /// What the policy does not keep.
    pub(super) forgettable: BTreeSet<Digest>,
    /// What must stay whatever a person says.
    pub(super) needs: Needs,
    /// Whether the keys are wanted.
    pub(super) keys: Keys,
    /// Where the repository is copied to.
    pub(super) place: Option<OffsitePlace>,
}

/// Whether the keys of the repository are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keys {
    /// They are.
    Wanted,
    /// They are where they should be already.
    Known,
}

impl Order {
    /// Whose job it is.
    pub(super) fn instance(&self) -> &InstanceName {
        &self.member.effective.name
    }
}

/// What a job has done.
#[derive(Debug)]
pub(super) enum Done {
    /// What a drill left behind is gone.
    Swept,
    /// What there is, and the keys if they were wanted.
    Listed(SnapshotList, Option<RepositoryKeys>),
    /// A snapshot was taken.
    Taken(SnapshotInfo),
    /// These were forgotten.
    Forgotten(BTreeSet<Digest>),
    /// This was found.
    Verified(Looked, Verification),
    /// A snapshot was restored, and booted.
    Drilled(SnapshotInfo, Migration),
    /// The repository was copied off-site, and this became of what the host has dropped.
    Copied(Surplus),
}

/// Why a job failed.
#[derive(Debug, thiserror::Error)]
pub(in crate::reconcile) enum JobError {
    /// The repository.
    #[error(transparent)]
    Snapshots(#[from] SnapshotsError),
    /// The data.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// No answer at all.
    #[error("the job does not end")]
    Silent(#[from] Elapsed),
    /// Not enough room on the disk; nothing was begun.
    #[error("no room: {} MiB needed, {} MiB free", .needed.div_ceil(MIB), .free / MIB)]
    NoRoom {
        /// Bytes.
        needed: u64,
        /// Bytes.
        free: u64,
    },
    /// Not enough memory for a drill; nothing was begun.
    #[error("no memory for a restore drill: {} MiB needed, {} MiB free", .needed.div_ceil(MIB), .free / MIB)]
    NoMemory {
        /// Bytes.
        needed: u64,
        /// Bytes.
        free: u64,
    },
    /// The way to the other end.
    #[error(transparent)]
    Pipe(#[from] PipeError),
    /// The storage went away since the copy was due.
    #[error("there is no off-site storage any more")]
    NoStorage,
    /// A snapshot cannot have this name.
    #[error("a snapshot cannot be named")]
    Name(#[from] NameError),
    /// There is no data of which a snapshot could be taken.
    #[error("there is no data")]
    NoData,
    /// Nothing with which a drill would tell anything.
    #[error("no restore drill: there is no sound snapshot of the image that runs")]
    NothingToDrill,
    /// The instance was changed during a drill.
    #[error("no restore drill: the instance was changed meanwhile")]
    Disturbed,
    /// A container of an earlier drill is still there.
    #[error("what an earlier restore drill left cannot be removed")]
    Leftover(#[source] RuntimeError),
    /// What must be known of the job before it begins could not be kept.
    #[error("the journal cannot be written")]
    Journal(#[source] Box<dyn std::error::Error>),
    /// A snapshot must stay.
    #[error("snapshot {snapshot} stays: {why}")]
    Needed {
        /// Which.
        snapshot: SnapshotName,
        /// Why.
        why: &'static str,
    },
    /// What was restored in a drill does not boot.
    #[error("snapshot {snapshot} does not boot")]
    Trial {
        /// Which.
        snapshot: SnapshotName,
        /// Why.
        #[source]
        source: TrialFailure,
    },
    /// What was to be restored in a drill is damaged.
    #[error("snapshot {snapshot} cannot be restored")]
    Restore {
        /// Which.
        snapshot: SnapshotName,
        /// Why.
        #[source]
        source: SnapshotsError,
    },
}

impl JobError {
    /// Whether it failed for want of room on the disk.
    pub(super) const fn is_full(&self) -> bool {
        matches!(
            self,
            Self::NoRoom { .. }
                | Self::Snapshots(SnapshotsError::Full { .. })
                | Self::Volume(VolumeError::Full { .. })
                | Self::Restore { source: SnapshotsError::Full { .. }, .. }
        )
    }
}

/// Carries out a job.
///
/// Dropping it leaves at most what its next run or [`Work::Sweep`] removes.
///
/// # Errors
/// [`JobError`].
pub(super) async fn run<M: Machine>(agent: &Rc<Agent<M>>, order: &Order) -> Result<Done, JobError> {
    let shown = Shown::new(agent, order.instance(), order.work.operation());
    within(agent.machine.clock(), JOB, carry_out(agent, order, &shown)).await?
}

async fn carry_out<M: Machine>(
    agent: &Rc<Agent<M>>,
    order: &Order,
    shown: &Shown<'_, M>,
) -> Result<Done, JobError> {
    let now = agent.machine.clock().now();
    match &order.work {
        Work::Sweep => drill::sweep(agent, order.instance()).await.map(|()| Done::Swept),
        Work::Look => look(agent, order).await,
        Work::Room | Work::Prune => {
            forget(agent, order.instance(), order.forgettable.clone(), shown).await
        }
        Work::Asked(Ask::Forget(name)) => {
            let forget_it = asked_to_forget(order, name)?;
            forget(agent, order.instance(), forget_it, shown).await
        }
        Work::AtRest(cause) => {
            let name = SnapshotName::of(*cause, now)?;
            take(agent, order, Subject::in_use(order, name, *cause)?, shown).await
        }
        Work::Replaced(cause) => {
            let name = SnapshotName::of(*cause, now)?;
            take(agent, order, Subject::replaced(order, name, *cause)?, shown).await
        }
        Work::Scheduled => {
            let cause = SnapshotCause::Scheduled;
            let subject = Subject::in_use(order, SnapshotName::of(cause, now)?, cause)?;
            take(agent, order, subject, shown).await
        }
        Work::Asked(Ask::Take(name)) => {
            let subject = Subject::in_use(order, name.clone(), SnapshotCause::Requested)?;
            take(agent, order, subject, shown).await
        }
        Work::Structure | Work::Asked(Ask::Structure) => {
            verify(agent, order, Looked::Structure, shown).await
        }
        Work::Data(part) => verify(agent, order, Looked::Part(*part), shown).await,
        Work::Asked(Ask::Data) => verify(agent, order, Looked::All, shown).await,
        Work::Drill => drill::run(agent, order, shown).await,
        Work::Offsite(surplus) => copy_out(agent, order, *surplus, shown).await,
        // They have a way of their own: see `errand::run`.
        Work::Errand(_) => Err(JobError::NoData),
    }
}

async fn copy_out<M: Machine>(
    agent: &Agent<M>,
    order: &Order,
    surplus: Surplus,
    shown: &Shown<'_, M>,
) -> Result<Done, JobError> {
    let place = order.place.as_ref().ok_or(JobError::NoStorage)?;
    shown.stage("copying off-site");
    let progress = |progress| shown.progress(progress);
    let store = agent.machine.snapshots();
    let Carried { files, bytes, removed } =
        store.copy_out(order.instance(), place, surplus, &progress).await?;
    let instance = order.instance().as_str();
    tracing::info!(instance, path = place.path, files, bytes, removed, "copied off-site");
    Ok(Done::Copied(surplus))
}

async fn look<M: Machine>(agent: &Agent<M>, order: &Order) -> Result<Done, JobError> {
    let snapshots = agent.machine.snapshots();
    let list = snapshots.list(order.instance()).await?;
    let keys = if order.keys == Keys::Wanted && !list.snapshots.is_empty() {
        snapshots.keys(order.instance()).await?
    } else {
        None
    };
    Ok(Done::Listed(list, keys))
}

async fn forget<M: Machine>(
    agent: &Agent<M>,
    instance: &InstanceName,
    snapshots: BTreeSet<Digest>,
    shown: &Shown<'_, M>,
) -> Result<Done, JobError> {
    shown.stage("giving back room");
    let progress = |progress| shown.progress(progress);
    agent.machine.snapshots().forget(instance, &snapshots, &progress).await?;
    Ok(Done::Forgotten(snapshots))
}

/// One that is gone is success.
fn asked_to_forget(order: &Order, name: &SnapshotName) -> Result<BTreeSet<Digest>, JobError> {
    let Some(snapshot) = order.list.iter().find(|snapshot| snapshot.name == *name) else {
        return Ok(BTreeSet::new());
    };
    match need(&order.list, &order.needs, snapshot) {
        Some(why) => Err(JobError::Needed { snapshot: name.clone(), why }),
        None => Ok(BTreeSet::from([snapshot.id])),
    }
}

async fn verify<M: Machine>(
    agent: &Agent<M>,
    order: &Order,
    looked: Looked,
    shown: &Shown<'_, M>,
) -> Result<Done, JobError> {
    let (depth, stage) = match looked {
        Looked::Structure => (VerifyDepth::Structure, "verifying the structure"),
        Looked::Part(part) => {
            (VerifyDepth::Data { part, parts: DATA_PARTS }, "verifying a part of the data")
        }
        Looked::All => (VerifyDepth::Data { part: 0, parts: 1 }, "verifying all data"),
    };
    shown.stage(stage);
    let progress = |progress| shown.progress(progress);
    let found = agent.machine.snapshots().verify(order.instance(), depth, &progress).await?;
    Ok(Done::Verified(looked, found))
}

/// What a snapshot is taken of.
struct Subject {
    name: SnapshotName,
    cause: SnapshotCause,
    data: DataGeneration,
    image: ImageRef,
    generation: Generation,
    assignment: Vec<u8>,
    /// The container that is up on it.
    container: Option<String>,
}

impl Subject {
    /// The data in use.
    fn in_use(order: &Order, name: SnapshotName, cause: SnapshotCause) -> Result<Self, JobError> {
        if !order.member.data_present {
            return Err(JobError::NoData);
        }
        let container = match cause {
            SnapshotCause::Pause | SnapshotCause::Final => None,
            _ => order.member.up.clone(),
        };
        let effective = &order.member.effective;
        let subject = Self::new(order, name, cause, order.described.as_deref())?;
        Ok(Self { data: effective.data, generation: effective.generation, container, ..subject })
    }

    /// Data that another version has taken the place of.
    fn replaced(order: &Order, name: SnapshotName, cause: SnapshotCause) -> Result<Self, JobError> {
        let replaced = order.member.replaced.as_ref().ok_or(JobError::NoData)?;
        let subject = Self::new(order, name, cause, Some(&replaced.desired))?;
        Ok(Self { data: replaced.data, ..subject })
    }

    /// When nobody knows any more what ran there, the data is held all the same, with what the newest
    /// snapshot says.
    fn new(
        order: &Order,
        name: SnapshotName,
        cause: SnapshotCause,
        desired: Option<&DesiredInstance>,
    ) -> Result<Self, JobError> {
        let present = desired.and_then(|desired| match &desired.target {
            Target::Present { spec, .. } => Some((desired, spec)),
            Target::Removed => None,
        });
        let data = order.member.effective.data;
        if let Some((desired, spec)) = present {
            let assignment = encode_assignment_without_secrets(&desired.name, spec);
            let (image, generation) = (spec.image.clone(), desired.generation);
            return Ok(Self { name, cause, data, image, generation, assignment, container: None });
        }
        let newest = order.list.last();
        let image = match newest {
            Some(newest) => newest.image.clone(),
            None => ImageRef::parse("unknown")?,
        };
        let generation = newest.map_or(Generation(0), |newest| newest.generation);
        let assignment = Vec::new();
        Ok(Self { name, cause, data, image, generation, assignment, container: None })
    }
}

async fn take<M: Machine>(
    agent: &Rc<Agent<M>>,
    order: &Order,
    subject: Subject,
    shown: &Shown<'_, M>,
) -> Result<Done, JobError> {
    let instance = order.instance();
    shown.stage("measuring the data");
    let measure = measure(agent, instance, subject.data).await?;
    has_room(&measure, growth(&order.list, &measure))?;
    shown.stage(if subject.container.is_some() {
        "saving the data while it runs"
    } else {
        "saving the data"
    });
    let freezer = match subject.container {
        None => None,
        Some(container) => {
            let freezer = Freezer::new(Rc::clone(agent), instance.clone(), container);
            let asked = subject.cause == SnapshotCause::Requested;
            Some(if asked { freezer.and_suspend().await } else { freezer })
        }
    };
    let order = SnapshotOrder {
        instance: instance.clone(),
        data: subject.data,
        name: subject.name,
        cause: subject.cause,
        at: agent.machine.clock().now(),
        image: subject.image,
        generation: subject.generation,
        assignment: subject.assignment,
    };
    let progress = |progress| shown.progress(progress);
    let taken = agent.machine.snapshots().take(&order, freezer.as_ref(), &progress).await?;
    Ok(Done::Taken(taken))
}

/// A snapshot of this name of what is not the instance's data, with the spec that runs now.
pub(super) fn snapshot_order<M: Machine>(
    agent: &Agent<M>,
    order: &Order,
    name: SnapshotName,
    cause: SnapshotCause,
) -> Result<SnapshotOrder, JobError> {
    let subject = Subject::new(order, name, cause, order.described.as_deref())?;
    Ok(SnapshotOrder {
        instance: order.instance().clone(),
        data: subject.data,
        name: subject.name,
        cause: subject.cause,
        at: agent.machine.clock().now(),
        image: subject.image,
        generation: subject.generation,
        assignment: subject.assignment,
    })
}

/// How large a data directory is, and how much room there is beside it.
pub(super) async fn measure<M: Machine>(
    agent: &Agent<M>,
    instance: &InstanceName,
    data: DataGeneration,
) -> Result<Measure, JobError> {
    let work = agent.machine.volumes().measure(instance, data);
    Ok(within(agent.machine.clock(), MEASURE, work).await??)
}

/// Whether the disk is below its watermark. A directory that is absent tells it with no walk.
///
/// # Errors
/// [`JobError`].
pub(in crate::reconcile) async fn is_low<M: Machine>(
    agent: &Agent<M>,
    instance: &InstanceName,
) -> Result<bool, JobError> {
    let measure = measure(agent, instance, drill::DRILL_DATA).await?;
    Ok(watermark(&measure) == Room::Low)
}

/// Whether so many bytes may be written.
pub(super) fn has_room(measure: &Measure, bytes: u64) -> Result<(), JobError> {
    let needed = bytes.saturating_add(reserve(measure));
    let free = measure.free_bytes;
    // A file system that does not say how large it is says nothing of use.
    if measure.total_bytes == 0 || free >= needed {
        return Ok(());
    }
    Err(JobError::NoRoom { needed, free })
}

/// What is kept free of the disk.
fn reserve(measure: &Measure) -> u64 {
    (measure.total_bytes / RESERVE_PART).min(RESERVE_MOST)
}

/// Whether snapshots that are not kept should go now, before a snapshot is refused for want of room.
pub(super) fn watermark(measure: &Measure) -> Room {
    let low = measure.total_bytes > 0 && measure.free_bytes < reserve(measure).saturating_mul(2);
    if low { Room::Low } else { Room::Enough }
}

/// By how much a repository grows: by as much as it did lately, or by everything the first time.
fn growth(list: &[SnapshotInfo], measure: &Measure) -> u64 {
    let sound = list.iter().rev().filter(|snapshot| snapshot.health == SnapshotHealth::Sound);
    let lately = sound.take(3).map(|snapshot| snapshot.added_bytes).max();
    lately.unwrap_or(measure.bytes).min(measure.bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_told_in_figures() {
        let measure =
            Measure { total_bytes: 10_240 * MIB, free_bytes: 1000 * MIB, ..Measure::default() };
        assert!(has_room(&measure, 488 * MIB).is_ok());
        let error = has_room(&measure, 488 * MIB + 1).expect_err("no room");
        assert_eq!(error.to_string(), "no room: 1001 MiB needed, 1000 MiB free");
        assert!(error.is_full());
        let unknown = Measure::default();
        assert!(has_room(&unknown, u64::MAX).is_ok());
        let huge = Measure { total_bytes: u64::MAX, free_bytes: RESERVE_MOST, ..unknown };
        assert!(has_room(&huge, 0).is_ok());
    }
}
