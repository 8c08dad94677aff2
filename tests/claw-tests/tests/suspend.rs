//! Snapshots on request suspend the gateway around the freezer: the fake one and the real one.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use claw_lab::{Cache, HostOptions, LabHost, Network, images, progress};
use claw_tests::clock::now;
use claw_tests::fleet::{WEB_PORT, until};
use claw_tests::programs::PATIENCE;
use claw_tests::versions::V1;
use claw_tests::{Docker, Instance, Rig, Tenant, UnitProcess, WebSocket, rig};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// The real one takes 7–15 s to start on an idle machine; 50 s were seen on an overloaded one.
const START: Duration = Duration::from_secs(180);
/// A snapshot, and getting to know the gateway before it.
const SNAPSHOT: Duration = Duration::from_secs(90);

/// A disk of their own, in MiB: snapshots are refused where there is little room.
const DISK: u32 = 3000;

/// How long a suspension lasts that nobody ends; 120 s with the real one.
const LEASE: Duration = Duration::from_secs(10);

/// What both gateways log.
const CLOSED: &str = "closed: suspend phase";
const REOPENED: &str = "reopened: suspend phase";

#[test]
fn a_snapshot_on_request_suspends_the_gateway() -> Result<()> {
    let cache = Cache::open(progress::terminal())?;
    let host = HostOptions::named("h1").with_image(&V1.image(&cache)?).with_clawd_disk(DISK);
    let rig = Rig::with("suspend", rig::QUICK, &[host])?;
    let (fleet, host) = (rig.fleet(), rig.host());
    let mut demo = Tenant::new(&rig, "demo", V1);
    // Room for the program that approves the host.
    demo.instance.memory_mib = 512;
    demo.instance = demo.instance.env("CLAW_FAKE_SUSPEND_MS", LEASE.as_millis());
    demo.instance.more.insert("backup".into(), json!({ "every": "0s" }));
    rig.step("an instance serves", || {
        speak_up(host)?;
        demo.deploy()
    })?;
    let pulse = demo.pulse("suspend")?;
    rig.step("the first snapshot gets to know the gateway and suspends it", || {
        fleet.take_snapshot("demo", "first", SNAPSHOT)?;
        until_suspended(host, "claw-demo", 1)?;
        ensure!(introductions(host)? == 1);
        let mode = host.exec_ok(&["stat", "-c", "%a %U", "/var/lib/clawd/gateway-device"])?;
        ensure!(mode.trim() == "600 root", "{mode}");
        Ok(())
    })?;
    rig.step("the second one knows it", || {
        fleet.take_snapshot("demo", "second", SNAPSHOT)?;
        until_suspended(host, "claw-demo", 2)?;
        ensure!(introductions(host)? == 1);
        Ok(())
    })?;
    rig.step("customers saw no failed request", || {
        let heard = pulse.stop()?;
        rig.note(&format!("  {heard}"));
        let failed: Vec<_> = heard.failures().take(5).collect();
        ensure!(failed.is_empty(), "{failed:?}");
        Ok(())
    })?;
    rig.step(
        "an agent that dies while it holds the instance leaves it to resume by itself",
        || {
            die_holding(&rig, "third")?;
            until(PATIENCE, "the instance to be thawed", || {
                let paused = &Docker::of(host)?.inspect("claw-demo")?["State"]["Paused"];
                Ok((*paused == json!(false)).then_some(()))
            })?;
            ensure!(Suspensions::of(host, "claw-demo")?.counts().0 >= 3, "it was not suspended");
            // At once if the agent had told it so already, else when the lease ends.
            until(PATIENCE, "the gateway to have resumed", || {
                let answer = fleet.browse(host, "demo", "/startupz")?;
                if answer.body.contains("started") { Ok(Some(())) } else { bail!("{answer:?}") }
            })?;
            fleet.until_online(host)
        },
    )?;
    rig.step("nobody took it for ill, and it is suspended as before", || {
        let (_, before) = Suspensions::of(host, "claw-demo")?.counts();
        fleet.take_snapshot("demo", "fourth", SNAPSHOT)?;
        until(PATIENCE, "one more suspension", || {
            let (_, reopened) = Suspensions::of(host, "claw-demo")?.counts();
            Ok((reopened > before).then_some(()))
        })?;
        assert_untroubled(&rig, "demo")
    })?;
    rig.step("one at work is held by the freezer alone", || {
        demo.instance = demo.instance.clone().env("CLAW_FAKE_BUSY", 1);
        demo.apply()?;
        fleet.until_status("demo", "the change", PATIENCE, |status| {
            status["current"] == true && status["phase"] == "running"
        })?;
        fleet.until_serving(host, "demo")?;
        fleet.take_snapshot("demo", "busy", SNAPSHOT)?;
        ensure!(Suspensions::of(host, "claw-demo")?.counts() == (0, 0), "in a new container");
        assert_untroubled(&rig, "demo")
    })
}

