//! Copies of repositories in the host's storage: when one is due, and what is remembered and said of it.
//!
//! No effects. A repository is copied whenever it has changed; a change of storage copies everything anew.
//! What the host has dropped goes from the copy only after a verification found nothing wrong: a host that
//! loses files must not take them from the copy as well.
//!
//! Where to start: [`due`].

use std::collections::BTreeSet;
use std::time::Duration;

use claw_core::backup::{SnapshotHealth, SnapshotInfo};
use claw_core::event::{EventKind, Severity};
use claw_core::name::InstanceName;
use claw_core::offsite::{LATE_AFTER, OffsitePolicy, OffsiteReport, OffsiteStorage, is_late};
use claw_core::stamp::Digest;
use claw_core::time::Timestamp;
use serde::{Deserialize, Serialize};

use super::due::{Subject, is_past};
use super::ledger::Told;
use super::record::BackupRecord;
use crate::ports::{OffsitePlace, Surplus};
use crate::roster::Elsewhere;

/// Copies begin so long after a change at most: those of a fleet that got a storage at one moment do not begin at
/// one moment.
const SPREAD: Duration = Duration::from_secs(60);
/// For so long a verification that found nothing wrong says something of now: they come daily.
const SOUND_FOR: Duration = Duration::from_secs(48 * 3600);
/// Copies of former repositories that are remembered.
const EARLIER: usize = 3;
/// Of copies that are required where there is no storage.
const NO_STORAGE: &str = "copies off-site are required, and this host has no storage for them";

/// Where an instance's repository is to be copied.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Destination {
    /// The host's storage, if it has one.
    pub(super) storage: Option<OffsiteStorage>,
    /// The place in it; none while there is no repository, or nobody has looked.
    pub(super) place: Option<OffsitePlace>,
}

impl Destination {
    /// Where the repository of this id goes; none: nobody knows its id.
    pub(super) fn new(
        elsewhere: &Elsewhere,
        name: &InstanceName,
        repository: Option<&str>,
    ) -> Self {
        let place = repository.and_then(|repository| elsewhere.place(name, repository));
        Self { storage: elsewhere.storage.clone(), place }
    }
}

/// What is remembered of the copy of a repository.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Copy {
    /// The storage, as it shows itself; empty: there never was one.
    storage: String,
    /// Where in it.
    path: String,
    /// Since when it is there that the repository is copied to.
    since: Timestamp,
    /// The list of snapshots that was copied last, as a whole.
    list: Option<Digest>,
    /// Snapshots that were sound when they were copied.
    held: BTreeSet<Digest>,
    /// When everything was copied last.
    copied_at: Option<Timestamp>,
    /// Since when the copy has what the host does not keep any more.
    surplus_since: Option<Timestamp>,
    /// Where in the same storage copies of former repositories of the instance are, newest first.
    earlier: Vec<String>,
    /// It was said that a snapshot waits for too long.
    overdue_told: bool,
    /// It was said that copying fails.
    failure_told: bool,
}

impl Copy {
    /// Takes up where the repository goes. Another place begins anew; one that is not known changes nothing.
    pub(super) fn settle(&mut self, destination: &Destination, now: Timestamp) {
        let Some(place) = &destination.place else { return };
        let storage = place.storage.to_string();
        if (&self.storage, &self.path) == (&storage, &place.path) {
            return;
        }
        let mut earlier = std::mem::take(&mut self.earlier);
        if self.storage != storage {
            earlier.clear();
        } else if self.copied_at.is_some() {
            earlier.insert(0, std::mem::take(&mut self.path));
        }
        earlier.retain(|path| *path != place.path);
        earlier.truncate(EARLIER);
        *self = Self { storage, path: place.path.clone(), since: now, earlier, ..Self::default() };
    }

    /// Everything that was in this list is there now.
    pub(super) fn copied(&mut self, list: &[SnapshotInfo], surplus: Surplus, now: Timestamp) {
        let is_good = |snapshot: &&SnapshotInfo| {
            snapshot.health == SnapshotHealth::Sound || self.held.contains(&snapshot.id)
        };
        self.held = list.iter().filter(is_good).map(|snapshot| snapshot.id).collect();
        self.list = Some(digest(list));
        self.copied_at = Some(now);
        if surplus == Surplus::Removed {
            self.surplus_since = None;
        }
    }

