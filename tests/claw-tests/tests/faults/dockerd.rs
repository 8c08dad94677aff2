//! dockerd is killed at every stage of everything that takes long: good versions are confirmed, bad ones taken
//! back, and nothing is lost or left over.

use anyhow::{Context, Result, ensure};
use claw_tests::fleet::until;
use claw_tests::programs::PATIENCE;
use claw_tests::strike::{self, Dockerd};
use claw_tests::unit::outside;
use claw_tests::versions::{V1, V2_HANG, V2_SLOW, Version};
use claw_tests::{Restic, Rig, Tenant, journal};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::ground::{RECOVERY, SOON, at_stage, rows, start, until_over, until_rolled_back};

/// MiB of the agent's disk.
const DISK: u32 = 2048;

/// Where dockerd is killed during an update: the stage as the journal calls it, the policy of rehearsals, and
/// the version.
const UPDATES: [(&str, &str, Version); 5] = [
    ("preparing", "always", V2_SLOW),
    ("switching", "never", V2_SLOW),
    ("probing", "never", V2_SLOW),
    ("probing", "never", V2_HANG),
    ("reverting", "never", V2_HANG),
];

/// Asks for something, and kills dockerd at a moment of it.
fn killed_at(
    rig: &Rig,
    dockerd: Dockerd<'_>,
    moment: impl FnOnce() -> Result<()> + Send,
    ask: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let process = dockerd.process()?;
    std::thread::scope(|scope| {
        let killer = scope.spawn(move || {
            moment()?;
            process.signal(Signal::SIGKILL)
        });
        ask()?;
        killer.join().map_err(|_| anyhow::anyhow!("the killer panicked"))?
    })?;
    rig.note("  killed");
    dockerd.until_back(process)
}

#[test]
fn dockerd_killed_at_every_stage_of_a_change_loses_nothing() -> Result<()> {
    let rig = start("dockerd", DISK, &[V1, V2_SLOW, V2_HANG])?;
    let dockerd = Dockerd::of(rig.host())?;
    for (number, (stage, policy, version)) in (1..).zip(UPDATES) {
        rig.step(&format!("killed while {stage} {}, rehearsal {policy}", version.tag), || {
            let name = format!("u{number}");
            update(&rig, dockerd, &name, (stage, policy, version))?;
            rig.fleet().clawctl_ok(&["delete", &name, "--wait"]).map(drop)
        })?;
    }
    let demo = Tenant::new(&rig, "demo", V1);
    rig.step("an instance serves with a snapshot of less", || {
        demo.deploy()?;
        demo.write("a", "1")?;
        rig.fleet().take_snapshot("demo", "less", SOON)?;
        demo.write("b", "2")
    })?;
    for stage in ["preparing", "switching", "probing"] {
        rig.step(&format!("killed while {stage} a rollback"), || {
            rollback(&rig, dockerd, &demo, stage)
        })?;
    }
    Ok(())
}

fn update(
    rig: &Rig,
    dockerd: Dockerd<'_>,
    name: &str,
    (at, policy, version): (&str, &str, Version),
) -> Result<()> {
    let mut tenant = Tenant::new(rig, name, V1);
    tenant.instance.more.insert("update".into(), json!({ "rehearsal": policy }));
    tenant.deploy()?;
    let pulse = tenant.pulse("p")?;
    killed_at(rig, dockerd, || moment(rig, name, at, policy), || tenant.ask_for(version))?;
    let now = until_over(rig, &tenant, version)?;
    let heard = pulse.stop()?;
    rig.note(&format!("  {heard}"));
    ensure!((now == version) == (version == V2_SLOW), "{} runs", now.tag);
    tenant.assert_serves(now)?;
    // What a version that was taken back had acknowledged goes with it.
    tenant.assert_has(&heard.acked(|tag| now == version || tag == V1.tag))
}

/// While a rehearsal runs, or at a stage of the journal.
fn moment(rig: &Rig, name: &str, at: &str, policy: &str) -> Result<()> {
    if policy == "never" {
        return at_stage(rig, name, at);
    }
    let mut events = rig.docker()?.events()?;
    events.until(&format!("claw-trial.{name}"), "start").map(drop)
}

fn rollback(rig: &Rig, dockerd: Dockerd<'_>, demo: &Tenant<'_>, at: &str) -> Result<()> {
    let before = journal::record(rig.host(), "demo")?["restored"].clone();
    let ask = || rig.fleet().clawctl_ok(&["rollback", "demo", "--snapshot", "less"]).map(drop);
    killed_at(rig, dockerd, || at_stage(rig, "demo", at), ask)?;
    ensure!(until_rolled_back(rig, "demo", &before)?, "it was not done");
    demo.assert_serves(V1)?;
    ensure!(demo.keys()? == rows(&["a"]), "it has {:?}", demo.keys()?);
    demo.write("b", "2")
}

