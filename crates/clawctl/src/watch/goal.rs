//! When what is waited for is so, and when it never will be; pure.

use super::described;
use crate::cli::Until;
use crate::view::instance::InstanceView;
use crate::view::operation::{OperationView, RefusedView};

/// What a watch waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Goal {
    pub(crate) until: Until,
    replaces: Replaces,
}

/// Whether other data must be in use than before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Replaces {
    Nothing,
    /// The data generation that was in use, if one was.
    Data(Option<u32>),
}

impl From<Until> for Goal {
    fn from(until: Until) -> Self {
        Self { until, replaces: Replaces::Nothing }
    }
}

impl Goal {
    /// Data of a snapshot is in force instead of what `before` had.
    pub(crate) fn restored(until: Until, before: &InstanceView) -> Self {
        Self { until, replaces: Replaces::Data(data_generation(before)) }
    }

    /// In words of an error message.
    pub(crate) fn words(self) -> &'static str {
        match self.until {
            Until::Running => "running",
            Until::Stopped => "stopped",
            Until::Paused => "paused",
            Until::Deleted => "deleted",
        }
    }

    /// An instance that does not exist any more is not asked.
    pub(super) fn is_met(self, instance: &InstanceView) -> bool {
        self.until != Until::Deleted
            && instance.status.current
            && instance.status.phase == self.words()
            && !is_changing(instance)
            && self.version_is_in_force(instance)
    }

    /// Why it is of no use to wait: it fails the same way again and again.
    pub(super) fn hopeless(self, instance: &InstanceView) -> Option<String> {
        if self.until == Until::Deleted {
            return None;
        }
        if instance.state().starts_with("deleting") {
            return Some("it is being deleted".to_owned());
        }
        let crashed = self.until == Until::Running
            && instance.status.current
            && instance.status.phase == "crash-loop"
            && !is_changing(instance);
        crashed.then(|| described(instance))
    }

    /// What keeps the present spec from coming into force.
    ///
    /// `known`: what was refused already while the change was under way; the same says nothing of it.
    pub(super) fn refused<'a>(
        self,
        instance: &'a InstanceView,
        known: Option<&RefusedView>,
    ) -> Option<&'a RefusedView> {
        let concerned = self.until == Until::Running || self.replaces != Replaces::Nothing;
        let is_over = concerned && instance.status.current && !is_changing(instance);
        let refused = instance.status.refused.as_ref().filter(|refused| Some(*refused) != known);
        refused.filter(|_| is_over && !self.version_is_in_force(instance))
    }

    /// Agents that do not say what is in force are believed.
    fn version_is_in_force(self, instance: &InstanceView) -> bool {
        let active = instance.status.active.as_ref();
        match self.replaces {
            Replaces::Data(before) => {
                data_generation(instance).is_some_and(|now| Some(now) != before)
            }
            Replaces::Nothing => {
                self.until != Until::Running
                    || active.is_none_or(|active| active.image == instance.spec.image)
            }
        }
    }
}

/// Whether another version is being brought into force.
pub(super) fn is_changing(instance: &InstanceView) -> bool {
    instance.status.operation.as_ref().is_some_and(OperationView::changes_version)
}

fn data_generation(instance: &InstanceView) -> Option<u32> {
    instance.status.active.as_ref().map(|active| active.data_generation)
}
