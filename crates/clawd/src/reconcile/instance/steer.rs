//! Changes of version within an instance's loop: what [`claw_core::cutover::course`] decides is done here.
//!
//! Every change of what is remembered is durable before its effect. Where a change fails, the version
//! before comes back, and only then anybody thinks about why.

mod leftovers;
mod versions;

use std::rc::Rc;

use claw_core::backup::SnapshotCause;
use claw_core::cutover::{
    Course, Cutover, Deployment, EXIT_NEEDS_MIGRATION, Migration, Stage, Verdict, Version, course,
    held_back,
};
use claw_core::data::DataGeneration;
use claw_core::event::{EventKind, Severity};
use claw_core::observed::{ContainerState, Exit, ObservedContainer};
use claw_core::plan::{
    DesiredInstance, Plan, Step, StopReason, Target, Wait, container_digest, container_plan,
};
use claw_core::report::{OperationReport, Phase};
use claw_core::spec::{InstanceSpec, RunState};
use claw_core::time::Timestamp;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::{InstanceLoop, Next, Worked};
use crate::journal::{Role, Versions};
use crate::logging::chain;
use crate::machine::Machine;
use crate::ports::{Clock as _, Host as _};
use crate::reconcile::prepare::{Order, PrepareError, Prepared, prepare};
use crate::roster::ReplacedData;
use versions::{decode, with_spec};

/// How long a version that failed may take to end: it is not needed any more.
const FAILED_GRACE: std::time::Duration = std::time::Duration::from_secs(10);
/// A step of the new version that fails this often in a row decides.
const MOST_FAILURES: u32 = 3;

/// The versions that the loop can run, and what is being made ready.
pub(super) struct Steering {
    confirmed: Option<Rc<InstanceSpec>>,
    replaced: Option<Rc<InstanceSpec>>,
    /// What was wanted, which of its versions was asked for, and the answer.
    cached: Option<(Rc<DesiredInstance>, Version, Rc<DesiredInstance>)>,
    preparation: Option<Preparation>,
    /// Steps of the new version that failed in a row.
    failures: u32,
    /// Making ready failed; it is not tried again before this.
    prepare_not_before: Option<Timestamp>,
    /// What is remembered is not durable yet: nothing goes on before it is.
    unsaved: bool,
}

/// A task that makes a change ready; it ends with its owner.
struct Preparation {
    cutover: Cutover,
    wanted: Rc<DesiredInstance>,
    outcome: oneshot::Receiver<Result<Prepared, PrepareError>>,
    task: JoinHandle<()>,
}

impl Drop for Preparation {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What a turn goes on with.
pub(super) enum Steered {
    /// The plain plan for this version.
    Run(Rc<DesiredInstance>),
    /// The turn is over.
    Over(Next),
}

/// What has become of a version that is being probed.
#[derive(Debug, PartialEq, Eq)]
enum Probe {
    Undecided,
    Passed,
    Migrate,
    Failed(String),
}

impl Steering {
    pub(super) fn new(versions: &Versions) -> Self {
        let spec = |role| versions.of(role).and_then(decode).map(Rc::new);
        Self {
            confirmed: spec(Role::Confirmed),
            replaced: spec(Role::Replaced),
            cached: None,
            preparation: None,
            failures: 0,
            prepare_not_before: None,
            unsaved: false,
        }
    }

    /// Ends when what is being made ready is, or has failed; never when nothing is. Cancel-safe.
    pub(super) async fn prepared(&mut self) -> Result<Prepared, PrepareError> {
        let Some(preparation) = &mut self.preparation else { return std::future::pending().await };
        match (&mut preparation.outcome).await {
            Ok(outcome) => outcome,
            // The task was dropped with its owner, and with it this loop.
            Err(_closed) => std::future::pending().await,
        }
    }

    /// What failed may be tried again at once.
    pub(super) const fn retry(&mut self) {
        self.prepare_not_before = None;
    }

