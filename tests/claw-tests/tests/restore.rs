//! The way back: rollback to a snapshot or an earlier spec, restore drills, damaged repositories.

use std::collections::BTreeSet;
use std::io::{Read, Seek, SeekFrom, Write};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use claw_lab::{Cache, HostOptions, progress};
use claw_tests::backup::short_name;
use claw_tests::fleet::until;
use claw_tests::programs::PATIENCE;
use claw_tests::unit::outside;
use claw_tests::versions::{V1, V2, V2_SLOW, Version};
use claw_tests::{Rig, Tenant, UnitProcess, journal, rig};
use nix::sys::signal::Signal;
use serde_json::json;

/// A snapshot of a few megabytes.
const SOON: Duration = Duration::from_secs(30);

/// What a rollback passes through, as the journal calls it.
const STAGES: [&str; 3] = ["preparing", "switching", "probing"];

fn start(name: &str, versions: &[Version]) -> Result<Rig> {
    let cache = Cache::open(progress::terminal())?;
    let mut host = HostOptions::named("h1");
    for version in versions {
        host = host.with_image(&version.image(&cache)?);
    }
    Rig::with(name, rig::QUICK, &[host])
}

fn rows(keys: &[&str]) -> BTreeSet<String> {
    keys.iter().map(|key| (*key).to_owned()).collect()
}

/// The content of a file of the data in use.
fn file(rig: &Rig, name: &str, path: &str) -> Result<String> {
    let active = journal::record(rig.host(), name)?["active"]["data"].as_u64();
    let data = format!("/var/lib/clawd/instances/{name}/gen-{}", active.context("no data")?);
    Ok(String::from_utf8(rig.host().read_file(&format!("{data}/{path}"))?)?)
}

#[test]
fn a_rollback_brings_image_data_and_configuration_back_together() -> Result<()> {
    let rig = start("rollback", &[V1, V2])?;
    let fleet = rig.fleet();
    let mut demo = Tenant::new(&rig, "demo", V1);
    demo.instance.more.insert("files".into(), json!({ "note.txt": "one" }));
    let first = rig.step("an instance serves, and a snapshot of it is taken", || {
        demo.deploy()?;
        demo.write("a", "1")?;
        fleet.take_snapshot("demo", "good", SOON)?;
        fleet.instance("demo")?["revision"].as_u64().context("no revision")
    })?;
    rig.step("image, configuration and data become others", || {
        demo.instance.more.insert("files".into(), json!({ "note.txt": "two" }));
        demo.ask_for(V2)?;
        demo.until_confirmed(V2)?;
        demo.write("b", "2")?;
        assert_eq!(file(&rig, "demo", "note.txt")?, "two");
        Ok(())
    })?;
    rig.step("a rollback to the snapshot: everything is as it was", || {
        fleet.clawctl_ok(&["rollback", "demo", "--snapshot", "good"])?;
        demo.until_confirmed(V1)?;
        demo.assert_serves(V1)?;
        assert_eq!(demo.keys()?, rows(&["a"]));
        assert_eq!(demo.control("state-version")?, "18");
        assert_eq!(file(&rig, "demo", "note.txt")?, "one");
        let spec = &fleet.instance("demo")?["spec"];
        assert_eq!(spec["image"], V1.reference(), "{spec}");
        Ok(())
    })?;
    rig.step("what was replaced is a snapshot, and comes back the same way", || {
        demo.write("c", "3")?;
        let before = fleet.until(PATIENCE, "the snapshot of what was replaced", |fleet| {
            Ok(fleet.snapshots_for("demo", "restore")?.into_iter().next())
        })?;
        fleet.clawctl_ok(&["rollback", "demo", "--snapshot", short_name(&before)])?;
        demo.until_confirmed(V2)?;
        demo.assert_serves(V2)?;
        assert_eq!(demo.keys()?, rows(&["a", "b"]));
        assert_eq!(file(&rig, "demo", "note.txt")?, "two");
        Ok(())
    })?;
    rig.step("a rollback of the spec alone meets newer data: refused, and all goes on", || {
        fleet.clawctl_ok(&["rollback", "demo", "--revision", &first.to_string()])?;
        let why = demo.until_refused(V1)?;
        rig.note(&format!("  refused: {why}"));
        demo.assert_serves(V2)?;
        demo.assert_has(&rows(&["a", "b"]))
    })
}

