//! Gateways that crash, hang, eat memory or never start; images that cannot be had; a full disk.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use claw_lab::{HostOptions, Network};
use claw_tests::fleet::until;
use claw_tests::programs::PATIENCE;
use claw_tests::{Docker, Instance, Rig, rig};
use serde_json::Value;

/// A registry in the lab: one image of it is never sent, all others do not exist.
const REGISTRY: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 1)), 5000);

/// What ext4 says is free on a full disk: clusters that it keeps for itself.
const ALMOST_NOTHING: u64 = 256 << 10;

/// Within this a newer target must have replaced a stuck one: far below the 60 s of silence after which
/// a pull is given up.
const PREEMPTED: Duration = Duration::from_secs(20);

#[test]
fn gateways_in_trouble_are_told_apart_and_brought_back() -> Result<()> {
    let rig = Rig::start("trouble")?;
    let (fleet, host) = (rig.fleet(), rig.host());
    let fake =
        |name: &str| Instance::new(name, host, &rig.image().reference).env("CLAW_FAKE_CONTROL", 1);
    let looping =
        fake("looping").env("CLAW_FAKE_CRASH_BEFORE_READY", 1).env("CLAW_FAKE_EXIT_CODE", 7);
    rig.step("one that always crashes is created; others are in trouble meanwhile", || {
        fleet.apply(&looping)?;
        for name in ["hungry", "hanging"] {
            fleet.apply(&Instance { hang_deadline_s: 5, ..fake(name) })?;
        }
        let late = Instance { startup_deadline_s: 3, ..fake("late") };
        fleet.apply(&late.env("CLAW_FAKE_UNHEALTHY", 1))
    })?;
    rig.step(
        "one that eats too much memory is killed, that is recognised, and it is back",
        || {
            fleet.until_phase("hungry", "running", PATIENCE)?;
            fleet.until_serving(host, "hungry")?;
            fleet.strike(host, "hungry", "eat?mb=400");
            until_status(&rig, "hungry", "the kill to be reported", |status| {
                status["lastExit"]["oom"] == true && status["restartCount"] == 1
            })?;
            let status =
                until_status(&rig, "hungry", "it to be back", |s| s["phase"] == "running")?;
            assert_eq!(status["lastExit"]["code"], 137, "{status}");
            fleet.until_event(host, "hungry", "out_of_memory")?;
            fleet.until_serving(host, "hungry")
        },
    )?;
    rig.step("one that hangs is shown as unhealthy, then restarted", || {
        fleet.until_phase("hanging", "running", PATIENCE)?;
        fleet.control(host, "hanging", "hang")?;
        until_status(&rig, "hanging", "it to be unhealthy", |s| s["phase"] == "unhealthy")?;
        until_status(&rig, "hanging", "it to be back", |status| {
            status["phase"] == "running" && status["restartCount"] == 1
        })?;
        fleet.until_event(host, "hanging", "unhealthy")?;
        fleet.until_serving(host, "hanging")
    })?;
    rig.step("one that is not healthy by its deadline is restarted, and says why", || {
        let status = until_status(&rig, "late", "a second attempt", |status| {
            status["restartCount"].as_u64().is_some_and(|count| count > 0)
        })?;
        let text = status.to_string();
        assert!(!text.contains("\"phase\":\"running\""), "{text}");
        let steps = claw_tests::journal::steps(host, "late")?;
        assert!(steps.iter().any(|step| step.name == "stop-container"), "{steps:?}");
        fleet.apply(&fake("late"))?;
        fleet.until_phase("late", "running", PATIENCE)?;
        fleet.until_serving(host, "late")
    })?;
    rig.step("one that always crashes is tried less and less often, then hardly ever", || {
        let status = until_status(&rig, "looping", "the breaker", |s| s["phase"] == "crash-loop")?;
        assert_eq!(status["lastExit"]["code"], 7, "{status}");
        let message = status["message"].as_str().context("no message")?;
        assert!(message.contains("6 failures"), "{message}");
        let event = fleet.until_event(host, "looping", "crash_loop")?;
        assert_eq!(event["severity"], "error", "{event}");
        Ok(())
    })?;
    rig.step("and a new spec of it runs at once", || {
        fleet.apply(&fake("looping"))?;
        fleet.until_phase("looping", "running", PATIENCE)?;
        fleet.until_serving(host, "looping")
    })
}

