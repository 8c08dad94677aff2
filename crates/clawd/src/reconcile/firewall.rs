//! Keeps the host's firewall as it should be: one loop for the host.
//!
//! A wanted policy is rendered ([`claw_core::firewall::render`]) and put in force by the safe protocol
//! ([`protocol`]); what somebody else changes is repaired, and it is said who did it. A host's policy that
//! was reverted is not tried again for a while: the instances' policies go on with the last good one of the
//! host.
//!
//! What it does not do: count traffic ([`meter`]), ban sources ([`mod@guard`]), talk to iptables.
//!
//! Where to start: [`FirewallLoop::run`].

mod detail;
mod guard;
mod meter;
mod protocol;

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use claw_core::backoff::{Backoff, Bounds};
use claw_core::event::{EventKind, Severity};
use claw_core::firewall::{
    Effective, EffectiveInstance, HostPolicy, HostSet, InstanceSet, Port, Ruleset, Surroundings,
    check, flow, render,
};
use claw_core::firewall::{Family, Protocol};
use claw_core::host::HostState;
use claw_core::name::InstanceName;
use claw_core::stamp::{Digest, Generation};
use claw_core::time::Timestamp;
use tokio::select;
use tokio::sync::watch;

use super::deadline::within;
use crate::agent::{Agent, Settings};
use crate::journal::Note;
use crate::logging::chain;
use crate::machine::Machine;
use crate::ports::{Clock as _, Firewall as _, FirewallEvent, Resolver as _, Traffic as _};
use protocol::ProtocolError;

pub(super) use detail::detail;
pub(super) use guard::guard;
pub(super) use meter::Meter;

/// After a failure that another attempt may mend.
const RETRY: Bounds =
    Bounds { floor: Duration::from_millis(500), ceiling: Duration::from_secs(60) };
/// Between two looks at everything: changes of sets and of interfaces give no events.
const LOOK: Duration = Duration::from_secs(60);
/// Between two looks where legacy tables exist, whose changes give no events (3–6 ms each, measured).
const LOOK_LEGACY: Duration = Duration::from_secs(2);
/// A host's policy that was reverted is not tried again for this long, unless it changes.
const REVERTED: Duration = Duration::from_secs(3600);
/// Repairs that may follow each other at once; further ones wait for [`REPAIR_PACE`]. Every repair that waits
/// is a gap, so this is for quarrels without end only: with another manager of firewalls, one repair a second
/// is about a tenth of a core.
const REPAIRS: u32 = 60;
/// One repair more is allowed each time this has passed.
const REPAIR_PACE: Duration = Duration::from_secs(1);
/// Reading connections and sets, for tightening.
const READ: Duration = Duration::from_secs(10);

/// What the firewall should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FirewallTarget {
    /// The state that says so.
    pub(super) generation: Generation,
    /// What may come in.
    pub(super) host: HostPolicy,
    /// What may go out.
    pub(super) instances: BTreeMap<InstanceName, EffectiveInstance>,
}

impl FirewallTarget {
    /// The firewall's part of a state. An instance without an entry reaches nothing.
    pub(super) fn of(
        state: &HostState,
        generation: Generation,
        networks: impl Iterator<Item = (InstanceName, claw_core::address::InstanceNetwork)>,
    ) -> Self {
        let instances = networks.filter_map(|(name, network)| {
            let policy = state.instances.get(&name)?.network.clone();
            Some((name, EffectiveInstance { network, policy }))
        });
        Self { generation, host: state.firewall.clone(), instances: instances.collect() }
    }

    /// The whole policy with `host` as the host's part, on this host.
    pub(super) fn effective(
        &self,
        host: HostPolicy,
        surroundings: &Surroundings,
        settings: &Settings,
    ) -> Effective {
        let mut ssh_ports = host.ssh.ports.clone();
        if ssh_ports.is_empty() {
            ssh_ports.clone_from(&surroundings.ssh_ports);
        }
        if ssh_ports.is_empty() {
            ssh_ports.extend(Port::new(22));
        }
        let web_ports = settings.web_ports.clone();
        Effective {
            host,
            ssh_ports,
            web_ports,
            pool: settings.pool,
            instances: self.instances.clone(),
        }
    }
}

/// Rules that the kernel was told and gave back.
struct InForce {
    effective: Rc<Effective>,
    rules: Rc<Ruleset>,
}

