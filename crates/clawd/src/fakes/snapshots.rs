//! Snapshots in memory, of the data that the fake of `Files` holds.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

use claw_core::backup::{SnapshotHealth, SnapshotInfo};
use claw_core::data::DataGeneration;
use claw_core::name::{InstanceName, SnapshotName};
use claw_core::spec::Secret;
use claw_core::stamp::Digest;

use super::FakeFiles;
use super::carry::FakeStorage;
use super::files::FakeData;
use super::mishap::{Mishaps, Told};
use crate::ports::{
    JobProgress, Quiesce, RepositoryKeys, SnapshotList, SnapshotOrder, Snapshots, SnapshotsError,
    Verification, VerifyDepth,
};

/// Directories that no snapshot has, as in the real ones.
const LEFT_OUT: [&str; 2] = ["cache/", "tmp/"];

/// Snapshots in memory. Calls that go wrong by name: `take-snapshot`, `restore-snapshot`,
/// `forget-snapshots` (effects), `list-snapshots`, `verify-snapshots`, `repository-keys` (looks). What is
/// carried away and here is in `carry`.
#[derive(Debug, Clone)]
pub struct FakeSnapshots {
    pub(super) files: FakeFiles,
    pub(super) state: Rc<RefCell<State>>,
    pub(super) mishaps: Mishaps,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) repositories: BTreeMap<InstanceName, Repository>,
    pub(super) storage: FakeStorage,
    full: Option<String>,
}

/// A repository, here or in a storage.
#[derive(Debug, Clone)]
pub(super) struct Repository {
    pub(super) id: Digest,
    pub(super) keys: RepositoryKeys,
    pub(super) snapshots: BTreeMap<SnapshotName, Kept>,
    pub(super) origin: Origin,
}

/// Where a repository came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// From here, or it was used here.
    Here,
    /// From elsewhere, and it was never used here.
    Elsewhere,
}

#[derive(Debug, Clone)]
pub(super) struct Kept {
    pub(super) info: SnapshotInfo,
    pub(super) data: FakeData,
    pub(super) assignment: Vec<u8>,
    pub(super) damaged: bool,
}

impl Repository {
    /// A new one, unlike any other of this process.
    fn new(instance: &InstanceName) -> Self {
        static MADE: AtomicU64 = AtomicU64::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let id = Digest::of(format!("{instance}/{number}").as_bytes());
        let keys = RepositoryKeys {
            secret: Secret::new(Digest::of(id.as_bytes()).to_string()),
            recovery: Secret::new(format!("recovery-of-{instance}-{number}")),
        };
        Self { id, keys, snapshots: BTreeMap::new(), origin: Origin::Here }
    }

    /// What it is called in a list and in a storage.
    fn short_id(&self) -> String {
        self.id.to_string().chars().take(16).collect()
    }
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
        if let Some(kept) = repository.and_then(|repository| repository.snapshots.get_mut(name)) {
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

    pub(super) fn kept(&self, instance: &InstanceName, name: &SnapshotName) -> Option<Kept> {
        self.state.borrow().repositories.get(instance)?.snapshots.get(name).cloned()
    }

    pub(super) fn keep(&self, order: &SnapshotOrder, kept: Kept) {
        let mut state = self.state.borrow_mut();
        let repository = state.repositories.entry(order.instance.clone());
        let repository = repository.or_insert_with_key(Repository::new);
        repository.snapshots.insert(order.name.clone(), kept);
        repository.origin = Origin::Here;
    }

    /// A copy of an instance's repository as it is.
    pub(super) fn repository(&self, instance: &InstanceName) -> Option<Repository> {
        self.state.borrow().repositories.get(instance).cloned()
    }

    pub(super) fn has_room(&self, doing: &'static str) -> Result<(), SnapshotsError> {
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

    /// Makes a directory of what a snapshot holds.
    pub(super) fn bring_back(
        &self,
        instance: &InstanceName,
        kept: Kept,
        into: DataGeneration,
        progress: &dyn Fn(JobProgress),
    ) -> Result<(), SnapshotsError> {
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
        Ok(())
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
pub(super) const RESTORING: &str = "restoring a snapshot";

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
            self.keep(order, kept.clone());
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
        let mut state = self.state.borrow_mut();
        let Some(repository) = state.repositories.get_mut(instance) else {
            return Ok(SnapshotList::default());
        };
        repository.origin = Origin::Here;
        let kept = repository.snapshots.values();
        let mut snapshots: Vec<_> = kept.map(|kept| kept.info.clone()).collect();
        snapshots.sort_by_key(|info| (info.taken_at, info.id));
        let stored_bytes = snapshots.iter().map(|info| info.added_bytes).sum();
        Ok(SnapshotList { snapshots, stored_bytes, repository: repository.short_id() })
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
        self.bring_back(instance, kept, into, progress)?;
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
            repository.snapshots.retain(|_, kept| !snapshots.contains(&kept.info.id));
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
        let kept = state.repositories.get(instance).into_iter().flat_map(|all| &all.snapshots);
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
        Ok(self.repository(instance).map(|repository| repository.keys))
    }
}

pub(super) fn describe(order: &SnapshotOrder, data: &FakeData) -> SnapshotInfo {
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

pub(super) fn failed(doing: &'static str) -> SnapshotsError {
    SnapshotsError::Failed { doing, problem: Told.to_string() }
}
