use proptest::prelude::*;

use super::*;
use crate::address::AddressPool;
use crate::firewall::{EffectiveInstance, HostPolicy, NetworkPolicy, render};

fn name(text: &str) -> InstanceName {
    InstanceName::parse(text).expect("valid")
}

fn port(number: u16) -> Port {
    Port::new(number).expect("not 0")
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_millis(seconds * 1000)
}

/// Instances by slot, such as `demo` in 3.
fn effective(instances: &[(&str, u8)]) -> Effective {
    let instance = |slot| EffectiveInstance {
        network: AddressPool::STANDARD.network(Slot::new(slot).expect("below the limit")),
        policy: NetworkPolicy::default(),
    };
    Effective {
        host: HostPolicy::default(),
        ssh_ports: [port(22)].into(),
        web_ports: [port(8080)].into(),
        pool: AddressPool::STANDARD,
        instances: instances.iter().map(|(text, slot)| (name(text), instance(*slot))).collect(),
    }
}

/// Counters such as `4 filter 340 CLAW-E3 -p tcp …` by line.
fn counters(text: &str) -> Vec<RuleCounter> {
    let counter = |line: &str| {
        let mut words = line.trim().splitn(5, ' ');
        let mut word = || words.next().expect("five words");
        let family = if word() == "4" { Family::V4 } else { Family::V6 };
        let table = word();
        RuleCounter {
            family,
            table: Table::ALL.into_iter().find(|t| t.name() == table).expect("a table"),
            packets: word().parse().expect("a number"),
            chain: word().to_owned(),
            rule: word().to_owned(),
            bytes: 0,
        }
    };
    text.lines().filter(|line| !line.trim().is_empty()).map(counter).collect()
}

fn shown(taken: &Taken) -> String {
    let mut words: Vec<String> = taken
        .ports
        .iter()
        .map(|((instance, protocol, port), count)| format!("{instance} {port}/{protocol} {count}"))
        .collect();
    let kinds = [("unattributed", taken.unattributed), ("unguarded", taken.unguarded)];
    words.extend(kinds.iter().filter(|(_, n)| *n > 0).map(|(kind, n)| format!("{kind} {n}")));
    words.join(", ")
}

const SMTP: &str = "-p tcp -m tcp --dport 25 -j CLAW-NO";

#[test]
fn totals_survive_the_replacement_of_rules() {
    let effective = effective(&[("demo", 3), ("other", 4)]);
    let mut tally = Tally::default();
    let mut take =
        |seconds, text: &str| shown(&tally.take(at(seconds), &counters(text), &effective));
    assert_eq!(take(0, &format!("4 filter 5 CLAW-E3 {SMTP}")), "demo 25/tcp 5");
    assert_eq!(take(1, &format!("4 filter 5 CLAW-E3 {SMTP}")), "");
    assert_eq!(
        take(2, &format!("4 filter 9 CLAW-E3 {SMTP}\n6 filter 1 CLAW-E3 {SMTP}")),
        "demo 25/tcp 5"
    );
    // Smaller: the rule was replaced. Missing: it was removed, and begins anew when it is back.
    assert_eq!(take(3, &format!("4 filter 2 CLAW-E3 {SMTP}")), "demo 25/tcp 2");
    assert_eq!(take(4, ""), "");
    assert_eq!(take(5, &format!("4 filter 3 CLAW-E3 {SMTP}")), "demo 25/tcp 3");
    assert_eq!(
        take(6, &format!("4 filter 3 CLAW-E3 {SMTP}\n4 filter 7 CLAW-E4 {SMTP}")),
        "other 25/tcp 7"
    );
    // A slot without an instance counts for nobody.
    assert_eq!(take(7, &format!("4 filter 8 CLAW-E9 {SMTP}")), "");
    tally.rules_replaced();
    tally.take(at(8), &counters(&format!("4 filter 30 CLAW-E3 {SMTP}")), &effective);
    let demo = BlockedTraffic {
        ports: [((Protocol::Tcp, port(25)), 45)].into(),
        ..BlockedTraffic::default()
    };
    assert_eq!(tally.blocked(&name("demo")), demo);
    tally.retain(&[name("other")].into());
    assert_eq!(tally.blocked(&name("demo")), BlockedTraffic::default());
}

