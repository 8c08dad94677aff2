//! Data of paused instances that leaves a host which is short of room, and comes back when it is wanted.
//!
//! A paused instance is held twice: as it lies on the disk, and by the snapshot of its pause. Resuming from
//! the disk takes a second and resuming from the snapshot minutes, so what lies there stays for as long as
//! there is room. When the disk is below its watermark, and what else can be given back is not enough, the
//! data of the instance that was paused first goes: [`Record::reclaim`], journaled before anything is
//! removed. From then on that snapshot is the only copy and must stay, whatever the retention says, until
//! the data is back ([`Record::recovered`]) or other data has taken its place.
//!
//! What it does not do: look at the disk, verify, remove, restore. [`crate::cutover::course`] decides when the
//! data comes back.
//!
//! Where to start: [`reclaimable`].

use crate::backup::{SnapshotCause, SnapshotHealth, SnapshotInfo};
use crate::data::DataGeneration;
use crate::name::{InstanceName, SnapshotName};
use crate::observed::{ContainerState, ObservedContainer, Record};
use crate::plan::{DesiredInstance, Target};
use crate::spec::RunState;
use crate::time::Timestamp;

/// Data that is not on the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reclaimed {
    /// The only copy of it.
    pub snapshot: SnapshotName,
    /// The directory into which it is being brought back.
    pub into: Option<DataGeneration>,
}

/// A paused instance whose data may go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reclaimable {
    /// Since when it is down.
    pub since: Timestamp,
    /// The newest snapshot of exactly what lies there.
    pub snapshot: SnapshotName,
}

/// Whether the data of an instance may go: it is paused, nothing is being changed, and the snapshot of its
/// pause is sound and was taken after its container had ended. An instance without a container is left
/// alone: its data may have come from elsewhere since.
#[must_use]
pub fn reclaimable(
    wanted: &DesiredInstance,
    record: &Record,
    container: Option<&ObservedContainer>,
    snapshots: &[SnapshotInfo],
) -> Option<Reclaimable> {
    let Target::Present { spec, .. } = &wanted.target else { return None };
    let resting = spec.run == RunState::Paused && spec.restore_number() <= record.restored;
    if !resting || record.cutover.is_some() || record.reclaimed.is_some() {
        return None;
    }
    record.active.as_ref()?;
    let ContainerState::Exited(exit) = container?.state else { return None };
    let of_pause = |snapshot: &&SnapshotInfo| {
        snapshot.cause == SnapshotCause::Pause
            && snapshot.health == SnapshotHealth::Sound
            && snapshot.taken_at >= exit.at
    };
    let newest = snapshots.iter().filter(of_pause).max_by_key(|snapshot| snapshot.taken_at)?;
    Some(Reclaimable { since: exit.at, snapshot: newest.name.clone() })
}

/// Whose data goes next: that of the instance which was paused first.
#[must_use]
pub fn next<'a>(
    all: impl IntoIterator<Item = (&'a InstanceName, &'a Reclaimable)>,
) -> Option<(&'a InstanceName, &'a Reclaimable)> {
    all.into_iter().min_by_key(|(name, reclaimable)| (reclaimable.since, *name))
}

impl Record {
    /// The data in use goes; only this snapshot holds it from here on.
    pub fn reclaim(&mut self, snapshot: SnapshotName) {
        let Some(active) = &self.active else { return };
        self.doomed.insert(active.data);
        self.reclaimed = Some(Reclaimed { snapshot, into: None });
    }

    /// The data comes back into a directory of its own.
    pub const fn begin_recovery(&mut self, into: DataGeneration) {
        if let Some(reclaimed) = &mut self.reclaimed {
            reclaimed.into = Some(into);
        }
    }

    /// It does not come back for now: what was made for it is to be deleted.
    pub fn end_recovery(&mut self) {
        let into = self.reclaimed.as_mut().and_then(|reclaimed| reclaimed.into.take());
        self.doomed.extend(into);
    }

    /// It is back: the same version goes on with it.
    pub fn recovered(&mut self) {
        let Some(into) = self.reclaimed.as_ref().and_then(|reclaimed| reclaimed.into) else {
            return;
        };
        let Some(active) = &mut self.active else { return };
        self.doomed.insert(std::mem::replace(&mut active.data, into));
        self.reclaimed = None;
    }

    /// Whether what this directory held is not on the disk.
    #[must_use]
    pub fn is_reclaimed(&self, data: DataGeneration) -> bool {
        let active = self.active.as_ref().map(|active| active.data);
        self.reclaimed.is_some() && active == Some(data)
    }

    /// The directory of reclaimed data while it may still be there, whole or in part.
    #[must_use]
    pub fn being_reclaimed(&self) -> Option<DataGeneration> {
        self.reclaimed.as_ref()?;
        let data = self.active.as_ref()?.data;
        self.doomed.contains(&data).then_some(data)
    }
}

#[cfg(test)]
mod tests;
