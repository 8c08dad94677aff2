//! What the forwarder counts of one instance.
//!
//! What it deliberately does not do: remember who asked for what when. Only names outside a list are
//! kept, because an operator must see what a list refuses.

use std::collections::{BTreeSet, VecDeque};
use std::net::IpAddr;

use crate::ports::DnsCounters;

/// Most addresses that are kept of a name.
const MAX_ADDRESSES: usize = 8;

/// Counters of one instance.
#[derive(Debug)]
pub struct Tally {
    seen: DnsCounters,
    outside: VecDeque<(String, BTreeSet<IpAddr>)>,
    capacity: usize,
    changed: bool,
}

impl Tally {
    /// Nothing seen yet; at most `capacity` names are kept.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { seen: DnsCounters::default(), outside: VecDeque::new(), capacity, changed: true }
    }

    /// Keeps at most so many names from now on.
    pub fn bound(&mut self, capacity: usize) {
        self.capacity = capacity;
        while self.outside.len() > capacity {
            self.outside.pop_front();
            self.changed = true;
        }
    }

    /// Counts.
    pub fn count(&mut self, count: impl FnOnce(&mut DnsCounters)) {
        count(&mut self.seen);
        self.changed = true;
    }

    /// Records a name outside the list as the newest.
    pub fn outside(&mut self, name: String, addresses: &BTreeSet<IpAddr>) {
        self.changed = true;
        let present = self.outside.iter().position(|(known, _addresses)| *known == name);
        let present = present.and_then(|index| self.outside.remove(index));
        let mut entry = present.unwrap_or_else(|| (name, BTreeSet::new()));
        for &address in addresses {
            if entry.1.len() < MAX_ADDRESSES {
                entry.1.insert(address);
            }
        }
        self.outside.push_back(entry);
        self.bound(self.capacity);
    }

    /// Whether anything was counted since this was asked last.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// Everything counted.
    #[must_use]
    pub fn counters(&self) -> DnsCounters {
        DnsCounters { outside: self.outside.iter().cloned().collect(), ..self.seen.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_kept_once_newest_last_and_bounded() {
        let mut tally = Tally::new(2);
        let address = |last| BTreeSet::from([IpAddr::from([192, 0, 2, last])]);
        for (name, last) in [("a", 1), ("b", 2), ("a", 3), ("c", 4)] {
            tally.outside(name.to_owned(), &address(last));
        }
        let both = address(1).union(&address(3)).copied().collect();
        assert_eq!(
            tally.counters().outside,
            [("a".to_owned(), both), ("c".to_owned(), address(4))]
        );
        for last in 0..100 {
            tally.outside("c".to_owned(), &address(last));
        }
        assert_eq!(tally.counters().outside[1].1.len(), MAX_ADDRESSES);
        assert!(tally.take_changed() && !tally.take_changed());
        tally.count(|seen| seen.queries += 1);
        assert!(tally.take_changed());
    }
}
