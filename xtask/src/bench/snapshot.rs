//! Snapshots of a running instance: the first and a later one, what they cost and for how long it stands
//! still, against restic on the same files.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use claw_tests::Pulse;
use claw_tests::pulse::Heard;
use claw_tests::versions::V1;
use serde_json::json;

use super::rig::{Rig, now};
use super::table::Table;
use super::{deploy, load};

/// Numbers of files, 20 KiB each.
const SIZES: [usize; 3] = [2_500, 20_000, 100_000];
/// The first snapshot of two gigabytes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(900);

pub(super) fn run() -> Result<()> {
    let mut rig = Rig::with("bench-snapshot", &[V1])?;
    let columns = ["what", "wall, s", "CPU, s", "peak RSS, MiB", "slowest answer, ms"];
    let mut table = Table::new("snapshot", &columns);
    for count in SIZES {
        let name = format!("n{count}");
        create(&mut rig, &name)?;
        let data = load::fill(&rig.host, &name, count)?;
        let repository = rig.fleet.lab().dir().join(format!("restic-{count}"));
        restic(&repository, &["init", "--quiet"])?;
        for (pass, what) in ["first", "1 % changed"].into_iter().enumerate() {
            if pass > 0 {
                load::change(&data, count)?;
            }
            let seen = measure("restic", || {
                restic(&repository, &["backup", "--quiet", &data.to_string_lossy()])
            })?;
            table.row(&seen.cells(&format!("restic, {count} files, {what}"), None));
            let pulse =
                Pulse::start(&rig.fleet, &rig.host, &name, what.split(' ').next().unwrap_or("p"))?;
            let seen = measure("snap-worker", || {
                rig.fleet.take_snapshot(&name, &format!("s{pass}"), PATIENCE).map(drop)
            })?;
            let heard = pulse.stop()?;
            ensure!(heard.failures().next().is_none(), "customers noticed: {heard}");
            table.row(&seen.cells(&format!("clawd, {count} files, {what}"), Some(&heard)));
        }
        fs::remove_dir_all(repository)?;
        rig.fleet.clawctl_ok(&["delete", &name, "--wait", "--timeout", "600s"])?;
    }
    table.print();
    Ok(())
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

fn restic(repository: &Path, arguments: &[&str]) -> Result<()> {
    let mut restic = claw_lab::command("restic");
    restic.args(["--no-cache", "-r"]).arg(repository).args(arguments);
    let status = restic.env("RESTIC_PASSWORD", "bench").status().context("cannot run restic")?;
    ensure!(status.success(), "restic {arguments:?}: {status}");
    Ok(())
}

/// What something cost.
struct Cost {
    wall: f64,
    cpu: f64,
    peak_mib: f64,
}

impl Cost {
    fn cells(&self, what: &str, heard: Option<&Heard>) -> [String; 5] {
        let slowest = heard.map(|heard| heard.slowest().as_millis().to_string());
        [
            what.to_owned(),
            format!("{:.2}", self.wall),
            format!("{:.2}", self.cpu),
            format!("{:.0}", self.peak_mib),
            slowest.unwrap_or_default(),
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
    let peak_mib = seen.values().map(|(_, kib)| kib / 1024.0).fold(0.0, f64::max);
    Ok(Cost { wall, cpu, peak_mib })
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
