//! A gateway that begins nothing and refuses what it is asked, until it is resumed or the lease ends.
//!
//! Source: `gateway-suspend-coordinator.ts` in openclaw 2026.9.6.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::clock;
use crate::startup::random_hex;

/// One suspension at most.
#[derive(Debug, Default)]
pub(crate) struct Suspension {
    held: Mutex<Option<Held>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Held {
    request: String,
    pub(crate) id: String,
    /// Milliseconds since 1970.
    pub(crate) until: u64,
}

/// Why there is no suspension.
#[derive(Debug)]
pub(crate) enum Refused {
    /// Another request holds one, until then.
    Conflict(u64),
    /// There is no randomness for an id.
    NoId(io::Error),
}

impl Suspension {
    /// Whether there is one now.
    pub(crate) fn is_held(&self) -> bool {
        self.current().is_some()
    }

    /// Begins one, or renews that of the same request.
    pub(crate) fn prepare(&self, request: &str, lease: Duration) -> Result<Held, Refused> {
        let current = self.current();
        let lease = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX);
        let until = clock::unix_millis().saturating_add(lease);
        let held = match current {
            Some(held) if held.request != request => return Err(Refused::Conflict(held.until)),
            Some(held) => Held { until, ..held },
            None => {
                let id = random_hex().map_err(Refused::NoId)?;
                Held { request: request.to_owned(), id, until }
            }
        };
        self.set(Some(held.clone()));
        Ok(held)
    }

    /// Ends one; whether there was any. `None`: there is another one.
    pub(crate) fn resume(&self, id: &str) -> Option<bool> {
        match self.current() {
            None => Some(false),
            Some(held) if held.id == id => {
                self.set(None);
                Some(true)
            }
            Some(_) => None,
        }
    }

    fn current(&self) -> Option<Held> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.clone().filter(|held| clock::unix_millis() < held.until)
    }

    fn set(&self, held: Option<Held>) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = held;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(120);

    #[test]
    fn one_request_holds_it() {
        let suspension = Suspension::default();
        let held = suspension.prepare("a", LEASE).unwrap();
        assert!(suspension.is_held());
        assert_eq!(suspension.prepare("a", LEASE).unwrap().id, held.id);
        assert!(matches!(suspension.prepare("b", LEASE), Err(Refused::Conflict(_))));
        assert_eq!(suspension.resume("another"), None);
        assert_eq!(suspension.resume(&held.id), Some(true));
        assert_eq!(suspension.resume(&held.id), Some(false));
        assert!(!suspension.is_held());
    }

    #[test]
    fn a_lease_ends_it() {
        let suspension = Suspension::default();
        let held = suspension.prepare("a", Duration::ZERO).unwrap();
        assert!(!suspension.is_held());
        assert_eq!(suspension.resume(&held.id), Some(false));
        assert_ne!(suspension.prepare("a", LEASE).unwrap().id, held.id);
    }
}
