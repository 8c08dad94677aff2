//! Points in time and durations.

use std::time::Duration;

use claw_core::time::Timestamp;

/// A point in time for the wire; precision is milliseconds.
#[must_use]
pub fn timestamp_to_wire(at: Timestamp) -> prost_types::Timestamp {
    let millis = at.millis();
    let nanos = i32::try_from(millis.rem_euclid(1000)).unwrap_or(0) * 1_000_000;
    prost_types::Timestamp { seconds: millis.div_euclid(1000), nanos }
}

/// A point in time from the wire; saturates, sub-millisecond precision is dropped.
#[must_use]
pub fn timestamp_from_wire(at: &prost_types::Timestamp) -> Timestamp {
    let millis = i64::from(at.nanos / 1_000_000);
    Timestamp::from_millis(at.seconds.saturating_mul(1000).saturating_add(millis))
}

/// A duration for the wire; saturates at the largest one.
#[must_use]
pub fn duration_to_wire(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or(0),
    }
}

/// A duration that is not negative and not longer than 100 years.
pub(super) fn duration_from_wire(
    duration: &prost_types::Duration,
) -> Result<Duration, &'static str> {
    const CENTURY: u64 = 100 * 366 * 24 * 3600;
    let seconds = u64::try_from(duration.seconds);
    let nanos = u32::try_from(duration.nanos);
    match (seconds, nanos) {
        (Ok(seconds), Ok(nanos)) if seconds <= CENTURY && nanos < 1_000_000_000 => {
            Ok(Duration::new(seconds, nanos))
        }
        _ => Err("must be a duration that is not negative and below 100 years"),
    }
}
