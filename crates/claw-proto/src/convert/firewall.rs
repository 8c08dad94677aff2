//! The firewall's policies on the wire, shared by the API and the agent's stream.
//!
//! Paths of violations are relative to the message: `ssh.sources[1]`, `egress.allowlist.names[0].ports[2]`.
//! What parses is then judged as a whole by [`claw_core::firewall::check`], so that whoever holds a policy
//! from here holds a good one. What hosts report of their firewalls is in [`detail`].

use std::collections::BTreeSet;
use std::fmt::Display;
use std::time::Duration;

use claw_core::firewall::{
    Access, AllowedName, AllowedNetwork, Allowlist, BruteForce, Cidr, DomainPattern, Egress,
    ExtraPort, HostPolicy, InterfaceName, Mode, NetworkPolicy, Port, Protocol, Reach, SshPolicy,
    WebAccess, default_denied_ports,
};

use super::time::{duration_from_wire, duration_to_wire};
use super::violation::Violations;
use crate::node::v1 as node;

pub mod detail;

/// What may come in to a host, every default spelled out.
#[must_use]
pub fn host_policy_to_wire(policy: &HostPolicy) -> node::HostFirewall {
    node::HostFirewall {
        ssh: Some(ssh_to_wire(&policy.ssh)),
        web: Some(web_to_wire(&policy.web)),
        extra: policy.extra.iter().map(extra_to_wire).collect(),
        blocked: texts(&policy.blocked),
    }
}

/// What may come in to a host.
///
/// # Errors
/// Every wrong field at once.
pub fn host_policy_from_wire(wire: &node::HostFirewall) -> Result<HostPolicy, Violations> {
    let mut v = Violations::default();
    let ssh = wire.ssh.as_ref().map_or_else(SshPolicy::default, |ssh| ssh_from_wire(&mut v, ssh));
    let web = wire.web.as_ref().map_or_else(WebAccess::default, |web| web_from_wire(&mut v, web));
    let mut extra = Vec::new();
    for (index, port) in wire.extra.iter().enumerate() {
        extra.extend(extra_from_wire(&mut v, &format!("extra[{index}]"), port));
    }
    let blocked = set(&mut v, "blocked", &wire.blocked, Cidr::parse);
    let policy = HostPolicy { ssh, web, extra, blocked };
    v.into_result().map(|()| policy)
}

/// What the network of an instance may do, every default spelled out.
#[must_use]
pub fn network_policy_to_wire(policy: &NetworkPolicy) -> node::NetworkPolicy {
    let allowlist = match &policy.egress.reach {
        Reach::Open => None,
        Reach::Allowlist(list) => Some(allowlist_to_wire(list)),
    };
    let denied_ports = node::DeniedPorts { ports: numbers(&policy.egress.denied_ports) };
    node::NetworkPolicy {
        egress: Some(node::Egress { denied_ports: Some(denied_ports), allowlist }),
        web_sources: texts(&policy.web_sources),
    }
}

/// What the network of an instance may do.
///
/// # Errors
/// Every wrong field at once.
pub fn network_policy_from_wire(wire: &node::NetworkPolicy) -> Result<NetworkPolicy, Violations> {
    let mut v = Violations::default();
    let egress = wire
        .egress
        .as_ref()
        .map_or_else(Egress::default, |egress| egress_from_wire(&mut v, egress));
    let web_sources = set(&mut v, "web_sources", &wire.web_sources, Cidr::parse);
    let policy = NetworkPolicy { egress, web_sources };
    v.into_result().map(|()| policy)
}

/// The only destinations of an instance.
#[must_use]
pub fn allowlist_to_wire(list: &Allowlist) -> node::Allowlist {
    let network = |allowed: &AllowedNetwork| node::AllowedNetwork {
        network: allowed.network.to_string(),
        ports: numbers(&allowed.ports),
    };
    let name = |allowed: &AllowedName| node::AllowedName {
        pattern: allowed.pattern.to_string(),
        ports: numbers(&allowed.ports),
    };
    let mode = match list.mode {
        Mode::Enforced => node::AllowlistMode::Enforced,
        Mode::Observed => node::AllowlistMode::Observed,
    };
    node::Allowlist {
        networks: list.networks.iter().map(network).collect(),
        names: list.names.iter().map(name).collect(),
        mode: mode.into(),
    }
}

