//! Repositories and snapshots on their way from the host, and to it.

use claw_core::backup::SnapshotInfo;
use claw_core::data::DataGeneration;
use claw_core::name::{InstanceName, SnapshotName};
use claw_core::offsite::BucketAddressing;

use super::arrivals::{self, DiscardError};
use super::keys::{self, Keys, KeysError, Missing};
use super::{NOBODY, SnapshotWorker, info, take, unexpected};
use crate::logging::chain;
use crate::ports::{
    Carried, JobProgress, Offsite, OffsitePlace, Parcel, Pipe, PipeError, RepositoryKeys,
    SnapshotList, SnapshotOrder, SnapshotsError, Surplus, Transfers,
};
use crate::snap_worker::protocol::{self, Addressing, Outcome, Place, Private, Task};

const DISCARDING: &str = "removing a repository that came from elsewhere";

impl Offsite for SnapshotWorker {
    async fn copy_out(
        &self,
        instance: &InstanceName,
        place: &OffsitePlace,
        surplus: Surplus,
        progress: &dyn Fn(JobProgress),
    ) -> Result<Carried, SnapshotsError> {
        let doing = "copying snapshots off-site";
        let surplus = match surplus {
            Surplus::Kept => protocol::Surplus::Kept,
            Surplus::Removed => protocol::Surplus::Removed,
        };
        let task = Task::CopyOut { place: describe(place), surplus };
        let outcome = self.work(instance, (doing, task), NOBODY, progress).await?;
        carried(outcome.ok_or_else(|| no_repository(doing))?, doing)
    }

    async fn copy_in(
        &self,
        instance: &InstanceName,
        place: &OffsitePlace,
        keys: &RepositoryKeys,
        progress: &dyn Fn(JobProgress),
    ) -> Result<Carried, SnapshotsError> {
        let doing = "fetching snapshots";
        let task = Task::CopyIn { place: describe(place) };
        let outcome = self.arrive((instance, keys), (doing, task), None, progress).await?;
        carried(outcome, doing)
    }

    async fn restore_from(
        &self,
        instance: &InstanceName,
        place: &OffsitePlace,
        snapshot: &SnapshotName,
        into: DataGeneration,
        progress: &dyn Fn(JobProgress),
    ) -> Result<(), SnapshotsError> {
        let doing = "restoring a snapshot from off-site";
        let (snapshot, into) = (snapshot.to_string(), into.to_string());
        let task = Task::RestoreFrom { place: describe(place), snapshot, into };
        match self.work(instance, (doing, task), NOBODY, progress).await? {
            None => Err(no_repository(doing)),
            Some(Outcome::Nothing) => Ok(()),
            Some(_) => Err(unexpected(doing)),
        }
    }
}

impl Transfers for SnapshotWorker {
    async fn export(
        &self,
        instance: &InstanceName,
        snapshot: &SnapshotName,
        mut pipe: Pipe,
        progress: &dyn Fn(JobProgress),
    ) -> Result<(), SnapshotsError> {
        let doing = "exporting a snapshot";
        let task = Task::Export { snapshot: snapshot.to_string() };
        let exported = match self.through(instance, (doing, task), &mut pipe, progress).await {
            Ok(None) => Err(SnapshotsError::NotFound(snapshot.clone())),
            Ok(Some(Outcome::Nothing)) => {
                let last = pipe.give(Parcel::End).await;
                last.map_err(|source| SnapshotsError::Pipe { doing, source })
            }
            Ok(Some(_)) => Err(unexpected(doing)),
            Err(error) => Err(error),
        };
        finish(pipe, exported).await
    }

    async fn import(
        &self,
        order: &SnapshotOrder,
        mut pipe: Pipe,
        progress: &dyn Fn(JobProgress),
    ) -> Result<SnapshotInfo, SnapshotsError> {
        let doing = "importing an archive";
        let task = Task::Import(take(order, false));
        let taken = match self.through(&order.instance, (doing, task), &mut pipe, progress).await {
            Ok(Some(Outcome::Taken(stored))) => info(&stored).ok_or_else(|| unexpected(doing)),
            Ok(_) => Err(unexpected(doing)),
            Err(error) => Err(error),
        };
        let taken = finish(pipe, taken).await?;
        self.note_use(&order.instance).await;
        Ok(taken)
    }

    async fn send(
        &self,
        instance: &InstanceName,
        mut pipe: Pipe,
        progress: &dyn Fn(JobProgress),
    ) -> Result<Carried, SnapshotsError> {
        let doing = "sending a repository";
        let sent = match self.through(instance, (doing, Task::Send), &mut pipe, progress).await {
            Ok(None) => Err(no_repository(doing)),
            Ok(Some(outcome)) => carried(outcome, doing),
            Err(error) => Err(error),
        };
        finish(pipe, sent).await
    }

    async fn receive(
        &self,
        instance: &InstanceName,
        keys: &RepositoryKeys,
        mut pipe: Pipe,
        progress: &dyn Fn(JobProgress),
    ) -> Result<(), SnapshotsError> {
        let errand = ("receiving a repository", Task::Receive);
        let received = self.arrive((instance, keys), errand, Some(&mut pipe), progress).await;
        finish(pipe, received.map(|_outcome| ())).await
    }

