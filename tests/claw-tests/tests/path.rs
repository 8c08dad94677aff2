//! The whole path: API → coordinator → agent → Docker and nginx → gateway, on two hosts at once, and
//! through everything that can be asked of an instance.

use anyhow::{Context, Result, ensure};
use claw_lab::{HostOptions, LabHost, Network, Suite};
use claw_tests::fleet::{WEB_PORT, until};
use claw_tests::programs::PATIENCE;
use claw_tests::{Docker, Instance, Rig, WebSocket, http, rig};
use serde_json::{Value, json};

/// A secret that must be nowhere but in the gateway.
const SECRET: &str = "this-is-the-secret-of-the-path-test-4711";

fn gateway(name: &str, host: &LabHost, rig: &Rig) -> Instance {
    Instance::new(name, host, &rig.image().reference)
        .env("CLAW_FAKE_CONTROL", 1)
        .with("secrets", json!({ "EXTRA": SECRET }))
}

#[test]
fn two_hosts_serve_hardened_instances_side_by_side() -> Result<()> {
    // Docker 20.10 and systemd 252 on one, Docker 26 and systemd 257 on the other.
    let hosts = [HostOptions::named("h1"), HostOptions::named("h2").with_suite(Suite::Trixie)];
    let rig = Rig::with("path", rig::QUICK, &hosts)?;
    let fleet = rig.fleet();
    let [first, second] = rig.hosts() else { anyhow::bail!("two hosts") };
    let placed = [("alpha", first), ("beta", first), ("gamma", second)];

    rig.step("three instances are created at once, two of them on one host", || {
        for (name, host) in placed {
            fleet.apply(&gateway(name, host, &rig))?;
        }
        for (name, host) in placed {
            fleet.until_phase(name, "running", PATIENCE)?;
            fleet.until_serving(host, name)?;
        }
        Ok(())
    })?;
    rig.step("each has a bridge, an address and a hardened container of its own", || {
        let inspected =
            placed.map(|(name, host)| Ok::<_, anyhow::Error>((name, inspect(host, name)?)));
        let mut homes = Vec::new();
        for inspected in inspected {
            let (name, container) = inspected?;
            assert_hardened(name, &container);
            homes.push(home(name, &container)?);
        }
        let [alpha, beta, gamma] = &homes[..] else { anyhow::bail!("three homes") };
        assert_ne!(alpha, beta, "two instances of a host share a network");
        let addresses = |home: &(String, String)| home.1.clone();
        assert_eq!([alpha, beta, gamma].map(addresses), ["10.201.1.2", "10.201.2.2", "10.201.1.2"]);
        Ok(())
    })?;
    rig.step("no secret is in docker inspect, a process list, a log, or on a disk", || {
        for (name, host) in placed {
            assert_no_trace(&rig, host, name)?;
        }
        Ok(())
    })?;
    rig.step(
        "the reverse proxy names the client, and the trap is set for whoever does not",
        || {
            for (name, host) in placed {
                let direct =
                    (home(name, &inspect(host, name)?)?.1.parse::<std::net::Ipv4Addr>()?, 18789);
                let trapped =
                    http::get(Docker::of(host)?.connect(direct.into())?, "x", "/startupz")?;
                assert_eq!(trapped.status, 403, "{trapped:?}");
                assert!(trapped.body.contains("proxy_attribution_required"), "{trapped:?}");
                assert_eq!(fleet.browse(host, name, "/startupz")?.status, 200);
                assert_eq!(fleet.browse(host, name, "/readyz")?.status, 200);
            }
            let unknown = fleet.browse(first, "gamma", "/startupz")?;
            assert_eq!(unknown.status, 404, "a host serves an instance of another: {unknown:?}");
            Ok(())
        },
    )?;
    rig.step("WebSockets pass, and only the gateway's own token is taken", || {
        for (name, host) in placed {
            let open = || {
                let stream =
                    fleet.lab().connect(Network::Client, (host.address(), WEB_PORT).into())?;
                let mut socket = WebSocket::open(stream, &format!("{name}.claw.localhost"), "")?;
                assert_eq!(socket.receive()?["event"], "connect.challenge");
                Ok::<_, anyhow::Error>(socket)
            };
            let connect = |token: &str| {
                let params = json!({ "auth": { "token": token } });
                json!({ "type": "req", "id": "1", "method": "connect", "params": params })
            };
            let taken = open()?.answer(&connect(&fleet.gateway_token(name)?))?;
            assert_eq!(taken["ok"], true, "{taken}");
            let refused = open()?.answer(&connect("guessed"))?;
            assert_eq!(refused["ok"], false, "{refused}");
        }
        Ok(())
    })?;
    rig.step("hosts and instances report what they use and how they are", || {
        for (name, host) in placed {
            assert_reports(&rig, host, name)?;
        }
        Ok(())
    })
}

