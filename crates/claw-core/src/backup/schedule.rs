//! When something that comes back regularly is due, as a pure function.
//!
//! Jitter is a fixed offset of each instance within its interval, drawn from its name: a fleet whose
//! hosts all booted at the same moment does not snapshot at the same moment, and an instance keeps its
//! time of day.

use std::time::Duration;

use crate::name::InstanceName;
use crate::stamp::Digest;
use crate::time::Timestamp;

/// The first one is taken this long after an instance was first seen, and up to as much again later: a host on
/// which many were just created has other things to do.
pub const FIRST_AFTER: Duration = Duration::from_secs(10 * 60);

/// When the first one is due, of an instance that has been there since `seen`.
#[must_use]
pub fn first_due(instance: &InstanceName, every: Duration, seen: Timestamp) -> Timestamp {
    let least = FIRST_AFTER.min(every / 2);
    let span = i64::try_from(least.as_millis()).unwrap_or(i64::MAX).max(1);
    let jitter = u64::try_from(offset(instance, span)).unwrap_or(0);
    seen.after(least).after(Duration::from_millis(jitter))
}

/// When the next one is due: at the instance's own offset in every interval since 1970, after `last`.
#[must_use]
pub fn next_due(instance: &InstanceName, every: Duration, last: Timestamp) -> Timestamp {
    let every = i64::try_from(every.as_millis()).unwrap_or(i64::MAX).max(1);
    let offset = offset(instance, every);
    let passed = last.millis().saturating_sub(offset).div_euclid(every);
    let next = passed.saturating_add(1).saturating_mul(every).saturating_add(offset);
    // Two that are close to each other are of no use: one taken just before its time counts for it.
    let least = last.millis().saturating_add(every / 2);
    Timestamp::from_millis(if next < least { next.saturating_add(every) } else { next })
}

/// Whether it is late by more than half its interval.
#[must_use]
pub fn is_overdue(due: Timestamp, every: Duration, now: Timestamp) -> bool {
    now > due.after(every / 2)
}

fn offset(instance: &InstanceName, every: i64) -> i64 {
    let digest = Digest::of(instance.as_str().as_bytes());
    let bytes = digest.as_bytes().iter().take(8);
    let number = bytes.fold(0_u64, |number, byte| (number << 8) | u64::from(*byte));
    i64::try_from(number % every.unsigned_abs()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn name(text: &str) -> InstanceName {
        InstanceName::parse(text).expect("valid")
    }

    #[test]
    fn it_comes_back_at_the_instances_own_time() {
        let start = Timestamp::from_millis(1_795_237_200_000);
        let first = next_due(&name("a"), HOUR, start);
        assert!(first.since(start) >= HOUR / 2 && first.since(start) <= HOUR * 3 / 2);
        let second = next_due(&name("a"), HOUR, first);
        assert_eq!(second.since(first), HOUR);
        let late = next_due(&name("a"), HOUR, first.after(Duration::from_secs(60)));
        assert_eq!(late, second, "one that was late does not move those after it");
        assert_ne!(next_due(&name("b"), HOUR, start), first, "others have other times");
    }

    #[test]
    fn the_first_one_comes_soon_and_half_an_interval_is_late() {
        let now = Timestamp::from_millis(1_795_237_200_000);
        let first = first_due(&name("a"), HOUR, now);
        assert!(first.since(now) >= FIRST_AFTER && first.since(now) <= 2 * FIRST_AFTER);
        let often = Duration::from_secs(900);
        assert!(first_due(&name("a"), often, now).since(now) <= often, "within its interval");
        let due = next_due(&name("a"), HOUR, now);
        assert!(!is_overdue(due, HOUR, due.after(HOUR / 2)));
        assert!(is_overdue(due, HOUR, due.after(HOUR / 2 + Duration::from_millis(1))));
    }
}
