//! The allowlist that would have let through what was seen.
//!
//! [`propose`] adds to a list what was refused, or would have been: by name where names are known, because
//! addresses change, otherwise by address; always with the ports that were used. It is for a person to
//! judge: whatever a program tried stands there, wanted or not. What this does not do: take anything from a list
//! that something else of it does not allow, or mend a list that [`super::check`] finds faults with; one that was
//! sound stays sound.

#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::check::{
    AddressKind, MAX_ENTRY_PORTS, MAX_NAMES, MAX_NETWORK_ENTRIES, MAX_NETWORKS, names_above,
    ports_cover,
};
use super::flow::is_closed;
use super::{
    AllowedName, AllowedNetwork, Allowlist, Cidr, DomainPattern, Family, Port, RefusedDestination,
};

/// New names directly below one parent, on the same ports, that become one wildcard.
pub const SIBLINGS: usize = 3;

/// Parents below which anybody may have a name: a wildcard there would allow everybody. The frequent ones; the
/// whole list has thousands (publicsuffix.org).
const SHARED_PARENTS: [&str; 20] = [
    "amazonaws.com",
    "appspot.com",
    "azureedge.net",
    "azurewebsites.net",
    "blogspot.com",
    "cloudfront.net",
    "duckdns.org",
    "fly.dev",
    "github.io",
    "gitlab.io",
    "herokuapp.com",
    "netlify.app",
    "ngrok.io",
    "onrender.com",
    "pages.dev",
    "run.app",
    "trycloudflare.com",
    "vercel.app",
    "web.app",
    "workers.dev",
];

/// Second labels under which countries register names, as in `co.uk`.
const REGISTRIES: [&str; 9] = ["ac", "co", "com", "edu", "gov", "mil", "ne", "net", "org"];

/// The list that lets through what `current` does, and what was refused: except what is closed always and
/// denied ports, and up to the bounds of a list, most packets first. Deterministic and sorted.
///
/// A destination with several names is proposed with all of them, since nobody saw which one was meant.
/// [`SIBLINGS`] become a wildcard, unless strangers may have names beside them. An entry with more ports than a
/// list may name gets every port.
#[must_use]
pub fn propose(
    current: &Allowlist,
    denied: &BTreeSet<Port>,
    refused: &[RefusedDestination],
) -> Allowlist {
    let mut order: Vec<&RefusedDestination> = refused
        .iter()
        .filter(|one| !is_closed(one.address, one.port.number()) && !denied.contains(&one.port))
        .collect();
    order.sort_by_key(|one| (Reverse(one.packets), one.address, one.port, one.protocol));
    let mut draft = Draft::of(current);
    for one in order {
        let names = one.names.iter().filter_map(|name| exact(name));
        let named = names.filter(|name| draft.admit_name(name, one.port)).count();
        if named == 0 {
            draft.admit_address(one);
        }
    }
    draft.fold_siblings(current);
    draft.drop_covered();
    let Draft { networks, names } = draft;
    Allowlist {
        networks: networks
            .into_iter()
            .map(|(network, ports)| AllowedNetwork { network, ports })
            .collect(),
        names: names.into_iter().map(|(pattern, ports)| AllowedName { pattern, ports }).collect(),
        mode: current.mode,
    }
}

/// Entries by what they name. No ports means every port.
struct Draft {
    networks: BTreeMap<Cidr, BTreeSet<Port>>,
    names: BTreeMap<DomainPattern, BTreeSet<Port>>,
}

impl Draft {
    fn of(current: &Allowlist) -> Self {
        let mut draft = Self { networks: BTreeMap::new(), names: BTreeMap::new() };
        for AllowedNetwork { network, ports } in &current.networks {
            allow(&mut draft.networks, *network, ports);
        }
        for AllowedName { pattern, ports } in &current.names {
            allow(&mut draft.names, pattern.clone(), ports);
        }
        draft
    }

