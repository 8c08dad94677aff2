//! The jumps to our chains from chains of others.
//!
//! A jump stands at the first place of its chain. One that is nowhere goes in by the same text as the chains
//! of its table ([`text`]), at once: one program for a family, where placing each by itself took a dozen, and
//! half a second until a flushed ruleset was whole again (measured). One that stands elsewhere is moved by the
//! `iptables` crate, step by step, and not moved but replaced: a marked
//! copy goes in at the first place, the old ones out, an unmarked one in, the marked one out; so that a
//! packet meets our chain at every moment, and no rule is ever deleted by its number, which others change.
//!
//! The crate forks once for each operation and waits for ever, so it runs on a thread of its own with a
//! deadline around it. Of its functions only those are used that look at the exit status (`new`,
//! `insert`, `delete`); what is there is known from `iptables-save`.

use std::sync::OnceLock;

use claw_core::firewall::saved::{self, Saved, SavedHook};
use claw_core::firewall::{Family, FamilyRules, Hook, Table, TableRules};
use iptables::IPTables;

use super::kernel::DEADLINE;
use super::ledger::Ledger;
use crate::ports::FirewallError;

/// What marks a copy that stands in for a jump while it is moved.
const MARK: &str = "-m comment --comment claw-moves";

/// A rule of somebody's chain that leads to ours and that nobody asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Surplus {
    pub(super) table: Table,
    pub(super) from: String,
    pub(super) to: String,
    pub(super) rule: String,
}

/// One operation of the crate.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Operation {
    InsertFirst { table: Table, chain: String, rule: String },
    Delete { table: Table, chain: String, rule: String },
}

impl std::fmt::Display for Operation {
    /// As it would be written for iptables(8), without the table.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::InsertFirst { chain, rule, .. } => write!(f, "-I {chain} 1 {rule}"),
            Self::Delete { chain, rule, .. } => write!(f, "-D {chain} {rule}"),
        }
    }
}

