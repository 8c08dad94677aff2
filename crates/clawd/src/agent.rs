//! What every part of the agent shares: the machine, the journal, the board of reports.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use claw_core::address::AddressPool;
use claw_core::event::{EventKind, Severity};
use claw_core::firewall::Port;
use claw_core::name::InstanceName;

use crate::journal::{Journal, NewEvent};
use crate::machine::Machine;
use crate::ports::Clock as _;
use crate::report::Board;
use crate::roster::Roster;

/// What every part of the agent shares. One thread, so an `Rc` of it is enough.
#[derive(Debug)]
pub struct Agent<M> {
    /// The machine.
    pub machine: M,
    /// What must not be forgotten.
    pub journal: Journal,
    /// What is reported.
    pub board: Board,
    /// What the loops know of each other's instances.
    pub roster: Rc<Roster>,
    /// What the configuration says.
    pub settings: Settings,
}

/// What the configuration says to the reconcile side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// From where instances get their networks.
    pub pool: AddressPool,
    /// Between two looks at a healthy gateway.
    pub probe_healthy: Duration,
    /// Between two looks at a gateway that was healthy and is not.
    pub probe_failing: Duration,
    /// Between two observations without a cause, to find what no event tells: a deleted file, a lost
    /// virtual host.
    pub resync: Duration,
    /// Ports of the reverse proxy.
    pub web_ports: BTreeSet<Port>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            pool: AddressPool::STANDARD,
            probe_healthy: Duration::from_secs(10),
            probe_failing: Duration::from_secs(1),
            resync: Duration::from_secs(300),
            web_ports: Port::new(8080).into_iter().collect(),
        }
    }
}

impl<M: Machine> Agent<M> {
    /// Stores an event soon, and logs it.
    pub fn event(
        &self,
        instance: Option<&InstanceName>,
        kind: EventKind,
        severity: Severity,
        message: impl Into<String>,
    ) {
        let message = message.into();
        let name = instance.map_or("", InstanceName::as_str);
        match severity {
            Severity::Info => tracing::info!(instance = name, %kind, "{message}"),
            Severity::Warning => tracing::warn!(instance = name, %kind, "{message}"),
            Severity::Error => tracing::error!(instance = name, %kind, "{message}"),
        }
        let at = self.machine.clock().now();
        let instance = instance.cloned();
        self.journal.events().append(NewEvent { at, instance, kind, severity, message });
    }

    /// Notes whether Docker answers; the first change of mind is an event.
    pub fn runtime_answers(&self, outcome: Result<(), String>) {
        let now = self.machine.clock().now();
        match (self.board.swap_runtime_problem(outcome.as_ref().err().cloned(), now), outcome) {
            (None, Err(problem)) => {
                self.event(None, EventKind::RuntimeLost, Severity::Error, problem);
            }
            (Some(_), Ok(())) => {
                self.event(None, EventKind::RuntimeBack, Severity::Info, "docker answers again");
            }
            _ => {}
        }
    }
}
