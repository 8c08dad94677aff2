//! The real OpenClaw, started by the coordinator, answering through nginx.

use std::time::Duration;

use anyhow::{Context, Result};
use claw_lab::{Cache, HostOptions, LabHost, Network, images, progress};
use claw_tests::fleet::WEB_PORT;
use claw_tests::{Docker, Instance, ObjectStore, Rig, WebSocket, rig};
use serde_json::{Value, json};

/// 7–15 s on an idle machine, 50 s were seen on an overloaded one.
const START: Duration = Duration::from_secs(180);

#[test]
fn the_real_openclaw_is_served_through_the_whole_path() -> Result<()> {
    let mut rig = Rig::without_hosts("openclaw", rig::QUICK)?;
    let image = images::openclaw(&Cache::open(progress::terminal())?)?;
    let host = rig.step("a host with its image boots and joins", || {
        rig.fleet().host(HostOptions::named("h1").with_image(&image))
    })?;
    rig.add(host);
    let (fleet, host) = (rig.fleet(), rig.host());
    let instance = openclaw("claw", host, &image.reference)
        .with("identity", "# Ida\n\nYou are the subject of a test.\n")
        .with("allowedOrigins", json!(["http://claw.claw.localhost:8080"]));

    rig.step("OpenClaw is created and becomes healthy", || {
        fleet.apply(&instance)?;
        let running = fleet.until_phase("claw", "running", START)?;
        let status = &running["status"];
        assert_eq!(status["restartCount"], 0, "{status}");
        Ok(())
    })?;
    rig.step("its probes and its web page come through nginx", || {
        let started = fleet.browse(host, "claw", "/startupz")?;
        assert_eq!(started.status, 200, "{started:?}");
        assert!(started.body.contains("started"), "{started:?}");
        let page = fleet.browse(host, "claw", "/")?;
        let title =
            page.body.split_once("<title>").and_then(|(_, rest)| rest.split_once("</title>"));
        assert!(title.context("no title")?.0.contains("OpenClaw"), "{page:?}");
        Ok(())
    })?;
    rig.step("its WebSocket takes the fleet's token and no other", || {
        let token = fleet.gateway_token("claw")?;
        assert_eq!(connect(&rig, &token)?["ok"], true);
        let refused = connect(&rig, &"0".repeat(token.len()))?;
        assert_eq!(refused["ok"], false, "{refused}");
        let inspected = Docker::of(host)?.inspect("claw-claw")?.to_string();
        assert!(!inspected.contains(&token), "docker inspect shows the token");
        let top = host.exec_ok(&["docker", "top", "claw-claw", "-ef"])?;
        assert!(top.contains("gateway") && !top.contains(&token), "{top}");
        Ok(())
    })?;
    rig.step("it reports what it uses", || {
        fleet.until(Duration::from_secs(60), "its usage", |fleet| {
            let used = fleet.instance("claw")?["status"]["usage"]["memoryBytes"].as_u64();
            Ok(used.filter(|bytes| *bytes > 100 << 20).map(|_| ()))
        })
    })?;
    rig.step("it survives kill -9: back under the same lease", || {
        Docker::of(host)?.kill("claw-claw")?;
        fleet.until(START, "it to be back", |fleet| {
            let status = &fleet.instance("claw")?["status"];
            let back = status["restartCount"] == 1 && status["phase"] == "running";
            if back { Ok(Some(())) } else { anyhow::bail!("it is {status}") }
        })?;
        fleet.until_serving(host, "claw")
    })
}

/// Where the conversation is.
const SESSION: &str = "agent:main:main";

