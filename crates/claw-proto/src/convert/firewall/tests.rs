//! Policies and reports come back from the wire as they went; every wrong field is named.

use std::collections::BTreeMap;

use claw_core::firewall::{FirewallDetail, InstanceDetail, RefusedDestination};
use claw_core::name::InstanceName;
use claw_core::report::{BlockedTraffic, FirewallReport};
use claw_core::stamp::Generation;
use proptest::prelude::*;

use super::detail::{
    MAX_DETAIL_BYTES, blocked_from_wire, blocked_to_wire, detail_from_wire, detail_to_wire,
    report_from_wire, report_to_wire,
};
use super::*;

/// Networks that do not overlap.
fn sources() -> impl Strategy<Value = BTreeSet<Cidr>> {
    let known = ["192.0.2.0/24", "198.51.100.7/32", "2001:db8::/32", "203.0.113.128/25"];
    let known = known.map(|text| Cidr::parse(text).expect("valid")).to_vec();
    prop::sample::subsequence(known, 0..=4).prop_map(|list| list.into_iter().collect())
}

fn interfaces() -> impl Strategy<Value = BTreeSet<InterfaceName>> {
    let known =
        ["tailscale0", "wg0", "eth0.7"].map(|name| InterfaceName::parse(name).expect("valid"));
    prop::sample::subsequence(known.to_vec(), 0..=3).prop_map(|list| list.into_iter().collect())
}

fn access() -> impl Strategy<Value = Access> {
    (sources(), interfaces()).prop_map(|(sources, interfaces)| Access { sources, interfaces })
}

fn some_ports(most: usize) -> impl Strategy<Value = BTreeSet<Port>> {
    prop::collection::btree_set((1_u16..=65535).prop_filter_map("not 0", Port::new), 0..=most)
}

prop_compose! {
    fn any_host_policy()(
        ports in some_ports(3),
        ssh in access(),
        failures in prop_oneof![Just(0_u32), 3_u32..=100],
        window in 60_u64..3600,
        ban in 60_u64..3600,
        web in prop::option::of(access()),
        extra in access(),
        has_extra: bool,
        blocked in sources(),
    ) -> HostPolicy {
        let brute_force = BruteForce {
            failures,
            window: Duration::from_secs(window),
            ban: Duration::from_secs(ban),
        };
        let port = Port::new(51820).expect("valid");
        let extra = has_extra.then_some(ExtraPort { protocol: Protocol::Udp, port, access: extra });
        HostPolicy {
            ssh: SshPolicy { ports, access: ssh, brute_force },
            web: web.map_or(WebAccess::Loopback, WebAccess::Reachable),
            extra: extra.into_iter().collect(),
            blocked,
        }
    }
}

prop_compose! {
    fn allowlist()(
        networks in sources(),
        names in prop::sample::subsequence(vec!["api.example.com", "*.example.org"], 0..=2),
        ports in some_ports(4),
        enforced: bool,
    ) -> Allowlist {
        let network = |network| AllowedNetwork { network, ports: ports.clone() };
        let name = |name| AllowedName {
            pattern: DomainPattern::parse(name).expect("valid"),
            ports: ports.clone(),
        };
        Allowlist {
            networks: networks.into_iter().map(network).collect(),
            names: names.into_iter().map(name).collect(),
            mode: if enforced { Mode::Enforced } else { Mode::Observed },
        }
    }
}

prop_compose! {
    fn any_network_policy()(
        denied_ports in some_ports(5),
        list in prop::option::of(allowlist()),
        web_sources in sources(),
    ) -> NetworkPolicy {
        let reach = list.map_or(Reach::Open, Reach::Allowlist);
        NetworkPolicy { egress: Egress { denied_ports, reach }, web_sources }
    }
}

/// Some good host policy.
pub(crate) fn host_policy() -> impl Strategy<Value = HostPolicy> {
    any_host_policy().prop_filter("a good one", |policy| check::host(policy).is_empty())
}

