//! The loop's side of errands: takes them up, does one, says what came of it.

use std::rc::Rc;

use claw_core::backup::BackupReport;
use claw_core::name::InstanceName;

use super::Backups;
use super::due::Work;
use super::errand::{self, Did, Errand, ErrandKind, Task, judge};
use super::job::{JOB, JobError};
use super::ledger::Ended;
use super::request::RequestRefused;
use crate::logging::chain;
use crate::machine::Machine;
use crate::ports::Clock as _;
use crate::reconcile::deadline::within;

impl<M: Machine> Backups<M> {
    /// Takes one up, or says why not.
    pub(super) fn accept_errand(
        &mut self,
        name: InstanceName,
        errand: Errand,
    ) -> Result<(), RequestRefused> {
        let member = self.agent.roster.member(&name);
        let known = member.as_ref().and_then(|member| Some((member, self.ledgers.get(&name)?)));
        if member.is_some() && known.is_none() {
            return Err(RequestRefused::NotLooked(name));
        }
        judge(&name, &errand, known)?;
        match errand {
            Errand::Import(snapshot, _) if self.errands.imports(&name, &snapshot) => {
                Err(RequestRefused::Exists(snapshot))
            }
            errand => {
                let now = self.agent.machine.clock().now();
                self.errands.accept(name, errand, &self.agent.roster.elsewhere(), now)
            }
        }
    }

    /// Does the first errand of an instance; requests are answered meanwhile.
    pub(super) async fn run_errand(&mut self, name: &InstanceName) {
        let now = self.agent.machine.clock().now();
        let Some(mut accepted) = self.errands.begin(name) else { return };
        let (again, kind) = (accepted.again(), accepted.task.kind());
        let work = Work::Errand(kind);
        let order = self.order(name, work.clone(), now);
        if order.is_none() && matches!(accepted.task, Task::Fetch(..)) {
            // Whatever an earlier attempt ended in, this one has begun.
            self.agent.board.backups(name, BackupReport::default());
        }
        let agent = Rc::clone(&self.agent);
        let job = async {
            let errand = errand::run(&agent, (name, &mut accepted.task), order.as_ref());
            within(agent.machine.clock(), JOB, errand).await?
        };
        let outcome = self.work_on(&work, None, job).await;
        self.disk_seen = None;
        match (outcome, again) {
            (Some(outcome), _) => self.errand_ended(name, kind, outcome).await,
            (None, Some(again)) => self.errands.put_back(again),
            (None, None) => self.errands.ended(),
        }
    }

    async fn errand_ended(
        &mut self,
        name: &InstanceName,
        kind: ErrandKind,
        outcome: Result<Did, JobError>,
    ) {
        self.errands.ended();
        match &outcome {
            Ok(_) => tracing::info!(instance = name.as_str(), %kind, "done"),
            Err(error) => {
                let error = chain(error);
                tracing::warn!(instance = name.as_str(), %kind, error, "failed");
            }
        }
        let clock = self.agent.machine.clock();
        let ended = Ended { at: clock.now(), random: clock.random() };
        if let Some(ledger) = self.ledgers.get_mut(name) {
            let told = ledger.errand_ended(kind, outcome, ended);
            return self.tell(name, told);
        }
        if matches!(kind, ErrandKind::Receive | ErrandKind::Fetch | ErrandKind::Discard) {
            let report = errand::report(&self.agent, name, &outcome).await;
            self.agent.board.backups(name, report);
        }
    }
}
