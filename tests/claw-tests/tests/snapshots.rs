//! Snapshots of instances that are up, paused, stopped or gone; and a disk that is full.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use claw_lab::{Cache, HostOptions, LabHost, progress};
use claw_tests::fleet::until;
use claw_tests::programs::PATIENCE;
use claw_tests::unit::outside;
use claw_tests::versions::{V1, V2};
use claw_tests::{Docker, Restic, Rig, Tenant, UnitProcess, journal, ledger, rig};
use nix::sys::signal::Signal;
use serde_json::json;

/// Snapshots of the busy instance.
const MANY: usize = 20;
/// A snapshot of a few megabytes.
const SOON: Duration = Duration::from_secs(30);

fn start(name: &str, host: HostOptions) -> Result<Rig> {
    let cache = Cache::open(progress::terminal())?;
    let host = host.with_image(&V1.image(&cache)?).with_image(&V2.image(&cache)?);
    Rig::with(name, rig::QUICK, &[host])
}

#[test]
fn snapshots_of_a_busy_instance_hold_everything_that_was_acknowledged() -> Result<()> {
    let rig = start("busy", HostOptions::named("h1"))?;
    let (fleet, host) = (rig.fleet(), rig.host());
    let mut demo = Tenant::new(&rig, "demo", V1);
    demo.instance = demo.instance.env("CLAW_FAKE_WRITER_MS", 1);
    demo.instance.more.insert("backup".into(), json!({ "every": "0s" }));
    rig.step("an instance serves and writes without end", || demo.deploy())?;
    let pauses = Pauses::watch(host, "claw-demo")?;
    let pulse = demo.pulse("busy")?;
    rig.step(&format!("{MANY} snapshots are taken meanwhile"), || {
        for number in 0..MANY {
            fleet.take_snapshot("demo", &format!("s{number}"), SOON)?;
        }
        Ok(())
    })?;
    let heard = pulse.stop()?;
    let lengths = pauses.lengths(host)?;
    rig.note(&format!("  {heard}"));
    rig.note(&format!("  held still {} times: {}", lengths.len(), spread(&lengths)));
    rig.step("customers saw no failed request, and it is written to as before", || {
        let failed: Vec<_> = heard.failures().take(5).collect();
        ensure!(failed.is_empty(), "{failed:?}");
        ensure!(lengths.len() >= MANY, "it was held {} times only", lengths.len());
        demo.assert_serves(V1)?;
        demo.assert_has(&heard.acked(|_| true))
    })?;
    rig.step("restic restores each with the recovery password: no row is missing", || {
        let restic = Restic::of(fleet, host, "demo")?;
        let listed = restic.snapshots()?;
        ensure!(listed.len() == MANY, "restic lists {}", listed.len());
        let mut last = 0;
        for snapshot in &listed {
            let id = snapshot["id"].as_str().context("no id")?;
            let copy = fresh(&rig, "restored")?;
            let found = ledger::read(&restic.restore(id, &copy)?)?;
            ensure!(found.acked > last, "{found:?} after {last}");
            last = found.acked;
        }
        rig.note(&format!("  {last} rows in the last one"));
        restic.run(&["check", "--read-data"]).map(drop)
    })
}

/// How long a container was paused, by what Docker says.
struct Pauses {
    name: &'static str,
    since: String,
}

impl Pauses {
    fn watch(host: &LabHost, name: &'static str) -> Result<Self> {
        let since = host.exec_ok(&["date", "+%s.%N"])?;
        Ok(Self { name, since })
    }

    /// The length of each pause since then.
    fn lengths(&self, host: &LabHost) -> Result<Vec<Duration>> {
        let until = host.exec_ok(&["date", "+%s.%N"])?;
        let container = format!("container={}", self.name);
        let events = host.exec_ok(&[
            "docker",
            "events",
            "--since",
            &self.since,
            "--until",
            &until,
            "--filter",
            &container,
            "--format",
            "{{.Action}} {{.TimeNano}}",
        ])?;
        let (mut lengths, mut begun) = (Vec::new(), None);
        for line in events.lines() {
            let (action, at) = line.split_once(' ').context("no time")?;
            let at = Duration::from_nanos(at.parse()?);
            match (action, begun) {
                ("pause", _) => begun = Some(at),
                ("unpause", Some(since)) => {
                    lengths.push(at.saturating_sub(since));
                    begun = None;
                }
                _ => {}
            }
        }
        ensure!(begun.is_none(), "it is still paused");
        Ok(lengths)
    }
}

