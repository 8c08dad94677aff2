//! The disk runs full in the midst of an update or a rollback, earlier and earlier, while others fill it: one
//! version serves with everything that was acknowledged, the cause is said, and all goes on once there is room.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use claw_lab::command;
use claw_tests::fleet::until;
use claw_tests::strike;
use claw_tests::unit::outside;
use claw_tests::versions::{V1, V1_AGAIN, Version};
use claw_tests::{Restic, Rig, Tenant, journal};
use serde_json::{Value, json};

use crate::ground::{RECOVERY, SOON, start};

/// MiB of the instance's data, in files of a quarter of one.
const DATA: u64 = 16;
/// MiB that are left for everything while an update or a rollback is made ready: none, some files, all but what
/// the snapshot takes that follows, enough.
const UPDATES: [u64; 5] = [0, 1, 6, 17, 60];
const ROLLBACKS: [u64; 2] = [0, 6];

/// So long a change that has no room waits before it is looked at.
const REFUSED: Duration = Duration::from_secs(30);

#[test]
fn a_disk_that_runs_full_in_the_midst_of_a_change_harms_nothing() -> Result<()> {
    let rig = start("room", 1400, &[V1, V1_AGAIN])?;
    let mut demo = Tenant::new(&rig, "demo", V1);
    demo.instance.more.insert("update".into(), json!({ "rehearsal": "never" }));
    demo.instance.more.insert("backup".into(), json!({ "every": "0s", "drillEvery": "0s" }));
    rig.step("an instance serves with some data and a snapshot", || {
        demo.deploy()?;
        let data = "/var/lib/clawd/instances/demo/gen-1/media";
        let fill = format!(
            "mkdir {data} && for n in $(seq {}); do head -c 256K /dev/urandom > {data}/$n; done && \
             chown -R 1000:1000 {data} && chmod 2770 {data}",
            DATA * 4
        );
        rig.host().exec_ok(&["sh", "-c", &fill])?;
        rig.fleet().take_snapshot("demo", "first", SOON).map(drop)
    })?;
    let mut versions = [V1_AGAIN, V1].into_iter().cycle();
    for left in UPDATES {
        let version = versions.next().context("no version")?;
        rig.step(&format!("{left} MiB are left during an update"), || {
            update(&rig, &mut demo, version, left)
        })?;
    }
    let version = versions.nth(1).context("no version")?;
    for left in ROLLBACKS {
        rig.step(&format!("{left} MiB are left during a rollback"), || {
            rollback(&rig, &demo, version, left)
        })?;
    }
    rig.step("a directory's setgid bit and the repository are whole", || {
        let media = format!("{}/media", in_use(&rig)?);
        let mode = rig.host().exec_ok(&["stat", "-c", "%a %u %g", &media])?;
        ensure!(mode.trim() == "2770 1000 1000", "{mode}");
        Restic::of(rig.fleet(), rig.host(), "demo")?.run(&["check", "--read-data"]).map(drop)
    })
}

fn update(rig: &Rig, demo: &mut Tenant<'_>, version: Version, left: u64) -> Result<()> {
    until_held(rig)?;
    let before = demo.control("build")?;
    let key = format!("{}-{left}", version.tag);
    demo.write(&key, "x")?;
    let full = Full::arm(rig, left, "copying")?;
    full.during(|| demo.ask_for(version))?;
    let image = version.reference();
    let status =
        rig.fleet().until_status("demo", "its end or its want of room", REFUSED, |status| {
            status["active"]["image"] == image || says_full(status)
        })?;
    let confirmed = status["active"]["image"] == image;
    rig.note(&format!("  confirmed: {confirmed}; {}", status["message"]));
    rig.fleet().until_serving(rig.host(), "demo")?;
    let now = demo.control("build")?;
    ensure!(now == version.tag || now == before, "{now} serves");
    ensure!(demo.keys()?.contains(&key), "an acknowledged row is lost");
    if !confirmed && left == 0 {
        until_figures(rig)?;
    }
    full.empty(rig)?;
    demo.until_confirmed(version)?;
    demo.assert_serves(version)?;
    ensure!(demo.keys()?.contains(&key), "an acknowledged row is lost");
    Ok(())
}