/// Some good network policy.
pub(crate) fn network_policy() -> impl Strategy<Value = NetworkPolicy> {
    any_network_policy().prop_filter("a good one", |policy| check::network(policy).is_empty())
}

proptest! {
    #[test]
    fn host_policies_round_trip(policy in host_policy()) {
        prop_assert_eq!(host_policy_from_wire(&host_policy_to_wire(&policy)), Ok(policy));
    }

    #[test]
    fn network_policies_round_trip(policy in network_policy()) {
        prop_assert_eq!(network_policy_from_wire(&network_policy_to_wire(&policy)), Ok(policy));
    }

    #[test]
    fn hostile_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        if let Ok(wire) = crate::decode::<node::HostFirewall>(&bytes) {
            let _ = host_policy_from_wire(&wire);
        }
        if let Ok(wire) = crate::decode::<node::NetworkPolicy>(&bytes) {
            let _ = network_policy_from_wire(&wire);
        }
        if let Ok(wire) = crate::decode::<node::FirewallDetail>(&bytes) {
            let _ = detail_from_wire(&wire);
        }
    }
}

#[test]
fn what_is_absent_has_its_default() {
    let host = host_policy_from_wire(&node::HostFirewall::default());
    assert_eq!(host, Ok(HostPolicy::default()));
    let network = network_policy_from_wire(&node::NetworkPolicy::default());
    assert_eq!(network, Ok(NetworkPolicy::default()));
    let none = node::NetworkPolicy {
        egress: Some(node::Egress {
            denied_ports: Some(node::DeniedPorts::default()),
            allowlist: None,
        }),
        web_sources: Vec::new(),
    };
    let open = network_policy_from_wire(&none).expect("valid");
    assert_eq!(open.egress.denied_ports, BTreeSet::new(), "an empty list is no default");
}

#[track_caller]
fn check_faults(result: Result<(), Violations>, expected: &str) {
    let text = result.map_or_else(|v| v.to_string().replace("; ", "\n"), |()| "ok".to_owned());
    assert_eq!(text, expected);
}

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(ToString::to_string).collect()
}

#[test]
fn every_fault_of_a_host_policy_is_named_at_once() {
    let wire = node::HostFirewall {
        ssh: Some(node::SshPolicy {
            ports: vec![22, 0, 70_000, 22],
            sources: strings(&["192.0.2.0/24", "192.0.2.7/24", "192.0.2.0/24"]),
            interfaces: strings(&["wg0", "lo"]),
            brute_force: Some(node::BruteForce {
                failures: None,
                window: Some(prost_types::Duration { seconds: -1, nanos: 0 }),
                ban: None,
            }),
        }),
        web: Some(node::WebAccess {
            exposure: node::WebExposure::Loopback.into(),
            sources: strings(&["192.0.2.1"]),
            interfaces: Vec::new(),
        }),
        extra: vec![
            node::ExtraPort { port: 0, ..node::ExtraPort::default() },
            node::ExtraPort { protocol: 9, port: 53, sources: strings(&["x"]), interfaces: vec![] },
        ],
        blocked: strings(&["::/129"]),
    };
    check_faults(
        host_policy_from_wire(&wire).map(|_policy| ()),
        "ssh.ports[1]: must be a port from 1 to 65535, got 0
ssh.ports[2]: must be a port from 1 to 65535, got 70000
ssh.ports[3]: 22 appears twice
ssh.sources[1]: \"192.0.2.7/24\" has bits set after its prefix
hint: 192.0.2.0/24
ssh.sources[2]: 192.0.2.0/24 appears twice
ssh.interfaces[1]: must be an interface such as tailscale0 or wg0, not lo and not claw-…, got \"lo\"
ssh.brute_force.window: must be a duration that is not negative and below 100 years
web.sources: must be empty when the exposure is LOOPBACK
extra[0].protocol: must be TCP or UDP
extra[0].port: must be a port from 1 to 65535, got 0
extra[1].protocol: unknown value 9
extra[1].sources[0]: must be an address or a network such as 192.0.2.0/24 or 2001:db8::/32, got \"x\"
blocked[0]: the prefix length of \"::/129\" must be at most 128",
    );
}

