//! Data directories, delivered files, secrets.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::rc::Rc;

use claw_core::data::DataGeneration;
use claw_core::name::{InstanceName, StatePath};
use claw_core::spec::Secret;
use claw_core::stamp::Digest;
use claw_core::time::Timestamp;

use super::mishap::{Mishaps, Told};
use crate::ports::{Files, FilesError, FilesView, Mounts};

/// What a data directory holds.
pub type FakeData = BTreeMap<StatePath, String>;

/// Files in memory.
#[derive(Debug, Clone)]
pub struct FakeFiles {
    state: Rc<RefCell<State>>,
    mishaps: Mishaps,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) data: BTreeMap<(InstanceName, DataGeneration), FakeData>,
    /// Those whose copy is not complete.
    pub(super) unfinished: BTreeSet<(InstanceName, DataGeneration)>,
    secrets: BTreeMap<InstanceName, Secret>,
    aside: Vec<InstanceName>,
}

impl FakeFiles {
    pub(super) fn new(mishaps: Mishaps) -> Self {
        Self { state: Rc::default(), mishaps }
    }

    pub(super) const fn state(&self) -> &Rc<RefCell<State>> {
        &self.state
    }

    /// What the newest of an instance's data directories holds.
    #[must_use]
    pub fn delivered(&self, name: &InstanceName) -> FakeData {
        let state = self.state.borrow();
        let mut own = state.data.iter().filter(|((instance, _), _)| instance == name);
        own.next_back().map(|(_, data)| data.clone()).unwrap_or_default()
    }

    /// What a data directory holds, be it complete or not; none if there is none.
    #[must_use]
    pub fn data(&self, name: &InstanceName, data: DataGeneration) -> Option<FakeData> {
        self.state.borrow().data.get(&(name.clone(), data)).cloned()
    }

    /// Makes a data directory hold exactly this, complete; with none it is gone.
    pub fn set_data(&self, name: &InstanceName, data: DataGeneration, content: Option<FakeData>) {
        let key = (name.clone(), data);
        let mut state = self.state.borrow_mut();
        state.unfinished.remove(&key);
        match content {
            Some(content) => state.data.insert(key, content),
            None => state.data.remove(&key),
        };
    }

    /// A gateway writes a file; the directory comes into being with it.
    pub fn write(&self, name: &InstanceName, data: DataGeneration, path: &StatePath, text: &str) {
        let mut state = self.state.borrow_mut();
        let content = state.data.entry((name.clone(), data)).or_default();
        content.insert(path.clone(), text.to_owned());
    }

    /// The secrets file of an instance.
    #[must_use]
    pub fn secrets(&self, name: &InstanceName) -> Option<Secret> {
        self.state.borrow().secrets.get(name).cloned()
    }

    /// Whose data was set aside, in order.
    #[must_use]
    pub fn set_aside_so_far(&self) -> Vec<InstanceName> {
        self.state.borrow().aside.clone()
    }

    /// Everything on tmpfs is gone.
    pub fn lose_tmpfs(&self) {
        self.state.borrow_mut().secrets.clear();
    }

    async fn change(
        &self,
        name: &'static str,
        effect: impl FnOnce(&mut State),
    ) -> Result<(), FilesError> {
        let call = self.mishaps.effect(name);
        if !call.may_begin().await {
            return Err(failed(name));
        }
        effect(&mut self.state.borrow_mut());
        if call.may_end().await { Ok(()) } else { Err(failed(name)) }
    }
}

fn failed(doing: &'static str) -> FilesError {
    FilesError { doing, path: PathBuf::from("/fake"), source: io::Error::other(Told) }
}

impl Files for FakeFiles {
    fn mounts(&self, instance: &InstanceName, data: DataGeneration) -> Mounts {
        Mounts {
            data: PathBuf::from(format!("/fake/data/{instance}/{data}")),
            secrets: PathBuf::from(format!("/fake/run/{instance}/.env")),
        }
    }

    async fn view(
        &self,
        instance: &InstanceName,
        data: DataGeneration,
        delivered: &BTreeSet<StatePath>,
    ) -> Result<FilesView, FilesError> {
        if !self.mishaps.look("files-view").may_begin().await {
            return Err(failed("viewing"));
        }
        let state = self.state.borrow();
        let data = state.data.get(&(instance.clone(), data));
        Ok(FilesView {
            data_present: data.is_some(),
            files_present: data
                .is_some_and(|data| delivered.iter().all(|path| data.contains_key(path))),
            secrets: state.secrets.get(instance).map(|text| Digest::of(text.reveal().as_bytes())),
        })
    }

    async fn deliver(
        &self,
        instance: &InstanceName,
        data: DataGeneration,
        files: &BTreeMap<StatePath, String>,
    ) -> Result<(), FilesError> {
        self.change("deliver", |state| {
            state.data.entry((instance.clone(), data)).or_default().extend(files.clone());
        })
        .await
    }

    async fn write_secrets(
        &self,
        instance: &InstanceName,
        text: &Secret,
    ) -> Result<(), FilesError> {
        self.change("write-secrets", |state| {
            state.secrets.insert(instance.clone(), text.clone());
        })
        .await
    }

    async fn remove_secrets(&self, instance: &InstanceName) -> Result<(), FilesError> {
        self.change("remove-secrets", |state| {
            state.secrets.remove(instance);
        })
        .await
    }

    async fn set_aside(&self, instance: &InstanceName, _at: Timestamp) -> Result<(), FilesError> {
        self.change("set-aside", |state| {
            let before = state.data.len();
            state.data.retain(|(name, _), _| name != instance);
            state.unfinished.retain(|(name, _)| name != instance);
            if state.data.len() < before {
                state.aside.push(instance.clone());
            }
        })
        .await
    }
}
