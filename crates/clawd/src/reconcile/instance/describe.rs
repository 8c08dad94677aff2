//! An instance's report, and the events that its changes of phase are.

use std::cell::RefCell;

use claw_core::event::{EventKind, Severity};
use claw_core::observed::{ContainerState, Health, ObservedContainer};
use claw_core::plan::{DesiredInstance, Plan, Wait};
use claw_core::report::{HealthChange, InstanceReport, Phase};
use claw_core::time::Timestamp;

use crate::agent::Agent;
use crate::journal::Remembered;
use crate::machine::Machine;
use crate::ports::Clock as _;
use crate::report::{pending, push_health};

/// Keeps one instance's report.
pub(super) struct Describer {
    report: RefCell<InstanceReport>,
    pid: std::cell::Cell<Option<u32>>,
    before: Phase,
    /// Why the last step failed.
    pub(super) failure: Option<String>,
}

/// What a report is made from beside the plan.
pub(super) struct Seen<'a> {
    pub(super) container: Option<&'a ObservedContainer>,
    pub(super) health: &'a Health,
    pub(super) remembered: &'a Remembered,
}

impl Describer {
    pub(super) fn new(desired: &DesiredInstance, remembered: &Remembered) -> Self {
        let report = InstanceReport {
            restart_count: remembered.restart_count,
            last_exit: remembered.last_exit,
            ..pending(&desired.name, desired.generation)
        };
        Self {
            report: RefCell::new(report),
            pid: std::cell::Cell::new(None),
            before: Phase::Pending,
            failure: None,
        }
    }

    /// Reports what a plan says, with what it was made from.
    pub(super) fn describe<M: Machine>(
        &mut self,
        agent: &Agent<M>,
        desired: &DesiredInstance,
        plan: &Plan,
        seen: &Seen<'_>,
        now: Timestamp,
    ) {
        let mut report = self.report.borrow_mut();
        self.before = report.phase;
        report.generation = desired.generation;
        report.phase = phase_of(plan);
        report.message = message_of(plan, self.failure.as_deref());
        if report.phase != self.before {
            let change =
                HealthChange { at: now, phase: report.phase, message: report.message.clone() };
            push_health(&mut report.health_history, change);
        }
        let container = seen.container;
        report.container_id = container.map(|container| container.id.clone());
        let running = container.and_then(|container| match container.state {
            ContainerState::Running { since, pid } => Some((since, pid)),
            _ => None,
        });
        report.started_at = running.map(|(since, _)| since);
        self.pid.set(running.map(|(_, pid)| pid));
        report.restart_count = seen.remembered.restart_count;
        report.last_exit = seen.remembered.last_exit;
        report.healthy_since = seen.health.healthy_since;
        report.ready = seen.health.ready;
        report.active.clone_from(&seen.remembered.record.active);
        report.refused.clone_from(&seen.remembered.record.refused);
        agent.board.report(report.clone(), self.pid.get());
    }

    /// Reports that nothing can be seen.
    pub(super) fn blind<M: Machine>(
        &self,
        agent: &Agent<M>,
        desired: &DesiredInstance,
        why: String,
    ) {
        let mut report = self.report.borrow_mut();
        report.generation = desired.generation;
        report.message = why;
        agent.board.report(report.clone(), self.pid.get());
    }

    /// Reports the step under way, or that there is none.
    pub(super) fn step<M: Machine>(&self, agent: &Agent<M>, step: Option<String>) {
        let mut report = self.report.borrow_mut();
        let since = report.step.take().map(|(_, since)| since);
        report.step = step.map(|text| (text, since.unwrap_or_else(|| agent.machine.clock().now())));
        agent.board.report(report.clone(), self.pid.get());
    }

    /// Tells of a change of phase that somebody may care about. `restored`: an earlier agent told already
    /// that it is healthy.
    pub(super) fn announce<M: Machine>(&self, agent: &Agent<M>, plan: &Plan, restored: bool) {
        let report = self.report.borrow();
        if report.phase == self.before {
            return;
        }
        let known = restored && self.before == Phase::Pending;
        let (kind, severity, message) = match report.phase {
            Phase::Running if !known => {
                (EventKind::Healthy, Severity::Info, "serving, and past its health gate".to_owned())
            }
            Phase::Unhealthy => (EventKind::Unhealthy, Severity::Warning, plan.message.clone()),
            Phase::CrashLoop => (EventKind::CrashLoop, Severity::Error, plan.message.clone()),
            _ => return,
        };
        agent.event(Some(&report.name), kind, severity, message);
    }
}

/// A pull that failed and waits is a failure, not a pull.
fn phase_of(plan: &Plan) -> Phase {
    match (plan.phase, &plan.wait) {
        (Phase::Pulling, Wait::Until { .. }) => Phase::Failed,
        (phase, _) => phase,
    }
}

fn message_of(plan: &Plan, failure: Option<&str>) -> String {
    match failure {
        Some(failure) if plan.message.is_empty() => failure.to_owned(),
        Some(failure) => format!("{}: {failure}", plan.message),
        None => plan.message.clone(),
    }
}
