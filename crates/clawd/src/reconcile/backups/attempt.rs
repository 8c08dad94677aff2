//! What failed on an instance's snapshots, how often, and before when it is not tried again.
//!
//! Held in memory only: a new agent tries everything at once.

use std::collections::BTreeMap;
use std::time::Duration;

use claw_core::time::Timestamp;

use super::due::Kind;

/// Longest wait between two attempts that failed.
const CEILING: Duration = Duration::from_secs(3600);
/// As [`CEILING`], for drills: each takes minutes of a core, and what failed needs a person.
const DRILL_CEILING: Duration = Duration::from_secs(24 * 3600);
/// After the first failure.
const FLOOR: Duration = Duration::from_secs(60);
/// As [`FLOOR`], for drills.
const DRILL_FLOOR: Duration = Duration::from_secs(3600);

/// Failures in a row of each kind of job.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Attempts(BTreeMap<Kind, Attempt>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Attempt {
    failures: u32,
    not_before: Timestamp,
    problem: String,
}

impl Attempts {
    /// A job failed; returns how often in a row. `random` is uniform over all of `u64`.
    pub(super) fn failed(
        &mut self,
        kind: Kind,
        problem: String,
        now: Timestamp,
        random: u64,
    ) -> u32 {
        let failures = self.failures(kind).saturating_add(1);
        let not_before = now.after(delay(kind, failures, random));
        self.0.insert(kind, Attempt { failures, not_before, problem });
        failures
    }

    /// A job was done, or is not wanted any more.
    pub(super) fn cleared(&mut self, kind: Kind) {
        self.0.remove(&kind);
    }

    /// How often in a row it failed.
    pub(super) fn failures(&self, kind: Kind) -> u32 {
        self.0.get(&kind).map_or(0, |attempt| attempt.failures)
    }

    /// The earliest time at which it may be tried.
    pub(super) fn not_before(&self, kind: Kind) -> Timestamp {
        self.0.get(&kind).map_or_else(Timestamp::default, |attempt| attempt.not_before)
    }

    /// Why the most urgent of what failed did; empty when nothing did. Copies off-site are a matter of their own.
    pub(super) fn problem(&self) -> &str {
        let own = self.0.iter().find(|(kind, _)| **kind != Kind::Offsite);
        own.map_or("", |(_, attempt)| attempt.problem.as_str())
    }

    /// Why a kind of job failed last; empty when it did not.
    pub(super) fn problem_of(&self, kind: Kind) -> &str {
        self.0.get(&kind).map_or("", |attempt| attempt.problem.as_str())
    }
}

/// Doubles with every failure up to its ceiling, and is spread by a quarter to either side.
fn delay(kind: Kind, failures: u32, random: u64) -> Duration {
    let (floor, ceiling) = match kind {
        Kind::Drill => (DRILL_FLOOR, DRILL_CEILING),
        _ => (FLOOR, CEILING),
    };
    let doubled = 2_u32.saturating_pow(failures.saturating_sub(1));
    let delay = floor.saturating_mul(doubled).min(ceiling);
    let millis = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
    let spread = random % (millis / 2).max(1);
    Duration::from_millis((millis - millis / 4).saturating_add(spread))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minutes(count: u64) -> Duration {
        Duration::from_secs(60 * count)
    }

    #[test]
    fn waits_double_up_to_an_hour_and_are_spread() {
        let mut attempts = Attempts::default();
        let start = Timestamp::from_millis(0);
        for (failure, least) in [(1, 1), (2, 2), (3, 4), (4, 8), (5, 16), (6, 32), (7, 60), (8, 60)]
        {
            for random in [0, 12_345, u64::MAX] {
                let mut attempts = attempts.clone();
                assert_eq!(
                    attempts.failed(Kind::Scheduled, "no".to_owned(), start, random),
                    failure
                );
                let wait = attempts.not_before(Kind::Scheduled).since(start);
                assert!(wait >= minutes(least) * 3 / 4, "{failure}: {wait:?}");
                assert!(wait <= minutes(least) * 5 / 4, "{failure}: {wait:?}");
            }
            attempts.failed(Kind::Scheduled, "no".to_owned(), start, 0);
        }
        assert!(attempts.not_before(Kind::Drill) <= start, "others are not concerned");
        attempts.cleared(Kind::Scheduled);
        assert_eq!(attempts, Attempts::default());
    }

    #[test]
    fn the_most_urgent_problem_is_told() {
        let mut attempts = Attempts::default();
        let now = Timestamp::default();
        assert_eq!(attempts.problem(), "");
        attempts.failed(Kind::Drill, "no memory".to_owned(), now, 0);
        attempts.failed(Kind::AtRest, "no room".to_owned(), now, 0);
        assert_eq!(attempts.problem(), "no room");
    }

    #[test]
    fn a_copy_that_fails_is_no_problem_of_the_snapshots() {
        let mut attempts = Attempts::default();
        attempts.failed(Kind::Offsite, "wrong key".to_owned(), Timestamp::default(), 0);
        assert_eq!((attempts.problem(), attempts.problem_of(Kind::Offsite)), ("", "wrong key"));
        assert_eq!(attempts.problem_of(Kind::Drill), "");
    }
}
