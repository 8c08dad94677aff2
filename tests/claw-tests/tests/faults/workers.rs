//! The process of a job on snapshots is killed at every stage of it: nothing stays frozen, nothing is damaged, and
//! the job is done by the next process.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use claw_tests::fleet::until;
use claw_tests::programs::PATIENCE;
use claw_tests::strike;
use claw_tests::unit::outside;
use claw_tests::versions::V1;
use claw_tests::{Restic, Rig, Tenant, journal};
use serde_json::{Value, json};

use crate::ground::{SOON, start};

/// An instance whose process died stays frozen for no longer than the agent takes to hear of it.
const THAWED: Duration = Duration::from_secs(3);

const HOME: &str = "/var/lib/clawd/instances/demo";
const REPOSITORY: &str = "/var/lib/clawd/repo/demo";

struct Ground<'a> {
    rig: &'a Rig,
    demo: Tenant<'a>,
    repository: PathBuf,
}

#[test]
fn snapshot_workers_killed_at_every_stage_damage_and_freeze_nothing() -> Result<()> {
    let rig = start("workers", 4096, &[V1])?;
    let mut demo = Tenant::new(&rig, "demo", V1);
    demo.instance.more.insert("backup".into(), json!({ "every": "0s", "drillEvery": "0s" }));
    rig.step("an instance serves, and has a snapshot", || {
        demo.deploy()?;
        demo.write("a", "1")?;
        rig.fleet().take_snapshot("demo", "first", SOON).map(drop)
    })?;
    let repository = outside(rig.host(), REPOSITORY)?;
    let ground = Ground { rig: &rig, demo, repository };
    rig.step("killed in the first, live pass", || ground.take("live", Ground::in_live_pass))?;
    rig.step("killed while the instance is held", || ground.take("held", Ground::while_held))?;
    rig.step("killed while the copies are archived", || {
        ground.take("archived", Ground::once_released)
    })?;
    rig.step("killed while packs are removed", || ground.forget())?;
    rig.step("killed in a verification", || ground.verify())?;
    rig.step("killed in a restore", || ground.restore())?;
    rig.step("nothing is left over, nothing is damaged, no unit failed", || ground.is_clean())
}