#[test]
fn a_conversation_survives_update_pause_and_rollback() -> Result<()> {
    let mut rig = Rig::without_hosts("talk", rig::QUICK)?;
    let image = images::openclaw(&Cache::open(progress::terminal())?)?;
    let next = format!("{}-next", image.reference);
    let host =
        rig.step("a host with its image, and the same again under another digest", || {
            let host = rig.fleet().host(HostOptions::named("h1").with_image(&image))?;
            let recipe = format!("FROM {}\nLABEL dev.claw.test=next\n", image.reference);
            let built =
                host.exec_with(&["docker", "build", "-t", &next, "-"], recipe.as_bytes(), START)?;
            anyhow::ensure!(built.success(), "{built:?}");
            Ok(host)
        })?;
    rig.add(host);
    let (fleet, host) = (rig.fleet(), rig.host());
    let mut instance = openclaw("claw", host, &image.reference);
    instance.more.insert("update".into(), json!({ "rehearsal": "always" }));
    instance.more.insert("backup".into(), json!({ "every": "0s", "drillEvery": "0s" }));
    rig.step("somebody talks to it", || {
        fleet.apply(&instance)?;
        fleet.until_phase("claw", "running", START)?;
        fleet.until_serving(host, "claw")?;
        call(&rig, host, "sessions.create", &json!({ "key": SESSION }))?;
        say(&rig, host, "before everything")
    })?;
    rig.step("it is updated, after a rehearsal, and remembers", || {
        instance.image.clone_from(&next);
        fleet.apply(&instance)?;
        until_active(&rig, &next)?;
        assert_eq!(heard(&rig, host)?, ["before everything"]);
        fleet.take_snapshot("claw", "good", START)?;
        say(&rig, host, "after the snapshot")
    })?;
    rig.step("it is paused and resumed, and remembers", || {
        fleet.clawctl_ok(&["pause", "claw"])?;
        fleet.until_phase("claw", "paused", START)?;
        fleet.clawctl_ok(&["resume", "claw"])?;
        fleet.until_phase("claw", "running", START)?;
        fleet.until_serving(host, "claw")?;
        assert_eq!(heard(&rig, host)?, ["before everything", "after the snapshot"]);
        Ok(())
    })?;
    rig.step("it is rolled back, and knows only what was said before", || {
        instance.more.insert("update".into(), json!({ "rehearsal": "never" }));
        fleet.apply(&instance)?;
        fleet.clawctl_ok(&["rollback", "claw", "--snapshot", "good"])?;
        until_active(&rig, &next)?;
        assert_eq!(heard(&rig, host)?, ["before everything"]);
        Ok(())
    })
}

#[test]
fn a_conversation_survives_a_move_and_the_loss_of_a_host() -> Result<()> {
    let mut rig = Rig::without_hosts("nomad", rig::QUICK)?;
    let image = images::openclaw(&Cache::open(progress::terminal())?)?;
    let hosts = rig.step("two hosts with its image", || {
        let host = |name: &str| rig.fleet().host(HostOptions::named(name).with_image(&image));
        Ok([host("h1")?, host("h2")?])
    })?;
    hosts.into_iter().for_each(|host| rig.add(host));
    let [first, second] = rig.hosts() else { anyhow::bail!("not two hosts") };
    let fleet = rig.fleet();
    let store = ObjectStore::of_tests(fleet.lab())?;
    store.make_bucket(fleet.lab(), "claws")?;
    let mut instance = openclaw("claw", first, &image.reference);
    instance.more.insert("backup".into(), json!({ "every": "0s", "drillEvery": "0s" }));
    rig.step("somebody talks to it on the first host", || {
        fleet.apply(&instance)?;
        fleet.until_phase("claw", "running", START)?;
        fleet.until_serving(first, "claw")?;
        call(&rig, first, "sessions.create", &json!({ "key": SESSION }))?;
        say(&rig, first, "before the move")?;
        fleet.take_snapshot("claw", "first", START)?;
        fleet.recovery_password("claw").map(drop)
    })?;
    rig.step("it moves to the second host, and remembers", || {
        store.give(fleet, second, "claws")?;
        fleet.clawctl_ok(&["migrate", "claw", "h2", "--wait", "--timeout", "400s"])?;
        fleet.until_serving(second, "claw")?;
        assert_eq!(heard(&rig, second)?, ["before the move"]);
        say(&rig, second, "after the move")
    })?;
    rig.step("a snapshot of it is off-site when its host is lost", || {
        fleet.take_snapshot("claw", "last", START)?;
        fleet.until(START, "it to be off-site", |fleet| {
            let all = fleet.json(&["snapshot", "list", "claw"])?;
            let all = rig::list(&all["snapshots"])?;
            let there = all.iter().any(|one| one["name"] == "last" && one["offsite"] == true);
            if there { Ok(Some(())) } else { anyhow::bail!("it is {all:?}") }
        })?;
        second.power_cut()?;
        fleet.until_host(second, "offline", START).map(drop)
    })?;
    rig.step("it comes back on the first host, and remembers", || {
        let recover = ["migrate", "claw", "h1", "--from-offsite", "--snapshot", "last", "--wait"];
        fleet.clawctl_ok(&[&recover[..], &["--timeout", "400s"]].concat())?;
        fleet.until_serving(first, "claw")?;
        assert_eq!(heard(&rig, first)?, ["before the move", "after the move"]);
        Ok(())
    })
}

