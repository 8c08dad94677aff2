//! The faults that a policy may have, in words.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::is_within;
use crate::firewall::{Cidr, DomainPattern, Port, Protocol};
use crate::name::InstanceName;

/// One fault of a policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct PolicyFault {
    /// Where, as the API calls it, such as `ssh.sources[2]`.
    pub field: String,
    /// What.
    pub problem: Problem,
}

/// What can be wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// A block lies in another of the same list.
    #[error("{network} lies within {within} of the same list; hint: remove one of them")]
    Overlap {
        /// The inner block.
        network: Cidr,
        /// The outer one.
        within: Cidr,
    },
    /// A block is listed twice.
    #[error("{network} is listed twice; hint: put the ports of both into one entry")]
    NetworkTwice {
        /// The block.
        network: Cidr,
    },
    /// A list of sources that names everyone.
    #[error("{network} is everyone; hint: leave the list empty to let everyone in")]
    Everyone {
        /// The block.
        network: Cidr,
    },
    /// A source from which nobody comes.
    #[error("{network} holds {kind} addresses, and nobody it is meant for comes from one")]
    NoSource {
        /// The block.
        network: Cidr,
        /// Its kind.
        kind: AddressKind,
    },
    /// A source within the network of the instances.
    #[error(
        "{network} lies within {within}, the network of the instances, which never reach the host"
    )]
    InstanceSource {
        /// The block.
        network: Cidr,
        /// The network of all instances.
        within: Cidr,
    },
    /// An allowed destination that is closed always.
    #[error("{network} lies within {within}, which is closed to every instance always")]
    Closed {
        /// The block.
        network: Cidr,
        /// What is closed.
        within: Cidr,
    },
    /// An allowed destination where nothing can be.
    #[error("{network} holds {kind} addresses, which no instance can reach")]
    NoDestination {
        /// The block.
        network: Cidr,
        /// Its kind.
        kind: AddressKind,
    },
    /// An allowed port that is closed always.
    #[error(
        "port {port} is closed always, because names are resolved through the host only; hint: remove it"
    )]
    ClosedPort {
        /// The port.
        port: Port,
    },
    /// A port that is denied and allowed.
    #[error(
        "port {port} is denied by egress.denied_ports and allowed here; hint: remove it from one of them"
    )]
    DeniedAndAllowed {
        /// The port.
        port: Port,
    },
    /// A name is listed twice.
    #[error("{pattern} is listed twice; hint: put the ports of both into one entry")]
    NameTwice {
        /// The name.
        pattern: DomainPattern,
    },
    /// A name that a wildcard of the same list means as well.
    #[error("{pattern} is meant by {by} already, on the same ports; hint: remove one of them")]
    NameCovered {
        /// The name.
        pattern: DomainPattern,
        /// The wildcard.
        by: DomainPattern,
    },
    /// A port that is in use.
    #[error("{port}/{protocol} is {by}; hint: remove it or choose another")]
    PortTaken {
        /// TCP or UDP.
        protocol: Protocol,
        /// Which.
        port: Port,
        /// For what.
        by: PortUse,
    },
    /// A list is too long.
    #[error("must have at most {max} entries, has {actual}")]
    TooMany {
        /// Most.
        max: usize,
        /// How many there are.
        actual: usize,
    },
    /// A list with its ports would fill the kernel's set.
    #[error(
        "must be at most {max} pairs of network, port and protocol, is {actual}; hint: leave ports out"
    )]
    TooManyEntries {
        /// Most.
        max: usize,
        /// How many there are.
        actual: usize,
    },
    /// A number of failures that bans nobody, or bans people who mistype.
    #[error("must be 0 (no bans) or from {min} to {max}, is {actual}")]
    Failures {
        /// Fewest.
        min: u32,
        /// Most.
        max: u32,
        /// What it is.
        actual: u32,
    },
    /// A time out of bounds.
    #[error("must be from {} s to {} s, is {} ms", .min.as_secs(), .max.as_secs(), .actual.as_millis())]
    Duration {
        /// Shortest.
        min: Duration,
        /// Longest.
        max: Duration,
        /// What it is.
        actual: Duration,
    },
    /// The list of SSH's ports lacks one.
    #[error(
        "lacks {port}, on which sshd listens, and would lock operators out; hint: add it or leave the list empty"
    )]
    SshPortMissing {
        /// On which sshd listens.
        port: Port,
    },
    /// The list of SSH's ports may lack one.
    #[error(
        "lacks {port}, and this host cannot tell where its sshd listens; hint: add it or leave the list empty"
    )]
    SshPortUnknown {
        /// On which sshd listens unless it is told otherwise.
        port: Port,
    },
    /// SSH would be reachable through no interface.
    #[error("this host has none of {wanted}, and operators would be locked out")]
    NoSuchInterface {
        /// Those of the policy.
        wanted: String,
    },
    /// SSH would be reachable for containers only.
    #[error("names interfaces of containers only, and operators would be locked out")]
    ContainersOnly,
    /// Two instances would share their network.
    #[error("has slot {slot}, as {with} does")]
    SlotTwice {
        /// The slot.
        slot: u8,
        /// The other instance.
        with: InstanceName,
    },
    /// Further faults of the same policy were left out.
    #[error("and {faults} more faults")]
    AndMore {
        /// How many.
        faults: usize,
    },
}

