//! A host's firewall, and what it refused, as clawctl prints them.

use std::collections::BTreeMap;
use std::fmt;

use claw_proto::fleet::v1 as fleet;
use claw_proto::node::v1 as node;
use serde::Serialize;

use super::enum_text;
use crate::file::firewall::{
    BruteForceDocument, ExposureDocument, ExtraDocument, FirewallDocument, ProtocolDocument,
};
use crate::file::network::{AllowlistDocument, EgressDocument, ModeDocument, NetworkDocument};
use crate::table::Table;

/// The firewall of a host as it is in force.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct FirewallView {
    pub(crate) host: String,
    /// What is wanted, every default spelled out.
    desired: FirewallDocument,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<FirewallStatusView>,
    backend: String,
    /// What is in force.
    effective: FirewallDocument,
    ssh_ports: Vec<u32>,
    web_ports: Vec<u32>,
    pub(crate) instances: Vec<InstanceFirewallView>,
    pub(crate) rules_v4: String,
    pub(crate) rules_v6: String,
    /// What the host left out because its answer would have been too large.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) omitted: Vec<String>,
}

/// One instance's part.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct InstanceFirewallView {
    name: String,
    bridge: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    network: Option<NetworkDocument>,
    #[serde(skip_serializing_if = "Option::is_none")]
    blocked: Option<BlockedView>,
    refused: Vec<RefusedView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    proposal: Option<AllowlistDocument>,
}

/// A destination outside an allowlist.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct RefusedView {
    address: String,
    protocol: String,
    port: u32,
    packets: u64,
    names: Vec<String>,
}

/// How a firewall stands.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct FirewallStatusView {
    applied_generation: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    problem: String,
    backend: String,
    repairs: u64,
    ingress_refused: u64,
    login_failures: u64,
    banned: u32,
}

/// What was refused to an instance since it was created.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct BlockedView {
    ports: Vec<BlockedPortView>,
    outside: u64,
    closed: u64,
    dns_queries: u64,
    dns_refused: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct BlockedPortView {
    protocol: String,
    port: u32,
    attempts: u64,
}

impl FirewallView {
    pub(crate) fn new(host: &str, wire: fleet::HostFirewallView) -> Self {
        let detail = wire.detail.unwrap_or_default();
        Self {
            host: host.to_owned(),
            desired: wire.desired.unwrap_or_default().into(),
            status: wire.status.map(FirewallStatusView::from),
            backend: detail.backend,
            effective: detail.host.unwrap_or_default().into(),
            ssh_ports: detail.ssh_ports,
            web_ports: detail.web_ports,
            instances: detail.instances.into_iter().map(InstanceFirewallView::from).collect(),
            rules_v4: detail.rules_v4,
            rules_v6: detail.rules_v6,
            omitted: detail.omitted,
        }
    }

    /// Adds what instances reported.
    pub(crate) fn join(&mut self, blocked: &mut BTreeMap<String, BlockedView>) {
        for instance in &mut self.instances {
            instance.blocked = blocked.remove(&instance.name);
        }
    }

    /// The network policy that would have refused an instance nothing.
    pub(crate) fn proposal(&self, instance: &str) -> Option<NetworkDocument> {
        let found = self.instances.iter().find(|one| one.name == instance)?;
        let allowlist = Some(found.proposal.clone()?);
        let mut network = found.network.clone().unwrap_or_default();
        let egress = network.egress.take().unwrap_or_default();
        network.egress = Some(EgressDocument { allowlist, ..egress });
        Some(network)
    }

    /// Everything but the instances, for people.
    pub(crate) fn table(&self) -> Table {
        let status = self.status.as_ref();
        let of = |count: fn(&FirewallStatusView) -> u64| {
            status.map(|status| count(status).to_string()).unwrap_or_default()
        };
        let ssh = self.effective.ssh.clone().unwrap_or_default();
        let web = self.effective.web.clone().unwrap_or_default();
        let web_from = match web.exposure {
            ExposureDocument::Reachable => from(&web.sources, &web.interfaces),
            ExposureDocument::Loopback => "from the host itself".to_owned(),
        };
        let mut pairs = vec![
            ("host", self.host.clone()),
            ("state", status.map(ToString::to_string).unwrap_or_default()),
            ("backend", self.backend.clone()),
            ("ssh", format!("{} {}", ports(&self.ssh_ports), from(&ssh.sources, &ssh.interfaces))),
            ("logins", ssh.brute_force.map(|against| bans(&against)).unwrap_or_default()),
            ("web", format!("{} {web_from}", ports(&self.web_ports))),
        ];
        pairs.extend(self.effective.extra.iter().map(|extra| ("extra", extra_text(extra))));
        pairs.extend([
            ("blocked", self.effective.blocked.join(", ")),
            ("banned now", of(|status| u64::from(status.banned))),
            ("failed logins", of(|status| status.login_failures)),
            ("refused", of(|status| status.ingress_refused)),
            ("repairs", of(|status| status.repairs)),
            ("left out", self.omitted.join(", ")),
        ]);
        Table::of_pairs(pairs)
    }

