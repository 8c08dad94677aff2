//! Makes everything ready for a change of version while the old one serves: the image, the data, a rehearsal.
//!
//! It runs as a task of its own beside the instance's loop, which goes on keeping the old version alive. It
//! touches nothing that the old version uses, so it may be dropped or killed at any moment; whoever comes
//! next begins again, and finds most of the copy made.
//!
//! What it does not do: journal, stop, switch. Where to start: [`prepare`].

use std::rc::Rc;
use std::time::Duration;

use claw_core::cutover::{Cutover, Migration};
use claw_core::data::DataGeneration;
use claw_core::name::SnapshotName;
use claw_core::plan::{DesiredInstance, Target, container_plan};
use claw_core::report::OperationReport;
use claw_core::spec::{InstanceSpec, Rehearsal, RestoreOrder, RestoreSource};
use claw_core::unit::MIB;

use super::deadline::{self, Elapsed, within};
use super::freeze::Freezer;
use super::trial::{self, TrialFailure, TrialOrder};
use crate::agent::Agent;
use crate::machine::Machine;
use crate::ports::{
    Clock as _, Files as _, FilesError, Host as _, JobProgress, Offsite as _, PullProgress,
    Quiesce as _, Runtime as _, RuntimeError, Snapshots as _, SnapshotsError, VolumeError,
    Volumes as _, Writers,
};

/// Room that an update leaves on the disk whatever it copies.
const RESERVE_BYTES: u64 = 512 * MIB;
/// Memory that a rehearsal leaves to the host beside what it may take itself.
const RESERVE_MEMORY: u64 = 256 * MIB;
/// The container stands still for the second pass of a copy; longer than this is an outage.
const LONGEST_HOLD: Duration = Duration::from_secs(10);

/// Everything is ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Prepared {
    /// What the rehearsal has shown.
    pub(super) migration: Migration,
    /// What was left out, in words; empty: nothing.
    pub(super) left_out: String,
}

