//! Rules as transcripts: what a policy makes of each chain.
//!
//! A line is a rule of both families unless `4` or `6` stands before it. The guarantee is shown where it
//! differs from its copy in the filter table. After the first transcript only those chains and sets are
//! shown that differ from another policy's, mostly the default host's.

pub(in crate::firewall) mod policies;
mod properties;

use std::collections::BTreeSet;

use super::*;
use crate::firewall::{
    Access, AllowedNetwork, Allowlist, Egress, ExtraPort, HostPolicy, Mode, NetworkPolicy,
    Protocol, Reach, Set, SetContent, SshPolicy, WebAccess,
};
use policies::{access, cidr, cidrs, default_host, interface, name, port, ports, with_instance};

/// Each chain and the list of sets, as transcripts.
fn sections(effective: &Effective) -> Vec<String> {
    let ruleset = render(effective);
    let [v4, v6] = &ruleset.families;
    let mut sections: Vec<String> = ruleset.sets.iter().map(set_line).collect();
    let table = |rules: &FamilyRules, table| rules.table(table).expect("rendered").clone();
    let of_table = |name| section_of(&table(v4, name), &table(v6, name));
    let filter = of_table(Table::Filter);
    let guarantee = of_table(Table::Security).into_iter().filter(|(chain, rules)| {
        !filter.iter().any(|(other, copied)| other == chain && copied == rules)
    });
    let titled = |title: &'static str| move |(chain, rules)| format!("{title} {chain}\n{rules}");
    sections.extend(of_table(Table::Raw).into_iter().map(titled("raw")));
    sections.extend(filter.clone().into_iter().map(titled("filter")));
    sections.extend(guarantee.map(titled("security")));
    sections
}

/// A table's hooks and chains with their rules, both families in one.
fn section_of(v4: &TableRules, v6: &TableRules) -> Vec<(String, String)> {
    assert_eq!(v4.hooks, v6.hooks);
    let mut shown: Vec<(String, String)> = v4
        .hooks
        .iter()
        .map(|Hook { from, to, optional }| {
            let last = if *optional { ", if there is one" } else { "" };
            (format!("{from} -> {to}{last}"), String::new())
        })
        .collect();
    for (a, b) in v4.chains.iter().zip(&v6.chains) {
        assert_eq!(a.name, b.name);
        shown.push((a.name.clone(), merged(&a.rules, &b.rules)));
    }
    shown
}

/// The digit of the family is a star where only that differs.
fn merged(v4: &[String], v6: &[String]) -> String {
    let starred = |rules: &[String], digit: char| -> Vec<String> {
        let star = |word: &str| match word.strip_suffix(digit) {
            Some(rest) if word.starts_with("claw-") && !word.starts_with("claw-i") => {
                format!("{rest}*")
            }
            Some(rest) if word.starts_with("claw-i") && word.matches('-').count() == 2 => {
                format!("{rest}*")
            }
            _ => word.to_owned(),
        };
        let line = |rule: &String| rule.split(' ').map(star).collect::<Vec<_>>().join(" ");
        rules.iter().map(line).collect()
    };
    let (v4, v6) = (starred(v4, '4'), starred(v6, '6'));
    let mut text = String::new();
    let mut six = v6.iter().peekable();
    for rule in &v4 {
        if v6.contains(rule) {
            while let Some(only) = six.next_if(|other| *other != rule) {
                text.push_str(&format!("6 {only}\n"));
            }
            six.next();
            text.push_str(&format!("  {rule}\n"));
        } else {
            text.push_str(&format!("4 {rule}\n"));
        }
    }
    text.extend(six.map(|only| format!("6 {only}\n")));
    text
}

fn set_line(set: &Set) -> String {
    let content = match &set.content {
        SetContent::Fixed(entries) if entries.is_empty() => "nothing".to_owned(),
        SetContent::Fixed(entries) => {
            entries.iter().map(String::as_str).collect::<Vec<_>>().join(" ")
        }
        SetContent::Live { timeout, counters } => format!(
            "live, {} s{}, at most {}",
            timeout.as_secs(),
            if *counters { ", counted" } else { "" },
            set.max_entries
        ),
    };
    format!("{} {}: {content}\n", set.name, set.kind.name())
}