/// A host's policy that cut this host off, or that the kernel refused.
#[derive(Debug)]
struct Reverted {
    policy: Digest,
    until: Timestamp,
    problem: String,
}

/// What an earlier agent noted.
#[derive(Debug, Default)]
pub(super) struct Noted {
    last_good: Option<HostPolicy>,
    reverted: Option<Reverted>,
}

impl Noted {
    pub(super) fn read(notes: &BTreeMap<Note, Vec<u8>>) -> Self {
        let last_good = notes.get(&Note::HostPolicy).and_then(|bytes| decode_host_policy(bytes));
        let reverted = notes.get(&Note::RevertedPolicy).and_then(|bytes| {
            let mut words = std::str::from_utf8(bytes).ok()?.splitn(3, ' ');
            let policy = Digest::from_hex(words.next()?)?;
            let until = Timestamp::from_millis(words.next()?.parse().ok()?);
            Some(Reverted { policy, until, problem: words.next()?.to_owned() })
        });
        Self { last_good, reverted }
    }
}

/// The loop of the host's firewall.
pub(super) struct FirewallLoop<M> {
    agent: Rc<Agent<M>>,
    targets: watch::Receiver<Option<Rc<FirewallTarget>>>,
    surroundings: watch::Sender<Surroundings>,
    in_force: Option<InForce>,
    last_good: Option<HostPolicy>,
    reverted: Option<Reverted>,
    retry: Backoff,
    /// Before this nothing is tried again.
    not_before: Option<Timestamp>,
    /// The target is not settled.
    is_due: bool,
    looked_at: Timestamp,
    repairs: Repairs,
    meter: Meter,
}

/// How many repairs may follow at once.
struct Repairs {
    left: u32,
    since: Timestamp,
}

impl Repairs {
    /// How long the next repair must wait.
    fn wait(&mut self, now: Timestamp) -> Duration {
        while self.left < REPAIRS && now.since(self.since) >= REPAIR_PACE {
            self.since = self.since.after(REPAIR_PACE);
            self.left += 1;
        }
        if self.left == 0 {
            REPAIR_PACE.saturating_sub(now.since(self.since))
        } else {
            Duration::ZERO
        }
    }

    /// One was made.
    fn count(&mut self, now: Timestamp) {
        if self.left == REPAIRS {
            self.since = now;
        }
        self.left = self.left.saturating_sub(1);
    }
}

impl<M: Machine> FirewallLoop<M> {
    pub(super) fn new(
        agent: Rc<Agent<M>>,
        targets: watch::Receiver<Option<Rc<FirewallTarget>>>,
        surroundings: watch::Sender<Surroundings>,
        noted: Noted,
        meter: Meter,
    ) -> Self {
        Self {
            agent,
            targets,
            surroundings,
            in_force: None,
            last_good: noted.last_good,
            reverted: noted.reverted,
            retry: Backoff::new(RETRY),
            not_before: None,
            is_due: true,
            looked_at: Timestamp::default(),
            repairs: Repairs { left: REPAIRS, since: Timestamp::default() },
            meter,
        }
    }

    /// Runs until dropped.
    pub(super) async fn run(mut self) {
        let agent = Rc::clone(&self.agent);
        let clock = agent.machine.clock();
        // Listening comes first: a change between the first look and the first event would be lost.
        let mut events = agent.machine.firewall().events();
        self.recover().await;
        loop {
            let now = clock.now();
            if self.is_due && self.not_before.is_none_or(|at| at <= now) {
                self.settle().await;
                continue;
            }
            let pause = self.pause(clock.now());
            let before_count = self.meter.pause(clock.now());
            select! {
                biased;
                Ok(()) = self.targets.changed() => {
                    self.is_due = true;
                    self.not_before = None;
                    self.retry.reset();
                }
                Some(event) = events.recv() => {
                    let by = match event {
                        FirewallEvent::Changed { by, .. } => by,
                        FirewallEvent::Overrun => None,
                    };
                    self.check(by).await;
                }
                () = clock.sleep(before_count) => {
                    let effective = self.in_force.as_ref().map(|in_force| Rc::clone(&in_force.effective));
                    if let Some(effective) = effective {
                        self.meter.count(&agent, &effective).await;
                    } else {
                        self.meter.postpone(clock.now());
                    }
                }
                () = clock.sleep(pause) => self.look().await,
            }
        }
    }

