//! The firewall's adapter against the real kernel, the real service manager and the real programs, on a
//! lab host with our package.

mod killed;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use claw_core::address::{AddressPool, Slot};
use claw_core::firewall::{
    Cidr, Effective, EffectiveInstance, Family, HostPolicy, HostSet, NetworkPolicy, Port, Protocol,
    Ruleset, Table, render,
};
use claw_core::name::InstanceName;
use clawd::adapters::iptables::Iptables;
use clawd::adapters::login_log::SystemLoginLog;
use clawd::contract;
use clawd::ports::{Firewall, FirewallError, FirewallEvent, LoginLog, Traffic};
use tokio::sync::mpsc;

use crate::lab::{eventually, run};

const DATA: &str = "/var/lib/clawd";
const RUN: &str = "/run/clawd";

/// The adapter on this host, if it is a lab host, with none of our rules in force; says so if it is not.
async fn here(test: &str) -> Option<Iptables> {
    if std::env::var_os("CLAW_LAB_HOST").is_none() {
        eprintln!("{test}: did not run, because this is no lab host (CLAW_LAB_HOST is not set)");
        return None;
    }
    let firewall = adapter();
    firewall.revert().await.unwrap();
    firewall.apply(&nothing()).await.unwrap();
    let _absent = std::fs::remove_dir_all(Path::new(DATA).join("firewall/good"));
    Some(firewall)
}

fn adapter() -> Iptables {
    Iptables::new(Path::new(DATA), Path::new(RUN))
}

/// Rules of a host with so many instances.
fn rules(instances: u8) -> Ruleset {
    let instance = |n: u8| {
        let network = AddressPool::STANDARD.network(Slot::new(n).unwrap());
        let name = InstanceName::parse(&format!("demo-{n}")).unwrap();
        (name, EffectiveInstance { network, policy: NetworkPolicy::default() })
    };
    let port = |number| Port::new(number).unwrap();
    render::render(&Effective {
        host: HostPolicy {
            blocked: BTreeSet::from([Cidr::parse("192.0.2.0/24").unwrap()]),
            ..HostPolicy::default()
        },
        ssh_ports: BTreeSet::from([port(22)]),
        web_ports: BTreeSet::from([port(8080)]),
        pool: AddressPool::STANDARD,
        instances: (0..instances).map(instance).collect::<BTreeMap<_, _>>(),
    })
}

fn nothing() -> Ruleset {
    let family = |family| claw_core::firewall::FamilyRules { family, tables: Vec::new() };
    Ruleset { sets: Vec::new(), families: Family::BOTH.map(family) }
}

/// Puts rules in force and makes them the last good ones.
async fn settle(firewall: &Iptables, rules: &Ruleset) {
    firewall.arm(Duration::from_secs(60)).await.unwrap();
    firewall.apply(rules).await.unwrap();
    assert_eq!(firewall.deviations(rules).await.unwrap(), Vec::<String>::new());
    firewall.commit(rules).await.unwrap();
}

async fn in_force(firewall: &Iptables, rules: &Ruleset) -> bool {
    firewall.deviations(rules).await.unwrap().is_empty()
}

fn is_pending() -> bool {
    Path::new(DATA).join("firewall/pending").exists()
}

/// Waits until the watchdog has put rules back.
async fn until_put_back(firewall: &Iptables, rules: &Ruleset) {
    eventually("the rules are back, and nothing is armed", async || {
        (!is_pending() && in_force(firewall, rules).await).then_some(())
    })
    .await;
}

#[tokio::test]
async fn firewall() {
    let Some(firewall) = here("firewall").await else { return };
    contract::firewall(&firewall, &rules(1), &rules(3)).await.unwrap();
    contract::traffic(&firewall).await.unwrap();
    let good = firewall.last_good().await.unwrap().expect("rules were committed");
    assert!(in_force(&firewall, &good).await, "what is good is what is in force");
}

