//! What clawd costs a host that does nothing: memory, CPU, wake-ups.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use claw_lab::LabHost;
use claw_tests::fleet::until;

use super::deploy;
use super::rig::{Rig, now};
use super::table::Table;

/// How long an idle agent is watched.
const WATCHED: Duration = Duration::from_secs(60);

/// Kills that stand for a day's events: one every ten minutes would be 144.
const CHURN: usize = 144;

pub(super) fn run() -> Result<()> {
    let mut rig = Rig::start("bench-footprint")?;
    let columns = ["idle 60 s", "RSS MiB", "PSS MiB", "CPU %", "wake-ups/s"];
    let mut table = Table::new("footprint", &columns);
    table.row(&["goal with 1 instance", "≤ 10", "", "≤ 0.1", "≤ 5"].map(ToOwned::to_owned));
    create(&mut rig, 1)?;
    table.row(&measure(&rig.host, "1 instance, connected")?);
    create(&mut rig, 10)?;
    table.row(&measure(&rig.host, "10 instances, connected")?);
    churn(&rig)?;
    table.row(&measure(&rig.host, &format!("10 instances, after {CHURN} kills and heals"))?);
    rig.fleet.kill_coordinator()?;
    table.row(&measure(&rig.host, "10 instances, coordinator gone")?);
    table.print();
    Ok(())
}

/// Creates instances up to `count` and waits until all run.
fn create(rig: &mut Rig, count: usize) -> Result<()> {
    for index in 0..count {
        let name = format!("idle{index}");
        if rig.fleet.instance(&name).is_ok() {
            continue;
        }
        let request = deploy::request(&name, rig.host.name(), &rig.image.reference);
        rig.client.call("claw.fleet.v1.InstanceService/CreateInstance", &request)?;
    }
    for index in 0..count {
        rig.fleet.until_phase(&format!("idle{index}"), "running", Duration::from_secs(60))?;
    }
    Ok(())
}

/// Kills containers in turn and waits until each is back; a rebuild in between clears the restart
/// policy's memory, so that every kill is healed at once.
fn churn(rig: &Rig) -> Result<()> {
    for round in 0..CHURN {
        let name = format!("idle{}", round % 10);
        if round >= 10 {
            rig.fleet.clawctl_ok(&["rebuild", &name, "--wait"])?;
        }
        rig.docker.kill(&format!("claw-{name}"))?;
        until(Duration::from_secs(30), "the instance to be back", || {
            let found = rig.docker.inspect(&format!("claw-{name}"))?;
            Ok((found["State"]["Running"] == true).then_some(()))
        })?;
    }
    Ok(())
}

fn measure(host: &LabHost, what: &str) -> Result<[String; 5]> {
    let pid = host.exec_ok(&["systemctl", "show", "--property=MainPID", "--value", "clawd"])?;
    let before = Reading::of(host, &pid)?;
    let start = now();
    until(WATCHED * 2, "the minute to pass", || {
        Ok((now() - start >= WATCHED.as_secs_f64()).then_some(()))
    })?;
    let after = Reading::of(host, &pid)?;
    let seconds = now() - start;
    let ticks_per_second = 100.0; // USER_HZ of every Linux architecture we ship for (time(7))
    let cpu = (after.ticks - before.ticks) / ticks_per_second / seconds * 100.0;
    let wakeups = after.switches_since(&before) / seconds;
    let [rss, pss] = [after.rss_kib, after.pss_kib].map(|kib| format!("{:.1}", kib / 1024.0));
    Ok([what.to_owned(), rss, pss, format!("{cpu:.3}"), format!("{wakeups:.1}")])
}

/// What /proc says of a process.
struct Reading {
    rss_kib: f64,
    pss_kib: f64,
    ticks: f64,
    /// Voluntary context switches by thread.
    switches: BTreeMap<String, f64>,
}

impl Reading {
    /// Switches of the threads that lived at both times; one that ended took its counter with it.
    fn switches_since(&self, before: &Self) -> f64 {
        let since = |(thread, count): (&String, &f64)| Some(count - before.switches.get(thread)?);
        self.switches.iter().filter_map(since).sum()
    }

    fn of(host: &LabHost, pid: &str) -> Result<Self> {
        let read = |name: &str| host.exec_ok(&["cat", &format!("/proc/{pid}/{name}")]);
        let rollup = read("smaps_rollup")?;
        let stat = read("stat")?;
        let (_, fields) = stat.rsplit_once(')').context("no stat")?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let tick =
            |index: usize| fields.get(index).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
        let counters = format!("grep -H ^voluntary_ctxt_switches /proc/{pid}/task/*/status");
        let tasks = host.exec_ok(&["sh", "-c", &counters])?;
        Ok(Self {
            rss_kib: sum(&rollup, "Rss:"),
            pss_kib: sum(&rollup, "Pss:"),
            ticks: tick(11) + tick(12),
            switches: by_thread(&tasks),
        })
    }
}

/// `/proc/PID/task/TID/status:voluntary_ctxt_switches:<tab>N` of each thread.
fn by_thread(text: &str) -> BTreeMap<String, f64> {
    let line = |line: &str| {
        let (path, rest) = line.split_once(':')?;
        let (_, count) = rest.split_once(':')?;
        Some((path.to_owned(), count.trim().parse().ok()?))
    };
    text.lines().filter_map(line).collect()
}

/// The sum of every line that starts with `key`.
fn sum(text: &str, key: &str) -> f64 {
    let lines = text.lines().filter_map(|line| line.strip_prefix(key));
    lines.filter_map(|rest| rest.split_whitespace().next()?.parse::<f64>().ok()).sum()
}