    async fn arrived(&self, instance: &InstanceName) -> Result<SnapshotList, SnapshotsError> {
        self.look(instance).await
    }

    async fn discard(&self, instance: &InstanceName) -> Result<(), SnapshotsError> {
        let turn = self.turn(instance);
        let _turn = turn.lock().await;
        self.removing(instance, arrivals::discard).await
    }
}

impl SnapshotWorker {
    /// The repository is used here: nobody takes it for one that came and was never wanted.
    pub(super) async fn note_use(&self, instance: &InstanceName) {
        let (data, name) = (self.settings.data.clone(), instance.clone());
        let noted = tokio::task::spawn_blocking(move || arrivals::note_use(&data, &name)).await;
        if let Ok(Err(error)) = noted {
            tracing::warn!(error = chain(&error), %instance, "a repository's mark stays");
        }
    }

    /// As [`Self::work`], with a pipe.
    async fn through(
        &self,
        instance: &InstanceName,
        (doing, task): (&'static str, Task),
        pipe: &mut Pipe,
        progress: &dyn Fn(JobProgress),
    ) -> Result<Option<Outcome>, SnapshotsError> {
        let turn = self.turn(instance);
        let _turn = turn.lock().await;
        let _place = self.place(&task).await;
        let missing = match task {
            Task::Import(_) => Missing::Make,
            _ => Missing::None,
        };
        let Some(keys) = self.keys(instance, missing).await? else { return Ok(None) };
        let job = self.job(instance, &keys, task);
        self.converse(&job, doing, (NOBODY, Some(pipe)), progress).await.map(Some)
    }

    /// A job by which a repository comes from elsewhere. When nothing of one came, nothing is left.
    async fn arrive(
        &self,
        (instance, keys): (&InstanceName, &RepositoryKeys),
        (doing, task): (&'static str, Task),
        pipe: Option<&mut Pipe>,
        progress: &dyn Fn(JobProgress),
    ) -> Result<Outcome, SnapshotsError> {
        let turn = self.turn(instance);
        let _turn = turn.lock().await;
        let _place = self.place(&task).await;
        let keys = self.accept(instance, keys).await?;
        let job = self.job(instance, &keys, task);
        let arrived = self.converse(&job, doing, (NOBODY, pipe), progress).await;
        if arrived.is_err() {
            // What cannot be removed now goes with the next attempt.
            _ = self.removing(instance, arrivals::abandon).await;
        }
        arrived
    }

    async fn accept(
        &self,
        instance: &InstanceName,
        given: &RepositoryKeys,
    ) -> Result<Keys, SnapshotsError> {
        let (data, name, given) = (self.settings.data.clone(), instance.clone(), given.clone());
        let accepted = tokio::task::spawn_blocking(move || keys::accept(&data, &name, &given));
        match accepted.await {
            Ok(Ok(keys)) => Ok(keys),
            Ok(Err(KeysError::Other { repository })) => {
                Err(SnapshotsError::OtherRepository(repository.display().to_string()))
            }
            Ok(Err(error)) => Err(SnapshotsError::Keys(Box::new(error))),
            Err(ended) => Err(SnapshotsError::Keys(Box::new(ended))),
        }
    }

    async fn removing(
        &self,
        instance: &InstanceName,
        remove: fn(&std::path::Path, &InstanceName) -> Result<(), DiscardError>,
    ) -> Result<(), SnapshotsError> {
        let (data, instance) = (self.settings.data.clone(), instance.clone());
        let failed = |problem| SnapshotsError::Failed { doing: DISCARDING, problem };
        match tokio::task::spawn_blocking(move || remove(&data, &instance)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(failed(chain(&error))),
            Err(ended) => Err(failed(chain(&ended))),
        }
    }
}

/// The last parcel. One that has been given already is taken by nobody, and an end that is gone needs none.
async fn finish<T>(mut pipe: Pipe, done: Result<T, SnapshotsError>) -> Result<T, SnapshotsError> {
    let last = match &done {
        Ok(_) => Parcel::End,
        Err(error) => Parcel::GaveUp(chain(error)),
    };
    let _gone: Result<(), PipeError> = pipe.give(last).await;
    done
}

fn carried(outcome: Outcome, doing: &'static str) -> Result<Carried, SnapshotsError> {
    match outcome {
        Outcome::Carried { files, bytes, removed } => Ok(Carried { files, bytes, removed }),
        _ => Err(unexpected(doing)),
    }
}

fn describe(place: &OffsitePlace) -> Place {
    let OffsitePlace { storage, path } = place;
    Place {
        endpoint: storage.endpoint.clone(),
        region: storage.region.clone(),
        bucket: storage.bucket.clone(),
        path: path.clone(),
        addressing: match storage.addressing {
            BucketAddressing::Path => Addressing::Path,
            BucketAddressing::Host => Addressing::Host,
        },
        access_key: Private::new(storage.access_key.reveal()),
        secret_key: Private::new(storage.secret_key.reveal()),
        bandwidth: storage.bandwidth,
    }
}

fn no_repository(doing: &'static str) -> SnapshotsError {
    SnapshotsError::Failed { doing, problem: "there is no repository".to_owned() }
}