#[test]
fn every_fault_of_a_network_policy_is_named_at_once() {
    let wire = node::NetworkPolicy {
        egress: Some(node::Egress {
            denied_ports: Some(node::DeniedPorts { ports: vec![25, 65_536] }),
            allowlist: Some(node::Allowlist {
                networks: vec![node::AllowedNetwork {
                    network: "10.0.0.1/8".into(),
                    ports: vec![0],
                }],
                names: vec![node::AllowedName { pattern: "*.com".into(), ports: vec![1, 1] }],
                mode: 7,
            }),
        }),
        web_sources: strings(&["nobody"]),
    };
    check_faults(
        network_policy_from_wire(&wire).map(|_policy| ()),
        "egress.denied_ports.ports[1]: must be a port from 1 to 65535, got 65536
egress.allowlist.networks[0].network: \"10.0.0.1/8\" has bits set after its prefix
hint: 10.0.0.0/8
egress.allowlist.networks[0].ports[0]: must be a port from 1 to 65535, got 0
egress.allowlist.names[0].pattern: must be a domain name such as api.example.com or *.example.com, in lower case, got \"*.com\"
egress.allowlist.names[0].ports[1]: 1 appears twice
egress.allowlist.mode: unknown value 7
web_sources[0]: must be an address or a network such as 192.0.2.0/24 or 2001:db8::/32, got \"nobody\"",
    );
}

#[test]
fn faults_between_values_stand_where_the_caller_wrote_them() {
    let port = |port| node::ExtraPort {
        protocol: node::Protocol::Tcp.into(),
        port,
        sources: strings(&["203.0.113.9", "203.0.113.0/24"]),
        interfaces: Vec::new(),
    };
    let wire = node::HostFirewall {
        extra: vec![port(0), port(443)],
        blocked: strings(&["198.51.100.0/24", "nobody", "192.0.2.128/25", "192.0.2.0/24"]),
        ..node::HostFirewall::default()
    };
    check_faults(
        host_policy_from_wire(&wire).map(|_policy| ()),
        "extra[0].port: must be a port from 1 to 65535, got 0
blocked[1]: must be an address or a network such as 192.0.2.0/24 or 2001:db8::/32, got \"nobody\"
extra[1].sources[0]: 203.0.113.9/32 lies within 203.0.113.0/24 of the same list
hint: remove one of them
blocked[2]: 192.0.2.128/25 lies within 192.0.2.0/24 of the same list
hint: remove one of them",
    );
}

#[test]
fn reports_round_trip() {
    let report = FirewallReport {
        applied: Some(Generation(4)),
        problem: Some("why".to_owned()),
        backend: "1.8.9 (nf_tables)".to_owned(),
        repairs: 1,
        ingress_refused: 2,
        login_failures: 3,
        banned: 4,
    };
    assert_eq!(report_from_wire(&report_to_wire(&report)), report);
    let port = |number| Port::new(number).expect("valid");
    let blocked = BlockedTraffic {
        ports: BTreeMap::from([((Protocol::Tcp, port(25)), 340), ((Protocol::Udp, port(6667)), 1)]),
        outside: 2,
        closed: 3,
        dns_queries: 4,
        dns_refused: 5,
    };
    assert_eq!(blocked_from_wire(&blocked_to_wire(&blocked)), Ok(blocked));
    let wrong = node::BlockedTraffic {
        ports: vec![node::BlockedPort::default()],
        ..node::BlockedTraffic::default()
    };
    check_faults(
        blocked_from_wire(&wrong).map(|_blocked| ()),
        "ports[0].protocol: must be TCP or UDP
ports[0].port: must be a port from 1 to 65535, got 0",
    );
}