/// The crate's failure; its own error is not `Send`.
#[derive(Debug, thiserror::Error)]
enum CrateError {
    #[error("{operation} in table {}: {message}", .operation.table().name())]
    Failed { operation: Operation, message: String },
    #[error("{program} cannot be used: {message}")]
    Unusable { program: &'static str, message: String },
    #[error("the thread ended")]
    Thread(#[from] tokio::task::JoinError),
    #[error("it did not end within {} s", DEADLINE.as_secs())]
    Timeout,
}

/// What `iptables-restore` is to be given: the chains that differ, and the jumps to ours that are
/// nowhere. Tables without a difference are left out; the guarantee comes first.
pub(super) fn text(rules: &FamilyRules, found: &Saved) -> String {
    rules.tables.iter().map(|table| table_text(rules.family, table, found)).collect()
}

fn table_text(family: Family, table: &TableRules, found: &Saved) -> String {
    let missing: String = table
        .hooks
        .iter()
        .filter(|hook| is_missing(family, table.table, hook, found))
        .map(|hook| format!("-I {} 1 {}\n", hook.from, plain(hook)))
        .collect();
    let alone = FamilyRules { family, tables: vec![table.clone()] };
    let changes = saved::changes_text(&alone, found);
    match changes.strip_suffix("COMMIT\n") {
        Some(open) => format!("{open}{missing}COMMIT\n"),
        None if missing.is_empty() => String::new(),
        None => format!("*{}\n{missing}COMMIT\n", table.table.name()),
    }
}

/// Whether a jump that should be there is nowhere in its chain.
fn is_missing(family: Family, table: Table, hook: &Hook, found: &Saved) -> bool {
    !is_right(family, table, hook, found) && count(table, hook, found) == 0
}

fn is_right(family: Family, table: Table, hook: &Hook, found: &Saved) -> bool {
    let alone = TableRules { table, chains: Vec::new(), hooks: vec![hook.clone()] };
    let seen = without_left_over(&alone, found);
    let alone = FamilyRules { family, tables: vec![alone] };
    saved::deviations(&alone, &seen).is_empty()
}

fn count(table: Table, hook: &Hook, found: &Saved) -> usize {
    let hooks = found.tables.get(&table).map(|content| content.hooks.as_slice());
    let rule = plain(hook);
    hooks.unwrap_or_default().iter().filter(|h| h.from == hook.from && h.rule == rule).count()
}

/// One table as it is, less the chains that nobody wants.
fn without_left_over(table: &TableRules, found: &Saved) -> Saved {
    let mut found = Saved {
        tables: found
            .tables
            .get_key_value(&table.table)
            .map(|(k, v)| (*k, v.clone()))
            .into_iter()
            .collect(),
    };
    for content in found.tables.values_mut() {
        content.chains.retain(|name, _| table.chains.iter().any(|chain| chain.name == *name));
    }
    found
}

/// Rules that lead to our chains and are not one of the expected jumps: second ones, marked ones that a
/// killed process left, and what others have made.
pub(super) fn surplus(rules: &FamilyRules, found: &Saved) -> Vec<Surplus> {
    let mut surplus = Vec::new();
    for (table, content) in &found.tables {
        let mut expected: Vec<&Hook> =
            rules.table(*table).map(|rules| rules.hooks.iter().collect()).unwrap_or_default();
        for SavedHook { from, to, rule, .. } in &content.hooks {
            let known = expected.iter().position(|hook| hook.from == from && plain(hook) == *rule);
            match known {
                Some(index) => drop(expected.swap_remove(index)),
                None => surplus.push(Surplus {
                    table: *table,
                    from: from.clone(),
                    to: to.clone(),
                    rule: rule.clone(),
                }),
            }
        }
    }
    surplus
}

/// Moves the jumps that stand elsewhere, and removes the surplus.
pub(super) async fn place(
    rules: &FamilyRules,
    found: &Saved,
    ledger: &Ledger,
) -> Result<(), FirewallError> {
    run(rules.family, operations(rules, found), ledger, "placing the jumps to our chains").await
}

fn operations(rules: &FamilyRules, found: &Saved) -> Vec<Operation> {
    let surplus = surplus(rules, found);
    let mut operations = Vec::new();
    for table in &rules.tables {
        for hook in &table.hooks {
            operations.extend(one(rules.family, table.table, hook, found, &surplus));
        }
    }
    // Jumps that are expected were dealt with above; those to chains that go, go with them.
    let strange = surplus.into_iter().filter(|gone| {
        let table = rules.table(gone.table);
        table.is_some_and(|table| {
            let wanted = table.hooks.iter().any(|h| h.from == gone.from && plain(h) == gone.rule);
            !wanted && table.chains.iter().any(|chain| chain.name == gone.to)
        })
    });
    operations.extend(strange.map(|Surplus { table, from, rule, .. }| Operation::Delete {
        table,
        chain: from,
        rule,
    }));
    operations
}

/// What brings one jump to its place.
fn one(
    family: Family,
    table: Table,
    hook: &Hook,
    found: &Saved,
    surplus: &[Surplus],
) -> Vec<Operation> {
    let (chain, rule) = (hook.from.to_owned(), plain(hook));
    let there = count(table, hook, found);
    let doubles = surplus.iter().filter(|s| s.table == table && s.from == chain && s.rule == rule);
    if there == 0 || is_right(family, table, hook, found) && doubles.count() == 0 {
        return Vec::new();
    }
    let insert =
        |rule: &String| Operation::InsertFirst { table, chain: chain.clone(), rule: rule.clone() };
    let delete =
        |rule: &String| Operation::Delete { table, chain: chain.clone(), rule: rule.clone() };
    let marked = format!("{MARK} {rule}");
    let mut operations = vec![insert(&marked)];
    operations.extend(std::iter::repeat_n(delete(&rule), there));
    operations.extend([insert(&rule), delete(&marked)]);
    operations
}

fn plain(hook: &Hook) -> String {
    format!("-j {}", hook.to)
}

async fn run(
    family: Family,
    operations: Vec<Operation>,
    ledger: &Ledger,
    doing: &'static str,
) -> Result<(), FirewallError> {
    if operations.is_empty() {
        return Ok(());
    }
    let ledger = ledger.clone();
    let work = tokio::task::spawn_blocking(move || carry_out(family, operations, &ledger));
    let outcome = match tokio::time::timeout(DEADLINE, work).await {
        Ok(ended) => ended.unwrap_or_else(|error| Err(error.into())),
        Err(_elapsed) => Err(CrateError::Timeout),
    };
    outcome.map_err(|source| FirewallError::Command { doing, source: Box::new(source) })
}

fn carry_out(
    family: Family,
    operations: Vec<Operation>,
    ledger: &Ledger,
) -> Result<(), CrateError> {
    let program = match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    };
    let tables = tables(family)
        .map_err(|error| CrateError::Unusable { program, message: error.to_string() })?;
    for operation in operations {
        let _running = ledger.begin(program);
        if let Err(error) = operation.run(tables) {
            return Err(CrateError::Failed { operation, message: error.to_string() });
        }
    }
    Ok(())
}

/// The crate asks the program for its version, which is what it can do; once is enough.
fn tables(family: Family) -> Result<&'static IPTables, Box<dyn std::error::Error>> {
    static PROBED: [OnceLock<IPTables>; 2] = [OnceLock::new(), OnceLock::new()];
    let [v4, v6] = &PROBED;
    let (probed, is_v6) = match family {
        Family::V4 => (v4, false),
        Family::V6 => (v6, true),
    };
    if probed.get().is_none() {
        // Two threads may probe at once; they learn the same.
        let _other = probed.set(iptables::new(is_v6)?);
    }
    probed.get().ok_or_else(|| "it was not probed".into())
}

