//! Snapshots away from the host: copies in an S3, the way back from there, archives.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use claw_lab::{Cache, HostOptions, progress};
use claw_tests::programs::PATIENCE;
use claw_tests::unit::outside;
use claw_tests::versions::{V1, V2};
use claw_tests::{Fleet, ObjectStore, Rig, Tenant, rig};
use serde_json::{Value, json};

/// A snapshot of a few megabytes.
const SOON: Duration = Duration::from_secs(30);
/// A copy of a few megabytes, after whatever else the host has to do.
const COPIED: Duration = Duration::from_secs(120);

fn start(name: &str, hosts: &[&str]) -> Result<Rig> {
    let cache = Cache::open(progress::terminal())?;
    let (first, second) = (V1.image(&cache)?, V2.image(&cache)?);
    let hosts: Vec<HostOptions> = hosts
        .iter()
        .map(|host| HostOptions::named(host).with_image(&first).with_image(&second))
        .collect();
    Rig::with(name, rig::QUICK, &hosts)
}

fn until_offsite(fleet: &Fleet, name: &str, snapshot: &str) -> Result<Value> {
    fleet.until(COPIED, &format!("snapshot {snapshot} to be off-site"), |fleet| {
        let all = fleet.json(&["snapshot", "list", name])?;
        let found = rig::list(&all["snapshots"])?.iter().find(|one| one["name"] == snapshot);
        let found = found.context("it is not listed")?;
        if found["offsite"] == true { Ok(Some(found.clone())) } else { bail!("it is {all}") }
    })
}

/// Breaks every pack of data that the host holds.
fn break_packs(rig: &Rig, name: &str) -> Result<usize> {
    let packs = outside(rig.host(), &format!("/var/lib/clawd/repo/{name}/data"))?;
    let mut broken = 0;
    for directory in std::fs::read_dir(packs)? {
        for pack in std::fs::read_dir(directory?.path())? {
            let path = pack?.path();
            let mut content = std::fs::read(&path)?;
            let middle = content.len() / 2;
            *content.get_mut(middle).context("an empty pack")? ^= 0x40;
            std::fs::write(path, content)?;
            broken += 1;
        }
    }
    Ok(broken)
}

#[test]
fn a_damaged_host_restores_from_off_site_and_wrong_keys_are_told() -> Result<()> {
    let rig = start("offsite", &["h1"])?;
    let (fleet, host) = (rig.fleet(), rig.host());
    let store = ObjectStore::of_tests(fleet.lab())?;
    store.make_bucket(fleet.lab(), "claws")?;
    let mut demo = Tenant::new(&rig, "demo", V1);
    demo.instance.more.insert("backup".into(), json!({ "every": "0s", "offsite": "required" }));
    rig.step("copies are required and the host has no storage: it is said", || {
        demo.deploy()?;
        demo.write("a", "1")?;
        fleet.take_snapshot("demo", "good", SOON)?;
        fleet.until_event(host, "demo", "offsite_overdue")?;
        fleet.until(PATIENCE, "the problem in the report", |fleet| {
            let offsite = &fleet.json(&["snapshot", "list", "demo"])?["repository"]["offsite"];
            let told = offsite["overdue"] == true && offsite["problem"].as_str() != Some("");
            if told { Ok(Some(())) } else { bail!("it is {offsite}") }
        })
    })?;
    rig.step("with a bucket that does not exist, the storage's own word is said", || {
        store.give(fleet, host, "nowhere")?;
        fleet.until(COPIED, "the storage's word", |fleet| {
            let offsite = &fleet.json(&["snapshot", "list", "demo"])?["repository"]["offsite"];
            let problem = offsite["problem"].as_str().unwrap_or_default();
            if problem.contains("nowhere") { Ok(Some(())) } else { bail!("it is {offsite}") }
        })
    })?;
    rig.step("with the right one everything is copied, and no key shows on the host", || {
        store.give(fleet, host, "claws")?;
        let snapshot = until_offsite(fleet, "demo", "good")?;
        rig.note(&format!("  {snapshot}"));
        let shown = fleet.clawctl_ok(&["host", "get", "h1", "-o", "json"])?;
        ensure!(shown.contains("claws") && !shown.contains("lab-secret-key"), "{shown}");
        let logs = host.exec_ok(&["journalctl", "--no-pager", "-b"])?;
        ensure!(!logs.contains("lab-secret-key"), "the journal shows the key");
        let files =
            host.exec(&["grep", "-rlE", "lab-secret-key", "/var/lib/clawd", "/run/clawd"])?;
        ensure!(files.stdout.is_empty(), "the key lies in {}", files.stdout);
        Ok(())
    })?;
    rig.step("the host's own repository is damaged, and found to be", || {
        demo.write("b", "2")?;
        ensure!(break_packs(&rig, "demo")? > 0, "there are no packs");
        let verified = fleet.clawctl(&["snapshot", "verify", "demo", "--data", "--wait"])?;
        ensure!(!verified.success(), "{verified:?}");
        fleet.until_snapshot("demo", "good", "damaged", PATIENCE).map(drop)
    })?;
    rig.step("a rollback that reads off-site brings the data back", || {
        let here = fleet.clawctl(&["rollback", "demo", "--snapshot", "good"])?;
        ensure!(!here.success(), "a damaged one was taken: {here:?}");
        fleet.clawctl_ok(&["rollback", "demo", "--snapshot", "good", "--from-offsite"])?;
        fleet.until(COPIED, "the data of then", |_| {
            let keys = demo.keys()?;
            let back = keys.contains("a") && !keys.contains("b");
            if back { Ok(Some(())) } else { bail!("it has {keys:?}") }
        })?;
        demo.until_confirmed(V1)?;
        fleet.until_serving(host, "demo")
    })
}

