//! What the loop of snapshots knows of one instance, and what an ended job changes in it.
//!
//! No effects: events that are to be told are returned.
//!
//! Where to start: [`Ledger::conclude`].

use std::collections::BTreeSet;
use std::rc::Rc;

use claw_core::backup::{BackupReport, MAX_LISTED, SnapshotCause, SnapshotHealth, SnapshotInfo};
use claw_core::cutover::Migration;
use claw_core::event::{EventKind, Severity};
use claw_core::name::SnapshotName;
use claw_core::plan::{DesiredInstance, Target};
use claw_core::spec::{InstanceSpec, RunState};
use claw_core::time::Timestamp;
use claw_core::unit::MIB;

use super::attempt::Attempts;
use super::drill::is_verdict;
use super::due::{Kind, Room, Standing, Subject, Work, counts, schedule};
use super::errand::{Did, ErrandKind};
use super::job::{Done, JobError, Keys, Order};
use super::offsite::{self, Destination};
use super::record::{Ask, BackupRecord, DATA_PARTS, Looked};
use super::retention::{Needs, forgettable};
use crate::logging::chain;
use crate::ports::{SnapshotList, SnapshotsError, Verification};
use crate::roster::{Elsewhere, Held, Member};

/// After so many failures nobody waits for a snapshot at rest any more, and a request is given up.
const GIVE_UP: u32 = 3;

/// What is known of one instance.
#[derive(Debug)]
pub(super) struct Ledger {
    /// What outlives the agent.
    pub(super) record: BackupRecord,
    pub(super) attempts: Attempts,
    pub(super) keys: Keys,
    /// The last version that is known to have run on the data.
    pub(super) described: Option<Rc<DesiredInstance>>,
    list: Option<SnapshotList>,
    stale: bool,
    room: Making,
    held: Held,
    /// A snapshot at rest that nobody waits for any more.
    gave_up: Option<GaveUp>,
    destination: Destination,
}

/// Room that is made for a snapshot which did not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Making {
    /// None is needed.
    No,
    /// It is to be made.
    Wanted,
    /// It was made once; what still does not fit has to wait.
    Made,
}

/// A snapshot at rest that failed so often that nobody waits for it. It is tried now and then all the same, as
/// long as the data lies there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct GaveUp {
    cause: SnapshotCause,
    down_since: Option<Timestamp>,
}

/// An event to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Told(pub(super) EventKind, pub(super) Severity, pub(super) String);

/// When a job ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ended {
    pub(super) at: Timestamp,
    /// Uniform over all of `u64`.
    pub(super) random: u64,
}

impl Ledger {
    pub(super) fn new(record: BackupRecord) -> Self {
        Self {
            record,
            attempts: Attempts::default(),
            keys: Keys::Wanted,
            described: None,
            list: None,
            stale: false,
            room: Making::No,
            held: Held::default(),
            gave_up: None,
            destination: Destination::default(),
        }
    }

    /// The first digits of the repository's id, empty when there is none; none while nobody has looked.
    pub(super) fn repository(&self) -> Option<&str> {
        self.list.as_ref().map(|list| list.repository.as_str())
    }

    /// Takes up where repositories are copied to.
    pub(super) fn settle(&mut self, elsewhere: &Elsewhere, member: &Member, now: Timestamp) {
        let name = &member.effective.name;
        self.destination = Destination::new(elsewhere, name, self.repository());
        self.record.copy.settle(&self.destination, now);
    }

    /// Where its repository is copied to.
    pub(super) const fn destination(&self) -> &Destination {
        &self.destination
    }

    /// Every snapshot, oldest first; none while nobody has looked.
    pub(super) fn snapshots(&self) -> Option<&[SnapshotInfo]> {
        self.list.as_ref().map(|list| list.snapshots.as_slice())
    }

