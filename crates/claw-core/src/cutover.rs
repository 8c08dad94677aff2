//! From one image and its data to another, and back when that fails: image, data and configuration as one.
//!
//! OpenClaw migrates its state forward, so a new image never runs on the data of the old one: it gets a copy
//! (or, for a restore, what a snapshot holds) in a directory of its own, and going back is to start the old
//! image on the old directory, which nobody has touched. [`course`] says what is to be done now; it is pure, and
//! everything it looks at is journaled before its effect, so an agent that is killed goes on from there.
//!
//! | stage | what runs | what is done | killed here |
//! | --- | --- | --- | --- |
//! | [`Stage::Preparing`] | the old one | pull, copy or restore the data, rehearse | done again |
//! | [`Stage::Switching`] | the old one, then nothing | stop, copy what changed since | done again |
//! | [`Stage::Probing`] | the new one | migrate if it asks for it, start, gate | gated again |
//! | [`Stage::Reverting`] | the new one, then the old one | stop the new one | done again |
//!
//! What it does not do: plan the containers. [`crate::plan::plan`] does, for whichever [`Version`] is to run.

use std::time::Duration;

use crate::data::DataGeneration;
use crate::name::{ImageRef, SnapshotName};
use crate::observed::Record;
use crate::plan::{DesiredInstance, Target};
use crate::reclaim::Reclaimed;
use crate::spec::{InstanceSpec, RestoreOrder, RunState};
use crate::time::Timestamp;

/// A gateway exits with this when it wants its state migrated first, and also for a configuration that it
/// refuses (measured, OpenClaw 2026.9.6).
pub const EXIT_NEEDS_MIGRATION: i64 = 78;

/// After this many failed changes in a row, none is tried until somebody asks for a rebuild.
pub const MOST_REVERTS: u32 = 3;

/// What the gate may take beyond the spec's own times: creating and starting containers on a busy host.
const GATE_SLACK: Duration = Duration::from_secs(60);

/// An image on its data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deployment {
    /// What runs.
    pub image: ImageRef,
    /// On which data.
    pub data: DataGeneration,
}

/// Data that was in use before a confirmed change. Kept until `until`, and until a snapshot of it is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replaced {
    /// Which.
    pub data: DataGeneration,
    /// When the change began: a snapshot since then holds it.
    pub since: Timestamp,
    /// When the grace period ends.
    pub until: Timestamp,
}

/// What was tried and failed. It is not tried again until image, restore order or rebuild counter change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedTarget {
    /// The image.
    pub image: ImageRef,
    /// The restore order's number; 0 for an update.
    pub restore: u64,
    /// The rebuild counter then.
    pub rebuilds: u64,
    /// Why, for a person.
    pub problem: String,
    /// When.
    pub at: Timestamp,
}

impl RefusedTarget {
    /// Whether a spec is that one.
    #[must_use]
    pub fn is(&self, spec: &InstanceSpec) -> bool {
        self.image == spec.image
            && self.restore == spec.restore_number()
            && self.rebuilds == spec.rebuilds
    }
}

/// A change under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cutover {
    /// The image that shall run.
    pub image: ImageRef,
    /// Where its data comes from; none: it is a copy of the present one.
    pub restore: Option<RestoreOrder>,
    /// The directory that it gets.
    pub data: DataGeneration,
    /// The spec's restore order and rebuild counter when it was begun.
    pub asked: (u64, u64),
    /// When it was begun.
    pub begun: Timestamp,
    /// How far it is.
    pub stage: Stage,
}

/// How far a change is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stage {
    /// Everything that can be made ready while the old one serves.
    Preparing,
    /// The old one is being stopped.
    Switching {
        /// Whether the data must be migrated before the start.
        migration: Migration,
    },
    /// The new one runs, or is about to.
    Probing {
        /// Whether the data must be migrated before the start.
        migration: Migration,
        /// When it counts as failed whatever it says.
        deadline: Timestamp,
    },
    /// The old one comes back.
    Reverting {
        /// Why, for a person.
        problem: String,
        /// Whether the new one is to be tried again by itself.
        verdict: Verdict,
    },
}

/// Whether what is being reverted has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It has.
    Failed,
    /// Something else is wanted now.
    Superseded,
}

/// Whether the data must be migrated before a new image starts on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Migration {
    /// Nobody knows: it is done when the gateway asks for it.
    Unknown,
    /// The rehearsal has shown it.
    Needed,
    /// It has been done.
    Done,
}

