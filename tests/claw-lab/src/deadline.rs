//! Time as the lab needs it: how long may something still take. The only file that reads the clock.

use std::time::{Duration, Instant};

/// A point in time after which waiting is given up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    start: Instant,
    length: Duration,
}

impl Deadline {
    #[expect(clippy::disallowed_methods, reason = "the lab's one reading of the clock")]
    pub(crate) fn after(length: Duration) -> Self {
        Self { start: Instant::now(), length }
    }

    /// What is left; `None` once it has passed.
    pub(crate) fn left(&self) -> Option<Duration> {
        self.length.checked_sub(self.start.elapsed()).filter(|left| !left.is_zero())
    }

    /// How much of it is used.
    pub(crate) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Asks `ready` every `interval` until it says yes or the deadline has passed; whether it did.
    pub(crate) fn poll(&self, interval: Duration, mut ready: impl FnMut() -> bool) -> bool {
        loop {
            if ready() {
                return true;
            }
            let Some(left) = self.left() else { return false };
            std::thread::sleep(interval.min(left));
        }
    }
}
