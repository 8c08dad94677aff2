//! Counters of refused traffic that survive the replacement of rules, and bursts in them.
//!
//! The kernel counts per rule, and forgets when a rule is replaced or the host boots. [`Tally`] takes the
//! counters again and again, and adds what came since; [`Bursts`] looks at the same numbers for an instance
//! that tries a denied port very often. What this does not do: read counters, keep its text (`Display` and
//! `FromStr`; the agent journals it).
//!
//! A packet is counted once: the copy in `filter` refuses it before the guarantee in `security` sees it
//! (priorities 0 and 50, `linux/netfilter_ipv4.h`), and what `raw` drops reaches neither. So the sum over tables is
//! right, and a guarantee that counts where its copy does not is a sign of its own: [`Taken::unguarded`].

mod burst;
#[cfg(test)]
mod tests;
mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub use burst::{BURST_ATTEMPTS, BURST_PAUSE, BURST_WINDOW, Burst, Bursts, MAX_WATCHED};
pub use text::{LineProblem, TallyError};

use super::render::{RuleMeaning, meaning};
use super::{Effective, Family, Port, Protocol, RuleCounter, Table};
use crate::address::Slot;
use crate::name::InstanceName;
use crate::report::BlockedTraffic;
use crate::time::Timestamp;

/// What was refused, in all and since when it was looked at last. Its text is bounded by our rules: one line for
/// each that was ever met.
///
/// Two are equal when they have counted the same, whenever that was: what is equal need not be journaled again.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// When this process took the counters last; not part of the text.
    taken_at: Option<Timestamp>,
    /// The kernel's counters then, of rules that were met.
    seen: BTreeMap<RuleKey, u64>,
    totals: BTreeMap<InstanceName, Totals>,
    ingress: u64,
}

/// What came since the counters were taken before.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Taken {
    /// Since when; `None` for the first time of a process, when nobody knows.
    pub over: Option<Duration>,
    /// Attempts at denied ports.
    pub ports: BTreeMap<(InstanceName, Protocol, Port), u64>,
    /// Packets of instances that were refused by rules which tell no instance: bridges that no instance has, and
    /// what is closed to all where only the guarantee stopped it.
    pub unattributed: u64,
    /// Packets that only the guarantee stopped, from rules whose copy in `filter` stopped none: somebody has removed
    /// our hooks there. Nothing got through, but applications wait instead of failing.
    pub unguarded: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct RuleKey {
    family: Family,
    table: Table,
    chain: String,
    rule: String,
}

impl RuleKey {
    fn of(counter: &RuleCounter) -> Self {
        Self {
            family: counter.family,
            table: counter.table,
            chain: counter.chain.clone(),
            rule: counter.rule.clone(),
        }
    }
}

type ChainPlace<'name> = (Family, Table, &'name str);

fn chain_of(counter: &RuleCounter) -> ChainPlace<'_> {
    (counter.family, counter.table, &counter.chain)
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Totals {
    traffic: BlockedTraffic,
    /// The forwarder's own counters when they were taken last: questions, refusals.
    names_seen: [u64; 2],
}

impl Tally {
    /// Adds what came since the last time. Where a counter is smaller than before, its chain was made anew, and all
    /// its counters began at zero.
    ///
    /// Takes the counters of all our rules: those that are missing count as replaced. Call it right before rules are
    /// replaced, or what came since is lost, and then [`Self::rules_replaced`]. Traffic of a slot that no
    /// instance of `effective` has counts for nobody.
    pub fn take(
        &mut self,
        now: Timestamp,
        counters: &[RuleCounter],
        effective: &Effective,
    ) -> Taken {
        let names: BTreeMap<Slot, &InstanceName> =
            effective.instances.iter().map(|(name, i)| (i.network.slot(), name)).collect();
        let mut taken =
            Taken { over: self.taken_at.map(|before| now.since(before)), ..Taken::default() };
        let mut stopped = Stopped::default();
        let mut seen = BTreeMap::new();
        let made_anew = self.made_anew(counters);
        for counter in counters.iter().filter(|counter| counter.packets > 0) {
            let Some(meaning) = meaning(&counter.chain, &counter.rule) else { continue };
            let key = RuleKey::of(counter);
            let before = if made_anew.contains(&chain_of(counter)) {
                0
            } else {
                self.seen.get(&key).copied().unwrap_or(0)
            };
            let more = counter.packets.saturating_sub(before);
            seen.insert(key, counter.packets);
            if more > 0 {
                stopped.add(counter, meaning, more);
                self.add(meaning, more, &names, &mut taken);
            }
        }
        taken.unguarded = stopped.unguarded();
        self.seen = seen;
        self.taken_at = Some(now);
        taken
    }

    /// The kernel's counters begin anew: rules were replaced, or the host has booted. Without this word, a rule
    /// that is met more often afterwards than it was before is taken for one that was never replaced.
    pub fn rules_replaced(&mut self) {
        self.seen.clear();
    }

