//! Repositories and snapshots away from the host, and to it.

use claw_core::backup::SnapshotInfo;
use claw_core::data::DataGeneration;
use claw_core::name::{InstanceName, SnapshotName};

use super::SnapshotWorker;
use crate::ports::{
    Carried, JobProgress, Offsite, OffsitePlace, Pipe, RepositoryKeys, SnapshotOrder,
    SnapshotsError, Surplus, Transfers,
};

fn not_yet(doing: &'static str) -> SnapshotsError {
    SnapshotsError::Failed { doing, problem: "this agent cannot do that yet".to_owned() }
}

impl Offsite for SnapshotWorker {
    async fn copy_out(
        &self,
        _instance: &InstanceName,
        _place: &OffsitePlace,
        _surplus: Surplus,
        _progress: &dyn Fn(JobProgress),
    ) -> Result<Carried, SnapshotsError> {
        Err(not_yet("copying snapshots off-site"))
    }

    async fn copy_in(
        &self,
        _instance: &InstanceName,
        _place: &OffsitePlace,
        _keys: &RepositoryKeys,
        _progress: &dyn Fn(JobProgress),
    ) -> Result<Carried, SnapshotsError> {
        Err(not_yet("fetching snapshots"))
    }

    async fn restore_from(
        &self,
        _instance: &InstanceName,
        _place: &OffsitePlace,
        _snapshot: &SnapshotName,
        _into: DataGeneration,
        _progress: &dyn Fn(JobProgress),
    ) -> Result<(), SnapshotsError> {
        Err(not_yet("restoring a snapshot from off-site"))
    }
}

impl Transfers for SnapshotWorker {
    async fn export(
        &self,
        _instance: &InstanceName,
        _snapshot: &SnapshotName,
        _pipe: Pipe,
        _progress: &dyn Fn(JobProgress),
    ) -> Result<(), SnapshotsError> {
        Err(not_yet("exporting a snapshot"))
    }

    async fn import(
        &self,
        _order: &SnapshotOrder,
        _pipe: Pipe,
        _progress: &dyn Fn(JobProgress),
    ) -> Result<SnapshotInfo, SnapshotsError> {
        Err(not_yet("importing an archive"))
    }

    async fn send(
        &self,
        _instance: &InstanceName,
        _pipe: Pipe,
        _progress: &dyn Fn(JobProgress),
    ) -> Result<Carried, SnapshotsError> {
        Err(not_yet("sending a repository"))
    }

    async fn receive(
        &self,
        _instance: &InstanceName,
        _keys: &RepositoryKeys,
        _pipe: Pipe,
        _progress: &dyn Fn(JobProgress),
    ) -> Result<(), SnapshotsError> {
        Err(not_yet("receiving a repository"))
    }

    async fn discard(&self, _instance: &InstanceName) -> Result<(), SnapshotsError> {
        Err(not_yet("removing a repository that came from elsewhere"))
    }
}
