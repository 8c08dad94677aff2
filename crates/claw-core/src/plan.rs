//! The way from what an instance is to what it should be.
//!
//! [`plan`] is pure, total and deterministic. Its [`Plan`] is a list of stages; the steps of one
//! stage do not depend on each other and may run side by side, stages run in order, and the first
//! failure ends the plan. A stale plan is never patched: the agent observes and plans again.
//!
//! What it does not do: render files, talk to Docker, decide about other instances or the host.
//! Where to start: [`plan`], then the transcripts in the tests, which are readable as text.

mod container;
mod step;

use crate::address::InstanceNetwork;
use crate::data::DataGeneration;
use crate::name::{InstanceName, StatePath};
use crate::observed::{ContainerState, ObservedContainer, ObservedInstance, RestSnapshot};
use crate::report::Phase;
use crate::restart::RestartDecision;
use crate::spec::{InstanceSpec, RunState, Secret};
use crate::stamp::{Digest, Generation};
use crate::time::Timestamp;

use std::collections::BTreeMap;

pub use container::{
    ContainerPlan, container_digest, container_name, container_plan, network_name,
};
pub use step::{Step, StopReason};

/// Everything an instance needs, rendered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// Files below the state directory, `openclaw.json` among them.
    pub files: BTreeMap<StatePath, String>,
    /// Content of the `.env` on tmpfs.
    pub secrets: Secret,
}

impl Delivery {
    /// Digest of paths and contents of the files.
    #[must_use]
    pub fn files_digest(&self) -> Digest {
        let mut text = String::new();
        for (path, content) in &self.files {
            text.push_str(&format!("{path}\n{}\n{content}\n", content.len()));
        }
        Digest::of(text.as_bytes())
    }

    /// Digest of the secrets file.
    #[must_use]
    pub fn secrets_digest(&self) -> Digest {
        Digest::of(self.secrets.reveal().as_bytes())
    }
}

/// A virtual host of the reverse proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VirtualHost {
    /// The instance it belongs to.
    pub instance: InstanceName,
    /// Names it answers to.
    pub hostnames: Vec<String>,
    /// Where the gateway is.
    pub upstream: std::net::SocketAddr,
    /// Sources that are served; empty: everyone.
    pub sources: std::collections::BTreeSet<crate::firewall::Cidr>,
}

/// What should become of an instance on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// It should exist.
    Present {
        /// What it should be.
        spec: Box<InstanceSpec>,
        /// What it needs, rendered.
        delivery: Box<Delivery>,
    },
    /// It was deleted on purpose.
    Removed,
}

/// One instance as it should be on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DesiredInstance {
    /// Which.
    pub name: InstanceName,
    /// The host state's generation.
    pub generation: Generation,
    /// Where on the host it lives.
    pub network: InstanceNetwork,
    /// Which of its data directories is in use.
    pub data: DataGeneration,
    /// What should become of it.
    pub target: Target,
}

/// What a plan waits for once its steps are done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wait {
    /// Nothing: converged.
    Nothing,
    /// The health gate; past the deadline the start has failed.
    Gate {
        /// When the start counts as failed.
        deadline: Timestamp,
    },
    /// Staying healthy long enough.
    MinHealthy {
        /// When it has been long enough.
        until: Timestamp,
    },
    /// A point in time, because of failures.
    Until {
        /// When to plan again.
        at: Timestamp,
    },
    /// The rules of its network policy: nothing is started before they are in force. Whoever puts them
    /// in force wakes the instance's loop.
    Firewall,
    /// A snapshot of the data as it lies there. Whoever takes it wakes the instance's loop.
    Snapshot,
    /// The gateway drains or answers badly; it is restarted if that lasts.
    Answer {
        /// When it counts as hung.
        deadline: Timestamp,
    },
}

