//! Snapshots of a running instance: the first and later ones, what they cost and for how long it stands
//! still; a restore and a verification of all data; against restic on the same files.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use claw_tests::Pulse;
use claw_tests::versions::V1;
use serde_json::{Value, json};

use super::deploy;
use super::load::Load;
use super::rig::{Rig, now};
use super::table::Table;

/// The last ones are small: it is their number that counts, and they still fit on any disk five times.
const SIZES: [Load; 3] = [
    Load { files: 2_500, kib: 20 },
    Load { files: 20_000, kib: 20 },
    Load { files: 100_000, kib: 4 },
];
/// Snapshots after the first, with a hundredth of the files changed before each.
const LATER: usize = 3;
/// The first snapshot of two gigabytes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(900);
const COLUMNS: [&str; 9] = [
    "what",
    "wall, s",
    "CPU, s",
    "CPU ÷ restic",
    "goal",
    "peak RSS, MiB (goal 96)",
    "held, ms (goal 500)",
    "slowest answer, ms",
    "requests without answer",
];

pub(super) fn run() -> Result<()> {
    let mut rig = Rig::with("bench-snapshot", &[V1])?;
    let mut table = Table::new("snapshot", &COLUMNS);
    for load in SIZES {
        let name = format!("n{}", load.files);
        create(&mut rig, &name)?;
        let data = load.fill(&rig.host, &name)?;
        let restic = Restic::new(rig.fleet.lab().dir().join(format!("restic-{name}")))?;
        let case = Case { rig: &rig, name: &name, load, data: &data, restic };
        case.snapshot("first", 0, 1.25, &mut table)?;
        for pass in 1..=LATER {
            load.change(&data)?;
            case.snapshot("1 % changed", pass, 0.7, &mut table)?;
        }
        case.verify(&mut table)?;
        case.restore(&mut table)?;
        fs::remove_dir_all(&case.restic.0)?;
        rig.fleet.clawctl_ok(&["delete", &name, "--wait", "--timeout", "600s"])?;
    }
    table.print();
    Ok(())
}

/// An instance with so many files.
struct Case<'a> {
    rig: &'a Rig,
    name: &'a str,
    load: Load,
    data: &'a Path,
    restic: Restic,
}

impl Case<'_> {
    fn snapshot(&self, what: &str, pass: usize, goal: f64, table: &mut Table) -> Result<()> {
        let Case { rig, name, data, .. } = self;
        let base =
            measure("restic", || self.restic.run(&["backup", "--quiet", &data.to_string_lossy()]))?;
        let mut events = rig.docker.events()?;
        let pulse = Pulse::start(&rig.fleet, &rig.host, name, &format!("p{pass}"))?;
        let taken = measure("snap-worker", || {
            rig.fleet.take_snapshot(name, &format!("s{pass}"), PATIENCE).map(drop)
        });
        let heard = pulse.stop()?;
        let container = format!("claw-{name}");
        let mut at = |action| events.until(&container, action).map(|event| nanoseconds(&event));
        let held = (at("pause")?, at("unpause")?);
        let pause = held.1.zip(held.0).map_or(f64::NAN, |(end, start)| (end - start) / 1e6);
        let unanswered = format!("{} of {}", heard.failures().count(), heard.beats().len());
        let noticed = [format!("{pause:.0}"), heard.slowest().as_millis().to_string(), unanswered];
        self.compare((what, Some(goal)), (&base, &taken?), noticed, table);
        Ok(())
    }

    /// All data: indexes, trees, and every blob read and unpacked.
    fn verify(&self, table: &mut Table) -> Result<()> {
        let base = measure("restic", || self.restic.run(&["check", "--quiet", "--read-data"]))?;
        let seen = measure("snap-worker", || {
            let verify = ["snapshot", "verify", self.name, "--data", "--wait", "--timeout", "900s"];
            self.rig.fleet.clawctl_ok(&verify).map(drop)
        })?;
        self.compare(("all data verified", None), (&base, &seen), Default::default(), table);
        Ok(())
    }

    /// As part of a rollback, of whose work only that of the process that restores counts. Before restic's:
    /// where files were just deleted, ext4 takes long to find room for new ones.
    fn restore(&self, table: &mut Table) -> Result<()> {
        let seen = measure("snap-worker", || {
            let snapshot = format!("s{LATER}");
            let rollback = ["rollback", self.name, "--snapshot", &snapshot, "--wait"];
            self.rig.fleet.clawctl_ok(&[&rollback[..], &["--timeout", "900s"]].concat()).map(drop)
        })?;
        let into = self.restic.0.with_extension("restored");
        let base = measure("restic", || {
            self.restic.run(&["restore", "--quiet", "latest", "--target", &into.to_string_lossy()])
        })?;
        fs::remove_dir_all(into)?;
        let seen = Cost { cpu: seen.dearest, ..seen };
        self.compare(("restored", Some(0.8)), (&base, &seen), Default::default(), table);
        Ok(())
    }

    /// Two rows; `noticed` is what customers had of ours.
    fn compare(
        &self,
        (what, goal): (&str, Option<f64>),
        (base, ours): (&Cost, &Cost),
        noticed: [String; 3],
        table: &mut Table,
    ) {
        let what = format!("{} files of {} KiB, {what}", self.load.files, self.load.kib);
        let blank = Default::default();
        table.row(&base.cells(&format!("restic, {what}"), Default::default(), blank));
        let goal = goal.map(|goal| format!("≤ {goal}")).unwrap_or_default();
        let ratio = format!("{:.2}", ours.cpu / base.cpu);
        table.row(&ours.cells(&format!("clawd, {what}"), [ratio, goal], noticed));
    }
}