#[test]
fn dockerd_killed_in_snapshots_pauses_drills_and_removals_leaves_nothing_half_done() -> Result<()> {
    let rig = start("dockerd-rest", DISK, &[V1])?;
    let (fleet, host) = (rig.fleet(), rig.host());
    let dockerd = Dockerd::of(host)?;
    let demo = Tenant::new(&rig, "demo", V1);
    rig.step("an instance serves", || {
        demo.deploy()?;
        demo.write("a", "1")?;
        fleet.take_snapshot("demo", "first", SOON).map(drop)
    })?;
    rig.step("killed while the container is frozen for a snapshot: it serves on", || {
        let mut events = rig.docker()?.events()?;
        let frozen = move || events.until("claw-demo", "pause").map(drop);
        let ask = || fleet.clawctl_ok(&["snapshot", "create", "demo", "frozen"]).map(drop);
        killed_at(&rig, dockerd, frozen, ask)?;
        demo.assert_serves(V1)?;
        demo.assert_has(&rows(&["a"]))?;
        // Asking anew has what failed tried at once.
        fleet.take_snapshot("demo", "frozen-2", SOON)?;
        fleet.until_snapshot("demo", "frozen", "ready", SOON).map(drop)
    })?;
    rig.step(
        "killed in the midst of a restore drill: nothing of it is left, the next one passes",
        || {
            let mut events = rig.docker()?.events()?;
            let booted = move || events.until("claw-trial.demo", "start").map(drop);
            killed_at(&rig, dockerd, booted, || drill(&rig))?;
            demo.assert_serves(V1)?;
            drill(&rig)?;
            fleet.until_repository("demo", "the drill to have passed", PATIENCE, |repository| {
                !repository["drillTime"].is_null()
            })?;
            demo.assert_serves(V1)
        },
    )?;
    for (moment, number) in ["die", "the snapshot"].into_iter().zip(1..) {
        rig.step(&format!("killed in a pause, at {moment}: paused, held by a snapshot"), || {
            demo.write(&format!("p{number}"), "x")?;
            let mut events = rig.docker()?.events()?;
            let hit = move || match moment {
                "die" => events.until("claw-demo", "die").map(drop),
                _ => strike::at("a job", || Ok(!strike::snapshot_workers(host)?.is_empty())),
            };
            let ask = || fleet.clawctl_ok(&["pause", "demo"]).map(drop);
            killed_at(&rig, dockerd, hit, ask)?;
            fleet.until_phase("demo", "paused", RECOVERY)?;
            let found = fleet.snapshots_for("demo", "pause")?;
            ensure!(found.len() == number, "{found:#?}");
            let there = rig.docker()?.containers_of("demo")?;
            ensure!(there.iter().all(|c| c["State"] != "running"), "{there:#?}");
            fleet.clawctl_ok(&["resume", "demo"])?;
            fleet.until_phase("demo", "running", RECOVERY)?;
            demo.assert_serves(V1)?;
            demo.assert_has(&rows(&["a", &format!("p{number}")]))
        })?;
    }
    for (action, name) in [("die", "demo"), ("destroy", "other")] {
        rig.step(&format!("killed in a removal, at {action}: gone, and held"), || {
            let tenant = Tenant::new(&rig, name, V1);
            tenant.deploy()?;
            tenant.write("last", "x")?;
            removal(&rig, dockerd, name, action)
        })?;
    }
    Ok(())
}

/// A new agent, to which a drill is due.
fn drill(rig: &Rig) -> Result<()> {
    rig.host().exec_ok(&["systemctl", "stop", "clawd.service"])?;
    journal::edit_backup_note(rig.host(), "demo", |note| note["drill_at"] = 0.into())?;
    rig.host().exec_ok(&["systemctl", "start", "clawd.service"]).map(drop)
}

fn removal(rig: &Rig, dockerd: Dockerd<'_>, name: &str, action: &str) -> Result<()> {
    let (fleet, host) = (rig.fleet(), rig.host());
    fleet.take_snapshot(name, "for-its-password", SOON)?;
    fleet.recovery_password(name)?;
    let mut events = rig.docker()?.events()?;
    let container = format!("claw-{name}");
    let hit = move || events.until(&container, action).map(drop);
    killed_at(rig, dockerd, hit, || fleet.clawctl_ok(&["delete", name]).map(drop))?;
    let home = outside(host, &format!("/var/lib/clawd/instances/{name}"))?;
    until(RECOVERY, "it to be gone", || Ok((!home.exists()).then_some(())))?;
    fleet.clawctl_ok(&["delete", name, "--wait", "--timeout", "60s"]).or_else(|error| {
        let gone = format!("{error:#}").contains("not found");
        if gone { Ok(String::new()) } else { Err(error) }
    })?;
    let docker = rig.docker()?;
    ensure!(docker.containers_of(name)?.is_empty(), "a container is left");
    ensure!(docker.networks_of(name)?.is_empty(), "a network is left");
    let restic = Restic::of_removed(fleet, host, name)?;
    let last = restic.snapshots()?.into_iter().next_back().context("no snapshot")?;
    ensure!(last["tags"].to_string().contains("cause:final"), "{last}");
    let copy = fleet.lab().dir().join(format!("restored-{name}"));
    let data = restic.restore(last["id"].as_str().context("no id")?, &copy)?;
    let found = std::fs::read_to_string(data.join("state/rows"))?;
    ensure!(found.contains("last\tx\n"), "{found}");
    restic.run(&["check", "--read-data"]).map(drop)
}