    /// The host has dropped something.
    pub(super) const fn dropped(&mut self, now: Timestamp) {
        self.surplus_since = Some(now);
    }

    /// Whether a snapshot is there, as far as this host can reach it.
    pub(super) fn holds(&self, destination: &Destination, snapshot: &SnapshotInfo) -> bool {
        self.is_reached(destination) && self.held.contains(&snapshot.id)
    }

    /// Every place where snapshots of the instance may be found: where this host has copied to, the newest first,
    /// then where it would copy to. An agent that lost its notes finds its copies there.
    pub(super) fn places(&self, destination: &Destination) -> Vec<OffsitePlace> {
        let Some(storage) = &destination.storage else { return Vec::new() };
        let copied = Some(&self.path).filter(|_| self.copied_at.is_some());
        let known =
            copied.into_iter().chain(&self.earlier).filter(|_| self.is_reached(destination));
        let known = known.map(|path| OffsitePlace { storage: storage.clone(), path: path.clone() });
        let mut places: Vec<OffsitePlace> = known.collect();
        let present = destination.place.iter().filter(|place| !places.contains(place)).cloned();
        let present: Vec<OffsitePlace> = present.collect();
        places.extend(present);
        places
    }

    /// Copying failed; news when it did not before.
    pub(super) fn failed(&mut self, problem: &str) -> Option<Told> {
        let news = !std::mem::replace(&mut self.failure_told, true);
        let message = format!("the snapshots cannot be copied off-site: {problem}");
        news.then_some(Told(EventKind::OffsiteFailed, Severity::Warning, message))
    }

    /// Copying went well; news when it did not before.
    pub(super) fn recovered(&mut self) -> Option<Told> {
        let news = std::mem::replace(&mut self.failure_told, false);
        let message = "the snapshots are copied off-site again".to_owned();
        news.then_some(Told(EventKind::OffsiteRecovered, Severity::Info, message))
    }

    /// Says once per episode that a snapshot waits for too long.
    pub(super) fn tell_overdue(&mut self, report: &OffsiteReport) -> Option<Told> {
        let news = report.overdue && !self.overdue_told;
        self.overdue_told = report.overdue;
        let hours = LATE_AFTER.as_secs() / 3600;
        let late = format!("a snapshot was not copied off-site within {hours} h");
        let message = match report.problem.as_str() {
            "" => late,
            NO_STORAGE => NO_STORAGE.to_owned(),
            problem => format!("{late}: {problem}"),
        };
        news.then_some(Told(EventKind::OffsiteOverdue, Severity::Warning, message))
    }

    /// Whether the storage that was copied to is the one that the host has.
    fn is_reached(&self, destination: &Destination) -> bool {
        destination.storage.as_ref().is_some_and(|storage| storage.to_string() == self.storage)
    }
}

/// When the repository is to be copied, and what becomes of what the host has dropped; none when the copy is as
/// it should be, or there shall be none.
pub(super) fn due(subject: &Subject<'_>, now: Timestamp) -> Option<(Timestamp, Surplus)> {
    let policy = subject.policy?;
    let (list, copy) = (subject.list?, &subject.record.copy);
    if policy.offsite == OffsitePolicy::Never || subject.destination.place.is_none() {
        return None;
    }
    let surplus = surplus(subject.record, now);
    if copy.list == Some(digest(list)) && surplus == Surplus::Kept {
        return None;
    }
    let waiting = list.iter().filter(|snapshot| !copy.held.contains(&snapshot.id));
    let newest = waiting.map(|snapshot| snapshot.taken_at).filter(|at| is_past(*at, now)).max();
    let since = newest.unwrap_or_default().max(copy.since);
    Some((since.after(spread(subject.name)), surplus))
}

