//! What is wrong with a policy: every fault at once, with its field.
//!
//! Texts were parsed before; here stand the rules between values: blocks that overlap, ports that are denied and
//! allowed at once, lists that are longer than a host should hold, and everything by which operators could lock
//! themselves out of SSH. Two more things keep SSH open and are not repeated here: the rules decide SSH first, so
//! that `blocked` never closes it, and answers to connections that are open always pass.
//!
//! Legal on purpose: an allowlist without entries that is enforced (nothing may go out), `0.0.0.0/0` and `::/0` in
//! `blocked` (only SSH is left; applying it reverts by itself where the coordinator is out of reach then), and
//! an allowed `0.0.0.0/0` with ports.
//!
//! Where to start: [`host`] and [`network`] for what everybody can know, [`effective`] for what only the host
//! itself knows.

#[cfg(test)]
mod fuzz;
mod problem;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub use problem::{AddressKind, PolicyFault, PortUse, Problem};

use super::flow::{closed_destinations, is_closed_port};
use super::{
    Access, AllowedName, AllowedNetwork, Allowlist, BruteForce, Cidr, Effective, ExtraPort,
    HostPolicy, InterfaceName, NetworkPolicy, Port, Protocol, Reach, SshPolicy, Surroundings,
    WebAccess,
};

/// Most blocks in an allowlist: what the benchmarks of facts/firewall.md go to (43 ms to swap in), at about
/// 30 bytes each without ports an eleventh of [`crate::host::MAX_STATE_BYTES`].
pub const MAX_NETWORKS: usize = 20_000;

/// Most entries that the blocks of an allowlist become in the kernel: one for a block without ports, two (TCP
/// and UDP) for each port of a block. About 10 MiB of kernel memory.
pub const MAX_NETWORK_ENTRIES: usize = 131_072;

/// Most names in an allowlist.
pub const MAX_NAMES: usize = 1_024;

/// Most ports of one entry of an allowlist.
pub const MAX_ENTRY_PORTS: usize = 16;

/// Most blocks in a list of sources.
pub const MAX_SOURCES: usize = 4_096;

/// Most interfaces in a list.
pub const MAX_INTERFACES: usize = 16;

/// Most ports of SSH.
pub const MAX_SSH_PORTS: usize = 8;

/// Most further ports of a host.
pub const MAX_EXTRA: usize = 32;

/// Most denied ports of an instance.
pub const MAX_DENIED: usize = 64;

/// Failures that lead to a ban, when bans are on. Fewer than three would ban a person who mistypes: ssh(1) asks
/// for a password three times (`NumberOfPasswordPrompts`, ssh_config(5)).
pub const FAILURES: [u32; 2] = [3, 100];

/// The window of failures and the length of a ban: 1 s (ipset counts in seconds) to a day.
pub const DURATIONS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(86_400)];

/// Most faults that are told of one policy; a last one counts what was left out.
pub const MAX_FAULTS: usize = 100;

/// Where sshd listens unless it is told otherwise (sshd_config(5)).
const SSH_PORT: u16 = 22;

/// What is wrong with the policy of a host. Fields as the API calls them, such as `ssh.sources[2]`; the index into
/// a list of sources or ports counts in ascending order, because the policy holds sets.
#[must_use]
pub fn host(policy: &HostPolicy) -> Vec<PolicyFault> {
    let mut faults = Faults::default();
    let HostPolicy { ssh, web, extra, blocked } = policy;
    faults.length("ssh.ports", ssh.ports.len(), MAX_SSH_PORTS);
    faults.access("ssh", &ssh.access, &AddressKind::NOT_A_NEIGHBOUR);
    if !ssh.access.interfaces.is_empty() && ssh.access.interfaces.iter().all(is_of_containers) {
        faults.add("ssh.interfaces", Problem::ContainersOnly);
    }
    faults.brute_force(ssh.brute_force);
    if let WebAccess::Reachable(access) = web {
        faults.access("web", access, &AddressKind::ALL);
    }
    faults.length("extra", extra.len(), MAX_EXTRA);
    let mut uses: BTreeMap<(Protocol, Port), PortUse> =
        ssh.ports.iter().map(|port| ((Protocol::Tcp, *port), PortUse::Ssh)).collect();
    for (index, ExtraPort { protocol, port, access }) in extra.iter().enumerate() {
        faults.access(&format!("extra[{index}]"), access, &AddressKind::NOT_A_NEIGHBOUR);
        if let Some(by) = uses.get(&(*protocol, *port)) {
            let problem = Problem::PortTaken { protocol: *protocol, port: *port, by: *by };
            faults.add(format!("extra[{index}].port"), problem);
        }
        uses.entry((*protocol, *port)).or_insert(PortUse::Extra(index));
    }
    faults.blocks("blocked", blocked, &AddressKind::ALL);
    faults.told()
}