/// Kills the agent in the midst of a snapshot's still moment, which is made long enough for that.
fn die_holding(rig: &Rig, snapshot: &str) -> Result<()> {
    let (fleet, host) = (rig.fleet(), rig.host());
    let data = "/var/lib/clawd/instances/demo/gen-1/media";
    let fill = format!(
        "mkdir {data} && head -c 400M /dev/urandom > {data}/film && chown -R 1000:1000 {data}"
    );
    host.exec_ok(&["sh", "-c", &fill])?;
    // Written to without end, it is copied while the instance is held.
    let writer =
        format!("while sleep 0.05 && test ! -e /run/enough; do printf x >> {data}/film; done");
    let _writer = host.spawn(&["sh", "-c", &writer])?;
    let agent = UnitProcess::of(host, "clawd.service")?;
    let mut events = rig.docker()?.events()?;
    fleet.clawctl_ok(&["snapshot", "create", "demo", snapshot])?;
    events.until("claw-demo", "pause")?;
    agent.signal(Signal::SIGKILL)?;
    until(PATIENCE, "the agent to be dead", || Ok(agent.is_gone().then_some(())))?;
    host.exec_ok(&["touch", "/run/enough"]).map(drop)
}

#[test]
fn the_real_openclaw_is_suspended_for_a_snapshot_on_request() -> Result<()> {
    let mut rig = Rig::without_hosts("suspend-real", rig::QUICK)?;
    let image = images::openclaw(&Cache::open(progress::terminal())?)?;
    let host = rig.step("a host with its image boots and joins", || {
        rig.fleet().host(HostOptions::named("h1").with_image(&image).with_clawd_disk(DISK))
    })?;
    rig.add(host);
    let (fleet, host) = (rig.fleet(), rig.host());
    let mut instance = Instance::new("claw", host, &image.reference);
    instance.memory_mib = 2048;
    instance.cpu_millis = 2000;
    instance.startup_deadline_s = 180;
    instance.hang_deadline_s = 120;
    instance.more.insert("resources".into(), json!({ "memory": "2GiB", "cpu": "2", "pids": 512 }));
    instance.more.insert("backup".into(), json!({ "every": "0s" }));
    rig.step("OpenClaw serves", || {
        speak_up(host)?;
        fleet.apply(&instance)?;
        fleet.until_phase("claw", "running", START)?;
        fleet.until_serving(host, "claw")
    })?;
    let mut customer = customer(&rig)?;
    let health = json!({ "type": "req", "id": "health", "method": "health", "params": {} });
    rig.step(
        "snapshots get to know it, and are taken until it has nothing to do after its start",
        || {
            for number in 0.. {
                fleet.take_snapshot("claw", &format!("early{number}"), SNAPSHOT)?;
                if phases(&mut customer)? == PREPARED {
                    break;
                }
                ensure!(number < 20, "it is always at work");
            }
            ensure!(introductions(host)? == 1, "it is introduced once");
            Ok(())
        },
    )?;
    for name in ["first", "second", "third"] {
        rig.step(&format!("the {name} snapshot suspends it; who is connected stays so"), || {
            let begun = now();
            fleet.take_snapshot("claw", name, SNAPSHOT)?;
            rig.note(&format!("  taken after {:.1} s", begun.elapsed().as_secs_f32()));
            let phases = phases(&mut customer)?;
            ensure!(phases == PREPARED, "{phases:?}");
            let answer = customer.answer(&health)?;
            ensure!(answer["ok"] == true, "{answer}");
            Ok(())
        })?;
    }
    rig.note(&format!("  {}", Suspensions::of(host, "claw-claw")?.lengths()?));
    ensure!(introductions(host)? == 1, "it is introduced once");
    rig.step("the gateway knows one device by its name, and nobody took it for ill", || {
        let token = fleet.gateway_token("claw")?;
        let list = ["docker", "exec", "claw-claw", "openclaw", "devices", "list", "--json"];
        let said = host.exec_ok(&[&list[..], &["--token", &token]].concat())?;
        let devices: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
        let paired = rig::list(&devices["paired"])?;
        ensure!(paired.len() == 1 && rig::list(&devices["pending"])?.is_empty(), "{devices}");
        ensure!(paired[0]["scopes"] == json!(["operator.admin"]), "{devices}");
        rig.note(&format!("  called {}", paired[0]["displayName"]));
        assert_untroubled(&rig, "claw")
    })
}

/// What everybody who is connected is told of a suspension.
const PREPARED: [&str; 3] = ["preparing", "prepared", "accepting"];

