//! Snapshots of instances: what hosts say of them is kept, and what people want is asked of hosts.
//!
//! Taking, forgetting and verifying are questions to the agent ([`crate::commands`]), answered when it has
//! accepted them; the outcome comes as its report.

use std::time::Duration;

use claw_core::backup::{BackupReport, MAX_LISTED, SnapshotHealth};
use claw_core::name::{HostName, InstanceName, SnapshotName};
use claw_core::stamp::Digest;
use claw_core::time::Timestamp;
use claw_proto::convert::backup::backup_status_to_wire;
use claw_proto::convert::backup::escrow::Escrow;
use claw_proto::convert::name::snapshot_resource;
use claw_proto::fleet::v1 as fleet;
use claw_proto::node::v1 as node;
use claw_proto::node::v1::command::Command;
use claw_store::rusqlite::Connection;

use super::Fleet;
use super::instances::load_settled;
use crate::clock::before;
use crate::refusal::{Precondition, Refusal};
use crate::store::audit::{self, Entry};
use crate::store::instances::InstanceRow;
use crate::store::mutation::{Call, Codec, Done, Effects, Mode};
use crate::store::snapshots::{
    FORGOTTEN_WITHIN, RepositoryRow, SnapshotRow, TAKEN_WITHIN, find, of_instance,
};
use crate::store::{Keys, escrow, revisions, snapshots};

/// How long an agent may take to accept.
pub(super) const ACCEPT_WITHIN: Duration = Duration::from_secs(10);

/// How much of a repository is verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// All but the data.
    Structure,
    /// The data as well.
    Data,
}

/// How the answer to a change of a snapshot is made and kept.
#[derive(Debug)]
pub struct Answer<R, V> {
    /// To bytes and back.
    pub codec: Codec<R>,
    /// From the resource as it is afterwards.
    pub make: fn(V) -> R,
}

/// Where a snapshot is on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Asked for.
    Taking,
    /// Held.
    Ready,
    /// Held, and of no use.
    Damaged,
    /// To be forgotten.
    Deleting,
    /// It could not be taken; why.
    Failed(String),
}

/// Where a snapshot is on its way, at `now`.
#[must_use]
pub fn state(row: &SnapshotRow, now: Timestamp) -> State {
    let Some(listed) = &row.listed else {
        return match row.problem.as_str() {
            "" if row.taken >= before(now, TAKEN_WITHIN) => State::Taking,
            "" => State::Failed("its host has not listed it in time".to_owned()),
            problem => State::Failed(problem.to_owned()),
        };
    };
    let is_forgetting = row.forgetting.is_some_and(|at| at >= before(now, FORGOTTEN_WITHIN));
    match listed.health {
        _ if is_forgetting => State::Deleting,
        SnapshotHealth::Sound => State::Ready,
        SnapshotHealth::Damaged => State::Damaged,
    }
}