#[test]
fn a_chain_is_made_anew_as_a_whole() {
    let effective = effective(&[("demo", 3)]);
    let mut tally = Tally::default();
    let mut take = |smtp: u64, outside: u64| {
        let text = format!("4 filter {smtp} CLAW-E3 {SMTP}\n4 filter {outside} CLAW-E3 -j CLAW-NO");
        let taken = shown(&tally.take(at(0), &counters(&text), &effective));
        (taken, tally.blocked(&name("demo")).outside)
    };
    assert_eq!(take(5, 7), ("demo 25/tcp 5".to_owned(), 7));
    // The other has grown past what it was.
    assert_eq!(take(6, 0), ("demo 25/tcp 6".to_owned(), 7));
}

#[test]
fn every_reason_has_its_place() {
    let effective = effective(&[("demo", 3)]);
    let mut tally = Tally::default();
    let taken = tally.take(
        at(0),
        &counters(
            "4 filter 1 CLAW-E3 -p udp -m udp --dport 25 -j CLAW-NO
            4 filter 2 CLAW-E3 -j CLAW-NO
            4 security 4 CLAW-E3 -j RETURN
            4 filter 8 CLAW-E3 -d 169.254.0.0/16 -j CLAW-NO
            4 filter 16 CLAW-C2H -i claw-i3 -j CLAW-NO
            4 raw 32 CLAW-SRC ! -s 10.201.4.0/24 -i claw-i3 -j DROP
            4 filter 64 CLAW-EGR -j CLAW-NO
            4 filter 128 CLAW-IN -j DROP
            6 filter 256 CLAW-SSH -m set --match-set claw-banned6 src -j DROP
            4 raw 512 CLAW-PRE -d 10.201.0.0/16 -j DROP
            4 filter 1024 CLAW-NO -p tcp -j REJECT --reject-with tcp-reset
            4 filter 2048 CLAW-IN -i lo -j RETURN",
        ),
        &effective,
    );
    assert_eq!(shown(&taken), "demo 25/udp 1, unattributed 64");
    let demo = BlockedTraffic {
        ports: [((Protocol::Udp, port(25)), 1)].into(),
        outside: 2 + 4,
        closed: 8 + 16 + 32,
        ..BlockedTraffic::default()
    };
    assert_eq!(tally.blocked(&name("demo")), demo);
    assert_eq!(tally.ingress_refused(), 128 + 256 + 512);
}

#[test]
fn a_guarantee_that_works_alone_is_told() {
    let effective = effective(&[("demo", 3)]);
    let mut tally = Tally::default();
    let mut take = |text: &str| shown(&tally.take(at(0), &counters(text), &effective));
    let copy = |count| format!("4 filter {count} CLAW-E3 {SMTP}\n");
    let together = "-p tcp -m multiport --dports 25,194,465,587,2525,6667,6697 -j CLAW-NO";
    let guarantee = |count| format!("4 security {count} CLAW-E3 {together}\n");
    assert_eq!(take(&(copy(5) + &guarantee(2))), "demo 25/tcp 5");
    assert_eq!(take(&(copy(5) + &guarantee(6))), "unguarded 4");
    assert_eq!(take(&(copy(6) + &guarantee(6))), "demo 25/tcp 1");
    let closed = "4 security 3 CLAW-EGR -d 169.254.0.0/16 -j CLAW-NO";
    assert_eq!(take(&(copy(6) + &guarantee(6) + closed)), "unattributed 3, unguarded 3");
    assert_eq!(tally.blocked(&name("demo")).closed, 6);
}

#[test]
fn rendered_rules_are_known() {
    let effective = effective(&[("demo", 3)]);
    let ruleset = render::render(&effective);
    let mut all = Vec::new();
    for rules in &ruleset.families {
        for table in &rules.tables {
            for chain in &table.chains {
                all.extend(chain.rules.iter().map(|rule| RuleCounter {
                    family: rules.family,
                    table: table.table,
                    chain: chain.name.clone(),
                    rule: rule.clone(),
                    packets: 1,
                    bytes: 40,
                }));
            }
        }
    }
    let mut tally = Tally::default();
    let taken = tally.take(at(0), &all, &effective);
    // Both families; the guarantee tells no ports.
    let denied = crate::firewall::default_denied_ports();
    let expected: Vec<String> = Protocol::BOTH
        .iter()
        .flat_map(|protocol| denied.iter().map(move |port| format!("demo {port}/{protocol} 2")))
        .collect();
    assert_eq!(
        shown(&taken),
        expected.join(", ") + &format!(", unattributed {}", taken.unattributed)
    );
    let blocked = tally.blocked(&name("demo"));
    assert!(blocked.closed > 0 && tally.ingress_refused() > 0 && taken.unattributed > 0);
    assert_eq!(blocked.outside, 0, "no list, nothing outside of it");
}

