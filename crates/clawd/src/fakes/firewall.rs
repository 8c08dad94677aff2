//! The packet filter, the log of logins, the forwarder of names and the way to the coordinator.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use claw_core::firewall::{
    Cidr, DnsPolicy, Flow, Port, RuleCounter, Ruleset, SetEntry, Surroundings,
};
use claw_core::name::InstanceName;
use tokio::sync::mpsc;

use super::mishap::{Mishaps, Told};
use crate::ports::{
    DnsCounters, Firewall, FirewallError, FirewallEvent, LoginFailure, LoginLog, Resolver,
    ResolverError, Traffic, Uplink, UplinkError,
};

/// Events that may wait.
const QUEUE: usize = 16;

/// Rules in memory, with a watchdog that a test fires.
#[derive(Debug, Clone)]
pub struct FakeFirewall {
    state: Rc<RefCell<State>>,
    mishaps: Mishaps,
}

#[derive(Debug, Default)]
struct State {
    kernel: Option<Ruleset>,
    last_good: Option<Ruleset>,
    /// What the watchdog would restore.
    armed: Option<Option<Ruleset>>,
    surroundings: Surroundings,
    refuses: Option<String>,
    counters: Vec<RuleCounter>,
    entries: BTreeMap<String, Vec<SetEntry>>,
    flows: BTreeSet<Flow>,
    bans: Vec<(Cidr, Duration)>,
    listeners: Vec<mpsc::Sender<FirewallEvent>>,
    applied: usize,
}

impl State {
    fn differences(&self, rules: &Ruleset) -> Vec<String> {
        match &self.kernel {
            Some(kernel) if kernel == rules => Vec::new(),
            Some(_) => vec!["the rules are others".to_owned()],
            None => vec!["the rules are gone".to_owned()],
        }
    }
}

impl FakeFirewall {
    pub(super) fn new(mishaps: Mishaps) -> Self {
        let surroundings = Surroundings {
            ssh_ports: Port::new(22).into_iter().collect(),
            backend: "fake".to_owned(),
            ..Surroundings::default()
        };
        let state = State { surroundings, ..State::default() };
        Self { state: Rc::new(RefCell::new(state)), mishaps }
    }

    /// The rules in force.
    #[must_use]
    pub fn kernel(&self) -> Option<Ruleset> {
        self.state.borrow().kernel.clone()
    }

    /// The rules that a boot would restore.
    #[must_use]
    pub fn last_good(&self) -> Option<Ruleset> {
        self.state.borrow().last_good.clone()
    }

    /// Whether the watchdog runs.
    #[must_use]
    pub fn is_armed(&self) -> bool {
        self.state.borrow().armed.is_some()
    }

    /// How often rules were applied that differed from those in force.
    #[must_use]
    pub fn applied(&self) -> usize {
        self.state.borrow().applied
    }

    /// The watchdog's time is over.
    pub fn fire_watchdog(&self) {
        self.restore();
    }

    /// Somebody flushes everything.
    pub fn flush(&self, by: &str) {
        let mut state = self.state.borrow_mut();
        state.kernel = None;
        for listener in &state.listeners {
            let by = Some((by.to_owned(), 4711));
            let _full = listener.try_send(FirewallEvent::Changed { generation: 1, by });
        }
    }

    /// The kernel refuses every ruleset from now on, with this text; `None`: none.
    pub fn refuse(&self, output: Option<&str>) {
        self.state.borrow_mut().refuses = output.map(str::to_owned);
    }

    /// What the host is like from now on.
    pub fn surround(&self, surroundings: Surroundings) {
        self.state.borrow_mut().surroundings = surroundings;
    }

    /// Sets the counters.
    pub fn count(&self, counters: Vec<RuleCounter>) {
        self.state.borrow_mut().counters = counters;
    }

    /// Begins a connection.
    pub fn connect(&self, flow: Flow) {
        self.state.borrow_mut().flows.insert(flow);
    }

    /// Connections that are open.
    #[must_use]
    pub fn open_flows(&self) -> BTreeSet<Flow> {
        self.state.borrow().flows.clone()
    }

    /// Bans so far.
    #[must_use]
    pub fn bans(&self) -> Vec<(Cidr, Duration)> {
        self.state.borrow().bans.clone()
    }

    fn restore(&self) -> bool {
        let mut state = self.state.borrow_mut();
        let Some(before) = state.armed.take() else { return false };
        state.last_good.clone_from(&before);
        state.kernel = before;
        true
    }

    async fn effect<T>(
        &self,
        name: &'static str,
        work: impl FnOnce(&mut State) -> T,
    ) -> Result<T, FirewallError> {
        let call = self.mishaps.look(name);
        if !call.may_begin().await {
            return Err(failed(name));
        }
        let done = work(&mut self.state.borrow_mut());
        if call.may_end().await { Ok(done) } else { Err(failed(name)) }
    }
}

fn failed(doing: &'static str) -> FirewallError {
    FirewallError::Command { doing, source: Box::new(Told) }
}

impl Firewall for FakeFirewall {
    async fn surroundings(&self) -> Result<Surroundings, FirewallError> {
        self.effect("firewall-surroundings", |state| state.surroundings.clone()).await
    }

    async fn validate(&self, _rules: &Ruleset) -> Result<(), FirewallError> {
        let refused = self.effect("firewall-validate", |state| state.refuses.clone()).await?;
        refused.map_or(Ok(()), |output| Err(FirewallError::Invalid { output }))
    }