    /// A new target is never held up by what its predecessor failed at.
    pub(super) fn retarget(&mut self) {
        self.retry();
        self.failures = 0;
    }
}

impl<M: Machine> InstanceLoop<M> {
    /// Decides which version runs now, and does what a change of version needs.
    pub(super) async fn steer(&mut self, wanted: &Rc<DesiredInstance>) -> Steered {
        let now = self.now();
        if self.steering.unsaved {
            match self.persist(wanted).await {
                Next::Again => {}
                next => return Steered::Over(next),
            }
        }
        if let Some(next) = self.drop_reclaimed(wanted, now).await {
            return Steered::Over(next);
        }
        let course = course(wanted, &self.remembered.record, now);
        if !matches!(course, Course::Recover { .. }) {
            self.recovery = None;
        }
        if !matches!(course, Course::Prepare(_)) {
            self.steering.preparation = None;
        }
        self.show_change(wanted);
        match course {
            Course::Plain(version) => Steered::Run(self.version(wanted, version)),
            Course::Begin(cutover) => match self.replaced_not_held(wanted) {
                Some(since) => {
                    self.show_wait(wanted, &cutover, since);
                    Steered::Run(self.version(wanted, Version::Confirmed(self.data_in_use())))
                }
                None => Steered::Over(self.begin(wanted, cutover).await),
            },
            Course::Prepare(version) => {
                self.make_ready(wanted, version);
                match version {
                    Some(version) => Steered::Run(self.version(wanted, version)),
                    None => Steered::Over(Next::Wait(None)),
                }
            }
            Course::BeginRecovery(into) => Steered::Over(self.begin_recovery(wanted, into).await),
            Course::Recover { snapshot, into } => {
                Steered::Over(self.recover(wanted, snapshot, into))
            }
            Course::Abandon => {
                self.remembered.record.end_cutover(now);
                self.remembered.record.end_recovery();
                Steered::Over(self.persist(wanted).await)
            }
            Course::Switch => Steered::Over(self.switch(wanted).await),
            Course::Probe(version) => Steered::Run(self.version(wanted, version)),
            Course::Hold => {
                let refused = self.remembered.record.refused.as_ref();
                let message = refused.map(|refused| refused.problem.clone()).unwrap_or_default();
                let plan =
                    Plan { stages: Vec::new(), wait: Wait::Nothing, phase: Phase::Failed, message };
                self.describe(wanted, &plan, now);
                Steered::Over(Next::Wait(None))
            }
            Course::Revert => Steered::Over(self.revert(wanted).await),
        }
    }

    /// What has become of the version that runs, once the plain plan for it is known; true when the turn is
    /// over.
    pub(super) async fn judge(
        &mut self,
        wanted: &Rc<DesiredInstance>,
        effective: &DesiredInstance,
        plan: &Plan,
    ) -> Option<Next> {
        let Target::Present { spec, .. } = &effective.target else { return None };
        let probing = match &self.remembered.record.cutover {
            Some(Cutover { stage: Stage::Probing { migration, deadline }, .. }) => {
                Some((*migration, *deadline))
            }
            Some(_) => None,
            None => return self.settle_version(wanted, effective, spec, plan).await,
        };
        let (migration, deadline) = probing?;
        match self.probe(effective, spec, plan, migration, deadline) {
            Probe::Undecided => None,
            Probe::Passed => Some(self.confirm(wanted, spec).await),
            Probe::Migrate => Some(self.migrate(wanted, effective, spec).await),
            Probe::Failed(problem) => Some(self.give_up(wanted, problem, Verdict::Failed).await),
        }
    }

    /// A step of the version that is being probed failed.
    pub(super) fn probe_failed(&mut self) {
        self.steering.failures = self.steering.failures.saturating_add(1);
    }