fn inspect(host: &LabHost, name: &str) -> Result<Value> {
    let docker = Docker::of(host)?;
    let containers = docker.containers_of(name)?;
    ensure!(containers.len() == 1, "{name} has {} containers: {containers:#?}", containers.len());
    docker.inspect(containers[0]["Id"].as_str().context("no id")?)
}

#[track_caller]
fn assert_hardened(name: &str, container: &Value) {
    let config = &container["Config"];
    let host = &container["HostConfig"];
    assert_eq!(container["Name"], format!("/claw-{name}"));
    assert_eq!(config["User"], "1000:1000");
    assert_eq!(config["Hostname"], name);
    assert_eq!(config["Labels"]["dev.claw.instance"], name);
    assert!(config["Labels"]["dev.claw.generation"].is_string(), "{config}");
    assert!(config["Labels"]["dev.claw.spec-digest"].is_string(), "{config}");
    assert_eq!(host["CapDrop"], json!(["ALL"]));
    assert!(host["CapAdd"].as_array().is_none_or(Vec::is_empty), "{host}");
    assert_eq!(host["Privileged"], false);
    assert_eq!(host["ReadonlyRootfs"], true);
    assert!(host["SecurityOpt"].to_string().contains("no-new-privileges"), "{host}");
    assert_eq!(host["PidsLimit"], 256);
    assert_eq!(host["Memory"], 256 << 20);
    assert_eq!(host["NanoCpus"], 1_000_000_000);
    assert_eq!(host["NetworkMode"], format!("claw-{name}"));
    assert_eq!(host["RestartPolicy"]["Name"], "no", "the agent restarts, not Docker");
    assert!(host["PortBindings"].as_object().is_none_or(serde_json::Map::is_empty), "{host}");
    assert_eq!(host["PublishAllPorts"], false);
    for namespace in ["PidMode", "UTSMode"] {
        assert_eq!(host[namespace], "", "{namespace} is shared with the host");
    }
    let tmp = host["Tmpfs"]["/tmp"].as_str().unwrap_or_default();
    for option in ["noexec", "nosuid", "nodev", "size="] {
        assert!(tmp.contains(option), "/tmp is {tmp:?}");
    }
    let mounts = container["Mounts"].as_array().cloned().unwrap_or_default();
    let mut mounts: Vec<(&str, bool)> = mounts
        .iter()
        .map(|mount| (mount["Destination"].as_str().unwrap_or_default(), mount["RW"] == true))
        .filter(|(path, _)| *path != "/tmp")
        .collect();
    mounts.sort_unstable();
    let expected = [("/home/node/.openclaw", true), ("/home/node/.openclaw/.env", false)];
    assert_eq!(mounts, expected);
}

/// Network and address.
fn home(name: &str, container: &Value) -> Result<(String, String)> {
    let network = &container["NetworkSettings"]["Networks"][format!("claw-{name}")];
    let text = |field: &str| network[field].as_str().map(str::to_owned).context("no network");
    Ok((text("NetworkID")?, text("IPAddress")?))
}