#[tokio::test]
async fn a_first_ruleset_is_reverted_to_none() {
    let Some(firewall) = here("first ruleset").await else { return };
    firewall.arm(Duration::from_secs(60)).await.unwrap();
    firewall.apply(&rules(2)).await.unwrap();
    assert!(firewall.revert().await.unwrap());
    assert!(in_force(&firewall, &nothing()).await);
    let left = run(&["iptables-save"]).await + &run(&["ip6tables-save"]).await;
    assert!(!left.contains("CLAW-"), "{left}");
    assert_eq!(run(&["ipset", "list", "-name"]).await, "");
    assert!(firewall.last_good().await.unwrap().is_none());
}

#[tokio::test]
async fn the_watchdog_needs_no_agent() {
    let Some(firewall) = here("watchdog").await else { return };
    settle(&firewall, &rules(1)).await;
    firewall.arm(Duration::from_millis(500)).await.unwrap();
    firewall.apply(&rules(2)).await.unwrap();
    until_put_back(&firewall, &rules(1)).await;
    assert!(!firewall.revert().await.unwrap());
    let late = firewall.commit(&rules(2)).await;
    assert!(matches!(late, Err(FirewallError::Store { .. })), "{late:?}");

    firewall.arm(Duration::from_secs(1)).await.unwrap();
    firewall.apply(&rules(2)).await.unwrap();
    let unit = "clawd-firewall-revert.service";
    let first = run(&["systemctl", "show", "--property=MainPID", "--value", unit]).await;
    run(&["kill", "-KILL", first.trim()]).await;
    until_put_back(&firewall, &rules(1)).await;
    eventually("the watchdog has done its work", async || {
        let state = run(&["systemctl", "show", "--property=ActiveState", "--value", unit]).await;
        (state.trim() == "inactive").then_some(())
    })
    .await;
}

#[tokio::test]
async fn refused_rules_change_nothing() {
    let Some(firewall) = here("refused").await else { return };
    settle(&firewall, &rules(1)).await;
    let mut bad = rules(2);
    let input = bad.families[1].tables[2].chains.iter_mut().find(|chain| chain.name == "CLAW-IN");
    input.unwrap().rules.push("-m set --match-set claw-absent6 src -j DROP".to_owned());
    let refused = firewall.validate(&bad).await;
    let Err(FirewallError::Invalid { output }) = refused else { panic!("{refused:?}") };
    assert!(output.contains("IPv6") && output.contains("claw-absent6"), "{output}");
    assert!(in_force(&firewall, &rules(1)).await);
    let failed = run(&["systemctl", "list-units", "--failed", "--plain", "--no-legend"]).await;
    assert!(!failed.contains("clawd-firewall"), "a refusal is no failure of the host: {failed}");
    firewall.validate(&rules(2)).await.unwrap();

    // The same without trial: the family ends as it was, table by table, and the error says which.
    let failed = firewall.apply(&bad).await;
    let Err(FirewallError::Command { doing, .. }) = failed else { panic!("{failed:?}") };
    assert_eq!(doing, "applying the rules of IPv6");
    firewall.apply(&rules(1)).await.unwrap();
    assert!(in_force(&firewall, &rules(1)).await);
}

#[tokio::test]
async fn jumps_return_to_their_place() {
    let Some(firewall) = here("jumps").await else { return };
    settle(&firewall, &rules(1)).await;
    let strange = ["-i", "lo", "-m", "comment", "--comment", "somebody else", "-j", "ACCEPT"];
    for program in ["iptables", "ip6tables"] {
        run(&[&[program, "-I", "INPUT", "1"], strange.as_slice()].concat()).await;
        run(&[program, "-t", "security", "-I", "FORWARD", "1", "-j", "CLAW-FWD"]).await;
        run(&[program, "-t", "security", "-A", "OUTPUT", "-j", "CLAW-IN"]).await;
        run(&[program, "-t", "raw", "-D", "PREROUTING", "-j", "CLAW-PRE"]).await;
    }
    let said = firewall.deviations(&rules(1)).await.unwrap().join("\n");
    let expected = [
        "IPv4 raw: PREROUTING has no jump to CLAW-PRE",
        "IPv4 filter: INPUT jumps to CLAW-IN at 2",
        "IPv6 security: FORWARD has \"-j CLAW-FWD\" besides",
        "IPv6 security: OUTPUT has \"-j CLAW-IN\" besides",
    ];
    assert!(expected.iter().all(|text| said.contains(text)), "{said}");
    firewall.apply(&rules(1)).await.unwrap();
    assert_eq!(firewall.deviations(&rules(1)).await.unwrap(), Vec::<String>::new());
    for program in ["iptables", "ip6tables"] {
        run(&[&[program, "-D", "INPUT"], strange.as_slice()].concat()).await;
        let left = run(&[&format!("{program}-save")]).await;
        assert!(!left.contains("claw-moves"), "{left}");
    }
}