#[test]
fn names_are_counted_across_restarts_of_the_forwarder() {
    let mut tally = Tally::default();
    let demo = name("demo");
    for (queries, refused) in [(0, 0), (10, 1), (15, 1), (3, 2), (0, 0), (1, 0)] {
        tally.take_names(&demo, queries, refused);
    }
    let blocked = tally.blocked(&demo);
    assert_eq!((blocked.dns_queries, blocked.dns_refused), (19, 3));
}

#[test]
fn a_restart_neither_loses_nor_counts_twice() {
    let effective = effective(&[("demo", 3)]);
    let mut tally = Tally::default();
    tally.take(at(0), &counters(&format!("4 filter 5 CLAW-E3 {SMTP}")), &effective);
    tally.take_names(&name("demo"), 10, 1);
    let text = tally.to_string();
    assert_eq!(
        text,
        "tally 1
ingress 0
port demo tcp 25 5
outside demo 0
closed demo 0
names demo 10 1 10 1
rule 4 filter 5 CLAW-E3 -p tcp -m tcp --dport 25 -j CLAW-NO
"
    );
    let mut again: Tally = text.parse().expect("its own text");
    let taken = again.take(at(30), &counters(&format!("4 filter 9 CLAW-E3 {SMTP}")), &effective);
    assert_eq!((shown(&taken).as_str(), taken.over), ("demo 25/tcp 4", None));
    let later = again.take(at(40), &counters(&format!("4 filter 9 CLAW-E3 {SMTP}")), &effective);
    assert_eq!((shown(&later).as_str(), later.over), ("", Some(Duration::from_secs(10))));
    again.take_names(&name("demo"), 12, 1);
    assert_eq!(again.blocked(&name("demo")).dns_queries, 12);
}

#[track_caller]
fn check_refused(text: &str, expected: &str) {
    let shown = text.parse::<Tally>().map_or_else(|error| error.to_string(), |t| t.to_string());
    assert_eq!(shown, expected);
}

#[test]
fn a_damaged_text_is_told_by_its_line() {
    check_refused("", "line 1 of the tally is not \"tally 1\"");
    check_refused("tally 2\n", "line 1 of the tally is not \"tally 1\"");
    check_refused("tally 1\ningress 1\nfoo 2", "line 3 of the tally is of no known kind");
    for line in [
        "ingress",
        "ingress x",
        "ingress 1 2",
        "port demo tcp 0 1",
        "port demo icmp 1 1",
        "port Demo tcp 1 1",
        "outside demo",
        "closed demo -1",
        "names demo 1 2 3",
        "rule 5 filter 1 C r",
        "rule 4 nat 1 C r",
        "rule 4 raw 1 C",
        "rule 44 raw 1 C r",
    ] {
        check_refused(
            &format!("tally 1\n{line}\n"),
            "line 2 of the tally does not follow its form",
        );
    }
}

fn taken(count: u64, over: Option<u64>) -> Taken {
    let ports = [((name("demo"), Protocol::Tcp, port(25)), count)].into();
    Taken { ports, over: over.map(Duration::from_secs), ..Taken::default() }
}

/// Attempts such as `10 5 40` by line: at 10 s, over 5 s, 40 of them.
#[track_caller]
fn check_bursts(text: &str, expected: &str) {
    let mut bursts = Bursts::default();
    let mut shown = String::new();
    for line in text.lines() {
        let numbers: Vec<u64> =
            line.split_whitespace().map(|word| word.parse().expect("a number")).collect();
        let [now, over, count] = numbers.try_into().expect("three numbers");
        let now = i64::try_from(now).expect("small");
        for burst in bursts.observe(at(now), &taken(count, Some(over))) {
            shown.push_str(&format!("{now}: {burst}\n"));
        }
    }
    assert_eq!(shown, expected);
}

