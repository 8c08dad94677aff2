//! Shows on the board how far a job is. Changes of less than a hundredth are not shown.

use std::cell::{Cell, RefCell};

use claw_core::name::InstanceName;
use claw_core::report::OperationReport;
use claw_core::time::Timestamp;

use crate::agent::Agent;
use crate::machine::Machine;
use crate::ports::{Clock as _, JobProgress};

/// Thousandths that make a difference.
const STEP: u32 = 10;

/// An operation on the board; taken off when this is dropped.
pub(super) struct Shown<'a, M: Machine> {
    agent: &'a Agent<M>,
    instance: &'a InstanceName,
    kind: Option<&'static str>,
    since: Timestamp,
    stage: RefCell<&'static str>,
    shown: Cell<Option<u32>>,
}

impl<'a, M: Machine> Shown<'a, M> {
    /// An operation of this kind, if it has one: others are not shown.
    pub(super) fn new(
        agent: &'a Agent<M>,
        instance: &'a InstanceName,
        kind: Option<&'static str>,
    ) -> Self {
        let since = agent.machine.clock().now();
        Self { agent, instance, kind, since, stage: RefCell::new(""), shown: Cell::new(None) }
    }

    /// It begins something else.
    pub(super) fn stage(&self, stage: &'static str) {
        self.stage.replace(stage);
        self.shown.set(None);
        self.show(None);
    }

    /// It is so far with that.
    pub(super) fn progress(&self, progress: JobProgress) {
        let Some(permille) = progress.permille() else { return };
        let before = self.shown.get();
        if before.is_none_or(|before| before.abs_diff(permille) >= STEP) {
            self.shown.set(Some(permille));
            self.show(Some(permille));
        }
    }

    fn show(&self, permille: Option<u32>) {
        let Some(kind) = self.kind else { return };
        let stage = (*self.stage.borrow()).to_owned();
        let report = OperationReport { kind, stage, permille, since: self.since };
        self.agent.board.operation(self.instance, Some(report));
    }
}

impl<M: Machine> Drop for Shown<'_, M> {
    fn drop(&mut self) {
        if self.kind.is_some() {
            self.agent.board.operation(self.instance, None);
        }
    }
}
