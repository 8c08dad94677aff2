//! The wall clock, which the lease needs. The only place that reads it.

use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970, 0 before.
pub(crate) fn unix_millis() -> u64 {
    #[expect(clippy::disallowed_methods, reason = "this is the clock of the fake gateway")]
    let now = SystemTime::now();
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
