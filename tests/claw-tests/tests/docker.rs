//! Docker goes away, comes back, hangs; and what is not ours is left alone.

use anyhow::{Context, Result, bail, ensure};
use claw_tests::fleet::until;
use claw_tests::programs::PATIENCE;
use claw_tests::{Instance, Rig, UnitProcess, traffic};
use nix::sys::signal::Signal;
use serde_json::Value;

#[test]
fn docker_may_restart_stop_and_hang() -> Result<()> {
    let rig = Rig::start("docker")?;
    let (fleet, host) = (rig.fleet(), rig.host());
    let image = &rig.image().reference;

    rig.step("an instance serves, beside two containers of somebody else", || {
        for name in ["stranger", "claw-taken"] {
            host.exec_ok(&[
                "docker",
                "run",
                "--detach",
                "--name",
                name,
                "--restart",
                "always",
                "--env",
                "OPENCLAW_GATEWAY_TOKEN=stranger",
                image,
                "gateway",
                "--allow-unconfigured",
            ])?;
        }
        fleet.apply(&Instance::new("demo", host, image).env("CLAW_FAKE_CONTROL", 1))?;
        fleet.until_phase("demo", "running", PATIENCE)?;
        fleet.until_serving(host, "demo")
    })?;
    let strangers = [of(&rig, "stranger")?, of(&rig, "claw-taken")?];

    rig.step(
        "an instance whose container's name is taken says so, and the stranger stays",
        || {
            fleet.apply(&Instance::new("taken", host, image))?;
            fleet.until(PATIENCE, "the complaint", |fleet| {
                let status = &fleet.instance("taken")?["status"];
                let message = status["message"].as_str().unwrap_or_default();
                let said = message.contains("claw-taken") && message.contains("not made by clawd");
                if said { Ok(Some(())) } else { bail!("it is {status}") }
            })?;
            assert_eq!([of(&rig, "stranger")?, of(&rig, "claw-taken")?], strangers);
            fleet.clawctl_ok(&["delete", "taken", "--wait"])?;
            assert_eq!([of(&rig, "stranger")?, of(&rig, "claw-taken")?], strangers);
            Ok(())
        },
    )?;
    let before = of(&rig, "claw-demo")?;
    rig.step("clawd stops and starts: the container is adopted, no request is lost", || {
        let ((), seen) = traffic::during(fleet, host, "demo", || {
            host.exec_ok(&["systemctl", "stop", "clawd.service"])?;
            assert_eq!(of(&rig, "claw-demo")?, before);
            host.exec_ok(&["systemctl", "start", "clawd.service"])?;
            fleet.until_online(host)?;
            fleet.until_phase("demo", "running", PATIENCE)?;
            Ok(())
        })?;
        ensure!(seen.failures.is_empty(), "{seen:#?}");
        assert_eq!(of(&rig, "claw-demo")?, before);
        fleet.until_event(host, "demo", "adopted")?;
        Ok(())
    })?;
    rig.step("what crashed while clawd was away is back when it returns", || {
        host.exec_ok(&["systemctl", "stop", "clawd.service"])?;
        rig.docker()?.kill("claw-demo")?;
        host.exec_ok(&["systemctl", "start", "clawd.service"])?;
        until_restarts(&rig, 1)
    })?;
    rig.step("docker restarts: the instance is back", || {
        let run = of(&rig, "claw-demo")?;
        host.exec_ok(&["systemctl", "restart", "docker.service"])?;
        until_other_run(&rig, &run)
    })?;
    rig.step("docker stops: that is shown; it starts: all is well", || {
        host.exec_ok(&["systemctl", "stop", "docker.socket", "docker.service"])?;
        until_problem(&rig)?;
        host.exec_ok(&["systemctl", "start", "docker.socket", "docker.service"])?;
        until_no_problem(&rig)?;
        fleet.until_phase("demo", "running", PATIENCE)?;
        fleet.until_serving(host, "demo")?;
        fleet.until_event(host, "", "runtime_lost")?;
        fleet.until_event(host, "", "runtime_back")?;
        Ok(())
    })?;
    rig.step("docker hangs: that is shown, the agent reports on, the instance serves", || {
        let dockerd = UnitProcess::of(host, "docker.service")?;
        dockerd.signal(Signal::SIGSTOP)?;
        let hanging = while_it_hangs(&rig);
        dockerd.signal(Signal::SIGCONT)?;
        hanging
    })?;
    rig.step("docker goes on: what was asked for meanwhile is done", || {
        until_no_problem(&rig)?;
        fleet.until_phase("demo", "running", PATIENCE)?;
        fleet.until_serving(host, "demo")?;
        assert_eq!(rig.docker()?.inspect("claw-demo")?["HostConfig"]["NanoCpus"], 700_000_000);
        Ok(())
    })?;
    rig.step("the strangers run on as theirs left them", || {
        for (name, before) in ["stranger", "claw-taken"].into_iter().zip(&strangers) {
            // Docker's own restarts gave them new runs, in the same containers.
            until(PATIENCE, name, || Ok(of(&rig, name)?.0.eq(&before.0).then_some(())))?;
            assert_eq!(rig.docker()?.inspect(name)?["State"]["Running"], true);
        }
        Ok(())
    })
}

