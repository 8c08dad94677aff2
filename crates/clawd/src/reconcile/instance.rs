//! The loop of one instance: level-triggered, without end until the instance is forgotten.
//!
//! A turn looks (unless what was seen still holds), plans, and either carries out the plan or waits
//! for a cause: a newer target, a ring of the bell (Docker said something), a point in time that the
//! plan names, or an answer of the gateway. A newer target ends the steps under way by dropping them;
//! one that differs only in its generation does not.

mod describe;
mod recover;
mod steer;

use std::rc::Rc;
use std::time::Duration;

use claw_core::backoff::{Backoff, Bounds};
use claw_core::backup::SnapshotCause;
use claw_core::event::{EventKind, Severity};
use claw_core::observed::{ContainerState, ObservedContainer, ObservedInstance};
use claw_core::plan::{
    DesiredInstance, Plan, Step, Target, Wait, container_digest, plan, virtual_host,
};
use claw_core::spec::RunState;
use claw_core::stamp::Digest;
use claw_core::time::Timestamp;
use tokio::select;
use tokio::sync::watch;

use super::execute::{self, Ledger, StepError, StepFailure};
use super::exits::{self, ExitCause, Noted};
use super::health::{HealthWatch, Turn};
use super::observe::{Facts, ObserveError, observe, observed};
use super::prepare::{PrepareError, Prepared};
use super::reclaim::RecoverError;
use super::wake::{Bell, Cause};
use crate::agent::Agent;
use crate::journal::{Remembered, Versions};
use crate::logging::chain;
use crate::machine::Machine;
use crate::ports::{Clock as _, Gateway as _, GatewayAnswer, Host as _, RuntimeError};
use crate::roster::Member;
use describe::{Describer, Seen};
use recover::{Recovery, recovered};
use steer::{Steered, Steering};

/// After a step failed.
const STEP_RETRY: Bounds =
    Bounds { floor: Duration::from_secs(1), ceiling: Duration::from_secs(60) };
/// After a pull failed.
const PULL_RETRY: Bounds =
    Bounds { floor: Duration::from_secs(5), ceiling: Duration::from_secs(300) };
/// After a look failed.
const LOOK_RETRY: Bounds =
    Bounds { floor: Duration::from_millis(500), ceiling: Duration::from_secs(15) };
/// The same plan carried out this often in a row without effect counts as a failure.
const MAX_REPEATS: u32 = 3;

/// One instance's loop.
pub(super) struct InstanceLoop<M> {
    agent: Rc<Agent<M>>,
    targets: watch::Receiver<Rc<DesiredInstance>>,
    bell: Rc<Bell>,
    pulse: Rc<Pulse>,
    remembered: Remembered,
    facts: Option<Facts>,
    looked_at: Timestamp,
    health: HealthWatch,
    retries: Retries,
    repeats: (String, u32),
    describer: Describer,
    steering: Steering,
    /// Data that is being brought back.
    recovery: Option<Recovery>,
    /// It could not be; that is not tried again before this.
    recover_not_before: Option<Timestamp>,
    /// The version that runs or shall run, and for which the facts are.
    effective: Rc<DesiredInstance>,
    first_look: bool,
}

/// What the watchdog sees of a loop.
#[derive(Debug, Default)]
pub(super) struct Pulse {
    /// Since when the loop does what should be short; `None` while it waits or carries out a plan, whose
    /// steps have deadlines of their own.
    pub(super) busy_since: std::cell::Cell<Option<Timestamp>>,
}

struct Retries {
    step: Backoff,
    pull: Backoff,
    look: Backoff,
    /// Publishing failed: the rest goes on, and it is not tried again before this.
    publish_not_before: Option<Timestamp>,
}

impl Retries {
    const fn new() -> Self {
        Self {
            step: Backoff::new(STEP_RETRY),
            pull: Backoff::new(PULL_RETRY),
            look: Backoff::new(LOOK_RETRY),
            publish_not_before: None,
        }
    }
}

