//! Back to a snapshot, or to a spec that an instance had: one change of the desired state.
//!
//! What it does not do: bring data back. The agent does, when the order reaches it, and goes back to where
//! it was if what came back does not pass its gate.

use claw_core::backup::SnapshotInfo;
use claw_core::name::{InstanceName, SnapshotName};
use claw_core::spec::{RestoreOrder, RestoreSource};
use claw_core::time::Timestamp;
use claw_proto::convert::name::snapshot_resource;
use claw_proto::fleet::v1 as fleet;
use claw_store::rusqlite::Connection;

use super::instances::{Answer, changed_fields, check_hostnames, load_settled};
use super::snapshots::{State, state};
use super::{Fleet, spec_check};
use crate::refusal::{Precondition, Refusal};
use crate::store::instances::{self, InstanceRow};
use crate::store::mutation::Call;
use crate::store::revisions::RevisionRow;
use crate::store::snapshots::SnapshotRow;
use crate::store::{Keys, hosts, revisions, snapshots};

/// To what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RollbackTarget {
    /// Spec, image and data of a snapshot, read here.
    Snapshot(SnapshotName, RestoreSource),
    /// The spec of a revision; the data stays.
    Revision(u64),
}

/// What an instance becomes by it.
#[derive(Clone)]
pub(super) struct RolledBack {
    /// The spec with its secrets.
    pub(super) spec: fleet::InstanceSpec,
    /// The revision that it is of.
    pub(super) revision: u64,
    /// The snapshot whose data comes back, its size, and where it is read.
    pub(super) snapshot: Option<(SnapshotName, u64, RestoreSource)>,
}

impl Fleet {
    /// Rolls back.
    ///
    /// # Errors
    /// [`Refusal::Invalid`] when the spec is not valid any more, [`Refusal::NotFound`],
    /// [`Refusal::StaleEtag`], [`Refusal::Precondition`].
    pub async fn roll_back_instance<R: Send + 'static>(
        &self,
        call: Call,
        name: InstanceName,
        etag: String,
        target: RollbackTarget,
        answer: Answer<R>,
    ) -> Result<R, Refusal> {
        let now = call.now;
        let job = move |connection: &Connection, keys: &Keys| {
            let mut instance = load_settled(connection, &name, &etag)?;
            let old = instance.full_spec(&keys.seal)?;
            let back = rolled_back(connection, keys, &instance, &target, now)?;
            spec_check::faults(&back.spec, &keys.tiers).into_result()?;
            if back.spec == old && back.snapshot.is_none() {
                return Ok((instance, "nothing changed".to_owned()));
            }
            check_hostnames(connection, &instance.host, &name, &back.spec)?;
            let summary = summary(&back, &changed_fields(&old, &back.spec));
            if let Some((snapshot, _bytes, from)) = back.snapshot {
                order(&mut instance, snapshot, from);
            }
            instance.set_spec(back.spec, &keys.seal)?;
            instance.revision = instance.revision.saturating_add(1);
            instance.updated = now;
            instances::update(connection, &instance)?;
            Ok((instance, summary))
        };
        self.change_instance(call, answer, job).await
    }
}

/// Orders that the data of a snapshot comes back. An agent that has given up changing the instance takes
/// it up again: somebody wants it now.
fn order(instance: &mut InstanceRow, snapshot: SnapshotName, from: RestoreSource) {
    let counters = &mut instance.counters;
    let number = counters.restore.as_ref().map_or(0, |order| order.number).saturating_add(1);
    counters.restore = Some(RestoreOrder { number, snapshot, from });
    counters.rebuilds = counters.rebuilds.saturating_add(1);
}

fn summary(back: &RolledBack, changed: &[&str]) -> String {
    let changed = if changed.is_empty() { "nothing else".to_owned() } else { changed.join(", ") };
    match &back.snapshot {
        Some((snapshot, _bytes, from)) => format!(
            "rolled back to snapshot {snapshot}{} with the spec of revision {}: changed {changed}",
            if *from == RestoreSource::Offsite { ", read off-site," } else { "" },
            back.revision
        ),
        None => format!("rolled back to revision {}: changed {changed}", back.revision),
    }
}

