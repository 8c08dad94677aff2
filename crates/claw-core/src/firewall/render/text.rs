//! Text for the programs: `iptables-restore --noflush`, `ip6tables-restore --noflush`, `ipset restore`.
//!
//! Hooks are not in it: where they stand depends on what others put there, so whoever applies the text
//! places them, one by one.

use std::fmt::Write as _;
use std::time::Duration;

use crate::firewall::saved::{SavedSet, SavedSets};
use crate::firewall::{Family, FamilyRules, Ruleset, Set, SetContent, SetKind, Table, TableRules};

/// What the name of a set that is swapped in ends with.
pub(in crate::firewall) const NEXT: &str = "-new";
/// Buckets of a set that grows from outside the kernel: the least there is (ipset(8) rounds up).
const FEW_BUCKETS: u32 = 64;
/// Buckets of a set that packets fill: it does not grow then, and a bucket holds 12 entries.
const BUCKETS: u32 = 1024;

impl TableRules {
    /// For `iptables-restore --noflush`: empties our chains, or makes them, and fills them, at once.
    #[must_use]
    pub fn restore_text(&self) -> String {
        let mut text = format!("*{}\n", self.table.name());
        for chain in &self.chains {
            line(&mut text, format_args!(":{} - [0:0]", chain.name));
        }
        self.append_rules(&mut text);
        text.push_str("COMMIT\n");
        text
    }

    fn append_rules(&self, text: &mut String) {
        for chain in &self.chains {
            for rule in &chain.rules {
                line(text, format_args!("-A {} {rule}", chain.name));
            }
        }
    }
}

impl FamilyRules {
    /// Every table's text in order. One table is replaced at once; if a later one is refused, the earlier
    /// ones stay replaced.
    #[must_use]
    pub fn restore_text(&self) -> String {
        self.tables.iter().map(TableRules::restore_text).collect()
    }

    /// For our own records: like what `iptables-save` prints, hooks included, so that
    /// [`Saved::parse`](crate::firewall::saved::Saved::parse) reads it back. Not for `iptables-restore`,
    /// which would put the hooks at the end of their chains.
    #[must_use]
    pub fn record_text(&self) -> String {
        let mut text = String::new();
        for table in &self.tables {
            line(&mut text, format_args!("*{}", table.table.name()));
            for chain in &table.chains {
                line(&mut text, format_args!(":{} - [0:0]", chain.name));
            }
            for hook in &table.hooks {
                line(&mut text, format_args!("-A {} -j {}", hook.from, hook.to));
            }
            table.append_rules(&mut text);
            text.push_str("COMMIT\n");
        }
        text
    }

    /// Our part of a table; `None` when it holds nothing of ours.
    #[must_use]
    pub fn table(&self, table: Table) -> Option<&TableRules> {
        self.tables.iter().find(|rules| rules.table == table)
    }
}

impl Ruleset {
    /// For `ipset restore`: turns the sets that are there into those of the rules. Empty: they are already.
    #[must_use]
    pub fn ipset_text(&self, present: &SavedSets) -> String {
        sets_text(&self.sets, present)
    }

    /// The sets for our own records: like what `ipset save` prints, without the entries of live sets.
    #[must_use]
    pub fn sets_record_text(&self) -> String {
        sets_text(&self.sets, &SavedSets::default())
    }
}

/// For `ipset restore`: turns the sets that are there into these; others are left alone.
///
/// A set that rules may name is never empty in between: its successor is filled under another name and
/// swapped in, which does not mind another size, timeout or counters. Entries of live sets are kept. Only
/// a set of another type, which none of ours ever becomes, is destroyed first, and the kernel refuses
/// that as long as rules name it.
#[must_use]
pub fn sets_text(sets: &[Set], present: &SavedSets) -> String {
    let mut text = String::new();
    for set in sets {
        match present.sets.get(&set.name) {
            Some(found) if found.is(set) => {}
            Some(found) if found.same_type(set) => replace(&mut text, set, found, present),
            Some(_other) => {
                line(&mut text, format_args!("destroy {}", set.name));
                create(&mut text, &set.name, set);
                add(&mut text, &set.name, set);
            }
            None => {
                create(&mut text, &set.name, set);
                add(&mut text, &set.name, set);
            }
        }
    }
    text
}

/// Swaps in a successor.
fn replace(text: &mut String, set: &Set, found: &SavedSet, present: &SavedSets) {
    let next = format!("{}{NEXT}", set.name);
    if present.sets.contains_key(&next) {
        line(text, format_args!("destroy {next}"));
    }
    create(text, &next, set);
    add(text, &next, set);
    if let SetContent::Live { timeout, .. } = &set.content {
        let most = usize::try_from(set.max_entries).unwrap_or(usize::MAX);
        for entry in found.entries.iter().take(most) {
            let left = entry.expires_in.unwrap_or(*timeout).max(Duration::from_secs(1));
            line(text, format_args!("add {next} {} timeout {}", entry.value, left.as_secs()));
        }
    }
    line(text, format_args!("swap {next} {}", set.name));
    line(text, format_args!("destroy {next}"));
}

fn create(text: &mut String, name: &str, set: &Set) {
    let family = match set.family {
        Family::V4 => "inet",
        Family::V6 => "inet6",
    };
    let buckets = buckets(set);
    let mut made = format!(
        "create {name} {} family {family} hashsize {buckets} maxelem {}",
        set.kind.name(),
        set.max_entries
    );
    if let SetContent::Live { timeout, counters } = &set.content {
        made.push_str(&format!(" timeout {}", timeout.as_secs()));
        if *counters {
            made.push_str(" counters");
        }
    }
    line(text, format_args!("{made}"));
}

fn add(text: &mut String, name: &str, set: &Set) {
    if let SetContent::Fixed(entries) = &set.content {
        for entry in entries {
            line(text, format_args!("add {name} {entry}"));
        }
    }
}

/// Enough that filling the set never makes the kernel rehash it.
fn buckets(set: &Set) -> u32 {
    match &set.content {
        SetContent::Fixed(entries) => {
            let count = u32::try_from(entries.len()).unwrap_or(u32::MAX);
            count.checked_next_power_of_two().unwrap_or(BUCKETS).max(FEW_BUCKETS)
        }
        SetContent::Live { counters: true, .. } => BUCKETS,
        SetContent::Live { counters: false, .. } => FEW_BUCKETS,
    }
}

fn line(text: &mut String, content: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _infallible = writeln!(text, "{content}");
}

impl SetKind {
    /// The kind that ipset(8) calls so; `None` for kinds that we do not use.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Net, Self::NetPort, Self::Ip, Self::IpPort]
            .into_iter()
            .find(|kind| kind.name() == name)
    }
}