/// What a turn ended in.
enum Next {
    Again,
    Wait(Option<Timestamp>),
    Forgotten,
}

/// How carrying out a plan ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Worked {
    Done,
    Superseded,
    Forgotten,
}

/// What ended a wait.
enum Woken {
    Target,
    Bell(Cause),
    Time,
    Answer(GatewayAnswer),
    Prepared(Result<Prepared, PrepareError>),
    Recovered(Result<(), RecoverError>),
    Abandoned,
}

impl<M: Machine> InstanceLoop<M> {
    pub(super) fn new(
        agent: Rc<Agent<M>>,
        targets: watch::Receiver<Rc<DesiredInstance>>,
        bell: Rc<Bell>,
        pulse: Rc<Pulse>,
        remembered: Remembered,
        versions: &Versions,
    ) -> Self {
        let describer = Describer::new(&targets.borrow(), &remembered);
        let effective = Rc::clone(&targets.borrow());
        Self {
            agent,
            targets,
            bell,
            pulse,
            remembered,
            facts: None,
            looked_at: Timestamp::default(),
            health: HealthWatch::default(),
            retries: Retries::new(),
            repeats: (String::new(), 0),
            describer,
            steering: Steering::new(versions),
            recovery: None,
            recover_not_before: None,
            effective,
            first_look: true,
        }
    }

    /// Runs until the instance is forgotten or the host's loop is gone.
    pub(super) async fn run(mut self) {
        loop {
            self.pulse.busy_since.set(Some(self.now()));
            let desired = Rc::clone(&self.targets.borrow_and_update());
            let next = self.turn(&desired).await;
            self.pulse.busy_since.set(None);
            match next {
                Next::Again => {}
                Next::Forgotten => return self.agent.roster.remove(&desired.name),
                Next::Wait(until) => {
                    let woken = self.wait(until).await;
                    if !self.take(woken, &desired).await {
                        return;
                    }
                }
            }
        }
    }

    async fn turn(&mut self, wanted: &Rc<DesiredInstance>) -> Next {
        if self.agent.roster.is_frozen(&wanted.name) {
            // It stands still for a moment; whoever holds it rings the bell.
            return Next::Wait(None);
        }
        self.claim_images(wanted);
        let effective = match self.steer(wanted).await {
            Steered::Run(effective) => effective,
            Steered::Over(next) => return next,
        };
        if let Err(error) = self.look_at(&effective).await {
            return self.blind(wanted, &error);
        }
        let now = self.now();
        let observed = self.observed(&effective, now);
        let plan = plan(&effective, &observed, now);
        if let Some(next) = self.judge(wanted, &effective, &plan).await {
            return next;
        }
        self.describe(&effective, &plan, now);
        self.announce_health(&plan);
        self.publish(wanted, &effective, &plan);
        if !plan.stages.is_empty() {
            return self.carry_out(wanted, &effective, &plan).await;
        }
        self.repeats = (String::new(), 0);
        if let Some(next) = self.reclaim_if_asked(wanted).await {
            return next;
        }
        match self.droppable(wanted) {
            Some(plan) => self.drop_data(wanted, &plan).await,
            None => Next::Wait(plan.wake_at()),
        }
    }

