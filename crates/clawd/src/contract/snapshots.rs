//! The contract of `Snapshots`.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use claw_core::backup::{SnapshotCause, SnapshotHealth, SnapshotInfo};
use claw_core::data::DataGeneration;
use claw_core::name::{ImageRef, InstanceName, SnapshotName, StatePath};
use claw_core::stamp::{Digest, Generation};
use claw_core::time::Timestamp;

use super::{Breach, done, holds, same};
use crate::ports::{
    JobProgress, Quiesce, RuntimeError, SnapshotList, SnapshotOrder, Snapshots, SnapshotsError,
    VerifyDepth,
};

/// What the suite needs beside the port.
pub trait SnapshotsSubject {
    /// The implementation.
    type Snapshots: Snapshots;
    /// It.
    fn snapshots(&self) -> &Self::Snapshots;
    /// An instance without data and without snapshots.
    fn instance(&self) -> &InstanceName;
    /// Now.
    fn now(&self) -> Timestamp;
    /// Makes a data directory of the instance hold exactly this.
    fn set_data(&self, data: DataGeneration, content: &BTreeMap<StatePath, String>);
    /// What one holds; none if there is none.
    fn data(&self, data: DataGeneration) -> Option<BTreeMap<StatePath, String>>;
    /// Breaks something that this snapshot needs.
    fn damage(&self, snapshot: &SnapshotName);
}

/// Counts, and fails when told to.
#[derive(Debug, Default)]
pub(super) struct Counting {
    held: Cell<u32>,
    released: Cell<u32>,
    refuses: bool,
}

impl Quiesce for Counting {
    async fn hold(&self) -> Result<(), RuntimeError> {
        self.held.set(self.held.get() + 1);
        if self.refuses {
            return Err(RuntimeError::Unreachable("told to fail".into()));
        }
        Ok(())
    }

    async fn release(&self) -> Result<(), RuntimeError> {
        self.released.set(self.released.get() + 1);
        Ok(())
    }
}

pub(super) const STILL: Option<&Counting> = None;

/// The contract of [`Snapshots`].
///
/// # Errors
/// The first rule that is broken.
pub async fn snapshots<S: SnapshotsSubject>(subject: &S) -> Result<(), Breach> {
    nothing_yet(subject).await?;
    let first = first(subject).await?;
    let second = while_up(subject).await?;
    back(subject, [&first, &second]).await?;
    forgotten(subject, &first, &second).await?;
    damaged(subject, &second).await
}

async fn nothing_yet<S: SnapshotsSubject>(subject: &S) -> Result<(), Breach> {
    let (port, instance) = (subject.snapshots(), subject.instance());
    let rule = "an instance without a repository has no snapshots";
    same(rule, &done(rule, port.list(instance).await)?, &SnapshotList::default())?;
    let rule = "an instance without a repository has no keys";
    same(rule, &done(rule, port.keys(instance).await)?, &None)?;
    let rule = "forgetting what is absent is success";
    let absent = BTreeSet::from([Digest::of(b"absent")]);
    done(rule, port.forget(instance, &absent, &silent).await)?;
    let rule = "where there is no repository nothing is damaged";
    let found = done(rule, port.verify(instance, VerifyDepth::Structure, &silent).await)?;
    holds(rule, found.damage.is_empty() && found.affected.is_empty(), found)?;
    let rule = "what was never taken cannot be restored";
    let refused = port.restore(instance, &name("first")?, DataGeneration::FIRST, &silent).await;
    holds(rule, matches!(refused, Err(SnapshotsError::NotFound(_))), refused)?;
    same("a restore that failed leaves nothing", &subject.data(DataGeneration::FIRST), &None)?;
    let rule = "what does not exist cannot be taken";
    let refused = port.take(&order(subject, "first")?, STILL, &silent).await;
    holds(rule, refused.is_err(), refused)
}

async fn first<S: SnapshotsSubject>(subject: &S) -> Result<SnapshotInfo, Breach> {
    let (port, instance) = (subject.snapshots(), subject.instance());
    subject.set_data(DataGeneration::FIRST, &content("one")?);
    let order = order(subject, "first")?;
    let rule = "what exists can be taken";
    let taken = done(rule, port.take(&order, STILL, &silent).await)?;
    let expected = SnapshotInfo {
        name: order.name.clone(),
        id: taken.id,
        taken_at: taken.taken_at,
        cause: order.cause,
        image: order.image.clone(),
        generation: order.generation,
        files: taken.files,
        bytes: taken.bytes,
        added_bytes: taken.added_bytes,
        health: SnapshotHealth::Sound,
        offsite: false,
    };
    same("a snapshot says what it was told", &taken, &expected)?;
    holds("it was not taken after now", taken.taken_at <= order.at, taken.taken_at)?;
    holds("it counts its bytes", taken.bytes > 0 && taken.files > 0, &taken)?;
    let rule = "what was taken is listed";
    let list = done(rule, port.list(instance).await)?;
    same(rule, &list.snapshots, &vec![taken.clone()])?;
    holds("a repository takes room", list.stored_bytes > 0, list.stored_bytes)?;
    let rule = "a repository has keys, and they stay";
    let keys = done(rule, port.keys(instance).await)?;
    holds(rule, keys.is_some(), &keys)?;
    subject.set_data(DataGeneration::FIRST, &content("two")?);
    let rule = "a name is taken once";
    same(rule, &done(rule, port.take(&order, STILL, &silent).await)?, &taken)?;
    same("keys stay", &done(rule, port.keys(instance).await)?, &keys)?;
    Ok(taken)
}

