//! What is to be done next for the snapshots of a host, as pure functions.
//!
//! Nothing here acts, waits, or remembers: the same subjects at the same time give the same answer. One job
//! is done at a time on a host, the most urgent first: [`Kind`] is in the order of urgency.
//!
//! Where to start: [`agenda`], then [`next`].

use std::fmt;
use std::time::Duration;

use claw_core::backup::schedule::{first_due, is_overdue, next_due};
use claw_core::backup::{BackupPolicy, SnapshotCause, SnapshotHealth, SnapshotInfo};
use claw_core::name::InstanceName;
use claw_core::observed::RestSnapshot;
use claw_core::time::Timestamp;

use super::attempt::Attempts;
use super::errand::ErrandKind;
use super::offsite::{self, Destination};
use super::record::{Ask, BackupRecord};
use crate::ports::Surplus;
use crate::roster::Held;

/// Between two verifications of the structure.
const STRUCTURE_EVERY: Duration = Duration::from_secs(24 * 3600);
/// Between two verifications of a part of the data, and between two prunings.
const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);
/// A time that is further ahead is of a clock that was wrong.
const CLOCK_STEP: Duration = Duration::from_secs(3600);
/// With so many snapshots that the policy does not keep, they are forgotten before the week is over: a dense
/// schedule makes dozens a day, and each listing reads all of them.
const MANY: usize = 32;

/// Kinds of jobs, most urgent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Kind {
    /// Removing what a drill left behind.
    Sweep,
    /// Looking what there is.
    Look,
    /// Making room, when the disk is nearly full.
    Room,
    /// A snapshot of an instance that is down, for which its loop waits.
    AtRest,
    /// A snapshot of data that another version has taken the place of.
    Replaced,
    /// What somebody waits for at the other end, or another host.
    Errand,
    /// What somebody asked for.
    Asked,
    /// A snapshot by its schedule.
    Scheduled,
    /// Forgetting what the policy does not keep.
    Prune,
    /// Verifying the structure.
    Structure,
    /// Verifying a part of the data.
    Data,
    /// A restore drill.
    Drill,
    /// Copying the repository off-site, which may take hours.
    Offsite,
}

/// What is to be done for one instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Work {
    /// See [`Kind::Sweep`].
    Sweep,
    /// See [`Kind::Look`].
    Look,
    /// See [`Kind::Room`].
    Room,
    /// See [`Kind::AtRest`].
    AtRest(SnapshotCause),
    /// See [`Kind::Replaced`].
    Replaced(SnapshotCause),
    /// See [`Kind::Errand`]; the first of the instance's.
    Errand(ErrandKind),
    /// See [`Kind::Asked`].
    Asked(Ask),
    /// See [`Kind::Scheduled`].
    Scheduled,
    /// See [`Kind::Prune`].
    Prune,
    /// See [`Kind::Structure`].
    Structure,
    /// See [`Kind::Data`]; the part, from 0.
    Data(u32),
    /// See [`Kind::Drill`].
    Drill,
    /// See [`Kind::Offsite`].
    Offsite(Surplus),
}

impl Work {
    /// How urgent it is.
    pub(super) const fn kind(&self) -> Kind {
        match self {
            Self::Sweep => Kind::Sweep,
            Self::Look => Kind::Look,
            Self::Room => Kind::Room,
            Self::AtRest(_) => Kind::AtRest,
            Self::Replaced(_) => Kind::Replaced,
            Self::Errand(_) => Kind::Errand,
            Self::Asked(_) => Kind::Asked,
            Self::Scheduled => Kind::Scheduled,
            Self::Prune => Kind::Prune,
            Self::Structure => Kind::Structure,
            Self::Data(_) => Kind::Data,
            Self::Drill => Kind::Drill,
            Self::Offsite(_) => Kind::Offsite,
        }
    }

    /// Whether it may be broken off and done again later: it changes nothing that lasts, or goes on where it
    /// stopped.
    pub(super) const fn may_wait(&self) -> bool {
        match self {
            Self::Structure | Self::Data(_) | Self::Drill | Self::Offsite(_) => true,
            Self::Asked(ask) => matches!(ask, Ask::Structure | Ask::Data),
            Self::Errand(kind) => matches!(kind, ErrandKind::Fetch),
            _ => false,
        }
    }

    /// Whether it takes as long as the way to a storage does, and goes on where it stopped.
    pub(super) const fn is_as_long_as_the_line(&self) -> bool {
        matches!(self, Self::Offsite(_) | Self::Errand(ErrandKind::Fetch))
    }

    /// Whether it is broken off for a job of that kind.
    pub(super) fn gives_way_to(&self, kind: Kind) -> bool {
        match self {
            _ if self.is_as_long_as_the_line() => kind < self.kind(),
            // An instance's loop waits for the one, somebody at the other end of a pipe for the other.
            _ => self.may_wait() && matches!(kind, Kind::AtRest | Kind::Errand),
        }
    }

