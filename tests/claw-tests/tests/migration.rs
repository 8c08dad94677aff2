//! Instances move: to another host that is there, and away from one that is gone.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use claw_lab::{Cache, HostOptions, progress};
use claw_tests::programs::PATIENCE;
use claw_tests::versions::{V1, Version};
use claw_tests::{Docker, Fleet, ObjectStore, Rig, Tenant, rig};
use serde_json::{Value, json};

/// A snapshot of a few megabytes.
const SOON: Duration = Duration::from_secs(30);
/// A move of a few megabytes.
const MOVED: Duration = Duration::from_secs(180);

fn start(name: &str, first: &[Version], second: &[Version]) -> Result<Rig> {
    let cache = Cache::open(progress::terminal())?;
    let host = |name: &str, versions: &[Version]| {
        versions.iter().try_fold(HostOptions::named(name), |host, version| {
            Ok::<_, anyhow::Error>(host.with_image(&version.image(&cache)?))
        })
    };
    Rig::with(name, rig::QUICK, &[host("h1", first)?, host("h2", second)?])
}

fn until_migration(fleet: &Fleet, name: &str, stage: &str) -> Result<Value> {
    fleet.until(MOVED, &format!("the migration of {name} to be {stage}"), |fleet| {
        let migration = fleet.instance(name)?["migration"].clone();
        if migration["stage"] == stage { Ok(Some(migration)) } else { bail!("it is {migration}") }
    })
}

#[test]
fn an_instance_moves_with_its_data_and_its_history() -> Result<()> {
    let rig = start("move", &[V1], &[V1])?;
    let fleet = rig.fleet();
    let [first, second] = rig.hosts() else { bail!("not two hosts") };
    let mut demo = Tenant::new(&rig, "demo", V1);
    rig.step("an instance serves on the first host, with a snapshot", || {
        demo.deploy()?;
        demo.write("a", "1")?;
        fleet.take_snapshot("demo", "old", SOON)?;
        fleet.recovery_password("demo")?;
        demo.write("b", "2")
    })?;
    rig.step("the plan says what a move would do", || {
        let plan = fleet.clawctl_ok(&["migrate", "demo", "h2", "--plan"])?;
        rig.note(&format!("  {}", plan.trim()));
        ensure!(plan.contains("instances/demo"), "{plan}");
        Ok(())
    })?;
    rig.step("it moves, and everything that was acknowledged is there", || {
        fleet.clawctl_ok(&["migrate", "demo", "h2", "--wait", "--timeout", "180s"])?;
        demo.moved(second);
        fleet.until_serving(second, "demo")?;
        demo.assert_has(&["a".to_owned(), "b".to_owned()].into())?;
        let host = &fleet.instance("demo")?["host"];
        ensure!(host == "h2", "it is on {host}");
        Ok(())
    })?;
    rig.step("nothing of it runs on the first host", || {
        fleet.until(PATIENCE, "it to be gone there", |_| {
            let left = Docker::of(first)?.containers_of("demo")?;
            if left.is_empty() { Ok(Some(())) } else { bail!("{left:#?}") }
        })
    })?;
    rig.step("its snapshots moved too, and one is restored on the new host", || {
        fleet.until_snapshot("demo", "old", "ready", PATIENCE)?;
        fleet.clawctl_ok(&["rollback", "demo", "--snapshot", "old"])?;
        fleet.until(PATIENCE, "the data of then", |_| {
            let keys = demo.keys()?;
            let back = keys.contains("a") && !keys.contains("b");
            if back { Ok(Some(())) } else { bail!("it has {keys:?}") }
        })?;
        demo.until_confirmed(V1)?;
        demo.assert_serves(V1)?;
        fleet.take_snapshot("demo", "new", SOON).map(drop)
    })?;
    rig.step("and it moves back again", || {
        demo.write("c", "3")?;
        fleet.clawctl_ok(&["migrate", "demo", "h1", "--wait", "--timeout", "180s"])?;
        demo.moved(first);
        fleet.until_serving(first, "demo")?;
        demo.assert_has(&["a".to_owned(), "c".to_owned()].into())
    })
}