/// What a port is used for already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortUse {
    /// SSH.
    Ssh,
    /// The reverse proxy.
    Web,
    /// The extra port with this index.
    Extra(usize),
}

impl fmt::Display for PortUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ssh => f.write_str("a port of ssh already"),
            Self::Web => f.write_str("the reverse proxy's port"),
            Self::Extra(index) => write!(f, "listed as extra[{index}] already"),
        }
    }
}

/// Addresses that are not everybody's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressKind {
    /// `0.0.0.0/8` (RFC 791), `::` (RFC 4291).
    Unspecified,
    /// `127.0.0.0/8` (RFC 1122), `::1` (RFC 4291).
    Loopback,
    /// `169.254.0.0/16` (RFC 3927), `fe80::/10` (RFC 4291).
    LinkLocal,
    /// `224.0.0.0/4` (RFC 5771), `ff00::/8` (RFC 4291).
    Multicast,
    /// `240.0.0.0/4` with the broadcast address (RFC 1112).
    Reserved,
}

impl AddressKind {
    /// Every kind. Neighbours on the link are among them: they have no business with the web port, and what
    /// blocks them blocks neighbour discovery.
    pub const ALL: [Self; 5] =
        [Self::Unspecified, Self::Loopback, Self::LinkLocal, Self::Multicast, Self::Reserved];

    /// Every kind but neighbours on the link, from whom an operator may come.
    pub const NOT_A_NEIGHBOUR: [Self; 4] =
        [Self::Unspecified, Self::Loopback, Self::Multicast, Self::Reserved];

    /// The kind of all addresses of a block; `None` when they are ordinary or mixed.
    #[must_use]
    pub fn of(network: Cidr) -> Option<Self> {
        let v4 = |a, b| IpAddr::V4(Ipv4Addr::new(a, b, 0, 0));
        let v6 = |first, last| IpAddr::V6(Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, last));
        [
            (Self::Unspecified, v4(0, 0), 8),
            (Self::Loopback, v4(127, 0), 8),
            (Self::LinkLocal, v4(169, 254), 16),
            (Self::Multicast, v4(224, 0), 4),
            (Self::Reserved, v4(240, 0), 4),
            (Self::Unspecified, v6(0, 0), 128),
            (Self::Loopback, v6(0, 1), 128),
            (Self::LinkLocal, v6(0xfe80, 0), 10),
            (Self::Multicast, v6(0xff00, 0), 8),
        ]
        .into_iter()
        .find(|(_, address, prefix)| is_within(network, Cidr::containing(*address, *prefix)))
        .map(|(kind, _, _)| kind)
    }
}

impl fmt::Display for AddressKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unspecified => "unspecified",
            Self::Loopback => "loopback",
            Self::LinkLocal => "link-local",
            Self::Multicast => "multicast",
            Self::Reserved => "reserved",
        })
    }
}
