//! An instance that tries a denied port very often within a minute: somebody sends mail, or worse, with it.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::time::Duration;

use super::Taken;
use crate::firewall::{Port, Protocol};
use crate::name::InstanceName;
use crate::time::Timestamp;

/// How far back attempts count.
pub const BURST_WINDOW: Duration = Duration::from_secs(60);

/// Attempts within the window that make a burst. A refused attempt fails at once, so a program that
/// tries again every second makes 60 and is merely misconfigured; whoever sends mail makes many per second.
pub const BURST_ATTEMPTS: u64 = 100;

/// A burst that goes on is told again after this long at the earliest.
pub const BURST_PAUSE: Duration = Duration::from_secs(600);

/// Most pairs of instance and port that are watched at once, at most about 1 KiB each; the one that was quiet for
/// longest goes first.
pub const MAX_WATCHED: usize = 4_096;

/// Samples that begin within this time of each other are one.
const GRAIN: Duration = Duration::from_secs(1);

/// Many attempts within a short time. Its text is the message of the event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Burst {
    /// Whose.
    pub instance: InstanceName,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// At which port.
    pub port: Port,
    /// How many within [`BURST_WINDOW`], so far.
    pub attempts: u64,
}

impl fmt::Display for Burst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { instance, protocol, port, attempts } = self;
        let window = BURST_WINDOW.as_secs();
        write!(f, "instance {instance} tried {port}/{protocol} {attempts} times in {window} s")
    }
}

/// Attempts of the last minute. Bounded by [`MAX_WATCHED`].
#[derive(Debug, Clone, Default)]
pub struct Bursts {
    watched: BTreeMap<(InstanceName, Protocol, Port), Attempts>,
}

#[derive(Debug, Clone, Default)]
struct Attempts {
    /// When each sample began, and its attempts; oldest first.
    samples: VecDeque<(Timestamp, u64)>,
    told: Option<Timestamp>,
}

impl Bursts {
    /// Takes what [`super::Tally::take`] gave; returns the bursts that are to be told now.
    ///
    /// Attempts of a time longer than the window count as if they were spread over it evenly, and those of the
    /// first time not at all: nobody knows how long they took.
    pub fn observe(&mut self, now: Timestamp, taken: &Taken) -> Vec<Burst> {
        self.watched.retain(|_, attempts| attempts.is_recent(now));
        let Some(over) = taken.over else { return Vec::new() };
        let mut bursts = Vec::new();
        for (key, count) in &taken.ports {
            if !self.watched.contains_key(key) {
                self.make_room();
            }
            let attempts = self.watched.entry(key.clone()).or_default();
            attempts.add(now, over, *count);
            if let Some(attempts) = attempts.burst(now) {
                let (instance, protocol, port) = key.clone();
                bursts.push(Burst { instance, protocol, port, attempts });
            }
        }
        bursts
    }

    /// How many pairs of instance and port are watched.
    #[must_use]
    pub fn watched(&self) -> usize {
        self.watched.len()
    }

    fn make_room(&mut self) {
        while self.watched.len() >= MAX_WATCHED {
            let quietest = self.watched.iter().min_by_key(|(_, attempts)| attempts.samples.back());
            let Some(quietest) = quietest.map(|(key, _)| key.clone()) else { return };
            self.watched.remove(&quietest);
        }
    }
}

impl Attempts {
    fn is_recent(&mut self, now: Timestamp) -> bool {
        self.samples.retain(|(began, _)| *began <= now && now.since(*began) <= BURST_WINDOW);
        self.told = self.told.filter(|told| *told <= now && now.since(*told) < BURST_PAUSE);
        !self.samples.is_empty() || self.told.is_some()
    }

    fn add(&mut self, now: Timestamp, over: Duration, count: u64) {
        let (within, count) = if over <= BURST_WINDOW {
            (over, count)
        } else {
            let share = u128::from(count) * BURST_WINDOW.as_millis() / over.as_millis();
            (BURST_WINDOW, u64::try_from(share).unwrap_or(u64::MAX))
        };
        let millis = i64::try_from(within.as_millis()).unwrap_or(i64::MAX);
        let began = Timestamp::from_millis(now.millis().saturating_sub(millis));
        match self.samples.back_mut() {
            Some((last, sum)) if began.since(*last) < GRAIN => *sum = sum.saturating_add(count),
            _ => self.samples.push_back((began, count)),
        }
    }

    fn burst(&mut self, now: Timestamp) -> Option<u64> {
        let sum = self.samples.iter().fold(0_u64, |sum, (_, count)| sum.saturating_add(*count));
        if sum < BURST_ATTEMPTS || self.told.is_some() {
            return None;
        }
        self.told = Some(now);
        Some(sum)
    }
}