#[test]
fn a_burst_is_told_once_and_again_when_it_goes_on() {
    check_bursts("10 5 40\n15 5 40", "");
    check_bursts(
        "10 5 40\n15 5 40\n20 5 260",
        "20: instance demo tried 25/tcp 340 times in 60 s\n",
    );
    // The same within a minute and a half is none.
    check_bursts("10 5 40\n65 5 40\n100 5 59", "");
    let minutes: String = (1..=11).map(|minute| format!("{} 10 500\n", minute * 60)).collect();
    check_bursts(
        &minutes,
        "60: instance demo tried 25/tcp 500 times in 60 s\n660: instance demo tried 25/tcp 500 times in 60 s\n",
    );
}

#[test]
fn attempts_over_a_long_time_are_no_burst() {
    check_bursts("3600 3600 500", "");
    check_bursts("3600 3600 60000", "3600: instance demo tried 25/tcp 1000 times in 60 s\n");
    let mut bursts = Bursts::default();
    assert_eq!(bursts.observe(at(0), &taken(500, None)), [], "nobody knows over how long");
}

#[test]
fn a_clock_that_is_set_back_silences_nobody() {
    check_bursts(
        "10000 5 100\n10 5 100",
        "10000: instance demo tried 25/tcp 100 times in 60 s\n10: instance demo tried 25/tcp 100 times in 60 s\n",
    );
}

#[test]
fn watching_is_bounded_and_forgets() {
    let mut bursts = Bursts::default();
    let over = Some(Duration::from_secs(1));
    for instance in 0..100 {
        let key = |number| (name(&format!("i{instance}")), Protocol::Udp, port(number));
        let ports = (1..=64).map(|number| (key(number), 1)).collect();
        bursts.observe(at(instance / 10), &Taken { ports, over, ..Taken::default() });
    }
    assert_eq!(bursts.watched(), MAX_WATCHED);
    bursts.observe(at(200), &Taken { over, ..Taken::default() });
    assert_eq!(bursts.watched(), 0);
}

fn any_counter() -> impl Strategy<Value = RuleCounter> {
    let rules = prop::sample::select(vec![
        ("CLAW-E3", SMTP),
        ("CLAW-E3", "-j CLAW-NO"),
        ("CLAW-E4", "-d 169.254.0.0/16 -j CLAW-NO"),
        ("CLAW-IN", "-j DROP"),
        ("CLAW-NO", "-j DROP"),
    ]);
    let place = (prop::sample::select(&Family::BOTH[..]), prop::sample::select(&Table::ALL[..]));
    (place, rules, 0_u64..1_000).prop_map(|((family, table), (chain, rule), packets)| RuleCounter {
        family,
        table,
        chain: chain.to_owned(),
        rule: rule.to_owned(),
        packets,
        bytes: 0,
    })
}

proptest! {
    #[test]
    fn what_is_printed_is_read_back(
        takes in prop::collection::vec(prop::collection::vec(any_counter(), 0..8), 0..6),
        names in prop::collection::vec((0_u64..9, 0_u64..9), 0..4),
    ) {
        let effective = effective(&[("demo", 3), ("other", 4)]);
        let mut tally = Tally::default();
        for (index, counters) in takes.iter().enumerate() {
            let now = at(i64::try_from(index).expect("small"));
            tally.take(now, counters, &effective);
        }
        for (queries, refused) in names {
            tally.take_names(&name("demo"), queries, refused);
        }
        prop_assert_eq!(tally.to_string().parse(), Ok(tally));
    }

    #[test]
    fn no_text_is_too_odd(text in any::<String>(), lines in "(rule|port|names|x)?( (4|raw|demo|tcp|[0-9]{1,25}|-)){0,6}\n?") {
        let _ = text.parse::<Tally>();
        let _ = format!("tally 1\n{lines}").parse::<Tally>();
    }

    #[test]
    fn a_counter_that_only_grows_is_counted_exactly(steps in prop::collection::vec(0_u64..500, 1..20), restart in 0_usize..20) {
        let effective = effective(&[("demo", 3)]);
        let mut tally = Tally::default();
        let mut sum = 0;
        for (index, step) in steps.iter().enumerate() {
            sum += step;
            tally.take(at(0), &counters(&format!("4 filter {sum} CLAW-E3 {SMTP}")), &effective);
            if index == restart {
                tally = tally.to_string().parse().expect("its own text");
            }
        }
        let counted = tally.blocked(&name("demo")).ports.values().sum::<u64>();
        prop_assert_eq!(counted, sum);
    }
}
