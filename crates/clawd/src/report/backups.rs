//! The part of the board that is about long operations, snapshots and their keys.

use std::collections::BTreeMap;

use claw_core::backup::{BackupReport, SnapshotHealth};
use claw_core::name::InstanceName;
use claw_core::report::{BackupSummary, OperationReport};

use super::{Board, State};
use crate::ports::RepositoryKeys;

/// What is told upwards of instances' data.
#[derive(Debug, Default)]
pub(super) struct Data {
    /// Changes of version under way.
    changes: BTreeMap<InstanceName, OperationReport>,
    /// Jobs on snapshots under way.
    jobs: BTreeMap<InstanceName, OperationReport>,
    /// With the count of changes at which each was set.
    backups: BTreeMap<InstanceName, (u64, BackupReport)>,
    /// Keys that the coordinator does not hold yet.
    keys: BTreeMap<InstanceName, RepositoryKeys>,
    count: u64,
}

impl Data {
    /// Whether an instance is on its way to another version.
    pub(super) fn is_changing(&self, name: &InstanceName) -> bool {
        self.changes.contains_key(name)
    }

    /// The operation that matters most.
    pub(super) fn operation(&self, name: &InstanceName) -> Option<OperationReport> {
        self.changes.get(name).or_else(|| self.jobs.get(name)).cloned()
    }

    pub(super) fn summary(&self, name: &InstanceName) -> BackupSummary {
        self.backups.get(name).map(|(_, report)| summary(report)).unwrap_or_default()
    }

    pub(super) fn forget(&mut self, name: &InstanceName) {
        self.changes.remove(name);
        self.jobs.remove(name);
        // Snapshots and keys outlive it until they are told.
    }
}

impl Board {
    /// Sets the change of version under way; until it has ended, the state that wants it is not settled.
    pub fn change(&self, name: &InstanceName, operation: Option<OperationReport>) {
        self.operate(name, |data| put(&mut data.changes, name, operation));
    }

    /// Sets the job on an instance's snapshots that is under way.
    pub fn operation(&self, name: &InstanceName, operation: Option<OperationReport>) {
        self.operate(name, |data| put(&mut data.jobs, name, operation));
    }

    /// Sets how the snapshots of an instance stand.
    pub fn backups(&self, name: &InstanceName, report: BackupReport) {
        let mut state = self.state.borrow_mut();
        if state.data.backups.get(name).is_some_and(|(_, known)| *known == report) {
            return;
        }
        state.data.count += 1;
        let count = state.data.count;
        state.data.backups.insert(name.clone(), (count, report));
        show(&mut state, name);
        drop(state);
        self.bump();
    }

    /// How the snapshots of instances stand, of those that changed after `count`, oldest change first.
    #[must_use]
    pub fn backups_since(&self, count: u64) -> Vec<(u64, InstanceName, BackupReport)> {
        let state = self.state.borrow();
        let mut changed: Vec<_> = state
            .data
            .backups
            .iter()
            .filter(|(_, (at, _))| *at > count)
            .map(|(name, (at, report))| (*at, name.clone(), report.clone()))
            .collect();
        changed.sort_by_key(|(at, _, _)| *at);
        changed
    }

    /// Gives the keys of a repository to whoever keeps them; told again until [`Self::escrowed`].
    pub fn escrow(&self, name: &InstanceName, keys: RepositoryKeys) {
        self.state.borrow_mut().data.keys.insert(name.clone(), keys);
        self.bump();
    }

    /// Keys that nobody else holds yet.
    #[must_use]
    pub fn unescrowed(&self) -> BTreeMap<InstanceName, RepositoryKeys> {
        self.state.borrow().data.keys.clone()
    }

    /// The coordinator holds the keys of an instance.
    pub fn escrowed(&self, name: &InstanceName) {
        self.state.borrow_mut().data.keys.remove(name);
    }

    fn operate(&self, name: &InstanceName, change: impl FnOnce(&mut Data)) {
        let mut state = self.state.borrow_mut();
        change(&mut state.data);
        let changed = show(&mut state, name);
        drop(state);
        if changed {
            self.bump();
        }
    }
}

fn put(
    operations: &mut BTreeMap<InstanceName, OperationReport>,
    name: &InstanceName,
    operation: Option<OperationReport>,
) {
    match operation {
        Some(operation) => operations.insert(name.clone(), operation),
        None => operations.remove(name),
    };
}

/// Puts what is known into the instance's report, if it has one; whether that changed it.
fn show(state: &mut State, name: &InstanceName) -> bool {
    let (operation, backup) = (state.data.operation(name), state.data.summary(name));
    let changing = state.data.is_changing(name);
    let Some(report) = state.status.instances.get_mut(name) else { return false };
    let changed = report.operation != operation || report.backup != backup;
    report.operation = operation;
    report.backup = backup;
    if changing {
        state.settled.remove(name);
    }
    changed
}

fn summary(report: &BackupReport) -> BackupSummary {
    let sound = report.snapshots.iter().filter(|s| s.health == SnapshotHealth::Sound);
    BackupSummary {
        last_at: sound.map(|snapshot| snapshot.taken_at).max(),
        count: u32::try_from(report.snapshots.len()).unwrap_or(u32::MAX),
        overdue: report.overdue,
        problem: report.problem.clone(),
    }
}