/// What is wrong with the policy of an instance's network. Fields as the API calls them, such as
/// `egress.allowlist.names[3].pattern`.
#[must_use]
pub fn network(policy: &NetworkPolicy) -> Vec<PolicyFault> {
    let mut faults = Faults::default();
    let denied = &policy.egress.denied_ports;
    faults.length("egress.denied_ports", denied.len(), MAX_DENIED);
    if let Reach::Allowlist(Allowlist { networks, names, mode: _ }) = &policy.egress.reach {
        faults.allowed_networks(networks, denied);
        faults.allowed_names(names, denied);
    }
    faults.sources("web_sources", &policy.web_sources, &AddressKind::ALL);
    faults.told()
}

/// What is wrong with a policy on this host, beside what [`host`] and [`network`] find. Fields of instances
/// begin with `instances[NAME].`.
#[must_use]
pub fn effective(effective: &Effective, surroundings: &Surroundings) -> Vec<PolicyFault> {
    let mut faults = Faults::default();
    let HostPolicy { ssh, web, extra, blocked } = &effective.host;
    faults.ssh_reachable(ssh, &effective.ssh_ports, surroundings);
    for port in effective.ssh_ports.intersection(&effective.web_ports) {
        let problem = Problem::PortTaken { protocol: Protocol::Tcp, port: *port, by: PortUse::Web };
        faults.add("ssh.ports", problem);
    }
    for (index, extra) in extra.iter().enumerate() {
        let by = match (extra.protocol, extra.port) {
            (Protocol::Tcp, port) if effective.web_ports.contains(&port) => Some(PortUse::Web),
            (Protocol::Tcp, port)
                if effective.ssh_ports.contains(&port) && !ssh.ports.contains(&port) =>
            {
                Some(PortUse::Ssh)
            }
            _ => None,
        };
        if let Some(by) = by {
            let problem = Problem::PortTaken { protocol: extra.protocol, port: extra.port, by };
            faults.add(format!("extra[{index}].port"), problem);
        }
    }
    let pool = effective.pool.block();
    let mut slots = BTreeMap::new();
    for (name, instance) in &effective.instances {
        let slot = instance.network.slot();
        if let Some(with) = slots.insert(slot, name) {
            let problem = Problem::SlotTwice { slot: slot.number(), with: with.clone() };
            faults.add(format!("instances[{name}]"), problem);
        }
    }
    faults.not_of_instances("ssh.sources", &ssh.access.sources, pool);
    if let WebAccess::Reachable(access) = web {
        faults.not_of_instances("web.sources", &access.sources, pool);
    }
    for (index, extra) in extra.iter().enumerate() {
        let field = format!("extra[{index}].sources");
        faults.not_of_instances(&field, &extra.access.sources, pool);
    }
    faults.not_of_instances("blocked", blocked, pool);
    for (name, instance) in &effective.instances {
        let field = format!("instances[{name}].web_sources");
        faults.not_of_instances(&field, &instance.policy.web_sources, pool);
        let Reach::Allowlist(list) = &instance.policy.egress.reach else { continue };
        for (index, AllowedNetwork { network, ports: _ }) in list.networks.iter().enumerate() {
            if is_within(*network, pool) {
                let field = format!("instances[{name}].egress.allowlist.networks[{index}].network");
                faults.add(field, Problem::Closed { network: *network, within: pool });
            }
        }
    }
    faults.told()
}

/// Whether entries with ports `outer` let through everything that entries with ports `inner` do; none means all.
pub(super) fn ports_cover(outer: &BTreeSet<Port>, inner: &BTreeSet<Port>) -> bool {
    outer.is_empty() || (!inner.is_empty() && inner.is_subset(outer))
}

/// Whether every address of a block lies in another.
pub(super) fn is_within(network: Cidr, other: Cidr) -> bool {
    other.prefix() <= network.prefix() && other.contains(network.address())
}