    /// Data of which nobody writes and of which a snapshot is wanted.
    pub(super) fn replaced_data(&mut self, wanted: &Rc<DesiredInstance>) -> Option<ReplacedData> {
        let record = &self.remembered.record;
        if let Some(Cutover { stage: Stage::Probing { .. }, begun, restore, .. }) = &record.cutover
            && record.reclaimed.is_none()
        {
            let (since, cause) = (*begun, cause(restore.is_some()));
            let data = record.active.as_ref()?.data;
            let desired = self.version(wanted, Version::Confirmed(data));
            return Some(ReplacedData { data, since, cause, desired });
        }
        let replaced = record.replaced?;
        let spec = self.steering.replaced.clone()?;
        let image_differs = record.active.as_ref().is_some_and(|a| a.image != spec.image);
        let desired = Rc::new(with_spec(wanted, &spec, replaced.data)?);
        let cause = cause(!image_differs);
        Some(ReplacedData { data: replaced.data, since: replaced.since, cause, desired })
    }

    /// What is being made ready is, or cannot be.
    pub(super) async fn take_prepared(&mut self, outcome: Result<Prepared, PrepareError>) {
        let Some(preparation) = self.steering.preparation.take() else { return };
        let Some(cutover) = self.remembered.record.cutover.clone() else { return };
        let (name, kind) = (&preparation.wanted.name, cutover.kind());
        match outcome {
            Ok(prepared) => {
                if !prepared.left_out.is_empty() {
                    let message = format!("{kind} to {}: {}", cutover.image, prepared.left_out);
                    let kind = EventKind::CutoverStarted;
                    self.agent.event(Some(name), kind, Severity::Warning, message);
                }
                self.steering.prepare_not_before = None;
                self.describer.failure = None;
                self.remembered.record.cutover = Some(cutover.prepared(prepared.migration));
            }
            Err(error) if error.is_verdict() => {
                let problem = chain(&error);
                let message = format!("{kind} to {} is refused: {problem}", cutover.image);
                let event = EventKind::CutoverRefused;
                self.agent.event(Some(name), event, Severity::Error, message);
                self.remembered.record.cutover = Some(cutover.failed(problem, Verdict::Failed));
                self.remembered.record.end_cutover(self.now());
            }
            Err(error) => {
                let at = self.retries.pull.next_delay(self.agent.machine.clock().random());
                self.steering.prepare_not_before = Some(self.now().after(at));
                let message = format!("{kind} to {} waits: {}", cutover.image, chain(&error));
                let event = EventKind::StepFailed;
                self.agent.event(Some(name), event, Severity::Warning, message.as_str());
                self.describer.failure = Some(message);
            }
        }
        let wanted = Rc::clone(&preparation.wanted);
        self.persist(&wanted).await;
    }

    /// Since when there is data of the version before of which no snapshot is held yet. Only one such directory
    /// is kept, and the next change takes its place: that waits until a snapshot holds it.
    fn replaced_not_held(&mut self, wanted: &Rc<DesiredInstance>) -> Option<Timestamp> {
        let since = self.replaced_data(wanted)?.since;
        let held = self.agent.roster.held(&wanted.name).holds_replaced(since);
        (!held).then_some(since)
    }

    fn data_in_use(&self) -> DataGeneration {
        let active = self.remembered.record.active.as_ref();
        active.map_or(DataGeneration::FIRST, |active| active.data)
    }

    fn show_wait(&self, wanted: &DesiredInstance, cutover: &Cutover, since: Timestamp) {
        let report = OperationReport {
            kind: cutover.kind(),
            stage: "waiting for the snapshot of the data before".to_owned(),
            permille: None,
            since,
        };
        self.agent.board.change(&wanted.name, Some(report));
    }

