//! Times the agent's adapter for iptables, and the same rules one by one: `cargo xtask bench firewall`
//! runs it inside a lab host.
//!
//! It is the one thing here that links the agent: no program of the product applies rules on request.
//! It prints one JSON object for each sample.
//!
//! `firewall_apply rules INSTANCES ROUNDS BASELINE-ROUNDS`, `firewall_apply list ENTRIES ROUNDS`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use claw_core::address::{AddressPool, Slot};
use claw_core::firewall::{
    AllowedNetwork, Allowlist, Cidr, Effective, EffectiveInstance, HostPolicy, Mode, NetworkPolicy,
    Port, Reach, Ruleset, Table, render,
};
use claw_core::name::InstanceName;
use claw_lab::command;
use claw_tests::clock::now;
use clawd::adapters::iptables::Iptables;
use clawd::ports::Firewall;
use serde_json::json;

/// Where the adapter keeps what it must not lose; a place of its own.
const STATE: &str = "/run/firewall-bench";
/// Chains of the baseline begin with this, so that they may stand beside ours.
const OTHER: &str = "BASE-";

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize| -> Result<u32> {
        words.get(at).context("a number is missing")?.parse().context("no number")
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match words.first().map(String::as_str) {
        Some("rules") => runtime.block_on(rules(number(1)?, number(2)?, number(3)?)),
        Some("list") => runtime.block_on(list(number(1)?, number(2)?)),
        _ => bail!("rules INSTANCES ROUNDS BASELINE-ROUNDS, or list ENTRIES ROUNDS"),
    }
}

/// Every chain changes with every round; then those of one instance do.
async fn rules(instances: u32, rounds: u32, baseline_rounds: u32) -> Result<()> {
    let firewall = adapter();
    for round in 0..=rounds {
        let mut policy = NetworkPolicy::default();
        policy.egress.denied_ports.insert(port(2600 + round)?);
        let ruleset = render::render(&effective(instances, &policy)?);
        let (applied, verified) = apply(&firewall, &ruleset).await?;
        let mut sample = json!({
            "rules": count(&ruleset),
            "apply": millis(applied),
            "verify": millis(verified),
        });
        if (1..=baseline_rounds).contains(&round) {
            sample["baseline"] = millis(one_by_one(&ruleset)?).into();
        }
        // The first round has nothing to replace.
        sample["first"] = (round == 0).into();
        say(&sample)?;
    }
    for round in 0..=rounds {
        let mut changed = effective(instances, &NetworkPolicy::default())?;
        if let Some(mut instance) = changed.instances.first_entry() {
            instance.get_mut().policy.egress.denied_ports.insert(port(2600 + round)?);
        }
        let (applied, _) = apply(&firewall, &render::render(&changed)).await?;
        say(&json!({ "one": millis(applied), "first": round == 0 }))?;
    }
    Ok(())
}

/// One instance whose list grows and changes.
async fn list(entries: u32, rounds: u32) -> Result<()> {
    let firewall = adapter();
    for round in 0..=rounds {
        let networks = (0..entries).map(|index| network(index + round * 64));
        let list = Allowlist {
            networks: networks.collect::<Result<_>>()?,
            names: Vec::new(),
            mode: Mode::Enforced,
        };
        let mut policy = NetworkPolicy::default();
        policy.egress.reach = Reach::Allowlist(list);
        let ruleset = render::render(&effective(1, &policy)?);
        let (applied, verified) = apply(&firewall, &ruleset).await?;
        let sample = json!({
            "rules": count(&ruleset),
            "apply": millis(applied),
            "verify": millis(verified),
            "first": round == 0,
        });
        say(&sample)?;
    }
    Ok(())
}

fn adapter() -> Iptables {
    Iptables::new(Path::new(STATE), Path::new(STATE))
}

async fn apply(firewall: &Iptables, ruleset: &Ruleset) -> Result<(Duration, Duration)> {
    std::fs::create_dir_all(Path::new(STATE).join("firewall"))?;
    let begun = now();
    firewall.apply(ruleset).await?;
    let applied = begun.elapsed();
    let begun: Instant = now();
    let deviations = firewall.deviations(ruleset).await?;
    ensure!(deviations.is_empty(), "{deviations:?}");
    Ok((applied, begun.elapsed()))
}