/// What somebody who is connected is told, until the gateway accepts calls again.
fn phases(customer: &mut WebSocket) -> Result<Vec<String>> {
    let mut phases = Vec::new();
    while phases.last().is_none_or(|phase| phase != "accepting") {
        let event = customer.receive()?;
        if event["event"] == "gateway.suspension" {
            phases.push(event["payload"]["phase"].as_str().unwrap_or("none").to_owned());
        }
    }
    Ok(phases)
}

/// A customer with an open connection through nginx.
fn customer(rig: &Rig) -> Result<WebSocket> {
    let address = (rig.host().address(), WEB_PORT).into();
    let stream = rig.fleet().lab().connect(Network::Client, address)?;
    let mut socket = WebSocket::open(stream, "claw.claw.localhost", "")?;
    socket.receive()?;
    let hello = socket.answer(&json!({
        "type": "req",
        "id": "hello",
        "method": "connect",
        "params": {
            "minProtocol": 4,
            "maxProtocol": 4,
            "client": { "id": "gateway-client", "version": "1", "platform": "linux", "mode": "backend" },
            "role": "operator",
            "scopes": [],
            "auth": { "token": rig.fleet().gateway_token("claw")? },
        },
    }))?;
    ensure!(hello["ok"] == true, "{hello}");
    Ok(socket)
}

/// Waits until a gateway's log says that it was suspended so often, and resumed.
fn until_suspended(host: &LabHost, container: &str, times: usize) -> Result<()> {
    until(PATIENCE, &format!("{times} suspensions"), || {
        let seen = Suspensions::of(host, container)?;
        if seen.counts() == (times, times) { Ok(Some(())) } else { bail!("{seen:?}") }
    })
}

/// When a gateway closed and when it reopened, by its own log.
#[derive(Debug)]
struct Suspensions {
    lines: Vec<String>,
}

impl Suspensions {
    fn of(host: &LabHost, container: &str) -> Result<Self> {
        let said = host.exec_with(&["docker", "logs", "-t", container], b"", PATIENCE)?;
        ensure!(said.success(), "{said:?}");
        let lines = said.stdout.lines().chain(said.stderr.lines());
        let lines = lines.filter(|line| line.contains(CLOSED) || line.contains(REOPENED));
        let mut lines: Vec<_> = lines.map(str::to_owned).collect();
        lines.sort();
        Ok(Self { lines })
    }

    /// How often it closed, and how often it reopened.
    fn counts(&self) -> (usize, usize) {
        let reopened = self.lines.iter().filter(|line| line.contains(REOPENED)).count();
        (self.lines.len() - reopened, reopened)
    }

    /// For how long it was closed each time, for the transcript.
    fn lengths(&self) -> Result<String> {
        let seconds = |line: &String| -> Result<f64> {
            // Within a minute only the seconds matter: `2026-11-21T09:16:20.465000000Z …`.
            let time = line.split('Z').next().and_then(|time| time.rsplit(':').next());
            Ok(time.context("no time")?.parse()?)
        };
        let mut lengths = Vec::new();
        for pair in self.lines.chunks_exact(2) {
            let [closed, reopened] = pair else { continue };
            let length = (seconds(reopened)? - seconds(closed)?).rem_euclid(60.0);
            lengths.push(format!("{:.0} ms", length * 1000.0));
        }
        Ok(format!("closed for {}", lengths.join(", ")))
    }
}

/// The agent says why it does not suspend a gateway.
fn speak_up(host: &LabHost) -> Result<()> {
    const DROP_IN: &str = "d=/etc/systemd/system/clawd.service.d; mkdir -p $d; \
        printf '[Service]\nEnvironment=CLAWD_LOG=info,clawd::reconcile::freeze=debug,clawd::adapters::gateway=debug\n' \
        > $d/log.conf; systemctl daemon-reload; systemctl restart clawd.service";
    host.exec_ok(&["sh", "-c", DROP_IN]).map(drop)
}

/// How often the agent introduced itself to a gateway.
fn introductions(host: &LabHost) -> Result<usize> {
    let log = host.exec_ok(&["journalctl", "--no-pager", "-b", "-u", "clawd"])?;
    Ok(log.matches("its gateway knows this host now").count())
}

/// It runs, was never restarted, and nothing bad was told of it.
fn assert_untroubled(rig: &Rig, name: &str) -> Result<()> {
    let status = rig.fleet().instance(name)?["status"].clone();
    ensure!(status["phase"] == "running" && status["restartCount"] == 0, "{status}");
    let events = rig.fleet().events(rig.host())?;
    let kinds: Vec<&str> = events.iter().filter_map(|event| event["kind"].as_str()).collect();
    let bad = ["unhealthy", "out_of_memory", "crash_loop"];
    ensure!(!kinds.iter().any(|kind| bad.contains(kind)), "{kinds:?}");
    Ok(())
}