impl Operation {
    const fn table(&self) -> Table {
        match self {
            Self::InsertFirst { table, .. } | Self::Delete { table, .. } => *table,
        }
    }

    fn run(&self, tables: &IPTables) -> Result<(), Box<dyn std::error::Error>> {
        match self {
            Self::InsertFirst { table, chain, rule } => tables.insert(table.name(), chain, rule, 1),
            Self::Delete { table, chain, rule } => tables.delete(table.name(), chain, rule),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is done with the filter table of `iptables-save`, so that CLAW-IN is first in INPUT.
    #[track_caller]
    fn check(saved: &str, expected: &[&str]) {
        let hook = Hook { from: "INPUT", to: "CLAW-IN".to_owned(), optional: false };
        let chain = claw_core::firewall::Chain { name: "CLAW-IN".to_owned(), rules: Vec::new() };
        let table = TableRules { table: Table::Filter, chains: vec![chain], hooks: vec![hook] };
        let rules = FamilyRules { family: Family::V4, tables: vec![table] };
        let found =
            Saved::parse(&format!("*filter\n:INPUT ACCEPT [0:0]\n{saved}COMMIT\n")).unwrap();
        let text = text(&rules, &found);
        let mut shown: Vec<String> =
            text.lines().filter(|line| line.starts_with([':', '-'])).map(str::to_owned).collect();
        shown.extend(operations(&rules, &found).iter().map(ToString::to_string));
        assert_eq!(shown, expected);
    }

    #[test]
    fn jumps_are_placed_without_a_moment_without() {
        check("", &[":CLAW-IN - [0:0]", "-I INPUT 1 -j CLAW-IN"]);
        let chain = ":CLAW-IN - [0:0]\n";
        check(chain, &["-I INPUT 1 -j CLAW-IN"]);
        check(&format!("{chain}-A INPUT -j CLAW-IN\n-A INPUT -j X\n"), &[]);
        let replace = [
            "-I INPUT 1 -m comment --comment claw-moves -j CLAW-IN",
            "-D INPUT -j CLAW-IN",
            "-I INPUT 1 -j CLAW-IN",
            "-D INPUT -m comment --comment claw-moves -j CLAW-IN",
        ];
        check(&format!("{chain}-A INPUT -j X\n-A INPUT -j CLAW-IN\n"), &replace);
        let twice = [replace[0], replace[1], replace[1], replace[2], replace[3]];
        check(&format!("{chain}-A INPUT -j CLAW-IN\n-A INPUT -j CLAW-IN\n"), &twice);
    }

    #[test]
    fn what_a_killed_agent_and_others_left_goes() {
        let left = ":CLAW-IN - [0:0]\n-A INPUT -j CLAW-IN\n\
            -A INPUT -m comment --comment claw-moves -j CLAW-IN\n-A OUTPUT -j CLAW-IN\n";
        check(
            left,
            &["-D INPUT -m comment --comment claw-moves -j CLAW-IN", "-D OUTPUT -j CLAW-IN"],
        );
        // A chain that goes takes its jumps with it.
        check(
            ":CLAW-IN - [0:0]\n:CLAW-OLD - [0:0]\n-A INPUT -j CLAW-IN\n-A INPUT -j CLAW-OLD\n",
            &[],
        );
    }
}
