//! Carries moves out: looks at what is stored and what hosts say, and does what
//! [`claw_core::migration::course`] says. Woken by changes and by a timer; nothing is lost when it is not.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use claw_core::migration::{Facts, Sight, Stage, Step, Work, course};
use claw_core::name::{HostName, InstanceName};
use claw_core::spec::{DEFAULT_STOP_GRACE, RunState};
use claw_core::time::Timestamp;
use claw_proto::fleet::v1 as fleet;
use claw_store::rusqlite::Connection;
use tokio::task::JoinHandle;

use super::errand;
use super::stages::{self, Decided};
use crate::fleet::Fleet;
use crate::fleet::instances::run_state;
use crate::refusal::Refusal;
use crate::store::hosts::{self, HostRow};
use crate::store::instances::{self, InstanceRow};
use crate::store::migrations::{self, MigrationRow};
use crate::store::{Keys, snapshots};
use crate::watch::Watcher;

/// How often moves under way are looked at without being woken.
const LOOK: Duration = Duration::from_secs(1);
/// How often it is looked whether there are any.
const REST: Duration = Duration::from_secs(60);
/// Most steps of one move in a row: more than there are stages.
const MOST_STEPS: usize = 12;

/// The driver of all moves.
#[derive(Debug)]
pub struct Driver {
    fleet: Fleet,
    started: Timestamp,
    /// When a host of a move was last seen online.
    seen: BTreeMap<HostName, Timestamp>,
    errands: BTreeMap<String, Errand>,
    watched: BTreeSet<InstanceName>,
    watcher: Option<Arc<Watcher>>,
}

/// An errand under way, of exactly this stage.
#[derive(Debug)]
struct Errand {
    stage: Stage,
    task: JoinHandle<Result<(), Refusal>>,
}

impl Drop for Errand {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What is read at once.
struct Read {
    instance: InstanceRow,
    source: HostRow,
    target: HostRow,
    held: Vec<claw_core::backup::SnapshotInfo>,
}

impl Driver {
    /// For this fleet.
    #[must_use]
    pub fn new(fleet: Fleet) -> Self {
        let started = fleet.clock.now();
        Self {
            fleet,
            started,
            seen: BTreeMap::new(),
            errands: BTreeMap::new(),
            watched: BTreeSet::new(),
            watcher: None,
        }
    }

    /// Runs until it is aborted.
    pub async fn run(mut self) {
        loop {
            let is_idle = match self.look().await {
                Ok(count) => count == 0,
                Err(error) => {
                    tracing::warn!(%error, "cannot look at moves");
                    false
                }
            };
            self.rest(is_idle).await;
        }
    }

    /// Looks at every move once; returns how many are under way.
    async fn look(&mut self) -> Result<usize, Refusal> {
        let read = |connection: &Connection, _keys: &Keys| migrations::active(connection);
        let active = self.fleet.store.read_long(read).await?;
        self.fleet.migrations.keep_arrivals(&active);
        self.errands.retain(|uid, _errand| active.iter().any(|row| row.uid == *uid));
        self.watch(active.iter().map(|row| row.name.clone()).collect());
        let count = active.len();
        for row in active {
            let name = row.name.clone();
            if let Err(error) = self.drive(row).await {
                tracing::warn!(instance = %name, %error, "cannot go on with a move");
            }
        }
        Ok(count)
    }

