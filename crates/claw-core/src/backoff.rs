//! Decorrelated jitter: how long to wait before the next attempt.
//!
//! The method is "decorrelated jitter" of the AWS architecture blog, "Exponential Backoff And
//! Jitter": each delay is random between the floor and three times the previous one, capped.

use std::time::Duration;

/// Bounds of a back-off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Shortest delay.
    pub floor: Duration,
    /// Longest delay.
    pub ceiling: Duration,
}

/// Reconnecting to the coordinator: 250 ms to 120 s.
pub const RECONNECT: Bounds =
    Bounds { floor: Duration::from_millis(250), ceiling: Duration::from_secs(120) };

/// A session that lasted this long was stable; the back-off starts over.
pub const STABLE_SESSION: Duration = Duration::from_secs(60);

/// The state of one back-off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    bounds: Bounds,
    previous: Duration,
}

impl Backoff {
    /// A back-off that starts at its floor.
    #[must_use]
    pub const fn new(bounds: Bounds) -> Self {
        Self { bounds, previous: bounds.floor }
    }

    /// The next delay; `random` is uniform over all of `u64`.
    pub fn next_delay(&mut self, random: u64) -> Duration {
        let floor = millis(self.bounds.floor);
        let ceiling = millis(self.bounds.ceiling);
        let span = millis(self.previous).saturating_mul(3).saturating_sub(floor).max(1);
        let delay = floor.saturating_add(random % span).min(ceiling);
        self.previous = Duration::from_millis(delay);
        self.previous
    }

    /// Starts over.
    pub const fn reset(&mut self) {
        self.previous = self.bounds.floor;
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn stays_within_bounds(randoms in prop::collection::vec(any::<u64>(), 1..60)) {
            let mut backoff = Backoff::new(RECONNECT);
            for random in randoms {
                let delay = backoff.next_delay(random);
                prop_assert!((RECONNECT.floor..=RECONNECT.ceiling).contains(&delay));
            }
        }
    }

    #[test]
    fn grows_to_its_ceiling_and_starts_over() {
        let mut backoff = Backoff::new(RECONNECT);
        let longest = (0..40).map(|_| backoff.next_delay(u64::MAX - 7)).max();
        assert!(longest > Some(Duration::from_secs(30)), "{longest:?}");
        backoff.reset();
        assert!(backoff.next_delay(499) < Duration::from_secs(1));
    }
}