/// Which of the two is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// What the coordinator wants, on this data.
    Wanted(DataGeneration),
    /// What passed the gate last, on its data.
    Confirmed(DataGeneration),
}

/// What is to be done now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Course {
    /// The plain plan for this version; nothing is being changed.
    Plain(Version),
    /// Journal this change as begun, then ask again.
    Begin(Cutover),
    /// Make ready, while the plain plan for this version goes on; none runs before the first restore.
    Prepare(Option<Version>),
    /// Journal that the data comes back into this directory, then ask again.
    BeginRecovery(DataGeneration),
    /// Bring back the data that was reclaimed; nothing runs meanwhile.
    Recover {
        /// The only copy of it.
        snapshot: SnapshotName,
        /// Where it shall lie.
        into: DataGeneration,
    },
    /// Forget a change, or a recovery, that has touched nothing yet, then ask again.
    Abandon,
    /// Stop what runs and bring the data up to date.
    Switch,
    /// The plain plan for this version, whose outcome decides.
    Probe(Version),
    /// Stop the new one, for this reason, then go back.
    Revert,
    /// There is nothing that could run: the data that it should begin with cannot be had. Nothing is started
    /// on an empty directory in its place.
    Hold,
}

/// What is to be done now for an instance whose wanted state is `wanted`.
#[must_use]
pub fn course(wanted: &DesiredInstance, record: &Record, now: Timestamp) -> Course {
    let here = record.active.as_ref().map_or(DataGeneration::FIRST, |active| active.data);
    let Target::Present { spec, .. } = &wanted.target else {
        return Course::Plain(Version::Wanted(here));
    };
    match &record.cutover {
        None => begin(spec, record, here, now),
        Some(cutover) => go_on(spec, cutover, record),
    }
}

fn begin(spec: &InstanceSpec, record: &Record, here: DataGeneration, now: Timestamp) -> Course {
    let restore = spec.restore.clone().filter(|order| order.number > record.restored);
    let updates = record.active.as_ref().is_some_and(|active| active.image != spec.image);
    if let Some(reclaimed) = &record.reclaimed {
        if restore.is_none() || is_refused(spec, record) {
            return recover(spec, reclaimed, record, here);
        }
        if reclaimed.into.is_some() {
            return Course::Abandon;
        }
    }
    if restore.is_none() && !updates {
        return Course::Plain(Version::Wanted(here));
    }
    if is_refused(spec, record) {
        let held = record.active.as_ref().map(|_| Course::Plain(Version::Confirmed(here)));
        return held.unwrap_or(Course::Hold);
    }
    if restore.is_none() && spec.run != RunState::Running {
        // Nothing runs that could tell whether the new image is any good.
        return Course::Plain(Version::Wanted(here));
    }
    Course::Begin(Cutover {
        image: spec.image.clone(),
        restore,
        data: unused(record, here),
        asked: (spec.restore_number(), spec.rebuilds),
        begun: now,
        stage: Stage::Preparing,
    })
}

/// The data is not there: it comes back before anything else is done with it, but not for as long as the
/// instance is to be paused.
fn recover(
    spec: &InstanceSpec,
    reclaimed: &Reclaimed,
    record: &Record,
    here: DataGeneration,
) -> Course {
    match (spec.run, reclaimed.into) {
        (RunState::Paused, None) => Course::Plain(Version::Wanted(here)),
        (RunState::Paused, Some(_)) => Course::Abandon,
        (_, None) => Course::BeginRecovery(unused(record, here)),
        (_, Some(into)) => Course::Recover { snapshot: reclaimed.snapshot.clone(), into },
    }
}

/// A directory that nothing has used yet, as far as anybody remembers.
fn unused(record: &Record, here: DataGeneration) -> DataGeneration {
    let others = record.replaced.iter().map(|replaced| replaced.data);
    others.chain(record.doomed.iter().copied()).fold(here, DataGeneration::max).next()
}

fn is_refused(spec: &InstanceSpec, record: &Record) -> bool {
    record.refused.as_ref().is_some_and(|refused| {
        let breaker = record.reverts >= MOST_REVERTS && refused.rebuilds == spec.rebuilds;
        refused.is(spec) || breaker
    })
}

