//! What is remembered of changes of version, as JSON.

use claw_core::cutover::{Cutover, Deployment, Migration, RefusedTarget, Replaced, Stage, Verdict};
use claw_core::data::DataGeneration;
use claw_core::name::{ImageRef, SnapshotName};
use claw_core::observed::Record;
use claw_core::reclaim::Reclaimed;
use claw_core::spec::{RestoreOrder, RestoreSource};
use claw_core::time::Timestamp;
use serde::{Deserialize, Serialize};

use super::Unreadable;

/// The part of a record that is about versions.
#[derive(Serialize, Deserialize, Default)]
#[serde(default)]
pub(super) struct StoredVersions {
    active: Option<StoredDeployment>,
    cutover: Option<StoredCutover>,
    restored: u64,
    refused: Option<StoredRefused>,
    reverts: u32,
    replaced: Option<StoredReplaced>,
    doomed: Vec<u32>,
    reclaimed: Option<StoredReclaimed>,
}

#[derive(Serialize, Deserialize)]
struct StoredReclaimed {
    snapshot: String,
    into: Option<u32>,
}

#[derive(Serialize, Deserialize)]
struct StoredDeployment {
    image: String,
    data: u32,
}

#[derive(Serialize, Deserialize)]
struct StoredCutover {
    image: String,
    restore: Option<(u64, String)>,
    #[serde(default)]
    offsite: bool,
    data: u32,
    asked: (u64, u64),
    begun: i64,
    stage: StoredStage,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StoredStage {
    Preparing,
    Switching { migration: StoredMigration },
    Probing { migration: StoredMigration, deadline: i64 },
    Reverting { problem: String, failed: bool },
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StoredMigration {
    Unknown,
    Needed,
    Done,
}

#[derive(Serialize, Deserialize)]
struct StoredRefused {
    image: String,
    restore: u64,
    rebuilds: u64,
    problem: String,
    at: i64,
}

#[derive(Serialize, Deserialize)]
struct StoredReplaced {
    data: u32,
    since: i64,
    until: i64,
}

impl StoredVersions {
    pub(super) fn of(record: &Record) -> Self {
        Self {
            active: record.active.as_ref().map(|active| StoredDeployment {
                image: active.image.to_string(),
                data: active.data.number(),
            }),
            cutover: record.cutover.as_ref().map(StoredCutover::of),
            restored: record.restored,
            refused: record.refused.as_ref().map(|refused| StoredRefused {
                image: refused.image.to_string(),
                restore: refused.restore,
                rebuilds: refused.rebuilds,
                problem: refused.problem.clone(),
                at: refused.at.millis(),
            }),
            reverts: record.reverts,
            replaced: record.replaced.map(|replaced| StoredReplaced {
                data: replaced.data.number(),
                since: replaced.since.millis(),
                until: replaced.until.millis(),
            }),
            doomed: record.doomed.iter().map(|data| data.number()).collect(),
            reclaimed: record.reclaimed.as_ref().map(|reclaimed| StoredReclaimed {
                snapshot: reclaimed.snapshot.to_string(),
                into: reclaimed.into.map(DataGeneration::number),
            }),
        }
    }

    pub(super) fn into_record(self, record: &mut Record) -> Result<(), Unreadable> {
        record.active = self
            .active
            .map(|active| {
                Ok::<_, Unreadable>(Deployment {
                    image: image(&active.image)?,
                    data: data(active.data)?,
                })
            })
            .transpose()?;
        record.cutover = self.cutover.map(StoredCutover::into_cutover).transpose()?;
        record.restored = self.restored;
        record.reverts = self.reverts;
        record.refused = self
            .refused
            .map(|refused| {
                Ok::<_, Unreadable>(RefusedTarget {
                    image: image(&refused.image)?,
                    restore: refused.restore,
                    rebuilds: refused.rebuilds,
                    problem: refused.problem,
                    at: Timestamp::from_millis(refused.at),
                })
            })
            .transpose()?;
        record.replaced = self
            .replaced
            .map(|replaced| {
                Ok::<_, Unreadable>(Replaced {
                    data: data(replaced.data)?,
                    since: Timestamp::from_millis(replaced.since),
                    until: Timestamp::from_millis(replaced.until),
                })
            })
            .transpose()?;
        record.doomed = self.doomed.into_iter().map(data).collect::<Result<_, _>>()?;
        record.reclaimed = self
            .reclaimed
            .map(|reclaimed| {
                let snapshot =
                    SnapshotName::parse(&reclaimed.snapshot).map_err(Unreadable::Name)?;
                let into = reclaimed.into.map(data).transpose()?;
                Ok::<_, Unreadable>(Reclaimed { snapshot, into })
            })
            .transpose()?;
        Ok(())
    }
}

impl StoredCutover {
    fn of(cutover: &Cutover) -> Self {
        let migration = |migration| match migration {
            Migration::Unknown => StoredMigration::Unknown,
            Migration::Needed => StoredMigration::Needed,
            Migration::Done => StoredMigration::Done,
        };
        Self {
            image: cutover.image.to_string(),
            restore: cutover.restore.as_ref().map(|o| (o.number, o.snapshot.to_string())),
            offsite: cutover.restore.as_ref().is_some_and(|o| o.from == RestoreSource::Offsite),
            data: cutover.data.number(),
            asked: cutover.asked,
            begun: cutover.begun.millis(),
            stage: match &cutover.stage {
                Stage::Preparing => StoredStage::Preparing,
                Stage::Switching { migration: of } => {
                    StoredStage::Switching { migration: migration(*of) }
                }
                Stage::Probing { migration: of, deadline } => {
                    StoredStage::Probing { migration: migration(*of), deadline: deadline.millis() }
                }
                Stage::Reverting { problem, verdict } => StoredStage::Reverting {
                    problem: problem.clone(),
                    failed: *verdict == Verdict::Failed,
                },
            },
        }
    }

    fn into_cutover(self) -> Result<Cutover, Unreadable> {
        let migration = |migration| match migration {
            StoredMigration::Unknown => Migration::Unknown,
            StoredMigration::Needed => Migration::Needed,
            StoredMigration::Done => Migration::Done,
        };
        let from = if self.offsite { RestoreSource::Offsite } else { RestoreSource::Host };
        let restore = self
            .restore
            .map(|(number, snapshot)| {
                let snapshot = SnapshotName::parse(&snapshot).map_err(Unreadable::Name)?;
                Ok::<_, Unreadable>(RestoreOrder { number, snapshot, from })
            })
            .transpose()?;
        Ok(Cutover {
            image: image(&self.image)?,
            restore,
            data: data(self.data)?,
            asked: self.asked,
            begun: Timestamp::from_millis(self.begun),
            stage: match self.stage {
                StoredStage::Preparing => Stage::Preparing,
                StoredStage::Switching { migration: of } => {
                    Stage::Switching { migration: migration(of) }
                }
                StoredStage::Probing { migration: of, deadline } => Stage::Probing {
                    migration: migration(of),
                    deadline: Timestamp::from_millis(deadline),
                },
                StoredStage::Reverting { problem, failed } => Stage::Reverting {
                    problem,
                    verdict: if failed { Verdict::Failed } else { Verdict::Superseded },
                },
            },
        })
    }
}

fn image(text: &str) -> Result<ImageRef, Unreadable> {
    ImageRef::parse(text).map_err(Unreadable::Name)
}

fn data(number: u32) -> Result<DataGeneration, Unreadable> {
    DataGeneration::new(number).ok_or(Unreadable::Data)
}
