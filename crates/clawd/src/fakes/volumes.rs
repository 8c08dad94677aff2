//! Copies of data directories, on the same data as the fake of `Files`.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;

use claw_core::data::DataGeneration;
use claw_core::name::InstanceName;

use super::FakeFiles;
use super::files::{FakeData, State};
use super::mishap::{Mishaps, Told};
use crate::ports::{Copied, JobProgress, Measure, VolumeError, Volumes, Writers};

/// Copies in memory.
#[derive(Debug, Clone)]
pub struct FakeVolumes {
    files: Rc<RefCell<State>>,
    room: Rc<RefCell<Room>>,
    mishaps: Mishaps,
}

#[derive(Debug)]
struct Room {
    free: u64,
    total: u64,
    weight: u64,
}

impl FakeVolumes {
    /// Copies on the data of `files`.
    #[must_use]
    pub fn new(files: &FakeFiles, mishaps: Mishaps) -> Self {
        let room = Room { free: 50 << 30, total: 100 << 30, weight: 1 };
        Self { files: files.state().clone(), room: Rc::new(RefCell::new(room)), mishaps }
    }

    /// So much may still be written, of so much in all.
    pub fn set_room(&self, free_bytes: u64, total_bytes: u64) {
        let mut room = self.room.borrow_mut();
        (room.free, room.total) = (free_bytes, total_bytes);
    }

    /// Every character counts as so many bytes from now on.
    pub fn set_weight(&self, bytes: u64) {
        self.room.borrow_mut().weight = bytes;
    }

    fn bytes(&self, data: &FakeData) -> u64 {
        let characters = data.values().map(String::len).sum::<usize>();
        u64::try_from(characters).unwrap_or(u64::MAX).saturating_mul(self.room.borrow().weight)
    }

    fn forget(&self, instance: &InstanceName, data: DataGeneration) {
        let key = (instance.clone(), data);
        let mut state = self.files.borrow_mut();
        state.data.remove(&key);
        state.unfinished.remove(&key);
    }

    fn mirror(
        &self,
        instance: &InstanceName,
        [from, into]: [DataGeneration; 2],
        writers: Writers,
    ) -> Result<Copied, VolumeError> {
        let mut state = self.files.borrow_mut();
        let [from, into] = [from, into].map(|data| (instance.clone(), data));
        let Some(mut wanted) = state.data.get(&from).cloned() else {
            return Err(VolumeError::Absent(path(&from.0, from.1)));
        };
        wanted.retain(|path, _| !path.as_str().starts_with("tmp/"));
        let there = state.data.get(&into).cloned().unwrap_or_default();
        let mut missing = wanted.clone();
        missing.retain(|path, text| there.get(path) != Some(text));
        state.unfinished.insert(into.clone());
        let bytes = self.bytes(&missing);
        if bytes > self.room.borrow().free {
            let source = io::Error::from(io::ErrorKind::StorageFull);
            return Err(VolumeError::Full { path: path(&into.0, into.1), source });
        }
        if writers == Writers::Nobody {
            state.unfinished.remove(&into);
        }
        state.data.insert(into, wanted);
        let files = u64::try_from(missing.len()).unwrap_or(u64::MAX);
        Ok(Copied { files, bytes, shared: false })
    }
}

fn path(instance: &InstanceName, data: DataGeneration) -> PathBuf {
    PathBuf::from(format!("/fake/data/{instance}/{data}"))
}

fn failed(doing: &'static str, instance: &InstanceName, data: DataGeneration) -> VolumeError {
    VolumeError::Io { doing, path: path(instance, data), source: io::Error::other(Told) }
}

impl Volumes for FakeVolumes {
    async fn generations(
        &self,
        instance: &InstanceName,
    ) -> Result<BTreeSet<DataGeneration>, VolumeError> {
        if !self.mishaps.look("generations").may_begin().await {
            return Err(failed("listing", instance, DataGeneration::FIRST));
        }
        let state = self.files.borrow();
        let own = state.data.keys().filter(|key| key.0 == *instance);
        Ok(own.filter(|key| !state.unfinished.contains(key)).map(|key| key.1).collect())
    }

    async fn measure(
        &self,
        instance: &InstanceName,
        data: DataGeneration,
    ) -> Result<Measure, VolumeError> {
        if !self.mishaps.look("measure").may_begin().await {
            return Err(failed("measuring", instance, data));
        }
        let state = self.files.borrow();
        let content = state.data.get(&(instance.clone(), data));
        let room = self.room.borrow();
        Ok(Measure {
            bytes: content.map_or(0, |content| self.bytes(content)),
            entries: content.map_or(0, |content| u64::try_from(content.len()).unwrap_or(u64::MAX)),
            free_bytes: room.free,
            total_bytes: room.total,
        })
    }

    async fn copy(
        &self,
        instance: &InstanceName,
        from: DataGeneration,
        into: DataGeneration,
        writers: Writers,
        progress: &dyn Fn(JobProgress),
    ) -> Result<Copied, VolumeError> {
        let call = self.mishaps.effect("copy-data");
        if !call.may_begin().await {
            return Err(failed("copying", instance, from));
        }
        let copied = self.mirror(instance, [from, into], writers)?;
        progress(JobProgress { done_bytes: copied.bytes, total_bytes: copied.bytes });
        if call.may_end().await { Ok(copied) } else { Err(failed("copying", instance, from)) }
    }

    async fn remove(
        &self,
        instance: &InstanceName,
        data: DataGeneration,
    ) -> Result<(), VolumeError> {
        let call = self.mishaps.effect("remove-data");
        if !call.may_begin().await {
            return Err(failed("removing", instance, data));
        }
        self.forget(instance, data);
        if call.may_end().await { Ok(()) } else { Err(failed("removing", instance, data)) }
    }
}
