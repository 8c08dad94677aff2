//! From policy to rules: one description for both families.
//!
//! Where to start: [`render`]. What a host lets in is described in `host`, what an instance may reach in
//! `instance`, the sets in `sets`; a description knows the [`Family`] and the [`Table`] it is rendered
//! for, and everything that differs between the four tables of a packet's way (two families, guarantee
//! and copy) differs there, in one place. Chains and rules have meanings ([`meaning()`]) so that whoever
//! reads counters parses no rule himself. Here nothing is decided that a policy could get wrong: SSH
//! comes before everything that drops, and what is closed always is closed before any list.
//!
//! Rules are what `iptables-save` prints, measured with 1.8.9 and 1.8.11 (nf_tables), which agree on
//! every rule used here.

mod chains;
mod host;
mod instance;
mod meaning;
mod sets;
#[cfg(test)]
pub(in crate::firewall) mod tests;
mod text;

pub use chains::{
    BRIDGES, CHAIN_PREFIX, CONTAINER_TO_HOST, EGRESS, FORWARD, INPUT, PREROUTING, REFUSE,
    SET_PREFIX, SOURCES, SSH, WEB, egress_chain,
};
pub use instance::METADATA;
pub use meaning::{RuleMeaning, meaning};
pub use sets::{BANNED_TIMEOUT, NAMES_TIMEOUT, REFUSED_TIMEOUT};
pub use text::sets_text;

use std::collections::BTreeMap;

use super::{
    Chain, Effective, EffectiveInstance, Family, FamilyRules, Hook, Ruleset, Table, TableRules,
};
use crate::address::Slot;

/// For which family and table a description is rendered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    family: Family,
    table: Table,
}

/// Everything of ours in the kernel for a policy. Total: two instances in one slot count as the later by
/// name, extra ports after the 256th stay closed (the policy's check refuses both).
#[must_use]
pub fn render(effective: &Effective) -> Ruleset {
    let slots: BTreeMap<Slot, &EffectiveInstance> =
        effective.instances.values().map(|instance| (instance.network.slot(), instance)).collect();
    let table = |family, table| {
        let place = Place { family, table };
        match table {
            Table::Raw => raw(effective, &slots, place),
            Table::Security | Table::Filter => judged(effective, &slots, place),
        }
    };
    let families = Family::BOTH.map(|family| FamilyRules {
        family,
        tables: Table::ALL.map(|name| table(family, name)).into(),
    });
    Ruleset { sets: sets::sets(effective, &slots), families }
}

/// The table in which a packet is first met.
fn raw(
    effective: &Effective,
    slots: &BTreeMap<Slot, &EffectiveInstance>,
    place: Place,
) -> TableRules {
    TableRules {
        table: place.table,
        chains: vec![
            chain(SOURCES, instance::sources(effective, slots, place.family)),
            chain(PREROUTING, host::prerouting(effective, place.family)),
        ],
        hooks: vec![hook("PREROUTING", PREROUTING)],
    }
}

/// The guarantee, or its copy that makes applications fail fast.
fn judged(
    effective: &Effective,
    slots: &BTreeMap<Slot, &EffectiveInstance>,
    place: Place,
) -> TableRules {
    let mut chains = vec![
        chain(REFUSE, instance::refuse(place)),
        chain(SSH, host::ssh(effective, place)),
        chain(WEB, host::web(effective, place.family)),
        chain(CONTAINER_TO_HOST, instance::container_to_host(slots, place.family)),
    ];
    chains.extend(slots.iter().map(|(slot, instance)| Chain {
        name: egress_chain(*slot),
        rules: instance::egress(effective, instance, place),
    }));
    chains.push(chain(EGRESS, instance::dispatch(effective, slots, place)));
    chains.push(chain(INPUT, host::input(effective, place.family)));
    chains.push(chain(FORWARD, instance::forward()));
    let mut hooks = vec![hook("INPUT", INPUT), hook("FORWARD", FORWARD)];
    if place.table == Table::Filter {
        hooks.push(Hook { optional: true, ..hook("DOCKER-USER", FORWARD) });
    }
    TableRules { table: place.table, chains, hooks }
}

fn chain(name: &str, rules: Vec<String>) -> Chain {
    Chain { name: name.to_owned(), rules }
}

fn hook(from: &'static str, to: &str) -> Hook {
    Hook { from, to: to.to_owned(), optional: false }
}