    /// Takes up what the instance's loop says.
    pub(super) fn follow(&mut self, member: &Member) {
        if matches!(member.effective.target, Target::Present { .. }) {
            self.described = Some(Rc::clone(&member.effective));
        } else if self.described.is_none() {
            self.described.clone_from(&member.last);
        }
        let elsewhere = |gave_up: GaveUp| gave_up.down_since != member.down_since;
        if member.up.is_some() || self.gave_up.is_some_and(elsewhere) {
            self.gave_up = None;
        }
        if member.awaits.is_none() && self.gave_up.is_none() {
            self.attempts.cleared(Kind::AtRest);
        }
        if member.replaced.is_none() {
            self.attempts.cleared(Kind::Replaced);
        }
        let sound = |snapshot: &&SnapshotInfo| snapshot.health == SnapshotHealth::Sound;
        let snapshots = self.snapshots().map(|list| list.iter().filter(sound).cloned().collect());
        let images = self.snapshots().unwrap_or_default().iter();
        let images = images.map(|snapshot| (snapshot.image.clone(), snapshot.name.clone()));
        let images = images.collect();
        let copies = self.has_looked().then(|| self.record.copy.places(&self.destination));
        self.held = Held { snapshots, gave_up: self.gave_up.is_some(), images, copies };
    }

    /// What the instance's loop may know.
    pub(super) const fn held(&self) -> &Held {
        &self.held
    }

    /// What needs snapshots beyond the policy.
    pub(super) fn needs(&self, member: &Member) -> Needs {
        let spec = spec(member);
        Needs {
            at_rest: member.awaits.is_some() || spec.is_none_or(|s| s.run == RunState::Paused),
            replaced: member.replaced.as_ref().map(|replaced| replaced.since),
            restore: member.restore.clone(),
            reclaimed: member.reclaimed.clone(),
        }
    }

    /// What the policy does not keep.
    pub(super) fn forgettable(
        &self,
        member: &Member,
        now: Timestamp,
    ) -> BTreeSet<claw_core::stamp::Digest> {
        let (Some(spec), Some(list)) = (spec(member), self.snapshots()) else {
            return BTreeSet::new();
        };
        forgettable(list, spec.backup.retention, &self.needs(member), now)
    }

