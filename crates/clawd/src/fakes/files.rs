//! Data directories, delivered files, secrets.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::rc::Rc;

use claw_core::name::{InstanceName, StatePath};
use claw_core::spec::Secret;
use claw_core::stamp::Digest;
use claw_core::time::Timestamp;

use super::mishap::{Mishaps, Told};
use crate::ports::{Files, FilesError, FilesView, Mounts};

/// Files in memory.
#[derive(Debug, Clone)]
pub struct FakeFiles {
    state: Rc<RefCell<State>>,
    mishaps: Mishaps,
}

#[derive(Debug, Default)]
struct State {
    data: BTreeMap<InstanceName, BTreeMap<StatePath, String>>,
    secrets: BTreeMap<InstanceName, Secret>,
    aside: Vec<InstanceName>,
}

impl FakeFiles {
    pub(super) fn new(mishaps: Mishaps) -> Self {
        Self { state: Rc::default(), mishaps }
    }

    /// What was delivered to an instance.
    #[must_use]
    pub fn delivered(&self, name: &InstanceName) -> BTreeMap<StatePath, String> {
        self.state.borrow().data.get(name).cloned().unwrap_or_default()
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
    fn mounts(&self, instance: &InstanceName) -> Mounts {
        Mounts {
            data: PathBuf::from(format!("/fake/data/{instance}")),
            secrets: PathBuf::from(format!("/fake/run/{instance}/.env")),
        }
    }

    async fn view(
        &self,
        instance: &InstanceName,
        delivered: &BTreeSet<StatePath>,
    ) -> Result<FilesView, FilesError> {
        if !self.mishaps.look("files-view").may_begin().await {
            return Err(failed("viewing"));
        }
        let state = self.state.borrow();
        let data = state.data.get(instance);
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
        files: &BTreeMap<StatePath, String>,
    ) -> Result<(), FilesError> {
        self.change("deliver", |state| {
            state.data.entry(instance.clone()).or_default().extend(files.clone());
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
            if state.data.remove(instance).is_some() {
                state.aside.push(instance.clone());
            }
        })
        .await
    }
}
