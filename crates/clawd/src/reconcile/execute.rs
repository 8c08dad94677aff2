//! Carries out plans: the only place that changes the machine.
//!
//! [`begin`] journals the intent of every step, durably, before any effect; [`carry_out`] then does
//! them, one match over [`Step`]. Steps of a stage run side by side, the first failed stage ends the
//! plan, each step has a deadline. Dropping [`carry_out`] is how a newer target preempts a stuck step.
//!
//! With a full disk nothing can be journaled. Containers that exist are still started, stopped and
//! thawed then, with the intent in memory only: a customer's gateway must come back although the disk
//! is full, and the worst that a crash of the agent in that moment can do is to count one stop as a
//! crash. Everything that makes or removes something is refused until there is room.

use std::cell::RefCell;
use std::time::Duration;

use claw_core::name::InstanceName;
use claw_core::plan::{DesiredInstance, Plan, Step};
use claw_core::time::Timestamp;

use super::deadline::{self, Elapsed, within};
use super::trial::{self, TrialFailure};
use crate::agent::Agent;
use crate::journal::{Remembered, StartIntent, StepOutcome, StopIntent, WriteFailure};
use crate::machine::Machine;
use crate::ports::{
    Clock as _, Files as _, FilesError, Host as _, JobProgress, Proxy as _, ProxyError,
    PullProgress, Runtime as _, RuntimeChange, RuntimeError, VolumeError, Volumes as _, Writers,
};

