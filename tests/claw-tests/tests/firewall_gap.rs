//! Connects without pause, a thousand per second to each closed target, while everything is done to the
//! firewall that may be done to it: none comes through.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use claw_lab::{HostOptions, LabHost, Netns, Network, Suite};
use claw_tests::barrage::{Barrage, Pace, Seen, Target};
use claw_tests::clock::now;
use claw_tests::ground::{ELSEWHERE, ELSEWHERE_V6, Ground, HOST_PORTS, Inside};
use claw_tests::programs::PATIENCE;
use claw_tests::{Instance, Rig, rig};
use serde_json::{Value, json};

/// A policy is replaced so often on the first host.
const REPLACES: u32 = 100;
/// Everything else is done so often.
const TIMES: usize = 5;
/// A barrage that is slower proves little.
const LEAST_RATE: f64 = 900.0;

/// The ground, and who fires from where.
struct Field<'a> {
    rig: &'a Rig,
    host: &'a LabHost,
    /// A machine on the bridge of the first instance.
    plug: Netns,
    egress: Vec<Target>,
    ingress: Vec<Target>,
}

/// A way to boot a host again.
type Boot = fn(&LabHost) -> Result<()>;

/// What was seen while something was done.
struct Fire {
    egress: Seen,
    ingress: Seen,
    /// When the work was begun and done.
    work: (Instant, Instant),
}

#[test]
fn no_connect_comes_through_whatever_is_done_bookworm() -> Result<()> {
    fire(Suite::Bookworm, REPLACES)
}

#[test]
fn no_connect_comes_through_whatever_is_done_trixie() -> Result<()> {
    fire(Suite::Trixie, REPLACES / 5)
}

fn fire(suite: Suite, replaces: u32) -> Result<()> {
    let options = HostOptions::named("h1").with_suite(suite);
    let rig = Rig::with("gap", rig::QUICK, &[options])?;
    let ground = Ground::start(rig.fleet().lab())?;
    let host = rig.host();
    let field = rig.step("two instances, a machine on a bridge", || prepare(&rig, &ground))?;
    field.closed(&format!("the policy is replaced {replaces} times"), || {
        (0..replaces).try_for_each(|round| replace(&rig, round))
    })?;
    field.closed("networks come and go", || {
        for round in 0..TIMES {
            let name = format!("churn{round}");
            host.exec_ok(&["docker", "network", "create", &name])?;
            host.exec_ok(&["docker", "network", "rm", &name])?;
        }
        Ok(())
    })?;
    field.closed("the filter is flushed again and again", || {
        for _ in 0..TIMES {
            host.exec_ok(&["iptables", "-w", "-F"])?;
            host.exec_ok(&["ip6tables", "-w", "-F"])?;
            until_hooked(host)?;
        }
        Ok(())
    })?;
    field.closed("Docker restarts", || {
        host.exec_ok(&["systemctl", "restart", "docker.service"])?;
        rig.fleet().until_phase("a", "running", PATIENCE)?;
        rig.fleet().until_serving(host, "a")
    })?;
    measure(&field)?;
    rig.step("in the end all is as it was", || {
        host.exec_ok(&["systemctl", "restart", "docker.service"])?;
        rig.fleet().until_phase("a", "running", PATIENCE)?;
        rig.fleet().until_serving(host, "a")?;
        rig.fleet().until_firewall(host).map(drop)
    })
}

fn prepare<'a>(rig: &'a Rig, ground: &Ground) -> Result<Field<'a>> {
    let (fleet, host) = (rig.fleet(), rig.host());
    for name in ["a", "b"] {
        fleet.apply(&Instance::new(name, host, &rig.image().reference))?;
    }
    for name in ["a", "b"] {
        fleet.until_phase(name, "running", PATIENCE)?;
    }
    fleet.until_firewall(host)?;
    ground.plant(fleet.lab(), host)?;
    let (a, b) = (Inside::of(host, "a")?, Inside::of(host, "b")?);
    let plug = ground.plug(host, &a)?;
    let port = HOST_PORTS[1];
    let egress = vec![
        Target::new("a denied port", (ELSEWHERE, 25)),
        Target::new("a denied port, IPv6", (ELSEWHERE_V6, 25)),
        Target::new("another instance", (b.address, 18789)),
        Target::new("the host's SSH", (a.gateway, 22)),
    ];
    let ingress = vec![
        Target::new("a port of the host", (host.address(), port)),
        Target::new("a port of the host, IPv6", (host.address_v6(), port)),
        Target::new("an instance, routed", (a.address, 18789)),
    ];
    Ok(Field { rig, host, plug, egress, ingress })
}

/// Another policy, and waits until it is in force.
fn replace(rig: &Rig, round: u32) -> Result<()> {
    let extra = json!([{ "protocol": "tcp", "port": 30_000 + round }]);
    rig.fleet().set_firewall(rig.host(), &json!({ "extra": extra }))?;
    rig.fleet().until_firewall(rig.host()).map(drop)
}