impl Fleet {
    /// Asks for a snapshot now.
    ///
    /// # Errors
    /// [`Refusal::NotFound`], [`Refusal::Exists`], [`Refusal::Precondition`], [`Refusal::TooLate`],
    /// [`Refusal::Unavailable`], [`Refusal::Exhausted`].
    pub async fn create_snapshot<R: Send + 'static>(
        &self,
        call: Call,
        name: InstanceName,
        snapshot: SnapshotName,
        answer: Answer<R, fleet::Snapshot>,
    ) -> Result<R, Refusal> {
        let command = Command::TakeSnapshot(node::TakeSnapshot {
            instance: name.to_string(),
            name: snapshot.to_string(),
        });
        let (now, new) = (call.now, snapshot.clone());
        let check = move |connection: &Connection, instance: &InstanceRow| {
            check_new(connection, instance, &new, now)
        };
        let job = move |connection: &Connection, instance: &InstanceRow| {
            snapshots::insert_asked(connection, &instance.uid, &snapshot, now)?;
            let resource = snapshot_resource(&instance.name, &snapshot);
            let view = shown(connection, instance, &snapshot, now)?;
            Ok((view, resource, "asked for"))
        };
        self.ask_then_change(call, name, command, check, job, answer).await
    }

    /// Asks that a snapshot is forgotten.
    ///
    /// # Errors
    /// As [`Fleet::create_snapshot`].
    pub async fn delete_snapshot<R: Send + 'static>(
        &self,
        call: Call,
        name: InstanceName,
        snapshot: SnapshotName,
        answer: Answer<R, fleet::Snapshot>,
    ) -> Result<R, Refusal> {
        let command = Command::ForgetSnapshot(node::ForgetSnapshot {
            instance: name.to_string(),
            name: snapshot.to_string(),
        });
        let (now, old) = (call.now, snapshot.clone());
        let check = move |connection: &Connection, instance: &InstanceRow| {
            shown(connection, instance, &old, now).map(|_there| ())
        };
        let job = move |connection: &Connection, instance: &InstanceRow| {
            let mut view = shown(connection, instance, &snapshot, now)?;
            snapshots::set_forgetting(connection, &instance.uid, &snapshot, now)?;
            view.set_state(fleet::SnapshotState::Deleting);
            Ok((view, snapshot_resource(&instance.name, &snapshot), "asked to be forgotten"))
        };
        self.ask_then_change(call, name, command, check, job, answer).await
    }

    /// Asks that a repository is verified.
    ///
    /// # Errors
    /// As [`Fleet::create_snapshot`].
    pub async fn verify_snapshots<R: Send + 'static>(
        &self,
        call: Call,
        name: InstanceName,
        depth: Depth,
        answer: Answer<R, fleet::SnapshotRepository>,
    ) -> Result<R, Refusal> {
        let command = Command::VerifySnapshots(node::VerifySnapshots {
            instance: name.to_string(),
            data: depth == Depth::Data,
        });
        let summary = match depth {
            Depth::Structure => "verification of the snapshots' structure asked for",
            Depth::Data => "verification of all snapshots' data asked for",
        };
        let check = |_connection: &Connection, _instance: &InstanceRow| Ok(());
        let job = move |connection: &Connection, instance: &InstanceRow| {
            let row = of_instance(connection, instance)?;
            let resource = format!("instances/{}", instance.name);
            Ok((crate::view::snapshots::repository(&row), resource, summary))
        };
        self.ask_then_change(call, name, command, check, job, answer).await
    }

    /// Checks, asks the host, and when it has accepted stores that, with its audit entry.
    async fn ask_then_change<R: Send + 'static, V>(
        &self,
        call: Call,
        name: InstanceName,
        command: Command,
        check: impl Fn(&Connection, &InstanceRow) -> Result<(), Refusal>,
        job: impl FnOnce(&Connection, &InstanceRow) -> Result<(V, String, &'static str), Refusal>
        + Send
        + 'static,
        answer: Answer<R, V>,
    ) -> Result<R, Refusal>
    where
        V: 'static,
    {
        let Answer { codec, make } = answer;
        if let Some(earlier) = self.store.earlier_answer(&call, &codec)? {
            return Ok(earlier);
        }
        let host = self.store.read(|connection, _keys| {
            let instance = load_settled(connection, &name, "")?;
            check(connection, &instance)?;
            Ok(instance.host)
        })?;
        if call.mode == Mode::Commit {
            let asked = self.registry.ask(&host, command, call.now.after(ACCEPT_WITHIN))?;
            asked.answer(ACCEPT_WITHIN).await?;
        }
        let job = move |connection: &Connection, _keys: &Keys| {
            let instance = load_settled(connection, &name, "")?;
            let (view, resource, summary) = job(connection, &instance)?;
            let effects = Effects { instances: [name].into(), ..Effects::default() };
            Ok(Done { response: make(view), resource, summary: summary.to_owned(), effects })
        };
        let (response, effects) = self.store.mutate(call, codec, job).await?;
        self.apply(&effects);
        Ok(response)
    }

    /// Keeps what a host says of an instance's snapshots; writes when it is something new.
    ///
    /// # Errors
    /// [`Refusal::Internal`], [`Refusal::Unavailable`]
    pub async fn note_backup(
        &self,
        host: &HostName,
        name: &InstanceName,
        mut report: BackupReport,
    ) -> Result<(), Refusal> {
        if self.note_arrival(host, name, &report)? {
            return Ok(());
        }
        let digest = Digest::of(&claw_proto::encode(&backup_status_to_wire(name, &report)));
        let lists_none = report.snapshots.is_empty();
        let find = move |connection: &Connection, host: &HostName, name: &InstanceName| {
            let known = snapshots::on_host(connection, host, name)?;
            // A host that has set the repository of a deleted instance aside lists none of it.
            let says_nothing = |known: &RepositoryRow| lists_none && known.deleted.is_some();
            Ok(known.filter(|known| known.digest != Some(digest) && !says_nothing(known)))
        };
        if self.store.read(|connection, _keys| find(connection, host, name))?.is_none() {
            return Ok(());
        }
        let (host, instance, now) = (host.clone(), name.clone(), self.clock.now());
        let job = move |connection: &Connection, _keys: &Keys| {
            let Some(known) = find(connection, &host, &instance)? else { return Ok(()) };
            // What was kept of an earlier instance of this name is not this one's.
            report.snapshots.retain(|snapshot| snapshot.generation >= known.since);
            snapshots::store_report(connection, &known, &report, Some(digest), now)
        };
        self.store.write(job).await?;
        self.hub.changed(&[name.clone()].into());
        Ok(())
    }

    /// Keeps the passwords of an instance's repository; false when the host holds no such instance.
    ///
    /// # Errors
    /// [`Refusal::Internal`], [`Refusal::Unavailable`]
    pub async fn note_escrow(&self, host: &HostName, given: Escrow) -> Result<bool, Refusal> {
        let digest = given.digest();
        if let Some(instance) = self.arriving_on(host, &given.instance)? {
            // It is not the new host's yet: the passwords are those that it was given.
            let find = |connection: &Connection, _keys: &Keys| of_instance(connection, &instance);
            return Ok(self.store.read(find)?.escrow == Some(digest));
        }
        let known = self
            .store
            .read(|connection, _keys| snapshots::on_host(connection, host, &given.instance))?;
        let Some(known) = known else { return Ok(false) };
        if known.escrow == Some(digest) {
            return Ok(true);
        }
        let entry = Entry {
            principal: format!("agent/{host}"),
            source: String::new(),
            method: "claw.node.v1.NodeService/Session".to_owned(),
            resource: format!("instances/{}", given.instance),
            summary: "passwords of the repository of snapshots stored".to_owned(),
        };
        let now = self.clock.now();
        let job = move |connection: &Connection, keys: &Keys| {
            escrow::store(connection, &keys.seal, &known.uid, &given)?;
            audit::append(connection, now, &entry)
        };
        self.store.write(job).await?;
        Ok(true)
    }

    /// The password with which plain restic reads a repository; that it was fetched is audited.
    ///
    /// # Errors
    /// [`Refusal::NotFound`], [`Refusal::Precondition`] when its host has not sent it yet.
    pub async fn fetch_recovery_password<R: Send + 'static>(
        &self,
        call: Call,
        name: InstanceName,
        uid: String,
        codec: Codec<R>,
        make: fn(String) -> R,
    ) -> Result<R, Refusal> {
        let job = move |connection: &Connection, keys: &Keys| {
            let row = snapshots::resolve(connection, &name, &uid)?;
            let resource = format!("instances/{name}");
            let Some(escrow) = escrow::load(connection, &keys.seal, &row.uid, &name)? else {
                let text =
                    format!("hosts/{} has not sent the passwords of {resource} yet", row.host);
                return Err(Refusal::precondition(Precondition::NoEscrow, resource, text));
            };
            Ok(Done {
                response: make(escrow.recovery.reveal().to_owned()),
                summary: format!("recovery password fetched, uid {}", row.uid),
                resource,
                effects: Effects::default(),
            })
        };
        let (response, _none) = self.store.mutate(call, codec, job).await?;
        Ok(response)
    }
}