#[test]
fn a_move_that_cannot_succeed_ends_where_it_began() -> Result<()> {
    // The second host has no image and no way to get it.
    let rig = start("stay", &[V1], &[])?;
    let fleet = rig.fleet();
    let demo = Tenant::new(&rig, "demo", V1);
    rig.step("an instance serves, with a snapshot", || {
        demo.deploy()?;
        demo.write("a", "1")?;
        fleet.take_snapshot("demo", "first", SOON)?;
        fleet.recovery_password("demo").map(drop)
    })?;
    rig.step("a move to a host that cannot run it is cancelled or reverts, and it serves", || {
        fleet.clawctl_ok(&["migrate", "demo", "h2"])?;
        fleet.until(MOVED, "it to be past its begin", |fleet| {
            let migration = fleet.instance("demo")?["migration"].clone();
            let stage = migration["stage"].as_str().unwrap_or_default().to_owned();
            let past = matches!(stage.as_str(), "starting" | "reverting" | "reverted");
            if past { Ok(Some(())) } else { bail!("it is {migration}") }
        })?;
        // It may have gone back by itself meanwhile.
        let _ = fleet.clawctl(&["cancel-migration", "demo"])?;
        let migration = until_migration(fleet, "demo", "reverted")?;
        rig.note(&format!("  {migration}"));
        demo.until_confirmed(V1)?;
        demo.assert_serves(V1)?;
        demo.assert_has(&["a".to_owned()].into())?;
        ensure!(fleet.instance("demo")?["host"] == "h1", "it moved");
        Ok(())
    })
}

#[test]
fn an_instance_whose_host_is_gone_is_recovered_from_off_site() -> Result<()> {
    let rig = start("gone", &[V1], &[V1])?;
    let fleet = rig.fleet();
    let [first, second] = rig.hosts() else { bail!("not two hosts") };
    let store = ObjectStore::of_tests(fleet.lab())?;
    store.make_bucket(fleet.lab(), "claws")?;
    let mut demo = Tenant::new(&rig, "demo", V1);
    demo.instance.more.insert("backup".into(), json!({ "every": "0s" }));
    rig.step("an instance serves, and its snapshot is off-site", || {
        store.give(fleet, first, "claws")?;
        demo.deploy()?;
        demo.write("a", "1")?;
        fleet.take_snapshot("demo", "good", SOON)?;
        fleet.until(MOVED, "it to be off-site", |fleet| {
            let all = fleet.json(&["snapshot", "list", "demo"])?;
            let first = rig::list(&all["snapshots"])?.first().context("no snapshot")?.clone();
            if first["offsite"] == true { Ok(Some(())) } else { bail!("it is {all}") }
        })?;
        demo.write("b", "2")
    })?;
    rig.step("its host loses its power for ever", || {
        first.power_cut()?;
        fleet.until_host(first, "offline", PATIENCE).map(drop)
    })?;
    rig.step("it serves on another host, as of the snapshot", || {
        let moved = ["migrate", "demo", "h2", "--from-offsite", "--wait", "--timeout", "180s"];
        fleet.clawctl_ok(&moved)?;
        demo.moved(second);
        fleet.until_serving(second, "demo")?;
        let keys = demo.keys()?;
        ensure!(keys.contains("a") && !keys.contains("b"), "it has {keys:?}");
        fleet.take_snapshot("demo", "next", SOON).map(drop)
    })?;
    rig.step("its old host comes back, and lets go of it", || {
        first.boot_again()?;
        fleet.until_online(first)?;
        fleet.until(MOVED, "it to be gone there", |_| {
            let left = Docker::of(first)?.containers_of("demo")?;
            if left.is_empty() { Ok(Some(())) } else { bail!("{left:#?}") }
        })?;
        fleet.until_serving(second, "demo")
    })
}
