//! The sets that rules name, in both families alike.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::address::Slot;
use crate::firewall::{
    Allowlist, Cidr, Effective, EffectiveInstance, ExtraPort, Family, HostSet, InstanceSet, Port,
    Protocol, Reach, Set, SetContent, SetKind, WebAccess,
};

/// How long a source stays banned unless the ban says otherwise: fail2ban's default.
pub const BANNED_TIMEOUT: Duration = Duration::from_secs(600);
/// How long the address of a name stays allowed unless the answer says otherwise.
pub const NAMES_TIMEOUT: Duration = Duration::from_secs(300);
/// How long a destination outside a list is remembered: a week.
pub const REFUSED_TIMEOUT: Duration = Duration::from_secs(7 * 24 * 3600);

/// ipset(8)'s own default; a list that is longer gets what it needs.
const FIXED_ENTRIES: u32 = 65_536;
/// Sources that are banned at once: about 4 MiB.
const BANNED_ENTRIES: u32 = 65_536;
/// Addresses of one instance's names; what does not fit is not reachable.
const NAMES_ENTRIES: u32 = 16_384;
/// Destinations outside a list: what does not fit is counted by the rule and not remembered. The
/// instance chooses them, so this bounds the kernel's memory (about 400 KiB).
const REFUSED_ENTRIES: u32 = 4_096;

/// Every set of a policy.
pub(super) fn sets(effective: &Effective, slots: &BTreeMap<Slot, &EffectiveInstance>) -> Vec<Set> {
    let host = Family::BOTH.into_iter().flat_map(|family| host_sets(effective, family));
    let lists = slots.iter().filter_map(|(slot, instance)| match &instance.policy.egress.reach {
        Reach::Open => None,
        Reach::Allowlist(list) => Some((*slot, list)),
    });
    let of_list = |(slot, list)| {
        Family::BOTH.into_iter().flat_map(move |family| instance_sets(slot, list, family))
    };
    host.chain(lists.flat_map(of_list)).collect()
}

/// Extra ports with the sets of their sources; those after the 256th are left out.
pub(super) fn extra(effective: &Effective) -> impl Iterator<Item = (HostSet, &ExtraPort)> {
    (0..=u8::MAX).map(HostSet::Extra).zip(&effective.host.extra)
}

fn host_sets(effective: &Effective, family: Family) -> Vec<Set> {
    let host = &effective.host;
    let none = BTreeSet::new();
    let web = match &host.web {
        WebAccess::Reachable(access) => &access.sources,
        WebAccess::Loopback => &none,
    };
    let mut lists = vec![
        (HostSet::Ssh, &host.ssh.access.sources),
        (HostSet::Web, web),
        (HostSet::Blocked, &host.blocked),
    ];
    lists.extend(extra(effective).map(|(set, port)| (set, &port.access.sources)));
    lists.retain(|(_, sources)| !sources.is_empty());
    let banned = Set {
        name: HostSet::Banned.name(family),
        kind: SetKind::Net,
        family,
        max_entries: BANNED_ENTRIES,
        content: SetContent::Live { timeout: BANNED_TIMEOUT, counters: false },
    };
    let fixed = lists.into_iter().map(|(set, sources)| {
        let entries = sources.iter().flat_map(|source| blocks(*source, family)).collect();
        fixed(set.name(family), SetKind::Net, family, entries)
    });
    std::iter::once(banned).chain(fixed).collect()
}

fn instance_sets(slot: Slot, list: &Allowlist, family: Family) -> [Set; 5] {
    let mut everywhere = BTreeSet::new();
    let mut on_ports = BTreeSet::new();
    for allowed in &list.networks {
        for block in blocks(allowed.network, family) {
            if allowed.ports.is_empty() {
                everywhere.insert(block);
            } else {
                on_ports.extend(with_ports(&block, &allowed.ports));
            }
        }
    }
    InstanceSet::ALL.map(|set| {
        let name = set.name(slot, family);
        let live = |kind, max_entries, timeout, counters| Set {
            name: name.clone(),
            kind,
            family,
            max_entries,
            content: SetContent::Live { timeout, counters },
        };
        match set {
            InstanceSet::Networks => {
                fixed(name, SetKind::Net, family, std::mem::take(&mut everywhere))
            }
            InstanceSet::NetworkPorts => {
                fixed(name, SetKind::NetPort, family, std::mem::take(&mut on_ports))
            }
            InstanceSet::Names => live(SetKind::Ip, NAMES_ENTRIES, NAMES_TIMEOUT, false),
            InstanceSet::NamePorts => live(SetKind::IpPort, NAMES_ENTRIES, NAMES_TIMEOUT, false),
            InstanceSet::Refused => live(SetKind::IpPort, REFUSED_ENTRIES, REFUSED_TIMEOUT, true),
        }
    })
}

fn fixed(name: String, kind: SetKind, family: Family, entries: BTreeSet<String>) -> Set {
    let count = u32::try_from(entries.len()).unwrap_or(u32::MAX);
    let max_entries = FIXED_ENTRIES.max(count.checked_next_power_of_two().unwrap_or(u32::MAX));
    Set { name, kind, family, max_entries, content: SetContent::Fixed(entries) }
}

/// A block as `ipset save` prints it; none of another family, two of half the size for everything
/// (`hash:net` knows no prefix of 0, ipset(8)).
fn blocks(network: Cidr, family: Family) -> Vec<String> {
    if network.family() != family {
        return Vec::new();
    }
    if network.prefix() == 0 {
        return match family {
            Family::V4 => vec!["0.0.0.0/1".to_owned(), "128.0.0.0/1".to_owned()],
            Family::V6 => vec!["::/1".to_owned(), "8000::/1".to_owned()],
        };
    }
    if network.prefix() == family.bits() {
        return vec![network.address().to_string()];
    }
    vec![network.to_string()]
}

fn with_ports(block: &str, ports: &BTreeSet<Port>) -> Vec<String> {
    let both = |port: &Port| Protocol::BOTH.map(|protocol| format!("{block},{protocol}:{port}"));
    ports.iter().flat_map(both).collect()
}
