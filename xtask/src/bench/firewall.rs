//! Applying the firewall at growing sizes, against rule by rule; what leaks while things are done to it,
//! and how long it takes to heal.

use std::time::Duration;

use anyhow::{Context, Result};
use claw_lab::{HostOptions, LabHost};
use claw_tests::barrage::Seen;
use claw_tests::field::{ATTACKS, Attack, Field, Fire};
use claw_tests::ground::Ground;
use claw_tests::programs::PATIENCE;
use serde_json::Value;

use super::deploy;
use super::rig::Rig;
use super::table::{Samples, Table};
use crate::cargo::{cargo, run as run_command, target};

/// The program that applies rules; see its own description.
const PROGRAM: &str = "firewall_apply";
/// Where it lies on the host.
const INSIDE: &str = "/usr/local/bin/firewall_apply";
/// How long one size may take: rule by rule, two thousand rules take a quarter of a minute.
const LONG: Duration = Duration::from_secs(900);
/// Instances, and how often the baseline is taken: at 200 it would take hours.
const INSTANCES: [(u32, usize); 3] = [(1, 10), (20, 2), (200, 0)];
/// Entries of an allowlist.
const ENTRIES: [u32; 4] = [20, 200, 2_000, 20_000];
/// Replacements and other things that are done under fire.
const REPLACES: u32 = 20;
const TIMES: usize = 5;
/// How often each attack is made.
const ATTACKED: usize = 3;

pub(super) fn run(rounds: usize) -> Result<()> {
    let mut rig = Rig::start("bench-firewall")?;
    let mut tables = applies(&rig, rounds)?;
    tables.extend(under_fire(&mut rig)?);
    tables.iter().for_each(Table::print);
    Ok(())
}

/// On a host without the product, whose kernel the program has for itself.
fn applies(rig: &Rig, rounds: usize) -> Result<Vec<Table>> {
    let mut build = cargo(&["build", "--quiet", "--locked", "--release", "--package"]);
    build.args(["claw-tests", "--example", PROGRAM]);
    run_command(build)?;
    let host = rig.fleet.lab().boot(HostOptions::named("plain"))?;
    host.wait_until_active("docker.service", PATIENCE)?;
    host.copy_in(&target().join("release/examples").join(PROGRAM), INSIDE)?;
    let rounds_text = rounds.to_string();

    let columns = ["what", "median", "10 %", "90 %", "goal"];
    let mut rules =
        Table::new("firewall: apply, both families; every chain changed unless said", &columns);
    for (instances, baseline) in INSTANCES {
        let baseline = baseline.min(rounds).to_string();
        let samples = measure(&host, &["rules", &instances.to_string(), &rounds_text, &baseline])?;
        let goal = if instances == 20 { "≤ 60" } else { "" };
        let one = samples.one.unwrap_or_default();
        let what = format!("{instances} instances, {} rules", samples.rules);
        rules.samples(&format!("{what}: apply, ms"), &samples.apply, goal);
        rules.samples(&format!("{what}: apply, one instance changed, ms"), &one, "");
        rules.samples(&format!("{what}: read back and compare, ms"), &samples.verify, "");
        match samples.baseline {
            Some(baseline) => {
                rules.samples(&format!("{what}: rule by rule, ms"), &baseline, "baseline");
            }
            None => rules.row(&[
                format!("{what}: rule by rule"),
                "not run".to_owned(),
                String::new(),
                String::new(),
                "baseline".to_owned(),
            ]),
        }
    }
    let mut lists = Table::new("firewall: an allowlist, every entry changed", &columns);
    for entries in ENTRIES {
        let samples = measure(&host, &["list", &entries.to_string(), &rounds_text])?;
        lists.samples(&format!("{entries} entries: apply, ms"), &samples.apply, "");
        lists.samples(
            &format!("{entries} entries: read back and compare, ms"),
            &samples.verify,
            "",
        );
    }
    Ok(vec![rules, lists])
}

/// What the program printed.
#[derive(Debug, Default)]
struct Applies {
    rules: u64,
    apply: Samples,
    verify: Samples,
    baseline: Option<Samples>,
    /// Applies that change one instance's chains only.
    one: Option<Samples>,
}