/// Why a change is refused before anything was touched.
#[derive(Debug, thiserror::Error)]
pub(super) enum PrepareError {
    /// The image.
    #[error("the image cannot be had")]
    Pull(#[source] RuntimeError),
    /// There is not enough room on the disk.
    #[error("its data needs {} MiB of disk, {} MiB are free, {} MiB of which are kept free", needed / MIB, free / MIB, RESERVE_BYTES / MIB)]
    NoRoom {
        /// Bytes that a copy takes.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// There is not enough memory, and the policy demands a rehearsal.
    #[error("{0}, and without a rehearsal it may not be updated")]
    NoRehearsal(String),
    /// The data could not be copied.
    #[error("its data could not be copied")]
    Copy(#[from] VolumeError),
    /// The container could not be held still or did not go on.
    #[error("it could not be held still")]
    Hold(#[source] RuntimeError),
    /// The configuration could not be put in place.
    #[error("its configuration could not be put in place")]
    Files(#[from] FilesError),
    /// The snapshot could not be restored.
    #[error("the snapshot could not be restored")]
    Restore(#[from] SnapshotsError),
    /// There is no storage from which it could be restored.
    #[error("snapshot {0} cannot be restored from off-site: this host has no off-site storage")]
    NoStorage(SnapshotName),
    /// There is a storage, and nothing in it that this host knows of.
    #[error(
        "snapshot {0} cannot be restored from off-site: this host knows of no copy of the instance there"
    )]
    NoCopy(SnapshotName),
    /// Nobody has looked yet what there is.
    #[error("it is not known yet where the copy off-site is")]
    NotLooked,
    /// The new version does not work.
    #[error("the rehearsal failed")]
    Rehearsal(#[source] TrialFailure),
    /// Something took far too long.
    #[error(transparent)]
    Stuck(#[from] Elapsed),
}

impl PrepareError {
    /// Whether the version itself is to blame, and need not be tried again.
    pub(super) const fn is_verdict(&self) -> bool {
        match self {
            Self::Rehearsal(failure) => {
                matches!(failure, TrialFailure::Exited { .. } | TrialFailure::Unhealthy { .. })
            }
            Self::NoRehearsal(_) | Self::NoStorage(_) | Self::NoCopy(_) => true,
            Self::Restore(error) => {
                matches!(error, SnapshotsError::NotFound(_) | SnapshotsError::Damaged(_))
            }
            _ => false,
        }
    }
}

/// What is to be made ready.
pub(super) struct Order {
    /// The change.
    pub(super) cutover: Cutover,
    /// The instance as it shall be.
    pub(super) desired: Rc<DesiredInstance>,
    /// The data in use, and the container that writes to it, if one is up.
    pub(super) present: Option<(DataGeneration, Option<String>)>,
}

/// Makes everything ready.
///
/// # Errors
/// [`PrepareError`]; what was made so far remains for the next attempt.
pub(super) async fn prepare<M: Machine>(
    agent: Rc<Agent<M>>,
    order: Order,
) -> Result<Prepared, PrepareError> {
    let Target::Present { spec, .. } = &order.desired.target else {
        return Ok(Prepared { migration: Migration::Unknown, left_out: String::new() });
    };
    let work = Work { agent: &agent, order: &order, spec, since: agent.machine.clock().now() };
    work.run().await
}

struct Work<'a, M> {
    agent: &'a Rc<Agent<M>>,
    order: &'a Order,
    spec: &'a InstanceSpec,
    since: claw_core::time::Timestamp,
}

impl<M: Machine> Work<'_, M> {
    async fn run(&self) -> Result<Prepared, PrepareError> {
        self.pull().await?;
        let present = self.order.present.as_ref();
        match (&self.order.cutover.restore, present) {
            (Some(restore), _) => self.restore(restore).await?,
            (None, Some((from, _))) => {
                self.check_room(*from).await?;
                self.copy(*from, Writers::Somebody).await?;
            }
            (None, None) => {}
        }
        self.rehearse().await
    }

    async fn pull(&self) -> Result<(), PrepareError> {
        let (machine, name) = (&self.agent.machine, &self.order.desired.name);
        self.show("looking for the image", None);
        let view = machine.runtime().view(name, Some(&self.spec.image));
        let view = within(machine.clock(), deadline::LOOK, view).await?;
        if view.map_err(PrepareError::Pull)?.image_present {
            return Ok(());
        }
        let progress = |at: PullProgress| {
            let job = JobProgress { done_bytes: at.current_bytes, total_bytes: at.total_bytes };
            self.show("pulling the image", job.permille());
        };
        let pull = machine.runtime().pull(&self.spec.image, &progress);
        within(machine.clock(), deadline::PULL, pull).await?.map_err(PrepareError::Pull)
    }

    /// Nothing is begun that would fill the disk: a full disk hurts every instance of the host.
    async fn check_room(&self, from: DataGeneration) -> Result<(), PrepareError> {
        let (volumes, name) = (self.agent.machine.volumes(), &self.order.desired.name);
        let measured = async {
            let source = volumes.measure(name, from).await?;
            Ok::<_, VolumeError>((source, volumes.measure(name, self.order.cutover.data).await?))
        };
        let (source, made) = within(self.agent.machine.clock(), deadline::DATA, measured).await??;
        let needed = source.bytes.saturating_sub(made.bytes);
        if source.free_bytes < needed.saturating_add(RESERVE_BYTES) {
            return Err(PrepareError::NoRoom { needed, free: source.free_bytes });
        }
        Ok(())
    }

    async fn copy(&self, from: DataGeneration, writers: Writers) -> Result<(), PrepareError> {
        let progress = |at: JobProgress| self.show("copying its data", at.permille());
        let into = self.order.cutover.data;
        let name = &self.order.desired.name;
        let copy = self.agent.machine.volumes().copy(name, from, into, writers, &progress);
        within(self.agent.machine.clock(), deadline::DATA, copy).await??;
        Ok(())
    }

    async fn restore(&self, order: &RestoreOrder) -> Result<(), PrepareError> {
        let (machine, name) = (&self.agent.machine, &self.order.desired.name);
        let into = self.order.cutover.data;
        // What an earlier attempt left may have been rehearsed on.
        within(machine.clock(), deadline::DATA, machine.volumes().remove(name, into)).await??;
        match order.from {
            RestoreSource::Host => {
                let progress = |at: JobProgress| self.show("restoring the snapshot", at.permille());
                Ok(machine.snapshots().restore(name, &order.snapshot, into, &progress).await?)
            }
            RestoreSource::Offsite => self.restore_from_offsite(&order.snapshot).await,
        }
    }

    /// Looks in the copy of the present repository first, then in those of earlier ones.
    async fn restore_from_offsite(&self, snapshot: &SnapshotName) -> Result<(), PrepareError> {
        let (agent, name) = (&self.agent, &self.order.desired.name);
        if agent.roster.elsewhere().storage.is_none() {
            return Err(PrepareError::NoStorage(snapshot.clone()));
        }
        let copies = agent.roster.held(name).copies.ok_or(PrepareError::NotLooked)?;
        let show = |at: JobProgress| {
            self.show("restoring the snapshot from off-site", at.permille());
        };
        let (store, into) = (agent.machine.snapshots(), self.order.cutover.data);
        let mut outcome = Err(PrepareError::NoCopy(snapshot.clone()));
        for place in copies {
            match store.restore_from(name, &place, snapshot, into, &show).await {
                // The repository may have been another one when it was taken.
                Err(SnapshotsError::NotFound(name)) => {
                    outcome = Err(PrepareError::Restore(SnapshotsError::NotFound(name)));
                }
                done => return Ok(done?),
            }
        }
        outcome
    }

    /// Tries the new version on its data, if that is wanted and possible.
    async fn rehearse(&self) -> Result<Prepared, PrepareError> {
        let prepared = |left_out| Prepared { migration: Migration::Unknown, left_out };
        let policy = self.spec.update.rehearsal;
        // Where nothing serves yet there is nobody whom a rehearsal would spare anything.
        if policy == Rehearsal::Never || self.order.present.is_none() {
            return Ok(prepared(String::new()));
        }
        if let Some(reason) = self.lacks_memory() {
            if policy == Rehearsal::Always {
                return Err(PrepareError::NoRehearsal(reason));
            }
            return Ok(prepared(format!("not rehearsed: {reason}")));
        }
        if let (None, Some((from, container))) = (&self.order.cutover.restore, &self.order.present)
        {
            self.copy_at_one_moment(*from, container.as_deref()).await?;
        }
        self.deliver().await?;
        let desired =
            DesiredInstance { data: self.order.cutover.data, ..(*self.order.desired).clone() };
        let container = container_plan(&desired, self.spec);
        let order = TrialOrder { container, health: self.spec.health };
        let show = |doing: &str| self.show(&format!("rehearsal: {doing}"), None);
        let trial = trial::boots(self.agent, &order, &show).await;
        let migration = trial.map_err(PrepareError::Rehearsal)?;
        if let Some(restore) = &self.order.cutover.restore {
            // The rehearsal has changed it, and there is nothing to copy it from again.
            self.restore(restore).await?;
        }
        Ok(Prepared { migration, left_out: String::new() })
    }

    fn lacks_memory(&self) -> Option<String> {
        let needed = self.spec.resources.memory.bytes().saturating_add(RESERVE_MEMORY);
        let free = self.agent.machine.host().resources().memory_available_bytes;
        (free < needed).then(|| {
            format!("it needs {} MiB of memory, {} MiB are available", needed / MIB, free / MIB)
        })
    }

    /// A copy that holds what a kill at one moment would have left.
    async fn copy_at_one_moment(
        &self,
        from: DataGeneration,
        container: Option<&str>,
    ) -> Result<(), PrepareError> {
        let Some(container) = container else { return self.copy(from, Writers::Nobody).await };
        // What changed during the first pass is copied now, so that little is left for the still moment.
        self.copy(from, Writers::Somebody).await?;
        let (agent, name) = (Rc::clone(self.agent), self.order.desired.name.clone());
        let freezer = Freezer::new(agent, name, container.to_owned());
        let held = freezer.hold().await.map_err(PrepareError::Hold);
        let copied = match held {
            Ok(()) => {
                let copy = self.copy(from, Writers::Held);
                within(self.agent.machine.clock(), LONGEST_HOLD, copy).await
            }
            Err(error) => Ok(Err(error)),
        };
        let released = freezer.release().await.map_err(PrepareError::Hold);
        copied??;
        released
    }

    async fn deliver(&self) -> Result<(), PrepareError> {
        let Target::Present { delivery, .. } = &self.order.desired.target else { return Ok(()) };
        let (files, name) = (self.agent.machine.files(), &self.order.desired.name);
        let write = files.deliver(name, self.order.cutover.data, &delivery.files);
        within(self.agent.machine.clock(), deadline::CHANGE, write).await??;
        Ok(())
    }

    fn show(&self, stage: &str, permille: Option<u32>) {
        let report = OperationReport {
            kind: self.order.cutover.kind(),
            stage: stage.to_owned(),
            permille,
            since: self.since,
        };
        self.agent.board.change(&self.order.desired.name, Some(report));
    }
}
