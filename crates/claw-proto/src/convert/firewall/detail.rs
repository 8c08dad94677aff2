//! What hosts say of their firewalls: how it stands, what was refused, and everything when asked.
//!
//! A [`FirewallDetail`] can be large: [`detail_to_wire`] keeps it within [`MAX_DETAIL_BYTES`] and says what
//! it left out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use claw_core::firewall::{FirewallDetail, InstanceDetail, Port, Protocol, RefusedDestination};
use claw_core::name::InstanceName;
use claw_core::report::{BlockedTraffic, FirewallReport};
use claw_core::stamp::Generation;
use prost::Message as _;

use super::super::session::text;
use super::super::violation::Violations;
use super::{
    Reading, allowlist_to_wire, host_policy_to_wire, network_policy_to_wire, numbers, port, ports,
    protocol_from_wire, protocol_to_wire,
};
use crate::node::v1 as node;

/// Most bytes of an encoded `FirewallDetail`: 3 MiB, below the 4 MiB that gRPC's clients take by default.
pub const MAX_DETAIL_BYTES: usize = 3 * 1024 * 1024;
/// Most bytes of one family's rules.
const MAX_RULES: usize = 1024 * 1024;
/// Most refused destinations of one instance.
const MAX_REFUSED: usize = 256;
/// Most names of one refused destination.
const MAX_NAMES: usize = 16;

/// How the firewall stands.
#[must_use]
pub fn report_to_wire(report: &FirewallReport) -> node::FirewallStatus {
    node::FirewallStatus {
        applied_generation: report.applied.map_or(0, |generation| generation.0),
        problem: report.problem.as_deref().map(text).unwrap_or_default(),
        backend: text(&report.backend),
        repairs: report.repairs,
        ingress_refused: report.ingress_refused,
        login_failures: report.login_failures,
        banned: report.banned,
    }
}

/// How the firewall stands.
#[must_use]
pub fn report_from_wire(wire: &node::FirewallStatus) -> FirewallReport {
    FirewallReport {
        applied: (wire.applied_generation > 0).then_some(Generation(wire.applied_generation)),
        problem: (!wire.problem.is_empty()).then(|| text(&wire.problem)),
        backend: text(&wire.backend),
        repairs: wire.repairs,
        ingress_refused: wire.ingress_refused,
        login_failures: wire.login_failures,
        banned: wire.banned,
    }
}

/// What was refused to an instance.
#[must_use]
pub fn blocked_to_wire(blocked: &BlockedTraffic) -> node::BlockedTraffic {
    let port = |(&(protocol, port), &attempts): (&(Protocol, Port), &u64)| node::BlockedPort {
        protocol: protocol_to_wire(protocol),
        port: u32::from(port.number()),
        attempts,
    };
    node::BlockedTraffic {
        ports: blocked.ports.iter().map(port).collect(),
        outside: blocked.outside,
        closed: blocked.closed,
        dns_queries: blocked.dns_queries,
        dns_refused: blocked.dns_refused,
    }
}

/// What was refused to an instance.
///
/// # Errors
/// Every wrong field at once.
pub fn blocked_from_wire(wire: &node::BlockedTraffic) -> Result<BlockedTraffic, Violations> {
    let mut v = Violations::default();
    let mut counts = BTreeMap::new();
    for (index, entry) in wire.ports.iter().enumerate() {
        let protocol =
            protocol_from_wire(&mut v, &format!("ports[{index}].protocol"), entry.protocol);
        let port = port(&mut v, &format!("ports[{index}].port"), entry.port);
        if let (Some(protocol), Some(port)) = (protocol, port) {
            counts.insert((protocol, port), entry.attempts);
        }
    }
    let blocked = BlockedTraffic {
        ports: counts,
        outside: wire.outside,
        closed: wire.closed,
        dns_queries: wire.dns_queries,
        dns_refused: wire.dns_refused,
    };
    v.into_result().map(|()| blocked)
}

/// Everything of a host's firewall, within [`MAX_DETAIL_BYTES`].
///
/// What is too large is left out, the largest and least needed first: rules beyond 1 MiB per family,
/// policies of instances, their refused destinations and proposals, rules altogether.
#[must_use]
pub fn detail_to_wire(detail: &FirewallDetail) -> node::FirewallDetail {
    let [v4, v6] = &detail.rules;
    let mut wire = node::FirewallDetail {
        backend: text(&detail.backend),
        host: Some(host_policy_to_wire(&detail.host)),
        ssh_ports: numbers(&detail.ssh_ports),
        web_ports: numbers(&detail.web_ports),
        instances: detail.instances.iter().map(instance_to_wire).collect(),
        rules_v4: v4.clone(),
        rules_v6: v6.clone(),
        omitted: Vec::new(),
    };
    for (rules, what) in [(&mut wire.rules_v4, "IPv4"), (&mut wire.rules_v6, "IPv6")] {
        if cut_at_line(rules, MAX_RULES) {
            wire.omitted.push(format!("{what} rules beyond {MAX_RULES} bytes"));
        }
    }
    for (what, leave_out) in LARGE_PARTS {
        if wire.encoded_len() <= MAX_DETAIL_BYTES {
            break;
        }
        leave_out(&mut wire);
        wire.omitted.push(what.to_owned());
    }
    wire
}

