//! What a disk fills with when nobody looks: images of old versions.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use claw_lab::{Cache, HostOptions, progress};
use claw_tests::backup::short_name;
use claw_tests::fleet::until;
use claw_tests::programs::PATIENCE;
use claw_tests::versions::{V1, V1_AGAIN, V2, V2_CRASH, V2_SLOW, Version};
use claw_tests::{Rig, Tenant, journal, rig};
use serde_json::Value;

/// A snapshot of a few megabytes.
const SOON: Duration = Duration::from_secs(30);
/// The agent's note of the images that specs have named.
const NOTE: &str = "images";

/// Nobody can turn the clock of one host alone: what is unneeded now has been so for longer than a day.
fn a_day_passes(rig: &Rig) -> Result<()> {
    let host = rig.host();
    host.exec_ok(&["systemctl", "stop", "clawd.service"])?;
    journal::edit_host_note(host, NOTE, |note| {
        let named = note["named"].as_object_mut().into_iter().flatten();
        for (_, since) in named {
            if let Some(millis) = since.as_i64() {
                *since = Value::from(millis - 25 * 3_600_000);
            }
        }
    })?;
    host.exec_ok(&["systemctl", "start", "clawd.service"])?;
    rig.fleet().until_online(host)
}

/// Waits until the agent has noticed that nobody needs these.
fn until_unneeded(rig: &Rig, versions: &[Version]) -> Result<()> {
    until(PATIENCE, "the old versions to be unneeded", || {
        let note = journal::host_note(rig.host(), NOTE)?;
        let unneeded = |version: &Version| note["named"][version.reference()].is_i64();
        ensure!(versions.iter().all(unneeded), "the note is {note}");
        Ok(Some(()))
    })
}

/// Waits until an image is gone, and says how that was told.
fn until_gone(rig: &Rig, version: Version) -> Result<String> {
    let docker = rig.docker()?;
    until(PATIENCE, "the image to go", || {
        Ok((!docker.has_image(&version.reference())?).then_some(()))
    })?;
    let named = format!("image {} was removed", version.reference());
    rig.fleet().until(PATIENCE, "its removal to be told", |fleet| {
        let told = fleet.events(rig.host())?.into_iter().find(|event| {
            let message = event["message"].as_str().unwrap_or_default();
            event["kind"] == "image_removed" && message.starts_with(&named)
        });
        Ok(told.and_then(|event| event["message"].as_str().map(str::to_owned)))
    })
}

fn assert_present(rig: &Rig, versions: &[Version]) -> Result<()> {
    let docker = rig.docker()?;
    for version in versions {
        ensure!(docker.has_image(&version.reference())?, "{} is gone", version.tag);
    }
    Ok(())
}

#[test]
fn an_old_image_goes_when_no_snapshot_and_no_way_back_needs_it() -> Result<()> {
    let cache = Cache::open(progress::terminal())?;
    let mut host = HostOptions::named("h1");
    for version in [V1, V2, V2_SLOW, V2_CRASH, V1_AGAIN] {
        host = host.with_image(&version.image(&cache)?);
    }
    let rig = Rig::with("images", rig::QUICK, &[host])?;
    let fleet = rig.fleet();
    let mut demo = Tenant::new(&rig, "demo", V1);
    rig.step("three versions follow each other, and a fourth fails", || {
        demo.deploy()?;
        demo.write("a", "1")?;
        fleet.take_snapshot("demo", "first", SOON)?;
        demo.ask_for(V2)?;
        demo.until_confirmed(V2)?;
        demo.ask_for(V2_SLOW)?;
        demo.until_confirmed(V2_SLOW)?;
        demo.ask_for(V2_CRASH)?;
        demo.until_refused(V2_CRASH)?;
        demo.ask_for(V2_SLOW)?;
        demo.until_confirmed(V2_SLOW)?;
        // Of the version before there is a snapshot by now, or soon.
        fleet.until(PATIENCE, "two snapshots before updates", |fleet| {
            Ok((fleet.snapshots_for("demo", "update")?.len() == 2).then_some(()))
        })
    })?;
    rig.step("a day later the one that failed is gone, and no other one", || {
        until_unneeded(&rig, &[V2_CRASH])?;
        a_day_passes(&rig)?;
        let told = until_gone(&rig, V2_CRASH)?;
        rig.note(&format!("  {told}"));
        assert_present(&rig, &[V1, V2, V2_SLOW, V1_AGAIN])?;
        demo.assert_serves(V2_SLOW)
    })?;
    rig.step("the first one goes a day after its last snapshot", || {
        for snapshot in fleet.snapshots("demo")? {
            if snapshot["image"] == V1.reference().as_str() {
                let name = short_name(&snapshot);
                fleet.clawctl_ok(&["snapshot", "delete", "demo", name])?;
            }
        }
        until_unneeded(&rig, &[V1])?;
        assert_present(&rig, &[V1])?;
        a_day_passes(&rig)?;
        until_gone(&rig, V1)?;
        assert_present(&rig, &[V2, V2_SLOW, V1_AGAIN])
    })?;
    rig.step("what is left is enough to go back", || {
        let before = fleet.snapshots_for("demo", "update")?;
        let of = |snapshot: &&Value| snapshot["image"] == V2.reference().as_str();
        let before = before.iter().find(of).context("no snapshot of the version before")?;
        fleet.clawctl_ok(&["rollback", "demo", "--to-snapshot", short_name(before)])?;
        demo.until_confirmed(V2)?;
        demo.assert_serves(V2)
    })
}
