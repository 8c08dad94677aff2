//! Everything that an operator may want to see of the firewall, put together when asked.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use claw_core::firewall::{
    EffectiveInstance, Family, FirewallDetail, InstanceDetail, InstanceSet, Port, Protocol, Reach,
    RefusedDestination, RuleCounter, SetEntry, Table, proposal,
};
use claw_core::name::InstanceName;

use crate::agent::Agent;
use crate::logging::chain;
use crate::machine::Machine;
use crate::ports::{DnsCounters, FirewallError, Resolver as _, Traffic as _};
use crate::reconcile::deadline::within;

/// Reading it all; whoever asks waits for 5 s.
const READ: Duration = Duration::from_secs(4);
/// Most bytes of one family's rules (contract of [`FirewallDetail`]).
const MAX_RULES: usize = 1024 * 1024;
/// Most destinations of one instance (contract of [`InstanceDetail`]).
const MAX_REFUSED: usize = 256;

/// The firewall, as it is now. The error is for the person who asked.
pub(in crate::reconcile) async fn detail<M: Machine>(
    agent: &Agent<M>,
) -> Result<Box<FirewallDetail>, String> {
    let read = within(agent.machine.clock(), READ, read(agent)).await;
    read.map_err(|elapsed| chain(&elapsed))?
}

async fn read<M: Machine>(agent: &Agent<M>) -> Result<Box<FirewallDetail>, String> {
    let Some(effective) = agent.board.in_force().borrow().clone() else {
        return Err("no policy is in force yet".to_owned());
    };
    let names = agent.machine.resolver().counters().await.unwrap_or_else(|error| {
        tracing::warn!(error = chain(&error), "cannot read what the forwarder of names has seen");
        BTreeMap::new()
    });
    let counters = agent.machine.firewall().counters().await.map_err(|error| chain(&error))?;
    let mut detail = FirewallDetail {
        backend: agent.board.status().firewall.backend,
        host: effective.host.clone(),
        ssh_ports: effective.ssh_ports.clone(),
        web_ports: effective.web_ports.clone(),
        instances: BTreeMap::new(),
        rules: Family::BOTH.map(|family| rules(&counters, family)),
    };
    for (name, instance) in &effective.instances {
        let one =
            of_instance(agent, instance, names.get(name)).await.map_err(|error| chain(&error))?;
        detail.instances.insert(InstanceName::clone(name), one);
    }
    Ok(Box::new(detail))
}

async fn of_instance<M: Machine>(
    agent: &Agent<M>,
    instance: &EffectiveInstance,
    seen: Option<&DnsCounters>,
) -> Result<InstanceDetail, FirewallError> {
    let mut detail = InstanceDetail {
        bridge: instance.network.bridge(),
        policy: instance.policy.clone(),
        refused: Vec::new(),
        proposal: None,
    };
    let Reach::Allowlist(list) = &instance.policy.egress.reach else { return Ok(detail) };
    for family in Family::BOTH {
        let set = InstanceSet::Refused.name(instance.network.slot(), family);
        let entries = agent.machine.firewall().entries(&set).await?;
        detail.refused.extend(entries.iter().filter_map(|entry| destination(entry, seen)));
    }
    detail.refused.sort_by_key(|refused| std::cmp::Reverse(refused.packets));
    detail.refused.truncate(MAX_REFUSED);
    let denied = &instance.policy.egress.denied_ports;
    detail.proposal = Some(proposal::propose(list, denied, &detail.refused));
    Ok(detail)
}

/// An entry of a set of refused destinations, `address,protocol:port`.
fn destination(entry: &SetEntry, seen: Option<&DnsCounters>) -> Option<RefusedDestination> {
    let (address, rest) = entry.value.split_once(',')?;
    let (protocol, port) = rest.split_once(':')?;
    let address: IpAddr = address.parse().ok()?;
    let protocol = Protocol::BOTH.into_iter().find(|known| known.to_string() == protocol)?;
    let port = Port::new(port.parse().ok()?)?;
    let names: BTreeSet<String> = seen
        .into_iter()
        .flat_map(|seen| &seen.outside)
        .filter(|(_, addresses)| addresses.contains(&address))
        .map(|(name, _)| name.clone())
        .collect();
    Some(RefusedDestination { address, protocol, port, packets: entry.packets, names })
}

/// One family's rules as `iptables-save -c` prints them, without what is not ours.
fn rules(counters: &[RuleCounter], family: Family) -> String {
    let mut text = String::new();
    for table in Table::ALL {
        let ours = counters.iter().filter(|rule| rule.family == family && rule.table == table);
        for (index, rule) in ours.enumerate() {
            let heading = if index == 0 { format!("*{}\n", table.name()) } else { String::new() };
            let RuleCounter { packets, bytes, chain, rule, .. } = rule;
            let line = format!("{heading}[{packets}:{bytes}] -A {chain} {rule}\n");
            if text.len() + line.len() > MAX_RULES {
                return text;
            }
            text.push_str(&line);
        }
    }
    text
}
