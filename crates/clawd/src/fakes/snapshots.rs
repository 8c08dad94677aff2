//! Snapshots in memory, of the data that the fake of `Files` holds.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use claw_core::backup::{SnapshotHealth, SnapshotInfo};
use claw_core::data::DataGeneration;
use claw_core::name::{InstanceName, SnapshotName};
use claw_core::spec::Secret;
use claw_core::stamp::Digest;

use super::FakeFiles;
use super::files::FakeData;
use super::mishap::{Mishaps, Told};
use crate::ports::{
    JobProgress, Quiesce, RepositoryKeys, SnapshotList, SnapshotOrder, Snapshots, SnapshotsError,
    Verification, VerifyDepth,
};

/// Directories that no snapshot has, as in the real ones.
const LEFT_OUT: [&str; 2] = ["cache/", "tmp/"];

/// Snapshots in memory. Calls that go wrong by name: `take-snapshot`, `restore-snapshot`,
/// `forget-snapshots` (effects), `list-snapshots`, `verify-snapshots`, `repository-keys` (looks).
#[derive(Debug, Clone)]
pub struct FakeSnapshots {
    files: FakeFiles,
    state: Rc<RefCell<State>>,
    mishaps: Mishaps,
}

#[derive(Debug, Default)]
struct State {
    repositories: BTreeMap<InstanceName, BTreeMap<SnapshotName, Kept>>,
    full: Option<String>,
}

#[derive(Debug, Clone)]
struct Kept {
    info: SnapshotInfo,
    data: FakeData,
    assignment: Vec<u8>,
    damaged: bool,
}

impl FakeSnapshots {
    /// Snapshots of the data of `files`.
    #[must_use]
    pub fn new(files: &FakeFiles, mishaps: Mishaps) -> Self {
        Self { files: files.clone(), state: Rc::default(), mishaps }
    }

    /// What a snapshot holds; none if there is none.
    #[must_use]
    pub fn content(&self, instance: &InstanceName, name: &SnapshotName) -> Option<FakeData> {
        self.kept(instance, name).map(|kept| kept.data)
    }

    /// The spec that a snapshot holds; none if there is none.
    #[must_use]
    pub fn assignment(&self, instance: &InstanceName, name: &SnapshotName) -> Option<Vec<u8>> {
        self.kept(instance, name).map(|kept| kept.assignment)
    }

    /// Something that a snapshot needs is broken from now on.
    pub fn damage(&self, instance: &InstanceName, name: &SnapshotName) {
        let mut state = self.state.borrow_mut();
        let repository = state.repositories.get_mut(instance);
        if let Some(kept) = repository.and_then(|repository| repository.get_mut(name)) {
            kept.damaged = true;
        }
    }

    /// Nothing can be taken or restored from now on, for this reason; with none it can.
    pub fn set_full(&self, problem: Option<&str>) {
        self.state.borrow_mut().full = problem.map(str::to_owned);
    }

    /// Every snapshot of an instance is gone, as when its data was set aside.
    pub fn set_aside(&self, instance: &InstanceName) {
        self.state.borrow_mut().repositories.remove(instance);
    }

    fn kept(&self, instance: &InstanceName, name: &SnapshotName) -> Option<Kept> {
        self.state.borrow().repositories.get(instance)?.get(name).cloned()
    }

    fn keep(&self, order: &SnapshotOrder, kept: Kept) {
        let mut state = self.state.borrow_mut();
        let repository = state.repositories.entry(order.instance.clone()).or_default();
        repository.insert(order.name.clone(), kept);
    }

    fn has_room(&self, doing: &'static str) -> Result<(), SnapshotsError> {
        match &self.state.borrow().full {
            Some(problem) => Err(SnapshotsError::Full { doing, problem: problem.clone() }),
            None => Ok(()),
        }
    }

    /// What is in a directory now, as a snapshot has it.
    fn read(
        &self,
        instance: &InstanceName,
        data: DataGeneration,
    ) -> Result<FakeData, SnapshotsError> {
        let mut content = self.files.data(instance, data).ok_or_else(|| {
            let problem = format!("{instance}/{data} does not exist");
            SnapshotsError::Failed { doing: TAKING, problem }
        })?;
        content.retain(|path, _| !LEFT_OUT.iter().any(|top| path.as_str().starts_with(top)));
        Ok(content)
    }

    async fn read_held<Q: Quiesce>(
        &self,
        order: &SnapshotOrder,
        quiesce: &Q,
    ) -> Result<FakeData, SnapshotsError> {
        let held = quiesce.hold().await;
        let content = held
            .map_err(SnapshotsError::Quiesce)
            .and_then(|()| self.read(&order.instance, order.data));
        let released = quiesce.release().await;
        let content = content?;
        released.map_err(SnapshotsError::Quiesce)?;
        Ok(content)
    }
}

const TAKING: &str = "taking a snapshot";
const RESTORING: &str = "restoring a snapshot";