/// An instance as customers have it.
fn openclaw(name: &str, host: &LabHost, image: &str) -> Instance {
    let mut instance = Instance::new(name, host, image);
    instance.memory_mib = 2048;
    instance.cpu_millis = 2000;
    instance.startup_deadline_s = 180;
    instance.hang_deadline_s = 120;
    instance.min_healthy_s = 1;
    instance.more.insert("resources".into(), json!({ "memory": "2GiB", "cpu": "2", "pids": 512 }));
    instance
}

fn until_active(rig: &Rig, image: &str) -> Result<()> {
    rig.fleet().until_status("claw", "the change to be over", START, |status| {
        status["current"] == true
            && status["phase"] == "running"
            && status["active"]["image"] == image
            && status["operation"].is_null()
    })?;
    rig.fleet().until_serving(rig.host(), "claw")
}

/// Calls a method of the gateway from within its container, as its own command line does.
fn call(rig: &Rig, host: &LabHost, method: &str, parameters: &Value) -> Result<Value> {
    let (token, parameters) = (rig.fleet().gateway_token("claw")?, parameters.to_string());
    let argv = ["docker", "exec", "claw-claw", "openclaw", "gateway", "call", method];
    let options = ["--json", "--token", &token, "--params", &parameters];
    let said = host.exec_ok(&[&argv[..], &options].concat())?;
    let answer: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
    anyhow::ensure!(answer["ok"] != false, "{answer}");
    Ok(answer)
}

fn say(rig: &Rig, host: &LabHost, what: &str) -> Result<()> {
    call(rig, host, "chat.inject", &json!({ "sessionKey": SESSION, "message": what })).map(drop)
}

/// Everything that was said, oldest first.
fn heard(rig: &Rig, host: &LabHost) -> Result<Vec<String>> {
    let history = call(rig, host, "chat.history", &json!({ "sessionKey": SESSION, "limit": 10 }))?;
    let texts = rig::list(&history["messages"])?.iter().map(|message| {
        let text = message["content"][0]["text"].as_str();
        text.map(str::to_owned).with_context(|| format!("no text in {message}"))
    });
    texts.collect()
}

/// Greets the gateway as a backend client does; returns its answer.
fn connect(rig: &Rig, token: &str) -> Result<Value> {
    let stream =
        rig.fleet().lab().connect(Network::Client, (rig.host().address(), WEB_PORT).into())?;
    let mut socket = WebSocket::open(stream, "claw.claw.localhost", "")?;
    let challenge = socket.receive()?;
    assert_eq!(challenge["event"], "connect.challenge", "{challenge}");
    socket.answer(&json!({
        "type": "req",
        "id": "1",
        "method": "connect",
        "params": {
            "minProtocol": 4,
            "maxProtocol": 4,
            "client": { "id": "gateway-client", "version": "1", "platform": "linux", "mode": "backend" },
            "role": "operator",
            "scopes": [],
            "auth": { "token": token },
        },
    }))
}
