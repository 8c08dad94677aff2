//! Sources that fail to log in again and again, and for how long each is banned.
//!
//! [`login_failure`] finds the source of a failure in a line of sshd's log; [`Tracker`] counts failures and says
//! when a source is to be banned. Banning itself, and the length of a ban, are the kernel's: the set of banned
//! sources forgets by itself. What this does not do: read a log, remember over a restart of the agent (bans that
//! are in force outlive it, only their doubling begins anew).

mod log;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

pub use log::login_failure;

use super::{BruteForce, Cidr, Family};
use crate::time::Timestamp;

/// Most sources that are remembered at once; the one that failed longest ago goes first. With the most failures
/// that a policy may ask for ([`super::check::FAILURES`]) that is about 2 MiB, with the default 250 KiB.
pub const MAX_SOURCES: usize = 2_048;

/// The longest ban.
pub const MAX_BAN: Duration = Duration::from_secs(86_400);

/// A source that has not failed for so long is forgotten: the longest ban and as long again, so that who
/// returns right after a ban is known.
pub const MEMORY: Duration = Duration::from_secs(2 * 86_400);

/// A source to be banned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ban {
    /// One IPv4 address, or the /64 around an IPv6 address: a host has all of one (RFC 6177).
    pub source: Cidr,
    /// For how long, in whole seconds.
    pub length: Duration,
}

/// Failures by source. Bounded by [`MAX_SOURCES`].
#[derive(Debug, Clone, Default)]
pub struct Tracker {
    sources: BTreeMap<Cidr, Record>,
}

impl Tracker {
    /// Counts a failure; says when its source is to be banned.
    ///
    /// Loopback and trusted sources are never banned, and nobody is when the policy's failures are 0. Each further
    /// ban of a source that is still remembered is twice as long, up to [`MAX_BAN`]. A source that goes on failing
    /// while it is banned (its connections stay, or the ban was lost) is banned anew for what is left.
    pub fn observe(
        &mut self,
        source: IpAddr,
        now: Timestamp,
        policy: &BruteForce,
        trusted: &BTreeSet<Cidr>,
    ) -> Option<Ban> {
        let source = source.to_canonical();
        let exempt = source.is_loopback() || trusted.iter().any(|block| block.contains(source));
        if policy.failures == 0 || exempt {
            return None;
        }
        let block = match Family::of(source) {
            Family::V4 => Cidr::containing(source, 32),
            Family::V6 => Cidr::containing(source, 64),
        };
        if self.sources.len() >= MAX_SOURCES && !self.sources.contains_key(&block) {
            self.make_room(now);
        }
        let record = self.sources.entry(block).or_default();
        if record.is_forgotten(now) {
            *record = Record::default();
        }
        let length = record.fail(now, policy)?;
        Some(Ban { source: block, length })
    }

    /// How many sources are remembered.
    #[must_use]
    pub fn remembered(&self) -> usize {
        self.sources.len()
    }

    fn make_room(&mut self, now: Timestamp) {
        self.sources.retain(|_, record| !record.is_forgotten(now));
        while self.sources.len() >= MAX_SOURCES {
            let oldest = self.sources.iter().min_by_key(|(_, record)| record.last);
            let Some(oldest) = oldest.map(|(source, _)| *source) else { return };
            self.sources.remove(&oldest);
        }
    }
}

#[derive(Debug, Clone, Default)]
struct Record {
    /// Failures within the window, oldest first; never more than the policy's.
    failures: VecDeque<Timestamp>,
    last: Timestamp,
    bans: u32,
    banned_until: Option<Timestamp>,
}

impl Record {
    /// A record from the future is forgotten too: the clock was set back, and it would never grow old.
    fn is_forgotten(&self, now: Timestamp) -> bool {
        now.since(self.last) > MEMORY || self.last.since(now) > MEMORY
    }

    fn fail(&mut self, now: Timestamp, policy: &BruteForce) -> Option<Duration> {
        self.last = now;
        self.failures.retain(|at| *at <= now && now.since(*at) < policy.window);
        self.failures.push_back(now);
        if self.failures.len() < usize::try_from(policy.failures).unwrap_or(usize::MAX) {
            return None;
        }
        self.failures.clear();
        let left = self.banned_until.map(|until| until.since(now)).filter(|left| !left.is_zero());
        let length = match left {
            // A clock that was set back must not stretch a ban.
            Some(left) => left.min(MAX_BAN),
            None => {
                let doubled =
                    2_u32.checked_pow(self.bans).and_then(|by| policy.ban.checked_mul(by));
                self.bans = self.bans.saturating_add(1);
                doubled.map_or(MAX_BAN, |length| length.min(MAX_BAN))
            }
        };
        // The kernel counts bans in whole seconds, and takes 0 for ever (ipset(8)).
        let whole = length.as_millis().div_ceil(1000).max(1);
        let length = Duration::from_secs(u64::try_from(whole).unwrap_or(u64::MAX));
        self.banned_until = Some(now.after(length));
        Some(length)
    }
}