impl Snapshots for FakeSnapshots {
    async fn take<Q: Quiesce>(
        &self,
        order: &SnapshotOrder,
        quiesce: Option<&Q>,
        progress: &dyn Fn(JobProgress),
    ) -> Result<SnapshotInfo, SnapshotsError> {
        let call = self.mishaps.effect("take-snapshot");
        if !call.may_begin().await {
            return Err(failed(TAKING));
        }
        if let Some(kept) = self.kept(&order.instance, &order.name) {
            return Ok(kept.info);
        }
        self.has_room(TAKING)?;
        let data = match quiesce {
            Some(quiesce) => self.read_held(order, quiesce).await?,
            None => self.read(&order.instance, order.data)?,
        };
        let info = describe(order, &data);
        progress(JobProgress { done_bytes: info.bytes, total_bytes: info.bytes });
        let kept =
            Kept { info: info.clone(), data, assignment: order.assignment.clone(), damaged: false };
        self.keep(order, kept);
        if call.may_end().await { Ok(info) } else { Err(failed(TAKING)) }
    }

    async fn list(&self, instance: &InstanceName) -> Result<SnapshotList, SnapshotsError> {
        if !self.mishaps.look("list-snapshots").may_begin().await {
            return Err(failed("listing snapshots"));
        }
        let state = self.state.borrow();
        let kept = state.repositories.get(instance).into_iter().flat_map(BTreeMap::values);
        let mut snapshots: Vec<_> = kept.map(|kept| kept.info.clone()).collect();
        snapshots.sort_by_key(|info| (info.taken_at, info.id));
        let stored_bytes = snapshots.iter().map(|info| info.added_bytes).sum();
        Ok(SnapshotList { snapshots, stored_bytes, repository: String::new() })
    }

    async fn restore(
        &self,
        instance: &InstanceName,
        snapshot: &SnapshotName,
        into: DataGeneration,
        progress: &dyn Fn(JobProgress),
    ) -> Result<(), SnapshotsError> {
        let call = self.mishaps.effect("restore-snapshot");
        if !call.may_begin().await {
            return Err(failed(RESTORING));
        }
        let kept = self
            .kept(instance, snapshot)
            .ok_or_else(|| SnapshotsError::NotFound(snapshot.clone()))?;
        if kept.damaged {
            return Err(SnapshotsError::Damaged("told to be damaged".to_owned()));
        }
        if self.files.data(instance, into).is_some() {
            let problem = format!("{instance}/{into} exists already");
            return Err(SnapshotsError::Failed { doing: RESTORING, problem });
        }
        self.has_room(RESTORING)?;
        progress(JobProgress { done_bytes: kept.info.bytes, total_bytes: kept.info.bytes });
        self.files.set_data(instance, into, Some(kept.data));
        if call.may_end().await { Ok(()) } else { Err(failed(RESTORING)) }
    }

    async fn forget(
        &self,
        instance: &InstanceName,
        snapshots: &BTreeSet<Digest>,
        progress: &dyn Fn(JobProgress),
    ) -> Result<(), SnapshotsError> {
        let call = self.mishaps.effect("forget-snapshots");
        if !call.may_begin().await {
            return Err(failed("removing snapshots"));
        }
        progress(JobProgress::default());
        if let Some(repository) = self.state.borrow_mut().repositories.get_mut(instance) {
            repository.retain(|_, kept| !snapshots.contains(&kept.info.id));
        }
        if call.may_end().await { Ok(()) } else { Err(failed("removing snapshots")) }
    }

    async fn verify(
        &self,
        instance: &InstanceName,
        _depth: VerifyDepth,
        progress: &dyn Fn(JobProgress),
    ) -> Result<Verification, SnapshotsError> {
        if !self.mishaps.look("verify-snapshots").may_begin().await {
            return Err(failed("verifying snapshots"));
        }
        progress(JobProgress::default());
        let state = self.state.borrow();
        let kept = state.repositories.get(instance).into_iter().flatten();
        let affected: BTreeSet<_> =
            kept.filter(|(_, kept)| kept.damaged).map(|(name, _)| name.clone()).collect();
        let damage = affected.iter().map(|name| format!("snapshot {name} is lost")).collect();
        Ok(Verification { damage, affected })
    }

    async fn keys(
        &self,
        instance: &InstanceName,
    ) -> Result<Option<RepositoryKeys>, SnapshotsError> {
        if !self.mishaps.look("repository-keys").may_begin().await {
            return Err(SnapshotsError::Keys(Box::new(Told)));
        }
        let exists = self.state.borrow().repositories.contains_key(instance);
        Ok(exists.then(|| RepositoryKeys {
            secret: Secret::new(Digest::of(instance.as_str().as_bytes()).to_string()),
            recovery: Secret::new(format!("recovery-of-{instance}")),
        }))
    }
}

fn describe(order: &SnapshotOrder, data: &FakeData) -> SnapshotInfo {
    let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
    let bytes = count(data.values().map(String::len).sum());
    let identity = format!("{}/{}/{}", order.instance, order.name, order.at);
    SnapshotInfo {
        name: order.name.clone(),
        id: Digest::of(identity.as_bytes()),
        taken_at: order.at,
        cause: order.cause,
        image: order.image.clone(),
        generation: order.generation,
        files: count(data.len()),
        bytes,
        added_bytes: bytes,
        health: SnapshotHealth::Sound,
        offsite: false,
    }
}

fn failed(doing: &'static str) -> SnapshotsError {
    SnapshotsError::Failed { doing, problem: Told.to_string() }
}
