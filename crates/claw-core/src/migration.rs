//! The move of an instance to another host, and back when that fails: it never ends with neither serving.
//!
//! [`course`] says what is to be done now. It is pure, and everything that it looks at is stored before its effect,
//! so a coordinator that is restarted goes on from there.
//!
//! | stage | the old host | the new host |
//! | --- | --- | --- |
//! | [`Stage::Preparing`] | serves, sends its repository | takes it |
//! | [`Stage::Stopping`] | pauses, takes a snapshot at rest | – |
//! | [`Stage::Syncing`] | paused, sends what is new | takes it |
//! | [`Stage::Fetching`] | is gone | fetches the copy off-site |
//! | [`Stage::Starting`] | paused | restores the snapshot, starts, gates |
//! | [`Stage::Reverting`] | goes on | drops it |
//!
//! What it does not do: send anything, or know how. Where to start: [`Migration`], [`Facts`], [`course`].

use std::time::Duration;

use crate::backup::{SnapshotCause, SnapshotHealth, SnapshotInfo};
use crate::name::SnapshotName;
use crate::report::{InstanceReport, Phase};
use crate::spec::RunState;
use crate::stamp::Generation;
use crate::time::Timestamp;

/// Longest time for a repository to reach the new host while the instance serves; first copies of large data over
/// slow lines take hours.
pub const CARRY_WITHIN: Duration = Duration::from_secs(24 * 3600);
/// Time for the snapshot at rest, on top of the instance's own time to stop.
pub const REST_WITHIN: Duration = Duration::from_secs(30 * 60);
/// Longest time for what is new since; the instance is down meanwhile.
pub const SYNC_WITHIN: Duration = Duration::from_secs(3600);
/// Longest time for restore, start and gate on the new host; the instance is down meanwhile.
pub const START_WITHIN: Duration = Duration::from_secs(2 * 3600);
/// Longest time that is waited for the old host to be as before; it goes on by itself.
pub const REVERT_WITHIN: Duration = Duration::from_secs(15 * 60);
/// Longest time that a host may be away while the instance is down because of a migration.
pub const AWAY: Duration = Duration::from_secs(5 * 60);
/// Failed attempts of one stage after which everything goes back.
pub const MOST_TRIES: u32 = 8;
/// Between the first two attempts; it doubles up to [`LONGEST_PAUSE`].
const SHORTEST_PAUSE: Duration = Duration::from_secs(5);
/// Between two attempts at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(5 * 60);

/// From where the data is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Origin {
    /// The old host, which is there.
    Host,
    /// The copy off-site: the old host is gone.
    Offsite,
}

/// A migration as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migration {
    /// From where the data is taken.
    pub origin: Origin,
    /// How far it is.
    pub stage: Stage,
    /// Since when it has been in this stage.
    pub since: Timestamp,
    /// What has been tried in this stage.
    pub tries: Tries,
}

/// How far a migration is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stage {
    /// The repository is sent while the instance serves.
    Preparing,
    /// The instance pauses.
    Stopping {
        /// Of the old host's state that says so.
        generation: Generation,
    },
    /// What is new is sent.
    Syncing {
        /// What the instance starts with.
        snapshot: SnapshotName,
    },
    /// The copy off-site is fetched.
    Fetching {
        /// What the instance starts with.
        snapshot: SnapshotName,
    },
    /// The new host brings it up.
    Starting(Start),
    /// Everything goes back.
    Reverting {
        /// Why.
        problem: String,
        /// Of the old host's state in which it goes on.
        generation: Generation,
        /// What is left on the new host.
        leftover: Leftover,
    },
    /// Ended: the instance is on the new host.
    Done {
        /// What it started with.
        snapshot: SnapshotName,
    },
    /// Ended: the instance is where it was.
    Reverted {
        /// Why.
        problem: String,
    },
}

/// What the new host is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// What the instance starts with.
    pub snapshot: SnapshotName,
    /// The number of the order to restore it.
    pub restore: u64,
    /// Of the new host's state that has the instance.
    pub generation: Generation,
}

/// What a migration that goes back has left on the new host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leftover {
    /// The new host's state confirms the removal of the instance: nothing to be done here.
    Nothing,
    /// A repository that nobody uses.
    Repository,
}

/// Attempts of one stage.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tries {
    /// How many failed.
    pub failed: u32,
    /// Why the last one did.
    pub problem: String,
    /// When the last one did.
    pub at: Timestamp,
}

/// What is known of one of the two hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sight {
    /// It has a session.
    pub online: bool,
    /// Since when it has been away; zero when it is not.
    pub silent: Duration,
    /// What it says of the instance.
    pub report: Option<InstanceReport>,
}

/// Work that a stage has under way: a transfer, a fetch, or a clean-up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Work {
    /// None.
    Idle,
    /// Under way.
    Busy,
    /// Done.
    Done,
    /// Failed, and why.
    Failed(String),
}

