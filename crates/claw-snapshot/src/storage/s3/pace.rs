//! A limit on bytes per second that all threads of a storage share.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use bytes::Bytes;

/// Parts per second into which a limited transfer is cut.
const PARTS: u64 = 20;
/// What is transferred at once: at least one packet, at most what TLS takes at once.
const SMALLEST: u64 = 1 << 10;
const LARGEST: u64 = 64 << 10;

/// Says how long to wait.
#[derive(Debug)]
pub(super) struct Pace {
    limit: Option<NonZeroU64>,
    /// When everything that was allowed so far has gone through.
    free_at: Mutex<Option<Instant>>,
}

impl Pace {
    pub(super) fn new(limit: Option<NonZeroU64>) -> Self {
        Self { limit, free_at: Mutex::new(None) }
    }

    /// How much is to be transferred at once.
    pub(super) fn part(&self) -> usize {
        let part = self.limit.map_or(LARGEST, |limit| limit.get() / PARTS);
        usize::try_from(part.clamp(SMALLEST, LARGEST)).unwrap_or(usize::MAX)
    }

    /// How long a transfer takes at most because of the limit, with four at once.
    pub(super) fn takes(&self, bytes: u64) -> Duration {
        self.limit.map_or(Duration::ZERO, |limit| Duration::from_secs(4 * bytes / limit))
    }

    /// Waits until so many more bytes may go through.
    #[expect(clippy::disallowed_methods, reason = "the limit is one of real time")]
    pub(super) fn wait(&self, bytes: usize) {
        let Some(limit) = self.limit else { return };
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let takes = Duration::from_micros(bytes.saturating_mul(1_000_000) / limit);
        let now = Instant::now();
        let until = {
            let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
            let until = free_at.map_or(now, |free_at| free_at.max(now)) + takes;
            *free_at = Some(until);
            until
        };
        sleep(until.saturating_duration_since(now));
    }
}

/// Reads parts one after the other, no faster than allowed.
#[derive(Debug)]
pub(super) struct Parts {
    /// What is left, the next one first.
    parts: VecDeque<Bytes>,
    pace: Arc<Pace>,
}

impl Parts {
    pub(super) fn new(parts: &[Bytes], pace: &Arc<Pace>) -> Self {
        Self { parts: parts.iter().cloned().collect(), pace: Arc::clone(pace) }
    }
}

impl Read for Parts {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.parts.front().is_some_and(Bytes::is_empty) {
            self.parts.pop_front();
        }
        let Some(first) = self.parts.front_mut() else { return Ok(0) };
        let count = first.len().min(buffer.len()).min(self.pace.part());
        self.pace.wait(count);
        first.split_to(count).as_ref().read(buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_read_one_after_the_other() {
        let pace = Arc::new(Pace::new(None));
        let parts = [Bytes::from_static(b"one"), Bytes::new(), Bytes::from_static(b"two")];
        let mut text = String::new();
        Parts::new(&parts, &pace).read_to_string(&mut text).unwrap();
        assert_eq!(text, "onetwo");
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "the limit is one of real time")]
    fn the_limit_holds_for_all_threads_together() {
        let pace = Pace::new(NonZeroU64::new(200_000));
        assert_eq!(pace.part(), 10_000);
        let begun = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..2 {
                        pace.wait(10_000);
                    }
                });
            }
        });
        let elapsed = begun.elapsed();
        assert!(elapsed >= Duration::from_millis(200), "{elapsed:?}");
    }
}