    /// What an operation of this kind is called in reports; none: it is too short to be told.
    pub(super) const fn operation(&self) -> Option<&'static str> {
        match self {
            Self::Sweep | Self::Look => None,
            Self::AtRest(_) | Self::Replaced(_) | Self::Scheduled | Self::Asked(Ask::Take(_)) => {
                Some("snapshot")
            }
            Self::Room | Self::Prune | Self::Asked(Ask::Forget(_)) => Some("prune"),
            Self::Structure | Self::Data(_) | Self::Asked(Ask::Structure | Ask::Data) => {
                Some("verify")
            }
            Self::Drill => Some("drill"),
            Self::Errand(kind) => kind.operation(),
            Self::Offsite(_) => Some("offsite"),
        }
    }
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sweep => f.write_str("sweep"),
            Self::Look => f.write_str("look"),
            Self::Room => f.write_str("make room"),
            Self::AtRest(cause) => write!(f, "{cause} snapshot at rest"),
            Self::Replaced(cause) => write!(f, "{cause} snapshot of replaced data"),
            Self::Errand(kind) => write!(f, "{kind}"),
            Self::Asked(ask) => write!(f, "asked: {ask}"),
            Self::Scheduled => f.write_str("scheduled snapshot"),
            Self::Prune => f.write_str("prune"),
            Self::Structure => f.write_str("verify structure"),
            Self::Data(part) => write!(f, "verify data, part {part}"),
            Self::Drill => f.write_str("drill"),
            Self::Offsite(Surplus::Kept) => f.write_str("copy off-site"),
            Self::Offsite(Surplus::Removed) => f.write_str("copy off-site and sweep there"),
        }
    }
}

/// What an instance's data is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// Its container is up.
    Up,
    /// It is down, since then if it has a container.
    Down(Option<Timestamp>),
    /// There is no data.
    Bare,
}

/// Everything that decides what is due for one instance.
#[derive(Debug)]
pub(super) struct Subject<'a> {
    pub(super) name: &'a InstanceName,
    /// None: it is being removed.
    pub(super) policy: Option<BackupPolicy>,
    pub(super) standing: Standing,
    /// It is down and waits for a snapshot of this cause.
    pub(super) awaits: Option<SnapshotCause>,
    /// Data of another version of which a snapshot is wanted, since then.
    pub(super) replaced: Option<(SnapshotCause, Timestamp)>,
    /// What is held, sound or not, oldest first; none: nobody has looked yet.
    pub(super) list: Option<&'a [SnapshotInfo]>,
    /// Something has changed since somebody looked.
    pub(super) stale: bool,
    /// The sound ones, as the instance's loop sees them.
    pub(super) held: &'a Held,
    pub(super) record: &'a BackupRecord,
    pub(super) attempts: &'a Attempts,
    /// How many snapshots the policy does not keep.
    pub(super) forgettable: usize,
    /// How badly room is needed.
    pub(super) room: Room,
    /// Where the repository is copied to.
    pub(super) destination: &'a Destination,
}

/// Whether room must be made on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    /// There is enough.
    Enough,
    /// The disk is below its watermark: what is not kept goes now.
    Low,
    /// A snapshot did not fit: whatever can be given back is.
    Wanted,
}

/// A job and when it is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Due {
    pub(super) at: Timestamp,
    pub(super) work: Work,
}

/// When the next scheduled snapshot is due, and whether it is late.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Schedule {
    pub(super) due: Timestamp,
    pub(super) overdue: bool,
}

/// The schedule of an instance; none when there is nothing to be taken by it: no interval, no data, or data
/// that lies as the newest snapshot holds it.
pub(super) fn schedule(subject: &Subject<'_>, now: Timestamp) -> Option<Schedule> {
    let every = subject.policy?.every?;
    let newest = newest_of_present_data(subject, now);
    match subject.standing {
        Standing::Bare => return None,
        Standing::Down(Some(since)) if newest.is_some_and(|at| at >= since) => return None,
        Standing::Up | Standing::Down(_) => {}
    }
    let due = match newest {
        Some(newest) => next_due(subject.name, every, newest),
        None => first_due(subject.name, every, subject.record.first_seen),
    };
    let overdue = match newest {
        Some(_) => is_overdue(due, every, now),
        None => now > subject.record.first_seen.after(every).after(every / 2),
    };
    Some(Schedule { due, overdue })
}