#[test]
fn an_archive_carries_a_snapshot_to_another_instance() -> Result<()> {
    let rig = start("archive", &["h1"])?;
    let fleet = rig.fleet();
    let (from, to) = (Tenant::new(&rig, "from", V1), Tenant::new(&rig, "to", V1));
    let archive = fleet.lab().dir().join("from.tar.zst");
    let place = archive.to_str().context("no text")?.to_owned();
    rig.step("a snapshot of an instance becomes a file", || {
        from.deploy()?;
        from.write("a", "1")?;
        // While it is up it holds a lease on its data, which keeps others away for five minutes.
        fleet.clawctl_ok(&["stop", "from"])?;
        fleet.until_phase("from", "stopped", PATIENCE)?;
        fleet.take_snapshot("from", "good", SOON)?;
        fleet.clawctl_ok(&["snapshot", "export", "from", "good", "--to", &place])?;
        let listed = claw_lab::command("tar").arg("--zstd").arg("-tf").arg(&archive).output()?;
        let listed = String::from_utf8(listed.stdout)?;
        ensure!(listed.contains("manifest.json"), "{listed}");
        Ok(())
    })?;
    rig.step("the file becomes a snapshot of another instance, whose data stays", || {
        to.deploy()?;
        to.write("b", "2")?;
        fleet.clawctl_ok(&["snapshot", "import", "to", &place, "--name", "moved"])?;
        let imported = fleet.until_snapshot("to", "moved", "ready", PATIENCE)?;
        ensure!(imported["cause"] == "import", "{imported}");
        to.assert_has(&["b".to_owned()].into())
    })?;
    rig.step("a rollback to it brings it into use", || {
        fleet.clawctl_ok(&["rollback", "to", "--snapshot", "moved"])?;
        fleet.until(PATIENCE, "the imported data", |_| {
            let keys = to.keys()?;
            let there = keys.contains("a") && !keys.contains("b");
            if there { Ok(Some(())) } else { bail!("it has {keys:?}") }
        })?;
        to.until_confirmed(V1)?;
        to.assert_serves(V1)
    })?;
    rig.step("an archive that was cut off is refused, and nothing is left of it", || {
        let whole = std::fs::read(&archive)?;
        let half = fleet.lab().dir().join("half.tar.zst");
        std::fs::write(&half, whole.get(..whole.len() / 2).context("empty")?)?;
        let half = half.to_str().context("no text")?.to_owned();
        let refused = fleet.clawctl(&["snapshot", "import", "to", &half, "--name", "half"])?;
        ensure!(!refused.success(), "{refused:?}");
        rig.note(&format!("  {}", refused.stderr.trim()));
        let all = fleet.snapshots("to")?;
        let ready = all.iter().any(|one| one["name"] == "half" && one["state"] == "ready");
        ensure!(!ready, "{all:?}");
        to.assert_serves(V1)
    })
}
