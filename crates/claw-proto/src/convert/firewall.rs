//! The firewall's policies on the wire, shared by the API and the agent's stream.
//!
//! Paths of violations are relative to the message: `ssh.sources[1]`, `egress.allowlist.names[0].ports[2]`.
//! What parses is also judged as a whole by [`claw_core::firewall::check`], so that whoever holds a policy
//! from here holds a good one. What hosts report of their firewalls is in [`detail`].

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::time::Duration;

use claw_core::firewall::{
    Access, AllowedName, AllowedNetwork, Allowlist, BruteForce, Cidr, DomainPattern, Egress,
    ExtraPort, HostPolicy, InterfaceName, Mode, NetworkPolicy, Port, Protocol, Reach, SshPolicy,
    WebAccess, check, default_denied_ports,
};

use place::Places;

use super::time::{duration_from_wire, duration_to_wire};
use super::violation::Violations;
use crate::node::v1 as node;

pub mod detail;
mod place;

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
    let mut read = Reading::default();
    let policy = read.host_policy(wire);
    read.judge(check::host(&policy));
    read.faults.into_result().map(|()| policy)
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
    let mut read = Reading::default();
    let policy = read.network_policy(wire);
    read.judge(check::network(&policy));
    read.faults.into_result().map(|()| policy)
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

fn extra_to_wire(extra: &ExtraPort) -> node::ExtraPort {
    node::ExtraPort {
        protocol: protocol_to_wire(extra.protocol),
        port: u32::from(extra.port.number()),
        sources: texts(&extra.access.sources),
        interfaces: texts(&extra.access.interfaces),
    }
}

/// Reads messages, notes every fault, and remembers where entries of lists stood.
#[derive(Debug, Default)]
pub(super) struct Reading {
    pub(super) faults: Violations,
    places: Places,
}

impl Reading {
    /// What may come in to a host, as far as it parses.
    pub(super) fn host_policy(&mut self, wire: &node::HostFirewall) -> HostPolicy {
        let ssh = wire.ssh.as_ref().map(|ssh| self.ssh(ssh)).unwrap_or_default();
        let web = wire.web.as_ref().map(|web| self.web(web)).unwrap_or_default();
        let (mut extra, mut places) = (Vec::new(), Vec::new());
        for (place, wire) in wire.extra.iter().enumerate() {
            if let Some(port) = self.extra(extra.len(), place, wire) {
                extra.push(port);
                places.push(place);
            }
        }
        self.places.note("extra".to_owned(), places);
        let blocked = self.set("blocked", "blocked", &wire.blocked, Cidr::parse);
        HostPolicy { ssh, web, extra, blocked }
    }

    /// What the network of an instance may do, as far as it parses.
    pub(super) fn network_policy(&mut self, wire: &node::NetworkPolicy) -> NetworkPolicy {
        let egress = wire.egress.as_ref().map(|egress| self.egress(egress)).unwrap_or_default();
        let web_sources = self.set("web_sources", "web_sources", &wire.web_sources, Cidr::parse);
        NetworkPolicy { egress, web_sources }
    }

    /// The only destinations of an instance, as far as they parse.
    pub(super) fn allowlist(&mut self, field: &str, wire: &node::Allowlist) -> Allowlist {
        let (mut networks, mut places) = (Vec::new(), Vec::new());
        for (place, allowed) in wire.networks.iter().enumerate() {
            let field = format!("{field}.networks[{place}]");
            let v = &mut self.faults;
            let network = v.take(&format!("{field}.network"), Cidr::parse(&allowed.network));
            let ports = ports(v, &format!("{field}.ports"), &allowed.ports);
            if let Some(network) = network {
                networks.push(AllowedNetwork { network, ports });
                places.push(place);
            }
        }
        self.places.note(format!("{field}.networks"), places);
        let (mut names, mut places) = (Vec::new(), Vec::new());
        for (place, allowed) in wire.names.iter().enumerate() {
            let field = format!("{field}.names[{place}]");
            let v = &mut self.faults;
            let pattern =
                v.take(&format!("{field}.pattern"), DomainPattern::parse(&allowed.pattern));
            let ports = ports(v, &format!("{field}.ports"), &allowed.ports);
            if let Some(pattern) = pattern {
                names.push(AllowedName { pattern, ports });
                places.push(place);
            }
        }
        self.places.note(format!("{field}.names"), places);
        let mode = match node::AllowlistMode::try_from(wire.mode) {
            Ok(node::AllowlistMode::Unspecified | node::AllowlistMode::Enforced) => Mode::Enforced,
            Ok(node::AllowlistMode::Observed) => Mode::Observed,
            Err(_) => {
                self.faults.push(&format!("{field}.mode"), unknown(wire.mode));
                Mode::Enforced
            }
        };
        Allowlist { networks, names, mode }
    }

