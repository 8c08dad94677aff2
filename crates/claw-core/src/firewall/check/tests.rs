use std::net::IpAddr;

use super::*;
use crate::address::{AddressPool, Slot};
use crate::firewall::{DomainPattern, Egress, Mode};
use crate::name::InstanceName;

fn cidr(text: &str) -> Cidr {
    Cidr::parse(text).expect("valid")
}

fn cidrs(text: &str) -> BTreeSet<Cidr> {
    text.split_whitespace().map(cidr).collect()
}

fn port(number: u16) -> Port {
    Port::new(number).expect("not 0")
}

fn ports(numbers: &[u16]) -> BTreeSet<Port> {
    numbers.iter().copied().map(port).collect()
}

fn interfaces(text: &str) -> BTreeSet<InterfaceName> {
    text.split_whitespace().map(|name| InterfaceName::parse(name).expect("valid")).collect()
}

fn from(sources: &str) -> Access {
    Access { sources: cidrs(sources), interfaces: BTreeSet::new() }
}

fn extra(protocol: Protocol, number: u16) -> ExtraPort {
    ExtraPort { protocol, port: port(number), access: Access::default() }
}

/// Entries such as `192.0.2.0/24@80,443` and `*.example.com@443`, separated by blanks.
fn allowlist(text: &str) -> Allowlist {
    let mut list = Allowlist { networks: Vec::new(), names: Vec::new(), mode: Mode::Enforced };
    for entry in text.split_whitespace() {
        let (what, numbers) = entry.split_once('@').unwrap_or((entry, ""));
        let numbers = numbers.split(',').filter(|text| !text.is_empty());
        let ports = numbers.map(|text| port(text.parse().expect("a number"))).collect();
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

fn shown(faults: &[PolicyFault]) -> String {
    faults.iter().map(|fault| format!("{fault}\n")).collect()
}

#[track_caller]
fn check_host(policy: &HostPolicy, expected: &[&str]) {
    let expected: String = expected.iter().map(|line| format!("{line}\n")).collect();
    assert_eq!(shown(&host(policy)), expected);
}

#[track_caller]
fn check_list(text: &str, expected: &[&str]) {
    let policy = NetworkPolicy {
        egress: Egress { reach: Reach::Allowlist(allowlist(text)), ..Egress::default() },
        ..NetworkPolicy::default()
    };
    let expected: String =
        expected.iter().map(|line| format!("egress.allowlist.{line}\n")).collect();
    assert_eq!(shown(&network(&policy)), expected);
}

#[test]
fn the_defaults_are_sound() {
    check_host(&HostPolicy::default(), &[]);
    assert_eq!(network(&NetworkPolicy::default()), []);
}

#[test]
fn every_fault_of_a_host_is_named_at_once() {
    let policy = HostPolicy {
        ssh: SshPolicy {
            ports: ports(&[22]),
            access: Access {
                sources: cidrs("10.0.0.0/8 10.1.0.0/16 127.0.0.1 224.0.0.0/8 fe80::/64 ::/0"),
                interfaces: interfaces("docker0 veth1a2b"),
            },
            brute_force: BruteForce {
                failures: 1,
                window: Duration::ZERO,
                ban: Duration::from_secs(100_000),
            },
        },
        web: WebAccess::Reachable(from("0.0.0.0/0 fe80::/10")),
        extra: vec![
            extra(Protocol::Udp, 51820),
            extra(Protocol::Tcp, 22),
            extra(Protocol::Udp, 51820),
            extra(Protocol::Udp, 22),
        ],
        blocked: cidrs("0.0.0.0/0 198.51.100.7 fe80::1"),
    };
    let web = "holds link-local addresses, and nobody it is meant for comes from one";
    check_host(
        &policy,
        &[
            "ssh.sources[4]: ::/0 is everyone; hint: leave the list empty to let everyone in",
            "ssh.sources[1]: 10.1.0.0/16 lies within 10.0.0.0/8 of the same list; hint: remove one of them",
            "ssh.sources[2]: 127.0.0.1/32 holds loopback addresses, and nobody it is meant for comes from one",
            "ssh.sources[3]: 224.0.0.0/8 holds multicast addresses, and nobody it is meant for comes from one",
            "ssh.sources[5]: fe80::/64 lies within ::/0 of the same list; hint: remove one of them",
            "ssh.interfaces: names interfaces of containers only, and operators would be locked out",
            "ssh.brute_force.failures: must be 0 (no bans) or from 3 to 100, is 1",
            "ssh.brute_force.window: must be from 1 s to 86400 s, is 0 ms",
            "ssh.brute_force.ban: must be from 1 s to 86400 s, is 100000000 ms",
            "web.sources[0]: 0.0.0.0/0 is everyone; hint: leave the list empty to let everyone in",
            &format!("web.sources[1]: fe80::/10 {web}"),
            "extra[1].port: 22/tcp is a port of ssh already; hint: remove it or choose another",
            "extra[2].port: 51820/udp is listed as extra[0] already; hint: remove it or choose another",
            "blocked[1]: 198.51.100.7/32 lies within 0.0.0.0/0 of the same list; hint: remove one of them",
            &format!("blocked[2]: fe80::1/128 {web}"),
        ],
    );
}

#[test]
fn bans_that_are_off_need_no_times() {
    let brute_force = BruteForce { failures: 0, window: Duration::ZERO, ban: Duration::ZERO };
    let ssh = SshPolicy { brute_force, ..SshPolicy::default() };
    check_host(&HostPolicy { ssh, ..HostPolicy::default() }, &[]);
}

#[test]
fn blocking_everything_is_left_to_the_safe_apply() {
    let blocked = cidrs("0.0.0.0/0 ::/0");
    let ssh = SshPolicy { access: from("198.51.100.0/24"), ..SshPolicy::default() };
    check_host(&HostPolicy { ssh, blocked, ..HostPolicy::default() }, &[]);
}

#[test]
fn lists_of_a_host_are_bounded() {
    let many = |count: u32| -> BTreeSet<Cidr> {
        (0..count).map(|i| Cidr::containing(IpAddr::V4((0x0b00_0000 + i).into()), 32)).collect()
    };
    let access = Access { sources: many(4_097), interfaces: BTreeSet::new() };
    let numbers: Vec<u16> = (1..=9).collect();
    let policy = HostPolicy {
        ssh: SshPolicy { ports: ports(&numbers), access, ..SshPolicy::default() },
        extra: (100..133).map(|number| extra(Protocol::Tcp, number)).collect(),
        ..HostPolicy::default()
    };
    check_host(
        &policy,
        &[
            "ssh.ports: must have at most 8 entries, has 9",
            "ssh.sources: must have at most 4096 entries, has 4097",
            "extra: must have at most 32 entries, has 33",
        ],
    );
}

#[test]
fn an_allowlist_may_be_empty_and_may_overlap_on_other_ports() {
    check_list("", &[]);
    check_list("0.0.0.0/0@443 192.0.2.0/24@80 192.0.2.7 ::/0@443", &[]);
    check_list("*.example.com@443 a.example.com@80,443 example.com@443 *.a.example.com", &[]);
}

#[test]
fn blocks_that_say_nothing_new_are_refused() {
    check_list(
        "192.0.2.7@443 192.0.2.0/24@80,443 192.0.2.0/24@22 2001:db8::/32 2001:db8:1::/48@443",
        &[
            "networks[2].network: 192.0.2.0/24 is listed twice; hint: put the ports of both into one entry",
            "networks[0].network: 192.0.2.7/32 lies within 192.0.2.0/24 of the same list; hint: remove one of them",
            "networks[4].network: 2001:db8:1::/48 lies within 2001:db8::/32 of the same list; hint: remove one of them",
        ],
    );
}

#[test]
fn names_that_say_nothing_new_are_refused() {
    check_list(
        "a.example.com@443 *.example.com@80,443 b.c.example.com@80 *.c.example.com@443 a.example.com@80",
        &[
            "names[4].pattern: a.example.com is listed twice; hint: put the ports of both into one entry",
            "names[0].pattern: a.example.com is meant by *.example.com already, on the same ports; hint: remove one of them",
            "names[2].pattern: b.c.example.com is meant by *.example.com already, on the same ports; hint: remove one of them",
            "names[3].pattern: *.c.example.com is meant by *.example.com already, on the same ports; hint: remove one of them",
            "names[4].pattern: a.example.com is meant by *.example.com already, on the same ports; hint: remove one of them",
        ],
    );
}

#[test]
fn what_is_closed_or_denied_cannot_be_allowed() {
    check_list(
        "169.254.169.254@80 192.0.2.1@25,53 224.0.0.0/4 a.example.com@853,587",
        &[
            "networks[0].network: 169.254.169.254/32 lies within 169.254.0.0/16, which is closed to every instance always",
            "networks[1].ports: port 25 is denied by egress.denied_ports and allowed here; hint: remove it from one of them",
            "networks[1].ports: port 53 is closed always, because names are resolved through the host only; hint: remove it",
            "networks[2].network: 224.0.0.0/4 holds multicast addresses, which no instance can reach",
            "names[0].ports: port 587 is denied by egress.denied_ports and allowed here; hint: remove it from one of them",
            "names[0].ports: port 853 is closed always, because names are resolved through the host only; hint: remove it",
        ],
    );
}

#[test]
fn lists_of_an_instance_are_bounded() {
    let numbers: Vec<u16> = (1000..1017).collect();
    let entry = |i: u32| AllowedNetwork {
        network: Cidr::containing(IpAddr::V4((0x0b00_0000 + i).into()), 32),
        ports: ports(numbers.get(..16).unwrap_or_default()),
    };
    let name = |i: u32| AllowedName {
        pattern: DomainPattern::parse(&format!("n{i}.example.com")).expect("valid"),
        ports: if i == 0 { ports(&numbers) } else { BTreeSet::new() },
    };
    let list = Allowlist {
        networks: (0..20_001).map(entry).collect(),
        names: (0..1_025).map(name).collect(),
        mode: Mode::Observed,
    };
    let denied: Vec<u16> = (2000..2065).collect();
    let egress = Egress { denied_ports: ports(&denied), reach: Reach::Allowlist(list) };
    let faults = network(&NetworkPolicy { egress, ..NetworkPolicy::default() });
    let expected = "egress.denied_ports: must have at most 64 entries, has 65
egress.allowlist.networks: must have at most 20000 entries, has 20001
egress.allowlist.networks: must be at most 131072 pairs of network, port and protocol, is 640032; hint: leave ports out
egress.allowlist.names: must have at most 1024 entries, has 1025
egress.allowlist.names[0].ports: must have at most 16 entries, has 17
";
    assert_eq!(shown(&faults), expected);
}

#[test]
fn a_hopeless_policy_is_told_in_bounds() {
    let entry = |_| AllowedNetwork { network: cidr("192.0.2.0/24"), ports: BTreeSet::new() };
    let networks = (0..20_000).map(entry).collect();
    let list = Allowlist { networks, names: Vec::new(), mode: Mode::Enforced };
    let egress = Egress { reach: Reach::Allowlist(list), ..Egress::default() };
    let faults = network(&NetworkPolicy { egress, ..NetworkPolicy::default() });
    assert_eq!(faults.len(), MAX_FAULTS + 1);
    let last = faults.last().map(ToString::to_string);
    let expected = "egress.allowlist.networks[100].network: and 19899 more faults";
    assert_eq!(last.as_deref(), Some(expected));
}

fn on_host(host: HostPolicy) -> Effective {
    Effective {
        host,
        ssh_ports: ports(&[22]),
        web_ports: ports(&[8080]),
        pool: AddressPool::STANDARD,
        instances: BTreeMap::new(),
    }
}

fn surroundings() -> Surroundings {
    Surroundings {
        ssh_ports: ports(&[22]),
        interfaces: interfaces("eth0 wg0"),
        ..Surroundings::default()
    }
}

#[track_caller]
fn check_effective(policy: &Effective, surroundings: &Surroundings, expected: &[&str]) {
    let expected: String = expected.iter().map(|line| format!("{line}\n")).collect();
    assert_eq!(shown(&effective(policy, surroundings)), expected);
}

#[test]
fn ssh_stays_reachable_on_its_ports() {
    let with = |numbers: &[u16]| Effective {
        ssh_ports: ports(numbers),
        ..on_host(HostPolicy {
            ssh: SshPolicy { ports: ports(numbers), ..SshPolicy::default() },
            ..HostPolicy::default()
        })
    };
    check_effective(&with(&[22, 2222]), &surroundings(), &[]);
    check_effective(
        &with(&[2222]),
        &surroundings(),
        &[
            "ssh.ports: lacks 22, on which sshd listens, and would lock operators out; hint: add it or leave the list empty",
        ],
    );
    let blind = Surroundings { ssh_ports: BTreeSet::new(), ..surroundings() };
    check_effective(&with(&[22]), &blind, &[]);
    check_effective(
        &with(&[2222]),
        &blind,
        &[
            "ssh.ports: lacks 22, and this host cannot tell where its sshd listens; hint: add it or leave the list empty",
        ],
    );
    check_effective(
        &with(&[22, 8080]),
        &surroundings(),
        &["ssh.ports: 8080/tcp is the reverse proxy's port; hint: remove it or choose another"],
    );
}

#[test]
fn ssh_stays_reachable_through_an_interface() {
    let through = |names: &str| {
        let access = Access { sources: BTreeSet::new(), interfaces: interfaces(names) };
        on_host(HostPolicy {
            ssh: SshPolicy { access, ..SshPolicy::default() },
            ..HostPolicy::default()
        })
    };
    check_effective(&through("wg0 tailscale0"), &surroundings(), &[]);
    check_effective(
        &through("wg1 tailscale0"),
        &surroundings(),
        &[
            "ssh.interfaces: this host has none of tailscale0, wg1, and operators would be locked out",
        ],
    );
}

#[test]
fn the_network_of_the_instances_is_no_source_and_no_destination() {
    let name = InstanceName::parse("demo").expect("valid");
    let network = AddressPool::STANDARD.network(Slot::new(3).expect("below the limit"));
    let reach = Reach::Allowlist(allowlist("10.0.0.0/8@443 10.201.9.0/24"));
    let policy = NetworkPolicy {
        egress: Egress { reach, ..Egress::default() },
        web_sources: cidrs("10.201.4.2"),
    };
    let mut policy = Effective {
        instances: [(name, crate::firewall::EffectiveInstance { network, policy })].into(),
        ..on_host(HostPolicy {
            ssh: SshPolicy { access: from("10.201.0.0/16"), ..SshPolicy::default() },
            web: WebAccess::Reachable(from("10.0.0.0/8 10.201.1.0/24")),
            extra: vec![extra(Protocol::Tcp, 8080), extra(Protocol::Tcp, 22)],
            blocked: cidrs("10.201.1.2"),
        })
    };
    let source =
        "lies within 10.201.0.0/16, the network of the instances, which never reach the host";
    check_effective(
        &policy,
        &surroundings(),
        &[
            "extra[0].port: 8080/tcp is the reverse proxy's port; hint: remove it or choose another",
            "extra[1].port: 22/tcp is a port of ssh already; hint: remove it or choose another",
            &format!("ssh.sources[0]: 10.201.0.0/16 {source}"),
            &format!("web.sources[1]: 10.201.1.0/24 {source}"),
            &format!("blocked[0]: 10.201.1.2/32 {source}"),
            &format!("instances[demo].web_sources[0]: 10.201.4.2/32 {source}"),
            "instances[demo].egress.allowlist.networks[1].network: 10.201.9.0/24 lies within 10.201.0.0/16, which is closed to every instance always",
        ],
    );
    policy.pool = AddressPool::new(172, 20).expect("private");
    check_effective(
        &policy,
        &surroundings(),
        &[
            "extra[0].port: 8080/tcp is the reverse proxy's port; hint: remove it or choose another",
            "extra[1].port: 22/tcp is a port of ssh already; hint: remove it or choose another",
        ],
    );
}

#[test]
fn two_instances_never_share_a_slot() {
    let instance = crate::firewall::EffectiveInstance {
        network: AddressPool::STANDARD.network(Slot::new(3).expect("below the limit")),
        policy: NetworkPolicy::default(),
    };
    let instances =
        ["a", "b"].map(|name| (InstanceName::parse(name).expect("valid"), instance.clone()));
    let policy = Effective { instances: instances.into(), ..on_host(HostPolicy::default()) };
    check_effective(&policy, &surroundings(), &["instances[b]: has slot 3, as a does"]);
}