/// Whether a snapshot of this name can be made.
pub(super) fn check_new(
    connection: &Connection,
    instance: &InstanceRow,
    new: &SnapshotName,
    now: Timestamp,
) -> Result<(), Refusal> {
    let existing = find(connection, &instance.uid, new)?;
    if existing.is_some_and(|row| !matches!(state(&row, now), State::Failed(_))) {
        return Err(Refusal::Exists { resource: snapshot_resource(&instance.name, new) });
    }
    if snapshots::count(connection, &instance.uid)? >= MAX_LISTED {
        let subject = format!("instances/{}", instance.name);
        let text = format!("{subject} has {MAX_LISTED} snapshots; delete some first");
        return Err(Refusal::precondition(Precondition::TooManySnapshots, subject, text));
    }
    Ok(())
}

/// A snapshot of a live instance as the API shows it.
pub(super) fn shown(
    connection: &Connection,
    instance: &InstanceRow,
    snapshot: &SnapshotName,
    now: Timestamp,
) -> Result<fleet::Snapshot, Refusal> {
    one(connection, &of_instance(connection, instance)?, snapshot, now)
}

/// A snapshot as the API shows it.
///
/// # Errors
/// [`Refusal::NotFound`]
pub fn one(
    connection: &Connection,
    repository: &RepositoryRow,
    snapshot: &SnapshotName,
    now: Timestamp,
) -> Result<fleet::Snapshot, Refusal> {
    let row = find(connection, &repository.uid, snapshot)?;
    let row = row.ok_or_else(|| Refusal::NotFound {
        resource: snapshot_resource(&repository.name, snapshot),
    })?;
    let history = revisions::history(connection, &repository.uid)?;
    Ok(crate::view::snapshots::snapshot(&row, repository, &history, now))
}
