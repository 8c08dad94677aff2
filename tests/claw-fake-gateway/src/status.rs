//! What the gateway currently says about itself: written by the life cycle and the control endpoints,
//! read by the connections.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use crate::suspension::Suspension;
use crate::switches::Switches;

/// Where the gateway is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Listening, not yet started.
    Starting,
    /// Started.
    Started,
    /// Told to stop.
    Draining,
}

/// The state that probes report.
#[derive(Debug, Default)]
pub(crate) struct Status {
    phase: AtomicU8,
    /// Connections are accepted and never answered.
    pub(crate) hangs: AtomicBool,
    /// `/startupz` says starting for ever.
    pub(crate) unhealthy: AtomicBool,
    /// `/readyz` fails for ever.
    pub(crate) not_ready: AtomicBool,
    /// Whether it is suspended.
    pub(crate) suspension: Suspension,
}

impl Status {
    /// Starting, with the faults that `switches` ask for.
    pub(crate) fn new(switches: &Switches) -> Self {
        Self {
            phase: AtomicU8::new(0),
            hangs: switches.hang.into(),
            unhealthy: switches.unhealthy.into(),
            not_ready: switches.not_ready.into(),
            suspension: Suspension::default(),
        }
    }

    pub(crate) fn enter(&self, phase: Phase) {
        let number = match phase {
            Phase::Starting => 0,
            Phase::Started => 1,
            Phase::Draining => 2,
        };
        self.phase.store(number, Ordering::Relaxed);
    }

    /// The phase as probes see it: one that is suspended seems to end.
    pub(crate) fn shown(&self) -> Phase {
        match self.phase() {
            Phase::Started if self.suspension.is_held() => Phase::Draining,
            phase => phase,
        }
    }

    /// The phase: an unhealthy gateway never gets beyond starting.
    pub(crate) fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Relaxed) {
            0 => Phase::Starting,
            1 if self.unhealthy.load(Ordering::Relaxed) => Phase::Starting,
            1 => Phase::Started,
            _ => Phase::Draining,
        }
    }
}
