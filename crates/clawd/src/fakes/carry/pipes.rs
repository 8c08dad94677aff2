//! Snapshots and repositories through pipes.

use std::collections::BTreeMap;

use claw_core::backup::SnapshotInfo;
use claw_core::name::{InstanceName, SnapshotName};
use claw_core::stamp::Digest;
use serde_json::{Value, json};

use super::wire::{Lines, decode, encode, nonsense};
use crate::fakes::FakeSnapshots;
use crate::fakes::snapshots::{Kept, Origin, Repository, describe, failed};
use crate::logging::chain;
use crate::ports::{
    Carried, JobProgress, Parcel, Pipe, PipeError, RepositoryKeys, SnapshotList, SnapshotOrder,
    Snapshots as _, SnapshotsError, Transfers,
};

const EXPORTING: &str = "exporting a snapshot";
const IMPORTING: &str = "importing an archive";
const SENDING: &str = "sending a repository";
const RECEIVING: &str = "receiving a repository";
const DISCARDING: &str = "removing a repository that came from elsewhere";

impl Transfers for FakeSnapshots {
    async fn export(
        &self,
        instance: &InstanceName,
        snapshot: &SnapshotName,
        pipe: Pipe,
        progress: &dyn Fn(JobProgress),
    ) -> Result<(), SnapshotsError> {
        let call = self.mishaps.effect("export-snapshot");
        let mut lines = Lines::new(pipe);
        let work = async {
            if !call.may_begin().await {
                return Err(failed(EXPORTING));
            }
            let kept = self.kept(instance, snapshot);
            let kept = kept.ok_or_else(|| SnapshotsError::NotFound(snapshot.clone()))?;
            if kept.damaged {
                return Err(SnapshotsError::Damaged("told to be damaged".to_owned()));
            }
            lines.say(&encode(&kept)).await.map_err(broken(EXPORTING))?;
            let bytes = kept.info.bytes;
            progress(JobProgress { done_bytes: bytes, total_bytes: bytes });
            lines.pipe.give(Parcel::End).await.map_err(broken(EXPORTING))?;
            if call.may_end().await { Ok(()) } else { Err(failed(EXPORTING)) }
        };
        let done = work.await;
        finish(lines, done).await
    }

    async fn import(
        &self,
        order: &SnapshotOrder,
        pipe: Pipe,
        progress: &dyn Fn(JobProgress),
    ) -> Result<SnapshotInfo, SnapshotsError> {
        let call = self.mishaps.effect("import-archive");
        let mut lines = Lines::new(pipe);
        let work = async {
            if !call.may_begin().await {
                return Err(failed(IMPORTING));
            }
            if let Some(kept) = self.kept(&order.instance, &order.name) {
                return Ok(kept.info);
            }
            let archive = whole(&mut lines).await.map_err(broken(IMPORTING))?;
            self.has_room(IMPORTING)?;
            let Kept { data, .. } = archive;
            let info = describe(order, &data);
            progress(JobProgress { done_bytes: info.bytes, total_bytes: info.bytes });
            // Whoever sent it may have gone since.
            _ = lines.pipe.give(Parcel::End).await;
            let assignment = order.assignment.clone();
            let kept = Kept { info: info.clone(), data, assignment, damaged: false };
            self.keep(order, kept);
            if call.may_end().await { Ok(info) } else { Err(failed(IMPORTING)) }
        };
        let done = work.await;
        finish(lines, done).await
    }

    async fn send(
        &self,
        instance: &InstanceName,
        pipe: Pipe,
        progress: &dyn Fn(JobProgress),
    ) -> Result<Carried, SnapshotsError> {
        let call = self.mishaps.effect("send-repository");
        let mut lines = Lines::new(pipe);
        let work = async {
            if !call.may_begin().await {
                return Err(failed(SENDING));
            }
            let Some(ours) = self.repository(instance) else {
                return Err(super::no_repository(SENDING));
            };
            let carried = offer(&ours, &mut lines).await.map_err(broken(SENDING))?;
            _ = lines.pipe.give(Parcel::End).await;
            progress(JobProgress { done_bytes: carried.bytes, total_bytes: carried.bytes });
            if call.may_end().await { Ok(carried) } else { Err(failed(SENDING)) }
        };
        let done = work.await;
        finish(lines, done).await
    }