fn go_on(spec: &InstanceSpec, cutover: &Cutover, record: &Record) -> Course {
    let same = cutover.is_for(spec);
    match &cutover.stage {
        Stage::Preparing if same && cutover.may_go_on(spec.run) => {
            // Without its data the version before cannot go on meanwhile.
            let there = record.active.as_ref().filter(|_| record.reclaimed.is_none());
            Course::Prepare(there.map(|active| Version::Confirmed(active.data)))
        }
        Stage::Preparing => Course::Abandon,
        Stage::Switching { .. } if same => Course::Switch,
        Stage::Probing { .. } if same => Course::Probe(Version::Wanted(cutover.data)),
        Stage::Switching { .. } | Stage::Probing { .. } | Stage::Reverting { .. } => Course::Revert,
    }
}

impl Cutover {
    /// Whether it is still what a spec wants.
    #[must_use]
    pub fn is_for(&self, spec: &InstanceSpec) -> bool {
        self.image == spec.image
            && (self.restore.is_none() || self.restore.as_ref() == spec.restore.as_ref())
    }

    fn may_go_on(&self, run: RunState) -> bool {
        self.restore.is_some() || run == RunState::Running
    }

    /// Everything is ready.
    #[must_use]
    pub fn prepared(self, migration: Migration) -> Self {
        Self { stage: Stage::Switching { migration }, ..self }
    }

    /// The old one is down and the data is up to date: from here on the new one may touch it.
    #[must_use]
    pub fn switched(self, spec: &InstanceSpec, now: Timestamp) -> Self {
        let migration = match self.stage {
            Stage::Switching { migration } | Stage::Probing { migration, .. } => migration,
            Stage::Preparing | Stage::Reverting { .. } => Migration::Unknown,
        };
        let deadline = gate_deadline(spec, now);
        Self { stage: Stage::Probing { migration, deadline }, ..self }
    }

    /// The data has been migrated; the gate begins anew.
    #[must_use]
    pub fn migrated(self, spec: &InstanceSpec, now: Timestamp) -> Self {
        let deadline = gate_deadline(spec, now);
        Self { stage: Stage::Probing { migration: Migration::Done, deadline }, ..self }
    }

    /// It is to be undone.
    #[must_use]
    pub fn failed(self, problem: String, verdict: Verdict) -> Self {
        Self { stage: Stage::Reverting { problem, verdict }, ..self }
    }

    /// "update" or "restore".
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        if self.restore.is_some() { "restore" } else { "update" }
    }
}

fn gate_deadline(spec: &InstanceSpec, now: Timestamp) -> Timestamp {
    now.after(spec.health.startup_deadline).after(spec.health.min_healthy).after(GATE_SLACK)
}

impl Record {
    /// The change under way has passed its gate.
    pub fn confirm_cutover(&mut self, keep: Duration, now: Timestamp) {
        let Some(cutover) = self.cutover.take() else { return };
        let new = Deployment { image: cutover.image, data: cutover.data };
        let old = self.active.replace(new).map(|old| old.data);
        if self.reclaimed.take().is_some() {
            // What was replaced is not on the disk, and a snapshot holds it.
            self.doomed.extend(old);
        } else {
            // Only one is kept: an older one goes when the next change is confirmed.
            self.doomed.extend(self.replaced.map(|replaced| replaced.data));
            let (since, until) = (cutover.begun, now.after(keep));
            self.replaced = old.map(|data| Replaced { data, since, until });
        }
        self.restored = cutover.restore.map_or(self.restored, |order| order.number);
        self.refused = None;
        self.reverts = 0;
    }

    /// The change under way has been undone, or was given up before it touched anything: what was made for
    /// it is to be deleted.
    pub fn end_cutover(&mut self, now: Timestamp) {
        let Some(cutover) = self.cutover.take() else { return };
        self.doomed.insert(cutover.data);
        let Stage::Reverting { problem, verdict: Verdict::Failed } = cutover.stage else { return };
        let (restore, rebuilds) = cutover.asked;
        let image = cutover.image;
        self.refused = Some(RefusedTarget { image, restore, rebuilds, problem, at: now });
        self.reverts = self.reverts.saturating_add(1);
    }
}

/// The spec with which the confirmed version goes on while another is wanted: what makes the version is the
/// confirmed one's; whether it runs, who may reach it and how it is backed up is as wanted.
#[must_use]
pub fn held_back(confirmed: &InstanceSpec, wanted: &InstanceSpec) -> InstanceSpec {
    InstanceSpec {
        run: wanted.run,
        restarts: wanted.restarts,
        web: wanted.web.clone(),
        network: wanted.network.clone(),
        backup: wanted.backup,
        update: wanted.update,
        ..confirmed.clone()
    }
}

#[cfg(test)]
mod tests;