/// The names above the one of a pattern's text, nearest first: whose wildcards mean it too.
pub(super) fn names_above(pattern: &str) -> impl Iterator<Item = &str> {
    fn above(name: &str) -> Option<&str> {
        name.split_once('.').map(|(_, above)| above)
    }
    let name = pattern.strip_prefix("*.").unwrap_or(pattern);
    std::iter::successors(above(name), |name| above(name))
}

/// Interfaces that Docker makes for containers (docker-network-create(1), observed): no operator comes through them.
fn is_of_containers(interface: &InterfaceName) -> bool {
    matches!(interface.as_str(), "docker0" | "docker_gwbridge")
        || interface.as_str().starts_with("veth")
}

#[derive(Default)]
struct Faults {
    told: Vec<PolicyFault>,
    omitted: usize,
}

impl Faults {
    fn add(&mut self, field: impl Into<String>, problem: Problem) {
        if self.told.len() < MAX_FAULTS {
            self.told.push(PolicyFault { field: field.into(), problem });
        } else {
            self.omitted += 1;
        }
    }

    fn told(mut self) -> Vec<PolicyFault> {
        if self.omitted > 0
            && let Some(last) = self.told.last()
        {
            let field = last.field.clone();
            let problem = Problem::AndMore { faults: self.omitted };
            self.told.push(PolicyFault { field, problem });
        }
        self.told
    }

    fn length(&mut self, field: &str, actual: usize, max: usize) {
        if actual > max {
            self.add(field, Problem::TooMany { max, actual });
        }
    }

    fn access(&mut self, field: &str, access: &Access, senseless: &[AddressKind]) {
        self.sources(&format!("{field}.sources"), &access.sources, senseless);
        let interfaces = format!("{field}.interfaces");
        self.length(&interfaces, access.interfaces.len(), MAX_INTERFACES);
    }

    fn sources(&mut self, field: &str, sources: &BTreeSet<Cidr>, senseless: &[AddressKind]) {
        for (index, network) in sources.iter().enumerate() {
            if network.prefix() == 0 {
                self.add(format!("{field}[{index}]"), Problem::Everyone { network: *network });
            }
        }
        self.blocks(field, sources, senseless);
    }

    fn blocks(&mut self, field: &str, blocks: &BTreeSet<Cidr>, senseless: &[AddressKind]) {
        self.length(field, blocks.len(), MAX_SOURCES);
        // A set of blocks is sorted by address, then by prefix: what holds a block stands before it, and the
        // stack has every block that may still hold the next one, the innermost on top.
        let mut around: Vec<Cidr> = Vec::new();
        for (index, network) in blocks.iter().copied().enumerate() {
            let field = || format!("{field}[{index}]");
            if let Some(kind) = AddressKind::of(network)
                && senseless.contains(&kind)
            {
                self.add(field(), Problem::NoSource { network, kind });
            }
            while around.pop_if(|top| !top.contains(network.address())).is_some() {}
            if let Some(within) = around.last() {
                self.add(field(), Problem::Overlap { network, within: *within });
            }
            around.push(network);
        }
    }

    fn brute_force(&mut self, policy: BruteForce) {
        let BruteForce { failures, window, ban } = policy;
        if failures == 0 {
            return;
        }
        let [min, max] = FAILURES;
        if !(min..=max).contains(&failures) {
            self.add("ssh.brute_force.failures", Problem::Failures { min, max, actual: failures });
        }
        let [min, max] = DURATIONS;
        for (field, actual) in [("window", window), ("ban", ban)] {
            if !(min..=max).contains(&actual) {
                let field = format!("ssh.brute_force.{field}");
                self.add(field, Problem::Duration { min, max, actual });
            }
        }
    }

