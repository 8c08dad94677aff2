//! The restore drill: the newest sound snapshot is restored beside the instance, booted on the network that
//! leads nowhere, gated, and removed. A backup that nobody has restored is a hope.
//!
//! That a drill is under way is in the record before its first effect: a new agent removes what a dead one
//! left.

use std::rc::Rc;
use std::time::Duration;

use claw_core::backup::{SnapshotHealth, SnapshotInfo};
use claw_core::data::DataGeneration;
use claw_core::name::InstanceName;
use claw_core::plan::{DesiredInstance, Target, container_plan};
use claw_core::spec::InstanceSpec;

use super::job::{Done, JobError, Order, has_room, measure};
use super::progress::Shown;
use crate::agent::Agent;
use crate::machine::Machine;
use crate::ports::{Host as _, RuntimeError, Snapshots as _, Trials as _, Volumes as _};
use crate::reconcile::deadline::{CHANGE, within};
use crate::reconcile::trial::{TrialFailure, TrialOrder, boots};

/// The directory of a drill. Changes count up from 1, one at a time: none ever comes near it.
pub(in crate::reconcile) const DRILL_DATA: DataGeneration = match DataGeneration::new(4_000_000_000)
{
    Some(data) => data,
    None => DataGeneration::FIRST,
};
/// Removing a directory of a million files on a busy disk.
const REMOVE: Duration = Duration::from_secs(600);

/// Restores and boots the newest snapshot. Nothing of it is left, whatever came of it.
///
/// # Errors
/// [`JobError`].
pub(super) async fn run<M: Machine>(
    agent: &Rc<Agent<M>>,
    order: &Order,
    shown: &Shown<'_, M>,
) -> Result<Done, JobError> {
    let Target::Present { spec, .. } = &order.member.effective.target else {
        return Err(JobError::NothingToDrill);
    };
    let snapshot = newest(&order.list, spec).ok_or(JobError::NothingToDrill)?;
    shown.stage("looking for room");
    remove(agent, order.instance()).await?;
    let measure = measure(agent, order.instance(), DRILL_DATA).await?;
    has_room(&measure, snapshot.bytes)?;
    has_memory(agent, spec)?;
    let outcome = restore_and_boot(agent, order, (spec, snapshot), shown).await;
    shown.stage("removing what was restored");
    let removed = remove(agent, order.instance()).await;
    let done = outcome?;
    removed.map(|()| done)
}

/// Removes what a drill of a dead agent left behind: its container first, which writes to its data.
///
/// # Errors
/// [`JobError`].
pub(super) async fn sweep<M: Machine>(
    agent: &Agent<M>,
    instance: &InstanceName,
) -> Result<(), JobError> {
    let alone = agent.roster.trial();
    let alone = alone.lock().await;
    let machine = &agent.machine;
    let work = machine.runtime().remove_trial(instance);
    match within(machine.clock(), CHANGE, work).await? {
        Ok(()) => {}
        // Without Docker nothing runs that could write there.
        Err(RuntimeError::Unreachable(_)) => {}
        Err(source) => {
            return Err(JobError::Leftover(source));
        }
    }
    drop(alone);
    remove(agent, instance).await
}

async fn restore_and_boot<M: Machine>(
    agent: &Rc<Agent<M>>,
    order: &Order,
    (spec, snapshot): (&InstanceSpec, &SnapshotInfo),
    shown: &Shown<'_, M>,
) -> Result<Done, JobError> {
    let (instance, name) = (order.instance(), &snapshot.name);
    shown.stage("restoring beside the instance");
    let progress = |progress| shown.progress(progress);
    let restored = agent.machine.snapshots().restore(instance, name, DRILL_DATA, &progress).await;
    restored.map_err(|source| JobError::Restore { snapshot: name.clone(), source })?;
    shown.stage("booting what was restored");
    let desired =
        DesiredInstance { data: DRILL_DATA, ..DesiredInstance::clone(&order.member.effective) };
    let trial = TrialOrder { container: container_plan(&desired, spec), health: spec.health };
    match boots(agent, &trial, &|_stage| {}).await {
        Ok(migration) => Ok(Done::Drilled(snapshot.clone(), migration)),
        Err(_) if is_changed(agent, order) => Err(JobError::Disturbed),
        Err(source) => Err(JobError::Trial { snapshot: name.clone(), source }),
    }
}

/// Whether the instance is not what it was when the drill began: its own change may have taken the trial's
/// place.
fn is_changed<M: Machine>(agent: &Agent<M>, order: &Order) -> bool {
    let before = &order.member;
    let now = agent.roster.member(order.instance());
    now.is_none_or(|now| now.effective != before.effective || now.up != before.up)
}

fn newest<'a>(list: &'a [SnapshotInfo], spec: &InstanceSpec) -> Option<&'a SnapshotInfo> {
    let fits = |snapshot: &&SnapshotInfo| {
        snapshot.health == SnapshotHealth::Sound && snapshot.image == spec.image
    };
    list.iter().rev().find(fits)
}

/// A drill never takes memory that an instance could need.
fn has_memory<M: Machine>(agent: &Agent<M>, spec: &InstanceSpec) -> Result<(), JobError> {
    let resources = agent.machine.host().resources();
    let (needed, free) = (spec.resources.memory.bytes(), resources.memory_available_bytes);
    if resources.memory_total_bytes == 0 || free >= needed {
        return Ok(());
    }
    Err(JobError::NoMemory { needed, free })
}

async fn remove<M: Machine>(agent: &Agent<M>, instance: &InstanceName) -> Result<(), JobError> {
    let work = agent.machine.volumes().remove(instance, DRILL_DATA);
    Ok(within(agent.machine.clock(), REMOVE, work).await??)
}

/// Whether a drill that failed tells something of the snapshot, or only that it could not be run.
pub(super) const fn is_verdict(error: &JobError) -> bool {
    match error {
        JobError::Trial { source, .. } => match source {
            TrialFailure::Exited { .. }
            | TrialFailure::Unhealthy { .. }
            | TrialFailure::MigrationTimeout => true,
            TrialFailure::Runtime(_) | TrialFailure::Silent(_) => false,
        },
        JobError::Restore { source, .. } => {
            matches!(source, crate::ports::SnapshotsError::Damaged(_))
        }
        _ => false,
    }
}