/// Everything that [`course`] looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The time.
    pub now: Timestamp,
    /// What the instance should be.
    pub run: RunState,
    /// How long it may take to stop.
    pub stop_grace: Duration,
    /// The old host.
    pub source: Sight,
    /// The new host.
    pub target: Sight,
    /// The work of this stage.
    pub work: Work,
    /// The snapshots that the old host lists.
    pub held: Vec<SnapshotInfo>,
    /// The new host lists the snapshot that is fetched.
    pub arrived: bool,
}

/// What is to be done now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Wait,
    /// Begin the work of this stage.
    Begin,
    /// Note that an attempt failed.
    Retry(String),
    /// Pause the instance on the old host.
    Stop,
    /// It is paused: send what is new.
    Sync(SnapshotName),
    /// Everything is there: start it on the new host.
    Start(SnapshotName),
    /// It is up there: it belongs there.
    Finish,
    /// Go back, for this reason.
    Revert(String),
    /// What was left is cleaned up.
    Cleaned,
    /// Everything went back.
    End,
}

impl Stage {
    /// Whether the old host shall hold the instance down.
    #[must_use]
    pub const fn pauses_source(&self) -> bool {
        matches!(self, Self::Stopping { .. } | Self::Syncing { .. } | Self::Starting(_))
    }

    /// What the new host is told, if it shall have the instance by now.
    #[must_use]
    pub const fn start(&self) -> Option<&Start> {
        match self {
            Self::Starting(start) => Some(start),
            _ => None,
        }
    }

    /// Whether it has ended.
    #[must_use]
    pub const fn is_over(&self) -> bool {
        matches!(self, Self::Done { .. } | Self::Reverted { .. })
    }

    /// What the instance starts with, where that is known.
    #[must_use]
    pub const fn snapshot(&self) -> Option<&SnapshotName> {
        match self {
            Self::Syncing { snapshot } | Self::Fetching { snapshot } | Self::Done { snapshot } => {
                Some(snapshot)
            }
            Self::Starting(start) => Some(&start.snapshot),
            _ => None,
        }
    }

    /// Why it went back; empty while it did not.
    #[must_use]
    pub fn problem(&self) -> &str {
        match self {
            Self::Reverting { problem, .. } | Self::Reverted { problem } => problem,
            _ => "",
        }
    }

    /// What goes back leaves this on the new host.
    #[must_use]
    pub const fn leftover(&self) -> Leftover {
        match self {
            Self::Starting(_) => Leftover::Nothing,
            _ => Leftover::Repository,
        }
    }
}

impl Migration {
    /// The migration in another stage, with nothing tried yet.
    #[must_use]
    pub fn enter(&self, stage: Stage, now: Timestamp) -> Self {
        Self { origin: self.origin, stage, since: now, tries: Tries::default() }
    }

    /// The migration after a failed attempt.
    #[must_use]
    pub fn tried(&self, problem: String, now: Timestamp) -> Self {
        let failed = self.tries.failed.saturating_add(1);
        Self { tries: Tries { failed, problem, at: now }, ..self.clone() }
    }

    fn lasted(&self, now: Timestamp) -> Duration {
        now.since(self.since)
    }
}

impl Tries {
    /// When the next one may begin.
    #[must_use]
    pub fn not_before(&self) -> Timestamp {
        if self.failed == 0 {
            return Timestamp::default();
        }
        let doubled = 2_u32.saturating_pow(self.failed.saturating_sub(1).min(16));
        self.at.after(SHORTEST_PAUSE.saturating_mul(doubled).min(LONGEST_PAUSE))
    }
}

/// What is to be done now.
#[must_use]
pub fn course(migration: &Migration, facts: &Facts) -> Step {
    let lasted = migration.lasted(facts.now);
    match &migration.stage {
        Stage::Preparing if facts.work == Work::Done => Step::Stop,
        Stage::Preparing => {
            let ready = facts.source.online && facts.target.online;
            within(lasted, CARRY_WITHIN, "the repository did not reach the new host")
                .unwrap_or_else(|| attempt(migration, facts, ready))
        }
        Stage::Stopping { generation } => stopping(*generation, facts, lasted),
        Stage::Syncing { snapshot } if facts.work == Work::Done => Step::Start(snapshot.clone()),
        Stage::Syncing { .. } => {
            let ready = facts.source.online && facts.target.online;
            within(lasted, SYNC_WITHIN, "what is new did not reach the new host")
                .or_else(|| away(&facts.source, "the old host went away"))
                .or_else(|| away(&facts.target, "the new host went away"))
                .unwrap_or_else(|| attempt(migration, facts, ready))
        }
        Stage::Fetching { .. } if facts.source.online => {
            Step::Revert("the old host is back; move the instance from it".to_owned())
        }
        Stage::Fetching { snapshot } if facts.arrived => Step::Start(snapshot.clone()),
        Stage::Fetching { .. } => {
            within(lasted, CARRY_WITHIN, "the new host did not get the copy off-site")
                .unwrap_or_else(|| attempt(migration, facts, facts.target.online))
        }
        Stage::Starting(start) => starting(start, facts, lasted),
        Stage::Reverting { generation, leftover, .. } => {
            reverting(migration, *generation, *leftover, facts)
        }
        Stage::Done { .. } | Stage::Reverted { .. } => Step::Wait,
    }
}