#[track_caller]
fn check_whole(effective: &Effective, expected: &str) {
    assert_eq!(sections(effective).concat().trim(), expected.trim());
}

/// What differs from the default host.
#[track_caller]
fn check(effective: &Effective, expected: &str) {
    check_beside(&default_host(), effective, expected);
}

/// What differs from another policy.
#[track_caller]
fn check_beside(usual: &Effective, effective: &Effective, expected: &str) {
    let usual: BTreeSet<String> = sections(usual).into_iter().collect();
    let shown: String =
        sections(effective).into_iter().filter(|section| !usual.contains(section)).collect();
    assert_eq!(shown.trim(), expected.trim());
}

/// An instance that may not use port 25.
fn open() -> Effective {
    let egress = Egress { denied_ports: ports([25]), reach: Reach::Open };
    with_instance(NetworkPolicy { egress, web_sources: BTreeSet::new() })
}

/// The same, with a list.
fn listed(mode: Mode) -> Effective {
    let network = |text: &str, ports| AllowedNetwork { network: cidr(text), ports };
    let networks = vec![
        network("192.0.2.0/24", ports([])),
        network("198.51.100.7/32", ports([443])),
        network("2001:db8::/32", ports([443, 8443])),
        network("::/0", ports([])),
    ];
    let reach = Reach::Allowlist(Allowlist { networks, names: vec![name("*.example.com")], mode });
    let egress = Egress { denied_ports: ports([25]), reach };
    with_instance(NetworkPolicy { egress, web_sources: BTreeSet::new() })
}

fn with_host(host: HostPolicy) -> Effective {
    Effective { host, ..default_host() }
}