#[tokio::test]
async fn changes_by_others_are_told_and_healed() {
    let Some(firewall) = here("changes").await else { return };
    settle(&firewall, &rules(1)).await;
    let mut events = firewall.events();
    // Listening has begun when it hears something.
    eventually("a stranger is heard", async || {
        let _exists =
            tokio::process::Command::new("iptables").args(["-N", "STRANGE"]).output().await;
        run(&["iptables", "-X", "STRANGE"]).await;
        tokio::time::timeout(Duration::from_millis(200), events.recv()).await.ok()
    })
    .await;
    while let Ok(Some(_)) = tokio::time::timeout(Duration::from_millis(300), events.recv()).await {}

    firewall.apply(&rules(2)).await.unwrap();
    run(&["nft", "flush", "ruleset"]).await;
    // Of our own changes nothing is told: the first that is heard is the flush.
    let (program, _pid) = told(&mut events).await;
    assert_eq!(program, "nft");
    assert!(!in_force(&firewall, &rules(2)).await);
    firewall.apply(&rules(2)).await.unwrap();
    assert!(in_force(&firewall, &rules(2)).await);
    run(&["iptables", "-t", "security", "-F", "CLAW-FWD"]).await;
    let (program, _pid) = told(&mut events).await;
    assert_eq!(program, "iptables");
    let said = firewall.deviations(&rules(2)).await.unwrap().join("\n");
    assert!(said.contains("IPv4 security: rule 1 of CLAW-FWD is missing"), "{said}");
    // What Docker lost by the flush.
    run(&["systemctl", "restart", "docker.service"]).await;
    firewall.apply(&rules(2)).await.unwrap();
    assert!(in_force(&firewall, &rules(2)).await);
}

async fn told(events: &mut mpsc::Receiver<FirewallEvent>) -> (String, u32) {
    let event = tokio::time::timeout(Duration::from_secs(10), events.recv()).await;
    let event = event.expect("something is told").expect("listening goes on");
    let FirewallEvent::Changed { by: Some(by), generation } = event else { panic!("{event:?}") };
    assert!(generation > 0);
    by
}

#[tokio::test]
async fn a_boot_puts_the_last_good_rules_in_force() {
    let Some(firewall) = here("boot").await else { return };
    let boot = ["clawd", "firewall-boot"];
    run(&boot).await;
    let text = run(&["iptables-save", "-t", "security"]).await;
    assert!(text.contains("-A CLAW-IN -p tcp -m tcp --dport 8080 -g CLAW-WEB"), "{text}");
    assert!(text.contains("--dport 22 -g CLAW-SSH"), "{text}");

    settle(&firewall, &rules(2)).await;
    // Armed, and then the power goes: nothing is left in the kernel.
    firewall.arm(Duration::from_secs(60)).await.unwrap();
    firewall.apply(&rules(3)).await.unwrap();
    run(&["systemctl", "stop", "clawd-firewall-revert.service"]).await;
    firewall.apply(&nothing()).await.unwrap();
    run(&boot).await;
    assert!(in_force(&firewall, &rules(2)).await);
    assert!(!is_pending());

    // Damaged: better closed than open.
    std::fs::write(Path::new(DATA).join("firewall/good/rules.v6"), "*filter\n").unwrap();
    run(&boot).await;
    assert!(!in_force(&firewall, &rules(2)).await);
    let text = run(&["ip6tables-save", "-t", "security"]).await;
    assert!(text.contains("-A FORWARD -j CLAW-FWD"), "{text}");
}