fn assert_no_trace(rig: &Rig, host: &LabHost, name: &str) -> Result<()> {
    let token = rig.fleet().gateway_token(name)?;
    ensure!(token.len() >= 32, "a short token");
    let inspected = inspect(host, name)?.to_string();
    let journal = host.exec_ok(&["journalctl", "--no-pager", "-b"])?;
    let processes = host.exec_ok(&["sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"])?;
    let log = rig.fleet().coordinator_log();
    for secret in [token.as_str(), SECRET] {
        for (place, text) in [
            ("docker inspect", &inspected),
            ("the host's journal", &journal),
            ("a process list", &processes),
            ("the coordinator's log", &log),
        ] {
            assert!(!text.contains(secret), "a secret of {name} is in {place}");
        }
        let places = ["/var/lib/clawd", "/etc", "/var/log", "/var/lib/docker/containers"];
        let argv = [&["grep", "-r", "-l", "-a", "-F", "-s", "-e", secret][..], &places].concat();
        let found = host.exec(&argv)?;
        assert_eq!(found.stdout, "", "a secret of {name} is on the disk");
        let mut grep = claw_lab::command("grep");
        grep.args(["-r", "-l", "-a", "-F", "-e", secret]).arg(rig.fleet().coordinator_data());
        let found = String::from_utf8_lossy(&grep.output()?.stdout).into_owned();
        assert_eq!(found, "", "a secret of {name} is on the coordinator's disk");
    }
    Ok(())
}

fn assert_reports(rig: &Rig, host: &LabHost, name: &str) -> Result<()> {
    let fleet = rig.fleet();
    fleet.until(PATIENCE, "the usage to be reported", |fleet| {
        let status = &fleet.instance(name)?["status"];
        let usage = &status["usage"];
        let some = |field: &str| usage[field].as_u64().is_some_and(|value| value > 0);
        ensure!(["memoryBytes", "cpuUsageUs", "pids"].into_iter().all(some), "{status}");
        assert_eq!(usage["memoryLimitBytes"], 256 << 20);
        assert_eq!(usage["oomKills"], 0);
        Ok(Some(()))
    })?;
    let status = &fleet.instance(name)?["status"];
    assert_eq!(status["ready"], true, "{status}");
    assert_eq!(status["persisted"], true, "{status}");
    assert_eq!(status["restartCount"], 0, "{status}");
    for field in ["containerId", "startedAt", "healthySince", "reportTime"] {
        assert!(status[field].is_string(), "no {field}: {status}");
    }
    let last = rig::list(&status["healthHistory"])?.last().context("no history")?;
    assert_eq!(last["phase"], "running");
    let found = fleet.json(&["host", "get", host.name()])?;
    let status = &found["status"];
    for field in ["agentVersion", "dockerVersion", "kernelVersion", "bootId", "lastSeenTime"] {
        assert!(status[field].is_string(), "no {field}: {status}");
    }
    let resources = &status["resources"];
    for field in ["memoryTotalBytes", "memoryAvailableBytes", "cpuCount", "diskTotalBytes"] {
        assert!(
            resources[field].as_u64().is_some_and(|value| value > 0),
            "no {field}: {resources}"
        );
    }
    assert!(status["certificateExpireTime"].is_string(), "{status}");
    Ok(())
}

