//! Time as the lab needs it: how long may something still take. The only file that reads the clock.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Asks `probe` until it has an answer, ever less often (every 10 ms at first, 200 ms at last);
/// `what` completes "waited in vain for …".
///
/// # Errors
/// When there is none within that time.
pub fn wait_for<T>(
    what: &str,
    within: Duration,
    mut probe: impl FnMut() -> Option<T>,
) -> Result<T> {
    let deadline = Deadline::after(within);
    let mut pause = Duration::from_millis(10);
    loop {
        if let Some(answer) = probe() {
            return Ok(answer);
        }
        let Some(left) = deadline.left() else {
            bail!("waited in vain for {what}, {within:?}");
        };
        std::thread::sleep(pause.min(left));
        pause = (pause * 5 / 4).min(Duration::from_millis(200));
    }
}

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
