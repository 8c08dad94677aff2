//! What `iptables-save`, `ip6tables-save` and `ipset save` print: read back, compared with what was
//! rendered, printed again.
//!
//! Where to start: [`Saved::parse`] and [`deviations`] for rules, [`SavedSets::parse`] and
//! [`set_deviations`] for sets. [`ruleset`] makes a [`Ruleset`] of what was there, so that putting things
//! back goes the same way as putting new ones in. Of what is not ours only that is kept which decides
//! whether our chains are met: the jumps to them and what stands before.

mod differences;
mod sets;
#[cfg(test)]
mod tests;

pub use differences::{changes_text, deviations, set_deviations, stale_sets_text, stale_text};
pub use sets::{SavedSet, SavedSets};

use std::collections::{BTreeMap, BTreeSet};

use super::render::CHAIN_PREFIX;
use super::{Chain, Family, FamilyRules, Hook, RuleCounter, Ruleset, Table, TableRules};

/// Other programs' chains that may jump to ours.
const HOOKED: [&str; 6] =
    ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING", "DOCKER-USER"];
/// The chain of Docker that exists only while Docker does.
const OPTIONAL: &str = "DOCKER-USER";

/// Why a text is not what the program prints.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SavedError {
    /// A line means nothing.
    #[error("line {number} is {text:?}, which means nothing here")]
    Line {
        /// Counted from 1.
        number: usize,
        /// The line, shortened to 80 characters.
        text: String,
    },
    /// The text ends within a table.
    #[error("the text ends within table {table}: it was cut off")]
    Truncated {
        /// The table.
        table: String,
    },
}

/// One family's tables: ours as a whole, of others what concerns ours.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Saved {
    /// Those of [`Table`] that were printed.
    pub tables: BTreeMap<Table, SavedTable>,
}

/// One table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SavedTable {
    /// Our chains with their rules in order.
    pub chains: BTreeMap<String, Vec<SavedRule>>,
    /// Names of the other chains.
    pub others: BTreeSet<String>,
    /// Rules of others that lead to our chains.
    pub hooks: Vec<SavedHook>,
}

/// A rule of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedRule {
    /// As printed, without `-A CHAIN `.
    pub text: String,
    /// Packets that met it; 0 when the text was printed without counters.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// A rule of somebody's chain that leads to one of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedHook {
    /// The other's chain.
    pub from: String,
    /// Ours.
    pub to: String,
    /// The rule, without `-A CHAIN `.
    pub rule: String,
    /// The rules that stand before it.
    pub before: Vec<String>,
}

impl Saved {
    /// Reads the output of `iptables-save` or `ip6tables-save`, with or without `-c`, from any version and
    /// backend; also what [`FamilyRules::record_text`] writes.
    ///
    /// # Errors
    /// [`SavedError`], also when the text was cut off within a table.
    pub fn parse(text: &str) -> Result<Self, SavedError> {
        let mut saved = Self::default();
        let mut open: Option<Open<'_>> = None;
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            let meaningless = || SavedError::Line { number, text: line.chars().take(80).collect() };
            match (line, open.as_mut()) {
                ("", _) => {}
                (comment, _) if comment.starts_with('#') => {}
                (line, None) => {
                    let name = line.strip_prefix('*').ok_or_else(meaningless)?;
                    open = Some(Open::new(name));
                }
                ("COMMIT", Some(_)) => {
                    if let Some((table, content)) = open.take().and_then(Open::close) {
                        saved.tables.insert(table, content);
                    }
                }
                (line, Some(table)) => table.line(line).ok_or_else(meaningless)?,
            }
        }
        match open {
            None => Ok(saved),
            Some(table) => {
                Err(SavedError::Truncated { table: table.name.chars().take(80).collect() })
            }
        }
    }

    /// The counters of every rule of ours.
    #[must_use]
    pub fn counters(&self, family: Family) -> Vec<RuleCounter> {
        let of_chain = |table: Table, chain: &String, rule: &SavedRule| RuleCounter {
            family,
            table,
            chain: chain.clone(),
            rule: rule.text.clone(),
            packets: rule.packets,
            bytes: rule.bytes,
        };
        self.tables
            .iter()
            .flat_map(|(table, content)| {
                content.chains.iter().flat_map(move |(chain, rules)| {
                    rules.iter().map(move |rule| of_chain(*table, chain, rule))
                })
            })
            .collect()
    }

    /// Our chains exactly as they were, with the jumps to them, as if they had been rendered. Empty tables
    /// are left out: a table in which nothing was ours.
    #[must_use]
    pub fn rules(&self, family: Family) -> FamilyRules {
        let tables = self.tables.iter().filter(|(_, content)| !content.chains.is_empty());
        let tables = tables.map(|(table, content)| content.rules(*table)).collect();
        FamilyRules { family, tables }
    }

    /// Our rules with their counters, as `iptables-save -c` prints them.
    #[must_use]
    pub fn counted_text(&self) -> String {
        let mut text = String::new();
        for (table, content) in &self.tables {
            text.push_str(&format!("*{}\n", table.name()));
            for (chain, rules) in &content.chains {
                for SavedRule { text: rule, packets, bytes } in rules {
                    text.push_str(&format!("[{packets}:{bytes}] -A {chain} {rule}\n"));
                }
            }
        }
        text
    }
}