/// When an event was, in nanoseconds since the Unix epoch.
fn nanoseconds(event: &Value) -> Option<f64> {
    event["timeNano"].as_f64()
}

fn create(rig: &mut Rig, name: &str) -> Result<()> {
    let mut request = deploy::request(name, rig.host.name(), &V1.reference());
    let spec = &mut request["instance"]["spec"];
    spec["env"] = json!({ "CLAW_FAKE_CONTROL": "1" });
    spec["backup"] = json!({ "every": "0s", "drillEvery": "0s" });
    rig.client.call("claw.fleet.v1.InstanceService/CreateInstance", &request)?;
    rig.fleet.until_phase(name, "running", PATIENCE)?;
    rig.fleet.until_serving(&rig.host, name)
}

/// A repository of restic's.
struct Restic(PathBuf);

impl Restic {
    fn new(repository: PathBuf) -> Result<Self> {
        let restic = Self(repository);
        restic.run(&["init", "--quiet"])?;
        Ok(restic)
    }

    fn run(&self, arguments: &[&str]) -> Result<()> {
        let mut restic = claw_lab::command("restic");
        restic.args(["--no-cache", "-r"]).arg(&self.0).args(arguments);
        let status =
            restic.env("RESTIC_PASSWORD", "bench").status().context("cannot run restic")?;
        ensure!(status.success(), "restic {arguments:?}: {status}");
        Ok(())
    }
}

/// What something cost.
struct Cost {
    wall: f64,
    cpu: f64,
    /// CPU of the process that took most of it.
    dearest: f64,
    peak_mib: f64,
}

impl Cost {
    fn cells(&self, what: &str, [ratio, goal]: [String; 2], noticed: [String; 3]) -> [String; 9] {
        let [held, slowest, unanswered] = noticed;
        [
            what.to_owned(),
            format!("{:.2}", self.wall),
            format!("{:.2}", self.cpu),
            ratio,
            goal,
            format!("{:.0}", self.peak_mib),
            held,
            slowest,
            unanswered,
        ]
    }
}

/// Does something, and watches the processes whose command line has `word` meanwhile.
fn measure(word: &'static str, work: impl FnOnce() -> Result<()>) -> Result<Cost> {
    let sampler = Sampler::start(word)?;
    let start = now();
    let done = work();
    let wall = now() - start;
    let seen = sampler.stop()?;
    done?;
    // USER_HZ of every Linux architecture we ship for (time(7)).
    let cpu = seen.values().map(|(ticks, _)| ticks).sum::<f64>() / 100.0;
    let dearest = seen.values().map(|(ticks, _)| ticks / 100.0).fold(0.0, f64::max);
    let peak_mib = seen.values().map(|(_, kib)| kib / 1024.0).fold(0.0, f64::max);
    Ok(Cost { wall, cpu, dearest, peak_mib })
}

/// By process: clock ticks and peak memory in KiB, as far as they were seen.
type Seen = BTreeMap<String, (f64, f64)>;

struct Sampler {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Seen>,
}

impl Sampler {
    fn start(word: &'static str) -> Result<Self> {
        let over = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&over);
        let thread = std::thread::Builder::new().spawn(move || {
            let mut seen = Seen::new();
            while !stop.load(Ordering::Relaxed) {
                sample(word, &mut seen);
                std::thread::sleep(Duration::from_millis(10));
            }
            seen
        })?;
        Ok(Self { over, thread })
    }

    fn stop(self) -> Result<Seen> {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the sampler panicked"))
    }
}

fn sample(word: &str, seen: &mut Seen) {
    let Ok(processes) = fs::read_dir("/proc") else { return };
    for process in processes.flatten() {
        let dir = process.path();
        let Ok(line) = fs::read(dir.join("cmdline")) else { continue };
        if !String::from_utf8_lossy(&line).contains(word) {
            continue;
        }
        if let Some(found) = usage(&dir) {
            seen.insert(dir.to_string_lossy().into_owned(), found);
        }
    }
}

/// Ticks and peak memory of a process; `None` when it is gone.
fn usage(dir: &Path) -> Option<(f64, f64)> {
    let stat = fs::read_to_string(dir.join("stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let tick = |index: usize| fields.get(index)?.parse::<f64>().ok();
    let status = fs::read_to_string(dir.join("status")).ok()?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let peak = peak.split_whitespace().next()?.parse().ok()?;
    Some((tick(11)? + tick(12)?, peak))
}
