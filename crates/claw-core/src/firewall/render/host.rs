//! What comes in to the host.
//!
//! SSH is decided before everything that drops, so that no policy locks operators out by its order; the
//! conditions of SSH itself (sources, interfaces, bans, the limit) are all in its own chain.

use super::chains::{BRIDGES, CONTAINER_TO_HOST, SOURCES, SSH, WEB};
use super::{Place, sets};
use crate::firewall::{Access, Effective, Family, HostSet, InterfaceName, Table, WebAccess};

/// An open connection goes on.
const ESTABLISHED: &str = "-m conntrack --ctstate RELATED,ESTABLISHED -j RETURN";

/// raw PREROUTING: blocked sources, and addresses that nobody outside may use.
pub(super) fn prerouting(effective: &Effective, family: Family) -> Vec<String> {
    let mut rules = vec!["-i lo -j RETURN".to_owned()];
    rules.extend(ssh_ports(effective, "-j RETURN"));
    rules.push(format!("-i {BRIDGES} -g {SOURCES}"));
    if !effective.host.blocked.is_empty() {
        let set = HostSet::Blocked.name(family);
        rules.extend(link(family));
        rules.push(format!("-m set --match-set {set} src -j DROP"));
    }
    match family {
        Family::V4 => {
            let pool = effective.pool;
            rules.push(format!("-s {pool} -j DROP"));
            rules.push(format!("-d {pool} -j DROP"));
            rules.push("-d 127.0.0.0/8 -j DROP".to_owned());
        }
        Family::V6 => rules.push("-d ::1/128 -j DROP".to_owned()),
    }
    rules
}

/// What SSH itself needs of the link: without neighbour discovery (RFC 4861, types 133 to 136) and a lease,
/// a blocked router or DHCP server would end the host's addresses, and SSH with them.
fn link(family: Family) -> Vec<String> {
    match family {
        Family::V4 => vec!["-p udp -m udp --sport 67 --dport 68 -j RETURN".to_owned()],
        Family::V6 => (133..=136)
            .map(|kind| format!("-p ipv6-icmp -m icmp6 --icmpv6-type {kind} -j RETURN"))
            .chain(["-d fe80::/64 -p udp -m udp --dport 546 -j RETURN".to_owned()])
            .collect(),
    }
}

/// INPUT.
pub(super) fn input(effective: &Effective, family: Family) -> Vec<String> {
    let mut rules = vec!["-i lo -j RETURN".to_owned()];
    rules.extend(ssh_ports(effective, &format!("-g {SSH}")));
    rules.push(format!("-i {BRIDGES} -g {CONTAINER_TO_HOST}"));
    rules.push(ESTABLISHED.to_owned());
    rules.push("-m conntrack --ctstate INVALID -j DROP".to_owned());
    let necessary: &[&str] = match family {
        // Echo requests; the answer to the host's DHCP client, which is no answer to conntrack.
        Family::V4 => &[
            "-p icmp -m icmp --icmp-type 8 -m limit --limit 10/sec --limit-burst 20 -j RETURN",
            "-p udp -m udp --sport 67 --dport 68 -j RETURN",
        ],
        // Neighbour discovery and path MTU (RFC 4890); DHCPv6 (RFC 8415, client port 546).
        Family::V6 => {
            &["-p ipv6-icmp -j RETURN", "-d fe80::/64 -p udp -m udp --dport 546 -j RETURN"]
        }
    };
    rules.extend(necessary.iter().map(|rule| (*rule).to_owned()));
    for port in &effective.web_ports {
        rules.push(format!("-p tcp -m tcp --dport {port} -g {WEB}"));
    }
    rules.extend(extra(effective, family));
    rules.push("-j DROP".to_owned());
    rules
}

/// New connections to SSH. The limit is in the copy only: one that counted in both tables would count
/// twice, and the guarantee is not about guessing passwords.
pub(super) fn ssh(effective: &Effective, place: Place) -> Vec<String> {
    let access = &effective.host.ssh.access;
    let mut rules = vec![ESTABLISHED.to_owned()];
    rules.extend(strangers(access, HostSet::Ssh, place.family));
    let banned = HostSet::Banned.name(place.family);
    rules.push(format!("-m set --match-set {banned} src -j DROP"));
    if place.table == Table::Filter {
        rules.push(limit(place.family));
    }
    rules.extend(interfaces(access));
    rules
}

/// New connections to the reverse proxy.
pub(super) fn web(effective: &Effective, family: Family) -> Vec<String> {
    match &effective.host.web {
        WebAccess::Loopback => vec!["-j DROP".to_owned()],
        WebAccess::Reachable(access) => {
            let mut rules: Vec<String> =
                strangers(access, HostSet::Web, family).into_iter().collect();
            rules.extend(interfaces(access));
            rules
        }
    }
}

/// Ports that the policy opens besides.
fn extra(effective: &Effective, family: Family) -> Vec<String> {
    let mut rules = Vec::new();
    for (set, port) in sets::extra(effective) {
        let sources = if port.access.sources.is_empty() {
            String::new()
        } else {
            format!(" -m set --match-set {} src", set.name(family))
        };
        let protocol = port.protocol;
        let accept =
            format!("-p {protocol} -m {protocol} --dport {}{sources} -j RETURN", port.port);
        let through = |interface: &InterfaceName| format!("-i {interface} {accept}");
        if port.access.interfaces.is_empty() {
            rules.push(accept);
        } else {
            rules.extend(port.access.interfaces.iter().map(through));
        }
    }
    rules
}

/// A rule for each port of SSH, for packets from everywhere but instances.
fn ssh_ports(effective: &Effective, verdict: &str) -> Vec<String> {
    let rule = |port| format!("! -i {BRIDGES} -p tcp -m tcp --dport {port} {verdict}");
    effective.ssh_ports.iter().map(rule).collect()
}

/// Drops sources that are not on a list; a family without addresses on it is then closed altogether.
fn strangers(access: &Access, set: HostSet, family: Family) -> Option<String> {
    let listed = !access.sources.is_empty();
    listed.then(|| format!("-m set ! --match-set {} src -j DROP", set.name(family)))
}

/// The last rules of a chain: through which interfaces one may come.
fn interfaces(access: &Access) -> Vec<String> {
    if access.interfaces.is_empty() {
        return vec!["-j RETURN".to_owned()];
    }
    let mut rules: Vec<String> =
        access.interfaces.iter().map(|name| format!("-i {name} -j RETURN")).collect();
    rules.push("-j DROP".to_owned());
    rules
}

/// At most ten new connections at once and six a minute after that, from an address or from a /64, which
/// is what one customer of IPv6 holds (RFC 6177). A mask of 32 is not printed, hence not said.
fn limit(family: Family) -> String {
    let mask = match family {
        Family::V4 => "",
        Family::V6 => " --hashlimit-srcmask 64",
    };
    format!(
        "-m hashlimit --hashlimit-above 6/min --hashlimit-burst 10 --hashlimit-mode srcip \
         --hashlimit-name claw-ssh{} --hashlimit-htable-expire 120000{mask} -j DROP",
        family.digit()
    )
}
