use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::address::{AddressPool, Slot};
use crate::firewall::{
    EffectiveInstance, Egress, Flow, Mode, NetworkPolicy, Protocol, Reach, check,
    default_denied_ports, flow,
};

fn port(number: u16) -> Port {
    Port::new(number).expect("not 0")
}

fn ports(text: &str) -> BTreeSet<Port> {
    let numbers = text.split(',').filter(|number| !number.is_empty());
    numbers.map(|number| port(number.parse().expect("a port"))).collect()
}

/// Entries such as `192.0.2.0/24@80,443` and `*.example.com@443`, separated by blanks.
fn allowlist(text: &str) -> Allowlist {
    let mut list = Allowlist { networks: Vec::new(), names: Vec::new(), mode: Mode::Observed };
    for entry in text.split_whitespace() {
        let (what, numbers) = entry.split_once('@').unwrap_or((entry, ""));
        let ports = ports(numbers);
        match Cidr::parse(what) {
            Ok(network) => list.networks.push(AllowedNetwork { network, ports }),
            Err(_) => {
                let pattern = DomainPattern::parse(what).expect("a name or a block");
                list.names.push(AllowedName { pattern, ports });
            }
        }
    }
    list
}

fn shown(list: &Allowlist) -> String {
    let numbers = |ports: &BTreeSet<Port>| {
        let numbers: Vec<String> = ports.iter().map(Port::to_string).collect();
        if numbers.is_empty() { String::new() } else { format!("@{}", numbers.join(",")) }
    };
    let networks =
        list.networks.iter().map(|one| format!("{}{}", one.network, numbers(&one.ports)));
    let names = list.names.iter().map(|one| format!("{}{}", one.pattern, numbers(&one.ports)));
    networks.chain(names).collect::<Vec<_>>().join(" ")
}

/// Destinations such as `192.0.2.1 443 a.example.com` by line.
fn refused(text: &str) -> Vec<RefusedDestination> {
    let one = |line: &str| {
        let mut words = line.split_whitespace();
        Some(RefusedDestination {
            address: words.next()?.parse().ok()?,
            protocol: Protocol::Tcp,
            port: port(words.next()?.parse().ok()?),
            packets: 1,
            names: words.map(str::to_owned).collect(),
        })
    };
    text.lines().filter(|line| !line.trim().is_empty()).map(|l| one(l).expect("a line")).collect()
}

fn policy(list: Allowlist) -> NetworkPolicy {
    NetworkPolicy {
        egress: Egress { reach: Reach::Allowlist(list), ..Egress::default() },
        ..NetworkPolicy::default()
    }
}

#[track_caller]
fn check_proposal(current: &str, seen: &str, expected: &str) {
    let proposed = propose(&allowlist(current), &default_denied_ports(), &refused(seen));
    assert_eq!(shown(&proposed), expected);
    assert_eq!(check::network(&policy(proposed)), []);
}

#[test]
fn names_come_before_addresses_and_ports_are_kept() {
    check_proposal(
        "",
        "192.0.2.1 443 api.example.com
        192.0.2.2 8443 api.example.com
        192.0.2.3 123
        192.0.2.3 124
        2001:db8::1 443
        192.0.2.4 443 one.example.net two.example.org",
        "192.0.2.3/32@123,124 2001:db8::1/128@443 api.example.com@443,8443 one.example.net@443 two.example.org@443",
    );
}

#[test]
fn a_list_keeps_what_it_has_and_gets_what_it_lacks() {
    check_proposal(
        "192.0.2.0/24@443 198.51.100.7@80 *.example.com@443 example.org",
        "192.0.2.9 443
        192.0.2.9 80
        198.51.100.7 443
        203.0.113.1 443 a.example.com
        203.0.113.1 80 a.example.com
        203.0.113.2 9999 example.org",
        "192.0.2.0/24@443 192.0.2.9/32@80 198.51.100.7/32@80,443 a.example.com@80 example.org *.example.com@443",
    );
}

#[test]
fn what_is_closed_or_denied_is_never_proposed() {
    check_proposal(
        "",
        "169.254.169.254 80 metadata.example.com
        fd00:ec2::254 80
        8.8.8.8 53 dns.example.com
        8.8.4.4 853
        192.0.2.1 25 mail.example.com
        224.0.0.251 5353
        192.0.2.1 443 localhost 192.0.2.1 *.example.com UPPER.example.com",
        "192.0.2.1/32@443",
    );
}

#[test]
fn siblings_become_a_wildcard_where_they_are_one_owners() {
    let siblings = |parent: &str, port: u16| -> String {
        let line = |n| format!("192.0.2.{n} {port} n{n}.{parent}\n");
        (1..=3).map(line).collect()
    };
    check_proposal("", &siblings("example.com", 443), "*.example.com@443");
    check_proposal("", &siblings("x.co.uk", 443), "*.x.co.uk@443");
    for parent in ["co.uk", "github.io", "s3.amazonaws.com"] {
        let all = format!("n1.{parent}@443 n2.{parent}@443 n3.{parent}@443");
        check_proposal("", &siblings(parent, 443), &all);
    }
    // Two are not enough, others have other ports, and what the wildcard does not allow stays.
    check_proposal(
        "n9.example.com@443 *.example.net@80",
        &(siblings("example.com", 443)
            + &siblings("example.net", 443)
            + "192.0.2.4 8443 n4.example.com\n192.0.2.5 443 a.example.org\n192.0.2.6 443 b.example.org"),
        "a.example.org@443 b.example.org@443 n4.example.com@8443 *.example.com@443 *.example.net@80,443",
    );
    // Of a wildcard below a wildcard the upper one is left.
    check_proposal(
        "",
        &(siblings("a.example.com", 443) + &siblings("example.com", 443)),
        "*.example.com@443",
    );
}

