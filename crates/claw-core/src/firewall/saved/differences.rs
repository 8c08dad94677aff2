//! Where the kernel differs from what was rendered, in words, and the text that removes what is left over.

use std::collections::BTreeSet;

use super::sets::borrowed;
use super::{Saved, SavedSet, SavedSets, SavedTable};
use crate::firewall::{
    Chain, Family, FamilyRules, Hook, Ruleset, Set, SetContent, Table, TableRules,
};

/// How the chains of fail2ban begin: it puts its jumps first, and they only refuse.
const FAIL2BAN: &str = "f2b-";

/// Where the kernel differs from the rules; empty: nowhere. A chain's first difference is named.
///
/// A jump to a chain of ours must come first; in the filter table jumps to chains of fail2ban may stand
/// before it. The jump from DOCKER-USER is missed only where that chain exists.
#[must_use]
pub fn deviations(expected: &FamilyRules, found: &Saved) -> Vec<String> {
    let none = SavedTable::default();
    let mut said = Vec::new();
    for rules in &expected.tables {
        let place = place(expected.family, rules.table);
        let table = found.tables.get(&rules.table).unwrap_or(&none);
        for chain in &rules.chains {
            said.extend(chain_deviation(chain, table).map(|what| format!("{place}: {what}")));
        }
        for hook in &rules.hooks {
            let what = hook_deviation(hook, rules.table, table);
            said.extend(what.map(|what| format!("{place}: {what}")));
        }
    }
    for (table, content) in &found.tables {
        let place = place(expected.family, *table);
        said.extend(
            left_over(expected, *table, content)
                .into_iter()
                .map(|chain| format!("{place}: chain {chain} should not be")),
        );
    }
    said
}

/// Where the kernel's sets differ from those of the rules; empty: nowhere. Entries of live sets are nobody's
/// business here.
#[must_use]
pub fn set_deviations(expected: &Ruleset, found: &SavedSets) -> Vec<String> {
    let mut said: Vec<String> = expected
        .sets
        .iter()
        .filter_map(|set| match found.sets.get(&set.name) {
            None => Some(format!("set {} is missing", set.name)),
            Some(there) if there.is(set) => None,
            Some(there) => Some(format!("set {} {}", set.name, set_difference(set, there))),
        })
        .collect();
    said.extend(
        left_over_sets(expected, found).into_iter().map(|name| format!("set {name} should not be")),
    );
    said
}

/// For `iptables-restore --noflush`: makes the chains that differ what they should be and leaves the others,
/// and their counters, alone. Empty: none differs. Hooks are not in it, nor is what is left over.
///
/// Replacing a table costs the kernel a grace period whatever its size (about 15 ms, measured on 6.18), so
/// a table in which nothing differs is better not replaced.
#[must_use]
pub fn changes_text(expected: &FamilyRules, found: &Saved) -> String {
    let none = SavedTable::default();
    let differing = |rules: &TableRules| {
        let there = found.tables.get(&rules.table).unwrap_or(&none);
        let chains = rules.chains.iter().filter(|chain| chain_deviation(chain, there).is_some());
        let chains: Vec<Chain> = chains.cloned().collect();
        let differ = !chains.is_empty();
        differ.then(|| TableRules { table: rules.table, chains, hooks: Vec::new() }.restore_text())
    };
    expected.tables.iter().filter_map(differing).collect()
}

/// For `iptables-restore --noflush`, once the rules are in place: removes chains of ours that are not
/// theirs, and the jumps to them. Empty: there are none.
#[must_use]
pub fn stale_text(expected: &FamilyRules, found: &Saved) -> String {
    let mut text = String::new();
    for (table, content) in &found.tables {
        let chains = left_over(expected, *table, content);
        if chains.is_empty() {
            continue;
        }
        text.push_str(&format!("*{}\n", table.name()));
        let hooks = content.hooks.iter().filter(|hook| chains.contains(hook.to.as_str()));
        for hook in hooks {
            text.push_str(&format!("-D {} {}\n", hook.from, hook.rule));
        }
        for command in ["-F", "-X"] {
            for chain in &chains {
                text.push_str(&format!("{command} {chain}\n"));
            }
        }
        text.push_str("COMMIT\n");
    }
    text
}

