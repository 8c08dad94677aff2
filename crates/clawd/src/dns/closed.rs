//! Addresses to which no public name may lead: a name that somebody else controls would otherwise give
//! a container, or a browser in it, a way into the host's surroundings (DNS rebinding).
//!
//! What it deliberately does not do: decide what a container may reach; the packet filter does.
//!
//! Sources: the IANA special-purpose address registries (RFC 6890 and successors), RFC 6052 for NAT64,
//! RFC 3056 for 6to4. The documentation blocks (192.0.2.0/24 and others) lead nowhere and are not
//! listed.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use claw_core::firewall::Cidr;
use claw_core::firewall::render::METADATA;

/// Never lifted, beside the metadata services ([`METADATA`]): this host, loopback, link-local, multicast,
/// reserved.
const NEVER: [(IpAddr, u8); 10] = [
    (v4(0, 0, 0, 0), 8),
    (v4(127, 0, 0, 0), 8),
    (v4(169, 254, 0, 0), 16),
    (v4(192, 0, 0, 0), 24),
    (v4(224, 0, 0, 0), 4),
    (v4(240, 0, 0, 0), 4),
    // ::/96 holds the unspecified address, loopback and the deprecated IPv4-compatible addresses.
    (v6([0, 0, 0, 0, 0, 0, 0, 0]), 96),
    // IPv4-mapped: no name has a reason for one.
    (v6([0, 0, 0, 0, 0, 0xffff, 0, 0]), 96),
    (v6([0xfe80, 0, 0, 0, 0, 0, 0, 0]), 9),
    (v6([0xff00, 0, 0, 0, 0, 0, 0, 0]), 8),
];

/// Lifted by an allowlist that names a network within: RFC 1918, shared space (RFC 6598), benchmarks
/// (RFC 2544), local NAT64 (RFC 8215), unique local (RFC 4193).
const PRIVATE: [(IpAddr, u8); 7] = [
    (v4(10, 0, 0, 0), 8),
    (v4(100, 64, 0, 0), 10),
    (v4(172, 16, 0, 0), 12),
    (v4(192, 168, 0, 0), 16),
    (v4(198, 18, 0, 0), 15),
    (v6([0x64, 0xff9b, 1, 0, 0, 0, 0, 0]), 48),
    (v6([0xfc00, 0, 0, 0, 0, 0, 0, 0]), 7),
];

const fn v4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}

const fn v6(segments: [u16; 8]) -> IpAddr {
    let [a, b, c, d, e, f, g, h] = segments;
    IpAddr::V6(Ipv6Addr::new(a, b, c, d, e, f, g, h))
}

/// Whether an answer with this address is refused. `lifted` are the networks of the instance's allowlist:
/// one that lies within a private block lifts it for its own addresses. `0.0.0.0/0` lifts nothing.
#[must_use]
pub fn is_closed(address: IpAddr, lifted: &BTreeSet<Cidr>) -> bool {
    if NEVER.iter().map(block).chain(metadata()).any(|block| block.contains(address)) {
        return true;
    }
    if let Some(embedded) = embedded(address) {
        return is_closed(IpAddr::V4(embedded), lifted);
    }
    let Some(block) = PRIVATE.iter().map(block).find(|block| block.contains(address)) else {
        return false;
    };
    let lifts = |network: &&Cidr| network.contains(address) && block.contains(network.address());
    !lifted.iter().filter(lifts).any(|network| network.prefix() >= block.prefix())
}

fn block(&(address, prefix): &(IpAddr, u8)) -> Cidr {
    Cidr::containing(address, prefix)
}

fn metadata() -> impl Iterator<Item = Cidr> {
    METADATA.into_iter().filter_map(|text| Cidr::parse(text).ok())
}

/// The IPv4 address that an IPv6 address leads to: NAT64 (64:ff9b::/96) and 6to4 (2002::/16).
fn embedded(address: IpAddr) -> Option<Ipv4Addr> {
    let IpAddr::V6(address) = address else { return None };
    let wide = |high: u16, low: u16| Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low));
    match address.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => Some(wide(high, low)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(address: &str, lifted: &[&str], expected: bool) {
        let lifted = lifted.iter().map(|text| Cidr::parse(text).unwrap()).collect();
        assert_eq!(is_closed(address.parse().unwrap(), &lifted), expected, "{address}");
    }

    #[test]
    fn what_is_not_public_is_closed() {
        let closed = [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "100.64.0.1",
            "100.100.100.200",
            "127.0.0.53",
            "168.63.129.16",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.192",
            "192.168.1.1",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::10.0.0.1",
            "::ffff:8.8.8.8",
            "::ffff:127.0.0.1",
            "64:ff9b::10.0.0.1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::1",
            "2002:c0a8:101::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ];
        for address in closed {
            check(address, &[], true);
        }
        for address in ["1.1.1.1", "172.32.0.1", "100.128.0.1", "192.0.2.1", "203.0.113.9"] {
            check(address, &[], false);
        }
        for address in ["2606:4700::1111", "64:ff9b::1.1.1.1", "2002:101:101::1", "2001:db8::1"] {
            check(address, &[], false);
        }
    }

    #[test]
    fn metadata_services_are_the_packet_filters() {
        assert_eq!(metadata().count(), METADATA.len());
    }

    #[test]
    fn an_allowlist_lifts_private_blocks_and_nothing_else() {
        check("10.1.2.3", &["10.1.0.0/16"], false);
        check("10.2.2.3", &["10.1.0.0/16"], true);
        check("10.1.2.3", &["0.0.0.0/0"], true);
        check("10.1.2.3", &["8.0.0.0/5"], true);
        check("100.64.0.1", &["100.64.0.0/10"], false);
        check("100.100.100.200", &["100.64.0.0/10"], true);
        check("169.254.169.254", &["169.254.169.254/32"], true);
        check("127.0.0.1", &["127.0.0.0/8"], true);
        check("fd12::1", &["fd12::/16"], false);
        check("fd00:ec2::254", &["fc00::/7"], true);
        check("64:ff9b::10.1.2.3", &["10.1.0.0/16"], false);
    }
}
