//! Holds an instance still for a snapshot, with the container freezer.
//!
//! What a frozen container holds is what a kill would leave, un-fsynced writes included: databases with a
//! write-ahead log recover from it. An agent that dies meanwhile leaves a frozen container, which the next
//! one's first plan thaws.

use std::cell::RefCell;
use std::rc::Rc;

use claw_core::name::InstanceName;

use super::deadline::{CHANGE, within};
use crate::agent::Agent;
use crate::machine::Machine;
use crate::ports::{Quiesce, Runtime as _, RuntimeChange, RuntimeError};
use crate::roster::Frozen;

/// One container that can be held still.
#[derive(Debug)]
pub(super) struct Freezer<M> {
    agent: Rc<Agent<M>>,
    instance: InstanceName,
    container: String,
    frozen: RefCell<Option<Frozen>>,
}

impl<M: Machine> Freezer<M> {
    pub(super) fn new(agent: Rc<Agent<M>>, instance: InstanceName, container: String) -> Self {
        Self { agent, instance, container, frozen: RefCell::default() }
    }

    async fn change(&self, change: RuntimeChange<'_>) -> Result<(), RuntimeError> {
        let machine = &self.agent.machine;
        let work = machine.runtime().change(&self.instance, change);
        match within(machine.clock(), CHANGE, work).await {
            Ok(outcome) => outcome,
            Err(_elapsed) => {
                Err(RuntimeError::Timeout { doing: "holding a container", after: CHANGE })
            }
        }
    }
}

impl<M: Machine> Quiesce for Freezer<M> {
    async fn hold(&self) -> Result<(), RuntimeError> {
        // The mark comes first: the instance's loop must not thaw what it finds frozen.
        self.frozen.replace(Some(self.agent.roster.freeze(&self.instance)));
        self.change(RuntimeChange::Pause(&self.container)).await
    }

    async fn release(&self) -> Result<(), RuntimeError> {
        let outcome = self.change(RuntimeChange::Unpause(&self.container)).await;
        // If that failed, the loop finds it frozen, unmarked, and thaws it.
        self.frozen.replace(None);
        outcome
    }
}