    /// Adds faults between values, each where the caller wrote it.
    fn judge(&mut self, faults: Vec<check::PolicyFault>) {
        for fault in faults {
            self.faults.push(&self.places.in_message(&fault.field), fault.problem);
        }
    }

    fn ssh(&mut self, wire: &node::SshPolicy) -> SshPolicy {
        SshPolicy {
            ports: ports(&mut self.faults, "ssh.ports", &wire.ports),
            access: self.access("ssh", "ssh", &wire.sources, &wire.interfaces),
            brute_force: self.brute_force(wire.brute_force.as_ref()),
        }
    }

    fn brute_force(&mut self, wire: Option<&node::BruteForce>) -> BruteForce {
        let default = BruteForce::default();
        let Some(wire) = wire else { return default };
        let mut duration = |field, wire: Option<&prost_types::Duration>, default: Duration| {
            let parsed = wire.and_then(|wire| self.faults.take(field, duration_from_wire(wire)));
            parsed.unwrap_or(default)
        };
        BruteForce {
            failures: wire.failures.unwrap_or(default.failures),
            window: duration("ssh.brute_force.window", wire.window.as_ref(), default.window),
            ban: duration("ssh.brute_force.ban", wire.ban.as_ref(), default.ban),
        }
    }

    fn web(&mut self, wire: &node::WebAccess) -> WebAccess {
        let access = self.access("web", "web", &wire.sources, &wire.interfaces);
        match node::WebExposure::try_from(wire.exposure) {
            Ok(node::WebExposure::Unspecified | node::WebExposure::Reachable) => {
                WebAccess::Reachable(access)
            }
            Ok(node::WebExposure::Loopback) => {
                let given = [("sources", &wire.sources), ("interfaces", &wire.interfaces)];
                for (field, _) in given.into_iter().filter(|(_, entries)| !entries.is_empty()) {
                    let text = "must be empty when the exposure is LOOPBACK";
                    self.faults.push(&format!("web.{field}"), text);
                }
                WebAccess::Loopback
            }
            Err(_) => {
                self.faults.push("web.exposure", unknown(wire.exposure));
                WebAccess::Loopback
            }
        }
    }

    fn extra(&mut self, index: usize, place: usize, wire: &node::ExtraPort) -> Option<ExtraPort> {
        let field = format!("extra[{place}]");
        let v = &mut self.faults;
        let protocol = protocol_from_wire(v, &format!("{field}.protocol"), wire.protocol);
        let port = port(v, &format!("{field}.port"), wire.port);
        let kept = format!("extra[{index}]");
        let access = self.access(&kept, &field, &wire.sources, &wire.interfaces);
        Some(ExtraPort { protocol: protocol?, port: port?, access })
    }

    fn egress(&mut self, wire: &node::Egress) -> Egress {
        let denied = wire.denied_ports.as_ref();
        let denied_ports = denied.map_or_else(default_denied_ports, |denied| {
            ports(&mut self.faults, "egress.denied_ports.ports", &denied.ports)
        });
        let list = wire.allowlist.as_ref();
        let list = list.map(|list| self.allowlist("egress.allowlist", list));
        Egress { denied_ports, reach: list.map_or(Reach::Open, Reach::Allowlist) }
    }

    fn access(
        &mut self,
        kept: &str,
        field: &str,
        sources: &[String],
        interfaces: &[String],
    ) -> Access {
        let list = |name| (format!("{kept}.{name}"), format!("{field}.{name}"));
        let (kept_sources, field_sources) = list("sources");
        let (kept_interfaces, field_interfaces) = list("interfaces");
        Access {
            sources: self.set(&kept_sources, &field_sources, sources, Cidr::parse),
            interfaces: self.set(
                &kept_interfaces,
                &field_interfaces,
                interfaces,
                InterfaceName::parse,
            ),
        }
    }

    /// Parses every entry of a list; each may be there once. `kept` is the list's field in the policy,
    /// `field` in the message.
    fn set<T: Ord, E: Display>(
        &mut self,
        kept: &str,
        field: &str,
        wire: &[String],
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> BTreeSet<T> {
        let mut entries = BTreeMap::new();
        for (place, text) in wire.iter().enumerate() {
            let field = format!("{field}[{place}]");
            let Some(value) = self.faults.take(&field, parse(text)) else { continue };
            match entries.entry(value) {
                Entry::Vacant(free) => {
                    free.insert(place);
                }
                Entry::Occupied(_) => self.faults.push(&field, format!("{text} appears twice")),
            }
        }
        self.places.note(kept.to_owned(), entries.values().copied().collect());
        entries.into_keys().collect()
    }
}

fn texts<T: Display>(set: &BTreeSet<T>) -> Vec<String> {
    set.iter().map(ToString::to_string).collect()
}

fn unknown(wire: i32) -> String {
    format!("unknown value {wire}")
}

#[cfg(test)]
pub(super) mod tests;