    async fn begin(&mut self, wanted: &DesiredInstance, cutover: Cutover) -> Next {
        let message = format!("{} to {} on {}", cutover.kind(), cutover.image, cutover.data);
        let kind = EventKind::CutoverStarted;
        self.agent.event(Some(&wanted.name), kind, Severity::Info, message);
        self.remembered.record.cutover = Some(cutover);
        self.steering.retarget();
        self.persist(wanted).await
    }

    fn make_ready(&mut self, wanted: &Rc<DesiredInstance>, version: Option<Version>) {
        let Some(cutover) = self.remembered.record.cutover.clone() else { return };
        let resting = self.steering.prepare_not_before.is_some_and(|at| at > self.now());
        let begun = self.steering.preparation.as_ref().is_some_and(|preparation| {
            preparation.cutover == cutover && preparation.wanted.target == wanted.target
        });
        if begun || resting {
            return;
        }
        let container = self.facts.as_ref().and_then(|facts| facts.runtime.container.as_ref());
        let up = container.filter(|c| matches!(c.state, ContainerState::Running { .. }));
        let present = version.map(|version| {
            let (Version::Confirmed(data) | Version::Wanted(data)) = version;
            (data, up.map(|container| container.id.clone()))
        });
        let order = Order { cutover: cutover.clone(), desired: Rc::clone(wanted), present };
        let (sender, outcome) = oneshot::channel();
        let agent = Rc::clone(&self.agent);
        let task = tokio::task::spawn_local(async move {
            // Whoever waited may have something newer to do.
            let _outcome = sender.send(prepare(agent, order).await);
        });
        let wanted = Rc::clone(wanted);
        self.steering.preparation = Some(Preparation { cutover, wanted, outcome, task });
    }

    /// The old version stops; its data is brought up to date in the new place.
    async fn switch(&mut self, wanted: &Rc<DesiredInstance>) -> Next {
        let Target::Present { spec, .. } = &wanted.target else { return Next::Again };
        let active = self.remembered.record.active.clone();
        let Some(cutover) = self.remembered.record.cutover.clone() else { return Next::Again };
        let old = active.as_ref().map(|active| {
            let version = Version::Confirmed(active.data);
            (active.data, self.version(wanted, version))
        });
        let looked = old.as_ref().map_or(wanted, |(_, desired)| desired);
        if let Err(error) = self.look_at(looked).await {
            return self.blind(wanted, &error);
        }
        if !self.observed(looked, self.now()).firewalled && spec.run == RunState::Running {
            return Next::Wait(None);
        }
        let plan =
            switch_plan(&cutover, old.as_ref().map(|(data, _)| *data), self.container(), looked);
        if let Some(next) = self.work_or_give_up(wanted, looked, &plan).await {
            return next;
        }
        self.remembered.record.cutover = Some(cutover.switched(spec, self.now()));
        // What lies there is of another time than what was delivered last.
        self.remembered.files = None;
        self.steering.failures = 0;
        self.facts = None;
        self.persist(wanted).await
    }

    fn probe(
        &self,
        effective: &DesiredInstance,
        spec: &InstanceSpec,
        plan: &Plan,
        migration: Migration,
        deadline: Timestamp,
    ) -> Probe {
        let container = self
            .container()
            .filter(|container| container.spec_digest == Some(container_digest(effective, spec)));
        let exit = container.and_then(|container| match container.state {
            ContainerState::Exited(exit) if !self.was_ended(exit) => Some(exit),
            _ => None,
        });
        let up = container.is_some_and(|c| matches!(c.state, ContainerState::Running { .. }));
        match (exit, migration) {
            (Some(exit), Migration::Unknown) if exit.code == EXIT_NEEDS_MIGRATION => {
                return Probe::Migrate;
            }
            (Some(exit), _) => return Probe::Failed(ended(exit)),
            (None, Migration::Needed) if !up => return Probe::Migrate,
            (None, _) => {}
        }
        if spec.run != RunState::Running {
            let down =
                matches!(plan.phase, Phase::Stopped | Phase::Paused) || plan.wait == Wait::Snapshot;
            return if down { Probe::Passed } else { Probe::Undecided };
        }
        if plan.phase == Phase::Running && plan.is_converged() {
            return Probe::Passed;
        }
        let gives_up =
            plan.stages.iter().flatten().any(
                |step| matches!(step, Step::StopContainer { reason, .. } if reason.is_failure()),
            );
        if gives_up {
            return Probe::Failed(format!("it is not healthy: {}", plan.message));
        }
        let failed = self.describer.failure.clone();
        if self.steering.failures >= MOST_FAILURES {
            return Probe::Failed(failed.unwrap_or_else(|| "it cannot be started".to_owned()));
        }
        if self.now() >= deadline {
            let why = failed.unwrap_or_else(|| plan.message.clone());
            return Probe::Failed(format!("it did not pass its gate in time: {why}"));
        }
        Probe::Undecided
    }