fn spread(lengths: &[Duration]) -> String {
    let mut sorted = lengths.to_vec();
    sorted.sort();
    let (median, most) = (sorted.get(sorted.len() / 2), sorted.last());
    let millis = |length: Option<&Duration>| length.copied().unwrap_or_default().as_millis();
    format!("median {} ms, at most {} ms", millis(median), millis(most))
}

/// An empty directory of the lab.
fn fresh(rig: &Rig, name: &str) -> Result<PathBuf> {
    let dir = rig.fleet().lab().dir().join(name);
    if dir.exists() {
        std::fs::remove_dir_all(&dir)?;
    }
    std::fs::create_dir_all(&dir)?;
    Ok(dir)
}

#[test]
fn an_instance_is_paused_resumed_and_deleted_with_a_snapshot_each() -> Result<()> {
    let rig = start("pause", HostOptions::named("h1"))?;
    let (fleet, host) = (rig.fleet(), rig.host());
    let demo = Tenant::new(&rig, "demo", V1);
    rig.step("an instance serves", || {
        demo.deploy()?;
        demo.write("before", "x")
    })?;
    rig.step("it is paused: down, with a snapshot", || {
        fleet.clawctl_ok(&["pause", "demo"])?;
        fleet.until_phase("demo", "paused", PATIENCE)?;
        let found = fleet.snapshots_for("demo", "pause")?;
        ensure!(found.len() == 1, "{found:#?}");
        let running = Docker::of(host)?.containers_of("demo")?;
        ensure!(running.iter().all(|c| c["State"] != "running"), "{running:#?}");
        Ok(())
    })?;
    rig.step("a new agent leaves it so", || {
        kill_agent(&rig)?;
        fleet.until_phase("demo", "paused", PATIENCE)?;
        let found = fleet.snapshots_for("demo", "pause")?;
        ensure!(found.len() == 1, "{found:#?}");
        Ok(())
    })?;
    rig.step("it is resumed with its data", || {
        fleet.clawctl_ok(&["resume", "demo"])?;
        fleet.until_phase("demo", "running", PATIENCE)?;
        demo.assert_serves(V1)?;
        ensure!(demo.control("read?key=before")? == "x");
        demo.write("after", "y")
    })?;
    rig.step("it is deleted; the final snapshot holds everything", || {
        fleet.clawctl_ok(&["delete", "demo", "--wait"])?;
        let restic = Restic::of_removed(fleet, host, "demo")?;
        let last = restic.snapshots()?.into_iter().next_back().context("no snapshot")?;
        let tags = last["tags"].to_string();
        ensure!(tags.contains("cause:final"), "{tags}");
        let copy = fresh(&rig, "restored")?;
        let data = restic.restore(last["id"].as_str().context("no id")?, &copy)?;
        let rows = std::fs::read_to_string(data.join("state/rows"))?;
        ensure!(rows == "before\tx\nafter\ty\n", "{rows}");
        Ok(())
    })
}

fn kill_agent(rig: &Rig) -> Result<()> {
    let agent = UnitProcess::of(rig.host(), "clawd.service")?;
    agent.signal(Signal::SIGKILL)?;
    until(PATIENCE, "the agent to be dead", || Ok(agent.is_gone().then_some(())))?;
    rig.fleet().until_online(rig.host())
}