    fn allowed_networks(&mut self, networks: &[AllowedNetwork], denied: &BTreeSet<Port>) {
        const FIELD: &str = "egress.allowlist.networks";
        self.length(FIELD, networks.len(), MAX_NETWORKS);
        let entries = |entry: &AllowedNetwork| (2 * entry.ports.len()).max(1);
        let actual = networks.iter().map(entries).sum();
        if actual > MAX_NETWORK_ENTRIES {
            self.add(FIELD, Problem::TooManyEntries { max: MAX_NETWORK_ENTRIES, actual });
        }
        for (index, AllowedNetwork { network, ports }) in networks.iter().enumerate() {
            let field = format!("{FIELD}[{index}]");
            let closed = closed_destinations().find(|closed| is_within(*network, *closed));
            if let Some(within) = closed {
                let problem = Problem::Closed { network: *network, within };
                self.add(format!("{field}.network"), problem);
            } else if let Some(kind) = AddressKind::of(*network) {
                let problem = Problem::NoDestination { network: *network, kind };
                self.add(format!("{field}.network"), problem);
            }
            self.entry_ports(&field, ports, denied);
        }
        let mut order: Vec<(usize, &AllowedNetwork)> = networks.iter().enumerate().collect();
        order.sort_by_key(|(index, entry)| (entry.network, *index));
        let mut around: Vec<&AllowedNetwork> = Vec::new();
        for (index, entry) in order {
            let field = || format!("{FIELD}[{index}].network");
            let network = entry.network;
            while around.pop_if(|top| !top.network.contains(network.address())).is_some() {}
            if around.last().is_some_and(|top| top.network == network) {
                self.add(field(), Problem::NetworkTwice { network });
                continue;
            }
            let covering = around.iter().rev().find(|o| ports_cover(&o.ports, &entry.ports));
            if let Some(outer) = covering {
                self.add(field(), Problem::Overlap { network, within: outer.network });
            }
            around.push(entry);
        }
    }

    fn allowed_names(&mut self, names: &[AllowedName], denied: &BTreeSet<Port>) {
        const FIELD: &str = "egress.allowlist.names";
        self.length(FIELD, names.len(), MAX_NAMES);
        let mut seen: BTreeSet<String> = BTreeSet::new();
        let mut wildcards: BTreeMap<String, &AllowedName> = BTreeMap::new();
        for (index, entry) in names.iter().enumerate() {
            self.entry_ports(&format!("{FIELD}[{index}]"), &entry.ports, denied);
            let pattern = entry.pattern.to_string();
            if let Some(base) = pattern.strip_prefix("*.") {
                wildcards.entry(base.to_owned()).or_insert(entry);
            }
            if !seen.insert(pattern) {
                let pattern = entry.pattern.clone();
                self.add(format!("{FIELD}[{index}].pattern"), Problem::NameTwice { pattern });
            }
        }
        for (index, entry) in names.iter().enumerate() {
            let text = entry.pattern.to_string();
            let mut wildcards = names_above(&text).filter_map(|name| wildcards.get(name));
            if let Some(by) = wildcards.find(|by| ports_cover(&by.ports, &entry.ports)) {
                let problem =
                    Problem::NameCovered { pattern: entry.pattern.clone(), by: by.pattern.clone() };
                self.add(format!("{FIELD}[{index}].pattern"), problem);
            }
        }
    }

    fn entry_ports(&mut self, entry: &str, ports: &BTreeSet<Port>, denied: &BTreeSet<Port>) {
        let field = || format!("{entry}.ports");
        self.length(&field(), ports.len(), MAX_ENTRY_PORTS);
        for port in ports {
            if is_closed_port(port.number()) {
                self.add(field(), Problem::ClosedPort { port: *port });
            } else if denied.contains(port) {
                self.add(field(), Problem::DeniedAndAllowed { port: *port });
            }
        }
    }

    fn ssh_reachable(&mut self, ssh: &SshPolicy, ports: &BTreeSet<Port>, host: &Surroundings) {
        let listening = if host.ssh_ports.is_empty() {
            Port::new(SSH_PORT).into_iter().collect()
        } else {
            host.ssh_ports.clone()
        };
        for port in listening.difference(ports) {
            let problem = if host.ssh_ports.is_empty() {
                Problem::SshPortUnknown { port: *port }
            } else {
                Problem::SshPortMissing { port: *port }
            };
            self.add("ssh.ports", problem);
        }
        let wanted = &ssh.access.interfaces;
        if !wanted.is_empty() && wanted.is_disjoint(&host.interfaces) {
            let wanted = wanted.iter().map(InterfaceName::as_str).collect::<Vec<_>>().join(", ");
            self.add("ssh.interfaces", Problem::NoSuchInterface { wanted });
        }
    }

    fn not_of_instances(&mut self, field: &str, sources: &BTreeSet<Cidr>, pool: Cidr) {
        for (index, network) in sources.iter().copied().enumerate() {
            if is_within(network, pool) {
                let problem = Problem::InstanceSource { network, within: pool };
                self.add(format!("{field}[{index}]"), problem);
            }
        }
    }
}