impl Ground<'_> {
    /// New data in many files, as young as can be: they are read twice, and copied while it is held.
    fn grow(&self, name: &str) -> Result<()> {
        let active = journal::record(self.rig.host(), "demo")?["active"]["data"].as_u64();
        let data = format!("{HOME}/gen-{}/{name}", active.context("no data")?);
        let fill = format!(
            "mkdir {data} && for n in $(seq 40); do head -c 1M /dev/urandom > {data}/$n; done && \
             chown -R 1000:1000 {data}"
        );
        self.rig.host().exec_ok(&["sh", "-c", &fill]).map(drop)
    }

    /// Asks for a snapshot and kills its process at a moment; asks for another, and both are there.
    fn take(&self, name: &str, moment: impl FnOnce(&Self) -> Result<()> + Send) -> Result<()> {
        let fleet = self.rig.fleet();
        self.grow(name)?;
        let pulse = self.demo.pulse(name)?;
        self.kill(
            || moment(self),
            || fleet.clawctl_ok(&["snapshot", "create", "demo", name]).map(drop),
        )?;
        until(THAWED, "it not to be frozen", || {
            let found = self.rig.docker()?.inspect("claw-demo")?;
            Ok((found["State"]["Paused"] == false).then_some(()))
        })?;
        self.until_failed("taking")?;
        // Asking anew has what failed tried at once.
        let again = format!("{name}-2");
        fleet.take_snapshot("demo", &again, SOON)?;
        fleet.until_snapshot("demo", name, "ready", SOON)?;
        let heard = pulse.stop()?;
        self.rig.note(&format!("  {heard}"));
        let failed: Vec<_> = heard.failures().take(5).collect();
        ensure!(failed.is_empty(), "customers noticed: {failed:?}");
        self.demo.assert_serves(V1)?;
        self.demo.assert_has(&heard.acked(|_| true))
    }

    fn forget(&self) -> Result<()> {
        let fleet = self.rig.fleet();
        let snapshots = self.repository.join("snapshots");
        let before = strike::files_below(&snapshots);
        let gone =
            || strike::at("a snapshot to go", || Ok(strike::files_below(&snapshots) < before));
        self.kill(gone, || fleet.clawctl_ok(&["snapshot", "delete", "demo", "live"]).map(drop))?;
        self.until_failed("removing")?;
        fleet.clawctl_ok(&["snapshot", "delete", "demo", "live-2"])?;
        until(SOON, "both to be gone", || {
            let all =
                fleet.snapshots("demo")?.iter().map(|s| s["name"].to_string()).collect::<String>();
            Ok((!all.contains("/live")).then_some(()))
        })
    }

    fn verify(&self) -> Result<()> {
        let fleet = self.rig.fleet();
        self.kill(
            || self.verifying(),
            || fleet.clawctl_ok(&["snapshot", "verify", "demo", "--data"]).map(drop),
        )?;
        self.until_failed("verifying")?;
        let before = verified(fleet.json(&["snapshot", "list", "demo"])?);
        // Asking for something else has what failed tried at once.
        fleet.take_snapshot("demo", "verified", SOON)?;
        fleet.until_repository("demo", "it to be verified", SOON, |repository| {
            repository["verifyTime"] != before
                && repository["problem"].as_str().is_none_or(str::is_empty)
        })?;
        Ok(())
    }

    fn restore(&self) -> Result<()> {
        let fleet = self.rig.fleet();
        self.demo.write("late", "x")?;
        let before = journal::record(self.rig.host(), "demo")?["restored"].clone();
        let home = outside(self.rig.host(), HOME)?;
        let begun = || strike::at("a restore", || Ok(has_partial(&home)));
        self.kill(begun, || {
            fleet.clawctl_ok(&["rollback", "demo", "--snapshot", "held"]).map(drop)
        })?;
        until(PATIENCE, "the rollback to be over", || {
            let record = journal::record(self.rig.host(), "demo")?;
            let over = record["cutover"].is_null() && record["restored"] != before;
            if over { Ok(Some(())) } else { bail!("it is {record}") }
        })?;
        self.demo.until_confirmed(V1)?;
        self.demo.assert_serves(V1)?;
        let keys = self.demo.keys()?;
        ensure!(
            keys.contains("a") && keys.contains("held.0") && !keys.contains("late"),
            "{keys:?}"
        );
        Ok(())
    }

    fn is_clean(&self) -> Result<()> {
        let (fleet, host) = (self.rig.fleet(), self.rig.host());
        Restic::of(fleet, host, "demo")?.run(&["check", "--read-data"])?;
        ensure!(!self.staging().exists(), "copies of files are left");
        ensure!(!has_partial(&outside(host, HOME)?), "a half restored directory is left");
        let units =
            ["systemctl", "list-units", "--all", "--plain", "--no-legend", "clawd-snapshots@*"];
        let units = host.exec_ok(&units)?;
        ensure!(!units.contains("failed"), "{units}");
        Ok(())
    }

    fn kill(
        &self,
        moment: impl FnOnce() -> Result<()> + Send,
        ask: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        self.until_well()?;
        let host = self.rig.host();
        std::thread::scope(|scope| {
            let killer = scope.spawn(move || {
                moment()?;
                let killed = strike::kill_snapshot_workers(host)?;
                ensure!(killed > 0, "the kill came too late");
                Ok(())
            });
            ask()?;
            killer.join().map_err(|_| anyhow::anyhow!("the killer panicked"))?
        })
    }

    fn verifying(&self) -> Result<()> {
        self.rig.fleet().until_status("demo", "a verification", SOON, |status| {
            status["operation"].to_string().contains("verif")
        })?;
        strike::at("its process", || Ok(!strike::snapshot_workers(self.rig.host())?.is_empty()))
    }

    fn in_live_pass(&self) -> Result<()> {
        let data = self.repository.join("data");
        let before = strike::files_below(&data);
        strike::at("a new pack", || Ok(strike::files_below(&data) > before))?;
        ensure!(!self.staging().exists(), "it is held already");
        Ok(())
    }

    fn while_held(&self) -> Result<()> {
        let copies = self.staging();
        strike::at("a copy", || Ok(strike::files_below(&copies) > 1))
    }

    fn once_released(&self) -> Result<()> {
        self.rig.docker()?.events()?.until("claw-demo", "unpause").map(drop)
    }

    fn staging(&self) -> PathBuf {
        self.repository.with_extension("staging")
    }

    /// The failure of what was being done is reported, as one by a kill.
    fn until_failed(&self, doing: &str) -> Result<()> {
        let killed = |repository: &Value| {
            let problem = repository["problem"].as_str().unwrap_or_default();
            problem.contains(doing) && problem.contains("killed by signal 9")
        };
        let found =
            self.rig.fleet().until_repository("demo", "the kill to be told", SOON, killed)?;
        self.rig.note(&format!("  {}", found["problem"]));
        Ok(())
    }

    /// Nothing failed that was not done since, and nothing is under way.
    fn until_well(&self) -> Result<()> {
        let fleet = self.rig.fleet();
        let well = |repository: &Value| repository["problem"].as_str().is_none_or(str::is_empty);
        fleet.until_repository("demo", "nothing to be wrong", SOON, well)?;
        fleet.until_status("demo", "nothing to be under way", SOON, |status| {
            status["operation"].is_null()
        })?;
        until(SOON, "no process to be there", || {
            Ok(strike::snapshot_workers(self.rig.host())?.is_empty().then_some(()))
        })
    }
}

fn verified(list: Value) -> Value {
    list["repository"]["verifyTime"].clone()
}

fn has_partial(home: &Path) -> bool {
    let entries = std::fs::read_dir(home).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).any(|path| path.extension().is_some_and(|e| e == "partial"))
}
