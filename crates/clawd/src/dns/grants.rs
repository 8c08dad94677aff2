//! What the live sets of one instance hold, and on whose account: the record never lacks what a set
//! holds, so that a tightened list can take back what it no longer allows.
//!
//! What it deliberately does not do: touch sets. Each method says what is to be changed; targets are
//! recorded before a change is tried.
//!
//! Where to start: [`Grants::record`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use claw_core::firewall::{Port, Protocol};
use tokio::time::Instant;

use super::names::Access;
use super::sets::Entry;

/// An entry stays at least so long: names with a TTL of seconds would otherwise cost a change each time,
/// and clients that ignore it would find the door closed.
pub const MIN_LIFE: Duration = Duration::from_secs(60);
/// And at most so long: RFC 8767 advises to take no TTL beyond days for true.
pub const MAX_LIFE: Duration = Duration::from_secs(86_400);
/// An entry outlives the TTL that the client is told by so much: a client may connect at its last moment.
pub const SLACK: Duration = Duration::from_secs(60);
/// The kernel rounds up to seconds, and counts from the addition, which comes after the record.
const DELAY: Duration = Duration::from_secs(5);
/// Most names to whose account an entry is put; of more, the oldest is forgotten.
const MAX_NAMES: usize = 8;

/// Where a name leads, as far as it may be reached: one entry of a set, or one for each protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// The address.
    pub address: IpAddr,
    /// The port, TCP and UDP; `None`: every port.
    pub port: Option<Port>,
}

impl Target {
    /// The targets of addresses, as far as `access` says.
    #[must_use]
    pub fn all(addresses: &BTreeSet<IpAddr>, access: &Access) -> BTreeSet<Self> {
        let of = |&address: &IpAddr| -> Vec<Self> {
            match access {
                Access::All => vec![Self { address, port: None }],
                Access::Ports(ports) => {
                    ports.iter().map(|&port| Self { address, port: Some(port) }).collect()
                }
            }
        };
        addresses.iter().flat_map(of).collect()
    }

    /// The entries of sets that let it be reached.
    #[must_use]
    pub fn entries(self) -> Vec<Entry> {
        let Self { address, port } = self;
        match port {
            None => vec![Entry { address, port: None }],
            Some(port) => Protocol::BOTH
                .map(|protocol| Entry { address, port: Some((protocol, port)) })
                .to_vec(),
        }
    }
}

#[derive(Debug)]
struct Held {
    until: Instant,
    names: Vec<Rc<str>>,
}

/// The record of one instance.
#[derive(Debug)]
pub struct Grants {
    held: BTreeMap<Target, Held>,
    capacity: usize,
}

impl Grants {
    /// An empty record of at most so many targets.
    #[must_use]
    pub const fn new(capacity: usize) -> Self {
        Self { held: BTreeMap::new(), capacity }
    }

    /// Holds at most so many targets from the next addition on.
    pub const fn bound(&mut self, capacity: usize) {
        self.capacity = capacity;
    }

    /// How many targets it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Records targets that are about to be added for a name; returns how long each stays, and the targets
    /// that must be removed to make room, which stay recorded until [`Self::forget`].
    pub fn record(
        &mut self,
        name: &Rc<str>,
        targets: &BTreeSet<Target>,
        ttl: Duration,
        now: Instant,
    ) -> Recorded {
        let until = now + ttl.clamp(MIN_LIFE, MAX_LIFE) + SLACK;
        self.held.retain(|_target, held| held.until + DELAY > now);
        let mut adds = Vec::with_capacity(targets.len());
        for &target in targets {
            let fresh = || Held { until, names: Vec::with_capacity(1) };
            let held = self.held.entry(target).or_insert_with(fresh);
            held.until = held.until.max(until);
            if !held.names.contains(name) {
                if held.names.len() >= MAX_NAMES {
                    held.names.remove(0);
                }
                held.names.push(Rc::clone(name));
            }
            adds.push((target, held.until.duration_since(now)));
        }
        Recorded { adds, evicted: self.surplus(targets) }
    }

    /// Targets that no name is entitled to any more. They stay recorded until [`Self::forget`].
    #[must_use]
    pub fn unentitled(&self, access: impl Fn(&str) -> Option<Access>) -> Vec<Target> {
        let entitled = |target: &Target, name: &Rc<str>| match (access(name), target.port) {
            (Some(Access::All), None) => true,
            (Some(Access::Ports(ports)), Some(port)) => ports.contains(&port),
            _ => false,
        };
        let unentitled = self
            .held
            .iter()
            .filter(|(target, held)| !held.names.iter().any(|name| entitled(target, name)));
        unentitled.map(|(target, _held)| *target).collect()
    }