/// For `ipset restore`, once no rule names them: removes sets of ours that are not those of the rules.
/// Empty: there are none.
#[must_use]
pub fn stale_sets_text(expected: &Ruleset, found: &SavedSets) -> String {
    left_over_sets(expected, found).into_iter().map(|name| format!("destroy {name}\n")).collect()
}

fn place(family: Family, table: Table) -> String {
    format!("IPv{} {}", family.digit(), table.name())
}

fn chain_deviation(chain: &Chain, table: &SavedTable) -> Option<String> {
    let name = &chain.name;
    let Some(found) = table.chains.get(name) else {
        return Some(format!("chain {name} is missing"));
    };
    let mut there = found.iter().map(|rule| rule.text.as_str());
    for (number, rule) in (1_usize..).zip(&chain.rules) {
        match there.next() {
            Some(text) if text == rule => {}
            Some(text) => {
                return Some(format!("rule {number} of {name} is {text:?} and should be {rule:?}"));
            }
            None => return Some(format!("rule {number} of {name} is missing: {rule:?}")),
        }
    }
    there.next().map(|text| format!("{name} goes on with {text:?}, which should not be"))
}

fn hook_deviation(hook: &Hook, table: Table, content: &SavedTable) -> Option<String> {
    let Hook { from, to, optional } = hook;
    let exists = content.others.contains(*from);
    if *optional && !exists {
        return None;
    }
    let rule = format!("-j {to}");
    let first = content.hooks.iter().find(|there| there.from == *from && there.rule == rule);
    let Some(first) = first else {
        return Some(format!("{from} has no jump to {to}"));
    };
    let harmless = |rule: &&String| {
        table == Table::Filter
            && super::target(rule).is_some_and(|target| target.starts_with(FAIL2BAN))
    };
    let before = first.before.iter().find(|rule| !harmless(rule))?;
    let position = first.before.len().saturating_add(1);
    Some(format!("{from} jumps to {to} at {position}, after {before:?}"))
}

/// Chains of ours that are in the kernel and not in the rules.
fn left_over<'a>(
    expected: &FamilyRules,
    table: Table,
    content: &'a SavedTable,
) -> BTreeSet<&'a str> {
    let chains = expected.table(table).map_or(&[][..], |TableRules { chains, .. }| chains);
    let known: BTreeSet<&str> = chains.iter().map(|chain| chain.name.as_str()).collect();
    content.chains.keys().map(String::as_str).filter(|name| !known.contains(name)).collect()
}

fn left_over_sets<'a>(expected: &Ruleset, found: &'a SavedSets) -> BTreeSet<&'a str> {
    let known: BTreeSet<&str> = expected.sets.iter().map(|set| set.name.as_str()).collect();
    found.sets.keys().map(String::as_str).filter(|name| !known.contains(name)).collect()
}

fn set_difference(set: &Set, found: &SavedSet) -> String {
    if !found.same_type(set) {
        return format!("is not of the type {} for IPv{}", set.kind.name(), set.family.digit());
    }
    if let SetContent::Fixed(entries) = &set.content {
        let (there, wanted) = (found.values(), borrowed(entries));
        if let Some(lacking) = wanted.difference(&there).next() {
            let count = wanted.difference(&there).count();
            return format!("lacks {count} entries, such as {lacking}");
        }
        if let Some(further) = there.difference(&wanted).next() {
            let count = there.difference(&wanted).count();
            return format!("holds {count} entries too many, such as {further}");
        }
    }
    "was made with another size, timeout or counters".to_owned()
}
