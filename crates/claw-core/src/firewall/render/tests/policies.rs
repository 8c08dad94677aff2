//! Policies to render: those of the transcripts, and any.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use proptest::collection::{btree_set, vec};
use proptest::prelude::*;

use crate::address::{AddressPool, MAX_SLOTS, Slot};
use crate::firewall::{
    Access, AllowedName, AllowedNetwork, Allowlist, BruteForce, Cidr, DomainPattern, Effective,
    EffectiveInstance, Egress, ExtraPort, HostPolicy, InterfaceName, Mode, NetworkPolicy, Port,
    Protocol, Reach, SshPolicy, WebAccess,
};
use crate::name::InstanceName;

pub(in crate::firewall) fn port(number: u16) -> Port {
    Port::new(number).expect("not 0")
}

pub(in crate::firewall) fn ports<const N: usize>(numbers: [u16; N]) -> BTreeSet<Port> {
    numbers.map(port).into()
}

pub(in crate::firewall) fn cidr(text: &str) -> Cidr {
    Cidr::parse(text).expect("valid")
}

pub(in crate::firewall) fn cidrs<const N: usize>(texts: [&str; N]) -> BTreeSet<Cidr> {
    texts.map(cidr).into()
}

pub(in crate::firewall) fn interface(name: &str) -> InterfaceName {
    InterfaceName::parse(name).expect("valid")
}

/// From these sources, through any interface.
pub(in crate::firewall) fn access<const N: usize>(sources: [&str; N]) -> Access {
    Access { sources: cidrs(sources), interfaces: BTreeSet::new() }
}

pub(in crate::firewall) fn name(text: &str) -> AllowedName {
    AllowedName { pattern: DomainPattern::parse(text).expect("valid"), ports: BTreeSet::new() }
}

/// No instance, the default policy.
pub(in crate::firewall) fn default_host() -> Effective {
    Effective {
        host: HostPolicy::default(),
        ssh_ports: ports([22]),
        web_ports: ports([8080]),
        pool: AddressPool::STANDARD,
        instances: BTreeMap::new(),
    }
}

/// The default host with an instance in slot 0.
pub(in crate::firewall) fn with_instance(policy: NetworkPolicy) -> Effective {
    Effective { instances: instances([(0, policy)]), ..default_host() }
}

pub(in crate::firewall) fn instances(
    policies: impl IntoIterator<Item = (u8, NetworkPolicy)>,
) -> BTreeMap<InstanceName, EffectiveInstance> {
    let of_slot = |(number, policy)| {
        let slot = Slot::new(number).expect("below the limit");
        let name = InstanceName::parse(&format!("i{number}")).expect("valid");
        (name, EffectiveInstance { network: AddressPool::STANDARD.network(slot), policy })
    };
    policies.into_iter().map(of_slot).collect()
}

/// Any policy, sensible or not.
pub(in crate::firewall) fn any_effective() -> impl Strategy<Value = Effective> {
    let instances = proptest::collection::btree_map(0..MAX_SLOTS, any_network_policy(), 0..5);
    (any_host(), btree_set(any_port(), 1..4), btree_set(any_port(), 0..4), instances).prop_map(
        |(host, ssh_ports, web_ports, policies)| Effective {
            host,
            ssh_ports,
            web_ports,
            pool: AddressPool::STANDARD,
            instances: self::instances(policies),
        },
    )
}

pub(in crate::firewall) fn any_network_policy() -> impl Strategy<Value = NetworkPolicy> {
    let reach = prop_oneof![Just(Reach::Open), any_allowlist().prop_map(Reach::Allowlist)];
    (btree_set(any_port(), 0..20), reach, btree_set(any_cidr(), 0..3)).prop_map(
        |(denied_ports, reach, web_sources)| NetworkPolicy {
            egress: Egress { denied_ports, reach },
            web_sources,
        },
    )
}

fn any_allowlist() -> impl Strategy<Value = Allowlist> {
    let network = (any_cidr(), btree_set(any_port(), 0..3))
        .prop_map(|(network, ports)| AllowedNetwork { network, ports });
    let mode = prop_oneof![Just(Mode::Enforced), Just(Mode::Observed)];
    (vec(network, 0..6), vec(Just(name("*.example.com")), 0..2), mode)
        .prop_map(|(networks, names, mode)| Allowlist { networks, names, mode })
}

fn any_host() -> impl Strategy<Value = HostPolicy> {
    let web = prop_oneof![Just(WebAccess::Loopback), any_access().prop_map(WebAccess::Reachable)];
    let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)];
    let extra = (protocol, any_port(), any_access())
        .prop_map(|(protocol, port, access)| ExtraPort { protocol, port, access });
    let ssh = (btree_set(any_port(), 0..3), any_access()).prop_map(|(ports, access)| SshPolicy {
        ports,
        access,
        brute_force: BruteForce { failures: 0, window: Duration::ZERO, ban: Duration::ZERO },
    });
    (ssh, web, vec(extra, 0..4), btree_set(any_cidr(), 0..4))
        .prop_map(|(ssh, web, extra, blocked)| HostPolicy { ssh, web, extra, blocked })
}

fn any_access() -> impl Strategy<Value = Access> {
    let interface = "[a-z][a-z0-9._-]{0,14}"
        .prop_filter_map("ours, or no name", |text| InterfaceName::parse(&text).ok());
    (btree_set(any_cidr(), 0..3), btree_set(interface, 0..3))
        .prop_map(|(sources, interfaces)| Access { sources, interfaces })
}

fn any_port() -> impl Strategy<Value = Port> {
    (1..=u16::MAX).prop_map(port)
}

/// Any block, also those that are as wide or as narrow as can be.
fn any_cidr() -> impl Strategy<Value = Cidr> {
    prop_oneof![
        (any::<u32>(), 0..=32_u8)
            .prop_map(|(bits, prefix)| Cidr::containing(Ipv4Addr::from_bits(bits).into(), prefix)),
        (any::<u128>(), 0..=128_u8)
            .prop_map(|(bits, prefix)| Cidr::containing(Ipv6Addr::from_bits(bits).into(), prefix)),
        (any::<u32>()
            .prop_map(|bits| Cidr::containing(Ipv6Addr::from_bits(u128::from(bits)).into(), 128))),
    ]
}