    fn pause(&self, now: Timestamp) -> Duration {
        let interval = if self.surroundings.borrow().legacy { LOOK_LEGACY } else { LOOK };
        let look = self.looked_at.after(interval).since(now);
        match self.not_before {
            Some(at) if self.is_due => at.since(now).min(look),
            _ => look,
        }
    }

    /// An agent that was ended between arming and the commit left its watchdog armed: nothing of what it
    /// tried stays.
    async fn recover(&self) {
        match protocol::revert(&self.agent.machine).await {
            Ok(false) => {}
            Ok(true) => {
                let message = "an agent was ended while it changed the rules: they were reverted";
                self.agent.event(None, EventKind::FirewallReverted, Severity::Warning, message);
            }
            Err(error) => {
                tracing::error!(error = chain(&error), "cannot revert what an earlier agent left");
            }
        }
    }

    /// Everything that gives no event: interfaces, sshd's ports, sets, legacy tables.
    async fn look(&mut self) {
        let now = self.agent.machine.clock().now();
        if self.is_due && self.not_before.is_some_and(|at| at <= now) {
            return;
        }
        self.looked_at = now;
        let before = self.surroundings.borrow().clone();
        if let Err(error) = self.survey().await {
            tracing::warn!(error = chain(&error), "cannot survey the host");
            return;
        }
        if *self.surroundings.borrow() != before {
            self.is_due = true;
            self.not_before = None;
        }
        self.check(None).await;
        self.count_bans().await;
    }

    async fn count_bans(&self) {
        let machine = &self.agent.machine;
        let mut banned = 0_usize;
        for family in Family::BOTH {
            let set = HostSet::Banned.name(family);
            match within(machine.clock(), READ, machine.firewall().entries(&set)).await {
                Ok(Ok(entries)) => banned = banned.saturating_add(entries.len()),
                Ok(Err(error)) => tracing::warn!(set, error = chain(&error), "cannot count bans"),
                Err(elapsed) => tracing::warn!(set, error = chain(&elapsed), "cannot count bans"),
            }
        }
        let banned = u32::try_from(banned).unwrap_or(u32::MAX);
        self.agent.board.firewall(None, |report| report.banned = banned);
    }

    async fn survey(&self) -> Result<(), ProtocolError> {
        let survey = self.agent.machine.firewall().surroundings();
        let found = within(self.agent.machine.clock(), READ, survey).await;
        let doing = "surveying the host";
        let found = found.map_err(|source| ProtocolError::Stuck { doing, source })??;
        let backend = found.backend.clone();
        self.agent.board.firewall(None, |report| report.backend = backend);
        self.surroundings.send_if_modified(|known| {
            let changed = *known != found;
            *known = found;
            changed
        });
        Ok(())
    }

    /// Brings the wanted policy in force, as far as that is possible.
    async fn settle(&mut self) {
        let Some(target) = self.targets.borrow_and_update().clone() else {
            self.is_due = false;
            return;
        };
        let mut problem = None;
        let outcome = match self.survey().await {
            Ok(()) => self.reach(&target, &mut problem).await,
            Err(error) => Err(error),
        };
        match outcome {
            Ok(()) => {
                self.is_due = self.reverted.is_some();
                self.not_before = self.reverted.as_ref().map(|reverted| reverted.until);
                self.retry.reset();
                self.agent.board.firewall(Some(target.generation), |report| {
                    if problem.is_none() {
                        report.applied = Some(target.generation);
                    }
                    report.problem = problem;
                });
            }
            Err(error) => self.failed(target.generation, &error),
        }
    }

    fn failed(&mut self, generation: Generation, error: &ProtocolError) {
        let problem = chain(error);
        let clock = self.agent.machine.clock();
        let delay = self.retry.next_delay(clock.random());
        self.not_before = Some(clock.now().after(delay));
        let known = self.agent.board.status().firewall.problem;
        if known.as_ref() != Some(&problem) {
            let message = format!("the policy of generation {generation}: {problem}");
            self.agent.event(None, EventKind::FirewallReverted, Severity::Error, message);
        }
        self.agent.board.firewall(Some(generation), |report| report.problem = Some(problem));
    }