/// What must be done for one instance, and what it is until then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Steps to carry out; stages in order, steps of a stage side by side.
    pub stages: Vec<Vec<Step>>,
    /// What to wait for afterwards.
    pub wait: Wait,
    /// Where the instance is on its way.
    pub phase: Phase,
    /// Why, for a person; empty when all is well.
    pub message: String,
}

impl Plan {
    /// Whether nothing is left to do and nothing is waited for.
    #[must_use]
    pub fn is_converged(&self) -> bool {
        self.stages.is_empty() && self.wait == Wait::Nothing
    }

    /// The earliest time at which a new plan can differ from this one without a cause from outside.
    #[must_use]
    pub const fn wake_at(&self) -> Option<Timestamp> {
        match self.wait {
            Wait::Nothing | Wait::Firewall | Wait::Snapshot => None,
            Wait::Gate { deadline: at }
            | Wait::MinHealthy { until: at }
            | Wait::Until { at }
            | Wait::Answer { deadline: at } => Some(at),
        }
    }

    fn waiting(phase: Phase, wait: Wait, message: impl Into<String>) -> Self {
        Self { stages: Vec::new(), wait, phase, message: message.into() }
    }

    fn steps(phase: Phase, stages: Vec<Vec<Step>>) -> Self {
        let stages = stages.into_iter().filter(|stage| !stage.is_empty()).collect();
        Self { stages, wait: Wait::Nothing, phase, message: String::new() }
    }
}

impl std::fmt::Display for Plan {
    /// One line per stage, steps separated by ` | `, then what is waited for.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for stage in &self.stages {
            let steps: Vec<String> = stage.iter().map(ToString::to_string).collect();
            writeln!(f, "{}", steps.join(" | "))?;
        }
        match &self.wait {
            Wait::Nothing => write!(f, "= {}", self.phase)?,
            Wait::Firewall => write!(f, "= {}, until the firewall is ready", self.phase)?,
            Wait::Snapshot => write!(f, "= {}, until the snapshot is taken", self.phase)?,
            Wait::Gate { deadline } => write!(f, "= {}, gate until {deadline}", self.phase)?,
            Wait::MinHealthy { until } => write!(f, "= {}, healthy until {until}", self.phase)?,
            Wait::Until { at } => write!(f, "= {}, until {at}", self.phase)?,
            Wait::Answer { deadline } => write!(f, "= {}, answer until {deadline}", self.phase)?,
        }
        if self.message.is_empty() { Ok(()) } else { write!(f, ": {}", self.message) }
    }
}

/// What must be done to make `desired` true, given what was `observed` at `now`.
#[must_use]
pub fn plan(desired: &DesiredInstance, observed: &ObservedInstance, now: Timestamp) -> Plan {
    if let Some(at) = observed.record.retry_not_before.filter(|at| *at > now) {
        return Plan::waiting(Phase::Failed, Wait::Until { at }, "the last step failed");
    }
    match &desired.target {
        Target::Removed => remove(desired, observed),
        Target::Present { spec, delivery } => {
            let wanted = Wanted { desired, spec, delivery };
            match spec.run {
                RunState::Stopped => wanted.stopped(observed),
                RunState::Paused => wanted.paused(observed),
                RunState::Running => wanted.running(observed, now),
            }
        }
    }
}

fn remove(desired: &DesiredInstance, observed: &ObservedInstance) -> Plan {
    let mut stages = Vec::new();
    if let Some(container) = &observed.container {
        if is_up(container) {
            let grace = std::time::Duration::from_secs(30);
            stages.push(vec![Step::StopContainer {
                id: container.id.clone(),
                grace,
                reason: StopReason::Removal,
            }]);
        }
        if is_up(container) && observed.data_present {
            return Plan::steps(Phase::Removing, stages);
        }
        stages.push(vec![Step::RemoveContainer { id: container.id.clone() }]);
    }
    if observed.data_present && observed.at_rest == RestSnapshot::Missing {
        return Plan::waiting(Phase::Removing, Wait::Snapshot, "taking the final snapshot");
    }
    let network = observed.network.as_ref().map(|n| Step::RemoveNetwork { id: n.id.clone() });
    stages.push(vec![Step::UnpublishProxy, Step::RemoveSecrets]);
    stages.push(network.into_iter().collect());
    stages.push(vec![Step::SetDataAside]);
    stages.push(vec![Step::Forget]);
    debug_assert!(desired.target == Target::Removed);
    Plan::steps(Phase::Removing, stages)
}

