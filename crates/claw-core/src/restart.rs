//! When a gateway that died may start again, and when it has crashed too often.

use std::time::Duration;

use crate::stamp::Digest;
use crate::time::Timestamp;

/// Failures older than this no longer count.
pub const WINDOW: Duration = Duration::from_secs(600);

/// From this many failures within [`WINDOW`] on, the breaker is open.
pub const BREAKER_FAILURES: usize = 6;

/// With the breaker open, one attempt in this time.
pub const BREAKER_RETRY: Duration = Duration::from_secs(300);

/// Failures of one spec, newest last. A changed spec starts a new history: a crash loop never
/// blocks a new target.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RestartHistory {
    spec: Option<Digest>,
    failures: Vec<Timestamp>,
}

/// Whether a dead gateway may start now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartDecision {
    /// At once.
    Now,
    /// Not before a point in time; `failures` happened within [`WINDOW`].
    Later {
        /// When.
        at: Timestamp,
        /// Failures that count.
        failures: usize,
    },
    /// It crashed [`BREAKER_FAILURES`] times or more; the next attempt comes at `at`.
    BreakerOpen {
        /// When.
        at: Timestamp,
        /// Failures that count.
        failures: usize,
    },
}

impl RestartHistory {
    /// A history as it was journaled.
    #[must_use]
    pub const fn restore(spec: Option<Digest>, failures: Vec<Timestamp>) -> Self {
        Self { spec, failures }
    }

    /// The spec that the failures belong to.
    #[must_use]
    pub const fn spec(&self) -> Option<Digest> {
        self.spec
    }

    /// The failures, oldest first.
    #[must_use]
    pub fn failures(&self) -> &[Timestamp] {
        &self.failures
    }

    /// This history with one more failure of `spec`; another spec's failures are dropped. At most
    /// 2 × [`BREAKER_FAILURES`] are kept.
    #[must_use]
    pub fn with_failure(&self, spec: Digest, at: Timestamp) -> Self {
        let mut failures = if self.spec == Some(spec) { self.failures.clone() } else { Vec::new() };
        failures.push(at);
        let surplus = failures.len().saturating_sub(2 * BREAKER_FAILURES);
        failures.drain(..surplus);
        Self { spec: Some(spec), failures }
    }

    /// Decides for a gateway of `spec` that is down at `now`.
    #[must_use]
    pub fn decide(&self, spec: Digest, now: Timestamp) -> RestartDecision {
        if self.spec != Some(spec) {
            return RestartDecision::Now;
        }
        let recent = self.failures.iter().filter(|at| now.since(**at) < WINDOW).count();
        let Some(last) = self.failures.last().filter(|_| recent > 0) else {
            return RestartDecision::Now;
        };
        if recent >= BREAKER_FAILURES {
            let at = last.after(BREAKER_RETRY);
            return if at <= now {
                RestartDecision::Now
            } else {
                RestartDecision::BreakerOpen { at, failures: recent }
            };
        }
        let at = last.after(delay(recent));
        if at <= now {
            RestartDecision::Now
        } else {
            RestartDecision::Later { at, failures: recent }
        }
    }
}

/// Delay after the n-th recent failure: none, then 1, 2, 4, 8 s.
fn delay(failures: usize) -> Duration {
    let doublings = u32::try_from(failures.saturating_sub(2)).unwrap_or(u32::MAX).min(8);
    if failures <= 1 { Duration::ZERO } else { Duration::from_secs(1 << doublings) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(seconds * 1000)
    }

    fn spec() -> Digest {
        Digest::of(b"spec")
    }

    fn history(seconds: &[i64]) -> RestartHistory {
        seconds.iter().fold(RestartHistory::default(), |h, s| h.with_failure(spec(), at(*s)))
    }

    #[track_caller]
    fn check(failures: &[i64], now: i64, expected: RestartDecision) {
        assert_eq!(history(failures).decide(spec(), at(now)), expected);
    }

    #[test]
    fn back_at_once_then_slower_then_the_breaker() {
        check(&[], 0, RestartDecision::Now);
        check(&[100], 100, RestartDecision::Now);
        check(&[100, 101], 101, RestartDecision::Later { at: at(102), failures: 2 });
        check(&[100, 101], 102, RestartDecision::Now);
        check(&[1, 2, 4, 8, 17], 17, RestartDecision::Later { at: at(25), failures: 5 });
        let six = [1, 2, 4, 8, 17, 30];
        check(&six, 31, RestartDecision::BreakerOpen { at: at(330), failures: 6 });
        check(&six, 330, RestartDecision::Now);
    }

    #[test]
    fn old_failures_and_other_specs_do_not_count() {
        check(&[1, 2, 3, 4, 5, 6], 700, RestartDecision::Now);
        let other = Digest::of(b"other");
        assert_eq!(history(&[1, 2, 3, 4, 5, 6]).decide(other, at(7)), RestartDecision::Now);
        assert_eq!(history(&[1, 2]).with_failure(other, at(3)).failures().len(), 1);
    }

    #[test]
    fn history_is_bounded() {
        let many: Vec<i64> = (0..100).collect();
        assert_eq!(history(&many).failures().len(), 2 * BREAKER_FAILURES);
    }
}