fn detail(instances: usize, allowed: u32) -> FirewallDetail {
    let allowed = (0..allowed).map(|number| AllowedNetwork {
        network: Cidr::containing(std::net::Ipv4Addr::from(number << 8).into(), 24),
        ports: BTreeSet::from([Port::new(443).expect("valid")]),
    });
    let list = Allowlist { networks: allowed.collect(), names: Vec::new(), mode: Mode::Observed };
    let refused = RefusedDestination {
        address: "2001:db8::1".parse().expect("valid"),
        protocol: Protocol::Udp,
        port: Port::new(443).expect("valid"),
        packets: 12,
        names: BTreeSet::from(["www.example.com".to_owned()]),
    };
    let instance = InstanceDetail {
        bridge: "claw-i0".to_owned(),
        policy: NetworkPolicy {
            egress: Egress { reach: Reach::Allowlist(list.clone()), ..Egress::default() },
            web_sources: BTreeSet::new(),
        },
        refused: vec![refused],
        proposal: Some(list),
    };
    let name = |number| InstanceName::parse(&format!("demo-{number}")).expect("valid");
    FirewallDetail {
        backend: "1.8.9 (nf_tables)".to_owned(),
        host: HostPolicy::default(),
        ssh_ports: [22, 2222].into_iter().filter_map(Port::new).collect(),
        web_ports: [8080].into_iter().filter_map(Port::new).collect(),
        instances: (0..instances).map(|number| (name(number), instance.clone())).collect(),
        rules: ["*raw\n-A CLAW-PRE -i lo -j RETURN\n".to_owned(), String::new()],
    }
}

#[test]
fn details_round_trip() {
    let detail = detail(2, 3);
    let wire = detail_to_wire(&detail);
    assert_eq!(wire.omitted, Vec::<String>::new());
    assert_eq!(detail_from_wire(&wire), Ok(detail));
    let wrong = node::FirewallDetail {
        host: Some(node::HostFirewall { blocked: strings(&["x"]), ..Default::default() }),
        ssh_ports: vec![0],
        instances: vec![node::InstanceFirewall {
            name: "X".to_owned(),
            policy: Some(node::NetworkPolicy { web_sources: strings(&["y"]), egress: None }),
            refused: vec![node::RefusedDestination { port: 1, protocol: 1, ..Default::default() }],
            ..Default::default()
        }],
        ..wire
    };
    let fields: Vec<String> =
        detail_from_wire(&wrong).expect_err("wrong").0.into_iter().map(|v| v.field).collect();
    let expected = [
        "host.blocked[0]",
        "ssh_ports[0]",
        "instances[0].name",
        "instances[0].policy.web_sources[0]",
        "instances[0].refused[0].address",
    ];
    assert_eq!(fields, expected);
}

#[test]
fn a_detail_is_bounded_and_says_what_it_left_out() {
    let mut large = detail(40, 2_000);
    large.rules = ["-A CLAW-IN -j DROP\n".repeat(100_000), "x".repeat(2 * 1024 * 1024)];
    let wire = detail_to_wire(&large);
    assert!(crate::encode(&wire).len() <= MAX_DETAIL_BYTES);
    assert_eq!(
        wire.omitted,
        [
            "IPv4 rules beyond 1048576 bytes",
            "IPv6 rules beyond 1048576 bytes",
            "policies of instances"
        ]
    );
    assert!(wire.rules_v4.ends_with("DROP\n") && wire.rules_v4.len() > 1_000_000);
    assert_eq!(wire.rules_v6, "", "a line is shown whole or not at all");
    assert!(wire.instances.iter().all(|instance| instance.proposal.is_some()));
    assert!(detail_from_wire(&wire).is_ok());
}