fn within(lasted: Duration, most: Duration, what: &str) -> Option<Step> {
    let late = lasted > most;
    late.then(|| Step::Revert(format!("{what} within {} min", most.as_secs() / 60)))
}

fn away(sight: &Sight, what: &str) -> Option<Step> {
    (sight.silent > AWAY).then(|| Step::Revert(what.to_owned()))
}

/// One more attempt of the stage's work, when it may be.
fn attempt(migration: &Migration, facts: &Facts, ready: bool) -> Step {
    match &facts.work {
        Work::Busy => Step::Wait,
        Work::Failed(problem) if migration.tries.failed.saturating_add(1) >= MOST_TRIES => {
            Step::Revert(format!("{MOST_TRIES} attempts failed, the last one: {problem}"))
        }
        Work::Failed(problem) => Step::Retry(problem.clone()),
        Work::Idle | Work::Done if ready && facts.now >= migration.tries.not_before() => {
            Step::Begin
        }
        Work::Idle | Work::Done => Step::Wait,
    }
}

fn stopping(generation: Generation, facts: &Facts, lasted: Duration) -> Step {
    let report = facts.source.report.as_ref().filter(|report| report.generation >= generation);
    if let Some(report) = report {
        match report.phase {
            Phase::Paused => {
                if let Some(snapshot) = at_rest(&facts.held, report) {
                    return Step::Sync(snapshot.name.clone());
                }
            }
            // Down without a snapshot: the agent has given up taking one, or there is no data.
            Phase::Stopped => {
                let said = if report.message.is_empty() { "no data" } else { &report.message };
                return Step::Revert(format!("the old host has no snapshot at rest: {said}"));
            }
            _ => {}
        }
    }
    let most = REST_WITHIN.saturating_add(facts.stop_grace);
    within(lasted, most, "the old host did not hold the instance at rest")
        .or_else(|| away(&facts.source, "the old host went away"))
        .unwrap_or(Step::Wait)
}

/// The snapshot that holds the data as it lies there. The list may be older than the report: what was taken
/// before the last run ended is not it.
fn at_rest<'a>(held: &'a [SnapshotInfo], report: &InstanceReport) -> Option<&'a SnapshotInfo> {
    let ended = report.last_exit.map(|exit| exit.at);
    let rest = held.iter().filter(|snapshot| {
        let at_rest = matches!(snapshot.cause, SnapshotCause::Pause | SnapshotCause::Final);
        at_rest
            && snapshot.health == SnapshotHealth::Sound
            && ended.is_none_or(|ended| snapshot.taken_at >= ended)
    });
    rest.max_by_key(|snapshot| snapshot.taken_at)
}

fn starting(start: &Start, facts: &Facts, lasted: Duration) -> Step {
    let report =
        facts.target.report.as_ref().filter(|report| report.generation >= start.generation);
    if let Some(report) = report {
        let refused = report.refused.as_ref().filter(|refused| refused.restore == start.restore);
        if let Some(refused) = refused {
            return Step::Revert(format!(
                "it did not come up on the new host: {}",
                refused.problem
            ));
        }
        // Restored, gated and confirmed: only then it has a version that a failure leads back to.
        if report.active.is_some() && is_as_wanted(report.phase, facts.run) {
            return Step::Finish;
        }
    }
    within(lasted, START_WITHIN, "it did not come up on the new host")
        .or_else(|| away(&facts.target, "the new host went away"))
        .unwrap_or(Step::Wait)
}

fn is_as_wanted(phase: Phase, run: RunState) -> bool {
    match run {
        RunState::Running => phase == Phase::Running,
        RunState::Stopped => phase == Phase::Stopped,
        RunState::Paused => matches!(phase, Phase::Paused | Phase::Stopped),
    }
}

fn reverting(
    migration: &Migration,
    generation: Generation,
    leftover: Leftover,
    facts: &Facts,
) -> Step {
    if migration.lasted(facts.now) > REVERT_WITHIN {
        return Step::End;
    }
    if leftover == Leftover::Repository {
        let cleaning = match &facts.work {
            Work::Done => Some(Step::Cleaned),
            Work::Failed(problem) => Some(Step::Retry(problem.clone())),
            Work::Idle if facts.target.online && facts.now >= migration.tries.not_before() => {
                Some(Step::Begin)
            }
            Work::Idle | Work::Busy => None,
        };
        if let Some(step) = cleaning {
            return step;
        }
    }
    let report = facts.source.report.as_ref().filter(|report| report.generation >= generation);
    let goes_on = report.is_some_and(|report| is_as_wanted(report.phase, facts.run));
    let is_back = goes_on || facts.source.silent > AWAY;
    // What nobody uses on a host that is away or refuses is no reason to hold the instance's owner up.
    let is_clean =
        leftover == Leftover::Nothing || !facts.target.online || migration.tries.failed > 2;
    if is_back && is_clean { Step::End } else { Step::Wait }
}

#[cfg(test)]
mod tests;