    async fn receive(
        &self,
        instance: &InstanceName,
        keys: &RepositoryKeys,
        pipe: Pipe,
        progress: &dyn Fn(JobProgress),
    ) -> Result<(), SnapshotsError> {
        let call = self.mishaps.effect("receive-repository");
        let mut lines = Lines::new(pipe);
        let work = async {
            if !call.may_begin().await {
                return Err(failed(RECEIVING));
            }
            self.has_room(RECEIVING)?;
            let ours = self.repository(instance);
            let (theirs, opens) = take(ours.as_ref(), (instance, keys), &mut lines).await?;
            let carried = self.complete(RECEIVING, (instance, keys), (&theirs, opens))?;
            progress(JobProgress { done_bytes: carried.bytes, total_bytes: carried.bytes });
            lines.say(&json!({ "taken": carried.files })).await.map_err(broken(RECEIVING))?;
            _ = lines.pipe.give(Parcel::End).await;
            if call.may_end().await { Ok(()) } else { Err(failed(RECEIVING)) }
        };
        let done = work.await;
        finish(lines, done).await
    }

    async fn arrived(&self, instance: &InstanceName) -> Result<SnapshotList, SnapshotsError> {
        let origin = self.repository(instance).map(|repository| repository.origin);
        let list = self.list(instance).await?;
        let mut state = self.state.borrow_mut();
        if let (Some(origin), Some(repository)) = (origin, state.repositories.get_mut(instance)) {
            repository.origin = origin;
        }
        Ok(list)
    }

    async fn discard(&self, instance: &InstanceName) -> Result<(), SnapshotsError> {
        let call = self.mishaps.effect("discard-repository");
        if !call.may_begin().await {
            return Err(failed(DISCARDING));
        }
        if self.repository(instance).is_some_and(|repository| repository.origin == Origin::Here) {
            let problem = "the repository was used here".to_owned();
            return Err(SnapshotsError::Failed { doing: DISCARDING, problem });
        }
        self.state.borrow_mut().repositories.remove(instance);
        if call.may_end().await { Ok(()) } else { Err(failed(DISCARDING)) }
    }
}

/// The sender's part: what it has, then what the other lacks, then what the other took.
async fn offer(ours: &Repository, lines: &mut Lines) -> Result<Carried, PipeError> {
    let opens = super::opens(&ours.keys).to_string();
    lines.say(&json!({ "repository": ours.id.to_string(), "opens": opens })).await?;
    let there = lines.hear().await?.ok_or_else(nonsense)?;
    let there: Vec<&str> =
        there.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let mut carried = Carried::default();
    for (name, kept) in &ours.snapshots {
        if !there.contains(&name.as_str()) {
            carried.files += 1;
            carried.bytes += kept.info.bytes;
            lines.say(&encode(kept)).await?;
        }
    }
    lines.say(&Value::Null).await?;
    lines.hear().await?.ok_or_else(nonsense)?;
    Ok(carried)
}

/// The receiver's part, up to everything that it lacks.
async fn take(
    ours: Option<&Repository>,
    (instance, keys): (&InstanceName, &RepositoryKeys),
    lines: &mut Lines,
) -> Result<(Repository, Digest), SnapshotsError> {
    let hello = lines.hear().await.and_then(|hello| hello.ok_or_else(nonsense));
    let hello = hello.map_err(broken(RECEIVING))?;
    let digest = |name: &str| {
        let text = hello.get(name).and_then(Value::as_str).unwrap_or_default();
        Digest::from_hex(text).ok_or_else(nonsense).map_err(broken(RECEIVING))
    };
    let (id, opens) = (digest("repository")?, digest("opens")?);
    if ours.is_some_and(|ours| ours.id != id) {
        return Err(SnapshotsError::OtherRepository(format!("repo/{instance}")));
    }
    let there: Vec<&str> =
        ours.into_iter().flat_map(|ours| ours.snapshots.keys()).map(SnapshotName::as_str).collect();
    lines.say(&json!(there)).await.map_err(broken(RECEIVING))?;
    let mut snapshots = BTreeMap::new();
    loop {
        let next = lines.hear().await.and_then(|next| next.ok_or_else(nonsense));
        let next = next.map_err(broken(RECEIVING))?;
        if next.is_null() {
            break;
        }
        let kept = decode(&next).map_err(broken(RECEIVING))?;
        snapshots.insert(kept.info.name.clone(), kept);
    }
    let keys = keys.clone();
    Ok((Repository { id, keys, snapshots, origin: Origin::Elsewhere }, opens))
}

/// One archive and no more.
async fn whole(lines: &mut Lines) -> Result<Kept, PipeError> {
    let archive = lines.hear().await?.ok_or_else(nonsense)?;
    match lines.hear().await? {
        None => decode(&archive),
        Some(_) => Err(nonsense()),
    }
}

/// Says why nothing more comes. An end that is gone needs no reason.
async fn finish<T>(mut lines: Lines, done: Result<T, SnapshotsError>) -> Result<T, SnapshotsError> {
    if let Err(error) = &done {
        _ = lines.pipe.give(Parcel::GaveUp(chain(error))).await;
    }
    done
}

fn broken(doing: &'static str) -> impl Fn(PipeError) -> SnapshotsError {
    move |source| SnapshotsError::Pipe { doing, source }
}