/// A host with so many instances, all alike.
fn effective(instances: u32, policy: &NetworkPolicy) -> Result<Effective> {
    let mut all = BTreeMap::new();
    for number in 0..instances {
        let slot = Slot::new(u8::try_from(number)?).context("too many instances")?;
        let network = AddressPool::STANDARD.network(slot);
        let name = InstanceName::parse(&format!("bench{number}"))?;
        all.insert(name, EffectiveInstance { network, policy: policy.clone() });
    }
    Ok(Effective {
        host: HostPolicy::default(),
        ssh_ports: BTreeSet::from([port(22)?]),
        web_ports: BTreeSet::from([port(8080)?]),
        pool: AddressPool::STANDARD,
        instances: all,
    })
}

fn port(number: u32) -> Result<Port> {
    Port::new(u16::try_from(number)?).context("port 0")
}

/// Networks that do not overlap: blocks of four addresses.
fn network(index: u32) -> Result<AllowedNetwork> {
    let first = u32::from(std::net::Ipv4Addr::new(20, 0, 0, 0)) + index * 4;
    let network = Cidr::containing(std::net::Ipv4Addr::from(first).into(), 30);
    Ok(AllowedNetwork { network, ports: BTreeSet::from([port(443)?]) })
}

fn count(ruleset: &Ruleset) -> usize {
    let tables = ruleset.families.iter().flat_map(|family| &family.tables);
    tables.flat_map(|table| &table.chains).map(|chain| chain.rules.len()).sum()
}

/// The same chains and rules under other names, each with a program of its own, as fail2ban and most
/// scripts do. They are taken away again, untimed.
fn one_by_one(ruleset: &Ruleset) -> Result<Duration> {
    let begun = now();
    for (program, table, chain) in chains(ruleset) {
        let name = renamed(&chain.name);
        run(program, &["-w", "-t", table.name(), "-N", &name])?;
        for rule in &chain.rules {
            let rule = renamed(rule);
            let words: Vec<&str> = rule.split(' ').collect();
            run(program, &[&["-w", "-t", table.name(), "-A", &name], &words[..]].concat())?;
        }
    }
    let taken = begun.elapsed();
    for (program, verb) in [("iptables", "iptables-restore"), ("ip6tables", "ip6tables-restore")] {
        let mut text = String::new();
        for table in Table::ALL {
            let own = || chains(ruleset).filter(|(by, of, _)| *by == program && *of == table);
            let lines = |line: fn(String) -> String| -> String {
                own().map(|(_, _, chain)| line(renamed(&chain.name))).collect()
            };
            text += &format!("*{}\n", table.name());
            text += &lines(|name| format!(":{name} - [0:0]\n"));
            text += &lines(|name| format!("-X {name}\n"));
            text += "COMMIT\n";
        }
        feed(verb, &text)?;
    }
    Ok(taken)
}

fn chains(
    ruleset: &Ruleset,
) -> impl Iterator<Item = (&'static str, Table, &claw_core::firewall::Chain)> {
    let families = ["iptables", "ip6tables"].into_iter().zip(&ruleset.families);
    families.flat_map(|(program, family)| {
        family.tables.iter().flat_map(move |table| {
            table.chains.iter().map(move |chain| (program, table.table, chain))
        })
    })
}

fn renamed(text: &str) -> String {
    text.replace(render::CHAIN_PREFIX, OTHER)
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let output = command(program).args(arguments).output()?;
    let said = || String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{program} {arguments:?}: {}", said());
    Ok(())
}

fn feed(program: &str, text: &str) -> Result<()> {
    let mut restore = command(program);
    let mut child = restore.arg("--noflush").stdin(Stdio::piped()).spawn()?;
    child.stdin.take().context("no stdin")?.write_all(text.as_bytes())?;
    ensure!(child.wait()?.success(), "{program} refused\n{text}");
    Ok(())
}

fn millis(length: Duration) -> f64 {
    length.as_secs_f64() * 1000.0
}

fn say(sample: &serde_json::Value) -> Result<()> {
    Ok(writeln!(std::io::stdout(), "{sample}")?)
}