fn measure(host: &LabHost, arguments: &[&str]) -> Result<Applies> {
    let argv = [&[INSIDE], arguments].concat();
    let output = host.exec_with(&argv, &[], LONG)?;
    anyhow::ensure!(output.success(), "{argv:?}: {}{}", output.stdout, output.stderr);
    let mut found = Applies::default();
    for line in output.stdout.lines() {
        let sample: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        if sample["first"] == true {
            continue;
        }
        if let Some(one) = sample["one"].as_f64() {
            found.one.get_or_insert_default().push(one);
            continue;
        }
        found.rules = sample["rules"].as_u64().context("no count")?;
        found.apply.push(sample["apply"].as_f64().context("no time")?);
        found.verify.push(sample["verify"].as_f64().context("no time")?);
        if let Some(baseline) = sample["baseline"].as_f64() {
            found.baseline.get_or_insert_default().push(baseline);
        }
    }
    Ok(found)
}

/// Through the whole product, on its own host.
fn under_fire(rig: &mut Rig) -> Result<Vec<Table>> {
    let names = ["first", "second"];
    for name in names {
        let request = deploy::request(name, rig.host.name(), &rig.image.reference);
        rig.client.call("claw.fleet.v1.InstanceService/CreateInstance", &request)?;
    }
    for name in names {
        rig.fleet.until_phase(name, "running", PATIENCE)?;
    }
    rig.fleet.until_firewall(&rig.host)?;
    let ground = Ground::start(rig.fleet.lab())?;
    let field = Field::prepare(&rig.fleet, &rig.host, &ground, names)?;
    Ok(vec![leaks(rig, &field)?, heals(&field)?])
}

fn leaks(rig: &Rig, field: &Field<'_>) -> Result<Table> {
    let columns = ["under fire", "attempts", "per second", "leaked", "goal"];
    let mut table = Table::new("firewall: connects that leak", &columns);
    let docker = || -> Result<()> {
        rig.host.exec_ok(&["systemctl", "restart", "docker.service"])?;
        rig.fleet.until_phase("first", "running", PATIENCE).map(drop)
    };
    let mut row = |what: &str, fire: &Fire| table.row(&leak_row(what, fire));
    let replace = || (0..REPLACES).try_for_each(|round| field.replace(round));
    row(&format!("policy replaced × {REPLACES}"), &field.during(replace)?);
    row(&format!("docker network create, rm × {TIMES}"), &field.during(|| field.churn(TIMES))?);
    row(&format!("iptables -F, ip6tables -F × {TIMES}"), &field.during(|| field.flush(TIMES))?);
    row("docker restart", &field.during(docker)?);
    Ok(table)
}

fn leak_row(what: &str, fire: &Fire) -> [String; 5] {
    let both = |of: fn(&Seen) -> f64| of(&fire.egress) + of(&fire.ingress);
    let attempts = fire.egress.attempts + fire.ingress.attempts;
    let rate = both(Seen::rate);
    let leaked = fire.leaks();
    [
        what.to_owned(),
        attempts.to_string(),
        format!("{rate:.0}"),
        leaked.to_string(),
        "0".to_owned(),
    ]
}

/// How long something was amiss after others changed the rules, by the connects of an instance.
fn heals(field: &Field<'_>) -> Result<Table> {
    let columns = ["what was done", "median", "10 %", "90 %", "goal"];
    let mut table = Table::new("firewall: time to heal", &columns);
    for attack in ATTACKS {
        let (mut amiss, mut open) = (Samples::default(), Samples::default());
        for _ in 0..ATTACKED {
            let healed = field.attacked(attack)?;
            amiss.push(healed.amiss_for().as_secs_f64() * 1000.0);
            open.push(f64::from(u32::try_from(healed.fire.leaks())?));
        }
        table.samples(&row_name(attack, "amiss, ms"), &amiss, "≤ 100");
        table.samples(&row_name(attack, "connects that came through"), &open, "");
    }
    Ok(table)
}

fn row_name(attack: Attack, what: &str) -> String {
    format!("{}: {what}", attack.name)
}
