//! What the kernel says of the firewall.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use super::{Allowlist, Family, HostPolicy, InterfaceName, NetworkPolicy, Port, Protocol, Table};
use crate::name::InstanceName;

/// What the rules must know of the host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Surroundings {
    /// TCP ports on which sshd listens on other than loopback addresses; empty when it cannot be told.
    pub ssh_ports: BTreeSet<Port>,
    /// Interfaces that exist.
    pub interfaces: BTreeSet<InterfaceName>,
    /// iptables' version and backend, such as "1.8.9 (nf_tables)".
    pub backend: String,
    /// Somebody uses legacy tables: their changes give no events and are polled for.
    pub legacy: bool,
}

/// How often a rule was met since it was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleCounter {
    /// Family of the table.
    pub family: Family,
    /// The table.
    pub table: Table,
    /// The chain, one of ours.
    pub chain: String,
    /// The rule as `iptables-save` prints it, without `-A CHAIN `.
    pub rule: String,
    /// Packets; for rules that only new connections meet, attempts.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// An entry of a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetEntry {
    /// As `ipset save` prints it, such as `192.0.2.1,tcp:443`.
    pub value: String,
    /// How long it stays; `None`: for ever.
    pub expires_in: Option<Duration>,
    /// Packets that met it, where the set counts.
    pub packets: u64,
}

/// A connection that the kernel tracks.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flow {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Who began it.
    pub source: IpAddr,
    /// Its source port.
    pub source_port: u16,
    /// With whom.
    pub destination: IpAddr,
    /// On which port.
    pub port: u16,
}

/// Everything that an operator may want to see of a host's firewall.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FirewallDetail {
    /// iptables' version and backend.
    pub backend: String,
    /// What may come in.
    pub host: HostPolicy,
    /// Ports of SSH in force.
    pub ssh_ports: BTreeSet<Port>,
    /// Ports of the reverse proxy in force.
    pub web_ports: BTreeSet<Port>,
    /// Every instance.
    pub instances: BTreeMap<InstanceName, InstanceDetail>,
    /// Our rules with their counters, IPv4 and IPv6, as `iptables-save -c` prints them; at most 1 MiB each,
    /// cut at a line.
    pub rules: [String; 2],
}

/// One instance's part of a [`FirewallDetail`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceDetail {
    /// Its bridge.
    pub bridge: String,
    /// What its network may do.
    pub policy: NetworkPolicy,
    /// Destinations that its allowlist refused, or would have refused, most packets first; at most 256.
    pub refused: Vec<RefusedDestination>,
    /// The list that would have refused none of them; absent unless it has an allowlist.
    pub proposal: Option<Allowlist>,
}

/// A destination outside an allowlist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedDestination {
    /// Where.
    pub address: IpAddr,
    /// How.
    pub protocol: Protocol,
    /// On which port.
    pub port: Port,
    /// Attempts, as packets.
    pub packets: u64,
    /// Names that were resolved to it, as far as known.
    pub names: BTreeSet<String>,
}