    /// Tells the others what is known of this instance.
    fn publish(
        &mut self,
        wanted: &Rc<DesiredInstance>,
        effective: &Rc<DesiredInstance>,
        plan: &Plan,
    ) {
        let facts = self.facts.as_ref();
        let container = facts.and_then(|facts| facts.runtime.container.as_ref());
        let up = container.filter(|c| matches!(c.state, ContainerState::Running { .. }));
        let cause = match effective.target {
            Target::Present { .. } => SnapshotCause::Pause,
            Target::Removed => SnapshotCause::Final,
        };
        let (up, down_since) = (up.map(|container| container.id.clone()), down_since(container));
        let reclaimed = self.remembered.record.reclaimed.as_ref().map(|r| r.snapshot.clone());
        let there = facts.is_some_and(|facts| facts.files.data_present);
        let (data_present, reclaimable) = (
            there && !self.remembered.record.is_reclaimed(effective.data),
            self.reclaimable(wanted, plan),
        );
        let awaits = (plan.wait == Wait::Snapshot).then_some(cause);
        let replaced = self.replaced_data(wanted);
        let last = self.last_version(wanted);
        let restore = match &wanted.target {
            Target::Present { spec, .. } => spec.restore.as_ref().map(|r| r.snapshot.clone()),
            Target::Removed => None,
        };
        self.agent.roster.publish(Member {
            effective: Rc::clone(effective),
            last,
            up,
            down_since,
            data_present,
            restore,
            awaits,
            replaced,
            reclaimable,
            reclaimed,
            bell: Rc::clone(&self.bell),
        });
    }

    /// Looks at a version of the instance, unless what was seen of it still holds.
    async fn look_at(&mut self, effective: &Rc<DesiredInstance>) -> Result<(), ObserveError> {
        if !Rc::ptr_eq(&self.effective, effective) {
            if *self.effective != **effective {
                self.facts = None;
            }
            self.effective = Rc::clone(effective);
        }
        if self.facts.is_some() { Ok(()) } else { self.look(effective).await }
    }

    /// Looks, and draws from it what happened since the last look.
    async fn look(&mut self, desired: &DesiredInstance) -> Result<(), ObserveError> {
        let facts = match observe(&self.agent.machine, desired).await {
            Ok(facts) => facts,
            Err(error) => {
                if error.is_runtime() {
                    self.agent.runtime_answers(Err(chain(&error)));
                }
                return Err(error);
            }
        };
        self.agent.runtime_answers(Ok(()));
        self.retries.look.reset();
        let first = std::mem::take(&mut self.first_look);
        if let Some(container) = &facts.runtime.container {
            if first && matches!(container.state, ContainerState::Running { .. }) {
                let message = format!("took over container {}", short(&container.id));
                self.agent.event(Some(&desired.name), EventKind::Adopted, Severity::Info, message);
            }
            self.note(desired, container);
        }
        let now = self.now();
        let container = facts.runtime.container.as_ref();
        self.health.follow(container, self.remembered.healthy.as_ref(), now);
        self.looked_at = now;
        self.facts = Some(facts);
        Ok(())
    }

    fn describe(&mut self, desired: &DesiredInstance, plan: &Plan, now: Timestamp) {
        let container = self.facts.as_ref().and_then(|facts| facts.runtime.container.as_ref());
        let seen = Seen { container, health: self.health.health(), remembered: &self.remembered };
        self.describer.describe(&self.agent, desired, plan, &seen, now);
    }

    fn note(&mut self, desired: &DesiredInstance, container: &ObservedContainer) {
        let boot = self.agent.machine.host().boot_id();
        if exits::complete_start(&mut self.remembered, container) {
            self.save(desired);
        }
        let fallback = digest_of(desired);
        if let Some(noted) = exits::note(&mut self.remembered, container, fallback, &boot) {
            self.repeats = (String::new(), 0);
            self.announce_exit(desired, noted);
            self.save(desired);
        }
    }

    fn announce_exit(&self, desired: &DesiredInstance, noted: Noted) {
        let code = noted.exit.code;
        let (kind, severity, message) = match noted.cause {
            ExitCause::Wanted => {
                (EventKind::Exited, Severity::Info, format!("stopped with status {code}"))
            }
            ExitCause::GivenUp(reason) => (
                EventKind::Exited,
                Severity::Error,
                format!("stopped because of {reason}, with status {code}"),
            ),
            ExitCause::OutOfMemory => (
                EventKind::OutOfMemory,
                Severity::Error,
                "killed by the kernel: the memory limit was reached".to_owned(),
            ),
            ExitCause::WithHost => {
                (EventKind::Exited, Severity::Info, "ended with the host".to_owned())
            }
            ExitCause::ByItself => {
                (EventKind::Exited, Severity::Error, format!("exited with status {code}"))
            }
        };
        self.agent.event(Some(&desired.name), kind, severity, message);
    }

