use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::address::{AddressPool, Slot};
use crate::firewall::{
    Allowlist, Effective, Egress, Family, HostPolicy, InstanceSet, NetworkPolicy, Ruleset, Set,
    SetContent, Table, check, render,
};
use crate::name::InstanceName;

fn port(number: u16) -> Port {
    Port::new(number).expect("not 0")
}

fn cidr(text: &str) -> Cidr {
    Cidr::parse(text).expect("valid")
}

fn instance(reach: Reach) -> EffectiveInstance {
    let egress = Egress { reach, ..Egress::default() };
    EffectiveInstance {
        network: AddressPool::STANDARD.network(Slot::new(3).expect("below the limit")),
        policy: NetworkPolicy { egress, ..NetworkPolicy::default() },
    }
}

fn list(networks: &[(&str, &[u16])], mode: Mode) -> Reach {
    let networks = networks.iter().map(|(network, numbers)| AllowedNetwork {
        network: cidr(network),
        ports: numbers.iter().copied().map(port).collect(),
    });
    Reach::Allowlist(Allowlist { networks: networks.collect(), names: Vec::new(), mode })
}

fn flow(destination: IpAddr, protocol: Protocol, port: u16) -> Flow {
    let source = AddressPool::STANDARD.network(Slot::new(3).expect("below the limit")).container();
    Flow { protocol, source, source_port: 40_000, destination, port }
}

/// What goes on of destinations such as `192.0.2.1 443`, over TCP; 192.0.2.9 on 443 has a name.
#[track_caller]
fn check_flows(reach: Reach, expected: &str) {
    let instance = instance(reach);
    let mut shown = String::new();
    for line in expected.lines() {
        let mut words = line.split_whitespace();
        let mut word = || words.next().expect("two words");
        let (destination, number) = (word(), word());
        let flow = flow(
            destination.parse().expect("an address"),
            Protocol::Tcp,
            number.parse().expect("a port"),
        );
        let named =
            |address: IpAddr, _, port| address == IpAddr::from([192, 0, 2, 9]) && port == 443;
        let verdict = if may_go_on(&instance, &flow, named) { "goes on" } else { "is cut" };
        shown.push_str(&format!("{destination} {number} {verdict}\n"));
    }
    assert_eq!(shown, expected);
}

const CLOSED: &str = "10.201.4.1 53 goes on
10.201.4.1 22 is cut
10.201.5.2 443 is cut
10.201.5.1 53 is cut
169.254.169.254 80 is cut
fd00:ec2::254 80 is cut
8.8.8.8 53 is cut
8.8.8.8 853 is cut
192.0.2.1 25 is cut
";

#[test]
fn open_leaves_everything_that_is_not_closed_or_denied() {
    let open = format!("{CLOSED}192.0.2.1 443 goes on\n2001:db8::1 8443 goes on\n");
    check_flows(Reach::Open, &open);
    check_flows(list(&[], Mode::Observed), &open);
}

#[test]
fn a_list_leaves_what_is_on_it() {
    let reach = list(&[("192.0.2.0/29", &[80, 25]), ("2001:db8::/32", &[])], Mode::Enforced);
    let expected = "192.0.2.1 80 goes on
192.0.2.1 443 is cut
192.0.2.8 80 is cut
192.0.2.9 443 goes on
192.0.2.9 80 is cut
2001:db8::1 8443 goes on
2001:db9::1 8443 is cut
";
    check_flows(reach, &format!("{CLOSED}{expected}"));
}

/// A reader of rendered rules, as the kernel is one: the first rule that matches a new connection decides.
struct Kernel<'rules> {
    rules: &'rules Ruleset,
    named: &'rules BTreeSet<(IpAddr, Option<u16>)>,
}

