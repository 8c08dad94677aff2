//! A disk that fills while instances are paused: their data makes room, and comes back.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use claw_lab::HostOptions;
use claw_tests::fleet::until;
use claw_tests::programs::PATIENCE;
use claw_tests::unit::outside;
use claw_tests::versions::V1;
use claw_tests::{Rig, Tenant, UnitProcess, rig};
use nix::sys::signal::Signal;
use serde_json::json;

/// The disk must have been short of room for a minute, and is looked at every half.
const RECLAIMED: Duration = Duration::from_secs(240);

/// A film on the customer's disk, so that its data is worth something.
const FILM: &str = "media/film";

fn exists(rig: &Rig, path: &str) -> Result<bool> {
    Ok(outside(rig.host(), path)?.exists())
}

fn gen_1(name: &str) -> String {
    format!("/var/lib/clawd/instances/{name}/gen-1")
}

fn checksum(rig: &Rig, path: &str) -> Result<String> {
    let said = rig.host().exec_ok(&["sha256sum", path])?;
    said.split_whitespace().next().map(str::to_owned).context("no checksum")
}

/// Whatever the agent is doing, it is ended, and another one goes on.
fn kill_agent(rig: &Rig) -> Result<()> {
    let agent = UnitProcess::of(rig.host(), "clawd.service")?;
    agent.signal(Signal::SIGKILL)?;
    until(PATIENCE, "the agent to be dead", || Ok(agent.is_gone().then_some(())))?;
    rig.fleet().until_online(rig.host())
}

#[test]
fn data_of_the_longest_pause_makes_room_and_comes_back() -> Result<()> {
    let rig = Rig::with(
        "reclaim",
        rig::QUICK,
        &[HostOptions::named("h1")
            .with_clawd_disk(900)
            .with_image(&V1.image(&claw_lab::Cache::open(claw_lab::progress::terminal())?)?)],
    )?;
    let (fleet, host) = (rig.fleet(), rig.host());
    let [first, second] = ["first", "second"].map(|name| {
        let mut tenant = Tenant::new(&rig, name, V1);
        let quiet = json!({ "every": "0s", "drillEvery": "0s" });
        tenant.instance.more.insert("backup".into(), quiet);
        tenant
    });
    let film = rig.step("two instances serve and are paused, one after the other", || {
        for tenant in [&first, &second] {
            tenant.deploy()?;
            tenant.write("a", tenant.name())?;
        }
        let data = gen_1("first");
        let make = format!(
            "mkdir {data}/media && head -c 40M /dev/urandom > {data}/{FILM} && \
             chown -R 1000:1000 {data}/media"
        );
        host.exec_ok(&["sh", "-c", &make])?;
        for tenant in [&first, &second] {
            fleet.clawctl_ok(&["pause", tenant.name()])?;
            fleet.until_phase(tenant.name(), "paused", PATIENCE)?;
        }
        checksum(&rig, &format!("{data}/{FILM}"))
    })?;
    rig.step("the disk fills: the data of the first pause goes, and no other", || {
        let fill = "free=$(df --output=avail -B1M /var/lib/clawd | tail -1) && \
                    head -c $((free - 70))M /dev/zero > /var/lib/clawd/fill";
        host.exec_ok(&["sh", "-c", fill])?;
        let told = fleet.until(RECLAIMED, "its data to be reclaimed", |fleet| {
            let events = fleet.events(host)?;
            Ok(events.into_iter().find(|event| event["kind"] == "data_reclaimed"))
        })?;
        rig.note(&format!("  {}", told["message"]));
        until(PATIENCE, "the directory to be gone", || {
            Ok((!exists(&rig, &gen_1("first"))?).then_some(()))
        })?;
        fleet.until_status("first", "it to say where its data is", PATIENCE, |status| {
            let message = status["message"].as_str().unwrap_or_default();
            status["phase"] == "paused" && message.contains("in snapshot pause-")
        })?;
        ensure!(exists(&rig, &gen_1("second"))?, "there was room enough already");
        Ok(())
    })?;
    rig.step("its snapshot is not deleted, and a new agent leaves everything so", || {
        let only = fleet.snapshots_for("first", "pause")?;
        let only = claw_tests::backup::short_name(only.first().context("no snapshot")?);
        let refused = fleet.clawctl(&["snapshot", "delete", "first", only])?;
        rig.note(&format!("  {}", refused.stderr.trim()));
        ensure!(!refused.success() && refused.stderr.contains("only copy"), "{refused:?}");
        kill_agent(&rig)?;
        fleet.until_phase("first", "paused", PATIENCE)?;
        fleet.until_snapshot("first", only, "ready", PATIENCE).map(drop)
    })?;
    rig.step("there is room again; it is resumed, by two agents, with all of its data", || {
        host.exec_ok(&["rm", "/var/lib/clawd/fill"])?;
        fleet.clawctl_ok(&["resume", "first"])?;
        kill_agent(&rig)?;
        fleet.until_phase("first", "running", PATIENCE)?;
        first.assert_serves(V1)?;
        ensure!(first.control("read?key=a")? == "first");
        let data = gen_1("first").replace("gen-1", "gen-2");
        ensure!(checksum(&rig, &format!("{data}/{FILM}"))? == film, "the film is another one");
        fleet.until_event(host, "first", "data_recovered").map(drop)
    })?;
    rig.step("the other one is resumed from its disk", || {
        fleet.clawctl_ok(&["resume", "second"])?;
        fleet.until_phase("second", "running", PATIENCE)?;
        second.assert_serves(V1)?;
        ensure!(second.control("read?key=a")? == "second");
        ensure!(exists(&rig, &gen_1("second"))?, "it was restored for nothing");
        Ok(())
    })
}
