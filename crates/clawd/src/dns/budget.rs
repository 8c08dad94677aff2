//! How much each instance may make the forwarder remember: shares of fixed totals, so that memory is
//! bounded whatever containers ask for, with 254 instances as with one.

/// Bytes of answers that are kept, in all.
const CACHE_BYTES: usize = 4 * 1024 * 1024;
/// Addresses with their ports that are recorded, in all; each takes about 200 bytes.
const TARGETS: usize = 32_768;
/// Names outside lists that are kept, in all; each takes up to 700 bytes, and twice as much again while
/// the file is written.
const NAMES: usize = 4096;

/// The share of one instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Bytes of answers that are kept.
    pub cache_bytes: usize,
    /// Addresses with their ports that are recorded.
    pub targets: usize,
    /// Names outside the list that are kept; at most 256, as `DnsCounters` says.
    pub names: usize,
}

impl Budget {
    /// The share of each of so many instances.
    #[must_use]
    pub fn of(instances: usize) -> Self {
        let share = |total: usize, most: usize| (total / instances.max(1)).min(most);
        Self {
            cache_bytes: share(CACHE_BYTES, 256 * 1024),
            targets: share(TARGETS, 4096),
            names: share(NAMES, 256),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_stay_within_the_totals() {
        assert_eq!(Budget::of(0), Budget::of(1));
        assert_eq!(Budget::of(1).names, 256);
        for instances in [1, 10, 100, 254] {
            let budget = Budget::of(instances);
            assert!(budget.cache_bytes * instances <= CACHE_BYTES);
            assert!(budget.targets * instances <= TARGETS && budget.targets >= 128);
            assert!(budget.names * instances <= NAMES && budget.names >= 16);
        }
    }
}