impl SavedTable {
    fn rules(&self, table: Table) -> TableRules {
        let chains = self.chains.iter().map(|(name, rules)| Chain {
            name: name.clone(),
            rules: rules.iter().map(|rule| rule.text.clone()).collect(),
        });
        let mut hooks: Vec<Hook> = Vec::new();
        for hook in &self.hooks {
            let from = HOOKED.into_iter().find(|name| *name == hook.from);
            let plain = hook.rule == format!("-j {}", hook.to);
            let known = hooks.iter().any(|known| known.from == hook.from && known.to == hook.to);
            if let (Some(from), true, false) = (from, plain, known) {
                hooks.push(Hook { from, to: hook.to.clone(), optional: from == OPTIONAL });
            }
        }
        TableRules { table, chains: chains.collect(), hooks }
    }
}

/// Everything of ours as it was: chains, jumps, sets.
#[must_use]
pub fn ruleset(v4: &Saved, v6: &Saved, sets: &SavedSets) -> Ruleset {
    Ruleset { sets: sets.sets(), families: [v4.rules(Family::V4), v6.rules(Family::V6)] }
}

/// A table while it is read.
#[derive(Debug)]
struct Open<'a> {
    name: &'a str,
    chains: BTreeMap<&'a str, Vec<SavedRule>>,
}

impl<'a> Open<'a> {
    const fn new(name: &'a str) -> Self {
        Self { name, chains: BTreeMap::new() }
    }

    /// Takes up a line; `None` when it is neither a chain nor a rule.
    fn line(&mut self, line: &'a str) -> Option<()> {
        if let Some(declared) = line.strip_prefix(':') {
            self.chains.entry(declared.split(' ').next()?).or_default();
            return Some(());
        }
        let (packets, bytes, rule) = match line.strip_prefix('[') {
            None => (0, 0, line),
            Some(counted) => {
                let (counters, rule) = counted.split_once("] ")?;
                let (packets, bytes) = counters.split_once(':')?;
                (packets.parse().ok()?, bytes.parse().ok()?, rule)
            }
        };
        let rule = rule.strip_prefix("-A ")?;
        let (chain, text) = rule.split_once(' ').unwrap_or((rule, ""));
        let rule = SavedRule { text: normal(text), packets, bytes };
        self.chains.entry(chain).or_default().push(rule);
        Some(())
    }

    /// What is kept of it; `None` for a table that never holds anything of ours.
    fn close(self) -> Option<(Table, SavedTable)> {
        let table = Table::ALL.into_iter().find(|table| table.name() == self.name)?;
        let mut content = SavedTable::default();
        for (name, rules) in self.chains {
            if name.starts_with(CHAIN_PREFIX) {
                content.chains.insert(name.to_owned(), rules);
                continue;
            }
            content.others.insert(name.to_owned());
            for (at, rule) in rules.iter().enumerate() {
                if let Some(to) = target(&rule.text).filter(|to| to.starts_with(CHAIN_PREFIX)) {
                    content.hooks.push(SavedHook {
                        from: name.to_owned(),
                        to: to.to_owned(),
                        rule: rule.text.clone(),
                        before: rules.iter().take(at).map(|rule| rule.text.clone()).collect(),
                    });
                }
            }
        }
        Some((table, content))
    }
}

/// A rule as 1.8.9 and 1.8.11 print it. Others call the protocol of ICMPv6 by its other name.
fn normal(rule: &str) -> String {
    rule.trim().replace("-p icmpv6 ", "-p ipv6-icmp ")
}

/// Where a rule leads.
pub(in crate::firewall) fn target(rule: &str) -> Option<&str> {
    let mut words = rule.rsplit(' ');
    let mut last = words.next()?;
    for word in words {
        if matches!(word, "-j" | "-g") {
            return Some(last);
        }
        last = word;
    }
    None
}