#[test]
fn the_first_snapshot_needs_no_coordinator_and_a_drill_proves_it() -> Result<()> {
    let rig = start("alone", HostOptions::named("h1"))?;
    let (fleet, host) = (rig.fleet(), rig.host());
    let demo = Tenant::new(&rig, "demo", V1);
    rig.step("the coordinator dies while an instance is created", || {
        let mut events = rig.docker()?.events()?;
        demo.apply()?;
        events.until("claw-demo", "create")?;
        fleet.kill_coordinator()
    })?;
    rig.step("the agent takes its first scheduled snapshot all the same", || {
        // It comes ten minutes after the instance: as if it had been there for long.
        until(PATIENCE, "the agent to have seen the instance", || {
            host.exec_ok(&["systemctl", "stop", "clawd.service"])?;
            let edited = journal::edit_backup_note(host, "demo", |note| {
                note["first_seen"] = 0.into();
            });
            host.exec_ok(&["systemctl", "start", "clawd.service"])?;
            Ok(edited.ok())
        })?;
        let listed = outside(host, "/var/lib/clawd/repo/demo/snapshots")?;
        until(PATIENCE, "a snapshot", || {
            Ok((std::fs::read_dir(&listed)?.count() == 1).then_some(()))
        })
    })?;
    rig.step("the coordinator comes back and lists it", || {
        fleet.start_coordinator()?;
        fleet.until_online(host)?;
        fleet.until(PATIENCE, "the snapshot to be listed", |fleet| {
            Ok(fleet.snapshots_for("demo", "scheduled")?.into_iter().next())
        })?;
        demo.assert_serves(V1)
    })?;
    rig.step("a drill that is due restores it, boots it and leaves nothing", || {
        host.exec_ok(&["systemctl", "stop", "clawd.service"])?;
        journal::edit_backup_note(host, "demo", |note| note["drill_at"] = 0.into())?;
        host.exec_ok(&["systemctl", "start", "clawd.service"])?;
        fleet.until_online(host)?;
        fleet.until_repository("demo", "the drill to have passed", PATIENCE, |repository| {
            !repository["drillTime"].is_null()
        })?;
        demo.assert_serves(V1)
    })
}

#[test]
fn a_disk_without_room_refuses_snapshots_and_damages_none() -> Result<()> {
    let rig = start("full-repo", HostOptions::named("h1").with_clawd_disk(900))?;
    let (fleet, host) = (rig.fleet(), rig.host());
    let mut demo = Tenant::new(&rig, "demo", V1);
    demo.instance.more.insert("backup".into(), json!({ "every": "0s" }));
    rig.step("an instance serves, and has a snapshot", || {
        demo.deploy()?;
        demo.write("a", "1")?;
        fleet.take_snapshot("demo", "before", SOON).map(drop)
    })?;
    rig.step("there is more new data than room: the next one is refused, and says why", || {
        let data = "/var/lib/clawd/instances/demo/gen-1/media";
        // Whatever is done leaves 512 MiB free.
        let fill = format!(
            "mkdir {data} && head -c 40M /dev/urandom > {data}/film && chown -R 1000:1000 {data} && \
             free=$(df --output=avail -B1M /var/lib/clawd | tail -1) && \
             head -c $((free - 530))M /dev/zero > /var/lib/clawd/fill"
        );
        host.exec_ok(&["sh", "-c", &fill])?;
        fleet.clawctl_ok(&["snapshot", "create", "demo", "refused"])?;
        let failed = fleet.until_snapshot("demo", "refused", "failed", PATIENCE)?;
        let problem = failed["problem"].as_str().unwrap_or_default();
        rig.note(&format!("  {problem}"));
        ensure!(problem.contains("room"), "{failed}");
        demo.assert_serves(V1)
    })?;
    rig.step("what was there before is whole", || {
        Restic::of(fleet, host, "demo")?.run(&["check", "--read-data"]).map(drop)
    })?;
    rig.step("an update is refused as well, and customers notice nothing", || {
        let pulse = demo.pulse("full")?;
        demo.ask_for(V2)?;
        fleet.until_status("demo", "the want of room to be said", PATIENCE, |status| {
            format!("{} {}", status["message"], status["refused"]).contains("kept free")
        })?;
        let heard = pulse.stop()?;
        let failed: Vec<_> = heard.failures().take(5).collect();
        ensure!(failed.is_empty(), "customers noticed: {failed:?}");
        demo.ask_for(V1)?;
        demo.assert_serves(V1)
    })?;
    rig.step("there is room again: the next one is taken", || {
        host.exec_ok(&["rm", "/var/lib/clawd/fill"])?;
        fleet.take_snapshot("demo", "after", SOON)?;
        Restic::of(fleet, host, "demo")?.run(&["check", "--read-data"]).map(drop)
    })
}
