//! What goes out of instances.
//!
//! What is closed always (metadata, other instances, the host, name servers elsewhere) and the denied
//! ports are judged for every packet of an instance; a list only for connections that begin, so that
//! those that began allowed outlive the addresses of their name.

use std::collections::{BTreeMap, BTreeSet};

use super::Place;
use super::chains::{BRIDGES, EGRESS, REFUSE, egress_chain};
use crate::address::Slot;
use crate::firewall::{
    Allowlist, Effective, EffectiveInstance, Family, InstanceSet, Mode, Port, Protocol, Reach,
    Table,
};

/// Where clouds answer their machines about themselves, with credentials: closed to every instance.
///
/// Link-local IPv4 holds 169.254.169.254 (AWS, Google, Azure, Oracle, Hetzner, DigitalOcean and most
/// others), AWS' 169.254.170.2 for containers, and Scaleway's 169.254.42.42. Outside of it, by each
/// cloud's documentation: Alibaba Cloud 100.100.100.200 and fd00:100::100:200; Azure's platform
/// 168.63.129.16; Oracle 192.0.0.192 (Classic) and fd00:c1::a9fe:a9fe; AWS' block of services
/// fd00:ec2::/32, with fd00:ec2::254; Google fd20:ce::254; Scaleway fd00:42::42 (cloud-init's datasource
/// names it); Akamai fd00:a9fe:a9fe::1. OpenStack's fe80::a9fe:a9fe is link-local, which is not routed.
pub const METADATA: [&str; 10] = [
    "169.254.0.0/16",
    "100.100.100.200/32",
    "168.63.129.16/32",
    "192.0.0.192/32",
    "fd00:ec2::/32",
    "fd20:ce::254/128",
    "fd00:c1::a9fe:a9fe/128",
    "fd00:42::42/128",
    "fd00:a9fe:a9fe::1/128",
    "fd00:100::100:200/128",
];

/// DNS and DNS over TLS or QUIC (RFC 7858, RFC 9250): instances resolve through their bridge only.
pub(super) const NAME_SERVERS: &str = "53,853";

/// raw: instances speak with addresses of their own.
///
/// Over IPv4 an instance has its subnet. Over IPv6 the agent gives it none, so its addresses come from
/// elsewhere: link-local, none yet, and what is routed (global and unique local) pass.
pub(super) fn sources(
    effective: &Effective,
    slots: &BTreeMap<Slot, &EffectiveInstance>,
    family: Family,
) -> Vec<String> {
    let mut rules = Vec::new();
    match family {
        Family::V4 => {
            rules.extend(slots.values().map(|instance| {
                let network = instance.network;
                format!("! -s {} -i {} -j DROP", network.subnet(), network.bridge())
            }));
            rules.push(format!("-s {} -j RETURN", effective.pool));
        }
        Family::V6 => {
            let passing = ["fe80::/10", "::/128", "2000::/3", "fc00::/7"];
            rules.extend(passing.map(|network| format!("-s {network} -j RETURN")));
        }
    }
    rules.push("-j DROP".to_owned());
    rules
}

/// The end of a packet of an instance. `tcp-reset` because the kernel limits the rate of ICMP errors.
pub(super) fn refuse(place: Place) -> Vec<String> {
    let prohibited = match (place.table, place.family) {
        (Table::Raw | Table::Security, _) => return vec!["-j DROP".to_owned()],
        (Table::Filter, Family::V4) => "icmp-admin-prohibited",
        (Table::Filter, Family::V6) => "icmp6-adm-prohibited",
    };
    vec![
        "-p tcp -j REJECT --reject-with tcp-reset".to_owned(),
        format!("-j REJECT --reject-with {prohibited}"),
    ]
}

/// From an instance to the host: answers, names from its own bridge's address, neighbour discovery.
pub(super) fn container_to_host(
    slots: &BTreeMap<Slot, &EffectiveInstance>,
    family: Family,
) -> Vec<String> {
    let mut rules =
        vec!["-m conntrack --ctstate RELATED,ESTABLISHED --ctdir REPLY -j RETURN".to_owned()];
    if family == Family::V6 {
        // Router solicitation, neighbour solicitation and advertisement (RFC 4861).
        rules.extend(
            [133, 135, 136]
                .map(|kind| format!("-p ipv6-icmp -m icmp6 --icmpv6-type {kind} -j RETURN")),
        );
    }
    for instance in slots.values() {
        let bridge = instance.network.bridge();
        let gateway = instance.network.gateway();
        if Family::of(gateway) == family {
            let host = format!("{gateway}/{}", family.bits());
            rules.extend(Protocol::BOTH.map(|protocol| {
                format!("-d {host} -i {bridge} -p {protocol} -m {protocol} --dport 53 -j RETURN")
            }));
        }
        rules.push(format!("-i {bridge} -j {REFUSE}"));
    }
    rules.push(format!("-j {REFUSE}"));
    rules
}