impl Kernel<'_> {
    fn lets_through(&self, flow: &Flow, table: Table) -> bool {
        let family = Family::of(flow.destination);
        let rules = self.rules.families.iter().find(|rules| rules.family == family).expect("both");
        let table = rules.tables.iter().find(|rules| rules.table == table).expect("all");
        let chains: BTreeMap<&str, &[String]> =
            table.chains.iter().map(|c| (c.name.as_str(), c.rules.as_slice())).collect();
        let mut chain = "CLAW-EGR";
        'chain: loop {
            for rule in chains.get(chain).copied().unwrap_or_default() {
                let words: Vec<&str> = rule.split(' ').collect();
                let (matches, verdict) = words.split_at(words.len() - 2);
                if !self.meets(flow, matches) {
                    continue;
                }
                match verdict {
                    ["-j", "RETURN"] => return true,
                    ["-j", "CLAW-NO"] => return false,
                    ["-g", next] => {
                        chain = next;
                        continue 'chain;
                    }
                    // The SET target goes on to the next rule.
                    _ if rule.contains("-j SET") => {}
                    _ => panic!("no verdict known here: {rule}"),
                }
            }
            return true;
        }
    }

    fn meets(&self, flow: &Flow, mut words: &[&str]) -> bool {
        loop {
            let (met, rest) = match words {
                [] => return true,
                ["-m", "tcp" | "udp" | "multiport" | "set" | "conntrack", rest @ ..] => {
                    (true, rest)
                }
                // To another bridge: nothing that is routed out.
                ["-o", "claw-+", rest @ ..] => (false, rest),
                ["-i", bridge, rest @ ..] => (*bridge == "claw-i3", rest),
                ["-d", network, rest @ ..] => (cidr(network).contains(flow.destination), rest),
                ["-p", protocol, rest @ ..] => (flow.protocol.to_string() == *protocol, rest),
                ["--dport" | "--dports", numbers, rest @ ..] => {
                    (numbers.split(',').any(|number| number == flow.port.to_string()), rest)
                }
                ["--ctstate", "RELATED,ESTABLISHED", rest @ ..] => (false, rest),
                ["--match-set", set, _, rest @ ..] => (self.holds(set, flow), rest),
                ["!", "--match-set", set, _, rest @ ..] => (!self.holds(set, flow), rest),
                // What is recorded passes on: the rest of the rule is the target's.
                ["-j", "SET", ..] => return true,
                other => panic!("no match known here: {other:?}"),
            };
            if !met {
                return false;
            }
            words = rest;
        }
    }

    fn holds(&self, name: &str, flow: &Flow) -> bool {
        let set: &Set = self.rules.sets.iter().find(|set| set.name == name).expect("rendered");
        let (slot, family) = (Slot::new(3).expect("below the limit"), set.family);
        if name == InstanceSet::Names.name(slot, family) {
            return self.named.contains(&(flow.destination, None));
        }
        if name == InstanceSet::NamePorts.name(slot, family) {
            return self.named.contains(&(flow.destination, Some(flow.port)));
        }
        let SetContent::Fixed(entries) = &set.content else { return false };
        entries.iter().any(|entry| {
            let (network, port) = entry.split_once(',').unwrap_or((entry, ""));
            let protocol_and_port = format!("{}:{}", flow.protocol, flow.port);
            cidr(network).contains(flow.destination)
                && (port.is_empty() || port == protocol_and_port)
        })
    }
}

/// Few addresses and ports, so that they meet.
fn any_address() -> impl Strategy<Value = IpAddr> {
    prop::sample::select(vec![
        "192.0.2.1",
        "192.0.2.9",
        "198.51.100.7",
        "169.254.169.254",
        "10.201.5.2",
        "10.200.0.1",
        "100.100.100.200",
        "2001:db8::1",
        "2001:db8:1::1",
        "fd00:ec2::254",
        "fd00::1",
    ])
    .prop_map(|text| text.parse().expect("an address"))
}

fn any_port() -> impl Strategy<Value = u16> {
    prop::sample::select(vec![22_u16, 25, 53, 80, 443, 853, 6667, 8443])
}

fn any_protocol() -> impl Strategy<Value = Protocol> {
    prop::sample::select(&Protocol::BOTH[..])
}

fn any_ports() -> impl Strategy<Value = BTreeSet<Port>> {
    prop::collection::btree_set(any_port().prop_map(port), 0..4)
}

