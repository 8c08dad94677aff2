//! What holds for every policy.

use proptest::prelude::*;

use super::policies::{any_effective, any_network_policy, default_host, instances};
use super::*;
use crate::firewall::saved::{
    Saved, SavedSets, changes_text, deviations, ruleset, set_deviations, stale_sets_text,
    stale_text,
};
use crate::firewall::{HostSet, InstanceSet};

fn rule_count(rules: &FamilyRules) -> usize {
    rules.tables.iter().flat_map(|table| &table.chains).map(|chain| chain.rules.len()).sum()
}

fn chain_rules<'a>(rules: &'a FamilyRules, table: Table, name: &str) -> &'a [String] {
    let table = rules.table(table).expect("rendered");
    &table.chains.iter().find(|chain| chain.name == name).expect("rendered").rules
}

/// Where the first rule stands that may end a packet, directly or by handing it over.
fn first_end(rules: &[String]) -> usize {
    let ends = |rule: &String| {
        ["-j DROP", &format!("-j {REFUSE}"), "-g "].iter().any(|end| rule.contains(end))
            && !rule.ends_with(&format!("-g {SSH}"))
    };
    rules.iter().position(ends).unwrap_or(rules.len())
}

proptest! {
    #[test]
    fn what_is_written_reads_back(effective in any_effective()) {
        let rules = render(&effective);
        let sets = SavedSets::parse(&rules.ipset_text(&SavedSets::default())).expect("ours");
        prop_assert_eq!(set_deviations(&rules, &sets), Vec::<String>::new());
        prop_assert_eq!(rules.ipset_text(&sets), "");
        prop_assert_eq!(stale_sets_text(&rules, &sets), "");
        let [v4, v6] = rules.families.each_ref().map(|family| {
            Saved::parse(&family.record_text()).expect("ours")
        });
        for (family, saved) in rules.families.iter().zip([&v4, &v6]) {
            prop_assert_eq!(deviations(family, saved), Vec::<String>::new());
            prop_assert_eq!(changes_text(family, saved), "");
            prop_assert_eq!(stale_text(family, saved), "");
            let unhooked = Saved::parse(&family.restore_text()).expect("ours");
            prop_assert_eq!(deviations(family, &unhooked).len(), 5);
        }
        let again = ruleset(&v4, &v6, &sets);
        for (family, saved) in again.families.iter().zip([&v4, &v6]) {
            prop_assert_eq!(deviations(family, saved), Vec::<String>::new());
        }
        prop_assert_eq!(set_deviations(&again, &sets), Vec::<String>::new());
    }

    #[test]
    fn ssh_is_decided_before_anything_drops(effective in any_effective()) {
        for family in &render(&effective).families {
            for port in &effective.ssh_ports {
                for (table, chain, verdict) in [
                    (Table::Raw, PREROUTING, "-j RETURN"),
                    (Table::Security, INPUT, "-g CLAW-SSH"),
                    (Table::Filter, INPUT, "-g CLAW-SSH"),
                ] {
                    let rule = format!("! -i claw-+ -p tcp -m tcp --dport {port} {verdict}");
                    let rules = chain_rules(family, table, chain);
                    let at = rules.iter().position(|other| *other == rule);
                    prop_assert!(at.is_some_and(|at| at < first_end(rules)), "{rules:#?}");
                }
            }
            for table in [Table::Security, Table::Filter] {
                let rules = chain_rules(family, table, SSH);
                prop_assert!(rules[0].contains("ESTABLISHED -j RETURN"));
                let access = &effective.host.ssh.access;
                let through = access.interfaces.is_empty();
                prop_assert_eq!(rules.last().is_some_and(|rule| rule == "-j RETURN"), through);
                let strangers = rules.iter().any(|rule| rule.contains("! --match-set"));
                prop_assert_eq!(strangers, !access.sources.is_empty());
            }
        }
    }

    #[test]
    fn families_have_the_same_structure(effective in any_effective()) {
        let [v4, v6] = render(&effective).families;
        for (a, b) in v4.tables.iter().zip(&v6.tables) {
            prop_assert_eq!(a.table, b.table);
            prop_assert_eq!(&a.hooks, &b.hooks);
            let names = |table: &TableRules| -> Vec<String> {
                table.chains.iter().map(|chain| chain.name.clone()).collect()
            };
            prop_assert_eq!(names(a), names(b));
            for (a, b) in a.chains.iter().zip(&b.chains) {
                let with_meaning = |rules: &[String]| -> Vec<Option<RuleMeaning>> {
                    let mut all: Vec<_> = rules.iter().map(|rule| meaning(&a.name, rule)).collect();
                    all.retain(Option::is_some);
                    all.dedup();
                    all
                };
                let (mut a, b) = (with_meaning(&a.rules), with_meaning(&b.rules));
                // Only an IPv4 source can be told not to be its instance's.
                a.retain(|meaning| !matches!(meaning, Some(RuleMeaning::Spoofed { .. })));
                prop_assert_eq!(a, b);
            }
        }
    }

    #[test]
    fn the_guarantee_only_drops(effective in any_effective()) {
        for family in &render(&effective).families {
            for table in [Table::Raw, Table::Security] {
                let text = family.table(table).expect("rendered").restore_text();
                prop_assert!(!text.contains("REJECT"), "{text}");
            }
            let ends = |table| -> Vec<String> {
                let all = &family.table(table).expect("rendered").chains;
                all.iter().filter_map(|chain| Some(format!("{}{}", chain.name, chain.rules.last()?))).collect()
            };
            let judged = |ends: Vec<String>| -> Vec<String> {
                ends.into_iter().filter(|end| !end.starts_with("CLAW-E") && !end.starts_with(REFUSE)).collect()
            };
            prop_assert_eq!(judged(ends(Table::Security)), judged(ends(Table::Filter)));
        }
    }

    #[test]
    fn every_instance_costs_the_same(
        policy in any_network_policy(),
        slots in proptest::collection::btree_set(0..crate::address::MAX_SLOTS, 1..12),
    ) {
        let of = |slots: &[u8]| {
            let instances = instances(slots.iter().map(|slot| (*slot, policy.clone())));
            render(&Effective { instances, ..default_host() })
        };
        let slots: Vec<u8> = slots.into_iter().collect();
        let (none, one, all) = (of(&[]), of(&slots[..1]), of(&slots));
        for ((none, one), all) in none.families.iter().zip(&one.families).zip(&all.families) {
            let [none, one, all] = [none, one, all].map(rule_count);
            prop_assert_eq!(all - none, slots.len() * (one - none));
        }
        prop_assert_eq!(
            all.sets.len() - none.sets.len(),
            slots.len() * (one.sets.len() - none.sets.len())
        );
    }

    #[test]
    fn rules_name_only_sets_and_chains_that_are_there(effective in any_effective()) {
        let rules = render(&effective);
        let sets: BTreeSet<&str> = rules.sets.iter().map(|set| set.name.as_str()).collect();
        prop_assert_eq!(sets.len(), rules.sets.len());
        for table in rules.families.iter().flat_map(|family| &family.tables) {
            let mut before: BTreeSet<&str> = BTreeSet::new();
            for chain in &table.chains {
                for rule in &chain.rules {
                    let words: Vec<&str> = rule.split(' ').collect();
                    for pair in words.windows(2) {
                        match pair {
                            ["--match-set" | "--add-set", set] => prop_assert!(sets.contains(set)),
                            ["-j" | "-g", to] if to.starts_with(CHAIN_PREFIX) => {
                                prop_assert!(before.contains(to), "{to} comes later");
                            }
                            _ => {}
                        }
                    }
                }
                prop_assert!(chain.name.len() <= 28 && chain.name.starts_with(CHAIN_PREFIX));
                prop_assert!(before.insert(&chain.name));
            }
            for hook in &table.hooks {
                prop_assert!(before.contains(hook.to.as_str()));
            }
        }
    }

    #[test]
    fn every_rule_that_refuses_has_a_meaning(effective in any_effective()) {
        for family in &render(&effective).families {
            for chain in family.tables.iter().flat_map(|table| &table.chains) {
                for rule in &chain.rules {
                    let refuses = rule.ends_with("-j DROP") || rule.ends_with("-j CLAW-NO");
                    let said = meaning(&chain.name, rule);
                    prop_assert!(!refuses || said.is_some() || chain.name == REFUSE, "{rule}");
                    let tried = matches!(said, Some(RuleMeaning::Unlisted { .. }));
                    prop_assert!(refuses || said.is_none() || tried, "{rule}");
                }
            }
        }
    }

    #[test]
    fn any_text_has_a_meaning_or_none(chain in "CLAW-[A-Z0-9]{0,6}|.*", rule in ".*") {
        let _said = meaning(&chain, &rule);
    }
}