fn rollback(rig: &Rig, demo: &Tenant<'_>, version: Version, left: u64) -> Result<()> {
    until_held(rig)?;
    let name = format!("r{left}");
    demo.write(&name, "x")?;
    // An agent that has just started looks first what there is.
    rig.fleet().until(SOON, "a snapshot to be begun", |fleet| {
        let asked = fleet.clawctl(&["snapshot", "create", "demo", &name])?;
        if asked.success() { Ok(Some(())) } else { bail!("{}", asked.stderr) }
    })?;
    rig.fleet().until_snapshot("demo", &name, "ready", SOON)?;
    demo.write("late", "x")?;
    let before = journal::record(rig.host(), "demo")?["restored"].clone();
    let full = Full::arm(rig, left, "partial")?;
    full.during(|| rig.fleet().clawctl_ok(&["rollback", "demo", "--snapshot", &name]).map(drop))?;
    let over =
        || -> Result<bool> { Ok(journal::record(rig.host(), "demo")?["restored"] != before) };
    until(REFUSED, "its end or its want of room", || {
        let status = rig.fleet().instance("demo")?["status"].clone();
        if over()? || says_full(&status) { Ok(Some(())) } else { bail!("it is {status}") }
    })?;
    rig.note(&format!(
        "  done: {}; {}",
        over()?,
        rig.fleet().instance("demo")?["status"]["message"]
    ));
    rig.fleet().until_serving(rig.host(), "demo")?;
    if !over()? && left == 0 {
        until_figures(rig)?;
    }
    full.empty(rig)?;
    until(RECOVERY, "the rollback", || Ok(over()?.then_some(())))?;
    demo.until_confirmed(version)?;
    demo.assert_serves(version)?;
    let keys = demo.keys()?;
    ensure!(keys.contains(&name) && !keys.contains("late"), "{keys:?}");
    Ok(())
}

/// The data that the last change replaced is held by a snapshot: the next change waits for that.
fn until_held(rig: &Rig) -> Result<()> {
    rig.fleet().until_status("demo", "nothing to be under way", RECOVERY, |status| {
        status["operation"].is_null()
    })?;
    Ok(())
}

fn says_full(status: &Value) -> bool {
    let text = format!("{} {}", status["message"], status["refused"]["problem"]);
    ["full", "No space", "no room", "kept free"].iter().any(|words| text.contains(words))
}

/// The next attempt says how much is needed and how much there is.
fn until_figures(rig: &Rig) -> Result<()> {
    let status = rig.fleet().until_status("demo", "figures", RECOVERY, |status| {
        says_full(status) && status["message"].to_string().contains("MiB")
    })?;
    rig.note(&format!("  {}", status["message"]));
    Ok(())
}

fn in_use(rig: &Rig) -> Result<String> {
    let active = journal::record(rig.host(), "demo")?["active"]["data"].as_u64();
    Ok(format!("/var/lib/clawd/instances/demo/gen-{}", active.context("no data")?))
}

/// A file that takes all room but some, from a moment on.
struct Full {
    file: PathBuf,
    home: PathBuf,
    mib: u64,
    moment: &'static str,
}

impl Full {
    /// `moment`: the extension of what a change makes in the instance's directory first.
    fn arm(rig: &Rig, left: u64, moment: &'static str) -> Result<Self> {
        let free = ["df", "--output=avail", "-B1M", "/var/lib/clawd"];
        let free = rig.host().exec_ok(&free)?;
        let free: u64 = free.lines().last().context("no df")?.trim().parse()?;
        let file = outside(rig.host(), "/var/lib/clawd/fill")?;
        let home = outside(rig.host(), "/var/lib/clawd/instances/demo")?;
        Ok(Self { file, home, mib: free.saturating_sub(left), moment })
    }

    fn during(&self, ask: impl FnOnce() -> Result<()>) -> Result<()> {
        std::thread::scope(|scope| {
            let filler = scope.spawn(|| {
                strike::at(self.moment, || Ok(has(&self.home, self.moment)))?;
                self.fill()
            });
            ask()?;
            filler.join().map_err(|_| anyhow::anyhow!("the filler panicked"))?
        })
    }

    /// As much as it can: what is copied meanwhile is taken too.
    fn fill(&self) -> Result<()> {
        for mib in (0..=self.mib).rev().take(64) {
            let mut fallocate = command("fallocate");
            fallocate.arg("-l").arg(format!("{mib}MiB")).arg(&self.file);
            if fallocate.output()?.status.success() {
                return Ok(());
            }
        }
        bail!("the disk cannot be filled")
    }

    /// Gives the room back, to an agent that tries at once what had failed.
    fn empty(&self, rig: &Rig) -> Result<()> {
        std::fs::remove_file(&self.file).context("nothing was filled")?;
        rig.host().exec_ok(&["systemctl", "restart", "clawd.service"])?;
        rig.fleet().until_online(rig.host())
    }
}

fn has(home: &Path, extension: &str) -> bool {
    let entries = std::fs::read_dir(home).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).any(|path| path.extension().is_some_and(|e| e == extension))
}