fn wait_for_firewall() -> Plan {
    Plan::waiting(Phase::Applying, Wait::Firewall, "waiting for the firewall")
}

const fn is_up(container: &ObservedContainer) -> bool {
    matches!(container.state, ContainerState::Running { .. } | ContainerState::Paused)
}

/// An instance that should exist, with what belongs to it.
struct Wanted<'a> {
    desired: &'a DesiredInstance,
    spec: &'a InstanceSpec,
    delivery: &'a Delivery,
}

impl Wanted<'_> {
    fn container_plan(&self) -> ContainerPlan {
        container_plan(self.desired, self.spec)
    }

    fn digest(&self) -> Digest {
        container_digest(self.desired, self.spec)
    }

    fn stopped(&self, observed: &ObservedInstance) -> Plan {
        match &observed.container {
            Some(container) if is_up(container) => Plan::steps(
                Phase::Applying,
                vec![vec![Step::StopContainer {
                    id: container.id.clone(),
                    grace: self.spec.stop_grace,
                    reason: StopReason::Wanted,
                }]],
            ),
            _ => Plan::waiting(Phase::Stopped, Wait::Nothing, ""),
        }
    }

    /// Down, and its data is held by a snapshot. One that fails keeps it down all the same.
    fn paused(&self, observed: &ObservedInstance) -> Plan {
        let plan = self.stopped(observed);
        if plan.phase != Phase::Stopped {
            return plan;
        }
        if let Some(reclaimed) = &observed.record.reclaimed {
            let message = format!("its data is in snapshot {} only", reclaimed.snapshot);
            return Plan { phase: Phase::Paused, message, ..plan };
        }
        if !observed.data_present {
            return plan;
        }
        match observed.at_rest {
            RestSnapshot::Held => Plan { phase: Phase::Paused, ..plan },
            RestSnapshot::GivenUp => {
                Plan { message: "paused without a snapshot: it failed".to_owned(), ..plan }
            }
            RestSnapshot::Missing => {
                Plan::waiting(Phase::Applying, Wait::Snapshot, "taking the snapshot of the pause")
            }
        }
    }

    fn running(&self, observed: &ObservedInstance, now: Timestamp) -> Plan {
        let current = observed.container.as_ref().filter(|container| {
            container.spec_digest == Some(self.digest()) && self.network_matches(observed)
        });
        match current {
            None => self.replace(observed, now),
            Some(container) => match container.state {
                ContainerState::Running { since, .. } => self.keep(container, since, observed, now),
                ContainerState::Paused => {
                    let id = container.id.clone();
                    Plan::steps(Phase::Applying, vec![vec![Step::UnpauseContainer { id }]])
                }
                ContainerState::Created | ContainerState::Exited(_) => {
                    self.start(container, observed, now)
                }
            },
        }
    }

    fn network_matches(&self, observed: &ObservedInstance) -> bool {
        observed.network.as_ref().is_some_and(|network| {
            network.subnet == self.desired.network.subnet()
                && network.bridge == self.desired.network.bridge()
        })
    }

    /// There is no container, or another one than wanted: pull first, while the old one serves.
    fn replace(&self, observed: &ObservedInstance, now: Timestamp) -> Plan {
        if !observed.image_present {
            if let Some(at) = observed.record.pull_not_before.filter(|at| *at > now) {
                let message = format!("the image {} could not be pulled", self.spec.image);
                return Plan::waiting(Phase::Pulling, Wait::Until { at }, message);
            }
            let image = self.spec.image.clone();
            return Plan::steps(Phase::Pulling, vec![vec![Step::PullImage { image }]]);
        }
        let mut stages = Vec::new();
        if let Some(old) = &observed.container {
            if is_up(old) {
                // What serves is not stopped for what could not be started.
                if !observed.firewalled {
                    return wait_for_firewall();
                }
                stages.push(vec![Step::StopContainer {
                    id: old.id.clone(),
                    grace: self.spec.stop_grace,
                    reason: StopReason::Replacement,
                }]);
            }
            stages.push(vec![Step::RemoveContainer { id: old.id.clone() }]);
        }
        let mut prepare = Vec::new();
        if !self.network_matches(observed) {
            if let Some(network) = &observed.network {
                stages.push(vec![Step::RemoveNetwork { id: network.id.clone() }]);
            }
            prepare.push(Step::CreateNetwork { network: self.desired.network });
        }
        prepare.extend(self.deliver(observed));
        prepare.extend(self.publish(observed));
        stages.push(prepare);
        stages.push(vec![Step::CreateContainer { container: Box::new(self.container_plan()) }]);
        if observed.firewalled {
            stages.push(vec![self.start_step()]);
        }
        Plan::steps(Phase::Applying, stages)
    }

    /// The wanted container is there and down.
    fn start(
        &self,
        container: &ObservedContainer,
        observed: &ObservedInstance,
        now: Timestamp,
    ) -> Plan {
        let asked = self.spec.restarts > observed.record.restarts_done;
        if matches!(container.state, ContainerState::Exited(_)) && !asked {
            let why = last_exit(container);
            match observed.record.history.decide(self.digest(), now) {
                RestartDecision::Now => {}
                RestartDecision::Later { at, failures } => {
                    let message = format!("{why}; {failures} failures in 10 minutes");
                    return Plan::waiting(Phase::BackingOff, Wait::Until { at }, message);
                }
                RestartDecision::BreakerOpen { at, failures } => {
                    let message = format!(
                        "{why}; {failures} failures in 10 minutes, one attempt every 5 minutes from now on"
                    );
                    return Plan::waiting(Phase::CrashLoop, Wait::Until { at }, message);
                }
            }
        }
        let mut prepare = self.deliver(observed);
        prepare.extend(self.limits(container));
        prepare.extend(self.publish(observed));
        if observed.firewalled {
            return Plan::steps(Phase::Applying, vec![prepare, vec![self.start_step()]]);
        }
        if prepare.is_empty() {
            wait_for_firewall()
        } else {
            Plan::steps(Phase::Applying, vec![prepare])
        }
    }

    fn start_step(&self) -> Step {
        let secrets = self.delivery.secrets_digest();
        Step::StartContainer { secrets, restarts: self.spec.restarts }
    }

    /// The wanted container runs: deliver what changed, restart if asked, then look at its health.
    fn keep(
        &self,
        container: &ObservedContainer,
        since: Timestamp,
        observed: &ObservedInstance,
        now: Timestamp,
    ) -> Plan {
        let mut prepare = self.deliver(observed);
        prepare.extend(self.limits(container));
        prepare.extend(self.publish(observed));
        let secrets = self.delivery.secrets_digest();
        let stale = observed.record.started_with_secrets.is_some_and(|used| used != secrets);
        if self.spec.restarts > observed.record.restarts_done || stale {
            let stop = Step::StopContainer {
                id: container.id.clone(),
                grace: self.spec.stop_grace,
                reason: StopReason::Restart,
            };
            if observed.firewalled {
                return Plan::steps(
                    Phase::Applying,
                    vec![prepare, vec![stop], vec![self.start_step()]],
                );
            }
            if prepare.is_empty() {
                return wait_for_firewall();
            }
        }
        if !prepare.is_empty() {
            return Plan::steps(Phase::Applying, vec![prepare]);
        }
        self.judge_health(container, since, observed, now)
    }

    fn judge_health(
        &self,
        container: &ObservedContainer,
        since: Timestamp,
        observed: &ObservedInstance,
        now: Timestamp,
    ) -> Plan {
        let policy = &self.spec.health;
        let health = &observed.health;
        let problem = || health.problem.clone().unwrap_or_default();
        let Some(healthy_since) = health.healthy_since else {
            let deadline = since.after(policy.startup_deadline);
            if now >= deadline {
                return self.give_up(container, StopReason::StartupDeadline, problem());
            }
            return Plan::waiting(Phase::Starting, Wait::Gate { deadline }, problem());
        };
        if health.problem.is_some() && !health.draining {
            let deadline = health.last_answer.unwrap_or(healthy_since).after(policy.hang_deadline);
            if now >= deadline {
                return self.give_up(container, StopReason::Hung, problem());
            }
            return Plan::waiting(Phase::Unhealthy, Wait::Answer { deadline }, problem());
        }
        if health.draining {
            return Plan::waiting(Phase::Unhealthy, Wait::Nothing, "the gateway is draining");
        }
        let until = healthy_since.after(policy.min_healthy);
        if now < until {
            return Plan::waiting(Phase::Starting, Wait::MinHealthy { until }, "");
        }
        Plan::waiting(Phase::Running, Wait::Nothing, "")
    }

    /// The run has failed: end it; the next plan starts it again under the restart policy.
    fn give_up(&self, container: &ObservedContainer, reason: StopReason, message: String) -> Plan {
        let stop = Step::StopContainer {
            id: container.id.clone(),
            grace: self.spec.stop_grace.min(std::time::Duration::from_secs(10)),
            reason,
        };
        Plan { message, ..Plan::steps(Phase::Unhealthy, vec![vec![stop]]) }
    }

    fn deliver(&self, observed: &ObservedInstance) -> Vec<Step> {
        let mut steps = Vec::new();
        let secrets = self.delivery.secrets_digest();
        if !observed.data_present || observed.files != Some(self.delivery.files_digest()) {
            steps.push(Step::DeliverFiles {
                data: self.desired.data,
                files: self.delivery.files.clone(),
                digest: self.delivery.files_digest(),
            });
        }
        if observed.secrets != Some(secrets) {
            steps.push(Step::WriteSecrets { text: self.delivery.secrets.clone(), digest: secrets });
        }
        steps
    }

    fn publish(&self, observed: &ObservedInstance) -> Option<Step> {
        let host = virtual_host(self.desired, self.spec);
        (!observed.proxy_current).then_some(Step::PublishProxy { host })
    }

    fn limits(&self, container: &ObservedContainer) -> Option<Step> {
        let wanted = &self.spec.resources;
        let same =
            container.nano_cpus == wanted.cpu.nano() && container.pids_limit == wanted.pids.count();
        (!same).then(|| Step::UpdateLimits {
            id: container.id.clone(),
            cpu: wanted.cpu,
            pids: wanted.pids,
        })
    }
}

/// The virtual host that serves an instance.
#[must_use]
pub fn virtual_host(desired: &DesiredInstance, spec: &InstanceSpec) -> VirtualHost {
    let mut hostnames: Vec<String> = spec.web.hostnames.iter().map(ToString::to_string).collect();
    hostnames.push(format!("{}.claw.localhost", desired.name));
    VirtualHost {
        instance: desired.name.clone(),
        hostnames,
        upstream: (desired.network.container(), crate::spec::GATEWAY_PORT).into(),
        sources: spec.network.web_sources.clone(),
    }
}

fn last_exit(container: &ObservedContainer) -> String {
    match container.state {
        ContainerState::Exited(exit) if exit.oom => "killed for want of memory".to_owned(),
        ContainerState::Exited(exit) => format!("exited with status {}", exit.code),
        _ => "down".to_owned(),
    }
}

#[cfg(test)]
mod tests;