    /// Everything that decides what is due. `low`: the disk is below its watermark.
    pub(super) fn subject<'a>(
        &'a self,
        member: &'a Member,
        disk: Room,
        now: Timestamp,
    ) -> Subject<'a> {
        Subject {
            name: &member.effective.name,
            policy: spec(member).map(|spec| spec.backup),
            standing: match (&member.up, member.data_present) {
                (_, false) => Standing::Bare,
                (Some(_), true) => Standing::Up,
                (None, true) => Standing::Down(member.down_since),
            },
            awaits: member.awaits.or_else(|| self.gave_up.map(|gave_up| gave_up.cause)),
            replaced: member.replaced.as_ref().map(|replaced| (replaced.cause, replaced.since)),
            list: self.snapshots(),
            stale: self.stale,
            held: &self.held,
            record: &self.record,
            attempts: &self.attempts,
            forgettable: self.forgettable(member, now).len(),
            room: if self.room == Making::Wanted { Room::Wanted } else { disk },
            destination: &self.destination,
        }
    }

    /// How everything stands.
    pub(super) fn report(&self, subject: &Subject<'_>, now: Timestamp) -> BackupReport {
        let schedule = schedule(subject, now).filter(|_| self.has_looked());
        let all = self.snapshots().unwrap_or_default();
        let surplus = all.len().saturating_sub(MAX_LISTED);
        let snapshots: Vec<SnapshotInfo> =
            all.iter().skip(surplus).map(|s| self.marked(s)).collect();
        let problem = self.attempts.problem_of(Kind::Offsite);
        BackupReport {
            offsite: offsite::report(subject, &snapshots, problem, now),
            snapshots,
            stored_bytes: self.list.as_ref().map_or(0, |list| list.stored_bytes),
            next_due: schedule.map(|schedule| schedule.due.max(self.record.first_seen)),
            overdue: schedule.is_some_and(|schedule| schedule.overdue),
            problem: self.attempts.problem().to_owned(),
            verified_at: self.record.sound_at,
            drilled_at: self.record.drilled_at,
        }
    }

    /// A snapshot, and whether it is in the copy off-site.
    fn marked(&self, snapshot: &SnapshotInfo) -> SnapshotInfo {
        let offsite = self.record.copy.holds(&self.destination, snapshot);
        SnapshotInfo { offsite, ..snapshot.clone() }
    }

    /// Says once per episode that the next snapshot, or the next copy off-site, is overdue.
    pub(super) fn tell_overdue(&mut self, report: &BackupReport) -> Vec<Told> {
        if !self.has_looked() {
            return Vec::new();
        }
        let snapshot = self.tell_snapshot_overdue(report.overdue);
        snapshot.into_iter().chain(self.record.copy.tell_overdue(&report.offsite)).collect()
    }

    fn tell_snapshot_overdue(&mut self, overdue: bool) -> Option<Told> {
        let news = overdue && !self.record.overdue_told;
        self.record.overdue_told = overdue;
        let last = match self.record.taken_at {
            Some(_) => "the next snapshot is overdue",
            None => "no snapshot was ever taken",
        };
        let problem = self.attempts.problem();
        let message =
            if problem.is_empty() { last.to_owned() } else { format!("{last}: {problem}") };
        news.then_some(Told(EventKind::BackupOverdue, Severity::Error, message))
    }

    /// An agent that has just started knows nothing, and claims nothing.
    fn has_looked(&self) -> bool {
        self.list.is_some() || self.attempts.failures(Kind::Look) > 0
    }

    /// It was done, and is still due: whatever is wrong, it is not done again at once.
    pub(super) fn was_in_vain(&mut self, work: &Work, ended: Ended) {
        let problem = format!("{work}: it was done and is still due");
        self.attempts.failed(work.kind(), problem, ended.at, ended.random);
    }

    /// A job has ended.
    pub(super) fn conclude(
        &mut self,
        order: &Order,
        outcome: Result<Done, JobError>,
        ended: Ended,
    ) -> Vec<Told> {
        let told = match outcome {
            Ok(done) => self.done(order, done, ended),
            Err(error) => self.failed(order, &error, ended),
        };
        self.mark_damaged();
        told
    }

    fn done(&mut self, order: &Order, done: Done, ended: Ended) -> Vec<Told> {
        let kind = order.work.kind();
        if !matches!(done, Done::Verified(..)) {
            self.attempts.cleared(kind);
        }
        if matches!(order.work, Work::Asked(_)) && !self.record.asks.is_empty() {
            self.record.asks.remove(0);
        }
        match done {
            Done::Swept => {
                self.record.drilling = false;
                Vec::new()
            }
            Done::Listed(list, _) => {
                self.listed(list);
                Vec::new()
            }
            Done::Taken(snapshot) => vec![self.taken(snapshot)],
            Done::Forgotten(gone) => {
                if let Some(list) = &mut self.list {
                    list.snapshots.retain(|snapshot| !gone.contains(&snapshot.id));
                }
                self.stale = true;
                self.record.copy.dropped(ended.at);
                if kind != Kind::Asked {
                    self.record.pruned_at = Some(ended.at);
                }
                if self.room == Making::Wanted {
                    self.room = Making::Made;
                }
                Vec::new()
            }
            Done::Verified(looked, found) => self.verified(order, looked, &found, ended),
            Done::Drilled(snapshot, migration) => {
                self.record.drilling = false;
                self.record.drill_at = Some(ended.at);
                self.record.drilled_at = Some(ended.at);
                let migrated = match migration {
                    Migration::Needed => ", its state migrated first",
                    Migration::Unknown | Migration::Done => "",
                };
                let name = &snapshot.name;
                let message = format!("snapshot {name} was restored and booted{migrated}");
                vec![Told(EventKind::DrillPassed, Severity::Info, message)]
            }
            Done::Copied(surplus) => {
                self.record.copy.copied(&order.list, surplus, ended.at);
                self.record.copy.recovered().into_iter().collect()
            }
        }
    }

    /// An errand has ended.
    pub(super) fn errand_ended(
        &mut self,
        kind: ErrandKind,
        outcome: Result<Did, JobError>,
        ended: Ended,
    ) -> Vec<Told> {
        match outcome {
            Ok(Did::Imported(snapshot)) => {
                let message =
                    format!("snapshot {} was imported: {}", snapshot.name, figures(&snapshot));
                self.add(snapshot);
                vec![Told(EventKind::SnapshotTaken, Severity::Info, message)]
            }
            Ok(Did::Arrived) => {
                self.attempts.cleared(Kind::Errand);
                self.keys = Keys::Wanted;
                self.stale = true;
                Vec::new()
            }
            Ok(Did::Sent | Did::Discarded) => Vec::new(),
            Err(error) => {
                self.stale = true;
                // Who waits at the other end of the others is told there.
                if matches!(kind, ErrandKind::Fetch | ErrandKind::Receive) {
                    self.attempts.failed(Kind::Errand, chain(&error), ended.at, ended.random);
                }
                Vec::new()
            }
        }
    }

    fn listed(&mut self, list: SnapshotList) {
        let names: BTreeSet<&SnapshotName> = list.snapshots.iter().map(|s| &s.name).collect();
        self.record.damage.retain(|name| names.contains(name));
        let counted = list.snapshots.iter().filter(|snapshot| counts(snapshot));
        self.record.taken_at = counted.map(|snapshot| snapshot.taken_at).max();
        if !list.repository.is_empty() {
            // What could not be fetched is not missing any more.
            self.attempts.cleared(Kind::Errand);
        }
        self.list = Some(list);
        self.stale = false;
    }

    fn taken(&mut self, snapshot: SnapshotInfo) -> Told {
        self.attempts.cleared(Kind::Scheduled);
        self.attempts.cleared(Kind::Asked);
        self.room = Making::No;
        self.gave_up = None;
        if counts(&snapshot) {
            self.record.taken_at = self.record.taken_at.max(Some(snapshot.taken_at));
        }
        let message = format!("snapshot {} of {}", snapshot.name, figures(&snapshot));
        self.add(snapshot);
        Told(EventKind::SnapshotTaken, Severity::Info, message)
    }

    /// There is one more.
    fn add(&mut self, snapshot: SnapshotInfo) {
        self.stale = true;
        if let Some(list) = &mut self.list
            && list.snapshots.iter().all(|known| known.id != snapshot.id)
        {
            list.snapshots.push(snapshot);
            list.snapshots.sort_by_key(|snapshot| snapshot.taken_at);
        }
    }

    fn verified(
        &mut self,
        order: &Order,
        looked: Looked,
        found: &Verification,
        ended: Ended,
    ) -> Vec<Told> {
        let record = &mut self.record;
        record.structure_at = Some(ended.at);
        match looked {
            Looked::Structure => {}
            Looked::Part(part) => {
                record.data_at = Some(ended.at);
                record.data_part = part.saturating_add(1) % DATA_PARTS;
            }
            Looked::All => record.data_at = Some(ended.at),
        }
        let known = record.damage.snapshots();
        record.damage.found(looked, found.affected.clone());
        self.stale = true;
        let kind = order.work.kind();
        if found.damage.is_empty() && found.affected.is_empty() {
            self.record.sound_at = Some(ended.at);
            self.attempts.cleared(kind);
            return Vec::new();
        }
        let problem = damage(found);
        let times = self.attempts.failed(kind, problem.clone(), ended.at, ended.random);
        let nothing_affected = found.affected.is_empty() && times == 1;
        let news = nothing_affected || !found.affected.is_subset(&known);
        news.then_some(Told(EventKind::SnapshotDamaged, Severity::Error, problem))
            .into_iter()
            .collect()
    }

    fn failed(&mut self, order: &Order, error: &JobError, ended: Ended) -> Vec<Told> {
        let (work, kind) = (&order.work, order.work.kind());
        if error.is_full() && takes(work) && self.room == Making::No {
            // Before it counts as failed, whatever can be given back is.
            self.room = Making::Wanted;
            return Vec::new();
        }
        if kind == Kind::Room && self.room == Making::Wanted {
            self.room = Making::Made;
        }
        if matches!(error, JobError::Snapshots(SnapshotsError::NotFound(_))) {
            self.stale = true;
        }
        let problem = chain(error);
        let times = self.attempts.failed(kind, problem.clone(), ended.at, ended.random);
        match kind {
            Kind::Drill => return self.drill_failed(error, problem, times, ended),
            Kind::Offsite => return self.record.copy.failed(&problem).into_iter().collect(),
            _ => {}
        }
        self.judge_failure(order, error, problem, times)
    }

    fn judge_failure(
        &mut self,
        order: &Order,
        error: &JobError,
        problem: String,
        times: u32,
    ) -> Vec<Told> {
        let work = &order.work;
        let mut told = Vec::new();
        if times == 1 && matches!(error, JobError::Snapshots(SnapshotsError::Damaged(_))) {
            let message = format!("{work}: {problem}");
            told.push(Told(EventKind::SnapshotDamaged, Severity::Error, message));
        }
        let final_word = matches!(error, JobError::Needed { .. } | JobError::NoData);
        match work {
            Work::AtRest(cause) if times == GIVE_UP => {
                let down_since = order.member.down_since;
                self.gave_up = Some(GaveUp { cause: *cause, down_since });
                let message =
                    format!("{work}: given up after {times} attempts, the data stays: {problem}");
                told.push(Told(EventKind::SnapshotFailed, Severity::Error, message));
            }
            Work::Asked(ask) if times >= GIVE_UP || final_word => {
                let message = format!("{ask}: given up: {problem}");
                self.record.asks.retain(|known| known != ask);
                told.push(Told(EventKind::SnapshotFailed, Severity::Error, message));
            }
            work if times == 1 && (takes(work) || *work == Work::Look) => {
                let message = format!("{work}: {problem}");
                told.push(Told(EventKind::SnapshotFailed, Severity::Warning, message));
            }
            _ => {}
        }
        told
    }

    /// A verdict on the snapshot is told; that there was no room for a drill is a problem only.
    fn drill_failed(
        &mut self,
        error: &JobError,
        problem: String,
        times: u32,
        ended: Ended,
    ) -> Vec<Told> {
        if let JobError::Restore { snapshot, source: SnapshotsError::Damaged(_) } = error {
            self.record.damage.is(snapshot.clone());
            self.stale = true;
        }
        if !is_verdict(error) {
            return Vec::new();
        }
        self.record.drill_at = Some(ended.at);
        let told = Told(EventKind::DrillFailed, Severity::Error, problem);
        (times == 1).then_some(told).into_iter().collect()
    }

    fn mark_damaged(&mut self) {
        let damaged = self.record.damage.snapshots();
        let list = self.list.iter_mut().flat_map(|list| &mut list.snapshots);
        for snapshot in list.filter(|snapshot| damaged.contains(&snapshot.name)) {
            snapshot.health = SnapshotHealth::Damaged;
        }
    }
}

fn figures(snapshot: &SnapshotInfo) -> String {
    let SnapshotInfo { files, bytes, added_bytes, .. } = snapshot;
    let (all, new) = (bytes.div_ceil(MIB), added_bytes.div_ceil(MIB));
    format!("{files} files and {all} MiB, {new} MiB of them new")
}

const fn takes(work: &Work) -> bool {
    matches!(
        work,
        Work::AtRest(_) | Work::Replaced(_) | Work::Scheduled | Work::Asked(Ask::Take(_))
    )
}

fn spec(member: &Member) -> Option<&InstanceSpec> {
    match &member.effective.target {
        Target::Present { spec, .. } => Some(spec),
        Target::Removed => None,
    }
}

/// What is damaged, and what that affects, in one sentence.
fn damage(found: &Verification) -> String {
    let first = found.damage.first().map_or("something is damaged", String::as_str);
    let more = match found.damage.len().saturating_sub(1) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let names: Vec<&str> = found.affected.iter().map(SnapshotName::as_str).collect();
    if names.is_empty() {
        return format!("damaged, no snapshot affected: {first}{more}");
    }
    format!("damaged, affected are {}: {first}{more}", names.join(", "))
}
