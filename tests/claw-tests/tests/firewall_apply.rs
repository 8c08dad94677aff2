//! Policies that go wrong, and agents that die while they apply one: never open, never locked, and
//! somebody says why.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use claw_lab::{LabHost, Network};
use claw_tests::barrage::{Barrage, Pace, Seen, Target};
use claw_tests::clock::now;
use claw_tests::fleet::{WEB_PORT, until};
use claw_tests::ground::{self, ELSEWHERE, ELSEWHERE_V6, Ground, HOST_PORTS, Inside};
use claw_tests::probe::Probe;
use claw_tests::programs::PATIENCE;
use claw_tests::steps::Steps;
use claw_tests::{Instance, Rig, UnitProcess, traffic};
use nix::sys::signal::Signal;
use serde_json::json;

/// Everything from the coordinator's side, which the host itself is on too.
const COORDINATORS: &str = "198.51.100.0/24";
/// How long a host may be cut off: the watchdog's time, and time to come back.
const OUTAGE: Duration = Duration::from_secs(90);
/// Operators log in ten times a second, and are patient.
const OPERATORS: Pace =
    Pace { every: Duration::from_millis(100), patience: Duration::from_secs(5) };
/// More steps than an apply has.
const MOST_STEPS: usize = 80;

#[test]
fn a_policy_that_cuts_the_host_off_reverts_by_itself() -> Result<()> {
    let rig = Rig::start("lockout")?;
    let (fleet, host) = (rig.fleet(), rig.host());
    let ground = Ground::start(fleet.lab())?;
    rig.step("an instance serves", || {
        fleet.apply(&Instance::new("a", host, &rig.image().reference))?;
        fleet.until_phase("a", "running", PATIENCE)?;
        fleet.until_serving(host, "a")?;
        fleet.until_firewall(host).map(drop)
    })?;
    let ssh = Operators::start(&rig, &ground)?;
    rig.step("the agent is cut off, reverts, and tells why; the instance serves on", || {
        let begun = now();
        let ((), seen) = traffic::during(fleet, host, "a", || {
            fleet.set_firewall(host, &json!({ "blocked": [COORDINATORS] }))?;
            let told = fleet.until_firewall_problem(host, OUTAGE)?;
            rig.note(&format!("  after {:.1} s: {told}", begun.elapsed().as_secs_f32()));
            fleet.until_online(host)
        })?;
        ensure!(
            seen.failures.is_empty(),
            "{} of {}: {:?}",
            seen.failures.len(),
            seen.requests,
            seen.failures
        );
        fleet.until_event(host, "", "firewall_reverted")?;
        assert_lets_in(&rig, true)
    })?;
    rig.step("a better policy is taken", || {
        fleet.set_firewall(host, &json!({ "blocked": ["192.0.2.200/32"] }))?;
        fleet.until_firewall(host)?;
        assert_lets_in(&rig, true)
    })?;
    rig.step("the agent is killed while it is cut off: the watchdog reverts without it", || {
        fleet.set_firewall(host, &json!({ "blocked": [COORDINATORS] }))?;
        assert_lets_in(&rig, false)?;
        UnitProcess::of(host, "clawd.service")?.signal(Signal::SIGKILL)?;
        // Not brought back either.
        host.exec_ok(&["systemctl", "stop", "clawd.service"])?;
        let begun = now();
        assert_lets_in(&rig, true)?;
        rig.note(&format!("  reverted after {:.1} s", begun.elapsed().as_secs_f32()));
        host.exec_ok(&["systemctl", "start", "clawd.service"])?;
        let told = fleet.until_firewall_problem(host, OUTAGE)?;
        rig.note(&format!("  {told}"));
        fleet.until_online(host)
    })?;
    rig.step("SSH was reachable all the time, from the blocked network too", || ssh.stop(&rig))?;
    rig.step("and the host takes a good policy again", || {
        fleet.set_firewall(host, &json!({}))?;
        fleet.until_firewall(host).map(drop)
    })
}

/// Waits until the web port can, or cannot, be reached from the coordinator's side.
fn assert_lets_in(rig: &Rig, wanted: bool) -> Result<()> {
    let probe = Probe::tcp((rig.host().address(), WEB_PORT));
    let servers = claw_tests::servers::Servers::new();
    until(OUTAGE, "the coordinator's side to be let in, or not", || {
        let verdict = rig
            .fleet()
            .lab()
            .within(Network::Internet, || probe.run(&servers, Duration::from_millis(500)))??;
        if verdict.is_open() == wanted { Ok(Some(())) } else { bail!("it is {verdict}") }
    })
}

/// Operators who log in all the time, from the customers' side and from the link. Each source for itself
/// stays below the limit of new connections.
struct Operators(Barrage, Barrage);

impl Operators {
    fn start(rig: &Rig, ground: &Ground) -> Result<Self> {
        let lab = rig.fleet().lab();
        let near: Vec<IpAddr> =
            (223..=253).map(|last| Ipv4Addr::new(198, 51, 100, last).into()).collect();
        for address in &near {
            ground.neighbour().ip(&format!("addr add {address}/32 dev eth0\n"))?;
        }
        let target = |from| vec![Target { from, ..Target::new("SSH", (rig.host().address(), 22)) }];
        let far =
            Barrage::start(lab.netns(Network::Client), target(ground::crowd(lab)?), OPERATORS)?;
        let slow = Pace { every: Duration::from_secs(1), ..OPERATORS };
        Ok(Self(far, Barrage::start(ground.neighbour(), target(near), slow)?))
    }