#[test]
fn an_instance_goes_through_everything_that_can_be_asked_of_it() -> Result<()> {
    let rig = Rig::start("life")?;
    let (fleet, host) = (rig.fleet(), rig.host());
    let mut demo = gateway("demo", host, &rig)
        .with("identity", "# Ida\n")
        .with("files", json!({ "notes/first.md": "first\n" }));
    demo.config =
        "{ agents: { defaults: { workspace: '/home/node/.openclaw/workspace' } } }".into();

    let created = rig.step("it is created with configuration, identity and files", || {
        fleet.apply(&demo)?;
        let created = Run::of(&fleet.until_phase("demo", "running", PATIENCE)?)?;
        let config = delivered(host, "openclaw.json")?;
        assert!(config.contains("\"workspace\": \"/home/node/.openclaw/workspace\""), "{config}");
        assert!(config.contains("${OPENCLAW_GATEWAY_TOKEN}"), "{config}");
        assert!(config.contains("10.201.1.1/32"), "{config}");
        assert_eq!(delivered(host, "workspace/IDENTITY.md")?, "# Ida\n");
        assert_eq!(delivered(host, "notes/first.md")?, "first\n");
        fleet.control(host, "demo", "write?key=k&value=kept")?;
        Ok(created)
    })?;
    rig.step("it is stopped and serves no more", || {
        fleet.clawctl_ok(&["stop", "demo", "--wait"])?;
        let stopped = fleet.until_phase("demo", "stopped", PATIENCE)?;
        assert_eq!(stopped["status"]["lastExit"]["code"], 0, "{stopped}");
        assert_eq!(inspect(host, "demo")?["State"]["Running"], false);
        assert_eq!(fleet.browse(host, "demo", "/startupz")?.status, 503);
        Ok(())
    })?;
    let started = rig.step("it is started again: the same container, the same data", || {
        fleet.clawctl_ok(&["start", "demo", "--wait"])?;
        let run = Run::of(&fleet.until_phase("demo", "running", PATIENCE)?)?;
        assert_eq!(run.container, created.container);
        assert_kept(&rig)?;
        Ok(run)
    })?;
    let restarted = rig.step("it is restarted once", || {
        fleet.clawctl_ok(&["restart", "demo", "--wait"])?;
        let run = until_newer_run(&rig, &started)?;
        assert_eq!(run.container, created.container);
        let status = &fleet.instance("demo")?["status"];
        assert_eq!(status["restartCount"], 0, "what was asked for is no failure: {status}");
        Ok(run)
    })?;
    let healed = rig.step("it crashes and is back", || {
        fleet.strike(host, "demo", "crash?code=3");
        let run = until_newer_run(&rig, &restarted)?;
        let status = &fleet.instance("demo")?["status"];
        assert_eq!(status["lastExit"]["code"], 3, "{status}");
        assert_eq!(status["lastExit"]["oom"], false, "{status}");
        assert_eq!(status["restartCount"], 1, "{status}");
        fleet.until_event(host, "demo", "exited")?;
        Ok(run)
    })?;
    rig.step("its CPU limit changes while it runs", || {
        demo.cpu_millis = 500;
        fleet.apply(&demo)?;
        until(PATIENCE, "the limit", || {
            let found = inspect(host, "demo")?["HostConfig"]["NanoCpus"].clone();
            Ok((found == 500_000_000).then_some(()))
        })?;
        assert_eq!(Run::of(&fleet.until_phase("demo", "running", PATIENCE)?)?, healed);
        Ok(())
    })?;
    let larger =
        rig.step("its memory limit changes: a new container, the heap limit follows", || {
            demo.memory_mib = 512;
            fleet.apply(&demo)?;
            let run = until_newer_run(&rig, &healed)?;
            assert_ne!(run.container, created.container);
            let container = inspect(host, "demo")?;
            assert_eq!(container["HostConfig"]["Memory"], 512 << 20);
            let env = container["Config"]["Env"].to_string();
            assert!(env.contains("--max-old-space-size="), "{env}");
            assert_kept(&rig)?;
            Ok(run)
        })?;
    rig.step("its configuration changes: a file is delivered, the gateway runs on", || {
        demo.config = "{ logging: { level: 'debug' } }".into();
        fleet.apply(&demo)?;
        until(PATIENCE, "the file", || {
            Ok(delivered(host, "openclaw.json")?.contains("debug").then_some(()))
        })?;
        assert_eq!(Run::of(&fleet.until_phase("demo", "running", PATIENCE)?)?, larger);
        Ok(())
    })?;
    let renewed =
        rig.step("a secret changes: the gateway restarts and sees the new one only", || {
            demo = demo.clone().with("secrets", json!({ "EXTRA": "another-secret" }));
            fleet.apply(&demo)?;
            let run = until_newer_run(&rig, &larger)?;
            assert_eq!(run.container, larger.container);
            let pid = inspect(host, "demo")?["State"]["Pid"].to_string();
            let inside = format!("/proc/{pid}/root/home/node/.openclaw/.env");
            let env = host.exec_ok(&["cat", &inside])?;
            assert!(env.contains("another-secret") && !env.contains(SECRET), "{env}");
            assert_eq!(
                host.exec_ok(&["stat", "-c", "%u %a", "/run/clawd/secrets/demo/.env"])?,
                "1000 400"
            );
            let medium = host.exec_ok(&["stat", "-f", "-c", "%T", "/run/clawd/secrets/demo"])?;
            assert_eq!(medium, "tmpfs");
            Ok(run)
        })?;
    rig.step("it is rebuilt: another container, the same data", || {
        fleet.clawctl_ok(&["rebuild", "demo", "--wait"])?;
        let run = until_newer_run(&rig, &renewed)?;
        assert_ne!(run.container, renewed.container);
        assert_kept(&rig)
    })?;
    rig.step("it is deleted: its data is set aside, nothing else is left", || {
        fleet.clawctl_ok(&["delete", "demo", "--wait"])?;
        let gone = fleet.clawctl(&["get", "demo"])?;
        assert_eq!(gone.status, 1, "{gone:?}");
        let docker = rig.docker()?;
        assert_eq!(docker.containers_of("demo")?, Vec::<Value>::new());
        assert_eq!(docker.networks_of("demo")?, Vec::<Value>::new());
        assert_eq!(fleet.browse(host, "demo", "/startupz")?.status, 404);
        assert!(!host.exec(&["test", "-e", "/run/clawd/secrets/demo"])?.success());
        assert!(!host.exec(&["test", "-e", "/var/lib/clawd/instances/demo"])?.success());
        let rows =
            host.exec_ok(&["sh", "-c", "cat /var/lib/clawd/removed/demo.*/data/gen-1/state/rows"])?;
        assert_eq!(rows, "k\tkept");
        let steps = claw_tests::journal::steps(host, "demo")?;
        let unclear: Vec<_> =
            steps.iter().filter(|s| s.outcome.as_deref() != Some("done")).collect();
        assert!(unclear.is_empty(), "{unclear:?}");
        Ok(())
    })?;
    rig.step("every change is in the audit log, with who made it", || {
        let audit = fleet.json(&["audit", "--resource", "instances/demo"])?;
        let methods: Vec<&str> =
            rig::list(&audit)?.iter().filter_map(|entry| entry["method"].as_str()).collect();
        for method in ["Create", "Update", "Start", "Stop", "Restart", "Rebuild", "Delete"] {
            assert!(
                methods.iter().any(|m| m.ends_with(&format!("/{method}Instance"))),
                "{methods:?}"
            );
        }
        let of_session = |entry: &&Value| {
            entry["method"].as_str().is_some_and(|method| method.ends_with("NodeService/Session"))
        };
        let said: Vec<_> = rig::list(&audit)?.iter().filter(of_session).collect();
        let by = |principal: &str| said.iter().any(|entry| entry["principal"] == principal);
        assert!(by("system") && by("agent/h1"), "removed, and its passwords stored: {audit}");
        let asked = rig::list(&audit)?.iter().filter(|entry| !of_session(entry));
        assert!(asked.clone().count() > 0, "{audit}");
        assert!(asked.clone().all(|entry| entry["principal"] == "operator/admin"), "{audit}");
        assert!(!audit.to_string().contains("another-secret"), "a secret is in the audit log");
        Ok(())
    })
}