    /// Forgets targets that were removed.
    pub fn forget(&mut self, targets: &[Target]) {
        for target in targets {
            self.held.remove(target);
        }
    }

    /// Forgets everything: the sets were cleared.
    pub fn clear(&mut self) {
        self.held.clear();
    }

    /// Targets beyond the capacity that end soonest, but none of `kept`.
    fn surplus(&self, kept: &BTreeSet<Target>) -> Vec<Target> {
        let surplus = self.held.len().saturating_sub(self.capacity);
        if surplus == 0 {
            return Vec::new();
        }
        let mut candidates: Vec<(Instant, Target)> = self
            .held
            .iter()
            .filter(|(target, _held)| !kept.contains(target))
            .map(|(target, held)| (held.until, *target))
            .collect();
        candidates.sort_unstable();
        candidates.into_iter().take(surplus).map(|(_until, target)| target).collect()
    }
}

/// What [`Grants::record`] asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// To be added, with how long each stays.
    pub adds: Vec<(Target, Duration)>,
    /// To be removed first.
    pub evicted: Vec<Target>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    fn target(last: u8) -> Target {
        Target { address: [192, 0, 2, last].into(), port: None }
    }

    fn grant(
        grants: &mut Grants,
        name: &str,
        targets: &[Target],
        ttl: u64,
        now: Instant,
    ) -> Recorded {
        let targets = targets.iter().copied().collect();
        let recorded = grants.record(&Rc::from(name), &targets, seconds(ttl), now);
        grants.forget(&recorded.evicted);
        recorded
    }

    #[track_caller]
    fn check_life(ttl: u64, expected: u64) {
        let mut grants = Grants::new(10);
        let recorded = grant(&mut grants, "a.example", &[target(1)], ttl, Instant::now());
        assert_eq!(recorded.adds, [(target(1), seconds(expected))]);
    }

    #[test]
    fn lives_have_a_floor_a_cap_and_slack() {
        check_life(0, 120);
        check_life(60, 120);
        check_life(300, 360);
        check_life(u64::from(u32::MAX), 86_460);
    }

    #[test]
    fn a_shorter_ttl_never_shortens_an_target() {
        let (mut grants, start) = (Grants::new(10), Instant::now());
        grant(&mut grants, "a.example", &[target(1)], 600, start);
        let recorded = grant(&mut grants, "b.example", &[target(1)], 5, start);
        assert_eq!(recorded.adds, [(target(1), seconds(660))]);
    }

    #[test]
    fn the_record_is_bounded_and_what_ends_soonest_goes() {
        let (mut grants, start) = (Grants::new(2), Instant::now());
        grant(&mut grants, "a.example", &[target(1)], 100, start);
        grant(&mut grants, "a.example", &[target(2)], 90, start);
        let recorded = grant(&mut grants, "a.example", &[target(3)], 0, start);
        assert_eq!((recorded.evicted, grants.len()), (vec![target(2)], 2));
        // What has ended needs no removal.
        let recorded = grant(&mut grants, "a.example", &[target(4)], 0, start + seconds(3600));
        assert_eq!((recorded.evicted, grants.len()), (vec![], 1));
    }

    #[test]
    fn a_tightened_list_takes_back_what_nobody_else_has() {
        let (mut grants, start) = (Grants::new(100), Instant::now());
        let port = |number| Port::new(number).unwrap();
        let on = |ports: &[u16]| Access::Ports(ports.iter().map(|&number| port(number)).collect());
        let addresses = BTreeSet::from([target(1).address]);
        let narrow = |number| Target { port: Some(port(number)), ..target(1) };
        let both: Vec<Target> = Target::all(&addresses, &on(&[80, 443])).into_iter().collect();
        assert_eq!(both, [narrow(80), narrow(443)]);
        assert_eq!(narrow(80).entries().len(), 2);
        grant(&mut grants, "a.example", &both, 60, start);
        grant(&mut grants, "b.example", &[narrow(80)], 60, start);
        assert_eq!(grants.unentitled(|_name| Some(on(&[80, 443]))), []);
        let left = grants.unentitled(|name| (name == "b.example").then(|| on(&[80, 443])));
        assert_eq!(left, [narrow(443)], "b.example keeps 80");
        assert_eq!(grants.unentitled(|_name| None), both);
        assert_eq!(grants.unentitled(|_name| Some(Access::All)), both, "one without ports does");
    }
}
