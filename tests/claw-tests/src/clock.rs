//! The clock of tests and benches that measure real time. The only place that reads it here.

use std::time::Instant;

/// Now.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "real connections are timed by real time")]
pub fn now() -> Instant {
    Instant::now()
}