#[test]
fn without_instances_a_bridge_reaches_nothing() {
    check_whole(&default_host(), "
claw-banned4 hash:net: live, 600 s, at most 65536
claw-banned6 hash:net: live, 600 s, at most 65536
raw PREROUTING -> CLAW-PRE
raw CLAW-SRC
4 -s 10.201.0.0/16 -j RETURN
6 -s fe80::/10 -j RETURN
6 -s ::/128 -j RETURN
6 -s 2000::/3 -j RETURN
6 -s fc00::/7 -j RETURN
  -j DROP
raw CLAW-PRE
  -i lo -j RETURN
  ! -i claw-+ -p tcp -m tcp --dport 22 -j RETURN
  -i claw-+ -g CLAW-SRC
4 -s 10.201.0.0/16 -j DROP
4 -d 10.201.0.0/16 -j DROP
4 -d 127.0.0.0/8 -j DROP
6 -d ::1/128 -j DROP
filter INPUT -> CLAW-IN
filter FORWARD -> CLAW-FWD
filter DOCKER-USER -> CLAW-FWD, if there is one
filter CLAW-NO
  -p tcp -j REJECT --reject-with tcp-reset
4 -j REJECT --reject-with icmp-admin-prohibited
6 -j REJECT --reject-with icmp6-adm-prohibited
filter CLAW-SSH
  -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN
  -m set --match-set claw-banned* src -j DROP
4 -m hashlimit --hashlimit-above 6/min --hashlimit-burst 10 --hashlimit-mode srcip --hashlimit-name claw-ssh* --hashlimit-htable-expire 120000 -j DROP
6 -m hashlimit --hashlimit-above 6/min --hashlimit-burst 10 --hashlimit-mode srcip --hashlimit-name claw-ssh* --hashlimit-htable-expire 120000 --hashlimit-srcmask 64 -j DROP
  -j RETURN
filter CLAW-WEB
  -j RETURN
filter CLAW-C2H
  -m conntrack --ctstate RELATED,ESTABLISHED --ctdir REPLY -j RETURN
6 -p ipv6-icmp -m icmp6 --icmpv6-type 133 -j RETURN
6 -p ipv6-icmp -m icmp6 --icmpv6-type 135 -j RETURN
6 -p ipv6-icmp -m icmp6 --icmpv6-type 136 -j RETURN
  -j CLAW-NO
filter CLAW-EGR
  -j CLAW-NO
filter CLAW-IN
  -i lo -j RETURN
  ! -i claw-+ -p tcp -m tcp --dport 22 -g CLAW-SSH
  -i claw-+ -g CLAW-C2H
  -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN
  -m conntrack --ctstate INVALID -j DROP
4 -p icmp -m icmp --icmp-type 8 -m limit --limit 10/sec --limit-burst 20 -j RETURN
4 -p udp -m udp --sport 67 --dport 68 -j RETURN
6 -p ipv6-icmp -j RETURN
6 -d fe80::/64 -p udp -m udp --dport 546 -j RETURN
  -p tcp -m tcp --dport 8080 -g CLAW-WEB
  -j DROP
filter CLAW-FWD
  -o claw-+ -m conntrack --ctstate RELATED,ESTABLISHED --ctdir REPLY -j RETURN
  -i claw-+ -m conntrack --ctdir ORIGINAL -g CLAW-EGR
  -i claw-+ -j DROP
  -o claw-+ -j DROP
security CLAW-NO
  -j DROP
security CLAW-SSH
  -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN
  -m set --match-set claw-banned* src -j DROP
  -j RETURN
security CLAW-EGR
  -o claw-+ -j CLAW-NO
4 -d 10.201.0.0/16 -j CLAW-NO
4 -d 169.254.0.0/16 -j CLAW-NO
4 -d 100.100.100.200/32 -j CLAW-NO
4 -d 168.63.129.16/32 -j CLAW-NO
4 -d 192.0.0.192/32 -j CLAW-NO
6 -d fd00:ec2::/32 -j CLAW-NO
6 -d fd20:ce::254/128 -j CLAW-NO
6 -d fd00:c1::a9fe:a9fe/128 -j CLAW-NO
6 -d fd00:42::42/128 -j CLAW-NO
6 -d fd00:a9fe:a9fe::1/128 -j CLAW-NO
6 -d fd00:100::100:200/128 -j CLAW-NO
  -p tcp -m multiport --dports 53,853 -j CLAW-NO
  -p udp -m multiport --dports 53,853 -j CLAW-NO
  -j CLAW-NO
");
}

#[test]
fn an_instance_that_may_go_everywhere() {
    check(
        &with_instance(NetworkPolicy::default()),
        "
raw CLAW-SRC
4 ! -s 10.201.1.0/24 -i claw-i0 -j DROP
4 -s 10.201.0.0/16 -j RETURN
6 -s fe80::/10 -j RETURN
6 -s ::/128 -j RETURN
6 -s 2000::/3 -j RETURN
6 -s fc00::/7 -j RETURN
  -j DROP
filter CLAW-C2H
  -m conntrack --ctstate RELATED,ESTABLISHED --ctdir REPLY -j RETURN
4 -d 10.201.1.1/32 -i claw-i0 -p tcp -m tcp --dport 53 -j RETURN
4 -d 10.201.1.1/32 -i claw-i0 -p udp -m udp --dport 53 -j RETURN
6 -p ipv6-icmp -m icmp6 --icmpv6-type 133 -j RETURN
6 -p ipv6-icmp -m icmp6 --icmpv6-type 135 -j RETURN
6 -p ipv6-icmp -m icmp6 --icmpv6-type 136 -j RETURN
  -i claw-i0 -j CLAW-NO
  -j CLAW-NO
filter CLAW-E0
  -o claw-+ -j CLAW-NO
4 -d 10.201.0.0/16 -j CLAW-NO
4 -d 169.254.0.0/16 -j CLAW-NO
4 -d 100.100.100.200/32 -j CLAW-NO
4 -d 168.63.129.16/32 -j CLAW-NO
4 -d 192.0.0.192/32 -j CLAW-NO
6 -d fd00:ec2::/32 -j CLAW-NO
6 -d fd20:ce::254/128 -j CLAW-NO
6 -d fd00:c1::a9fe:a9fe/128 -j CLAW-NO
6 -d fd00:42::42/128 -j CLAW-NO
6 -d fd00:a9fe:a9fe::1/128 -j CLAW-NO
6 -d fd00:100::100:200/128 -j CLAW-NO
  -p tcp -m multiport --dports 53,853 -j CLAW-NO
  -p udp -m multiport --dports 53,853 -j CLAW-NO
  -p tcp -m tcp --dport 25 -j CLAW-NO
  -p udp -m udp --dport 25 -j CLAW-NO
  -p tcp -m tcp --dport 194 -j CLAW-NO
  -p udp -m udp --dport 194 -j CLAW-NO
  -p tcp -m tcp --dport 465 -j CLAW-NO
  -p udp -m udp --dport 465 -j CLAW-NO
  -p tcp -m tcp --dport 587 -j CLAW-NO
  -p udp -m udp --dport 587 -j CLAW-NO
  -p tcp -m tcp --dport 2525 -j CLAW-NO
  -p udp -m udp --dport 2525 -j CLAW-NO
  -p tcp -m tcp --dport 6667 -j CLAW-NO
  -p udp -m udp --dport 6667 -j CLAW-NO
  -p tcp -m tcp --dport 6697 -j CLAW-NO
  -p udp -m udp --dport 6697 -j CLAW-NO
filter CLAW-EGR
  -i claw-i0 -g CLAW-E0
  -j CLAW-NO
security CLAW-E0
  -p tcp -m multiport --dports 25,194,465,587,2525,6667,6697 -j CLAW-NO
  -p udp -m multiport --dports 25,194,465,587,2525,6667,6697 -j CLAW-NO
security CLAW-EGR
  -o claw-+ -j CLAW-NO
4 -d 10.201.0.0/16 -j CLAW-NO
4 -d 169.254.0.0/16 -j CLAW-NO
4 -d 100.100.100.200/32 -j CLAW-NO
4 -d 168.63.129.16/32 -j CLAW-NO
4 -d 192.0.0.192/32 -j CLAW-NO
6 -d fd00:ec2::/32 -j CLAW-NO
6 -d fd20:ce::254/128 -j CLAW-NO
6 -d fd00:c1::a9fe:a9fe/128 -j CLAW-NO
6 -d fd00:42::42/128 -j CLAW-NO
6 -d fd00:a9fe:a9fe::1/128 -j CLAW-NO
6 -d fd00:100::100:200/128 -j CLAW-NO
  -p tcp -m multiport --dports 53,853 -j CLAW-NO
  -p udp -m multiport --dports 53,853 -j CLAW-NO
  -i claw-i0 -g CLAW-E0
  -j CLAW-NO
",
    );
}

#[test]
fn a_list_that_is_held() {
    check_beside(&open(), &listed(Mode::Enforced), "
claw-i0-nets4 hash:net: 192.0.2.0/24
claw-i0-netports4 hash:net,port: 198.51.100.7,tcp:443 198.51.100.7,udp:443
claw-i0-names4 hash:ip: live, 300 s, at most 16384
claw-i0-nameports4 hash:ip,port: live, 300 s, at most 16384
claw-i0-refused4 hash:ip,port: live, 604800 s, counted, at most 4096
claw-i0-nets6 hash:net: 8000::/1 ::/1
claw-i0-netports6 hash:net,port: 2001:db8::/32,tcp:443 2001:db8::/32,tcp:8443 2001:db8::/32,udp:443 2001:db8::/32,udp:8443
claw-i0-names6 hash:ip: live, 300 s, at most 16384
claw-i0-nameports6 hash:ip,port: live, 300 s, at most 16384
claw-i0-refused6 hash:ip,port: live, 604800 s, counted, at most 4096
filter CLAW-E0
  -o claw-+ -j CLAW-NO
4 -d 10.201.0.0/16 -j CLAW-NO
4 -d 169.254.0.0/16 -j CLAW-NO
4 -d 100.100.100.200/32 -j CLAW-NO
4 -d 168.63.129.16/32 -j CLAW-NO
4 -d 192.0.0.192/32 -j CLAW-NO
6 -d fd00:ec2::/32 -j CLAW-NO
6 -d fd20:ce::254/128 -j CLAW-NO
6 -d fd00:c1::a9fe:a9fe/128 -j CLAW-NO
6 -d fd00:42::42/128 -j CLAW-NO
6 -d fd00:a9fe:a9fe::1/128 -j CLAW-NO
6 -d fd00:100::100:200/128 -j CLAW-NO
  -p tcp -m multiport --dports 53,853 -j CLAW-NO
  -p udp -m multiport --dports 53,853 -j CLAW-NO
  -p tcp -m tcp --dport 25 -j CLAW-NO
  -p udp -m udp --dport 25 -j CLAW-NO
  -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN
  -m set --match-set claw-i0-nets* dst -j RETURN
  -m set --match-set claw-i0-netports* dst,dst -j RETURN
  -m set --match-set claw-i0-names* dst -j RETURN
  -m set --match-set claw-i0-nameports* dst,dst -j RETURN
  -p tcp -m set ! --match-set claw-i0-refused* dst,dst -j SET --add-set claw-i0-refused* dst,dst --exist
  -p udp -m set ! --match-set claw-i0-refused* dst,dst -j SET --add-set claw-i0-refused* dst,dst --exist
  -j CLAW-NO
security CLAW-E0
  -p tcp -m multiport --dports 25 -j CLAW-NO
  -p udp -m multiport --dports 25 -j CLAW-NO
  -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN
  -m set --match-set claw-i0-nets* dst -j RETURN
  -m set --match-set claw-i0-netports* dst,dst -j RETURN
  -m set --match-set claw-i0-names* dst -j RETURN
  -m set --match-set claw-i0-nameports* dst,dst -j RETURN
  -p tcp -m set ! --match-set claw-i0-refused* dst,dst -j SET --add-set claw-i0-refused* dst,dst --exist
  -p udp -m set ! --match-set claw-i0-refused* dst,dst -j SET --add-set claw-i0-refused* dst,dst --exist
  -j CLAW-NO
");
}

#[test]
fn a_list_that_is_tried_is_looked_at_once() {
    check_beside(&open(), &listed(Mode::Observed), "
claw-i0-nets4 hash:net: 192.0.2.0/24
claw-i0-netports4 hash:net,port: 198.51.100.7,tcp:443 198.51.100.7,udp:443
claw-i0-names4 hash:ip: live, 300 s, at most 16384
claw-i0-nameports4 hash:ip,port: live, 300 s, at most 16384
claw-i0-refused4 hash:ip,port: live, 604800 s, counted, at most 4096
claw-i0-nets6 hash:net: 8000::/1 ::/1
claw-i0-netports6 hash:net,port: 2001:db8::/32,tcp:443 2001:db8::/32,tcp:8443 2001:db8::/32,udp:443 2001:db8::/32,udp:8443
claw-i0-names6 hash:ip: live, 300 s, at most 16384
claw-i0-nameports6 hash:ip,port: live, 300 s, at most 16384
claw-i0-refused6 hash:ip,port: live, 604800 s, counted, at most 4096
security CLAW-E0
  -p tcp -m multiport --dports 25 -j CLAW-NO
  -p udp -m multiport --dports 25 -j CLAW-NO
  -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN
  -m set --match-set claw-i0-nets* dst -j RETURN
  -m set --match-set claw-i0-netports* dst,dst -j RETURN
  -m set --match-set claw-i0-names* dst -j RETURN
  -m set --match-set claw-i0-nameports* dst,dst -j RETURN
  -p tcp -m set ! --match-set claw-i0-refused* dst,dst -j SET --add-set claw-i0-refused* dst,dst --exist
  -p udp -m set ! --match-set claw-i0-refused* dst,dst -j SET --add-set claw-i0-refused* dst,dst --exist
  -j RETURN
");
}

#[test]
fn the_web_port_through_a_tunnel_only() {
    check(
        &with_host(HostPolicy { web: WebAccess::Loopback, ..HostPolicy::default() }),
        "
filter CLAW-WEB
  -j DROP
",
    );
}

#[test]
fn the_web_port_through_an_interface_only() {
    let through = Access { interfaces: [interface("tailscale0")].into(), ..Access::default() };
    let host = HostPolicy { web: WebAccess::Reachable(through), ..HostPolicy::default() };
    check(
        &with_host(host),
        "
filter CLAW-WEB
  -i tailscale0 -j RETURN
  -j DROP
",
    );
}

#[test]
fn sources_for_everything() {
    let through = Access {
        interfaces: [interface("wg0"), interface("wg1")].into(),
        ..access(["198.51.100.0/24"])
    };
    let udp = ExtraPort { protocol: Protocol::Udp, port: port(51820), access: Access::default() };
    let host = HostPolicy {
        ssh: SshPolicy { access: access(["203.0.113.0/24"]), ..SshPolicy::default() },
        web: WebAccess::Reachable(access(["203.0.113.0/24", "2001:db8::/32"])),
        extra: vec![udp, ExtraPort { protocol: Protocol::Tcp, port: port(9100), access: through }],
        blocked: BTreeSet::new(),
    };
    check(&Effective { ssh_ports: ports([22, 2222]), ..with_host(host) }, "
claw-ssh4 hash:net: 203.0.113.0/24
claw-web4 hash:net: 203.0.113.0/24
claw-extra1-4 hash:net: 198.51.100.0/24
claw-ssh6 hash:net: nothing
claw-web6 hash:net: 2001:db8::/32
claw-extra1-6 hash:net: nothing
raw CLAW-PRE
  -i lo -j RETURN
  ! -i claw-+ -p tcp -m tcp --dport 22 -j RETURN
  ! -i claw-+ -p tcp -m tcp --dport 2222 -j RETURN
  -i claw-+ -g CLAW-SRC
4 -s 10.201.0.0/16 -j DROP
4 -d 10.201.0.0/16 -j DROP
4 -d 127.0.0.0/8 -j DROP
6 -d ::1/128 -j DROP
filter CLAW-SSH
  -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN
  -m set ! --match-set claw-ssh* src -j DROP
  -m set --match-set claw-banned* src -j DROP
4 -m hashlimit --hashlimit-above 6/min --hashlimit-burst 10 --hashlimit-mode srcip --hashlimit-name claw-ssh* --hashlimit-htable-expire 120000 -j DROP
6 -m hashlimit --hashlimit-above 6/min --hashlimit-burst 10 --hashlimit-mode srcip --hashlimit-name claw-ssh* --hashlimit-htable-expire 120000 --hashlimit-srcmask 64 -j DROP
  -j RETURN
filter CLAW-WEB
  -m set ! --match-set claw-web* src -j DROP
  -j RETURN
filter CLAW-IN
  -i lo -j RETURN
  ! -i claw-+ -p tcp -m tcp --dport 22 -g CLAW-SSH
  ! -i claw-+ -p tcp -m tcp --dport 2222 -g CLAW-SSH
  -i claw-+ -g CLAW-C2H
  -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN
  -m conntrack --ctstate INVALID -j DROP
4 -p icmp -m icmp --icmp-type 8 -m limit --limit 10/sec --limit-burst 20 -j RETURN
4 -p udp -m udp --sport 67 --dport 68 -j RETURN
6 -p ipv6-icmp -j RETURN
6 -d fe80::/64 -p udp -m udp --dport 546 -j RETURN
  -p tcp -m tcp --dport 8080 -g CLAW-WEB
  -p udp -m udp --dport 51820 -j RETURN
  -i wg0 -p tcp -m tcp --dport 9100 -m set --match-set claw-extra1-* src -j RETURN
  -i wg1 -p tcp -m tcp --dport 9100 -m set --match-set claw-extra1-* src -j RETURN
  -j DROP
security CLAW-SSH
  -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN
  -m set ! --match-set claw-ssh* src -j DROP
  -m set --match-set claw-banned* src -j DROP
  -j RETURN
");
}

#[test]
fn blocked_sources_still_reach_ssh() {
    let blocked = cidrs(["192.0.2.0/24", "0.0.0.0/0", "2001:db8::1/128"]);
    check(
        &with_host(HostPolicy { blocked, ..HostPolicy::default() }),
        "
claw-blocked4 hash:net: 0.0.0.0/1 128.0.0.0/1 192.0.2.0/24
claw-blocked6 hash:net: 2001:db8::1
raw CLAW-PRE
  -i lo -j RETURN
  ! -i claw-+ -p tcp -m tcp --dport 22 -j RETURN
  -i claw-+ -g CLAW-SRC
4 -p udp -m udp --sport 67 --dport 68 -j RETURN
6 -p ipv6-icmp -m icmp6 --icmpv6-type 133 -j RETURN
6 -p ipv6-icmp -m icmp6 --icmpv6-type 134 -j RETURN
6 -p ipv6-icmp -m icmp6 --icmpv6-type 135 -j RETURN
6 -p ipv6-icmp -m icmp6 --icmpv6-type 136 -j RETURN
6 -d fe80::/64 -p udp -m udp --dport 546 -j RETURN
  -m set --match-set claw-blocked* src -j DROP
4 -s 10.201.0.0/16 -j DROP
4 -d 10.201.0.0/16 -j DROP
4 -d 127.0.0.0/8 -j DROP
6 -d ::1/128 -j DROP
",
    );
}
