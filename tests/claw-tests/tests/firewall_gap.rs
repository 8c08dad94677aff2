//! Connects without pause, a thousand per second to each closed target, while everything is done to the
//! firewall that may be done to it: none comes through.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Result, ensure};
use claw_lab::{HostOptions, LabHost, Network, Suite};
use claw_tests::barrage::{Barrage, Pace, Seen, Target};
use claw_tests::field::{ATTACKS, Attack, Field, Healed};
use claw_tests::ground::{ELSEWHERE, Ground, HOST_PORTS, Inside};
use claw_tests::programs::PATIENCE;
use claw_tests::{Instance, Rig, rig};

/// A policy is replaced so often on the first host.
const REPLACES: u32 = 100;
/// Everything else is done so often.
const TIMES: usize = 5;
/// A barrage with fewer connects per second and target proves little.
const LEAST_RATE: f64 = 900.0;

/// A way to boot a host again.
type Boot = fn(&LabHost) -> Result<()>;

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
    let (fleet, host) = (rig.fleet(), rig.host());
    let ground = Ground::start(fleet.lab())?;
    rig.step("two instances run", || {
        for name in ["a", "b"] {
            fleet.apply(&Instance::new(name, host, &rig.image().reference))?;
        }
        for name in ["a", "b"] {
            fleet.until_phase(name, "running", PATIENCE)?;
        }
        fleet.until_firewall(host).map(drop)
    })?;
    let field = rig.step("the field", || Field::prepare(fleet, host, &ground, ["a", "b"]))?;
    closed(&rig, &field, &format!("the policy is replaced {replaces} times"), || {
        (0..replaces).try_for_each(|round| field.replace(round))
    })?;
    closed(&rig, &field, "networks come and go", || field.churn(TIMES))?;
    closed(&rig, &field, "the filter is flushed again and again", || field.flush(TIMES))?;
    closed(&rig, &field, "Docker restarts", || {
        host.exec_ok(&["systemctl", "restart", "docker.service"])?;
        fleet.until_phase("a", "running", PATIENCE)?;
        fleet.until_serving(host, "a")
    })?;
    attacks(&rig, &field)?;
    rig.step("in the end all is as it was", || {
        host.exec_ok(&["systemctl", "restart", "docker.service"])?;
        fleet.until_phase("a", "running", PATIENCE)?;
        fleet.until_serving(host, "a")?;
        fleet.until_firewall(host).map(drop)
    })
}

/// Under fire, something is done; nothing comes through.
fn closed(
    rig: &Rig,
    field: &Field<'_>,
    what: &str,
    work: impl FnOnce() -> Result<()>,
) -> Result<()> {
    rig.step(what, || {
        let fire = field.during(work)?;
        let sides = [("egress", &fire.egress), ("ingress", &fire.ingress)];
        for ((side, seen), targets) in sides.into_iter().zip(field.targets()) {
            rig.note(&format!("  {side}: {} targets, {}", targets.len(), seen.summary()));
            assert_closed(side, seen, targets)?;
        }
        Ok(())
    })
}

fn assert_closed(side: &str, seen: &Seen, targets: &[Target]) -> Result<()> {
    assert_none_opened(side, seen, targets)?;
    let rate = seen.rate() / f64::from(u32::try_from(targets.len())?);
    ensure!(rate > LEAST_RATE, "{side}: only {rate:.0} connects per second and target");
    ensure!(seen.unsent == 0, "{side}: {} attempts could not be made", seen.unsent);
    Ok(())
}

/// Nothing came through; else: what did, and when.
fn assert_none_opened(side: &str, seen: &Seen, targets: &[Target]) -> Result<()> {
    let leaked: Vec<String> = targets
        .iter()
        .enumerate()
        .filter_map(|(index, target)| {
            let opened = || seen.opened.iter().filter(|attempt| attempt.target == index);
            let (first, last) = (opened().next()?.at, opened().next_back()?.at);
            let after = first.saturating_duration_since(seen.begun?);
            let (count, length) = (opened().count(), last.saturating_duration_since(first));
            Some(format!("{}: {count} after {after:.3?}, over {length:.3?}", target.name))
        })
        .collect();
    ensure!(leaked.is_empty(), "{side} leaked to {leaked:#?}: {}", seen.summary());
    Ok(())
}

/// What nobody can hold while it happens: our own tables are flushed. How much leaks, for how long, and
/// that the culprit is named.
fn attacks(rig: &Rig, field: &Field<'_>) -> Result<()> {
    let mut table = format!("{}\n", Healed::TITLE);
    for attack in ATTACKS {
        let healed = rig.step(attack.name, || field.attacked(attack))?;
        table += &format!("{}\n", healed.line(attack));
        rig.step("the event names who did it", || {
            let named = healed.told.iter().any(|message| names(&attack, &healed, message));
            ensure!(named, "{}, pid {}: {:#?}", attack.name, healed.attacker, healed.told);
            Ok(())
        })?;
        if attack.argv == ["iptables", "-w", "-F"] {
            rig.step("the guarantee held meanwhile", || {
                ensure!(healed.fire.leaks() == 0, "{}", healed.line(attack));
                Ok(())
            })?;
        }
    }
    rig.note(&table);
    Ok(())
}

/// Whether a message names the program, or what it is a link to, and its process. Of a script with many
/// processes, one of them.
fn names(attack: &Attack, healed: &Healed, message: &str) -> bool {
    match attack.argv {
        ["sh", ..] => message.contains("iptables") || message.contains("xtables-nft"),
        [program, ..] => {
            let linked = program.starts_with("iptables") && message.contains("xtables-nft");
            let named = message.contains(program) || linked;
            named && message.contains(&healed.attacker.to_string())
        }
        [] => false,
    }
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
        // Not the address that the instance will want.
        let calls = ["--network", "claw-a", "--ip", "10.201.1.77", &rig.image().reference, "dial"];
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
            assert_none_opened("ingress", &seen, &targets)?;
            assert_quiet(&ground)
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
fn assert_quiet(ground: &Ground) -> Result<()> {
    let metadata = Ipv4Addr::new(169, 254, 169, 254);
    for (address, port) in [(ELSEWHERE, 25), (metadata, 80)] {
        let arrived = ground.servers().connections((address, port).into());
        ensure!(arrived == 0, "{arrived} connects came through to {address}:{port}");
    }
    Ok(())
}
