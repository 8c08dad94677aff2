//! The programs: what they are asked, what they are told, how long they may take.

use std::time::Duration;

use claw_core::firewall::saved::{self, Saved, SavedError, SavedSets};
use claw_core::firewall::{Family, FamilyRules, Ruleset};

use super::hooks;
use super::ledger::Ledger;
use crate::adapters::command::{self, CommandError};
use crate::ports::FirewallError;

/// One program. Measured: 16 ms for 20 rules, 73 ms for 2 000, 401 ms for a set of 100 000; the rest is for
/// hosts that are starved.
pub(super) const DEADLINE: Duration = Duration::from_secs(10);
/// How long legacy programs wait for the lock of others (`--wait`), in seconds; nf_tables knows none.
const LOCK_WAIT: &str = "5";

/// What is in the kernel of ours.
#[derive(Debug)]
pub(super) struct InForce {
    /// IPv4, IPv6.
    pub(super) families: [Saved; 2],
    /// Sets.
    pub(super) sets: SavedSets,
}

impl InForce {
    /// As if it had been rendered.
    pub(super) fn ruleset(&self) -> Ruleset {
        let [v4, v6] = &self.families;
        saved::ruleset(v4, v6, &self.sets)
    }

    /// Where it differs from rules, in words.
    pub(super) fn deviations(&self, rules: &Ruleset) -> Vec<String> {
        let mut said = saved::set_deviations(rules, &self.sets);
        for (expected, found) in rules.families.iter().zip(&self.families) {
            said.extend(saved::deviations(expected, found));
            said.extend(hooks::surplus(expected, found).iter().map(|surplus| {
                let (digit, table) = (expected.family.digit(), surplus.table.name());
                format!("IPv{digit} {table}: {} has {:?} besides", surplus.from, surplus.rule)
            }));
        }
        said
    }
}

/// Reads everything.
pub(super) async fn in_force() -> Result<InForce, FirewallError> {
    let (v4, v6, sets) = tokio::join!(rules(Family::V4), rules(Family::V6), sets());
    Ok(InForce { families: [v4?, v6?], sets: sets? })
}

/// Reads one family's rules, with counters.
pub(super) async fn rules(family: Family) -> Result<Saved, FirewallError> {
    let (program, doing) = match family {
        Family::V4 => ("iptables-save", "reading the rules of IPv4"),
        Family::V6 => ("ip6tables-save", "reading the rules of IPv6"),
    };
    let text = command::dump(&[program, "-c"], DEADLINE).await.map_err(failed(doing))?;
    Saved::parse(&text).map_err(not_understood(doing))
}

/// Reads the sets.
pub(super) async fn sets() -> Result<SavedSets, FirewallError> {
    let doing = "reading the sets";
    let text = command::dump(&["ipset", "save"], DEADLINE).await.map_err(failed(doing))?;
    SavedSets::parse(&text).map_err(not_understood(doing))
}

/// Turns what is there into what is wanted: sets, then both families, then what is left over. What is as
/// it should be is left alone. The families go side by side, so that neither waits for the other's copy
/// in filter before its guarantee stands; on two busy cores it takes as long as one after the other
/// (measured).
pub(super) async fn apply(
    rules: &Ruleset,
    found: &InForce,
    ledger: &Ledger,
) -> Result<(), FirewallError> {
    restore_sets(&rules.ipset_text(&found.sets), "filling the sets").await?;
    let [v4, v6] = &rules.families;
    let [found_v4, found_v6] = &found.families;
    let (v4, v6) =
        tokio::join!(apply_family(v4, found_v4, ledger), apply_family(v6, found_v6, ledger));
    v4.and(v6)?;
    let stale = saved::stale_sets_text(rules, &found.sets);
    restore_sets(&stale, "removing sets").await
}

/// One text holds all tables, the guarantee first: `iptables-restore` puts each in force, jumps included,
/// before it reads the next. After somebody flushed everything the gap ends there.
async fn apply_family(
    rules: &FamilyRules,
    found: &Saved,
    ledger: &Ledger,
) -> Result<(), FirewallError> {
    let family = rules.family;
    let doing = match family {
        Family::V4 => "applying the rules of IPv4",
        Family::V6 => "applying the rules of IPv6",
    };
    restore(family, &hooks::text(rules, found), doing, ledger).await?;
    hooks::place(rules, found, ledger).await?;
    let doing = match family {
        Family::V4 => "removing chains of IPv4",
        Family::V6 => "removing chains of IPv6",
    };
    restore(family, &saved::stale_text(rules, found), doing, ledger).await
}

/// Gives a text to `iptables-restore`. One table after the other is replaced at once; the exit status
/// tells when one was not.
async fn restore(
    family: Family,
    text: &str,
    doing: &'static str,
    ledger: &Ledger,
) -> Result<(), FirewallError> {
    if text.is_empty() {
        return Ok(());
    }
    let program = match family {
        Family::V4 => "iptables-restore",
        Family::V6 => "ip6tables-restore",
    };
    let argv = [program, "--noflush", "--wait", LOCK_WAIT];
    let _running = ledger.begin(program);
    command::feed(&argv, text, DEADLINE).await.map(drop).map_err(failed(doing))
}

/// Gives a text to `ipset restore`. Sets are no rules: the kernel's generation stays.
async fn restore_sets(text: &str, doing: &'static str) -> Result<(), FirewallError> {
    if text.is_empty() {
        return Ok(());
    }
    command::feed(&["ipset", "restore"], text, DEADLINE).await.map(drop).map_err(failed(doing))
}

/// What a program's failure is to the port.
pub(super) fn failed(doing: &'static str) -> impl FnOnce(CommandError) -> FirewallError {
    move |source| FirewallError::Command { doing, source: Box::new(source) }
}

fn not_understood(doing: &'static str) -> impl FnOnce(SavedError) -> FirewallError {
    move |source| FirewallError::Command { doing, source: Box::new(source) }
}
