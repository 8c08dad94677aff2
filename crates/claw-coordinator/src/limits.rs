//! Bounds against floods: rates, and counts per source and per peer.
//!
//! Every map here is bounded by what it counts or by a constant; a flood costs the flooder.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Sources that are remembered; beyond it the one not seen for longest is forgotten.
const MAX_SOURCES: usize = 10_000;

/// Where a connection comes from: an IPv4 address, or the /64 that an IPv6 user usually has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Source(IpAddr);

impl From<IpAddr> for Source {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self(IpAddr::V4(address)),
            IpAddr::V6(address) => {
                let network = address.to_bits() >> 64 << 64;
                Self(IpAddr::V6(Ipv6Addr::from_bits(network)))
            }
        }
    }
}

/// A rate with a burst.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// How many per second in the long run.
    pub per_second: f64,
    /// How many at once after a rest.
    pub burst: f64,
}

/// A token bucket.
#[derive(Debug, Clone)]
pub struct Bucket {
    rate: Rate,
    tokens: f64,
    at: Instant,
}

impl Bucket {
    /// A full one.
    #[must_use]
    pub fn new(rate: Rate) -> Self {
        Self { rate, tokens: rate.burst, at: Instant::now() }
    }

    /// Takes one.
    ///
    /// # Errors
    /// How long to wait for the next.
    pub fn take(&mut self) -> Result<(), Duration> {
        self.fill();
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return Ok(());
        }
        Err(self.wait())
    }

    /// Whether one could be taken.
    ///
    /// # Errors
    /// How long to wait for the next.
    pub fn check(&mut self) -> Result<(), Duration> {
        self.fill();
        if self.tokens >= 1.0 { Ok(()) } else { Err(self.wait()) }
    }

    fn wait(&self) -> Duration {
        Duration::try_from_secs_f64((1.0 - self.tokens) / self.rate.per_second)
            .unwrap_or(Duration::from_secs(60))
    }

    fn fill(&mut self) {
        let now = Instant::now();
        let gained = (now - self.at).as_secs_f64() * self.rate.per_second;
        self.tokens = (self.tokens + gained).min(self.rate.burst);
        self.at = now;
    }
}

/// One bucket per source.
#[derive(Debug)]
pub struct PerSource {
    rate: Rate,
    buckets: Mutex<BTreeMap<Source, Bucket>>,
}

impl PerSource {
    /// With full buckets.
    #[must_use]
    pub fn new(rate: Rate) -> Self {
        Self { rate, buckets: Mutex::new(BTreeMap::new()) }
    }

    /// Whether the source may try.
    ///
    /// # Errors
    /// How long to wait.
    pub fn check(&self, source: Source) -> Result<(), Duration> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        buckets.get_mut(&source).map_or(Ok(()), Bucket::check)
    }

    /// The source has failed.
    pub fn note(&self, source: Source) {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= MAX_SOURCES && !buckets.contains_key(&source) {
            let oldest = buckets.iter().min_by_key(|(_, bucket)| bucket.at).map(|(key, _)| *key);
            oldest.and_then(|oldest| buckets.remove(&oldest));
        }
        let bucket = buckets.entry(source).or_insert_with(|| Bucket::new(self.rate));
        // An empty bucket is what the failure is counted for.
        let _waits = bucket.take();
    }
}

/// Counts holders of each key, up to a bound.
#[derive(Debug)]
pub struct Counted<K: Ord> {
    max: usize,
    counts: Mutex<BTreeMap<K, usize>>,
}

/// One of the holders; gives its place back when dropped.
#[derive(Debug)]
pub struct Place<K: Ord> {
    key: Option<K>,
    counted: Arc<Counted<K>>,
}

impl<K: Ord + Clone> Counted<K> {
    /// At most `max` holders of each key.
    #[must_use]
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max, counts: Mutex::new(BTreeMap::new()) })
    }

    /// A place, unless all are taken.
    #[must_use]
    pub fn take(self: &Arc<Self>, key: K) -> Option<Place<K>> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(key.clone()).or_insert(0);
        if *count >= self.max {
            return None;
        }
        *count += 1;
        Some(Place { key: Some(key), counted: Arc::clone(self) })
    }
}

impl<K: Ord> Drop for Place<K> {
    fn drop(&mut self) {
        let Some(key) = self.key.take() else { return };
        let mut counts = self.counted.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&key);
            }
        }
    }
}

/// `base` plus up to as much again at random.
#[must_use]
pub fn jittered(base: Duration) -> Duration {
    base + base.mul_f64(rand::random::<f64>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_user_is_one_source() {
        let source = |text: &str| Source::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(source("2001:db8::1"), source("2001:db8::ffff:1"));
        assert_ne!(source("2001:db8::1"), source("2001:db8:0:1::1"));
        assert_eq!(source("::ffff:192.0.2.1"), source("192.0.2.1"));
        assert_ne!(source("192.0.2.2"), source("192.0.2.1"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_bucket_empties_and_fills() {
        let mut bucket = Bucket::new(Rate { per_second: 1.0, burst: 2.0 });
        assert_eq!(bucket.take(), Ok(()));
        assert_eq!(bucket.take(), Ok(()));
        assert_eq!(bucket.take(), Err(Duration::from_secs(1)));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(bucket.take(), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn only_failures_of_the_same_source_count() {
        let limit = PerSource::new(Rate { per_second: 1.0, burst: 1.0 });
        let source = |last| Source::from(IpAddr::from([192, 0, 2, last]));
        assert_eq!(limit.check(source(1)), Ok(()));
        limit.note(source(1));
        assert!(limit.check(source(1)).is_err());
        assert_eq!(limit.check(source(2)), Ok(()));
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(limit.check(source(1)), Ok(()));
    }

    #[test]
    fn places_come_back() {
        let counted = Counted::new(1);
        let place = counted.take("a").unwrap();
        assert!(counted.take("a").is_none());
        assert!(counted.take("b").is_some());
        drop(place);
        assert!(counted.take("a").is_some());
    }
}