    fn blind(&mut self, desired: &DesiredInstance, error: &ObserveError) -> Next {
        let delay = self.retries.look.next_delay(self.agent.machine.clock().random());
        tracing::warn!(
            instance = desired.name.as_str(),
            error = chain(error),
            retry_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX),
            "cannot look"
        );
        self.describer.blind(&self.agent, desired, chain(error));
        Next::Wait(Some(self.now().after(delay)))
    }

    fn observed(&self, desired: &DesiredInstance, now: Timestamp) -> ObservedInstance {
        let facts = self.facts.clone().unwrap_or_default();
        let mut observed = observed(&facts, &self.remembered, self.health.health());
        if observed.record.is_reclaimed(desired.data) {
            // What is left of a directory that is being removed is nobody's data.
            observed.data_present = false;
        } else {
            observed.record.reclaimed = None;
        }
        let down_since = down_since(observed.container.as_ref());
        observed.at_rest = self.agent.roster.held(&desired.name).at_rest(down_since);
        observed.firewalled = match &desired.target {
            Target::Present { spec, .. } => {
                self.agent.board.is_firewalled(&desired.name, desired.network, &spec.network)
            }
            Target::Removed => true,
        };
        let resting = self.retries.publish_not_before.is_some_and(|at| at > now);
        // A reverse proxy that refuses must not keep a dead gateway from coming back.
        observed.proxy_current |= resting;
        if let Some(ObservedContainer { state: ContainerState::Running { since, .. }, .. }) =
            &mut observed.container
        {
            *since = self.health.gate_since(*since);
        }
        observed
    }

    async fn carry_out(
        &mut self,
        wanted: &DesiredInstance,
        effective: &DesiredInstance,
        plan: &Plan,
    ) -> Next {
        if self.repeats_itself(plan) {
            let message = "its steps succeed and change nothing";
            self.probe_failed();
            return self.failed(wanted, "plan", message.to_owned(), false);
        }
        match self.work(wanted, effective, plan).await {
            Ok(Worked::Forgotten) => Next::Forgotten,
            Ok(Worked::Done | Worked::Superseded) => Next::Again,
            Err(failure) => {
                self.probe_failed();
                self.failure(wanted, &failure)
            }
        }
    }

    /// Carries out a plan for a version, unless something else is wanted meanwhile.
    async fn work(
        &mut self,
        wanted: &DesiredInstance,
        effective: &DesiredInstance,
        plan: &Plan,
    ) -> Result<Worked, StepFailure> {
        let begun = execute::begin(&self.agent, effective, plan, &mut self.remembered).await;
        let ids = match begun {
            Ok(ids) => ids,
            Err(failure) => {
                self.facts = None;
                return Err(failure);
            }
        };
        self.pulse.busy_since.set(None);
        let ledger = Ledger::default();
        let show = |step: String| self.describer.step(&self.agent, Some(step));
        let outcome = select! {
            biased;
            outcome = execute::carry_out(&self.agent, &effective.name, plan, &ledger, &show) => {
                outcome.map(|()| Worked::Done)
            }
            () = superseded(&mut self.targets, wanted) => Ok(Worked::Superseded),
        };
        self.describer.step(&self.agent, None);
        self.facts = None;
        execute::settle(&mut self.remembered, plan, &ledger);
        self.report_steps(effective, plan, &ledger);
        let forgotten = execute::steps(plan)
            .enumerate()
            .any(|(index, step)| matches!(step, Step::Forget) && ledger.is_done(index));
        if matches!(outcome, Ok(Worked::Done)) {
            self.succeeded(plan);
        }
        let outcomes = ledger.outcomes(&ids);
        // Durable soon; what is lost here is found again by looking.
        drop(self.agent.journal.finish(&wanted.name, &self.remembered, outcomes, self.now()));
        if forgotten { Ok(Worked::Forgotten) } else { outcome }
    }

    fn repeats_itself(&mut self, plan: &Plan) -> bool {
        let text = plan.to_string();
        if self.repeats.0 == text {
            self.repeats.1 += 1;
        } else {
            self.repeats = (text, 1);
        }
        self.repeats.1 > MAX_REPEATS
    }

    fn report_steps(&self, desired: &DesiredInstance, plan: &Plan, ledger: &Ledger) {
        for (index, step) in execute::steps(plan).enumerate() {
            if ledger.is_done(index) {
                let name = Some(&desired.name);
                self.agent.event(name, EventKind::StepDone, Severity::Info, step.to_string());
            }
        }
    }

    fn succeeded(&mut self, plan: &Plan) {
        if execute::steps(plan).any(|step| matches!(step, Step::PublishProxy { .. })) {
            self.retries.publish_not_before = None;
        }
        if self.retries.publish_not_before.is_none() {
            self.retries.step.reset();
            self.describer.failure = None;
        }
        if execute::steps(plan).any(|step| matches!(step, Step::PullImage { .. })) {
            self.retries.pull.reset();
        }
    }

    fn failure(&mut self, desired: &DesiredInstance, failure: &StepFailure) -> Next {
        if let StepError::Runtime(RuntimeError::Unreachable(_) | RuntimeError::Timeout { .. }) =
            &failure.source
        {
            self.agent.runtime_answers(Err(chain(&failure.source)));
        }
        let journal = matches!(failure.source, StepError::Journal(_));
        self.failed(desired, failure.step, chain(&failure.source), journal)
    }

    /// A step failed: decides when it may be tried again.
    fn failed(&mut self, desired: &DesiredInstance, step: &str, why: String, quiet: bool) -> Next {
        let (now, random) = (self.now(), self.agent.machine.clock().random());
        match step {
            "pull-image" => {
                let at = now.after(self.retries.pull.next_delay(random));
                self.remembered.record.pull_not_before = Some(at);
            }
            "publish-proxy" => {
                let at = now.after(self.retries.step.next_delay(random));
                self.retries.publish_not_before = Some(at);
            }
            _ => {
                let at = now.after(self.retries.step.next_delay(random));
                self.remembered.record.retry_not_before = Some(at);
            }
        }
        let message = format!("{step}: {why}");
        if quiet {
            tracing::warn!(instance = desired.name.as_str(), "{message}");
        } else {
            let name = Some(&desired.name);
            self.agent.event(name, EventKind::StepFailed, Severity::Warning, message.as_str());
        }
        self.repeats = (String::new(), 0);
        self.describer.failure = Some(message);
        Next::Again
    }

    async fn wait(&mut self, until: Option<Timestamp>) -> Woken {
        let agent = Rc::clone(&self.agent);
        let (clock, settings) = (agent.machine.clock(), &agent.settings);
        let now = self.now();
        let publish = self.retries.publish_not_before.filter(|at| *at > now);
        // While nothing is looked at, nothing grows old.
        let looked_at = self.facts.as_ref().map_or(now, |_| self.looked_at);
        let resync = looked_at.after(settings.resync);
        let change = self.change_wakes_at().filter(|at| *at > now);
        let due = until.into_iter().chain(publish).chain(change).fold(resync, Timestamp::min);
        // One more millisecond: a point in time is past only after it.
        let pause = due.since(now).saturating_add(Duration::from_millis(1));
        let watched = self.watched_host(&self.effective).filter(|_| self.is_running());
        let before_look = self.health.pause(settings, now);
        let look = async {
            let Some(host) = &watched else { return std::future::pending().await };
            clock.sleep(before_look).await;
            agent.machine.gateway().look(host).await
        };
        select! {
            biased;
            changed = self.targets.changed() => match changed {
                Ok(()) => Woken::Target,
                Err(_closed) => Woken::Abandoned,
            },
            cause = self.bell.rung() => Woken::Bell(cause),
            answer = look => Woken::Answer(answer),
            prepared = self.steering.prepared() => Woken::Prepared(prepared),
            recovered = recovered(&mut self.recovery) => Woken::Recovered(recovered),
            () = clock.sleep(pause.min(settings.resync)) => Woken::Time,
        }
    }

    /// Draws the consequences; false when the loop is to end.
    async fn take(&mut self, woken: Woken, desired: &DesiredInstance) -> bool {
        match woken {
            Woken::Abandoned => return false,
            Woken::Time => self.facts = None,
            Woken::Bell(cause) => {
                self.facts = None;
                if cause == Cause::Retry {
                    self.remembered.record.retry_not_before = None;
                    self.steering.retry();
                }
            }
            Woken::Target => {
                if self.targets.borrow().target != desired.target {
                    self.retarget();
                }
            }
            Woken::Answer(answer) => self.answered(answer, desired),
            Woken::Prepared(outcome) => self.take_prepared(outcome).await,
            Woken::Recovered(outcome) => self.take_recovered(outcome).await,
        }
        true
    }

    /// A new target is never held up by what its predecessor failed at.
    fn retarget(&mut self) {
        self.facts = None;
        self.retries = Retries::new();
        self.steering.retarget();
        self.recover_not_before = None;
        self.remembered.record.retry_not_before = None;
        self.remembered.record.pull_not_before = None;
        self.describer.failure = None;
        self.repeats = (String::new(), 0);
    }

    fn answered(&mut self, answer: GatewayAnswer, desired: &DesiredInstance) {
        match self.health.take(answer, self.now()) {
            Turn::Passed => {
                self.remembered.healthy = self.health.healthy_run();
                self.save(desired);
            }
            Turn::Proxy => self.facts = None,
            Turn::Nothing => {}
        }
    }

    fn announce_health(&self, plan: &Plan) {
        self.describer.announce(&self.agent, plan, self.health.is_restored());
    }

    fn is_running(&self) -> bool {
        let container = self.facts.as_ref().and_then(|facts| facts.runtime.container.as_ref());
        container.is_some_and(|c| matches!(c.state, ContainerState::Running { .. }))
    }

    fn watched_host(&self, desired: &DesiredInstance) -> Option<claw_core::plan::VirtualHost> {
        match &desired.target {
            Target::Present { spec, .. } if spec.run == RunState::Running => {
                Some(virtual_host(desired, spec))
            }
            _ => None,
        }
    }

    fn save(&self, desired: &DesiredInstance) {
        // Durable soon; what is lost here is found again by looking.
        drop(self.agent.journal.finish(&desired.name, &self.remembered, Vec::new(), self.now()));
    }

    fn now(&self) -> Timestamp {
        self.agent.machine.clock().now()
    }
}

/// Ends when there is a target that wants something else than `desired`; cancel-safe.
async fn superseded(targets: &mut watch::Receiver<Rc<DesiredInstance>>, desired: &DesiredInstance) {
    loop {
        if targets.changed().await.is_err() {
            // The host's loop is gone: this one is about to be dropped with it.
            return std::future::pending().await;
        }
        let newer = targets.borrow();
        if newer.target != desired.target || newer.network != desired.network {
            drop(newer);
            targets.mark_changed();
            return;
        }
    }
}

/// When a container ended that is down.
fn down_since(container: Option<&ObservedContainer>) -> Option<Timestamp> {
    match container?.state {
        ContainerState::Exited(exit) => Some(exit.at),
        _ => None,
    }
}

fn digest_of(desired: &DesiredInstance) -> Digest {
    match &desired.target {
        Target::Present { spec, .. } => container_digest(desired, spec),
        Target::Removed => Digest::of(b"removed"),
    }
}

fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}
