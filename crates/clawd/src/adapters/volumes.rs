//! Trees of files: an instance's data directories are measured, copied and removed here.
//!
//! The data belongs to containers, whose programs may change anything at any moment and plant whatever
//! links they like. Everything below a data directory is opened relative to the open directory with
//! `openat2(2)`, which follows no link and leads nowhere out, and is looked at again once it is open.
//!
//! Beside a data directory lie, in a directory that is root's alone:
//!
//! | name | what |
//! | --- | --- |
//! | `gen-N` | the data |
//! | `gen-N.copying` | the copy is not complete; what has been written so far, see `manifest` |
//! | `gen-N.copied` | the copy is complete; the same, so that repeating the copy takes a walk only |
//! | `gen-N.removing` | what is left of a removal that was interrupted |
//!
//! What it deliberately does not do: decide when something is copied or removed, or make the first
//! directory, which [`files`](super::files) does. Where to start: [`DirectoryVolumes`], then `copy`.

mod attributes;
mod contents;
mod copy;
mod job;
mod manifest;
mod measure;
mod place;
mod removal;
mod tree;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use claw_core::data::DataGeneration;
use claw_core::name::InstanceName;
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::files::Owner;
use crate::ports::{Copied, JobProgress, Measure, VolumeError, Volumes, Writers};
use place::Place;

/// Data directories on the host's file systems. Jobs of one instance wait for each other, also for one
/// that nobody waits for any more.
#[derive(Debug, Clone)]
pub struct DirectoryVolumes {
    data: PathBuf,
    owner: Owner,
    busy: Arc<Mutex<BTreeMap<InstanceName, Arc<Mutex<()>>>>>,
}

impl DirectoryVolumes {
    /// Works below the agent's data, `/var/lib/clawd`; data directories belong to `owner`.
    #[must_use]
    pub fn new(data: PathBuf, owner: Owner) -> Self {
        Self { data, owner, busy: Arc::default() }
    }

    fn place(&self, instance: &InstanceName) -> Place {
        Place::new(self.data.join("instances").join(instance.as_str()))
    }

    async fn turn_of(&self, instance: &InstanceName) -> Arc<Mutex<()>> {
        let mut busy = self.busy.lock().await;
        busy.retain(|_, turn| Arc::strong_count(turn) > 1);
        busy.entry(instance.clone()).or_default().clone()
    }

    /// Waits until no other job works on the instance.
    async fn turn(&self, instance: &InstanceName) -> OwnedMutexGuard<()> {
        self.turn_of(instance).await.lock_owned().await
    }
}

impl Volumes for DirectoryVolumes {
    async fn generations(
        &self,
        instance: &InstanceName,
    ) -> Result<BTreeSet<DataGeneration>, VolumeError> {
        let place = self.place(instance);
        // Who holds it may be removing something right now; then that is no leftover.
        let turn = self.turn_of(instance).await.try_lock_owned();
        job::run("listing", place.path().to_owned(), &|_| {}, move |watch| {
            if turn.is_ok() {
                place.sweep(watch)?;
            }
            place.generations()
        })
        .await
    }

    async fn measure(
        &self,
        instance: &InstanceName,
        data: DataGeneration,
    ) -> Result<Measure, VolumeError> {
        let place = self.place(instance);
        job::run("measuring", place.of(data), &|_| {}, move |watch| {
            measure::measure(&place.of(data), watch)
        })
        .await
    }

    async fn copy(
        &self,
        instance: &InstanceName,
        from: DataGeneration,
        into: DataGeneration,
        writers: Writers,
        progress: &dyn Fn(JobProgress),
    ) -> Result<Copied, VolumeError> {
        let (place, owner) = (self.place(instance), self.owner);
        let turn = self.turn(instance).await;
        job::run("copying", place.of(from), progress, move |watch| {
            let _mine = turn;
            place.sweep(watch)?;
            place.copy([from, into], owner, writers, watch)
        })
        .await
    }

    async fn remove(
        &self,
        instance: &InstanceName,
        data: DataGeneration,
    ) -> Result<(), VolumeError> {
        let place = self.place(instance);
        let turn = self.turn(instance).await;
        job::run("removing", place.of(data), &|_| {}, move |watch| {
            let _mine = turn;
            place.sweep(watch)?;
            place.remove(data, watch)
        })
        .await
    }
}