    async fn arm(&self, _patience: Duration) -> Result<(), FirewallError> {
        self.effect("firewall-arm", |state| {
            let kernel = &state.kernel;
            state.armed.get_or_insert_with(|| kernel.clone());
        })
        .await
    }

    async fn apply(&self, rules: &Ruleset) -> Result<Vec<String>, FirewallError> {
        self.effect("firewall-apply", |state| {
            let found = state.differences(rules);
            if !found.is_empty() {
                state.kernel = Some(rules.clone());
                state.applied += 1;
            }
            found
        })
        .await
    }

    async fn deviations(&self, rules: &Ruleset) -> Result<Vec<String>, FirewallError> {
        self.effect("firewall-deviations", |state| state.differences(rules)).await
    }

    async fn commit(&self, rules: &Ruleset) -> Result<(), FirewallError> {
        let committed = self.effect("firewall-commit", |state| {
            let armed = state.armed.take().is_some();
            if armed {
                state.last_good = Some(rules.clone());
            }
            armed
        });
        if committed.await? { Ok(()) } else { Err(failed("firewall-commit")) }
    }

    async fn revert(&self) -> Result<bool, FirewallError> {
        self.effect("firewall-revert", |_state| ()).await?;
        Ok(self.restore())
    }

    fn events(&self) -> mpsc::Receiver<FirewallEvent> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        self.state.borrow_mut().listeners.push(sender);
        receiver
    }
}

impl Traffic for FakeFirewall {
    async fn counters(&self) -> Result<Vec<RuleCounter>, FirewallError> {
        self.effect("firewall-counters", |state| state.counters.clone()).await
    }

    async fn entries(&self, set: &str) -> Result<Vec<SetEntry>, FirewallError> {
        let set = set.to_owned();
        self.effect("firewall-entries", move |state| {
            state.entries.get(&set).cloned().unwrap_or_default()
        })
        .await
    }

    async fn ban(&self, source: Cidr, length: Duration) -> Result<(), FirewallError> {
        self.effect("firewall-ban", |state| state.bans.push((source, length))).await
    }

    async fn flows(&self, source: IpAddr) -> Result<Vec<Flow>, FirewallError> {
        self.effect("firewall-flows", |state| {
            state.flows.iter().filter(|flow| flow.source == source).cloned().collect()
        })
        .await
    }

    async fn cut(&self, flows: &[Flow]) -> Result<(), FirewallError> {
        self.effect("firewall-cut", |state| state.flows.retain(|flow| !flows.contains(flow))).await
    }
}

/// A log of logins that a test writes.
#[derive(Debug, Clone, Default)]
pub struct FakeLoginLog {
    listeners: Rc<RefCell<Vec<mpsc::Sender<LoginFailure>>>>,
}

impl FakeLoginLog {
    /// Somebody fails to log in.
    pub fn fail(&self, source: IpAddr) {
        for listener in self.listeners.borrow().iter() {
            let _full = listener.try_send(LoginFailure { source });
        }
    }
}

impl LoginLog for FakeLoginLog {
    fn failures(&self) -> mpsc::Receiver<LoginFailure> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        self.listeners.borrow_mut().push(sender);
        receiver
    }
}

/// A forwarder of names that answers nobody.
#[derive(Debug, Clone, Default)]
pub struct FakeResolver {
    policy: Rc<RefCell<DnsPolicy>>,
    counters: Rc<RefCell<BTreeMap<InstanceName, DnsCounters>>>,
}

impl FakeResolver {
    /// What it was told last.
    #[must_use]
    pub fn policy(&self) -> DnsPolicy {
        self.policy.borrow().clone()
    }

    /// Sets what it has seen.
    pub fn count(&self, counters: BTreeMap<InstanceName, DnsCounters>) {
        self.counters.replace(counters);
    }
}

impl Resolver for FakeResolver {
    async fn publish(&self, policy: &DnsPolicy) -> Result<(), ResolverError> {
        self.policy.replace(policy.clone());
        Ok(())
    }

    async fn counters(&self) -> Result<BTreeMap<InstanceName, DnsCounters>, ResolverError> {
        Ok(self.counters.borrow().clone())
    }
}

/// The way to the coordinator: open, or not, or cut off by some rules.
#[derive(Debug, Clone)]
pub struct FakeUplink {
    firewall: FakeFirewall,
    is_down: Rc<Cell<bool>>,
}

impl FakeUplink {
    pub(super) fn new(firewall: FakeFirewall) -> Self {
        Self { firewall, is_down: Rc::default() }
    }

    /// The coordinator is away.
    pub fn take_down(&self) {
        self.is_down.set(true);
    }

    /// The coordinator is back.
    pub fn bring_up(&self) {
        self.is_down.set(false);
    }
}

impl Uplink for FakeUplink {
    /// Rules that hold a set of blocked sources cut this host off.
    async fn prove(&self) -> Result<(), UplinkError> {
        let blocks = |rules: &Ruleset| rules.sets.iter().any(|set| set.name == "claw-blocked4");
        let cut_off = self.firewall.kernel().as_ref().is_some_and(blocks);
        if self.is_down.get() || cut_off {
            Err(UplinkError::Connect(Box::new(Told)))
        } else {
            Ok(())
        }
    }
}