fn while_it_hangs(rig: &Rig) -> Result<()> {
    let (fleet, host) = (rig.fleet(), rig.host());
    let mut demo = Instance::new("demo", host, &rig.image().reference).env("CLAW_FAKE_CONTROL", 1);
    demo.cpu_millis = 700;
    fleet.apply(&demo)?;
    until_problem(rig)?;
    let seen = |fleet: &claw_tests::Fleet| -> Result<String> {
        let found = fleet.json(&["host", "get", host.name()])?;
        assert_eq!(found["status"]["state"], "online", "{found}");
        found["status"]["lastSeenTime"].as_str().map(str::to_owned).context("never seen")
    };
    let first = seen(fleet)?;
    fleet.until(
        PATIENCE,
        "another heartbeat",
        |fleet| Ok((seen(fleet)? != first).then_some(())),
    )?;
    fleet.until_serving(host, "demo")
}

fn until_problem(rig: &Rig) -> Result<()> {
    rig.fleet().until(PATIENCE, "docker's trouble to be shown", |fleet| {
        let found = fleet.json(&["host", "get", rig.host().name()])?;
        assert_eq!(found["status"]["state"], "online", "{found}");
        let shown = found["status"]["runtimeProblem"].as_str().is_some_and(|text| !text.is_empty());
        if shown { Ok(Some(())) } else { bail!("{found}") }
    })
}

fn until_no_problem(rig: &Rig) -> Result<()> {
    rig.fleet().until(PATIENCE, "docker's trouble to be over", |fleet| {
        let found = fleet.json(&["host", "get", rig.host().name()])?;
        let over = found["status"]["runtimeProblem"].as_str().is_none_or(str::is_empty);
        if over { Ok(Some(())) } else { bail!("{found}") }
    })
}

fn until_restarts(rig: &Rig, count: u64) -> Result<()> {
    rig.fleet().until(PATIENCE, "the restart to be counted", |fleet| {
        let status = &fleet.instance("demo")?["status"];
        let there = status["restartCount"] == count && status["phase"] == "running";
        if there { Ok(Some(())) } else { bail!("it is {status}") }
    })?;
    rig.fleet().until_serving(rig.host(), "demo")
}

fn until_other_run(rig: &Rig, before: &(String, String)) -> Result<()> {
    until(PATIENCE, "another run", || {
        let run = of(rig, "claw-demo")?;
        assert_eq!(run.0, before.0, "another container");
        Ok((run.1 != before.1).then_some(()))
    })?;
    rig.fleet().until_phase("demo", "running", PATIENCE)?;
    rig.fleet().until_serving(rig.host(), "demo")
}

/// Id of a container and the start of its run.
fn of(rig: &Rig, container: &str) -> Result<(String, String)> {
    let found = rig.docker()?.inspect(container)?;
    let text = |value: &Value| value.as_str().map(str::to_owned).context("no text");
    Ok((text(&found["Id"])?, text(&found["State"]["StartedAt"])?))
}
