//! Certificates that are no longer taken, in memory, and how live connections learn of it.
//!
//! The store is the truth; this is what every handshake and every call can afford to look at.

use std::collections::BTreeSet;
use std::sync::{PoisonError, RwLock};

use claw_identity::Serial;
use tokio::sync::watch;

/// The denylist. Every change wakes every subscriber, which looks for itself.
#[derive(Debug)]
pub struct Denylist {
    serials: RwLock<BTreeSet<Serial>>,
    version: watch::Sender<u64>,
}

impl Denylist {
    /// With what the store holds.
    #[must_use]
    pub fn new(serials: BTreeSet<Serial>) -> Self {
        Self { serials: RwLock::new(serials), version: watch::Sender::new(0) }
    }

    /// Whether a certificate is denied.
    #[must_use]
    pub fn contains(&self, serial: &Serial) -> bool {
        self.serials.read().unwrap_or_else(PoisonError::into_inner).contains(serial)
    }

    /// Denies more.
    pub fn add(&self, serials: &[Serial]) {
        let grown = {
            let mut present = self.serials.write().unwrap_or_else(PoisonError::into_inner);
            let before = present.len();
            present.extend(serials.iter().cloned());
            present.len() > before
        };
        if grown {
            self.version.send_modify(|version| *version = version.wrapping_add(1));
        }
    }

    /// Resolves after the next change.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }
}