#[test]
fn images_that_cannot_be_had_block_nothing() -> Result<()> {
    let rig = Rig::start("pull")?;
    let (fleet, host) = (rig.fleet(), rig.host());
    let good = rig.image().reference.clone();
    let bad =
        |name: &str, image: &str| Instance::new(name, host, &format!("{REGISTRY}/claw/{image}:1"));
    rig.step("the host's Docker knows a registry in the lab", || {
        let listener = fleet.lab().listen(Network::Internet, REGISTRY)?;
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || registry(stream));
            }
        });
        let config = format!("{{ \"insecure-registries\": [\"{REGISTRY}\"] }}");
        host.write_file("/etc/docker/daemon.json", 0o644, config.as_bytes())?;
        host.exec_ok(&["systemctl", "reload", "docker.service"])?;
        until(PATIENCE, "docker to know it", || {
            let info = host.exec_ok(&["docker", "info"])?;
            Ok(info.contains(&REGISTRY.to_string()).then_some(()))
        })
    })?;
    rig.step(
        "an image that does not exist: said so, tried again, mended by a newer target",
        || {
            fleet.apply(&bad("absent", "absent"))?;
            let status = until_status(&rig, "absent", "the cause", |status| {
                status["message"].as_str().is_some_and(|text| text.contains("absent"))
            })?;
            assert!(
                ["pulling", "failed"].iter().any(|phase| status["phase"] == *phase),
                "{status}"
            );
            let event = fleet.until_event(host, "absent", "step_failed")?;
            assert!(event["message"].to_string().contains("manifest unknown"), "{event}");
            fleet.apply(&Instance::new("absent", host, &good))?;
            fleet.until_phase("absent", "running", PREEMPTED)?;
            Ok(())
        },
    )?;
    rig.step("a pull that is stuck: shown, others go on, a newer target pre-empts it", || {
        fleet.apply(&bad("stuck", "stuck"))?;
        until_status(&rig, "stuck", "the pull", |status| {
            status["phase"] == "pulling"
                && status["step"].as_str().is_some_and(|step| step.contains("pull-image"))
        })?;
        fleet.apply(&Instance::new("other", host, &good))?;
        fleet.until_phase("other", "running", PREEMPTED)?;
        fleet.apply(&Instance::new("stuck", host, &good))?;
        fleet.until_phase("stuck", "running", PREEMPTED)?;
        fleet.until_serving(host, "stuck")
    })?;
    rig.step("a stuck pull does not keep an instance from being deleted", || {
        fleet.apply(&bad("doomed", "stuck"))?;
        until_status(&rig, "doomed", "the pull", |s| s["phase"] == "pulling")?;
        fleet.clawctl_ok(&["delete", "doomed", "--wait", "--timeout", "20s"]).map(|_| ())
    })
}

/// One connection to the registry, as plain HTTP: no TLS, the image `stuck` is never answered.
fn registry(mut stream: TcpStream) {
    let mut first = [0];
    // A TLS client says hello with 0x16: closing makes Docker speak plain HTTP.
    if stream.peek(&mut first).is_err() || first == [0x16] {
        return;
    }
    let Ok(copy) = stream.try_clone() else { return };
    let mut lines = BufReader::new(copy).lines();
    while let Some(Ok(request)) = lines.next() {
        while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
        if request.contains("/stuck/") {
            std::thread::park();
        }
        let (status, body) = if request.contains(" /v2/ ") {
            ("200 OK", "{}")
        } else {
            let unknown =
                r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#;
            ("404 Not Found", unknown)
        };
        let answer = format!(
            "HTTP/1.1 {status}\r\nDocker-Distribution-Api-Version: registry/2.0\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        if stream.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

#[test]
fn a_full_disk_is_said_and_survived() -> Result<()> {
    let rig = Rig::with("full", rig::QUICK, &[HostOptions::named("h1").with_clawd_disk(48)])?;
    let (fleet, host) = (rig.fleet(), rig.host());
    let demo = Instance::new("demo", host, &rig.image().reference).env("CLAW_FAKE_CONTROL", 1);
    rig.step("an instance serves", || {
        fleet.apply(&demo)?;
        fleet.until_phase("demo", "running", PATIENCE)?;
        fleet.until_serving(host, "demo")
    })?;
    rig.step("the agent's disk is full: the host stays online and shows it", || {
        let fill = "cat /dev/zero > /var/lib/clawd/fill; sync -f /var/lib/clawd; df --output=avail -B1 \
                    /var/lib/clawd | tail -1";
        let free: u64 = host.exec_ok(&["sh", "-c", fill])?.lines().last().context("no df")?.trim().parse()?;
        ensure!(free < ALMOST_NOTHING, "{free} bytes are free");
        fleet.until(PATIENCE, "the full disk to be reported", |fleet| {
            let status = &fleet.json(&["host", "get", "h1"])?["status"];
            assert_eq!(status["state"], "online", "{status}");
            let free = status["resources"]["diskAvailableBytes"].as_u64();
            Ok(free.filter(|free| *free < ALMOST_NOTHING).map(|_| ()))
        })
    })?;
    rig.step("what cannot be kept is not done, with the cause", || {
        let large = "x".repeat(250_000);
        let grown = demo.clone().with("files", serde_json::json!({ "large.txt": large }));
        fleet.apply(&grown)?;
        fleet.until(PATIENCE, "the cause", |fleet| {
            let status = &fleet.json(&["host", "get", "h1"])?["status"];
            let instance = &fleet.instance("demo")?["status"];
            let text = format!("{} {}", status["refusedReason"], instance["message"]);
            let said =
                text.contains("disk") && text.contains("full") || text.contains("No space left");
            if said { Ok(Some(())) } else { bail!("{status} {instance}") }
        })?;
        fleet.until_serving(host, "demo")
    })?;
    rig.step("the agent may even be killed now: the instance serves on", || {
        host.exec_ok(&["systemctl", "kill", "--signal=KILL", "--kill-who=main", "clawd.service"])?;
        fleet.until_online(host)?;
        fleet.until_serving(host, "demo")
    })?;
    rig.step("there is room again: everything converges", || {
        host.exec_ok(&["rm", "/var/lib/clawd/fill"])?;
        fleet.until_phase("demo", "running", PATIENCE * 2)?;
        let path = "/var/lib/clawd/instances/demo/gen-1/large.txt";
        until(PATIENCE, "the file", || {
            Ok(host.exec(&["test", "-s", path])?.success().then_some(()))
        })?;
        assert_eq!(Docker::of(host)?.containers_of("demo")?.len(), 1);
        fleet.until_serving(host, "demo")
    })
}

fn until_status(
    rig: &Rig,
    name: &str,
    what: &str,
    there: impl Fn(&Value) -> bool,
) -> Result<Value> {
    rig.fleet().until(PATIENCE, what, |fleet| {
        let status = fleet.instance(name)?["status"].clone();
        if there(&status) { Ok(Some(status)) } else { bail!("it is {status}") }
    })
}