/// Waits until our chains are called from the filter again.
fn until_hooked(host: &LabHost) -> Result<()> {
    for program in ["iptables", "ip6tables"] {
        claw_tests::fleet::until(PATIENCE, "the hooks to be back", || {
            let hooks =
                ["INPUT", "FORWARD"].map(|chain| host.exec_ok(&[program, "-w", "-S", chain]));
            let [input, forward] = hooks;
            let back = input?.contains("-j CLAW-IN") && forward?.contains("-j CLAW-FWD");
            Ok(back.then_some(()))
        })?;
    }
    Ok(())
}

impl Field<'_> {
    fn under_fire(&self, work: impl FnOnce() -> Result<()>) -> Result<Fire> {
        let client = self.rig.fleet().lab().netns(Network::Client);
        let egress = Barrage::start(&self.plug, self.egress.clone(), Pace::CLOSED)?;
        let ingress = Barrage::start(client, self.ingress.clone(), Pace::CLOSED)?;
        let begun = now();
        work()?;
        let work = (begun, now());
        Ok(Fire { egress: egress.stop()?, ingress: ingress.stop()?, work })
    }

    /// Under fire, something is done; nothing comes through.
    fn closed(&self, what: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
        self.rig.step(what, || {
            let fire = self.under_fire(work)?;
            for (side, seen, targets) in
                [("egress", &fire.egress, &self.egress), ("ingress", &fire.ingress, &self.ingress)]
            {
                self.rig.note(&format!("  {side}: {} targets, {}", targets.len(), seen.summary()));
                let names = seen.opened.iter().filter_map(|a| targets.get(a.target));
                let leaked: std::collections::BTreeSet<&str> =
                    names.map(|t| t.name.as_str()).collect();
                ensure!(
                    seen.opened.is_empty(),
                    "{what}: {side} leaked to {leaked:?}: {}",
                    seen.summary()
                );
                let rate = seen.rate() / f64::from(u32::try_from(targets.len())?);
                ensure!(rate > LEAST_RATE, "{side}: only {rate:.0} connects per second and target");
                let unsent = seen.unsent;
                ensure!(unsent == 0, "{side}: {unsent} attempts could not be made");
            }
            Ok(())
        })
    }
}

/// What nobody can hold while it happens: our tables themselves are flushed. How much leaks, and for how long.
fn measure(field: &Field<'_>) -> Result<()> {
    let host = field.host;
    let reload = "for t in iptables ip6tables; do $t-save > /run/saved.$t; done; \
        for t in iptables ip6tables; do for c in raw mangle security filter; do $t -w -t $c -F; done; done; \
        sleep 0.2; for t in iptables ip6tables; do $t-restore < /run/saved.$t; done";
    let attacks: [(&str, &[&str]); 4] = [
        ("iptables -F", &["iptables", "-w", "-F"]),
        ("iptables -t security -F", &["iptables", "-w", "-t", "security", "-F"]),
        ("nft flush ruleset", &["nft", "flush", "ruleset"]),
        ("flush and restore of all", &["sh", "-c", reload]),
    ];
    let mut table = String::from(
        "what was done              egress: open, for, until   ingress: open, for, until   healed after\n",
    );
    for (name, argv) in attacks {
        let known = repairs(field)?;
        let mut attacker = String::new();
        let mut healed = Duration::ZERO;
        let fire = field.rig.step(name, || {
            field.under_fire(|| {
                let begun = now();
                let process = host.spawn(argv)?;
                attacker = process.pid().to_string();
                let ended = process.wait(PATIENCE)?;
                ensure!(ended.success(), "{name}: {}", process.log());
                until_hooked(host)?;
                healed = begun.elapsed();
                claw_tests::fleet::until(PATIENCE, "the repair to be told", || {
                    let told = repairs(field)?.len() > known.len();
                    Ok(told.then_some(()))
                })
            })
        })?;
        let line = |seen: &Seen| {
            let (open, until) = (seen.open_for(), seen.open_until(fire.work.0));
            format!("{:5} {:7.1?} {:7.1?}", seen.opened.len(), open, until)
        };
        table += &format!(
            "{name:26} {}   {}   {:.0} ms\n",
            line(&fire.egress),
            line(&fire.ingress),
            healed.as_secs_f64() * 1000.0
        );
        field.rig.step("the event names who did it", || {
            let news = repairs(field)?.split_off(known.len());
            let program = argv.first().copied().unwrap_or_default();
            let named = |message: &String| match program {
                // Many processes: the last word is one of theirs.
                "sh" => message.contains("iptables"),
                _ => message.contains(&attacker) && names(program, message),
            };
            ensure!(news.iter().any(named), "{program} with pid {attacker}: {news:#?}");
            Ok(())
        })?;
        field.rig.fleet().until_firewall(host)?;
    }
    field.rig.note(&table);
    Ok(())
}

/// Whether a message names a program, or what it is a link to.
fn names(program: &str, message: &str) -> bool {
    message.contains(program) || (program.starts_with("ip") && message.contains("xtables-nft-mul"))
}