#[tokio::test]
async fn traffic_is_seen_and_ended() {
    let Some(firewall) = here("traffic").await else { return };
    settle(&firewall, &rules(1)).await;
    let source = Cidr::parse("203.0.113.7").unwrap();
    firewall.ban(source, Duration::from_secs(600)).await.unwrap();
    firewall.ban(source, Duration::from_secs(60)).await.unwrap();
    let set = HostSet::Banned.name(Family::V4);
    let entries = firewall.entries(&set).await.unwrap();
    assert_eq!(entries.len(), 1, "{entries:?}");
    assert!(entries[0].value.starts_with("203.0.113.7"), "{entries:?}");
    assert!(entries[0].expires_in.is_some_and(|left| left <= Duration::from_secs(60)));
    firewall.apply(&rules(2)).await.unwrap();
    assert_eq!(firewall.entries(&set).await.unwrap().len(), 1, "a ban outlives new rules");

    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let from = client.local_addr().unwrap();
    let ours = async || {
        let flows = firewall.flows(from.ip()).await.unwrap();
        flows.into_iter().find(|flow| flow.source_port == from.port())
    };
    let flow = ours().await.expect("the connection is tracked");
    assert_eq!((flow.protocol, flow.destination, flow.port), (Protocol::Tcp, from.ip(), port));
    firewall.cut(&[flow.clone(), flow]).await.unwrap();
    assert_eq!(ours().await, None);

    let counters = firewall.counters().await.unwrap();
    let of = |family, table| counters.iter().any(|c| c.family == family && c.table == table);
    assert!(Family::BOTH.iter().all(|f| Table::ALL.iter().all(|t| of(*f, *t))), "{counters:?}");
    let loopback = counters.iter().find(|c| c.table == Table::Raw && c.rule == "-i lo -j RETURN");
    assert!(loopback.unwrap().packets > 0, "{loopback:?}");
}

#[tokio::test]
async fn ssh_is_found_where_it_listens() {
    let Some(firewall) = here("ssh").await else { return };
    let port = |number| Port::new(number).unwrap();
    let found = firewall.surroundings().await.unwrap();
    assert!(found.ssh_ports.contains(&port(22)), "{found:?}");
    assert!(found.backend.starts_with("1.8.") && found.backend.contains("nf_tables"), "{found:?}");
    assert!(!found.legacy && !found.interfaces.is_empty(), "{found:?}");
    // As clawd.service may, and as a server that the configuration does not know of.
    let unit = std::fs::read_to_string("/usr/lib/systemd/system/clawd.service").unwrap();
    assert!(unit.contains("CAP_SYS_PTRACE"));
    let start = ["systemd-run", "--unit=other-sshd", "/usr/sbin/sshd", "-D", "-p", "2299"];
    run(&start).await;
    eventually("it is found", async || {
        firewall.ssh_ports().await.contains(&port(2299)).then_some(())
    })
    .await;
    run(&["systemctl", "stop", "other-sshd.service"]).await;
    assert!(!firewall.ssh_ports().await.contains(&port(2299)));
}

#[tokio::test]
async fn failed_logins_are_told() {
    let Some(_firewall) = here("logins").await else { return };
    let mut failures = SystemLoginLog::default().failures();
    eventually("a failure in the journal is told", async || {
        let ssh = ["-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "nobody-x@127.0.0.1"];
        let _refused = tokio::process::Command::new("ssh").args(ssh).output().await.unwrap();
        tokio::time::timeout(Duration::from_millis(500), failures.recv()).await.ok().flatten()
    })
    .await;
    // No other user makes failures.
    let forged = "Failed password for root from 203.0.113.99 port 1 ssh2";
    run(&["logger", "--tag", "sshd", forged]).await;
    let told = tokio::time::timeout(Duration::from_secs(1), async {
        loop {
            let failure = failures.recv().await.unwrap();
            if failure.source.to_string() == "203.0.113.99" {
                return;
            }
        }
    });
    assert!(told.await.is_err(), "a forged line was believed");
}
