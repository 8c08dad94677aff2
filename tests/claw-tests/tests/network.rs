//! Cables are cut and coordinators are gone; hosts go on by themselves, and nothing is lost.

use anyhow::{Result, bail};
use claw_lab::Cut;
use claw_tests::programs::PATIENCE;
use claw_tests::{Instance, Rig};
use serde_json::Value;

#[test]
fn a_host_goes_on_through_every_cut() -> Result<()> {
    let rig = Rig::start("network")?;
    let (fleet, host) = (rig.fleet(), rig.host());
    let fake =
        |name: &str| Instance::new(name, host, &rig.image().reference).env("CLAW_FAKE_CONTROL", 1);
    rig.step("two instances serve", || {
        for name in ["kept", "doomed"] {
            fleet.apply(&fake(name))?;
        }
        for name in ["kept", "doomed"] {
            fleet.until_phase(name, "running", PATIENCE)?;
        }
        Ok(())
    })?;
    rig.step("packets vanish silently: the host is shown as offline, its reports as old", || {
        host.cut(Cut::Silent)?;
        fleet.until_host(host, "offline", PATIENCE)?;
        let status = &fleet.instance("kept")?["status"];
        assert_eq!(status["hostState"], "offline", "{status}");
        Ok(())
    })?;
    rig.step("a gateway that dies meanwhile is healed", || heal_in_the_dark(&rig))?;
    rig.step("an instance is deleted and another changed while the host hears nothing", || {
        fleet.clawctl_ok(&["delete", "doomed"])?;
        fleet.apply(&Instance { cpu_millis: 600, ..fake("kept") })?;
        let listed = fleet.json(&["list"])?;
        let names: Vec<_> = claw_tests::rig::list(&listed)?.iter().map(|i| &i["name"]).collect();
        assert_eq!(names, ["doomed", "kept"], "it vanished before its host has removed it");
        assert_eq!(rig.docker()?.containers_of("doomed")?.len(), 1);
        Ok(())
    })?;
    rig.step("the network heals: both reach the host, the restart is reported", || {
        host.heal()?;
        fleet.until_online(host)?;
        until_gone(&rig, "doomed")?;
        let kept = fleet.until_phase("kept", "running", PATIENCE)?;
        assert_eq!(kept["status"]["restartCount"], 1, "{kept}");
        assert_eq!(rig.docker()?.inspect("claw-kept")?["HostConfig"]["NanoCpus"], 600_000_000);
        fleet.until_event(host, "kept", "exited")?;
        fleet.until_serving(host, "kept")
    })?;
    rig.step("the cable is pulled and put back", || {
        host.cut(Cut::Link)?;
        fleet.until_host(host, "offline", PATIENCE)?;
        host.heal()?;
        fleet.until_online(host)?;
        fleet.until_serving(host, "kept")
    })?;
    rig.step("the coordinator is killed: a gateway that dies is healed all the same", || {
        fleet.kill_coordinator()?;
        heal_in_the_dark(&rig)
    })?;
    rig.step("a coordinator starts that cannot know yet: unknown, not offline", || {
        host.cut(Cut::Silent)?;
        fleet.start_coordinator()?;
        let found = fleet.json(&["host", "get", host.name()])?;
        assert_eq!(found["status"]["state"], "unknown", "{found}");
        Ok(())
    })?;
    rig.step("and it learns everything once it hears the host", || {
        host.heal()?;
        fleet.until_online(host)?;
        fleet.until(PATIENCE, "the second restart to be reported", |fleet| {
            let status = &fleet.instance("kept")?["status"];
            let told = status["restartCount"] == 2 && status["phase"] == "running";
            if told { Ok(Some(())) } else { bail!("it is {status}") }
        })?;
        fleet.until_serving(host, "kept")
    })?;
    rig.step("no event was lost or doubled on the way", || {
        let events = fleet.events(host)?;
        let exits = events.iter().filter(|e| e["instance"] == "kept" && e["kind"] == "exited");
        assert_eq!(exits.count(), 2, "{events:#?}");
        let lost: Vec<&Value> = events.iter().filter(|e| e["kind"] == "events_lost").collect();
        assert!(lost.is_empty(), "{lost:#?}");
        Ok(())
    })
}

/// Kills the gateway behind the coordinator's back and waits, on the host, until it runs again.
fn heal_in_the_dark(rig: &Rig) -> Result<()> {
    let docker = rig.docker()?;
    let before = docker.inspect("claw-kept")?["State"]["StartedAt"].clone();
    docker.kill("claw-kept")?;
    claw_tests::fleet::until(PATIENCE, "the gateway to be back", || {
        let state = docker.inspect("claw-kept")?["State"].clone();
        let back = state["Running"] == true && state["StartedAt"] != before;
        if back { Ok(Some(())) } else { bail!("{state}") }
    })?;
    let local =
        ["curl", "-fsS", "-H", "Host: kept.claw.localhost", "http://127.0.0.1:8080/startupz"];
    claw_tests::fleet::until(PATIENCE, "the host's own proxy to serve it", || {
        let answer = rig.host().exec(&local)?;
        if answer.success() { Ok(Some(())) } else { bail!("{answer:?}") }
    })
}

fn until_gone(rig: &Rig, name: &str) -> Result<()> {
    rig.fleet().until(PATIENCE, &format!("{name} to be gone"), |fleet| {
        let all = fleet.json(&["list"])?;
        let there = claw_tests::rig::list(&all)?.iter().any(|instance| instance["name"] == name);
        Ok((!there).then_some(()))
    })?;
    assert_eq!(rig.docker()?.containers_of(name)?, Vec::<Value>::new());
    Ok(())
}