/// The only destinations of an instance; `None` when something is wrong, which is then noted.
pub(super) fn allowlist_from_wire(
    v: &mut Violations,
    field: &str,
    wire: &node::Allowlist,
) -> Option<Allowlist> {
    let mut networks = Vec::new();
    for (index, allowed) in wire.networks.iter().enumerate() {
        let field = format!("{field}.networks[{index}]");
        let network = v.take(&format!("{field}.network"), Cidr::parse(&allowed.network));
        let ports = ports(v, &format!("{field}.ports"), &allowed.ports);
        networks.extend(network.map(|network| AllowedNetwork { network, ports }));
    }
    let mut names = Vec::new();
    for (index, allowed) in wire.names.iter().enumerate() {
        let field = format!("{field}.names[{index}]");
        let pattern = v.take(&format!("{field}.pattern"), DomainPattern::parse(&allowed.pattern));
        let ports = ports(v, &format!("{field}.ports"), &allowed.ports);
        names.extend(pattern.map(|pattern| AllowedName { pattern, ports }));
    }
    let mode = match node::AllowlistMode::try_from(wire.mode) {
        Ok(node::AllowlistMode::Unspecified | node::AllowlistMode::Enforced) => Mode::Enforced,
        Ok(node::AllowlistMode::Observed) => Mode::Observed,
        Err(_) => {
            v.push(&format!("{field}.mode"), unknown(wire.mode));
            return None;
        }
    };
    Some(Allowlist { networks, names, mode })
}

/// A transport protocol.
pub(super) fn protocol_to_wire(protocol: Protocol) -> i32 {
    match protocol {
        Protocol::Tcp => node::Protocol::Tcp.into(),
        Protocol::Udp => node::Protocol::Udp.into(),
    }
}

/// A transport protocol.
pub(super) fn protocol_from_wire(v: &mut Violations, field: &str, wire: i32) -> Option<Protocol> {
    match node::Protocol::try_from(wire) {
        Ok(node::Protocol::Tcp) => Some(Protocol::Tcp),
        Ok(node::Protocol::Udp) => Some(Protocol::Udp),
        Ok(node::Protocol::Unspecified) => {
            v.push(field, "must be TCP or UDP");
            None
        }
        Err(_) => {
            v.push(field, unknown(wire));
            None
        }
    }
}

/// A port.
pub(super) fn port(v: &mut Violations, field: &str, wire: u32) -> Option<Port> {
    let port = u16::try_from(wire).ok().and_then(Port::new);
    if port.is_none() {
        v.push(field, format!("must be a port from 1 to 65535, got {wire}"));
    }
    port
}

/// A list of ports, each once.
pub(super) fn ports(v: &mut Violations, field: &str, wire: &[u32]) -> BTreeSet<Port> {
    let mut ports = BTreeSet::new();
    for (index, number) in wire.iter().enumerate() {
        let field = format!("{field}[{index}]");
        if port(v, &field, *number).is_some_and(|port| !ports.insert(port)) {
            v.push(&field, format!("{number} appears twice"));
        }
    }
    ports
}

/// Ports as numbers.
pub(super) fn numbers(ports: &BTreeSet<Port>) -> Vec<u32> {
    ports.iter().map(|port| u32::from(port.number())).collect()
}

fn ssh_to_wire(ssh: &SshPolicy) -> node::SshPolicy {
    node::SshPolicy {
        ports: numbers(&ssh.ports),
        sources: texts(&ssh.access.sources),
        interfaces: texts(&ssh.access.interfaces),
        brute_force: Some(node::BruteForce {
            failures: Some(ssh.brute_force.failures),
            window: Some(duration_to_wire(ssh.brute_force.window)),
            ban: Some(duration_to_wire(ssh.brute_force.ban)),
        }),
    }
}

fn ssh_from_wire(v: &mut Violations, wire: &node::SshPolicy) -> SshPolicy {
    SshPolicy {
        ports: ports(v, "ssh.ports", &wire.ports),
        access: access(v, "ssh", &wire.sources, &wire.interfaces),
        brute_force: brute_force(v, wire.brute_force.as_ref()),
    }
}

