//! The board on which the reconcile side writes what it observes and from which reports are made.
//!
//! Writers never wait: the session reads the board when it is ready to send. It holds no history
//! beyond what a report carries.

mod backups;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use claw_core::address::InstanceNetwork;
use claw_core::firewall::{Effective, NetworkPolicy};
use claw_core::name::InstanceName;
use claw_core::report::{
    BackupSummary, BlockedTraffic, FirewallReport, HealthChange, InstanceReport, Phase,
    StatusReport, Usage,
};
use claw_core::stamp::{Generation, Stamp};
use claw_core::time::Timestamp;
use tokio::sync::watch;

use backups::Data;

/// Changes of health that a report carries (contract of [`InstanceReport`]).
const MAX_HEALTH_HISTORY: usize = 16;

/// What is reported, as of now.
#[derive(Debug)]
pub struct Board {
    state: RefCell<State>,
    version: watch::Sender<u64>,
    /// The firewall's policy that is in force.
    in_force: watch::Sender<Option<Rc<Effective>>>,
}

#[derive(Debug, Default)]
struct State {
    status: StatusReport,
    /// Instances whose task has reached the end of its way for the generation in their report.
    settled: BTreeSet<InstanceName>,
    /// Instances of the state being carried out.
    expected: BTreeSet<InstanceName>,
    /// First process of each running container, for its usage.
    pids: BTreeMap<InstanceName, u32>,
    inventory: BTreeSet<InstanceName>,
    /// The last generation for which the firewall has done what it could.
    firewall_settled: Option<Generation>,
    /// Long operations, snapshots, keys.
    data: Data,
    /// When Docker was lost last, and found again.
    away: Option<(Timestamp, Option<Timestamp>)>,
}

impl Default for Board {
    fn default() -> Self {
        Self {
            state: RefCell::default(),
            version: watch::Sender::new(0),
            in_force: watch::Sender::new(None),
        }
    }
}

impl Board {
    /// Everything, as it stands.
    #[must_use]
    pub fn status(&self) -> StatusReport {
        self.state.borrow().status.clone()
    }

    /// One instance's report.
    #[must_use]
    pub fn instance(&self, name: &InstanceName) -> Option<InstanceReport> {
        self.state.borrow().status.instances.get(name).cloned()
    }

    /// Changes with every change of the board.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Instances with a container or network on this host, wanted or not.
    #[must_use]
    pub fn inventory(&self) -> BTreeSet<InstanceName> {
        self.state.borrow().inventory.clone()
    }

    /// Sets the inventory.
    pub fn found(&self, inventory: BTreeSet<InstanceName>) {
        self.state.borrow_mut().inventory = inventory;
    }

    /// A state was persisted and is being carried out for `instances`; reports of others go.
    pub fn applying(&self, stamp: Stamp, instances: &BTreeSet<InstanceName>, since: Timestamp) {
        let mut state = self.state.borrow_mut();
        state.status.persisted = Some(stamp);
        state.status.refused = None;
        state.status.applying = Some((stamp.generation, since));
        state.status.instances.retain(|name, _| instances.contains(name));
        state.settled.clear();
        state.expected.clone_from(instances);
        for name in instances {
            let report = state.status.instances.entry(name.clone());
            report.or_insert_with(|| pending(name, stamp.generation));
        }
        drop(state);
        self.settle();
        self.bump();
    }

    /// The persisted state was offered again.
    pub fn known(&self) {
        self.state.borrow_mut().status.refused = None;
        self.bump();
    }

    /// A state was refused.
    pub fn refused(&self, stamp: Stamp, reason: String) {
        self.state.borrow_mut().status.refused = Some((stamp, reason));
        self.bump();
    }

    /// Sets an instance's report; `pid` is its container's first process while it runs.
    pub fn report(&self, mut report: InstanceReport, pid: Option<u32>) {
        let mut state = self.state.borrow_mut();
        let name = report.name.clone();
        match pid {
            Some(pid) => state.pids.insert(name.clone(), pid),
            None => state.pids.remove(&name),
        };
        report.operation = state.data.operation(&name);
        report.backup = state.data.summary(&name);
        let changing = state.data.is_changing(&name);
        let settled = is_settled(report.phase) && report.step.is_none() && !changing;
        if settled {
            state.settled.insert(name.clone());
        } else {
            state.settled.remove(&name);
        }
        let old = state.status.instances.get(&name);
        report.usage = old.and_then(|old| old.usage).filter(|_| pid.is_some());
        report.blocked = old.map(|old| old.blocked.clone()).unwrap_or_default();
        let changed = old != Some(&report);
        if changed {
            state.status.instances.insert(name, report);
        }
        drop(state);
        if self.settle() || changed {
            self.bump();
        }
    }

    /// Reports an instance as gone.
    pub fn removed(&self, name: &InstanceName, generation: Generation) {
        let report = InstanceReport { phase: Phase::Removed, ..pending(name, generation) };
        self.state.borrow_mut().data.forget(name);
        self.report(report, None);
    }