    /// Whether it ended with its host or with Docker, and not by itself.
    fn was_ended(&self, exit: Exit) -> bool {
        let boot = self.agent.machine.host().boot_id();
        let started_elsewhere = self.remembered.boot.as_deref().is_some_and(|b| b != boot);
        started_elsewhere || self.agent.board.runtime_was_away(exit.at)
    }

    async fn migrate(
        &mut self,
        wanted: &Rc<DesiredInstance>,
        effective: &DesiredInstance,
        spec: &InstanceSpec,
    ) -> Next {
        let Some(cutover) = self.remembered.record.cutover.clone() else { return Next::Again };
        let mut stages = Vec::new();
        if let Some(container) = self.container() {
            stages.push(vec![Step::RemoveContainer { id: container.id.clone() }]);
        }
        let container = Box::new(container_plan(effective, spec));
        stages.push(vec![Step::MigrateData { container }]);
        let plan =
            Plan { stages, wait: Wait::Nothing, phase: Phase::Applying, message: String::new() };
        if let Some(next) = self.work_or_give_up(wanted, effective, &plan).await {
            return next;
        }
        self.remembered.record.cutover = Some(cutover.migrated(spec, self.now()));
        self.persist(wanted).await
    }

    /// Carries out steps of a change; a failure ends it.
    async fn work_or_give_up(
        &mut self,
        wanted: &Rc<DesiredInstance>,
        effective: &DesiredInstance,
        plan: &Plan,
    ) -> Option<Next> {
        if plan.stages.is_empty() {
            return None;
        }
        match self.work(wanted, effective, plan).await {
            Ok(Worked::Done) => None,
            // A newer target came: it decides.
            Ok(Worked::Superseded | Worked::Forgotten) => Some(Next::Again),
            // No fault of the version: it is done again when Docker is back.
            Err(failure)
                if failure.is_of_docker_away() && self.steering.failures < MOST_FAILURES =>
            {
                self.probe_failed();
                self.failure(wanted, &failure);
                Some(Next::Wait(self.remembered.record.retry_not_before))
            }
            Err(failure) => {
                let problem = format!("{failure}: {}", chain(&failure.source));
                Some(self.give_up(wanted, problem, Verdict::Failed).await)
            }
        }
    }

    /// When a change, or data that is kept for a while, needs another look.
    pub(super) fn change_wakes_at(&self) -> Option<Timestamp> {
        let record = &self.remembered.record;
        let deadline = match &record.cutover {
            Some(Cutover { stage: Stage::Probing { deadline, .. }, .. }) => Some(*deadline),
            Some(_) => self.steering.prepare_not_before,
            None => record.replaced.map(|replaced| replaced.until),
        };
        deadline.filter(|_| self.steering.preparation.is_none())
    }