/// One run of a gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Run {
    container: String,
    started: String,
}

impl Run {
    fn of(instance: &Value) -> Result<Self> {
        let text = |field: &str| {
            let value = instance["status"][field].as_str();
            value.map(str::to_owned).with_context(|| format!("no {field}: {instance}"))
        };
        Ok(Self { container: text("containerId")?, started: text("startedAt")? })
    }
}

/// Waits for another run than `before` that is healthy.
fn until_newer_run(rig: &Rig, before: &Run) -> Result<Run> {
    let run = rig.fleet().until(PATIENCE, "a newer run", |fleet| {
        let instance = fleet.until_phase("demo", "running", PATIENCE)?;
        let run = Run::of(&instance)?;
        Ok((run.started != before.started).then_some(run))
    })?;
    rig.fleet().until_serving(rig.host(), "demo")?;
    Ok(run)
}

fn delivered(host: &LabHost, path: &str) -> Result<String> {
    let path = format!("/var/lib/clawd/instances/demo/gen-1/{path}");
    assert_eq!(host.exec_ok(&["stat", "-c", "%u %g %a", &path])?, "1000 1000 600", "{path}");
    Ok(String::from_utf8(host.read_file(&path)?)?)
}

fn assert_kept(rig: &Rig) -> Result<()> {
    rig.fleet().until_serving(rig.host(), "demo")?;
    assert_eq!(rig.fleet().control(rig.host(), "demo", "read?key=k")?, "kept");
    Ok(())
}