    /// The instances, for people.
    pub(crate) fn instance_table(&self) -> Table {
        let mut table = Table::new(&[
            "INSTANCE", "BRIDGE", "EGRESS", "DENIED", "OUTSIDE", "CLOSED", "NAMES", "REFUSED",
        ]);
        for instance in &self.instances {
            let blocked = instance.blocked.as_ref();
            let of = |count: fn(&BlockedView) -> u64| {
                blocked.map(|blocked| count(blocked).to_string()).unwrap_or_default()
            };
            table.row(vec![
                instance.name.clone(),
                instance.bridge.clone(),
                instance.network.as_ref().map(egress_text).unwrap_or_default(),
                of(|blocked| blocked.ports.iter().map(|port| port.attempts).sum()),
                of(|blocked| blocked.outside),
                of(|blocked| blocked.closed),
                of(|blocked| blocked.dns_queries),
                of(|blocked| blocked.dns_refused),
            ]);
        }
        table
    }
}

impl FirewallStatusView {
    /// What somebody should look at.
    pub(crate) fn alarm(&self) -> String {
        if self.problem.is_empty() { String::new() } else { format!("firewall: {}", self.problem) }
    }
}

impl fmt::Display for FirewallStatusView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.applied_generation {
            0 => f.write_str("no policy in force yet")?,
            generation => write!(f, "generation {generation} in force")?,
        }
        if self.problem.is_empty() { Ok(()) } else { write!(f, ", problem: {}", self.problem) }
    }
}

impl BlockedView {
    /// What it tried in vain; empty when nothing.
    pub(crate) fn attempts(&self) -> String {
        let ports = self.ports.iter();
        let mut parts: Vec<String> = ports
            .map(|port| format!("{}/{} {} times", port.port, port.protocol, port.attempts))
            .collect();
        for (count, what) in [(self.outside, "outside its list"), (self.closed, "always closed")] {
            if count > 0 {
                parts.push(format!("{what} {count} times"));
            }
        }
        parts.join(", ")
    }

    /// What it asked its name server; empty when nothing.
    pub(crate) fn names(&self) -> String {
        match (self.dns_queries, self.dns_refused) {
            (0, _) => String::new(),
            (queries, 0) => queries.to_string(),
            (queries, refused) => format!("{queries}, {refused} refused"),
        }
    }
}

impl From<node::InstanceFirewall> for InstanceFirewallView {
    fn from(wire: node::InstanceFirewall) -> Self {
        let refused = |wire: node::RefusedDestination| RefusedView {
            address: wire.address,
            protocol: protocol_text(wire.protocol),
            port: wire.port,
            packets: wire.packets,
            names: wire.names,
        };
        Self {
            name: wire.name,
            bridge: wire.bridge,
            network: wire.policy.map(NetworkDocument::from),
            blocked: None,
            refused: wire.refused.into_iter().map(refused).collect(),
            proposal: wire.proposal.map(AllowlistDocument::from),
        }
    }
}

impl From<node::FirewallStatus> for FirewallStatusView {
    fn from(wire: node::FirewallStatus) -> Self {
        Self {
            applied_generation: wire.applied_generation,
            problem: wire.problem,
            backend: wire.backend,
            repairs: wire.repairs,
            ingress_refused: wire.ingress_refused,
            login_failures: wire.login_failures,
            banned: wire.banned,
        }
    }
}

impl From<node::BlockedTraffic> for BlockedView {
    fn from(wire: node::BlockedTraffic) -> Self {
        let port = |wire: node::BlockedPort| BlockedPortView {
            protocol: protocol_text(wire.protocol),
            port: wire.port,
            attempts: wire.attempts,
        };
        Self {
            ports: wire.ports.into_iter().map(port).collect(),
            outside: wire.outside,
            closed: wire.closed,
            dns_queries: wire.dns_queries,
            dns_refused: wire.dns_refused,
        }
    }
}

/// `PROTOCOL_TCP` is `tcp`.
fn protocol_text(number: i32) -> String {
    let name = node::Protocol::try_from(number).ok();
    enum_text(name.map(|protocol| protocol.as_str_name()), "PROTOCOL_", number)
}

fn ports(ports: &[u32]) -> String {
    ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn from(sources: &[String], interfaces: &[String]) -> String {
    let sources = match sources {
        [] => "from anywhere".to_owned(),
        sources => format!("from {}", sources.join(", ")),
    };
    match interfaces {
        [] => sources,
        interfaces => format!("{sources} through {}", interfaces.join(", ")),
    }
}

fn extra_text(extra: &ExtraDocument) -> String {
    let protocol = match extra.protocol {
        ProtocolDocument::Tcp => "tcp",
        ProtocolDocument::Udp => "udp",
    };
    format!("{}/{protocol} {}", extra.port, from(&extra.sources, &extra.interfaces))
}

fn bans(against: &BruteForceDocument) -> String {
    match (against.failures, against.window, against.ban) {
        (Some(0), _, _) => "nobody is banned".to_owned(),
        (Some(failures), Some(window), Some(ban)) => {
            format!("{failures} failures within {window}: banned for {ban}")
        }
        _ => String::new(),
    }
}

/// Where an instance may go, in a few words.
fn egress_text(network: &NetworkDocument) -> String {
    let allowlist = network.egress.as_ref().and_then(|egress| egress.allowlist.as_ref());
    let Some(list) = allowlist else { return "open".to_owned() };
    let mode = match list.mode {
        ModeDocument::Enforced => "enforced",
        ModeDocument::Observed => "observed",
    };
    format!("{mode}, {} destinations", list.networks.len() + list.names.len())
}