    /// Takes new figures of usage from `read`, for every running container.
    pub fn measure(&self, read: impl Fn(u32) -> Option<Usage>) {
        let mut state = self.state.borrow_mut();
        let pids = std::mem::take(&mut state.pids);
        for (name, pid) in &pids {
            if let Some(report) = state.status.instances.get_mut(name) {
                report.usage = read(*pid);
            }
        }
        state.pids = pids;
    }

    /// The firewall's policy that is in force, and changes of it.
    #[must_use]
    pub fn in_force(&self) -> watch::Receiver<Option<Rc<Effective>>> {
        self.in_force.subscribe()
    }

    /// Whether the rules of exactly this policy are in force for an instance.
    #[must_use]
    pub fn is_firewalled(
        &self,
        name: &InstanceName,
        network: InstanceNetwork,
        policy: &NetworkPolicy,
    ) -> bool {
        let in_force = self.in_force.borrow();
        let found = in_force.as_ref().and_then(|effective| effective.instances.get(name));
        found.is_some_and(|found| found.network == network && found.policy == *policy)
    }

    /// Sets the firewall's policy that is in force.
    pub fn set_in_force(&self, effective: Rc<Effective>) {
        self.in_force.send_replace(Some(effective));
    }

    /// Changes what is reported of the firewall; `settled` is a generation for which everything was done
    /// that could be done.
    pub fn firewall(&self, settled: Option<Generation>, change: impl FnOnce(&mut FirewallReport)) {
        let mut state = self.state.borrow_mut();
        let before = state.status.firewall.clone();
        change(&mut state.status.firewall);
        state.firewall_settled = settled.or(state.firewall_settled);
        let changed = state.status.firewall != before;
        drop(state);
        if self.settle() || changed {
            self.bump();
        }
    }

    /// Sets what the firewall has refused to instances.
    pub fn blocked(&self, mut blocked: BTreeMap<InstanceName, BlockedTraffic>) {
        let mut state = self.state.borrow_mut();
        for (name, report) in &mut state.status.instances {
            report.blocked = blocked.remove(name).unwrap_or_default();
        }
    }

    /// Sets why Docker does not answer, as of now; returns what was set before.
    pub fn swap_runtime_problem(&self, problem: Option<String>, now: Timestamp) -> Option<String> {
        let mut state = self.state.borrow_mut();
        match (state.status.runtime_problem.is_some(), problem.is_some()) {
            (false, true) => state.away = Some((now, None)),
            (true, false) => state.away = state.away.map(|(lost, _)| (lost, Some(now))),
            _ => {}
        }
        let changed = state.status.runtime_problem != problem;
        let before = std::mem::replace(&mut state.status.runtime_problem, problem);
        drop(state);
        if changed {
            self.bump();
        }
        before
    }

    /// Whether Docker was away at some time since then. What ended meanwhile may have ended with it.
    #[must_use]
    pub fn runtime_was_away(&self, since: Timestamp) -> bool {
        self.state.borrow().away.is_some_and(|(_, back)| back.is_none_or(|back| back >= since))
    }

    /// Closes the generation under way once every instance of it has settled.
    fn settle(&self) -> bool {
        let mut state = self.state.borrow_mut();
        let Some((generation, _)) = state.status.applying else { return false };
        let reported = |name: &InstanceName| {
            state.status.instances.get(name).is_some_and(|report| report.generation >= generation)
        };
        let firewalled = state.firewall_settled.is_some_and(|settled| settled >= generation);
        let done = firewalled
            && state.expected.iter().all(|name| state.settled.contains(name) && reported(name));
        if done {
            state.status.applying = None;
            state.status.last_result = Some(generation);
        }
        done
    }

    fn bump(&self) {
        self.version.send_modify(|version| *version = version.wrapping_add(1));
    }
}

/// The report of an instance of which nothing is known yet.
#[must_use]
pub fn pending(name: &InstanceName, generation: Generation) -> InstanceReport {
    InstanceReport {
        name: name.clone(),
        generation,
        phase: Phase::Pending,
        message: String::new(),
        step: None,
        container_id: None,
        started_at: None,
        restart_count: 0,
        last_exit: None,
        healthy_since: None,
        ready: None,
        health_history: Vec::new(),
        usage: None,
        blocked: BlockedTraffic::default(),
        operation: None,
        active: None,
        refused: None,
        backup: BackupSummary::default(),
    }
}

/// Adds a change of health and forgets the oldest beyond the bound.
pub fn push_health(history: &mut Vec<HealthChange>, change: HealthChange) {
    history.push(change);
    let surplus = history.len().saturating_sub(MAX_HEALTH_HISTORY);
    history.drain(..surplus);
}

/// Whether an instance in this phase has come to the end of its way, well or not.
const fn is_settled(phase: Phase) -> bool {
    matches!(
        phase,
        Phase::Running
            | Phase::Stopped
            | Phase::Paused
            | Phase::CrashLoop
            | Phase::Failed
            | Phase::Removed
    )
}
