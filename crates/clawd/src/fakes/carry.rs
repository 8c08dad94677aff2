//! Repositories away from the machine: storages in memory, which machines can share.
//!
//! Where to start: [`FakeStorage::offer`], then [`FakeSnapshots::use_storage`] on every machine that
//! reaches it.

mod pipes;
mod wire;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use claw_core::data::DataGeneration;
use claw_core::name::{InstanceName, SnapshotName};
use claw_core::offsite::OffsiteStorage;
use claw_core::stamp::Digest;

use super::FakeSnapshots;
use super::mishap::Told;
use super::snapshots::{Kept, Origin, Repository, failed};
use crate::ports::{
    Carried, JobProgress, Offsite, OffsitePlace, RepositoryKeys, SnapshotsError, Surplus,
};

const OUT: &str = "copying snapshots off-site";
const IN: &str = "fetching snapshots";
const RESTORING: &str = "restoring a snapshot from off-site";

/// Buckets in memory. Clones are the same ones.
#[derive(Debug, Clone, Default)]
pub struct FakeStorage {
    state: Rc<RefCell<Buckets>>,
}

#[derive(Debug, Default)]
struct Buckets {
    /// By endpoint and name.
    buckets: BTreeMap<(String, String), Bucket>,
    unreachable: bool,
}

#[derive(Debug)]
struct Bucket {
    /// Name and secret of the key that opens it.
    key: [String; 2],
    copies: BTreeMap<String, Repository>,
}

impl FakeStorage {
    /// Makes a bucket that opens with the key named here; one that is there has this key from now on.
    pub fn offer(&self, storage: &OffsiteStorage) {
        let key = key(storage);
        let mut state = self.state.borrow_mut();
        let bucket = state.buckets.entry(place(storage));
        bucket
            .and_modify(|bucket| bucket.key = key.clone())
            .or_insert_with(|| Bucket { key, copies: BTreeMap::new() });
    }

    /// From now on nobody reaches it, or everybody does again.
    pub fn set_reach(&self, reach: Reach) {
        self.state.borrow_mut().unreachable = reach == Reach::None;
    }

    /// Snapshots in the copy at a path; none when there is no copy.
    #[must_use]
    pub fn copied(&self, storage: &OffsiteStorage, path: &str) -> Option<BTreeSet<SnapshotName>> {
        let state = self.state.borrow();
        let copy = state.buckets.get(&place(storage))?.copies.get(path)?;
        Some(copy.snapshots.keys().cloned().collect())
    }

    /// Paths of every copy in a bucket.
    #[must_use]
    pub fn paths(&self, storage: &OffsiteStorage) -> Vec<String> {
        let state = self.state.borrow();
        let bucket = state.buckets.get(&place(storage));
        bucket.map(|bucket| bucket.copies.keys().cloned().collect()).unwrap_or_default()
    }

    /// Does something in a bucket, as whoever has this key.
    fn within<T>(
        &self,
        doing: &'static str,
        storage: &OffsiteStorage,
        work: impl FnOnce(&mut BTreeMap<String, Repository>) -> Result<T, SnapshotsError>,
    ) -> Result<T, SnapshotsError> {
        let refuse = |problem: String| Err(SnapshotsError::Failed { doing, problem });
        let mut state = self.state.borrow_mut();
        if state.unreachable {
            return refuse(format!("{} cannot be reached", storage.endpoint));
        }
        match state.buckets.get_mut(&place(storage)) {
            None => refuse(format!("there is no bucket {}", storage.bucket)),
            Some(bucket) if bucket.key != key(storage) => {
                refuse("the storage refused the credentials (InvalidAccessKeyId)".to_owned())
            }
            Some(bucket) => work(&mut bucket.copies),
        }
    }
}

/// Who reaches a storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Nobody.
    None,
    /// Everybody who has its key.
    All,
}

impl FakeSnapshots {
    /// The machine reaches these buckets from now on, and no others.
    pub fn use_storage(&self, storage: &FakeStorage) {
        self.state.borrow_mut().storage = storage.clone();
    }

    /// The buckets that the machine reaches.
    #[must_use]
    pub fn storage(&self) -> FakeStorage {
        self.state.borrow().storage.clone()
    }

    /// Takes what another has, as far as it is the same repository and opens.
    fn complete(
        &self,
        doing: &'static str,
        (instance, keys): (&InstanceName, &RepositoryKeys),
        (theirs, opens): (&Repository, Digest),
    ) -> Result<Carried, SnapshotsError> {
        self.has_room(doing)?;
        let mut state = self.state.borrow_mut();
        if state.repositories.get(instance).is_some_and(|ours| ours.id != theirs.id) {
            return Err(SnapshotsError::OtherRepository(format!("repo/{instance}")));
        }
        if self::opens(keys) != opens {
            let problem = "no key of it belongs to the given secret".to_owned();
            return Err(SnapshotsError::Failed { doing, problem });
        }
        let ours = state.repositories.entry(instance.clone()).or_insert_with(|| Repository {
            snapshots: BTreeMap::new(),
            origin: Origin::Elsewhere,
            keys: keys.clone(),
            ..theirs.clone()
        });
        Ok(copy_missing(theirs, ours))
    }
}