    /// Tries the wanted policy; if the host's part is to blame, the last good one in its place.
    async fn reach(
        &mut self,
        target: &FirewallTarget,
        problem: &mut Option<String>,
    ) -> Result<(), ProtocolError> {
        let policy = digest(&target.host);
        let now = self.agent.machine.clock().now();
        if self.reverted.as_ref().is_some_and(|known| known.policy != policy || known.until <= now)
        {
            self.reverted = None;
        }
        if let Some(reverted) = &self.reverted {
            *problem = Some(reverted.problem.clone());
            return self.fall_back(target).await;
        }
        let effective = self.effective(target, target.host.clone());
        let faults = check::effective(&effective, &self.surroundings.borrow());
        if !faults.is_empty() {
            let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
            *problem = Some(faults.join("; "));
            return self.fall_back(target).await;
        }
        match self.enforce(effective).await {
            Err(error) if error.blames_the_rules() => {
                let text = chain(&error);
                let message = format!("the policy of generation {}: {text}", target.generation);
                self.agent.event(None, EventKind::FirewallReverted, Severity::Error, message);
                self.note_reverted(policy, text.clone());
                *problem = Some(text);
                self.fall_back(target).await
            }
            Ok(()) => {
                self.note_good(&target.host);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// The host's last good policy, and the instances' wanted ones.
    async fn fall_back(&mut self, target: &FirewallTarget) -> Result<(), ProtocolError> {
        let host = self.last_good.clone().unwrap_or_default();
        let effective = self.effective(target, host);
        self.enforce(effective).await
    }

    fn effective(&self, target: &FirewallTarget, host: HostPolicy) -> Effective {
        target.effective(host, &self.surroundings.borrow(), &self.agent.settings)
    }

    async fn enforce(&mut self, effective: Effective) -> Result<(), ProtocolError> {
        let agent = Rc::clone(&self.agent);
        self.tell_forwarder(&effective).await?;
        let rules = Rc::new(render::render(&effective));
        let known = self.in_force.as_ref().is_some_and(|in_force| in_force.rules == rules);
        let found = self.in_force.is_none()
            && protocol::deviations(&agent.machine, &rules).await?.is_empty();
        if !known && !found {
            let started = agent.machine.clock().now();
            let before = self.in_force.as_ref().map(|in_force| Rc::clone(&in_force.effective));
            if let Some(before) = &before {
                self.meter.count(&agent, before).await;
            }
            protocol::put_in_force(&agent.machine, &rules).await?;
            if let Some(before) = &before {
                self.meter.count(&agent, before).await;
            }
            let took = agent.machine.clock().now().since(started);
            let message = format!(
                "rules for {} instances are in force, after {} ms",
                effective.instances.len(),
                took.as_millis()
            );
            agent.event(None, EventKind::FirewallApplied, Severity::Info, message);
        }
        let effective = Rc::new(effective);
        let before = self.in_force.replace(InForce { effective: Rc::clone(&effective), rules });
        agent.board.set_in_force(Rc::clone(&effective));
        if let Some(before) = before {
            tighten(&agent, &before.effective, &effective).await;
        }
        Ok(())
    }

    /// What the forwarder does not know it does not answer: it is told before the rules that need it.
    async fn tell_forwarder(&self, effective: &Effective) -> Result<(), ProtocolError> {
        let names = effective.dns();
        if self.in_force.as_ref().is_some_and(|in_force| in_force.effective.dns() == names) {
            return Ok(());
        }
        let machine = &self.agent.machine;
        let told = within(machine.clock(), READ, machine.resolver().publish(&names)).await;
        let doing = "telling the forwarder of names";
        told.map_err(|source| ProtocolError::Stuck { doing, source })??;
        Ok(())
    }

    fn note_good(&mut self, host: &HostPolicy) {
        if self.last_good.as_ref() != Some(host) {
            let bytes = encode_host_policy(host);
            drop(self.agent.journal.note(Note::HostPolicy, bytes));
            self.last_good = Some(host.clone());
        }
    }

    fn note_reverted(&mut self, policy: Digest, problem: String) {
        let until = self.agent.machine.clock().now().after(REVERTED);
        let text = format!("{policy} {} {problem}", until.millis());
        drop(self.agent.journal.note(Note::RevertedPolicy, text.into_bytes()));
        self.reverted = Some(Reverted { policy, until, problem });
    }

    /// Makes the rules what they should be, if somebody changed them.
    async fn check(&mut self, by: Option<(String, u32)>) {
        let Some(rules) = self.in_force.as_ref().map(|in_force| Rc::clone(&in_force.rules)) else {
            return;
        };
        let agent = Rc::clone(&self.agent);
        let clock = agent.machine.clock();
        let wait = self.repairs.wait(clock.now());
        if !wait.is_zero() {
            clock.sleep(wait).await;
        }
        let started = clock.now();
        let outcome = protocol::repair(&agent.machine, &rules).await;
        if outcome.as_ref().is_ok_and(Vec::is_empty) {
            return;
        }
        self.repairs.count(started);
        announce_repair(&agent, by, outcome, clock.now().since(started));
    }
}

fn announce_repair<M: Machine>(
    agent: &Agent<M>,
    by: Option<(String, u32)>,
    outcome: Result<Vec<String>, ProtocolError>,
    took: Duration,
) {
    let who =
        by.map_or_else(|| "somebody".to_owned(), |(name, pid)| format!("{name} (process {pid})"));
    match outcome {
        Ok(found) => {
            agent.board.firewall(None, |report| report.repairs = report.repairs.saturating_add(1));
            let shown: Vec<&str> = found.iter().take(4).map(String::as_str).collect();
            let more = found.len().saturating_sub(shown.len());
            let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
            let message = format!(
                "{who} changed the firewall: {}{rest}; repaired within {} ms",
                shown.join("; "),
                took.as_millis()
            );
            agent.event(None, EventKind::FirewallRepaired, Severity::Warning, message);
        }
        Err(error) => {
            let message = format!("{who} changed the firewall; not repaired: {}", chain(&error));
            agent.event(None, EventKind::FirewallReverted, Severity::Error, message);
        }
    }
}

/// Ends connections that the new policy would not let begin.
async fn tighten<M: Machine>(agent: &Agent<M>, before: &Effective, now: &Effective) {
    for (name, instance) in &now.instances {
        let old = before.instances.get(name);
        if old.is_none_or(|old| old.policy.egress == instance.policy.egress) {
            continue;
        }
        match within(agent.machine.clock(), READ, cut(agent, instance)).await {
            Ok(Ok(0)) => {}
            Ok(Ok(ended)) => {
                tracing::info!(instance = name.as_str(), ended, "connections were ended")
            }
            Ok(Err(error)) => {
                tracing::error!(
                    instance = name.as_str(),
                    error = chain(&error),
                    "cannot end connections"
                );
            }
            Err(elapsed) => {
                tracing::error!(
                    instance = name.as_str(),
                    error = chain(&elapsed),
                    "cannot end connections"
                );
            }
        }
    }
}

async fn cut<M: Machine>(
    agent: &Agent<M>,
    instance: &EffectiveInstance,
) -> Result<usize, crate::ports::FirewallError> {
    let firewall = agent.machine.firewall();
    let mut named = std::collections::BTreeSet::new();
    for family in Family::BOTH {
        for set in [InstanceSet::Names, InstanceSet::NamePorts] {
            let entries = firewall.entries(&set.name(instance.network.slot(), family)).await?;
            named.extend(entries.into_iter().map(|entry| entry.value));
        }
    }
    let is_named = |address: std::net::IpAddr, protocol: Protocol, port: u16| {
        named.contains(&address.to_string())
            || named.contains(&format!("{address},{protocol}:{port}"))
    };
    let flows = firewall.flows(instance.network.container()).await?;
    let ended: Vec<_> =
        flows.into_iter().filter(|flow| !flow::may_go_on(instance, flow, is_named)).collect();
    firewall.cut(&ended).await?;
    Ok(ended.len())
}

fn encode_host_policy(policy: &HostPolicy) -> Vec<u8> {
    claw_proto::encode(&claw_proto::convert::firewall::host_policy_to_wire(policy))
}

/// The policy, unless the note is no policy that is valid today: there is none then.
fn decode_host_policy(bytes: &[u8]) -> Option<HostPolicy> {
    let unreadable = |error: &dyn std::error::Error| {
        tracing::error!(error = chain(error), "the last good policy of this host is unreadable");
    };
    let wire = claw_proto::decode(bytes).inspect_err(|error| unreadable(error)).ok()?;
    let policy = claw_proto::convert::firewall::host_policy_from_wire(&wire);
    policy.inspect_err(|error| unreadable(error)).ok()
}

fn digest(policy: &HostPolicy) -> Digest {
    Digest::of(&encode_host_policy(policy))
}