fn brute_force(v: &mut Violations, wire: Option<&node::BruteForce>) -> BruteForce {
    let default = BruteForce::default();
    let Some(wire) = wire else { return default };
    let mut duration = |field, wire: Option<&prost_types::Duration>, default: Duration| {
        wire.and_then(|wire| v.take(field, duration_from_wire(wire))).unwrap_or(default)
    };
    BruteForce {
        failures: wire.failures.unwrap_or(default.failures),
        window: duration("ssh.brute_force.window", wire.window.as_ref(), default.window),
        ban: duration("ssh.brute_force.ban", wire.ban.as_ref(), default.ban),
    }
}

fn web_to_wire(web: &WebAccess) -> node::WebAccess {
    match web {
        WebAccess::Reachable(access) => node::WebAccess {
            exposure: node::WebExposure::Reachable.into(),
            sources: texts(&access.sources),
            interfaces: texts(&access.interfaces),
        },
        WebAccess::Loopback => node::WebAccess {
            exposure: node::WebExposure::Loopback.into(),
            ..node::WebAccess::default()
        },
    }
}

fn web_from_wire(v: &mut Violations, wire: &node::WebAccess) -> WebAccess {
    let access = access(v, "web", &wire.sources, &wire.interfaces);
    match node::WebExposure::try_from(wire.exposure) {
        Ok(node::WebExposure::Unspecified | node::WebExposure::Reachable) => {
            WebAccess::Reachable(access)
        }
        Ok(node::WebExposure::Loopback) => {
            let conditions =
                [("web.sources", wire.sources.len()), ("web.interfaces", wire.interfaces.len())];
            for (field, _) in conditions.into_iter().filter(|(_, entries)| *entries > 0) {
                v.push(field, "must be empty when the exposure is LOOPBACK");
            }
            WebAccess::Loopback
        }
        Err(_) => {
            v.push("web.exposure", unknown(wire.exposure));
            WebAccess::Loopback
        }
    }
}

fn extra_to_wire(extra: &ExtraPort) -> node::ExtraPort {
    node::ExtraPort {
        protocol: protocol_to_wire(extra.protocol),
        port: u32::from(extra.port.number()),
        sources: texts(&extra.access.sources),
        interfaces: texts(&extra.access.interfaces),
    }
}

fn extra_from_wire(v: &mut Violations, field: &str, wire: &node::ExtraPort) -> Option<ExtraPort> {
    let protocol = protocol_from_wire(v, &format!("{field}.protocol"), wire.protocol);
    let port = port(v, &format!("{field}.port"), wire.port);
    let access = access(v, field, &wire.sources, &wire.interfaces);
    Some(ExtraPort { protocol: protocol?, port: port?, access })
}

fn egress_from_wire(v: &mut Violations, wire: &node::Egress) -> Egress {
    let denied = wire.denied_ports.as_ref();
    let denied_ports = denied.map_or_else(default_denied_ports, |denied| {
        ports(v, "egress.denied_ports.ports", &denied.ports)
    });
    let list = wire.allowlist.as_ref();
    let list = list.and_then(|list| allowlist_from_wire(v, "egress.allowlist", list));
    Egress { denied_ports, reach: list.map_or(Reach::Open, Reach::Allowlist) }
}

fn access(v: &mut Violations, field: &str, sources: &[String], interfaces: &[String]) -> Access {
    Access {
        sources: set(v, &format!("{field}.sources"), sources, Cidr::parse),
        interfaces: set(v, &format!("{field}.interfaces"), interfaces, InterfaceName::parse),
    }
}

/// Parses every entry of a list; each may be there once.
fn set<T: Ord, E: Display>(
    v: &mut Violations,
    field: &str,
    wire: &[String],
    parse: impl Fn(&str) -> Result<T, E>,
) -> BTreeSet<T> {
    let mut set = BTreeSet::new();
    for (index, text) in wire.iter().enumerate() {
        let field = format!("{field}[{index}]");
        if v.take(&field, parse(text)).is_some_and(|value| !set.insert(value)) {
            v.push(&field, format!("{text} appears twice"));
        }
    }
    set
}

fn texts<T: Display>(set: &BTreeSet<T>) -> Vec<String> {
    set.iter().map(ToString::to_string).collect()
}

fn unknown(wire: i32) -> String {
    format!("unknown value {wire}")
}

#[cfg(test)]
pub(super) mod tests;
