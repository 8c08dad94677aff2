//! Snapshots as archives: from an instance's host to a caller of the API, and back.
//!
//! The host makes and reads archives; here goes what passes between. What an import brings is a snapshot of the
//! instance's repository and nothing more: a rollback to it brings it into use.

use std::sync::Arc;
use std::time::Duration;

use claw_core::backup::SnapshotInfo;
use claw_core::name::{HostName, InstanceName, SnapshotName};
use claw_proto::convert::name::snapshot_resource;
use claw_proto::fleet::v1 as fleet;
use claw_proto::node::v1 as node;
use claw_proto::node::v1::command::Command;
use claw_store::rusqlite::Connection;

use super::Fleet;
use super::instances::{load_live, load_settled};
use super::rollback::usable;
use super::snapshots::{ACCEPT_WITHIN, Answer, check_new, shown};
use crate::refusal::Refusal;
use crate::store::Keys;
use crate::store::instances::InstanceRow;
use crate::store::mutation::{Call, Codec, Done, Effects, Mode};
use crate::store::snapshots;
use crate::transfers::{Begun, End};
use crate::watch::Watcher;

/// How long an answer waits for the host to list what it has taken: it says so right after.
const LISTED_WITHIN: Duration = Duration::from_secs(10);

/// An export under way.
#[derive(Debug)]
pub struct Export {
    /// What the caller hears first.
    pub header: fleet::ExportHeader,
    /// The caller's end.
    pub end: End,
}

/// An import that its host has accepted: the archive may come.
#[derive(Debug)]
pub struct Import {
    call: Call,
    instance: InstanceName,
    uid: String,
    snapshot: SnapshotName,
    watcher: Option<Arc<Watcher>>,
    begun: Begun,
    /// The caller's end.
    pub end: End,
}

/// What becomes of a request to import.
#[derive(Debug)]
pub enum Importing<R> {
    /// Nothing more: this is the answer.
    Answered(R),
    /// The archive may come.
    Accepted(Box<Import>),
}

impl Fleet {
    /// Asks the host for an archive; that it was asked for is audited.
    ///
    /// # Errors
    /// [`Refusal::NotFound`], [`Refusal::Precondition`], [`Refusal::TooLate`], [`Refusal::Unavailable`],
    /// [`Refusal::Exhausted`].
    pub async fn export_snapshot(
        &self,
        call: Call,
        name: InstanceName,
        snapshot: SnapshotName,
    ) -> Result<Export, Refusal> {
        let now = call.now;
        let (host, info) = self.store.read(|connection, _keys| {
            let instance = load_live(connection, &name, "")?;
            let (_row, info) = usable(connection, &instance, &snapshot, now)?;
            Ok((instance.host, info))
        })?;
        let (begun, end) = self.transfers.to_caller(&host)?;
        let command = Command::ExportSnapshot(node::ExportSnapshot {
            instance: name.to_string(),
            name: snapshot.to_string(),
            transfer: begun.id,
        });
        self.order(&host, command, &call).await?;
        let header = self.note_export(call, &name, &info).await?;
        Ok(Export { header, end })
    }

    async fn note_export(
        &self,
        call: Call,
        instance: &InstanceName,
        info: &SnapshotInfo,
    ) -> Result<fleet::ExportHeader, Refusal> {
        let name = snapshot_resource(instance, &info.name);
        let header = fleet::ExportHeader { name: name.clone(), size_estimate: info.bytes };
        let codec = Codec { encode: claw_proto::encode, decode: claw_proto::decode };
        let job = move |_connection: &Connection, _keys: &Keys| {
            let summary = "exported as an archive".to_owned();
            Ok(Done { response: header, resource: name, summary, effects: Effects::default() })
        };
        let (header, _none) = self.store.mutate(call, codec, job).await?;
        Ok(header)
    }