fn any_network() -> impl Strategy<Value = AllowedNetwork> {
    let prefix = prop::sample::select(vec![0_u8, 8, 16, 24, 32, 64, 128]);
    (any_address(), prefix, any_ports()).prop_map(|(address, prefix, ports)| AllowedNetwork {
        network: Cidr::containing(address, prefix),
        ports,
    })
}

fn any_policy() -> impl Strategy<Value = NetworkPolicy> {
    let mode = prop::sample::select(vec![Mode::Enforced, Mode::Observed]);
    let list = (prop::collection::vec(any_network(), 0..6), mode).prop_map(|(networks, mode)| {
        Reach::Allowlist(Allowlist { networks, names: Vec::new(), mode })
    });
    let reach = prop_oneof![1 => Just(Reach::Open), 4 => list];
    (any_ports(), reach).prop_map(|(denied_ports, reach)| NetworkPolicy {
        egress: Egress { denied_ports, reach },
        ..NetworkPolicy::default()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn the_rules_decide_the_same(
        policy in any_policy(),
        named in prop::collection::btree_set((any_address(), prop::option::of(any_port())), 0..4),
        destination in any_address(),
        protocol in any_protocol(),
        number in any_port(),
    ) {
        let instance = EffectiveInstance { policy, ..instance(Reach::Open) };
        let name = InstanceName::parse("demo").expect("valid");
        let effective = Effective {
            host: HostPolicy::default(),
            ssh_ports: [port(22)].into(),
            web_ports: [port(8080)].into(),
            pool: AddressPool::STANDARD,
            instances: [(name, instance.clone())].into(),
        };
        let rules = render::render(&effective);
        let kernel = Kernel { rules: &rules, named: &named };
        let flow = flow(destination, protocol, number);
        let goes_on = may_go_on(&instance, &flow, |address, _, port| {
            named.contains(&(address, None)) || named.contains(&(address, Some(port)))
        });
        let copy = kernel.lets_through(&flow, Table::Filter);
        prop_assert_eq!(kernel.lets_through(&flow, Table::Security), goes_on);
        // A list that is only tried stands in the guarantee alone, and lets everything through there.
        prop_assert_eq!(copy, goes_on);
    }

    /// Whatever a sound list allows goes on: the check refuses entries that could never have an effect.
    #[test]
    fn what_a_sound_policy_allows_goes_on(policy in any_policy(), protocol in any_protocol()) {
        if !check::network(&policy).is_empty() {
            // About half of them; of the others there are hundreds.
            return Ok(());
        }
        let Reach::Allowlist(list) = &policy.egress.reach else { return Ok(()) };
        let instance = EffectiveInstance { policy: policy.clone(), ..instance(Reach::Open) };
        for AllowedNetwork { network, ports } in &list.networks {
            let number = ports.first().map_or(8443, |port| port.number());
            let denied = policy.egress.denied_ports.contains(&port(number));
            let destination = network.address();
            let pool = AddressPool::STANDARD.block().contains(destination);
            let flow = flow(destination, protocol, number);
            let expected = !pool && !denied;
            prop_assert_eq!(may_go_on(&instance, &flow, |_, _, _| false), expected, "{:?}", flow);
        }
    }

    /// What is closed or denied is cut, whatever the policy says, and the check refuses to allow it.
    #[test]
    fn what_is_refused_in_a_list_would_be_cut(
        destination in any_address(),
        number in any_port(),
        denied_ports in any_ports(),
    ) {
        let entry = AllowedNetwork {
            network: Cidr::containing(destination, 128),
            ports: [port(number)].into(),
        };
        let list = Allowlist { networks: vec![entry], names: Vec::new(), mode: Mode::Enforced };
        let policy = NetworkPolicy {
            egress: Egress { denied_ports, reach: Reach::Allowlist(list) },
            ..NetworkPolicy::default()
        };
        let instance = EffectiveInstance { policy: policy.clone(), ..instance(Reach::Open) };
        let pool = AddressPool::STANDARD.block().contains(destination);
        let goes_on = may_go_on(&instance, &flow(destination, Protocol::Tcp, number), |_, _, _| false);
        prop_assert_eq!(goes_on, check::network(&policy).is_empty() && !pool);
    }
}