/// Through the host. Nobody begins a connection to an instance; what an instance begins is judged by its
/// chain; what conntrack knows nothing of does not pass. Replies are told by their direction, or those
/// whose port happens to be a denied one would die.
pub(super) fn forward() -> Vec<String> {
    vec![
        format!("-o {BRIDGES} -m conntrack --ctstate RELATED,ESTABLISHED --ctdir REPLY -j RETURN"),
        format!("-i {BRIDGES} -m conntrack --ctdir ORIGINAL -g {EGRESS}"),
        format!("-i {BRIDGES} -j DROP"),
        format!("-o {BRIDGES} -j DROP"),
    ]
}

/// To each instance's own chain; an instance without one reaches nothing. What is closed always is the
/// same for all instances, so in the guarantee it stands here, once; in the copy each instance has it in
/// its own chain, where it is counted.
pub(super) fn dispatch(
    effective: &Effective,
    slots: &BTreeMap<Slot, &EffectiveInstance>,
    place: Place,
) -> Vec<String> {
    let mut rules = match place.table {
        Table::Raw | Table::Security => closed(effective, place.family),
        Table::Filter => Vec::new(),
    };
    rules.extend(slots.iter().map(|(slot, instance)| {
        format!("-i {} -g {}", instance.network.bridge(), egress_chain(*slot))
    }));
    rules.push(format!("-j {REFUSE}"));
    rules
}

/// One instance's chain. In the copy each reason to refuse has a rule, hence a counter, of its own; the
/// guarantee is met only by what the copy let through, and is as short as it can be.
pub(super) fn egress(
    effective: &Effective,
    instance: &EffectiveInstance,
    place: Place,
) -> Vec<String> {
    let ports = &instance.policy.egress.denied_ports;
    let mut rules = match place.table {
        Table::Raw | Table::Security => denied_together(ports),
        Table::Filter => closed(effective, place.family)
            .into_iter()
            .chain(ports.iter().flat_map(|port| {
                Protocol::BOTH.map(|protocol| {
                    format!("-p {protocol} -m {protocol} --dport {port} -j {REFUSE}")
                })
            }))
            .collect(),
    };
    if let Reach::Allowlist(list) = &instance.policy.egress.reach {
        rules.extend(listed(list, instance.network.slot(), place));
    }
    rules
}

/// Denied ports in as few rules as can be: one holds 15 (XT_MULTI_PORTS, iptables-extensions(8)).
fn denied_together(ports: &BTreeSet<Port>) -> Vec<String> {
    let numbers: Vec<String> = ports.iter().map(Port::to_string).collect();
    let rule = |some: &[String], protocol| {
        format!("-p {protocol} -m multiport --dports {} -j {REFUSE}", some.join(","))
    };
    numbers
        .chunks(15)
        .flat_map(|some| Protocol::BOTH.map(|protocol| rule(some, protocol)))
        .collect()
}

/// What no policy opens.
fn closed(effective: &Effective, family: Family) -> Vec<String> {
    let mut rules = vec![format!("-o {BRIDGES} -j {REFUSE}")];
    if family == Family::V4 {
        rules.push(format!("-d {} -j {REFUSE}", effective.pool));
    }
    let metadata = METADATA.into_iter().filter(|network| family_of(network) == family);
    rules.extend(metadata.map(|network| format!("-d {network} -j {REFUSE}")));
    rules.extend(
        Protocol::BOTH.map(|protocol| {
            format!("-p {protocol} -m multiport --dports {NAME_SERVERS} -j {REFUSE}")
        }),
    );
    rules
}

/// A list that is held, or tried. What is outside goes into a set that counts by itself: the kernel sets
/// the counter of an entry to one whenever it is added, so it is added only where it is not found, and
/// looking for it counts it.
///
/// A list that is only tried is looked at in the guarantee alone, which every packet passes once; it
/// may pass the copy twice (FORWARD and DOCKER-USER).
fn listed(list: &Allowlist, slot: Slot, place: Place) -> Vec<String> {
    let name = |set: InstanceSet| set.name(slot, place.family);
    let last = match (list.mode, place.table) {
        (Mode::Enforced, _) => format!("-j {REFUSE}"),
        (Mode::Observed, Table::Security) => "-j RETURN".to_owned(),
        (Mode::Observed, Table::Raw | Table::Filter) => return Vec::new(),
    };
    let mut rules = vec!["-m conntrack --ctstate RELATED,ESTABLISHED -j RETURN".to_owned()];
    let allowed = [
        (InstanceSet::Networks, "dst"),
        (InstanceSet::NetworkPorts, "dst,dst"),
        (InstanceSet::Names, "dst"),
        (InstanceSet::NamePorts, "dst,dst"),
    ];
    rules.extend(
        allowed.map(|(set, by)| format!("-m set --match-set {} {by} -j RETURN", name(set))),
    );
    let refused = name(InstanceSet::Refused);
    rules.extend(Protocol::BOTH.map(|protocol| {
        format!(
            "-p {protocol} -m set ! --match-set {refused} dst,dst \
             -j SET --add-set {refused} dst,dst --exist"
        )
    }));
    rules.push(last);
    rules
}

fn family_of(network: &str) -> Family {
    if network.contains(':') { Family::V6 } else { Family::V4 }
}