    async fn confirm(&mut self, wanted: &Rc<DesiredInstance>, spec: &InstanceSpec) -> Next {
        let Some(cutover) = self.remembered.record.cutover.clone() else { return Next::Again };
        let before = self.remembered.record.clone();
        let now = self.now();
        self.remembered.record.confirm_cutover(spec.update.keep_replaced, now);
        let old = self.steering.confirmed.clone();
        if let Err(error) = self.keep(wanted, spec, old.as_deref()).await {
            // Nothing is confirmed that would be forgotten.
            self.remembered.record = before;
            return self.failed(wanted, "journal", error, true);
        }
        let message = format!("{} to {} is confirmed", cutover.kind(), cutover.image);
        let kind = EventKind::CutoverConfirmed;
        self.agent.event(Some(&wanted.name), kind, Severity::Info, message);
        self.describer.failure = None;
        Next::Again
    }

    /// What runs well is what a later failure leads back to.
    async fn settle_version(
        &mut self,
        wanted: &Rc<DesiredInstance>,
        effective: &DesiredInstance,
        spec: &InstanceSpec,
        plan: &Plan,
    ) -> Option<Next> {
        let runs = plan.phase == Phase::Running && plan.is_converged();
        if !runs || self.steering.confirmed.as_deref() == Some(spec) {
            return None;
        }
        let known = self.remembered.record.active.clone();
        let active = Deployment { image: spec.image.clone(), data: effective.data };
        if known.as_ref().is_some_and(|known| *known != active) || self.is_held_back(spec) {
            return None;
        }
        self.remembered.record.active = Some(active);
        match self.keep(wanted, spec, None).await {
            Ok(()) => None,
            Err(error) => {
                self.remembered.record.active = known;
                tracing::warn!(instance = wanted.name.as_str(), error, "cannot journal a version");
                None
            }
        }
    }

    /// Whether this spec is a composition for as long as another version is wanted.
    fn is_held_back(&self, spec: &InstanceSpec) -> bool {
        let confirmed = self.steering.confirmed.as_deref();
        confirmed.is_some_and(|confirmed| *spec == held_back(confirmed, spec))
            && self.remembered.record.refused.is_some()
    }

    async fn give_up(
        &mut self,
        wanted: &Rc<DesiredInstance>,
        problem: String,
        verdict: Verdict,
    ) -> Next {
        let Some(cutover) = self.remembered.record.cutover.take() else { return Next::Again };
        self.remembered.record.cutover = Some(cutover.failed(problem, verdict));
        self.persist(wanted).await
    }

    /// Stops what was tried; from the next turn on the version before is the one that runs.
    async fn revert(&mut self, wanted: &Rc<DesiredInstance>) -> Next {
        let Some(cutover) = self.remembered.record.cutover.clone() else { return Next::Again };
        let cutover = match cutover.stage {
            Stage::Reverting { .. } => cutover,
            _ => cutover.failed("something else is wanted now".to_owned(), Verdict::Superseded),
        };
        let effective = self.version(wanted, Version::Wanted(cutover.data));
        if let Err(error) = self.look_at(&effective).await {
            return self.blind(wanted, &error);
        }
        let tried = self.container().filter(|container| {
            let active = self.remembered.record.active.as_ref();
            let old = active.map(|active| self.digest_of_confirmed(wanted, active));
            container.spec_digest.is_none() || Some(container.spec_digest) != old
        });
        if let Some(plan) = tried.and_then(stop_tried) {
            match self.work(wanted, &effective, &plan).await {
                Ok(Worked::Done) => {}
                Ok(_) => return Next::Again,
                Err(failure) => return self.failure(wanted, &failure),
            }
        }
        let Stage::Reverting { problem, .. } = &cutover.stage else { return Next::Again };
        let message = format!("{} to {} was reverted: {problem}", cutover.kind(), cutover.image);
        let kind = EventKind::CutoverReverted;
        self.agent.event(Some(&wanted.name), kind, Severity::Error, message);
        self.remembered.record.cutover = Some(cutover);
        self.remembered.record.end_cutover(self.now());
        // What lies in the old place was delivered for the old version.
        self.remembered.files = None;
        self.steering.failures = 0;
        self.facts = None;
        self.describer.failure = None;
        self.persist(wanted).await
    }