    /// Waits until something may have changed.
    async fn rest(&self, is_idle: bool) {
        let watched = async {
            match &self.watcher {
                Some(watcher) => watcher.next().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.fleet.migrations.wake.notified() => {}
            _names = watched => {}
            () = tokio::time::sleep(if is_idle { REST } else { LOOK }) => {}
        }
    }

    fn watch(&mut self, names: BTreeSet<InstanceName>) {
        if names == self.watched {
            return;
        }
        // Without a place there is the timer.
        self.watcher =
            (!names.is_empty()).then(|| self.fleet.hub.subscribe(Some(names.clone()))).flatten();
        self.watched = names;
    }

    async fn drive(&mut self, mut row: MigrationRow) -> Result<(), Refusal> {
        for _step in 0..MOST_STEPS {
            let facts = self.facts(&row).await?;
            let step = course(&row.state, &facts);
            match step {
                Step::Wait => return Ok(()),
                Step::Begin => {
                    self.begin(&row);
                    return Ok(());
                }
                step => {
                    tracing::info!(instance = %row.name, ?step, "a move goes on");
                    self.errands.remove(&row.uid);
                    self.carry_out(row.clone(), step).await?;
                }
            }
            let name = row.name.clone();
            let read =
                move |connection: &Connection, _keys: &Keys| instances::find(connection, &name);
            let found = self.fleet.store.read_long(read).await?;
            match found.and_then(|instance| instance.migration).filter(MigrationRow::is_active) {
                Some(next) => row = next,
                None => return Ok(()),
            }
        }
        Ok(())
    }

    fn begin(&mut self, row: &MigrationRow) {
        let (fleet, of) = (self.fleet.clone(), row.clone());
        let task = tokio::spawn(async move {
            let outcome = errand::run(fleet.clone(), of).await;
            fleet.migrations.wake();
            outcome
        });
        let errand = Errand { stage: row.state.stage.clone(), task };
        self.errands.insert(row.uid.clone(), errand);
    }

    /// Carries a step out; one that the new host's state has no room for goes back.
    async fn carry_out(&self, row: MigrationRow, step: Step) -> Result<(), Refusal> {
        match self.write(row.clone(), step).await {
            Err(refusal @ (Refusal::Precondition { .. } | Refusal::Invalid(_))) => {
                self.write(row, Step::Revert(refusal.to_string())).await
            }
            done => done,
        }
    }

    async fn write(&self, row: MigrationRow, step: Step) -> Result<(), Refusal> {
        let arrival = self.fleet.migrations.arrival(&row.target, &row.name);
        let decided = Decided { row, step, arrived: arrival.map(|arrival| arrival.report) };
        let now = self.fleet.clock.now();
        let job = move |connection: &Connection, keys: &Keys| {
            stages::carry_out(connection, keys, decided, now)
        };
        if let Some(effects) = self.fleet.store.write(job).await? {
            self.fleet.apply(&effects);
        }
        Ok(())
    }

    async fn facts(&mut self, row: &MigrationRow) -> Result<Facts, Refusal> {
        let of = row.clone();
        let read = move |connection: &Connection, _keys: &Keys| read(connection, &of);
        let read = self.fleet.store.read_long(read).await?;
        let now = self.fleet.clock.now();
        let work = self.work(row).await;
        let arrival = self.fleet.migrations.arrival(&row.target, &row.name);
        let arrived = arrival.is_some_and(|arrival| {
            let listed = arrival.report.snapshots.iter();
            listed.map(|info| Some(&info.name)).any(|name| name == row.state.stage.snapshot())
        });
        Ok(Facts {
            now,
            run: match run_state(&read.instance.spec) {
                fleet::RunState::Stopped => RunState::Stopped,
                fleet::RunState::Paused => RunState::Paused,
                fleet::RunState::Running | fleet::RunState::Unspecified => RunState::Running,
            },
            stop_grace: stop_grace(&read.instance),
            source: self.sight(&read.source, row, now),
            target: self.sight(&read.target, row, now),
            work,
            held: read.held,
            arrived,
        })
    }

    /// How the errand of this very stage stands; one of another stage is given up.
    async fn work(&mut self, row: &MigrationRow) -> Work {
        let Some(errand) = self.errands.get_mut(&row.uid) else { return Work::Idle };
        if errand.stage != row.state.stage {
            self.errands.remove(&row.uid);
            return Work::Idle;
        }
        if !errand.task.is_finished() {
            return Work::Busy;
        }
        let outcome = (&mut errand.task).await;
        self.errands.remove(&row.uid);
        match outcome {
            Ok(Ok(())) => Work::Done,
            Ok(Err(refusal)) => Work::Failed(refusal.to_string()),
            Err(_lost) => Work::Failed("the coordinator lost track of it".to_owned()),
        }
    }

    fn sight(&mut self, host: &HostRow, row: &MigrationRow, now: Timestamp) -> Sight {
        let view = self.fleet.registry.instance(&host.name, &row.name);
        let online = self.fleet.registry.host_state(host, now) == fleet::HostState::Online;
        if online {
            self.seen.insert(host.name.clone(), now);
        }
        let seen = self.seen.get(&host.name).copied().unwrap_or(self.started);
        let same_epoch = view.persisted.is_some_and(|stamp| stamp.epoch == host.stamp.epoch);
        Sight {
            online,
            silent: now.since(seen.max(self.started)),
            report: view.report.filter(|_report| same_epoch).map(|(report, _at)| report),
        }
    }
}

fn read(connection: &Connection, row: &MigrationRow) -> Result<Read, Refusal> {
    let held = if matches!(row.state.stage, Stage::Stopping { .. }) {
        let all = snapshots::all(connection, &row.uid)?;
        all.into_iter().filter_map(|snapshot| snapshot.listed).collect()
    } else {
        Vec::new()
    };
    Ok(Read {
        instance: instances::load(connection, &row.name)?,
        source: hosts::load(connection, &row.source)?,
        target: hosts::load(connection, &row.target)?,
        held,
    })
}

fn stop_grace(instance: &InstanceRow) -> Duration {
    let given = instance.spec.stop_grace.as_ref();
    let given = given.and_then(|grace| u64::try_from(grace.seconds).ok());
    given.map_or(DEFAULT_STOP_GRACE, Duration::from_secs)
}