    /// Asks the host to take an archive.
    ///
    /// # Errors
    /// As [`Fleet::export_snapshot`], and [`Refusal::Exists`].
    pub async fn begin_import<R: Send + 'static>(
        &self,
        call: Call,
        name: InstanceName,
        snapshot: SnapshotName,
        answer: &Answer<R, fleet::Snapshot>,
    ) -> Result<Importing<R>, Refusal> {
        if let Some(earlier) = self.store.earlier_answer(&call, &answer.codec)? {
            return Ok(Importing::Answered(earlier));
        }
        let now = call.now;
        let instance = self.store.read(|connection, _keys| {
            let instance = load_settled(connection, &name, "")?;
            check_new(connection, &instance, &snapshot, now)?;
            Ok(instance)
        })?;
        if call.mode == Mode::ValidateOnly {
            let response = self.note_import(call, name, snapshot, answer).await?;
            return Ok(Importing::Answered(response));
        }
        let (begun, end) = self.transfers.to_caller(&instance.host)?;
        let command = Command::ImportArchive(node::ImportArchive {
            instance: name.to_string(),
            name: snapshot.to_string(),
            transfer: begun.id.clone(),
        });
        self.order(&instance.host, command, &call).await?;
        let (uid, new) = (instance.uid.clone(), snapshot.clone());
        self.store
            .write(move |connection, _keys| snapshots::insert_asked(connection, &uid, &new, now))
            .await?;
        let watcher = self.hub.subscribe(Some([name.clone()].into()));
        let uid = instance.uid;
        Ok(Importing::Accepted(Box::new(Import {
            call,
            instance: name,
            uid,
            snapshot,
            watcher,
            begun,
            end,
        })))
    }

    /// The caller has sent the archive, or could not: the answer, when the host has taken it.
    ///
    /// # Errors
    /// Why the transfer was broken off, or what the caller did wrong.
    pub async fn end_import<R: Send + 'static>(
        &self,
        import: Import,
        sent: Result<(), Refusal>,
        answer: &Answer<R, fleet::Snapshot>,
    ) -> Result<R, Refusal> {
        let Import { call, instance, uid, snapshot, watcher, begun, mut end } = import;
        let taken = match sent {
            Ok(()) => {
                end.sending.finish();
                end.receiving.next().await.map(|_end| ()).map_err(Refusal::from)
            }
            Err(refusal) => {
                end.sending.give_up(refusal.to_string());
                Err(refusal)
            }
        };
        drop((begun, end));
        if let Err(refusal) = taken {
            let (problem, name) = (refusal.to_string(), snapshot);
            let job = move |connection: &Connection, _keys: &Keys| {
                snapshots::set_failed(connection, &uid, &name, &problem)
            };
            self.store.write(job).await?;
            self.hub.changed(&[instance].into());
            return Err(refusal);
        }
        self.until_listed(&uid, &snapshot, watcher).await?;
        self.note_import(call, instance, snapshot, answer).await
    }

    async fn note_import<R: Send + 'static>(
        &self,
        call: Call,
        name: InstanceName,
        snapshot: SnapshotName,
        answer: &Answer<R, fleet::Snapshot>,
    ) -> Result<R, Refusal> {
        let Answer { codec: Codec { encode, decode }, make } = *answer;
        let now = call.now;
        let job = move |connection: &Connection, _keys: &Keys| {
            let instance: InstanceRow = load_live(connection, &name, "")?;
            snapshots::insert_asked(connection, &instance.uid, &snapshot, now)?;
            let response = make(shown(connection, &instance, &snapshot, now)?);
            let resource = snapshot_resource(&name, &snapshot);
            let effects = Effects { instances: [name].into(), ..Effects::default() };
            Ok(Done { response, resource, summary: "imported from an archive".to_owned(), effects })
        };
        let (response, effects) = self.store.mutate(call, Codec { encode, decode }, job).await?;
        self.apply(&effects);
        Ok(response)
    }

    /// Waits until a snapshot is listed, for a while.
    async fn until_listed(
        &self,
        uid: &str,
        snapshot: &SnapshotName,
        watcher: Option<Arc<Watcher>>,
    ) -> Result<(), Refusal> {
        let Some(watcher) = watcher else { return Ok(()) };
        let listed = async {
            loop {
                let find = |connection: &Connection, _keys: &Keys| {
                    snapshots::find(connection, uid, snapshot)
                };
                if self.store.read(find)?.is_some_and(|row| row.listed.is_some()) {
                    return Ok(());
                }
                watcher.next().await;
            }
        };
        // Whoever asks is told that it is being taken, then.
        tokio::time::timeout(LISTED_WITHIN, listed).await.unwrap_or(Ok(()))
    }

    /// Has an agent accept a command.
    async fn order(&self, host: &HostName, command: Command, call: &Call) -> Result<(), Refusal> {
        let asked = self.registry.ask(host, command, call.now.after(ACCEPT_WITHIN))?;
        asked.answer(ACCEPT_WITHIN).await.map(|_accepted| ())
    }
}
