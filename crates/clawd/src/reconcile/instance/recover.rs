//! Data that leaves the disk while its instance is paused, and comes back, within an instance's loop.
//!
//! What is remembered is durable before anything is removed, and nothing is started before the data is
//! there again: a snapshot that cannot be restored leaves the instance down, and says so.

use std::rc::Rc;

use claw_core::data::DataGeneration;
use claw_core::event::{EventKind, Severity};
use claw_core::name::SnapshotName;
use claw_core::plan::{DesiredInstance, Plan, Step, Wait};
use claw_core::reclaim::Reclaimable;
use claw_core::report::Phase;
use claw_core::time::Timestamp;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::{InstanceLoop, Next};
use crate::logging::chain;
use crate::machine::Machine;
use crate::ports::Clock as _;
use crate::reconcile::reclaim::{Recover, RecoverError, bring_back};

/// A task that brings data back; it ends with its owner.
pub(super) struct Recovery {
    what: Recover,
    outcome: oneshot::Receiver<Result<(), RecoverError>>,
    task: JoinHandle<()>,
}

impl Drop for Recovery {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Ends when data that is being brought back is there, or cannot be had; never when none is. Cancel-safe.
pub(super) async fn recovered(recovery: &mut Option<Recovery>) -> Result<(), RecoverError> {
    let Some(recovery) = recovery else { return std::future::pending().await };
    match (&mut recovery.outcome).await {
        Ok(outcome) => outcome,
        // The task was dropped with its owner, and with it this loop.
        Err(_closed) => std::future::pending().await,
    }
}

impl<M: Machine> InstanceLoop<M> {
    /// Whether its data may leave the disk.
    pub(super) fn reclaimable(&self, wanted: &DesiredInstance, plan: &Plan) -> Option<Reclaimable> {
        let facts = self.facts.as_ref().filter(|facts| facts.files.data_present)?;
        if plan.phase != Phase::Paused || !plan.is_converged() {
            return None;
        }
        let held = self.agent.roster.held(&wanted.name).snapshots?;
        let container = facts.runtime.container.as_ref();
        claw_core::reclaim::reclaimable(wanted, &self.remembered.record, container, &held)
    }

    /// Lets the data leave the disk if that is asked for and still true; true when the turn is over.
    pub(super) async fn reclaim_if_asked(&mut self, wanted: &Rc<DesiredInstance>) -> Option<Next> {
        let asked = self.agent.roster.reclaim_asked(&wanted.name)?;
        let member = self.agent.roster.member(&wanted.name);
        let possible = member.and_then(|member| member.reclaimable);
        if possible.is_none_or(|possible| possible.snapshot != asked) {
            self.agent.roster.end_reclaim(&wanted.name);
            return None;
        }
        let message =
            format!("the disk is short of room: its data goes, snapshot {asked} holds it");
        self.remembered.record.reclaim(asked);
        self.facts = None;
        let next = self.persist(wanted).await;
        let kind = EventKind::DataReclaimed;
        self.agent.event(Some(&wanted.name), kind, Severity::Warning, message);
        Some(next)
    }

    /// Removes what was reclaimed before anything else is done: an earlier agent may have been ended in the
    /// midst of it. None: nothing of it is left, or it is not tried yet.
    pub(super) async fn drop_reclaimed(
        &mut self,
        wanted: &Rc<DesiredInstance>,
        now: Timestamp,
    ) -> Option<Next> {
        let Some(data) = self.remembered.record.being_reclaimed() else {
            if self.remembered.record.reclaimed.is_some() {
                self.agent.roster.end_reclaim(&wanted.name);
            }
            return None;
        };
        if self.remembered.record.retry_not_before.is_some_and(|at| at > now) {
            return None;
        }
        let plan = Plan {
            stages: vec![vec![Step::DropData { data }]],
            wait: Wait::Nothing,
            phase: Phase::Applying,
            message: String::new(),
        };
        Some(self.drop_data(wanted, &plan).await)
    }

    pub(super) async fn begin_recovery(
        &mut self,
        wanted: &DesiredInstance,
        into: DataGeneration,
    ) -> Next {
        self.remembered.record.begin_recovery(into);
        self.persist(wanted).await
    }

    /// Has the data brought back; whoever does it tells.
    pub(super) fn recover(
        &mut self,
        wanted: &Rc<DesiredInstance>,
        snapshot: SnapshotName,
        into: DataGeneration,
    ) -> Next {
        let now = self.now();
        let resting = self.recover_not_before.filter(|at| *at > now);
        let message = format!("bringing its data back from snapshot {snapshot}");
        let failed = self.recover_not_before.is_some();
        let phase = if failed { Phase::Failed } else { Phase::Applying };
        let plan = Plan { stages: Vec::new(), wait: Wait::Nothing, phase, message };
        self.describe(wanted, &plan, now);
        let what = Recover { instance: wanted.name.clone(), snapshot, into };
        if self.recovery.as_ref().is_some_and(|recovery| recovery.what == what) {
            return Next::Wait(None);
        }
        if resting.is_some() {
            return Next::Wait(resting);
        }
        let (sender, outcome) = oneshot::channel();
        let (agent, order) = (Rc::clone(&self.agent), what.clone());
        let task = tokio::task::spawn_local(async move {
            // Whoever waited may have something newer to do.
            let _outcome = sender.send(bring_back(&agent, &order).await);
        });
        self.recovery = Some(Recovery { what, outcome, task });
        Next::Wait(None)
    }

    /// The data is back, or cannot be had.
    pub(super) async fn take_recovered(&mut self, outcome: Result<(), RecoverError>) {
        let Some(recovery) = self.recovery.take() else { return };
        let wanted = Rc::clone(&self.targets.borrow());
        let name = Some(&wanted.name);
        match outcome {
            Ok(()) => {
                self.recover_not_before = None;
                self.describer.failure = None;
                self.remembered.record.recovered();
                // What lies there is of another time than what was delivered last.
                self.remembered.files = None;
                self.facts = None;
                let message = format!("its data is back from snapshot {}", recovery.what.snapshot);
                self.agent.event(name, EventKind::DataRecovered, Severity::Info, message);
                // Until it is durable nothing goes on.
                self.persist(&wanted).await;
            }
            Err(error) => {
                let delay = self.retries.pull.next_delay(self.agent.machine.clock().random());
                self.recover_not_before = Some(self.now().after(delay));
                let message = format!("its data cannot be brought back: {}", chain(&error));
                self.agent.event(name, EventKind::StepFailed, Severity::Error, message.as_str());
                self.describer.failure = Some(message);
            }
        }
    }
}
