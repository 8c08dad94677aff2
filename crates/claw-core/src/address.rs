//! Where an instance lives on its host: slot, bridge, subnet, container address.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use crate::firewall::Cidr;

/// A host's number for an instance, 0 to 253; it decides the subnet and the bridge's name.
///
/// The agent gives the lowest free slot to an instance it first sees and journals it; a slot is
/// free again once the instance is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(u8);

/// How many instances fit on one host: the third octet of the pool, less the first and last.
pub const MAX_SLOTS: u8 = 254;

impl Slot {
    /// A slot by number; `None` from [`MAX_SLOTS`] on.
    #[must_use]
    pub const fn new(number: u8) -> Option<Self> {
        if number < MAX_SLOTS { Some(Self(number)) } else { None }
    }

    /// The lowest slot that is not taken; `None` when the host is full.
    #[must_use]
    pub fn lowest_free(taken: &[Self]) -> Option<Self> {
        (0..MAX_SLOTS).map(Self).find(|slot| !taken.contains(slot))
    }

    /// The number.
    #[must_use]
    pub const fn number(self) -> u8 {
        self.0
    }
}

/// The /16 from which every instance's /24 is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AddressPool([u8; 2]);

impl AddressPool {
    /// `10.201.0.0/16`: private (RFC 1918) and outside Docker's own default pools.
    pub const STANDARD: Self = Self([10, 201]);

    /// A pool from its first two octets; `None` unless they lie in RFC 1918 space.
    #[must_use]
    pub const fn new(first: u8, second: u8) -> Option<Self> {
        match (first, second) {
            (10, _) | (172, 16..=31) | (192, 168) => Some(Self([first, second])),
            _ => None,
        }
    }

    /// Where the instance in `slot` lives.
    #[must_use]
    pub fn network(self, slot: Slot) -> InstanceNetwork {
        InstanceNetwork { pool: self, slot }
    }

    /// Where rehearsals and drills live, one at a time: the last /24, which no instance gets. The firewall
    /// has no chain for its bridge, and what comes from such a bridge reaches nothing.
    #[must_use]
    pub const fn trial(self) -> InstanceNetwork {
        InstanceNetwork { pool: self, slot: Slot(MAX_SLOTS) }
    }

    /// The pool as a block of addresses.
    #[must_use]
    pub fn block(self) -> Cidr {
        let [first, second] = self.0;
        Cidr::containing(IpAddr::V4(Ipv4Addr::new(first, second, 0, 0)), 16)
    }
}

impl fmt::Display for AddressPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.0.0/16", self.0[0], self.0[1])
    }
}

/// The addresses of one instance on its host. Everything follows from pool and slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct InstanceNetwork {
    pool: AddressPool,
    slot: Slot,
}

impl InstanceNetwork {
    fn host_part(self, last: u8) -> Ipv4Addr {
        let [first, second] = self.pool.0;
        // Slot 0 is x.y.1.0/24: x.y.0.0/24 is left free so that no gateway ends in ".0.1".
        Ipv4Addr::new(first, second, self.slot.0.saturating_add(1), last)
    }

    /// The pool that it was taken from.
    #[must_use]
    pub const fn pool(self) -> AddressPool {
        self.pool
    }

    /// The host's number for the instance.
    #[must_use]
    pub const fn slot(self) -> Slot {
        self.slot
    }

    /// The subnet in CIDR notation, a /24.
    #[must_use]
    pub fn subnet(self) -> String {
        format!("{}/24", self.host_part(0))
    }

    /// The bridge's own address: nginx and probes reach the container from it.
    #[must_use]
    pub fn gateway(self) -> IpAddr {
        IpAddr::V4(self.host_part(1))
    }

    /// The container's fixed address.
    #[must_use]
    pub fn container(self) -> IpAddr {
        IpAddr::V4(self.host_part(2))
    }

    /// The bridge interface's name, `claw-i<slot>`: within 15 characters (IFNAMSIZ, netdevice(7)).
    #[must_use]
    pub fn bridge(self) -> String {
        format!("claw-i{}", self.slot.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_slot_has_its_own_network() {
        let all: Vec<Slot> = (0..MAX_SLOTS).filter_map(Slot::new).collect();
        assert_eq!(all.len(), 254);
        assert_eq!(Slot::lowest_free(&all), None);
        let last = AddressPool::STANDARD.network(Slot(253));
        assert_eq!(last.subnet(), "10.201.254.0/24");
        let trial = AddressPool::STANDARD.trial();
        assert_eq!(
            (trial.subnet().as_str(), trial.bridge().as_str()),
            ("10.201.255.0/24", "claw-i254")
        );
        let first = AddressPool::STANDARD.network(Slot(0));
        assert_eq!(
            (first.subnet(), first.gateway().to_string(), first.container().to_string()),
            ("10.201.1.0/24".to_owned(), "10.201.1.1".to_owned(), "10.201.1.2".to_owned())
        );
        assert_eq!(first.bridge(), "claw-i0");
        assert_eq!(Slot::lowest_free(&[Slot(0), Slot(2)]), Some(Slot(1)));
    }

    #[test]
    fn pools_are_private() {
        assert!(AddressPool::new(8, 8).is_none());
        assert!(AddressPool::new(172, 32).is_none());
        assert!(AddressPool::new(192, 168).is_some());
    }
}