    /// False when there is no room.
    fn admit_name(&mut self, name: &DomainPattern, port: Port) -> bool {
        let wanted = [port].into();
        let covered = self.names.get(name).is_some_and(|ports| ports_cover(ports, &wanted))
            || self.is_covered(name, &wanted);
        if covered {
            return true;
        }
        let room = self.names.len() < MAX_NAMES || self.names.contains_key(name);
        if room {
            allow(&mut self.names, name.clone(), &wanted);
        }
        room
    }

    fn admit_address(&mut self, one: &RefusedDestination) {
        let wanted = [one.port].into();
        let bits = Family::of(one.address).bits();
        let mut around = (0..=bits)
            .filter_map(|prefix| self.networks.get(&Cidr::containing(one.address, prefix)));
        let network = Cidr::containing(one.address, bits);
        let needless = around.any(|ports| ports_cover(ports, &wanted));
        if needless || AddressKind::of(network).is_some() {
            return;
        }
        let entries: usize = self.networks.values().map(|ports| (2 * ports.len()).max(1)).sum();
        let room = self.networks.len() < MAX_NETWORKS || self.networks.contains_key(&network);
        if room && entries + 2 <= MAX_NETWORK_ENTRIES {
            allow(&mut self.networks, network, &wanted);
        }
    }

    /// Adds wildcards for names that are new.
    fn fold_siblings(&mut self, current: &Allowlist) {
        let old: BTreeSet<&DomainPattern> = current.names.iter().map(|one| &one.pattern).collect();
        let mut siblings: BTreeMap<(String, BTreeSet<Port>), usize> = BTreeMap::new();
        for (pattern, ports) in self.names.iter().filter(|(pattern, _)| !old.contains(pattern)) {
            let name = pattern.to_string();
            if let Some(parent) = names_above(&name).next().filter(|name| is_one_owners(name)) {
                *siblings.entry((parent.to_owned(), ports.clone())).or_default() += 1;
            }
        }
        for ((parent, ports), _) in siblings.into_iter().filter(|(_, count)| *count >= SIBLINGS) {
            if let Ok(wildcard) = DomainPattern::parse(&format!("*.{parent}")) {
                allow(&mut self.names, wildcard, &ports);
            }
        }
    }

    /// Takes away names that a wildcard means on all their ports.
    fn drop_covered(&mut self) {
        let covered = self.names.iter().filter(|(pattern, ports)| self.is_covered(pattern, ports));
        let covered: Vec<DomainPattern> = covered.map(|(pattern, _)| pattern.clone()).collect();
        for pattern in covered {
            self.names.remove(&pattern);
        }
    }

    /// Whether a wildcard above a name lets it through on all these ports.
    fn is_covered(&self, pattern: &DomainPattern, ports: &BTreeSet<Port>) -> bool {
        names_above(&pattern.to_string())
            .filter_map(|name| DomainPattern::parse(&format!("*.{name}")).ok())
            .filter_map(|wildcard| self.names.get(&wildcard))
            .any(|allowed| ports_cover(allowed, ports))
    }
}

/// Adds ports to an entry, or the entry with them; more ports than an entry may name become every port.
fn allow<K: Ord>(entries: &mut BTreeMap<K, BTreeSet<Port>>, key: K, ports: &BTreeSet<Port>) {
    let allowed = entries.entry(key).or_insert_with(|| ports.clone());
    if allowed.is_empty() || ports.is_empty() {
        allowed.clear();
        return;
    }
    allowed.extend(ports);
    if allowed.len() > MAX_ENTRY_PORTS {
        allowed.clear();
    }
}

/// The pattern of exactly this name: an instance may have asked for a name that reads like a wildcard.
fn exact(name: &str) -> Option<DomainPattern> {
    DomainPattern::parse(name).ok().filter(|_| !name.starts_with('*'))
}

/// Whether all names below a parent are, by the look of it, one owner's.
fn is_one_owners(parent: &str) -> bool {
    let Some((first, rest)) = parent.split_once('.') else { return false };
    let registry = rest.len() == 2 && REGISTRIES.contains(&first);
    let shared = SHARED_PARENTS.iter().any(|shared| {
        parent.strip_suffix(shared).is_some_and(|below| below.is_empty() || below.ends_with('.'))
    });
    !registry && !shared
}