/// What an instance becomes by a rollback; nothing is changed.
pub(super) fn rolled_back(
    connection: &Connection,
    keys: &Keys,
    instance: &InstanceRow,
    target: &RollbackTarget,
    now: Timestamp,
) -> Result<RolledBack, Refusal> {
    let present = instance.full_spec(&keys.seal)?;
    match target {
        RollbackTarget::Revision(number) => {
            let resource = || format!("instances/{}/revisions/{number}", instance.name);
            let revision = revisions::find(connection, &instance.uid, *number)?
                .ok_or_else(|| Refusal::NotFound { resource: resource() })?;
            let spec = spec_of(keys, &revision, &present)?;
            Ok(RolledBack { spec, revision: revision.revision, snapshot: None })
        }
        RollbackTarget::Snapshot(name, from) => {
            let (row, info) = match from {
                RestoreSource::Host => usable(connection, instance, name, now)?,
                RestoreSource::Offsite => usable_offsite(connection, instance, name, now)?,
            };
            let history = revisions::history(connection, &instance.uid)?;
            let number = history.at(info.generation, &info.image);
            let revision = match number {
                Some(number) => revisions::find(connection, &instance.uid, number)?,
                None => None,
            };
            let Some(revision) = revision else {
                let text =
                    "was taken under a spec that is not kept any more; restore it on its host";
                return Err(refusal(Precondition::RevisionUnknown, instance, name, text));
            };
            let mut spec = spec_of(keys, &revision, &present)?;
            // Data and image are one: it is the image that ran on this data, whatever the spec said.
            spec.image = info.image.to_string();
            let snapshot = Some((row.name, info.bytes, *from));
            Ok(RolledBack { spec, revision: revision.revision, snapshot })
        }
    }
}

/// A snapshot whose data can be read on its host.
pub(super) fn usable(
    connection: &Connection,
    instance: &InstanceRow,
    name: &SnapshotName,
    now: Timestamp,
) -> Result<(SnapshotRow, SnapshotInfo), Refusal> {
    let resource = || snapshot_resource(&instance.name, name);
    let row = snapshots::find(connection, &instance.uid, name)?
        .ok_or_else(|| Refusal::NotFound { resource: resource() })?;
    let (reason, text) = match (state(&row, now), &row.listed) {
        (State::Ready, Some(info)) => {
            let info = info.clone();
            return Ok((row, info));
        }
        (State::Damaged, _) => (
            Precondition::SnapshotDamaged,
            "is damaged: nothing can be brought back from it; list the others, or read it off-site",
        ),
        (State::Deleting, _) => (Precondition::SnapshotNotReady, "is being deleted"),
        (State::Ready | State::Taking | State::Failed(_), _) => {
            (Precondition::SnapshotNotReady, "has not been taken")
        }
    };
    Err(refusal(reason, instance, name, text))
}

/// A snapshot whose data can be read in the copy off-site, whatever has become of it on its host.
fn usable_offsite(
    connection: &Connection,
    instance: &InstanceRow,
    name: &SnapshotName,
    now: Timestamp,
) -> Result<(SnapshotRow, SnapshotInfo), Refusal> {
    let host = hosts::load(connection, &instance.host)?;
    if host.offsite.is_none() {
        let subject = format!("hosts/{}", host.name);
        let text = format!("{subject} has no storage off-site; set it first");
        return Err(Refusal::precondition(Precondition::NoOffsiteStorage, subject, text));
    }
    let found = snapshots::find(connection, &instance.uid, name)?;
    let damaged = found.filter(|row| state(row, now) == State::Damaged);
    let (row, info) = match damaged.and_then(|row| row.listed.clone().map(|info| (row, info))) {
        Some(known) => known,
        None => usable(connection, instance, name, now)?,
    };
    if !info.offsite {
        let text = "is not known to be off-site";
        return Err(refusal(Precondition::SnapshotNotOffsite, instance, name, text));
    }
    Ok((row, info))
}

fn refusal(
    reason: Precondition,
    instance: &InstanceRow,
    name: &SnapshotName,
    text: &str,
) -> Refusal {
    let resource = snapshot_resource(&instance.name, name);
    let text = format!("{resource} {text}");
    Refusal::precondition(reason, resource, text)
}

/// The spec of a revision, as a rollback takes it: with the secrets of now, and whether it runs and how it
/// is looked after as it is now.
fn spec_of(
    keys: &Keys,
    revision: &RevisionRow,
    present: &fleet::InstanceSpec,
) -> Result<fleet::InstanceSpec, Refusal> {
    let mut spec = revision.full_spec(&keys.seal)?;
    for (name, value) in &mut spec.secrets {
        if let Some(now) = present.secrets.get(name) {
            value.clone_from(now);
        }
    }
    spec.run_state = present.run_state;
    spec.backup = present.backup;
    spec.update = present.update;
    Ok(spec)
}
