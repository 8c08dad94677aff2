//! Times and durations as text.

use std::time::Duration;

use claw_core::time::Timestamp;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// RFC 3339, UTC, to the millisecond.
pub(crate) fn text(at: Timestamp) -> String {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(at.millis()) * 1_000_000)
        .ok()
        .and_then(|at| at.format(&Rfc3339).ok())
        .unwrap_or_else(|| format!("{}ms", at.millis()))
}

/// A point in time for a list: how long ago, or `in …`.
pub(crate) fn ago(at: Option<Timestamp>, now: Timestamp) -> String {
    match at {
        None => String::new(),
        Some(at) if at > now => format!("in {}", rough(at.since(now))),
        Some(at) => rough(now.since(at)),
    }
}

/// A duration's two largest units: `3d4h`, `12m`, `5s`.
pub(crate) fn rough(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes, seconds % 60) {
        (0, 0, 0, seconds) => format!("{seconds}s"),
        (0, 0, minutes, 0) => format!("{minutes}m"),
        (0, 0, minutes, seconds) if minutes < 10 => format!("{minutes}m{seconds}s"),
        (0, 0, minutes, _) => format!("{minutes}m"),
        (0, hours, 0, _) => format!("{hours}h"),
        (0, hours, minutes, _) => format!("{hours}h{minutes}m"),
        (days, 0, ..) => format!("{days}d"),
        (days, hours, ..) => format!("{days}d{hours}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        assert_eq!(text(Timestamp::from_millis(1_790_000_000_123)), "2026-09-21T14:13:20.123Z");
        assert_eq!(text(Timestamp::from_millis(i64::MAX)), format!("{}ms", i64::MAX));
        let now = Timestamp::from_millis(1_000_000);
        assert_eq!(ago(Some(Timestamp::from_millis(940_000)), now), "1m");
        assert_eq!(ago(Some(Timestamp::from_millis(1_005_000)), now), "in 5s");
        assert_eq!(ago(None, now), "");
    }

    #[test]
    fn durations() {
        for (seconds, expected) in [
            (0, "0s"),
            (59, "59s"),
            (61, "1m1s"),
            (660, "11m"),
            (3_600, "1h"),
            (7_530, "2h5m"),
            (86_400, "1d"),
            (273_000, "3d3h"),
        ] {
            assert_eq!(rough(Duration::from_secs(seconds)), expected);
        }
    }
}