#[test]
fn an_agent_killed_at_every_stage_of_a_rollback_finishes_it() -> Result<()> {
    let rig = start("rolling", &[V1, V2_SLOW])?;
    let fleet = rig.fleet();
    let demo = Tenant::new(&rig, "demo", V2_SLOW);
    rig.step("an instance serves with two snapshots", || {
        demo.deploy()?;
        demo.write("a", "1")?;
        fleet.take_snapshot("demo", "a", SOON)?;
        demo.write("b", "2")?;
        fleet.take_snapshot("demo", "b", SOON).map(drop)
    })?;
    for (stage, target) in STAGES.into_iter().zip(["a", "b", "a"]) {
        rig.step(&format!("killed while {stage} a rollback to {target}"), || {
            let before = journal::record(rig.host(), "demo")?["restored"].clone();
            killed_at(&rig, stage, || {
                fleet.clawctl_ok(&["rollback", "demo", "--snapshot", target]).map(drop)
            })?;
            until(PATIENCE, "the rollback to be over", || {
                let record = journal::record(rig.host(), "demo")?;
                let over = record["cutover"].is_null() && record["restored"] != before;
                if over { Ok(Some(())) } else { bail!("it is {record}") }
            })?;
            fleet.until_online(rig.host())?;
            demo.until_confirmed(V2_SLOW)?;
            demo.assert_serves(V2_SLOW)?;
            let expected = if target == "a" { rows(&["a"]) } else { rows(&["a", "b"]) };
            assert_eq!(demo.keys()?, expected);
            Ok(())
        })?;
    }
    Ok(())
}

/// Asks for something and kills the agent as soon as the journal names a stage of it.
fn killed_at(rig: &Rig, stage: &str, ask: impl FnOnce() -> Result<()>) -> Result<()> {
    let agent = UnitProcess::of(rig.host(), "clawd.service")?;
    std::thread::scope(|scope| {
        let killer = scope.spawn(|| {
            for _ in 0..PATIENCE.as_millis() {
                if journal::stage(rig.host(), "demo")?.as_deref() == Some(stage) {
                    return agent.signal(Signal::SIGKILL);
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            bail!("waited in vain for the stage {stage}")
        });
        ask()?;
        killer.join().map_err(|_| anyhow::anyhow!("the killer panicked"))?
    })?;
    until(PATIENCE, "the agent to be dead", || Ok(agent.is_gone().then_some(())))?;
    let left = journal::stage(rig.host(), "demo")?;
    ensure!(left.as_deref() == Some(stage), "the kill came too late: {left:?}");
    Ok(())
}

#[test]
fn damage_is_found_before_anything_that_lives_is_touched() -> Result<()> {
    let rig = start("damage", &[V1])?;
    let fleet = rig.fleet();
    let mut demo = Tenant::new(&rig, "demo", V1);
    demo.instance.more.insert("backup".into(), json!({ "every": "0s", "drillEvery": "0s" }));
    rig.step("an instance serves and has a snapshot", || {
        demo.deploy()?;
        demo.write("a", "1")?;
        fleet.take_snapshot("demo", "s", SOON).map(drop)
    })?;
    rig.step("a byte of every pack is flipped: a rollback fails, and all goes on", || {
        flip_a_byte_of_every_pack(&rig, "demo")?;
        demo.write("b", "2")?;
        let pulse = demo.pulse("p")?;
        fleet.clawctl_ok(&["rollback", "demo", "--snapshot", "s"])?;
        fleet.until_status("demo", "the rollback to be refused", PATIENCE, |status| {
            let problem = status["refused"]["problem"].as_str().unwrap_or_default();
            problem.contains("damaged") && status["operation"].is_null()
        })?;
        demo.assert_serves(V1)?;
        let heard = pulse.stop()?;
        let failed: Vec<_> = heard.failures().take(5).collect();
        ensure!(failed.is_empty(), "customers noticed: {failed:?}");
        demo.assert_has(&rows(&["a", "b"]))
    })?;
    rig.step("a verification says so, and the snapshot is not restored again", || {
        fleet.clawctl_ok(&["snapshot", "verify", "demo", "--data"])?;
        fleet.until_snapshot("demo", "s", "damaged", PATIENCE)?;
        let refused = fleet.clawctl(&["rollback", "demo", "--snapshot", "s"])?;
        ensure!(!refused.success() && refused.stderr.contains("damaged"), "{refused:?}");
        Ok(())
    })
}

/// Flips the lowest bit of one byte in the middle of every pack of a repository.
fn flip_a_byte_of_every_pack(rig: &Rig, name: &str) -> Result<()> {
    let packs = outside(rig.host(), &format!("/var/lib/clawd/repo/{name}/data"))?;
    let mut flipped = 0;
    for dir in std::fs::read_dir(&packs)? {
        for pack in std::fs::read_dir(dir?.path())? {
            let path = pack?.path();
            let mut permissions = std::fs::metadata(&path)?.permissions();
            std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o600);
            std::fs::set_permissions(&path, permissions)?;
            let mut pack = std::fs::File::options().read(true).write(true).open(&path)?;
            let middle = SeekFrom::Start(pack.metadata()?.len() / 3);
            let mut byte = [0];
            pack.seek(middle)?;
            pack.read_exact(&mut byte)?;
            pack.seek(middle)?;
            pack.write_all(&[byte[0] ^ 1])?;
            flipped += 1;
        }
    }
    ensure!(flipped > 0, "the repository has no packs");
    Ok(())
}