    fn stop(self, rig: &Rig) -> Result<()> {
        for barrage in [self.0, self.1] {
            let seen = barrage.stop()?;
            rig.note(&format!("  SSH: {}", seen.summary()));
            ensure!(
                seen.closed.is_empty() && seen.unsent == 0,
                "SSH was closed: {:?}",
                seen.closed.first()
            );
            ensure!(seen.opened.len() > 10, "hardly anybody logged in: {}", seen.summary());
        }
        Ok(())
    }
}

#[test]
fn an_agent_killed_at_every_step_of_an_apply_leaves_nothing_open_or_locked() -> Result<()> {
    let rig = Rig::start("applykill")?;
    let (fleet, host) = (rig.fleet(), rig.host());
    let ground = Ground::start(fleet.lab())?;
    rig.step("an instance runs", || {
        fleet.apply(&Instance::new("a", host, &rig.image().reference))?;
        fleet.until_phase("a", "running", PATIENCE)?;
        fleet.until_firewall(host)?;
        ground.plant(fleet.lab(), host)
    })?;
    let plug = ground.plug(host, &Inside::of(host, "a")?)?;
    let port = HOST_PORTS[1];
    let egress = vec![
        Target::new("a denied port", (ELSEWHERE, 25)),
        Target::new("a denied port, IPv6", (ELSEWHERE_V6, 25)),
    ];
    let ingress = vec![
        Target::new("a port of the host", (host.address(), port)),
        Target::new("a port of the host, IPv6", (host.address_v6(), port)),
    ];
    let steps = Steps::install(host)?;
    let ssh = Operators::start(&rig, &ground)?;
    let client = fleet.lab().netns(Network::Client);
    let fire = [
        Barrage::start(&plug, egress, Pace::CLOSED)?,
        Barrage::start(client, ingress, Pace::CLOSED)?,
    ];
    let mut number = 1;
    while rig
        .step(&format!("killed before command {number}"), || killed_at(&rig, &steps, number))?
    {
        number += 1;
        ensure!(number < MOST_STEPS, "an apply has no end");
    }
    rig.step("there were steps to die at, and nothing came through at any", || {
        ensure!(number > 8, "only {number} commands");
        for barrage in fire {
            let seen: Seen = barrage.stop()?;
            rig.note(&format!("  {}", seen.summary()));
            ensure!(seen.opened.is_empty(), "it was open: {}", seen.summary());
        }
        ssh.stop(&rig)
    })?;
    rig.step("and the last policy is in force", || {
        let last = json!({ "extra": [{ "protocol": "tcp", "port": port }] });
        fleet.set_firewall(host, &last)?;
        fleet.until_firewall(host)?;
        let probe = Probe::tcp((host.address(), port));
        let verdict =
            fleet.lab().within(Network::Client, || probe.run(ground.servers(), PATIENCE))??;
        ensure!(verdict.is_open(), "{verdict}");
        Ok(())
    })
}

/// Pushes another policy and kills the agent before a command; whether the apply had so many. Afterwards
/// the policy is in force, or the host says why not.
fn killed_at(rig: &Rig, steps: &Steps<'_>, number: usize) -> Result<bool> {
    let (fleet, host) = (rig.fleet(), rig.host());
    let agent = UnitProcess::of(host, "clawd.service")?;
    steps.arm(number)?;
    let port = 40_000 + number;
    fleet.set_firewall(host, &json!({ "extra": [{ "protocol": "tcp", "port": port }] }))?;
    let hit = until(PATIENCE, "the step, or the end", || {
        if steps.is_blocked() {
            return Ok(Some(true));
        }
        Ok(in_force(fleet, host)?.then_some(false))
    })?;
    if !hit {
        steps.release()?;
        return Ok(false);
    }
    rig.note(&format!("  {}", shortened(&steps.command(number)?)));
    agent.signal(Signal::SIGKILL)?;
    until(PATIENCE, "the agent to be dead", || Ok(agent.is_gone().then_some(())))?;
    steps.release()?;
    until(OUTAGE, "the policy to be in force, or a reason", || {
        let (status, wanted) = fleet.firewall_status(host)?;
        let told = status["problem"].as_str().filter(|text| !text.is_empty());
        if let Some(told) = told {
            rig.note(&format!("  not in force: {told}"));
        }
        if told.is_some() || in_force(fleet, host)? {
            return Ok(Some(()));
        }
        bail!("{wanted} is wanted: {status}")
    })?;
    fleet.until_online(host)?;
    Ok(true)
}

fn in_force(fleet: &claw_tests::Fleet, host: &LabHost) -> Result<bool> {
    let (status, wanted) = fleet.firewall_status(host)?;
    let fine = status["problem"].as_str().is_none_or(str::is_empty);
    Ok(fine && status["appliedGeneration"].as_u64() >= Some(wanted))
}

fn shortened(command: &str) -> String {
    command.chars().take(100).collect()
}
