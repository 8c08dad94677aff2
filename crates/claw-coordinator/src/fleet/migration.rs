//! Moves of instances to other hosts: begun and cancelled here, carried out by [`driver`].
//!
//! What is to be done in which stage is decided by [`claw_core::migration::course`]; each stage is stored before
//! its effect, with the desired states of both hosts, so a restart changes nothing. Until a move has ended,
//! nothing else of the instance can be changed.

pub mod driver;
mod errand;
pub(super) mod plan;
mod stages;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use claw_core::backup::BackupReport;
use claw_core::event::Severity;
use claw_core::migration::{Migration, Origin, Stage, Tries};
use claw_core::name::{HostName, InstanceName, SnapshotName};
use claw_core::time::Timestamp;
use claw_store::rusqlite::Connection;
use tokio::sync::Notify;

use super::Fleet;
use super::instances::{Answer, load_live, load_settled};
use crate::refusal::{Precondition, Refusal};
use crate::store::events::OwnEvent;
use crate::store::instances::InstanceRow;
use crate::store::migrations::MigrationRow;
use crate::store::mutation::Call;
use crate::store::{Keys, events, instances, migrations};

/// Where an instance shall move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// The host.
    pub host: HostName,
    /// What it starts with there.
    pub from: From,
}

/// What an instance starts with on its new host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum From {
    /// The data as its host has it.
    Host,
    /// The newest snapshot that is known to be off-site.
    Newest,
    /// This snapshot, from off-site.
    Snapshot(SnapshotName),
}

/// What the driver is woken by, and what new hosts say of repositories that are not theirs yet. In memory: an
/// agent says it again after each greeting.
#[derive(Debug, Default)]
pub struct Migrations {
    wake: Notify,
    arrivals: Mutex<BTreeMap<(HostName, InstanceName), Arrival>>,
}

/// What a new host says of a repository.
#[derive(Debug, Clone)]
struct Arrival {
    report: BackupReport,
    at: Timestamp,
}

impl Migrations {
    /// The driver looks again.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    fn note_arrival(&self, host: &HostName, name: &InstanceName, arrival: Arrival) {
        self.lock().insert((host.clone(), name.clone()), arrival);
        self.wake();
    }

    fn arrival(&self, host: &HostName, name: &InstanceName) -> Option<Arrival> {
        self.lock().get(&(host.clone(), name.clone())).cloned()
    }

    /// Forgets what was said of repositories that nobody waits for any more.
    fn keep_arrivals(&self, active: &[MigrationRow]) {
        self.lock().retain(|(host, name), _arrival| {
            active.iter().any(|moving| moving.target == *host && moving.name == *name)
        });
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(HostName, InstanceName), Arrival>> {
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fleet {
    /// Begins to move an instance.
    ///
    /// # Errors
    /// [`Refusal::Invalid`], [`Refusal::NotFound`], [`Refusal::StaleEtag`], [`Refusal::Precondition`].
    pub async fn migrate_instance<R: Send + 'static>(
        &self,
        call: Call,
        name: InstanceName,
        etag: String,
        destination: Destination,
        answer: Answer<R>,
    ) -> Result<R, Refusal> {
        let now = call.now;
        let registry = Arc::clone(&self.registry);
        let job = move |connection: &Connection, _keys: &Keys| {
            let mut instance = load_settled(connection, &name, &etag)?;
            let looked = plan::look(&registry, connection, &instance, &destination, now)?;
            if let Some(refusal) = looked.blockers.into_iter().next() {
                return Err(refusal);
            }
            let (origin, stage) = match looked.snapshot {
                None => (Origin::Host, Stage::Preparing),
                Some(snapshot) => (Origin::Offsite, Stage::Fetching { snapshot }),
            };
            let state = Migration { origin, stage, since: now, tries: Tries::default() };
            let row = MigrationRow {
                uid: instance.uid.clone(),
                name,
                source: instance.host.clone(),
                target: destination.host,
                state,
                begun: now,
            };
            migrations::put(connection, &row)?;
            let text = format!("moves from hosts/{} to hosts/{}", row.source, row.target);
            tell(connection, &row, Severity::Info, "migration_begun", &text, now)?;
            instance.migration = Some(row);
            Ok((instance, text))
        };
        let response = self.change_instance(call, answer, job).await?;
        self.migrations.wake();
        Ok(response)
    }

    /// Ends a move that is under way: everything goes back.
    ///
    /// # Errors
    /// [`Refusal::NotFound`], [`Refusal::StaleEtag`], [`Refusal::Precondition`].
    pub async fn cancel_migration<R: Send + 'static>(
        &self,
        call: Call,
        name: InstanceName,
        etag: String,
        answer: Answer<R>,
    ) -> Result<R, Refusal> {
        let now = call.now;
        let problem = format!("cancelled by {}", call.principal);
        let job = move |connection: &Connection, keys: &Keys| {
            let mut instance = load_live(connection, &name, &etag)?;
            let Some(row) = instance.migration.clone().filter(MigrationRow::is_active) else {
                let subject = format!("instances/{name}");
                let text = format!("{subject} is not being moved");
                return Err(Refusal::precondition(Precondition::NotMigrating, subject, text));
            };
            if matches!(row.state.stage, Stage::Reverting { .. }) {
                return Ok((instance, "nothing changed".to_owned()));
            }
            stages::revert(connection, keys, &instance, row, problem, now)?;
            instance = instances::load(connection, &name)?;
            Ok((instance, "the move is cancelled; everything goes back".to_owned()))
        };
        let response = self.change_instance(call, answer, job).await?;
        self.wake_targets().await;
        Ok(response)
    }

    /// What a new host says of a repository that it is to have; false when it is to have none.
    pub(super) fn note_arrival(
        &self,
        host: &HostName,
        name: &InstanceName,
        report: &BackupReport,
    ) -> Result<bool, Refusal> {
        if self.arriving_on(host, name)?.is_none() {
            return Ok(false);
        }
        let arrival = Arrival { report: report.clone(), at: self.clock.now() };
        self.migrations.note_arrival(host, name, arrival);
        Ok(true)
    }

    /// The instance that moves to this host, if one of this name does.
    pub(super) fn arriving_on(
        &self,
        host: &HostName,
        name: &InstanceName,
    ) -> Result<Option<InstanceRow>, Refusal> {
        let find = |connection: &Connection, _keys: &Keys| instances::find(connection, name);
        let is_arriving = |instance: &InstanceRow| {
            let moving = instance.migration.as_ref().filter(|moving| moving.is_active());
            moving.is_some_and(|moving| moving.target == *host)
        };
        Ok(self.store.read(find)?.filter(is_arriving))
    }

    /// Tells every new host that its desired state may have changed.
    async fn wake_targets(&self) {
        let active = self.store.read_long(|connection, _keys| migrations::active(connection)).await;
        match active {
            Ok(active) => active.iter().for_each(|moving| self.registry.wake(&moving.target)),
            Err(error) => tracing::warn!(%error, "cannot tell the hosts of a cancelled move"),
        }
        self.migrations.wake();
    }
}

/// Tells both hosts' logs.
fn tell(
    connection: &Connection,
    row: &MigrationRow,
    severity: Severity,
    kind: &'static str,
    text: &str,
    now: Timestamp,
) -> Result<(), Refusal> {
    let event = OwnEvent { kind, severity, message: format!("instances/{} {text}", row.name) };
    events::append_about(connection, &row.source, &row.name, now, &event)?;
    events::append_about(connection, &row.target, &row.name, now, &event)
}
