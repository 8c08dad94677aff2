//! Who watches instances: each watcher has a set of names that it has not looked at yet.
//!
//! Latest wins: a name stands in the set at most once, so a slow watcher costs no more than the
//! names of the fleet. What the present state is, the watcher reads itself.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use claw_core::name::InstanceName;
use tokio::sync::Notify;

/// All watchers.
#[derive(Debug)]
pub struct Hub {
    max: usize,
    watchers: Mutex<Vec<Weak<Watcher>>>,
}

/// One watcher.
#[derive(Debug)]
pub struct Watcher {
    /// Only these; `None` for all.
    names: Option<BTreeSet<InstanceName>>,
    dirty: Mutex<BTreeSet<InstanceName>>,
    wake: Notify,
}

impl Hub {
    /// For at most `max` watchers.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self { max, watchers: Mutex::new(Vec::new()) }
    }

    /// Begins to watch; `None` when there are too many watchers.
    #[must_use]
    pub fn subscribe(&self, names: Option<BTreeSet<InstanceName>>) -> Option<Arc<Watcher>> {
        let mut watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        watchers.retain(|watcher| watcher.strong_count() > 0);
        if watchers.len() >= self.max {
            return None;
        }
        let watcher = Arc::new(Watcher { names, dirty: Mutex::default(), wake: Notify::new() });
        watchers.push(Arc::downgrade(&watcher));
        Some(watcher)
    }

    /// Whether anybody watches.
    #[must_use]
    pub fn is_watched(&self) -> bool {
        let watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        watchers.iter().any(|watcher| watcher.strong_count() > 0)
    }

    /// Marks instances as changed.
    pub fn changed(&self, names: &BTreeSet<InstanceName>) {
        let watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        for watcher in watchers.iter().filter_map(Weak::upgrade) {
            watcher.mark(names);
        }
    }
}

impl Watcher {
    /// Whether it is asked for.
    #[must_use]
    pub fn wants(&self, name: &InstanceName) -> bool {
        self.names.as_ref().is_none_or(|names| names.contains(name))
    }

    /// The names that changed since the last call; waits until there are some.
    ///
    /// Cancel-safe: nothing is taken before it returns.
    pub async fn next(&self) -> BTreeSet<InstanceName> {
        loop {
            let woken = self.wake.notified();
            let names = {
                let mut dirty = self.dirty.lock().unwrap_or_else(PoisonError::into_inner);
                std::mem::take(&mut *dirty)
            };
            if !names.is_empty() {
                return names;
            }
            woken.await;
        }
    }

    fn mark(&self, names: &BTreeSet<InstanceName>) {
        let mut dirty = self.dirty.lock().unwrap_or_else(PoisonError::into_inner);
        let before = dirty.len();
        dirty.extend(names.iter().filter(|name| self.wants(name)).cloned());
        if dirty.len() > before {
            self.wake.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> InstanceName {
        InstanceName::parse(text).unwrap()
    }

    #[tokio::test]
    async fn changes_are_coalesced_and_filtered() {
        let hub = Hub::new(2);
        let all = hub.subscribe(None).unwrap();
        let one = hub.subscribe(Some([name("a")].into())).unwrap();
        assert!(hub.subscribe(None).is_none());
        for _round in 0..3 {
            hub.changed(&[name("a"), name("b")].into());
        }
        assert_eq!(all.next().await, [name("a"), name("b")].into());
        assert_eq!(one.next().await, [name("a")].into());
        drop((all, one));
        assert!(!hub.is_watched());
        assert!(hub.subscribe(None).is_some());
    }
}