    /// Adds what an instance has asked its name server since the last time, from the forwarder's counters; if one
    /// is smaller than before, both began anew.
    pub fn take_names(&mut self, instance: &InstanceName, queries: u64, refused: u64) {
        let known = self.totals.contains_key(instance);
        if !known && queries == 0 && refused == 0 {
            return;
        }
        let totals = self.totals.entry(instance.clone()).or_default();
        let [queries_seen, refused_seen] = totals.names_seen;
        let (queries_seen, refused_seen) = if queries < queries_seen || refused < refused_seen {
            (0, 0)
        } else {
            (queries_seen, refused_seen)
        };
        grow(&mut totals.traffic.dns_queries, queries.saturating_sub(queries_seen));
        grow(&mut totals.traffic.dns_refused, refused.saturating_sub(refused_seen));
        totals.names_seen = [queries, refused];
    }

    /// What an instance was refused since it was created. Destinations outside a list that is only tried are
    /// counted as [`BlockedTraffic::outside`] too; as [`BlockedTraffic::closed`] spoofed sources, and denied ports
    /// that only the guarantee stopped, which does not tell them apart.
    #[must_use]
    pub fn blocked(&self, instance: &InstanceName) -> BlockedTraffic {
        self.totals.get(instance).map(|totals| totals.traffic.clone()).unwrap_or_default()
    }

    /// Attempts at the host itself that were refused.
    #[must_use]
    pub const fn ingress_refused(&self) -> u64 {
        self.ingress
    }

    /// Forgets instances that do not exist any more: one of the same name begins at zero.
    pub fn retain(&mut self, instances: &BTreeSet<InstanceName>) {
        self.totals.retain(|name, _| instances.contains(name));
    }

    /// Chains of which a counter fell.
    fn made_anew<'all>(&self, counters: &'all [RuleCounter]) -> BTreeSet<ChainPlace<'all>> {
        let fell = |counter: &&RuleCounter| {
            self.seen.get(&RuleKey::of(counter)).is_some_and(|before| counter.packets < *before)
        };
        counters.iter().filter(fell).map(chain_of).collect()
    }

    fn add(
        &mut self,
        meaning: RuleMeaning,
        more: u64,
        names: &BTreeMap<Slot, &InstanceName>,
        taken: &mut Taken,
    ) {
        let slot = match meaning {
            RuleMeaning::DeniedPort { slot, .. }
            | RuleMeaning::DeniedPorts { slot, .. }
            | RuleMeaning::Outside { slot }
            | RuleMeaning::Unlisted { slot }
            | RuleMeaning::Closed { slot }
            | RuleMeaning::Spoofed { slot } => slot,
            RuleMeaning::Uncovered | RuleMeaning::ClosedToAll => {
                return grow(&mut taken.unattributed, more);
            }
            RuleMeaning::Misrouted
            | RuleMeaning::Blocked
            | RuleMeaning::SshBanned
            | RuleMeaning::SshLimited
            | RuleMeaning::SshElsewhere
            | RuleMeaning::WebElsewhere
            | RuleMeaning::Ingress => return grow(&mut self.ingress, more),
        };
        let Some(name) = names.get(&slot).copied() else { return };
        let traffic = &mut self.totals.entry(name.clone()).or_default().traffic;
        match meaning {
            RuleMeaning::DeniedPort { slot: _, protocol, port } => {
                grow(traffic.ports.entry((protocol, port)).or_default(), more);
                grow(taken.ports.entry((name.clone(), protocol, port)).or_default(), more);
            }
            RuleMeaning::Outside { .. } | RuleMeaning::Unlisted { .. } => {
                grow(&mut traffic.outside, more);
            }
            _ => grow(&mut traffic.closed, more),
        }
    }
}

impl PartialEq for Tally {
    fn eq(&self, other: &Self) -> bool {
        let Self { taken_at: _, seen, totals, ingress } = self;
        (seen, totals, ingress) == (&other.seen, &other.totals, &other.ingress)
    }
}

impl Eq for Tally {}

fn grow(total: &mut u64, more: u64) {
    *total = total.saturating_add(more);
}

/// What the guarantee stopped and what its copy did, by family and meaning.
#[derive(Default)]
struct Stopped(BTreeMap<(Family, RuleMeaning), [u64; 2]>);

impl Stopped {
    fn add(&mut self, counter: &RuleCounter, meaning: RuleMeaning, more: u64) {
        // The guarantee has one rule where its copy has one for each port or instance.
        let together = match meaning {
            RuleMeaning::DeniedPort { slot, protocol, port: _ } => {
                RuleMeaning::DeniedPorts { slot, protocol }
            }
            RuleMeaning::Closed { slot: _ } => RuleMeaning::ClosedToAll,
            other => other,
        };
        let [guarantee, copy] = self.0.entry((counter.family, together)).or_default();
        match (counter.table, meaning) {
            // A list that is only tried is looked at in the guarantee alone, and what raw drops has no copy.
            (Table::Raw, _) | (_, RuleMeaning::Unlisted { .. }) => {}
            (Table::Security, _) => grow(guarantee, more),
            (Table::Filter, _) => grow(copy, more),
        }
    }

    fn unguarded(&self) -> u64 {
        let alone = self.0.values().filter(|[_, copy]| *copy == 0);
        alone.fold(0, |sum, [guarantee, _]| sum.saturating_add(*guarantee))
    }
}
