//! Holds an instance still for a snapshot: the container freezer, and for a snapshot that somebody asked for
//! the gateway's own suspension around it.
//!
//! What a frozen container holds is what a kill would leave, un-fsynced writes included: databases with a
//! write-ahead log recover from it. An agent that dies meanwhile leaves a frozen container, which the next
//! one's first plan thaws.
//!
//! **Why not always both.** The freezer alone lets no request fail: those of the still moment are answered late.
//! A suspended gateway refuses them. Measured with OpenClaw 2026.9.6, ten still moments of 300 ms, a client that
//! calls 100 times a second and asks `/startupz` 50 times a second:
//!
//! | held by | calls refused | `/startupz` 503 | longest wait |
//! | --- | --- | --- | --- |
//! | the freezer | 0 of 1006 | 0 of 518 | 439 ms |
//! | suspension, freezer, thawed, resumed | 293 of 1084 | 149 of 551 | 357 ms |
//! | suspension, freezer, told to resume while frozen, thawed | 108 of 1052 | 89 of 535 | 331 ms |
//!
//! What a suspension adds is that nothing is half done: no turn of an agent, no request, no write to a chat is
//! under way. A gateway at work refuses to be suspended, so that it adds nothing when it would matter most.
//! Snapshots on schedule and the copies of updates therefore use the freezer alone, which nobody notices;
//! [`Freezer::and_suspend`] is for those that a person asks for.
//!
//! The gateway is told to resume while it is still frozen: it reads that first when it goes on, even if this
//! agent has died. Only an agent that dies between the suspension and the freezer, a moment of about 20 ms,
//! leaves it suspended, until its lease ends (120 s) or the next suspension takes it over.

mod acquaint;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::rc::Rc;

use claw_core::name::InstanceName;

use super::deadline::{CHANGE, within};
use crate::agent::Agent;
use crate::logging::chain;
use crate::machine::Machine;
use crate::ports::{Control, GatewayAccess, Quiesce, Runtime as _, RuntimeChange, RuntimeError};
use crate::roster::Frozen;

type Suspended<M> = <<M as Machine>::Gateway as Control>::Suspended;

/// One container that can be held still.
pub(super) struct Freezer<M: Machine> {
    agent: Rc<Agent<M>>,
    instance: InstanceName,
    container: String,
    /// The gateway, when it is to be suspended too.
    gateway: Option<GatewayAccess>,
    suspended: RefCell<Option<Suspended<M>>>,
    frozen: RefCell<Option<Frozen>>,
}

impl<M: Machine> Freezer<M> {
    pub(super) fn new(agent: Rc<Agent<M>>, instance: InstanceName, container: String) -> Self {
        let (suspended, frozen) = (RefCell::default(), RefCell::default());
        Self { agent, instance, container, gateway: None, suspended, frozen }
    }

    /// The gateway is suspended, too, if it can be. To be called well before the still moment: a gateway that
    /// does not know this host yet is introduced, which takes seconds.
    pub(super) async fn and_suspend(self) -> Self {
        let gateway = acquaint::acquaint(&self.agent, &self.instance, &self.container).await;
        match gateway {
            Ok(gateway) => Self { gateway: Some(gateway), ..self },
            Err(error) => {
                let (instance, error) = (self.instance.as_str(), chain(&error));
                tracing::debug!(instance, error, "the freezer alone will hold it");
                self
            }
        }
    }

    async fn suspend(&self) {
        let Some(gateway) = &self.gateway else { return };
        match self.agent.machine.gateway().suspend(gateway).await {
            Ok(suspended) => drop(self.suspended.replace(Some(suspended))),
            Err(error) => {
                let (instance, error) = (self.instance.as_str(), chain(&error));
                tracing::debug!(instance, error, "the freezer alone holds it");
            }
        }
    }

    /// Says that it may resume when it is thawed.
    async fn let_go(&self) {
        let Some(mut suspended) = self.suspended.take() else { return };
        if let Err(error) = self.agent.machine.gateway().let_go(&mut suspended).await {
            let (instance, error) = (self.instance.as_str(), chain(&error));
            tracing::debug!(instance, error, "it will be resumed when it is thawed");
        }
        self.suspended.replace(Some(suspended));
    }

    async fn resumed(&self) {
        let Some(suspended) = self.suspended.take() else { return };
        if let Err(error) = self.agent.machine.gateway().resumed(suspended).await {
            let (instance, error) = (self.instance.as_str(), chain(&error));
            tracing::warn!(instance, error, "its gateway may stay suspended until its lease ends");
        }
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
        self.suspend().await;
        self.change(RuntimeChange::Pause(&self.container)).await?;
        self.let_go().await;
        Ok(())
    }

    async fn release(&self) -> Result<(), RuntimeError> {
        let outcome = self.change(RuntimeChange::Unpause(&self.container)).await;
        self.resumed().await;
        // If that failed, the loop finds it frozen, unmarked, and thaws it.
        self.frozen.replace(None);
        outcome
    }
}