impl Offsite for FakeSnapshots {
    async fn copy_out(
        &self,
        instance: &InstanceName,
        place: &OffsitePlace,
        surplus: Surplus,
        progress: &dyn Fn(JobProgress),
    ) -> Result<Carried, SnapshotsError> {
        let call = self.mishaps.effect("copy-out");
        if !call.may_begin().await {
            return Err(failed(OUT));
        }
        let Some(ours) = self.repository(instance) else { return Err(no_repository(OUT)) };
        let carried = self.storage().within(OUT, &place.storage, |copies| {
            let copy = copies
                .entry(place.path.clone())
                .or_insert_with(|| Repository { snapshots: BTreeMap::new(), ..ours.clone() });
            if copy.id != ours.id {
                return Err(SnapshotsError::OtherRepository(location(place)));
            }
            let mut carried = copy_missing(&ours, copy);
            if surplus == Surplus::Removed {
                let before = copy.snapshots.len();
                copy.snapshots.retain(|name, _| ours.snapshots.contains_key(name));
                carried.removed = count(before - copy.snapshots.len());
            }
            Ok(carried)
        })?;
        progress(JobProgress { done_bytes: carried.bytes, total_bytes: carried.bytes });
        if call.may_end().await { Ok(carried) } else { Err(failed(OUT)) }
    }

    async fn copy_in(
        &self,
        instance: &InstanceName,
        place: &OffsitePlace,
        keys: &RepositoryKeys,
        progress: &dyn Fn(JobProgress),
    ) -> Result<Carried, SnapshotsError> {
        let call = self.mishaps.effect("copy-in");
        if !call.may_begin().await {
            return Err(failed(IN));
        }
        let theirs = self.storage().within(IN, &place.storage, |copies| {
            copies.get(&place.path).cloned().ok_or_else(|| no_repository(IN))
        })?;
        let opens = opens(&theirs.keys);
        let carried = self.complete(IN, (instance, keys), (&theirs, opens))?;
        progress(JobProgress { done_bytes: carried.bytes, total_bytes: carried.bytes });
        if call.may_end().await { Ok(carried) } else { Err(failed(IN)) }
    }

    async fn restore_from(
        &self,
        instance: &InstanceName,
        place: &OffsitePlace,
        snapshot: &SnapshotName,
        into: DataGeneration,
        progress: &dyn Fn(JobProgress),
    ) -> Result<(), SnapshotsError> {
        let call = self.mishaps.effect("restore-from");
        if !call.may_begin().await {
            return Err(failed(RESTORING));
        }
        if self.repository(instance).is_none() {
            return Err(SnapshotsError::Keys(Box::new(Told)));
        }
        let kept = self.storage().within(RESTORING, &place.storage, |copies| {
            let copy = copies.get(&place.path).ok_or_else(|| no_repository(RESTORING))?;
            let kept = copy.snapshots.get(snapshot).cloned();
            kept.ok_or_else(|| SnapshotsError::NotFound(snapshot.clone()))
        })?;
        self.bring_back(instance, kept, into, progress)?;
        if call.may_end().await { Ok(()) } else { Err(failed(RESTORING)) }
    }
}

/// Copies the snapshots that are missing. A damaged one stays damaged where it is, and its copy was made
/// before.
fn copy_missing(from: &Repository, to: &mut Repository) -> Carried {
    let mut carried = Carried::default();
    for (name, kept) in &from.snapshots {
        if !to.snapshots.contains_key(name) {
            carried.files += 1;
            carried.bytes += kept.info.bytes;
            to.snapshots.insert(name.clone(), Kept::clone(kept));
        }
    }
    carried
}

fn place(storage: &OffsiteStorage) -> (String, String) {
    (storage.endpoint.clone(), storage.bucket.clone())
}

fn key(storage: &OffsiteStorage) -> [String; 2] {
    [&storage.access_key, &storage.secret_key].map(|part| part.reveal().to_owned())
}

/// What is known of keys without having them.
fn opens(keys: &RepositoryKeys) -> Digest {
    Digest::of(keys.secret.reveal().as_bytes())
}

fn location(place: &OffsitePlace) -> String {
    format!("{}/{}/{}", place.storage.endpoint, place.storage.bucket, place.path)
}

fn no_repository(doing: &'static str) -> SnapshotsError {
    SnapshotsError::Failed { doing, problem: "there is no repository".to_owned() }
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}