    /// Makes what is remembered durable; until it is, nothing goes on.
    pub(super) async fn persist(&mut self, wanted: &DesiredInstance) -> Next {
        let job = self.agent.journal.keep_versions(&wanted.name, &self.remembered, &[]);
        let outcome = job.await;
        self.steering.unsaved = outcome.is_err();
        match outcome {
            Ok(()) => Next::Again,
            Err(error) => {
                let delay = self.retries.step.next_delay(self.agent.machine.clock().random());
                tracing::warn!(
                    instance = wanted.name.as_str(),
                    error = chain(&error),
                    "a change waits for the journal"
                );
                Next::Wait(Some(self.now().after(delay)))
            }
        }
    }

    fn show_change(&self, wanted: &DesiredInstance) {
        let Some(cutover) = &self.remembered.record.cutover else {
            if self.recovery.is_some() {
                // Said in more detail by whoever brings the data back.
                return;
            }
            return self.agent.board.change(&wanted.name, None);
        };
        let stage = match &cutover.stage {
            // Said in more detail by whoever makes it ready.
            Stage::Preparing if self.steering.preparation.is_some() => return,
            Stage::Preparing => "making ready",
            Stage::Switching { .. } => "stopping the old version",
            Stage::Probing { .. } => "waiting for the new version to be healthy",
            Stage::Reverting { .. } => "bringing the old version back",
        };
        let report = OperationReport {
            kind: cutover.kind(),
            stage: stage.to_owned(),
            permille: None,
            since: cutover.begun,
        };
        self.agent.board.change(&wanted.name, Some(report));
    }

    fn container(&self) -> Option<&ObservedContainer> {
        self.facts.as_ref().and_then(|facts| facts.runtime.container.as_ref())
    }
}

/// Stops what runs and copies what changed since the first copy.
fn switch_plan(
    cutover: &Cutover,
    from: Option<DataGeneration>,
    container: Option<&ObservedContainer>,
    old: &DesiredInstance,
) -> Plan {
    let grace = match &old.target {
        Target::Present { spec, .. } => spec.stop_grace,
        Target::Removed => FAILED_GRACE,
    };
    let up = container.filter(|container| {
        matches!(container.state, ContainerState::Running { .. } | ContainerState::Paused)
    });
    let stop = up.map(|container| Step::StopContainer {
        id: container.id.clone(),
        grace,
        reason: StopReason::Replacement,
    });
    let copy = from
        .filter(|_| cutover.restore.is_none())
        .map(|from| Step::CopyData { from, into: cutover.data });
    let remove = container.map(|container| Step::RemoveContainer { id: container.id.clone() });
    let stages = [stop.into_iter().collect::<Vec<_>>(), copy.into_iter().chain(remove).collect()];
    let stages = stages.into_iter().filter(|stage| !stage.is_empty()).collect();
    Plan { stages, wait: Wait::Nothing, phase: Phase::Applying, message: String::new() }
}

fn stop_tried(container: &ObservedContainer) -> Option<Plan> {
    let up = matches!(container.state, ContainerState::Running { .. } | ContainerState::Paused);
    let step = Step::StopContainer {
        id: container.id.clone(),
        grace: FAILED_GRACE,
        reason: StopReason::Revert,
    };
    up.then(|| Plan {
        stages: vec![vec![step]],
        wait: Wait::Nothing,
        phase: Phase::Applying,
        message: String::new(),
    })
}

fn ended(exit: Exit) -> String {
    if exit.oom {
        return "it was killed for want of memory".to_owned();
    }
    format!("it exited with status {}", exit.code)
}

const fn cause(restore: bool) -> SnapshotCause {
    if restore { SnapshotCause::Restore } else { SnapshotCause::Update }
}
