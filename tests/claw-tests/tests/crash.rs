//! Agent, coordinator and whole hosts die in the middle of things, and nothing is lost or doubled.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use claw_lab::Cut;
use claw_tests::docker::Events;
use claw_tests::fleet::until;
use claw_tests::journal::{self, Step};
use claw_tests::programs::PATIENCE;
use claw_tests::unit::outside;
use claw_tests::{Instance, Rig, UnitProcess};
use nix::sys::signal::Signal;
use serde_json::Value;

/// Times that a kill may come too late before the test gives up: the agent is fast.
const TRIES: usize = 5;

/// When the agent is killed: at a trace that a step leaves on the machine.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// The plan with this step is in the journal, and nothing of it was done.
    Journaled(&'static str),
    /// Docker has done something to the instance's `container` or `network`.
    Docker(&'static str, &'static str),
    /// A file of the instance is there; `@` stands for its name.
    Appears(&'static str),
    /// A file of the instance is gone.
    Vanishes(&'static str),
}

/// A moment that is being waited for.
enum Watch {
    Journal(&'static str),
    Events(Box<Events>, &'static str),
    Appears(PathBuf),
    Vanishes(PathBuf),
}

const CONFIG: &str = "/var/lib/clawd/instances/@/gen-1/openclaw.json";
const SECRETS: &str = "/run/clawd/secrets/@/.env";
const VHOST: &str = "/etc/nginx/claw.d/@.conf";
const HOME: &str = "/var/lib/clawd/instances/@";

/// What each step of a deploy, a rebuild and a removal leaves behind.
const DEPLOY: [Moment; 7] = [
    Moment::Journaled("create-network"),
    Moment::Docker("network", "create"),
    Moment::Appears(CONFIG),
    Moment::Appears(SECRETS),
    Moment::Appears(VHOST),
    Moment::Docker("container", "create"),
    Moment::Docker("container", "start"),
];
const REBUILD: [Moment; 5] = [
    Moment::Journaled("stop-container"),
    Moment::Docker("container", "die"),
    Moment::Docker("container", "destroy"),
    Moment::Docker("container", "create"),
    Moment::Docker("container", "start"),
];
const REMOVAL: [Moment; 6] = [
    Moment::Docker("container", "die"),
    Moment::Docker("container", "destroy"),
    Moment::Vanishes(VHOST),
    Moment::Vanishes(SECRETS),
    Moment::Docker("network", "destroy"),
    Moment::Vanishes(HOME),
];

#[test]
fn an_agent_killed_at_every_step_converges_without_a_second_container() -> Result<()> {
    let rig = Rig::start("kill")?;
    let mut alive = Vec::new();
    for (moment, number) in DEPLOY.into_iter().zip(0..) {
        rig.step(&format!("kill -9 during a deploy: {moment:?}"), || {
            let name = until_hit(&rig, moment, |attempt| {
                let name = format!("step{number}-{attempt}");
                let instance = Instance::new(&name, rig.host(), &rig.image().reference);
                Ok((name, instance))
            })?;
            assert_one_of_each(&rig, &name)?;
            alive.push(name);
            Ok(())
        })?;
    }
    let mut names = alive.iter().cycle();
    for moment in REBUILD {
        rig.step(&format!("kill -9 during a rebuild: {moment:?}"), || {
            for _ in 0..TRIES {
                let name = names.next().context("no instance")?;
                let before = container_id(&rig, name)?;
                let ask = || rig.fleet().clawctl_ok(&["rebuild", name]).map(|_| ());
                let hit = kill_at(&rig, name, moment, ask)?;
                assert_one_of_each(&rig, name)?;
                assert_ne!(container_id(&rig, name)?, before, "it was not rebuilt");
                if hit {
                    return Ok(());
                }
            }
            bail!("the kill came too late {TRIES} times")
        })?;
    }
    for moment in REMOVAL {
        rig.step(&format!("kill -9 during a removal: {moment:?}"), || {
            let name = alive.pop().context("no instance is left")?;
            let ask = || rig.fleet().clawctl_ok(&["delete", &name]).map(|_| ());
            kill_at(&rig, &name, moment, ask)?;
            assert_gone(&rig, &name)
        })?;
    }
    rig.step("the power is cut in the middle of a deploy: one boot, one container", || {
        let name = "cut";
        let mut events = rig.docker()?.events()?;
        rig.fleet().apply(&Instance::new(name, rig.host(), &rig.image().reference))?;
        events.until("claw-cut", "create")?;
        rig.host().power_cut()?;
        rig.host().boot_again()?;
        assert_one_of_each(&rig, name)
    })
}

/// Creates instances until one is hit in the middle of its deploy; returns its name.
fn until_hit(
    rig: &Rig,
    moment: Moment,
    make: impl Fn(usize) -> Result<(String, Instance)>,
) -> Result<String> {
    for attempt in 0..TRIES {
        let (name, instance) = make(attempt)?;
        if kill_at(rig, &name, moment, || rig.fleet().apply(&instance))? {
            return Ok(name);
        }
        rig.fleet().clawctl_ok(&["delete", &name, "--wait"])?;
    }
    bail!("the kill came too late {TRIES} times")
}

/// Asks for something and kills the agent at the moment; whether steps were under way then.
fn kill_at(
    rig: &Rig,
    name: &str,
    moment: Moment,
    ask: impl FnOnce() -> Result<()>,
) -> Result<bool> {
    let agent = UnitProcess::of(rig.host(), "clawd.service")?;
    let known = journal::steps(rig.host(), name).map_or(0, |steps| steps.len());
    let watch = arm(rig, name, moment)?;
    std::thread::scope(|scope| {
        let killer = scope.spawn(|| {
            wait(rig, name, watch, known)?;
            agent.signal(Signal::SIGKILL)
        });
        ask()?;
        killer.join().map_err(|_| anyhow::anyhow!("the killer panicked"))?
    })?;
    until(PATIENCE, "the agent to be dead", || Ok(agent.is_gone().then_some(())))?;
    let steps = journal::steps(rig.host(), name)?;
    let cut_off = |step: &&Step| step.outcome.as_deref().is_none_or(|o| o == "interrupted");
    let hit: Vec<&str> =
        steps.iter().skip(known).filter(cut_off).map(|s| s.name.as_str()).collect();
    rig.note(&format!("  killed; of {name} were under way: {}", hit.join(" ")));
    Ok(!hit.is_empty())
}

fn arm(rig: &Rig, name: &str, moment: Moment) -> Result<Watch> {
    let path = |path: &str| outside(rig.host(), &path.replace('@', name));
    Ok(match moment {
        Moment::Journaled(step) => Watch::Journal(step),
        Moment::Docker(kind, action) => {
            Watch::Events(Box::new(rig.docker()?.events_of(kind)?), action)
        }
        Moment::Appears(file) => Watch::Appears(path(file)?),
        Moment::Vanishes(file) => Watch::Vanishes(path(file)?),
    })
}

fn wait(rig: &Rig, name: &str, watch: Watch, known: usize) -> Result<()> {
    let soon = |what: &str, there: &dyn Fn() -> bool| {
        // Ten times as often as `until` looks: a step takes a millisecond.
        let looks = PATIENCE.as_micros() / 200;
        for _ in 0..looks {
            if there() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        bail!("waited in vain for {what}")
    };
    match watch {
        Watch::Journal(step) => soon(step, &|| {
            let steps = journal::steps(rig.host(), name).unwrap_or_default();
            steps.iter().skip(known).any(|found| found.name == step)
        }),
        Watch::Events(mut events, action) => {
            events.until(&format!("claw-{name}"), action).map(|_| ())
        }
        Watch::Appears(path) => soon("a file to appear", &|| path.exists()),
        Watch::Vanishes(path) => soon("a file to vanish", &|| !path.exists()),
    }
}

fn container_id(rig: &Rig, name: &str) -> Result<String> {
    let containers = rig.docker()?.containers_of(name)?;
    ensure!(containers.len() == 1, "{name} has not one container: {containers:#?}");
    containers[0]["Id"].as_str().map(str::to_owned).context("no id")
}

/// It runs and serves with its present spec, from one container in one network, all steps closed.
fn assert_one_of_each(rig: &Rig, name: &str) -> Result<()> {
    let instance = rig.fleet().until_phase(name, "running", PATIENCE)?;
    rig.fleet().until_serving(rig.host(), name)?;
    assert_eq!(instance["status"]["containerId"], container_id(rig, name)?);
    let networks = rig.docker()?.networks_of(name)?;
    assert_eq!(networks.len(), 1, "{networks:#?}");
    until(PATIENCE, "every step to be closed", || {
        let steps = journal::steps(rig.host(), name)?;
        let open: Vec<_> = steps.iter().filter(|step| step.outcome.is_none()).collect();
        if open.is_empty() { Ok(Some(())) } else { bail!("open: {open:?}") }
    })
}

fn assert_gone(rig: &Rig, name: &str) -> Result<()> {
    rig.fleet().until(PATIENCE, "the instance to be gone", |fleet| {
        let all = fleet.json(&["list"])?;
        let there = claw_tests::rig::list(&all)?.iter().any(|instance| instance["name"] == name);
        Ok((!there).then_some(()))
    })?;
    let docker = rig.docker()?;
    assert_eq!(docker.containers_of(name)?, Vec::<Value>::new());
    assert_eq!(docker.networks_of(name)?, Vec::<Value>::new());
    for file in [SECRETS, VHOST, HOME] {
        let path = outside(rig.host(), &file.replace('@', name))?;
        assert!(!path.exists(), "{} is left", path.display());
    }
    let aside =
        rig.host().exec_ok(&["sh", "-c", &format!("ls -d /var/lib/clawd/removed/{name}.*")])?;
    assert_eq!(aside.lines().count(), 1, "data was set aside more than once, or lost: {aside}");
    Ok(())
}

#[test]
fn a_coordinator_killed_in_the_middle_of_a_push_loses_nothing() -> Result<()> {
    let rig = Rig::start("push")?;
    let (fleet, host) = (rig.fleet(), rig.host());
    let instance = |name: &str| Instance::new(name, host, &rig.image().reference);

    rig.step("kill -9 as soon as it has answered three creates", || {
        for name in ["a", "b", "c"] {
            fleet.apply(&instance(name))?;
        }
        fleet.kill_coordinator()?;
        fleet.start_coordinator()?;
        for name in ["a", "b", "c"] {
            assert_one_of_each(&rig, name)?;
        }
        Ok(())
    })?;
    let before = container_id(&rig, "a")?;
    rig.step("kill -9 while a push is on its way to a host that does not hear it", || {
        host.cut(Cut::Silent)?;
        fleet.apply(&Instance { memory_mib: 320, ..instance("a") })?;
        fleet.clawctl_ok(&["delete", "b"])?;
        fleet.apply(&instance("d"))?;
        assert_eq!(container_id(&rig, "a")?, before, "it heard through a cut cable");
        fleet.kill_coordinator()?;
        host.heal()
    })?;
    rig.step("a new coordinator pushes what the old one had promised", || {
        fleet.start_coordinator()?;
        for name in ["a", "c", "d"] {
            assert_one_of_each(&rig, name)?;
        }
        assert_ne!(container_id(&rig, "a")?, before);
        assert_gone(&rig, "b")
    })
}