#[test]
fn too_many_ports_become_all() {
    let seen: String = (1000..1017).map(|n| format!("192.0.2.1 {n}\n")).collect();
    check_proposal("", &seen, "192.0.2.1/32");
}

#[test]
fn a_full_list_takes_what_was_tried_most() {
    let seen = (0_u32..2_000).map(|i| RefusedDestination {
        address: IpAddr::V4((0x0b00_0000 + i).into()),
        protocol: Protocol::Tcp,
        port: port(443),
        packets: i.into(),
        names: [format!("a.n{i}.example")].into(),
    });
    let proposed = propose(&allowlist(""), &BTreeSet::new(), &seen.collect::<Vec<_>>());
    assert_eq!((proposed.names.len(), proposed.networks.len()), (MAX_NAMES, 2_000 - MAX_NAMES));
    let most = DomainPattern::parse("a.n1999.example").expect("valid");
    assert!(proposed.names.iter().any(|one| one.pattern == most));
    assert_eq!(check::network(&policy(proposed)), []);
}

fn any_name() -> impl Strategy<Value = String> {
    let label = || prop::sample::select(vec!["a", "b", "c", "d", "e"]);
    let parent = prop::sample::select(vec![
        "example.com",
        "x.example.com",
        "co.uk",
        "github.io",
        "com",
        "*",
    ]);
    (label(), parent).prop_map(|(label, parent)| format!("{label}.{parent}"))
}

fn any_address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        (0_u32..20).prop_map(|low| IpAddr::V4((0xc000_0200 + low).into())),
        (0_u16..20).prop_map(|low| IpAddr::V6([0x2001, 0xdb8, 0, 0, 0, 0, 0, low].into())),
        prop::sample::select(vec!["169.254.0.1", "fd00:ec2::254", "224.0.0.1", "10.201.0.1"])
            .prop_map(|text| text.parse().expect("an address")),
    ]
}

fn any_port() -> impl Strategy<Value = Port> {
    prop::sample::select(vec![25_u16, 53, 80, 443, 8443]).prop_map(port)
}

fn any_refused() -> impl Strategy<Value = RefusedDestination> {
    let names = prop::collection::btree_set(any_name(), 0..3);
    let protocol = prop::sample::select(&Protocol::BOTH[..]);
    (any_address(), protocol, any_port(), 0_u64..9, names).prop_map(
        |(address, protocol, port, packets, names)| RefusedDestination {
            address,
            protocol,
            port,
            packets,
            names,
        },
    )
}

/// Lists that are sound: what was proposed for something else, some blocks and a wildcard.
fn any_sound_list() -> impl Strategy<Value = Allowlist> {
    let base = prop::sample::select(vec![
        "",
        "192.0.2.0/24@443",
        "192.0.2.0/28 2001:db8::/64@80 *.example.com@443",
        "*.x.example.com *.co.uk@80",
        "a.example.com@80",
    ]);
    (base, prop::collection::vec(any_refused(), 0..12))
        .prop_map(|(base, seen)| propose(&allowlist(base), &default_denied_ports(), &seen))
}

proptest! {
    #[test]
    fn a_proposal_is_sound_and_lets_everything_through(
        current in any_sound_list(),
        seen in prop::collection::vec(any_refused(), 0..24),
    ) {
        let denied = default_denied_ports();
        prop_assert_eq!(check::network(&policy(current.clone())), []);
        let mut proposed = propose(&current, &denied, &seen);
        prop_assert_eq!(check::network(&policy(proposed.clone())), []);
        prop_assert_eq!(&propose(&proposed, &denied, &seen), &proposed, "nothing is left to propose");
        let reversed: Vec<RefusedDestination> = seen.iter().rev().cloned().collect();
        prop_assert_eq!(&propose(&current, &denied, &reversed), &proposed, "the order does not show");
        proposed.mode = Mode::Enforced;
        let names = proposed.names.clone();
        let instance = EffectiveInstance {
            network: AddressPool::STANDARD.network(Slot::new(0).expect("below the limit")),
            policy: policy(proposed),
        };
        for one in &seen {
            let flow = Flow {
                protocol: one.protocol,
                source: instance.network.container(),
                source_port: 40_000,
                destination: one.address,
                port: one.port.number(),
            };
            let named = names.iter().any(|entry| {
                one.names.iter().any(|name| entry.pattern.matches(name))
                    && (entry.ports.is_empty() || entry.ports.contains(&one.port))
            });
            let closed = is_closed(one.address, one.port.number())
                || denied.contains(&one.port)
                || AddressKind::of(Cidr::containing(one.address, 128)).is_some()
                || AddressPool::STANDARD.block().contains(one.address);
            let goes_on = flow::may_go_on(&instance, &flow, |_, _, _| named);
            prop_assert!(goes_on || closed, "{one:?}");
        }
    }
}