/// Messages of all repairs so far.
fn repairs(field: &Field<'_>) -> Result<Vec<String>> {
    let events = field.rig.fleet().events(field.host)?;
    let repaired = events.iter().filter(|event| event["kind"] == "firewall_repaired");
    repaired
        .map(|event| event["message"].as_str().map(str::to_owned).context("no message"))
        .collect()
}

/// A service that is there from the first moment of every boot on, as any other that waits for the network.
const LISTENER: &str = "[Unit]\nAfter=network.target\n[Service]\nExecStart=/usr/bin/python3 /opt/listen.py\n\
    [Install]\nWantedBy=multi-user.target\n";
const LISTEN: &str = "import socket\n\
    s = socket.create_server(('::', 5432), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096)\n\
    while True:\n    s.accept()[0].close()\n";

#[test]
fn a_host_boots_under_fire() -> Result<()> {
    let rig = Rig::start("bootfire")?;
    let ground = Ground::start(rig.fleet().lab())?;
    let (fleet, host) = (rig.fleet(), rig.host());
    rig.step("an instance, a container on its network that never stops calling", || {
        fleet.apply(&Instance::new("a", host, &rig.image().reference))?;
        fleet.until_phase("a", "running", PATIENCE)?;
        fleet.until_firewall(host)?;
        host.write_file("/opt/listen.py", 0o644, LISTEN.as_bytes())?;
        host.write_file("/etc/systemd/system/listener.service", 0o644, LISTENER.as_bytes())?;
        host.exec_ok(&["systemctl", "enable", "--now", "listener.service"])?;
        ground.route(fleet.lab(), host)?;
        let caller = ["docker", "run", "--detach", "--name", "caller", "--restart", "always"];
        let calls = ["--network", "claw-a", &rig.image().reference, "dial"];
        let targets = ["192.0.2.10:25", "192.0.2.10:443", "198.51.100.11:22", "169.254.169.254:80"];
        host.exec_ok(&[&caller[..], &calls[..], &targets[..]].concat()).map(drop)
    })?;
    let a = Inside::of(host, "a")?;
    let port = HOST_PORTS[1];
    let targets = vec![
        Target::new("a port of the host", (host.address(), port)),
        Target::new("a port of the host, IPv6", (host.address_v6(), port)),
        Target::new("an instance, routed", (a.address, 18789)),
    ];
    let boots: [(&str, Boot); 2] = [
        ("reboots", |host| host.reboot()),
        ("loses its power and boots", |host| host.power_cut().and_then(|()| host.boot_again())),
    ];
    for (how, boot) in boots {
        rig.step(&format!("it {how}: nothing comes through, in or out"), || {
            let client = fleet.lab().netns(Network::Client);
            let allowed = (IpAddr::from(ELSEWHERE), 443).into();
            let ingress = Barrage::start(client, targets.clone(), Pace::CLOSED)?;
            boot(host)?;
            host.wait_until_active("listener.service", PATIENCE)?;
            let before = ground.servers().connections(allowed);
            claw_tests::fleet::until(PATIENCE, "the caller to call again", || {
                Ok((ground.servers().connections(allowed) > before + 500).then_some(()))
            })?;
            fleet.until_serving(host, "a")?;
            fleet.until_online(host)?;
            fleet.until_firewall(host)?;
            let seen = ingress.stop()?;
            rig.note(&format!("  ingress: {}", seen.summary()));
            ensure!(seen.opened.is_empty(), "ingress leaked: {}", seen.summary());
            assert_quiet(&rig, &ground)
        })?;
    }
    rig.step("the listener did listen, the caller did call", || {
        let local = host.exec(&[
            "python3",
            "-c",
            "import socket; socket.create_connection(('127.0.0.1', 5432), 5)",
        ])?;
        ensure!(local.success(), "nothing listens on {port}: {}", local.stderr);
        host.exec_ok(&["systemctl", "stop", "clawd.service"])?;
        for table in ["security", "filter"] {
            host.exec_ok(&["iptables", "-w", "-t", table, "-F"])?;
        }
        host.exec_ok(&["iptables", "-w", "-P", "FORWARD", "ACCEPT"])?;
        claw_tests::fleet::until(PATIENCE, "a denied connect without a firewall", || {
            let denied = (IpAddr::from(ELSEWHERE), 25).into();
            Ok((ground.servers().connections(denied) > 0).then_some(()))
        })
    })
}

/// Nothing that is denied has arrived anywhere.
fn assert_quiet(rig: &Rig, ground: &Ground) -> Result<()> {
    let metadata = Ipv4Addr::new(169, 254, 169, 254);
    for (address, port) in [(ELSEWHERE, 25), (metadata, 80)] {
        let arrived = ground.servers().connections((address, port).into());
        ensure!(arrived == 0, "{arrived} connects came through to {address}:{port}");
    }
    let seen: Vec<Value> = rig.fleet().events(rig.host())?;
    ensure!(!seen.is_empty(), "no event at all");
    Ok(())
}