/// Everything of a host's firewall; what was left out is as its default. Policies are not judged: they are
/// what the host has.
///
/// # Errors
/// Every wrong field at once.
pub fn detail_from_wire(wire: &node::FirewallDetail) -> Result<FirewallDetail, Violations> {
    let mut v = Violations::default();
    let mut read = Reading::default();
    let host = wire.host.as_ref().map(|host| read.host_policy(host)).unwrap_or_default();
    v.extend(read.faults.below("host"));
    let ssh_ports = ports(&mut v, "ssh_ports", &wire.ssh_ports);
    let web_ports = ports(&mut v, "web_ports", &wire.web_ports);
    let mut instances = BTreeMap::new();
    for (index, instance) in wire.instances.iter().enumerate() {
        let field = format!("instances[{index}]");
        let name = v.take(&format!("{field}.name"), InstanceName::parse(&instance.name));
        let parsed = instance_from_wire(&mut v, &field, instance);
        instances.extend(name.map(|name| (name, parsed)));
    }
    let rules = [&wire.rules_v4, &wire.rules_v6].map(|rules| {
        let mut rules = rules.clone();
        cut_at_line(&mut rules, MAX_RULES);
        rules
    });
    let backend = text(&wire.backend);
    let detail = FirewallDetail { backend, host, ssh_ports, web_ports, instances, rules };
    v.into_result().map(|()| detail)
}

type LeaveOut = fn(&mut node::FirewallDetail);

/// What is left out of a detail that is too large, in this order.
const LARGE_PARTS: [(&str, LeaveOut); 4] = [
    ("policies of instances", |wire| each(wire, |instance| instance.policy = None)),
    ("refused destinations", |wire| each(wire, |instance| instance.refused.clear())),
    ("proposals", |wire| each(wire, |instance| instance.proposal = None)),
    ("rules", |wire| {
        wire.rules_v4.clear();
        wire.rules_v6.clear();
    }),
];

fn each(wire: &mut node::FirewallDetail, change: impl Fn(&mut node::InstanceFirewall)) {
    wire.instances.iter_mut().for_each(change);
}

fn instance_to_wire((name, instance): (&InstanceName, &InstanceDetail)) -> node::InstanceFirewall {
    let refused = |refused: &RefusedDestination| node::RefusedDestination {
        address: refused.address.to_string(),
        protocol: protocol_to_wire(refused.protocol),
        port: u32::from(refused.port.number()),
        packets: refused.packets,
        names: refused.names.iter().take(MAX_NAMES).map(|name| text(name)).collect(),
    };
    node::InstanceFirewall {
        name: name.to_string(),
        bridge: text(&instance.bridge),
        policy: Some(network_policy_to_wire(&instance.policy)),
        refused: instance.refused.iter().take(MAX_REFUSED).map(refused).collect(),
        proposal: instance.proposal.as_ref().map(allowlist_to_wire),
    }
}

fn instance_from_wire(
    v: &mut Violations,
    field: &str,
    wire: &node::InstanceFirewall,
) -> InstanceDetail {
    let mut read = Reading::default();
    let policy = wire.policy.as_ref().map(|policy| read.network_policy(policy));
    v.extend(std::mem::take(&mut read.faults).below(&format!("{field}.policy")));
    let proposal = wire.proposal.as_ref().map(|list| read.allowlist("proposal", list));
    v.extend(read.faults.below(field));
    let mut refused = Vec::new();
    for (index, destination) in wire.refused.iter().take(MAX_REFUSED).enumerate() {
        let field = format!("{field}.refused[{index}]");
        refused.extend(refused_from_wire(v, &field, destination));
    }
    InstanceDetail {
        bridge: text(&wire.bridge),
        policy: policy.unwrap_or_default(),
        refused,
        proposal,
    }
}

fn refused_from_wire(
    v: &mut Violations,
    field: &str,
    wire: &node::RefusedDestination,
) -> Option<RefusedDestination> {
    let address = v.take(&format!("{field}.address"), wire.address.parse::<IpAddr>());
    let protocol = protocol_from_wire(v, &format!("{field}.protocol"), wire.protocol);
    let port = port(v, &format!("{field}.port"), wire.port);
    let names: BTreeSet<String> =
        wire.names.iter().take(MAX_NAMES).map(|name| text(name)).collect();
    Some(RefusedDestination {
        address: address?,
        protocol: protocol?,
        port: port?,
        packets: wire.packets,
        names,
    })
}

/// Cuts a text after its last whole line within `max` bytes; true when something was cut.
fn cut_at_line(text: &mut String, max: usize) -> bool {
    if text.len() <= max {
        return false;
    }
    let mut kept = 0;
    for line in text.split_inclusive('\n') {
        if kept + line.len() > max {
            break;
        }
        kept += line.len();
    }
    text.truncate(kept);
    true
}
