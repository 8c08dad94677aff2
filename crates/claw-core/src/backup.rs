//! What is kept of an instance's data, why, and for how long.
//!
//! Values and pure decisions. A snapshot is data, the exact spec and the image's digest as one unit; taking
//! one is the agent's work (`claw-snapshot`), and which ones are kept is said by [`Retention`].
//!
//! Where to start: [`BackupPolicy`], [`SnapshotInfo`]; [`schedule`] says when the next one is due.

pub mod schedule;

use std::fmt;
use std::time::Duration;

use crate::name::{ImageRef, NameError, SnapshotName};
use crate::offsite::{OffsitePolicy, OffsiteReport};
use crate::stamp::{Digest, Generation};
use crate::time::Timestamp;

/// When snapshots are taken without being asked for, and which are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BackupPolicy {
    /// Between two scheduled snapshots; none: only operations and people take some.
    pub every: Option<Duration>,
    /// Which are kept.
    pub retention: Retention,
    /// Between two restore drills; none: there are none.
    pub drill_every: Option<Duration>,
    /// Whether they are copied off-site.
    pub offsite: OffsitePolicy,
}

impl BackupPolicy {
    /// The shortest time between two scheduled snapshots.
    pub const LEAST_EVERY: Duration = Duration::from_secs(15 * 60);
    /// The longest: a month.
    pub const MOST_EVERY: Duration = Duration::from_secs(31 * 24 * 3600);
    /// The shortest time between two drills: each takes minutes of a core.
    pub const LEAST_DRILL_EVERY: Duration = Duration::from_secs(3600);
    /// The longest: a year.
    pub const MOST_DRILL_EVERY: Duration = Duration::from_secs(366 * 24 * 3600);
}

impl Default for BackupPolicy {
    /// Daily, with a drill each month.
    fn default() -> Self {
        Self {
            every: Some(Duration::from_secs(24 * 3600)),
            retention: Retention::default(),
            drill_every: Some(Duration::from_secs(30 * 24 * 3600)),
            offsite: OffsitePolicy::Auto,
        }
    }
}

/// How many snapshots are kept for what, as restic's `forget` counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Retention {
    /// The newest.
    pub last: u32,
    /// The newest of an hour each.
    pub hourly: u32,
    /// The newest of a day each.
    pub daily: u32,
    /// The newest of a week each.
    pub weekly: u32,
    /// The newest of a month each.
    pub monthly: u32,
}

impl Retention {
    /// Most of each kind.
    pub const MOST: u32 = 1000;
}

impl Default for Retention {
    fn default() -> Self {
        Self { last: 3, hourly: 0, daily: 7, weekly: 4, monthly: 3 }
    }
}

/// How long the snapshot of a paused instance is held at least (PRODUCT row 3).
pub const PAUSE_HELD: Duration = Duration::from_secs(7 * 24 * 3600);

/// How long the snapshot taken before an update, a rollback or a restore is held, counted from when it was
/// taken: as long as somebody may find out that the new version is no good.
pub const BEFORE_CHANGE_HELD: Duration = Duration::from_secs(3 * 24 * 3600);

/// How long the last snapshot of a deleted instance is held.
pub const FINAL_HELD: Duration = Duration::from_secs(30 * 24 * 3600);

/// Why a snapshot was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SnapshotCause {
    /// By its schedule.
    Scheduled,
    /// Somebody asked for it.
    Requested,
    /// The instance was paused.
    Pause,
    /// Before an update to another image.
    Update,
    /// Before data of an earlier time came back.
    Restore,
    /// Before it was deleted.
    Final,
    /// An archive was imported.
    Import,
}

impl SnapshotCause {
    /// Every cause with its name in the API and in a snapshot's tags.
    pub const ALL: [(Self, &'static str); 7] = [
        (Self::Scheduled, "scheduled"),
        (Self::Requested, "requested"),
        (Self::Pause, "pause"),
        (Self::Update, "update"),
        (Self::Restore, "restore"),
        (Self::Final, "final"),
        (Self::Import, "import"),
    ];

    /// The cause with this name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == name).map(|(cause, _)| *cause)
    }

    /// For how long a snapshot of this cause is kept whatever the retention says.
    #[must_use]
    pub const fn held(self) -> Option<Duration> {
        match self {
            Self::Scheduled => None,
            // What a person or another system asked for is theirs to delete.
            Self::Requested | Self::Import => Some(Duration::MAX),
            Self::Pause => Some(PAUSE_HELD),
            Self::Update | Self::Restore => Some(BEFORE_CHANGE_HELD),
            Self::Final => Some(FINAL_HELD),
        }
    }
}

impl fmt::Display for SnapshotCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::ALL.iter().find(|(cause, _)| cause == self).map_or("unknown", |(_, n)| n);
        f.write_str(name)
    }
}

impl SnapshotName {
    /// The name of a snapshot that nobody named: cause and seconds since 1970, such as
    /// `scheduled-1795237200`.
    ///
    /// # Errors
    /// Never in practice: the parts are valid.
    pub fn of(cause: SnapshotCause, at: Timestamp) -> Result<Self, NameError> {
        Self::parse(&format!("{cause}-{}", at.millis().max(0) / 1000))
    }
}

/// How far a snapshot has been verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum SnapshotHealth {
    /// It was read back when it was taken; nothing is known to be wrong.
    #[default]
    Sound,
    /// Something that it needs is damaged or missing.
    Damaged,
}

/// A snapshot as its host lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Its name within the instance.
    pub name: SnapshotName,
    /// Its id in the repository, as restic has it: SHA-256.
    pub id: Digest,
    /// When it was begun.
    pub taken_at: Timestamp,
    /// Why.
    pub cause: SnapshotCause,
    /// The image that ran on the data.
    pub image: ImageRef,
    /// The host state's generation whose spec is in it.
    pub generation: Generation,
    /// Files and links in it.
    pub files: u64,
    /// Their bytes: what a restore takes.
    pub bytes: u64,
    /// Bytes by which the repository grew.
    pub added_bytes: u64,
    /// Whether it is known to be damaged.
    pub health: SnapshotHealth,
    /// Whether all of it was copied off-site.
    pub offsite: bool,
}

/// How the snapshots of an instance stand. Complete, so that the last one says everything.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BackupReport {
    /// Every snapshot, oldest first; at most [`MAX_LISTED`], the newest.
    pub snapshots: Vec<SnapshotInfo>,
    /// Bytes that the repository takes on the host.
    pub stored_bytes: u64,
    /// When the next scheduled one is due.
    pub next_due: Option<Timestamp>,
    /// A scheduled snapshot is late by more than half its interval, or never succeeded.
    pub overdue: bool,
    /// Why the last job failed; empty when it did not.
    pub problem: String,
    /// When the repository was last verified without a fault.
    pub verified_at: Option<Timestamp>,
    /// When a restore drill last passed.
    pub drilled_at: Option<Timestamp>,
    /// How its copy off-site stands.
    pub offsite: OffsiteReport,
}

/// Most snapshots of one instance that are listed upwards.
pub const MAX_LISTED: usize = 512;