/// A stop may end this long after its grace and still be the one that was wanted.
const STOP_SLACK: Duration = Duration::from_secs(120);

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// Docker.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The file system.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// The reverse proxy.
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] WriteFailure),
    /// A data directory.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The migration of its state.
    #[error(transparent)]
    Migration(#[from] TrialFailure),
    /// The step's deadline.
    #[error(transparent)]
    Stuck(#[from] Elapsed),
}

/// A step that failed.
#[derive(Debug, thiserror::Error)]
#[error("{step} failed")]
pub struct StepFailure {
    /// Its name.
    pub step: &'static str,
    /// Why.
    #[source]
    pub source: StepError,
}

impl StepFailure {
    /// Whether Docker was not there: a restart of it, not anything that was asked of it.
    pub(super) const fn is_of_docker_away(&self) -> bool {
        matches!(
            self.source,
            StepError::Runtime(RuntimeError::Unreachable(_))
                | StepError::Migration(TrialFailure::Runtime(RuntimeError::Unreachable(_)))
        )
    }
}

/// How far a plan has come; readable after its future was dropped.
#[derive(Debug, Default)]
pub struct Ledger {
    /// One entry for each step, in the order of the plan; `None` while it has no outcome.
    outcomes: RefCell<Vec<Option<Result<(), String>>>>,
}

impl Ledger {
    /// Whether a step is done.
    #[must_use]
    pub fn is_done(&self, index: usize) -> bool {
        self.outcomes.borrow().get(index).is_some_and(|outcome| *outcome == Some(Ok(())))
    }

    /// The outcomes for the journal; steps without one were preempted, or never begun.
    #[must_use]
    pub fn outcomes(&self, ids: &[i64]) -> Vec<StepOutcome> {
        let outcomes = self.outcomes.borrow();
        let text = |index: usize| match outcomes.get(index) {
            Some(Some(Ok(()))) => "done".to_owned(),
            Some(Some(Err(error))) => format!("failed: {error}"),
            Some(None) => "preempted".to_owned(),
            None => "not begun".to_owned(),
        };
        ids.iter()
            .enumerate()
            .map(|(index, id)| StepOutcome { id: *id, outcome: text(index) })
            .collect()
    }

    fn open(&self, steps: usize) -> usize {
        let mut outcomes = self.outcomes.borrow_mut();
        let first = outcomes.len();
        outcomes.resize(first + steps, None);
        first
    }

    fn close(&self, index: usize, outcome: Result<(), String>) {
        if let Some(slot) = self.outcomes.borrow_mut().get_mut(index) {
            *slot = Some(outcome);
        }
    }
}

/// Journals the intent of every step. Returns the rows of the steps, or none if the disk is full and
/// the plan may go on without.
///
/// # Errors
/// [`StepFailure`] of the first step when the journal refuses; nothing was done then.
pub async fn begin<M: Machine>(
    agent: &Agent<M>,
    desired: &DesiredInstance,
    plan: &Plan,
    remembered: &mut Remembered,
) -> Result<Vec<i64>, StepFailure> {
    let clock = agent.machine.clock();
    let now = clock.now();
    let before = remembered.clone();
    intend(remembered, plan, &agent.machine.host().boot_id(), now);
    let texts = steps(plan).map(ToString::to_string).collect();
    let job = agent.journal.begin(&desired.name, remembered, desired.generation, texts, now);
    let outcome = within(clock, deadline::JOURNAL, job).await;
    let error = match outcome {
        Ok(Ok(ids)) => return Ok(ids),
        Ok(Err(error)) => StepError::Journal(error),
        Err(elapsed) => StepError::Stuck(elapsed),
    };
    if steps(plan).all(works_without_journal) {
        tracing::warn!(
            instance = desired.name.as_str(),
            error = crate::logging::chain(&error),
            "going on with the intent in memory only"
        );
        return Ok(Vec::new());
    }
    *remembered = before;
    let step = steps(plan).next().map_or("journal", Step::name);
    Err(StepFailure { step, source: error })
}

/// Carries out a plan whose intents are journaled.
///
/// `show` is told what is under way. Cancel-safe: what was done is in the ledger.
///
/// # Errors
/// [`StepFailure`] of the first failed step.
pub async fn carry_out<M: Machine>(
    agent: &Agent<M>,
    name: &InstanceName,
    plan: &Plan,
    ledger: &Ledger,
    show: &dyn Fn(String),
) -> Result<(), StepFailure> {
    for stage in &plan.stages {
        let names: Vec<&str> = stage.iter().map(Step::name).collect();
        show(names.join(" | "));
        let first = ledger.open(stage.len());
        let work = stage.iter().enumerate().map(|(index, step)| async move {
            let limit = limit(step);
            let outcome = within(agent.machine.clock(), limit, one(agent, name, step, show)).await;
            let outcome = outcome.map_err(StepError::from).and_then(|outcome| outcome);
            let text = outcome.as_ref().err().map(|error| crate::logging::chain(error));
            ledger.close(first + index, text.map_or(Ok(()), Err));
            outcome.map_err(|source| StepFailure { step: step.name(), source })
        });
        let outcomes = futures_util::future::join_all(work).await;
        outcomes.into_iter().collect::<Result<(), StepFailure>>()?;
    }
    Ok(())
}

/// What is remembered once the steps that are done are done.
pub fn settle(remembered: &mut Remembered, plan: &Plan, ledger: &Ledger) {
    let done = steps(plan).enumerate().filter(|(index, _)| ledger.is_done(*index));
    for (_, step) in done {
        match step {
            Step::PullImage { .. } => remembered.record.pull_not_before = None,
            Step::DeliverFiles { digest, .. } => remembered.files = Some(*digest),
            Step::StartContainer { secrets, restarts } => {
                remembered.record.restarts_done = *restarts;
                remembered.record.started_with_secrets = Some(*secrets);
                remembered.start = None;
                remembered.stop = None;
                if std::mem::take(&mut remembered.died) {
                    remembered.restart_count = remembered.restart_count.saturating_add(1);
                }
            }
            _ => {}
        }
    }
}

/// The steps of a plan in their order.
pub fn steps(plan: &Plan) -> impl Iterator<Item = &Step> {
    plan.stages.iter().flatten()
}

/// What the intent alone changes in memory: an effect may have happened from here on.
fn intend(remembered: &mut Remembered, plan: &Plan, boot: &str, now: Timestamp) {
    for step in steps(plan) {
        match step {
            Step::StopContainer { id, grace, reason } => {
                remembered.stop = Some(StopIntent {
                    container: id.clone(),
                    reason: *reason,
                    until: now.after(*grace).after(STOP_SLACK),
                });
            }
            Step::StartContainer { secrets, restarts } => {
                remembered.start =
                    Some(StartIntent { at: now, secrets: *secrets, restarts: *restarts });
                remembered.boot = Some(boot.to_owned());
            }
            // Half-delivered files are nobody's.
            Step::DeliverFiles { .. } => remembered.files = None,
            _ => {}
        }
    }
}

const fn works_without_journal(step: &Step) -> bool {
    matches!(
        step,
        Step::StartContainer { .. }
            | Step::StopContainer { .. }
            | Step::UnpauseContainer { .. }
            | Step::UpdateLimits { .. }
            | Step::WriteSecrets { .. }
            | Step::PublishProxy { .. }
    )
}

fn limit(step: &Step) -> Duration {
    match step {
        Step::PullImage { .. } => deadline::PULL,
        Step::CopyData { .. } | Step::MigrateData { .. } | Step::DropData { .. } => deadline::DATA,
        Step::StopContainer { grace, .. } => grace.saturating_add(deadline::AFTER_GRACE),
        _ => deadline::CHANGE,
    }
}

async fn one<M: Machine>(
    agent: &Agent<M>,
    name: &InstanceName,
    step: &Step,
    show: &dyn Fn(String),
) -> Result<(), StepError> {
    let machine = &agent.machine;
    let runtime = |change| machine.runtime().change(name, change);
    match step {
        Step::PullImage { image } => {
            let progress =
                |at: PullProgress| show(format!("{} {}", step.name(), progress_text(at)));
            machine.runtime().pull(image, &progress).await?;
        }
        Step::CreateNetwork { network } => runtime(RuntimeChange::CreateNetwork(network)).await?,
        Step::RemoveNetwork { id } => runtime(RuntimeChange::RemoveNetwork(id)).await?,
        Step::DeliverFiles { data, files, .. } => {
            machine.files().deliver(name, *data, files).await?;
        }
        Step::WriteSecrets { text, .. } => machine.files().write_secrets(name, text).await?,
        Step::RemoveSecrets => machine.files().remove_secrets(name).await?,
        Step::CreateContainer { container } => {
            let mounts = machine.files().mounts(name, container.data);
            runtime(RuntimeChange::CreateContainer(container, &mounts)).await?;
        }
        Step::StartContainer { .. } => runtime(RuntimeChange::Start).await?,
        Step::UnpauseContainer { id } => runtime(RuntimeChange::Unpause(id)).await?,
        Step::StopContainer { id, grace, .. } => runtime(RuntimeChange::Stop(id, *grace)).await?,
        Step::RemoveContainer { id } => runtime(RuntimeChange::Remove(id)).await?,
        Step::UpdateLimits { id, cpu, pids } => {
            runtime(RuntimeChange::Limits(id, *cpu, *pids)).await?;
        }
        Step::PublishProxy { host } => machine.proxy().publish(host).await?,
        Step::UnpublishProxy => machine.proxy().unpublish(name).await?,
        Step::CopyData { from, into } => {
            let progress = |at: JobProgress| show(format!("{} {}", step.name(), copied_text(at)));
            let volumes = machine.volumes();
            volumes.copy(name, *from, *into, Writers::Nobody, &progress).await?;
        }
        Step::MigrateData { container } => trial::migrate(agent, container).await?,
        Step::DropData { data } => machine.volumes().remove(name, *data).await?,
        Step::SetDataAside => machine.files().set_aside(name, machine.clock().now()).await?,
        Step::Forget => agent.journal.forget(name).await?,
    }
    Ok(())
}

fn progress_text(at: PullProgress) -> String {
    const MIB: u64 = claw_core::unit::MIB;
    format!("{} of {} MiB", at.current_bytes / MIB, at.total_bytes / MIB)
}

fn copied_text(at: JobProgress) -> String {
    const MIB: u64 = claw_core::unit::MIB;
    format!("{} of {} MiB", at.done_bytes / MIB, at.total_bytes / MIB)
}