/// Everything that is to be done for an instance, now or later.
pub(super) fn agenda(subject: &Subject<'_>, now: Timestamp) -> Vec<Due> {
    let mut agenda = Agenda { subject, dues: Vec::new() };
    if subject.record.drilling {
        agenda.add(Timestamp::default(), Work::Sweep);
    }
    if subject.stale || subject.list.is_none() {
        agenda.add(Timestamp::default(), Work::Look);
        let fails = subject.attempts.failures(Kind::Look) > 0;
        if subject.list.is_none() && !fails {
            return agenda.dues;
        }
    }
    agenda.snapshots(now);
    // Nothing is removed, and nothing verified, before somebody has looked what there is.
    if let (Some(policy), Some(list)) = (subject.policy, subject.list)
        && let Some(oldest) = list.first()
    {
        agenda.upkeep(policy, oldest.taken_at, now);
    }
    agenda.dues
}

/// What to do next on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Next {
    /// This, now.
    Do(InstanceName, Work),
    /// Nothing before then; none: nothing at all.
    Wait(Option<Timestamp>),
}

/// The most urgent job that is due; of equally urgent ones that which waits longest.
pub(super) fn next(agendas: &[(InstanceName, Vec<Due>)], now: Timestamp) -> Next {
    let all = || agendas.iter().flat_map(|(name, dues)| dues.iter().map(move |due| (name, due)));
    let due = all().filter(|(_, due)| due.at <= now);
    match due.min_by_key(|(name, due)| (due.work.kind(), due.at, *name)) {
        Some((name, due)) => Next::Do(name.clone(), due.work.clone()),
        None => Next::Wait(all().map(|(_, due)| due.at).min()),
    }
}

struct Agenda<'a> {
    subject: &'a Subject<'a>,
    dues: Vec<Due>,
}

impl Agenda<'_> {
    fn add(&mut self, at: Timestamp, work: Work) {
        let at = at.max(self.subject.attempts.not_before(work.kind()));
        self.dues.push(Due { at, work });
    }

    fn snapshots(&mut self, now: Timestamp) {
        let Subject { standing, record, held, .. } = self.subject;
        if self.subject.room == Room::Wanted
            || (self.subject.room == Room::Low && self.subject.forgettable > 0)
        {
            self.add(Timestamp::default(), Work::Room);
        }
        if let (Some(cause), Standing::Down(since)) = (self.subject.awaits, standing)
            && held.at_rest(*since) != RestSnapshot::Held
        {
            self.add(since.unwrap_or_default(), Work::AtRest(cause));
        }
        if let Some((cause, since)) = self.subject.replaced
            && !held.holds_replaced(since)
        {
            self.add(since, Work::Replaced(cause));
        }
        if let Some(ask) = record.asks.first() {
            self.add(Timestamp::default(), Work::Asked(ask.clone()));
        }
        // What is waited for at rest does for the schedule as well.
        if let (Some(schedule), None) = (schedule(self.subject, now), self.subject.awaits) {
            self.add(schedule.due, Work::Scheduled);
        }
    }

    fn upkeep(&mut self, policy: BackupPolicy, oldest: Timestamp, now: Timestamp) {
        let Subject { name, record, forgettable, standing, .. } = self.subject;
        let after = |every, last: Option<Timestamp>| {
            let last = last.filter(|at| is_past(*at, now));
            next_due(name, every, last.unwrap_or(oldest))
        };
        if *forgettable >= MANY {
            self.add(Timestamp::default(), Work::Prune);
        } else {
            self.add(after(WEEK, record.pruned_at), Work::Prune);
        }
        self.add(after(STRUCTURE_EVERY, record.structure_at), Work::Structure);
        self.add(after(WEEK, record.data_at), Work::Data(record.data_part));
        // A drill needs the secrets that only an instance that is up has; one that is down has not changed.
        if let (Some(every), Standing::Up) = (policy.drill_every, standing) {
            self.add(after(every, record.drill_at), Work::Drill);
        }
        if let Some((at, surplus)) = offsite::due(self.subject, now) {
            self.add(at, Work::Offsite(surplus));
        }
    }
}

/// When the newest sound snapshot of the data in use was begun. Those before a change hold the data of the
/// version before it.
fn newest_of_present_data(subject: &Subject<'_>, now: Timestamp) -> Option<Timestamp> {
    let Some(list) = subject.list else { return subject.record.taken_at };
    let counted = list.iter().filter(|snapshot| counts(snapshot)).map(|snapshot| snapshot.taken_at);
    counted.filter(|at| is_past(*at, now)).max()
}

/// A clock that was far ahead once must not end all schedules until then.
pub(super) fn is_past(at: Timestamp, now: Timestamp) -> bool {
    at <= now.after(CLOCK_STEP)
}

/// Whether a snapshot is one of the data that was in use when it was taken, and sound.
pub(super) fn counts(snapshot: &SnapshotInfo) -> bool {
    let of_present = match snapshot.cause {
        SnapshotCause::Scheduled
        | SnapshotCause::Requested
        | SnapshotCause::Pause
        | SnapshotCause::Final => true,
        SnapshotCause::Update | SnapshotCause::Restore | SnapshotCause::Import => false,
    };
    of_present && snapshot.health == SnapshotHealth::Sound
}

#[cfg(test)]
mod tests;