#[test]
fn denied_ports_are_counted_each() {
    let slot = Slot::new(7).expect("below the limit");
    let effective =
        Effective { instances: instances([(7, NetworkPolicy::default())]), ..default_host() };
    for family in &render(&effective).families {
        let rules = chain_rules(family, Table::Filter, "CLAW-E7");
        let counted: BTreeSet<RuleMeaning> = rules
            .iter()
            .filter_map(|rule| meaning("CLAW-E7", rule))
            .filter(|said| matches!(said, RuleMeaning::DeniedPort { .. }))
            .collect();
        let denied = crate::firewall::default_denied_ports().into_iter();
        let expected = denied.flat_map(|port| {
            Protocol::BOTH.map(|protocol| RuleMeaning::DeniedPort { slot, protocol, port })
        });
        assert_eq!(counted, expected.collect());
    }
}

#[test]
fn names_of_sets_leave_room_for_their_successors() {
    let last = Slot::new(crate::address::MAX_SLOTS - 1).expect("below the limit");
    for family in Family::BOTH {
        let host = [HostSet::Ssh, HostSet::Web, HostSet::Blocked, HostSet::Banned];
        let host = host.into_iter().chain([HostSet::Extra(u8::MAX)]).map(|set| set.name(family));
        let names = host.chain(InstanceSet::ALL.map(|set| set.name(last, family)));
        for name in names {
            assert!(name.len() <= 27 && name.starts_with(SET_PREFIX), "{name}");
        }
    }
    assert!(egress_chain(last).len() <= 28);
}