/// How the copy stands; `snapshots` are those that are reported. `problem` is why the last attempt failed.
pub(super) fn report(
    subject: &Subject<'_>,
    snapshots: &[SnapshotInfo],
    problem: &str,
    now: Timestamp,
) -> OffsiteReport {
    let (copy, destination) = (&subject.record.copy, subject.destination);
    let is_known = copy.is_reached(destination) && copy.copied_at.is_some();
    let known = if is_known {
        OffsiteReport { path: copy.path.clone(), copied_at: copy.copied_at, ..Default::default() }
    } else {
        OffsiteReport::default()
    };
    match subject.policy.map(|policy| policy.offsite) {
        None | Some(OffsitePolicy::Never) => known,
        Some(OffsitePolicy::Required) if destination.storage.is_none() => {
            OffsiteReport { overdue: true, problem: NO_STORAGE.to_owned(), ..known }
        }
        Some(_) if destination.place.is_none() => known,
        Some(_) => {
            // Those that were there before the storage are not late before they could have been copied.
            let overdue = is_late(snapshots, now) && now > copy.since.after(LATE_AFTER);
            OffsiteReport { overdue, problem: problem.to_owned(), ..known }
        }
    }
}

/// What may become of what the host has dropped since the last copy.
fn surplus(record: &BackupRecord, now: Timestamp) -> Surplus {
    let (Some(since), Some(sound)) = (record.copy.surplus_since, record.sound_at) else {
        return Surplus::Kept;
    };
    let is_last_word = record.structure_at == Some(sound) && record.damage.snapshots().is_empty();
    if is_last_word && sound > since && now <= sound.after(SOUND_FOR) {
        Surplus::Removed
    } else {
        Surplus::Kept
    }
}

/// Which snapshots there are, in one value.
fn digest(list: &[SnapshotInfo]) -> Digest {
    let ids: BTreeSet<&Digest> = list.iter().map(|snapshot| &snapshot.id).collect();
    let bytes: Vec<u8> = ids.into_iter().flat_map(|id| *id.as_bytes()).collect();
    Digest::of(&bytes)
}

/// Of each instance its own.
fn spread(name: &InstanceName) -> Duration {
    let digest = Digest::of(name.as_str().as_bytes());
    let bytes = digest.as_bytes().iter().take(4);
    let number = bytes.fold(0_u64, |number, byte| (number << 8) | u64::from(*byte));
    let most = u64::try_from(SPREAD.as_millis()).unwrap_or(u64::MAX).max(1);
    Duration::from_millis(number % most)
}

/// As it is in a note.
#[derive(Debug, Serialize, Deserialize, Default)]
#[serde(default)]
pub(super) struct StoredCopy {
    storage: String,
    path: String,
    since: i64,
    list: Option<String>,
    held: BTreeSet<String>,
    copied_at: Option<i64>,
    surplus_since: Option<i64>,
    earlier: Vec<String>,
    overdue_told: bool,
    failure_told: bool,
}

impl From<&Copy> for StoredCopy {
    fn from(copy: &Copy) -> Self {
        Self {
            storage: copy.storage.clone(),
            path: copy.path.clone(),
            since: copy.since.millis(),
            list: copy.list.map(|list| list.to_string()),
            held: copy.held.iter().map(ToString::to_string).collect(),
            copied_at: copy.copied_at.map(Timestamp::millis),
            surplus_since: copy.surplus_since.map(Timestamp::millis),
            earlier: copy.earlier.clone(),
            overdue_told: copy.overdue_told,
            failure_told: copy.failure_told,
        }
    }
}

impl From<StoredCopy> for Copy {
    fn from(stored: StoredCopy) -> Self {
        Self {
            storage: stored.storage,
            path: stored.path,
            since: Timestamp::from_millis(stored.since),
            list: stored.list.as_deref().and_then(Digest::from_hex),
            held: stored.held.iter().filter_map(|id| Digest::from_hex(id)).collect(),
            copied_at: stored.copied_at.map(Timestamp::from_millis),
            surplus_since: stored.surplus_since.map(Timestamp::from_millis),
            earlier: stored.earlier,
            overdue_told: stored.overdue_told,
            failure_told: stored.failure_told,
        }
    }
}