async fn while_up<S: SnapshotsSubject>(subject: &S) -> Result<SnapshotInfo, Breach> {
    let port = subject.snapshots();
    let order = order(subject, "second")?;
    let refusing = Counting { refuses: true, ..Counting::default() };
    let refused = port.take(&order, Some(&refusing), &silent).await;
    let rule = "an instance that cannot be held is not taken";
    holds(rule, matches!(refused, Err(SnapshotsError::Quiesce(_))), refused)?;
    same("whoever tried to hold releases", &refusing.released.get(), &1)?;
    let counting = Counting::default();
    let seen = Cell::new(0_u32);
    let progress = |_: JobProgress| seen.set(seen.get() + 1);
    let rule = "an instance that is up can be taken";
    let taken = done(rule, port.take(&order, Some(&counting), &progress).await)?;
    same("it is held once", &counting.held.get(), &1)?;
    same("it is released once", &counting.released.get(), &1)?;
    let rule = "snapshots are listed, the oldest first";
    let list = done(rule, port.list(subject.instance()).await)?;
    let names: Vec<_> = list.snapshots.iter().map(|info| info.name.as_str()).collect();
    same(rule, &names, &vec!["first", "second"])?;
    Ok(taken)
}

async fn back<S: SnapshotsSubject>(
    subject: &S,
    [first, second]: [&SnapshotInfo; 2],
) -> Result<(), Breach> {
    let (port, instance) = (subject.snapshots(), subject.instance());
    for (info, word, into) in [(first, "one", 2), (second, "two", 3)] {
        let into = generation(into);
        let rule = "what was taken comes back";
        done(rule, port.restore(instance, &info.name, into, &silent).await)?;
        let mut expected = content(word)?;
        expected.retain(|path, _| !path.as_str().starts_with("tmp/"));
        same("it comes back as it was, without tmp/", &subject.data(into), &Some(expected))?;
    }
    let rule = "a directory that exists is not written to";
    let before = subject.data(generation(2));
    let refused = port.restore(instance, &second.name, generation(2), &silent).await;
    holds(rule, refused.is_err(), refused)?;
    same(rule, &subject.data(generation(2)), &before)?;
    let live = Some(content("two")?);
    same("what is live is not touched", &subject.data(DataGeneration::FIRST), &live)
}

async fn forgotten<S: SnapshotsSubject>(
    subject: &S,
    first: &SnapshotInfo,
    second: &SnapshotInfo,
) -> Result<(), Breach> {
    let (port, instance) = (subject.snapshots(), subject.instance());
    let rule = "a snapshot can be forgotten, and others that are absent with it";
    let unwanted = BTreeSet::from([first.id, Digest::of(b"absent")]);
    done(rule, port.forget(instance, &unwanted, &silent).await)?;
    let list = done(rule, port.list(instance).await)?;
    same("only the others remain", &list.snapshots, &vec![second.clone()])?;
    let refused = port.restore(instance, &first.name, generation(4), &silent).await;
    let rule = "what was forgotten cannot be restored";
    holds(rule, matches!(refused, Err(SnapshotsError::NotFound(_))), refused)?;
    let rule = "what remains comes back";
    done(rule, port.restore(instance, &second.name, generation(4), &silent).await)?;
    for depth in [VerifyDepth::Structure, VerifyDepth::Data { part: 0, parts: 1 }] {
        let rule = "what remains is sound";
        let found = done(rule, port.verify(instance, depth, &silent).await)?;
        holds(rule, found.damage.is_empty() && found.affected.is_empty(), found)?;
    }
    Ok(())
}

async fn damaged<S: SnapshotsSubject>(subject: &S, second: &SnapshotInfo) -> Result<(), Breach> {
    let (port, instance) = (subject.snapshots(), subject.instance());
    subject.damage(&second.name);
    let rule = "damage is found, and the snapshots that it hits are named";
    let depth = VerifyDepth::Data { part: 0, parts: 1 };
    let found = done(rule, port.verify(instance, depth, &silent).await)?;
    holds(rule, !found.damage.is_empty(), &found)?;
    same(rule, &found.affected, &BTreeSet::from([second.name.clone()]))?;
    let rule = "what is damaged is not restored";
    let live = subject.data(DataGeneration::FIRST);
    let refused = port.restore(instance, &second.name, generation(5), &silent).await;
    holds(rule, matches!(refused, Err(SnapshotsError::Damaged(_))), refused)?;
    same("a restore that failed leaves nothing", &subject.data(generation(5)), &None)?;
    same("what is live is not touched", &subject.data(DataGeneration::FIRST), &live)
}

pub(super) fn silent(_progress: JobProgress) {}

pub(super) fn generation(number: u32) -> DataGeneration {
    DataGeneration::new(number).unwrap_or(DataGeneration::FIRST)
}

pub(super) fn name(text: &str) -> Result<SnapshotName, Breach> {
    done("the suite's names are names", SnapshotName::parse(text))
}

pub(super) fn content(word: &str) -> Result<BTreeMap<StatePath, String>, Breach> {
    let mut content = BTreeMap::new();
    for path in ["openclaw.json", "agents/main/sessions/a.jsonl", "tmp/scratch"] {
        let path = done("the suite's paths are paths", StatePath::parse(path))?;
        let text = format!("{word} in {path}\n").repeat(100);
        content.insert(path, text);
    }
    Ok(content)
}

pub(super) fn order<S: SnapshotsSubject>(subject: &S, text: &str) -> Result<SnapshotOrder, Breach> {
    let image = format!("registry.example/openclaw@sha256:{}", "a".repeat(64));
    Ok(SnapshotOrder {
        instance: subject.instance().clone(),
        data: DataGeneration::FIRST,
        name: name(text)?,
        cause: SnapshotCause::Requested,
        at: subject.now(),
        image: done("the suite's image is one", ImageRef::parse(&image))?,
        generation: Generation(7),
        assignment: b"a spec".to_vec(),
    })
}
