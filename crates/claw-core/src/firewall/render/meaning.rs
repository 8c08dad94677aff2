//! What it means when a rule was met.

use super::chains::{
    CONTAINER_TO_HOST, EGRESS, FORWARD, INPUT, PREROUTING, REFUSE, SOURCES, SSH, WEB,
};
use super::instance::NAME_SERVERS;
use crate::address::Slot;
use crate::firewall::{HostSet, Port, Protocol};

/// Why a packet met a rule that refuses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RuleMeaning {
    /// An instance tried a denied port.
    DeniedPort {
        /// The instance's slot.
        slot: Slot,
        /// How.
        protocol: Protocol,
        /// Which.
        port: Port,
    },
    /// An instance tried one of its denied ports: in the guarantee, where they share a rule.
    DeniedPorts {
        /// The instance's slot.
        slot: Slot,
        /// How.
        protocol: Protocol,
    },
    /// An instance tried a destination that is not on its list.
    Outside {
        /// The instance's slot.
        slot: Slot,
    },
    /// An instance reached a destination that is not on its list, which is only tried.
    Unlisted {
        /// The instance's slot.
        slot: Slot,
    },
    /// An instance tried what is closed always: metadata, other instances, the host, name servers.
    Closed {
        /// The instance's slot.
        slot: Slot,
    },
    /// The same, in the guarantee, where instances share the rules.
    ClosedToAll,
    /// An instance spoke with an address that is not its own.
    Spoofed {
        /// The instance's slot.
        slot: Slot,
    },
    /// A bridge that is no instance's, or a packet of one that belongs to no connection.
    Uncovered,
    /// Somebody spoke to an address that is not to be reached from outside, such as a container's.
    Misrouted,
    /// A blocked source.
    Blocked,
    /// A banned source tried SSH.
    SshBanned,
    /// A source tried SSH too often.
    SshLimited,
    /// SSH from where it is not allowed.
    SshElsewhere,
    /// The web port from where it is not allowed.
    WebElsewhere,
    /// The host, on no port that is open.
    Ingress,
}

/// What it means that a rule of ours, in any table, was met; `None` for rules that refuse nothing, for
/// the common end of refused packets (which were counted before), and for what is not ours.
///
/// `rule` is as `iptables-save` prints it, without `-A CHAIN `.
#[must_use]
pub fn meaning(chain: &str, rule: &str) -> Option<RuleMeaning> {
    let (matches, verdict) = split(rule)?;
    if !matches!(verdict, "DROP" | REFUSE) {
        let slot = slot_after(chain, "CLAW-E")?;
        return (rule == "-j RETURN").then_some(RuleMeaning::Unlisted { slot });
    }
    let names_set = |set: HostSet| {
        let [v4, v6] = crate::firewall::Family::BOTH.map(|family| set.name(family));
        matches.iter().any(|word| *word == v4 || *word == v6)
    };
    let bridge = || after(&matches, "-i").and_then(|name| slot_after(name, "claw-i"));
    match chain {
        PREROUTING if names_set(HostSet::Blocked) => Some(RuleMeaning::Blocked),
        PREROUTING => Some(RuleMeaning::Misrouted),
        SOURCES => {
            Some(bridge().map_or(RuleMeaning::Uncovered, |slot| RuleMeaning::Spoofed { slot }))
        }
        CONTAINER_TO_HOST => {
            Some(bridge().map_or(RuleMeaning::Uncovered, |slot| RuleMeaning::Closed { slot }))
        }
        EGRESS if matches.is_empty() => Some(RuleMeaning::Uncovered),
        EGRESS => Some(RuleMeaning::ClosedToAll),
        FORWARD if matches.contains(&"-i") => Some(RuleMeaning::Uncovered),
        FORWARD => Some(RuleMeaning::Misrouted),
        SSH if names_set(HostSet::Banned) => Some(RuleMeaning::SshBanned),
        SSH if matches.contains(&"hashlimit") => Some(RuleMeaning::SshLimited),
        SSH => Some(RuleMeaning::SshElsewhere),
        WEB => Some(RuleMeaning::WebElsewhere),
        INPUT => Some(RuleMeaning::Ingress),
        REFUSE => None,
        _ => slot_after(chain, "CLAW-E").map(|slot| of_instance(slot, &matches)),
    }
}

/// A rule of an instance's chain that refuses.
fn of_instance(slot: Slot, matches: &[&str]) -> RuleMeaning {
    if matches.is_empty() {
        return RuleMeaning::Outside { slot };
    }
    let protocol = match after(matches, "-p") {
        Some("tcp") => Some(Protocol::Tcp),
        Some("udp") => Some(Protocol::Udp),
        _ => None,
    };
    let port = after(matches, "--dport").and_then(|text| Port::new(text.parse().ok()?));
    let several = after(matches, "--dports").filter(|ports| *ports != NAME_SERVERS);
    match (protocol, port, several) {
        (Some(protocol), Some(port), _) => RuleMeaning::DeniedPort { slot, protocol, port },
        (Some(protocol), None, Some(_)) => RuleMeaning::DeniedPorts { slot, protocol },
        _ => RuleMeaning::Closed { slot },
    }
}

/// A rule's matches and the target of its jump.
fn split(rule: &str) -> Option<(Vec<&str>, &str)> {
    let mut words: Vec<&str> = rule.split(' ').collect();
    let verdict = words.pop()?;
    (words.pop()? == "-j").then_some((words, verdict))
}

/// The word after another one.
fn after<'a>(words: &[&'a str], flag: &str) -> Option<&'a str> {
    words
        .iter()
        .position(|word| *word == flag)
        .and_then(|at| words.get(at.checked_add(1)?))
        .copied()
}

/// The slot that a name ends with.
fn slot_after(name: &str, prefix: &str) -> Option<Slot> {
    let digits = name.strip_prefix(prefix)?;
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    if plain { Slot::new(digits.parse().ok()?) } else { None }
}
