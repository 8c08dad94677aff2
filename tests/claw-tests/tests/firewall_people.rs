//! Who comes in and who is told: guessers, customers, operators.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use claw_lab::{Lab, LabHost, Netns, Network, command};
use claw_tests::dial::{Verdict, connect_from};
use claw_tests::fleet::{WEB_PORT, until};
use claw_tests::ground::{self, ELSEWHERE, Ground, Inside};
use claw_tests::http::{self, Answer};
use claw_tests::probe::Probe;
use claw_tests::programs::PATIENCE;
use claw_tests::{Instance, Rig, UnitProcess};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(5);
const BRIEF: Duration = Duration::from_millis(500);
/// Attempts at SMTP that nobody overlooks.
const BURST: usize = 200;
/// Failures that lead to a ban here, and its length in seconds.
const FAILURES: usize = 3;
const BAN: u64 = 8;

#[test]
fn guessers_are_banned_from_ssh_and_from_nothing_else() -> Result<()> {
    let rig = Rig::start("guessers")?;
    let (fleet, host) = (rig.fleet(), rig.host());
    let lab = fleet.lab();
    ground::crowd(lab)?;
    let [guesser, other, third] =
        [50, 60, 70].map(|last| IpAddr::V4(Ipv4Addr::new(203, 0, 113, last)));
    rig.step("an instance serves; bans are short", || {
        fleet.apply(&Instance::new("a", host, &rig.image().reference))?;
        fleet.until_serving(host, "a")?;
        let brute_force =
            json!({ "failures": FAILURES, "window": "600s", "ban": format!("{BAN}s") });
        fleet.set_firewall(host, &json!({ "ssh": { "bruteForce": brute_force } }))?;
        fleet.until_firewall(host).map(drop)
    })?;
    rig.step("who fails to log in is banned from SSH only, and only he", || {
        guess(lab, host, guesser)?;
        until(PATIENCE, "the ban", || Ok(is_banned(host, guesser)?.then_some(())))?;
        assert_ssh(lab, host, guesser, Verdict::is_closed)?;
        assert_ssh(lab, host, other, Verdict::is_open)?;
        let answer = browse_from(lab, host, guesser)?;
        ensure!(answer.status == 200, "{answer:?}");
        let told = fleet.until_event(host, "", "source_banned")?;
        ensure!(told["message"].to_string().contains(&guesser.to_string()), "{told}");
        until(PATIENCE, "the counters", || {
            let (status, _) = fleet.firewall_status(host)?;
            let counted = status["loginFailures"].as_u64() >= Some(u64::try_from(FAILURES)?);
            if counted { Ok(Some(())) } else { bail!("{status}") }
        })
    })?;
    rig.step("the ban ends by itself", || {
        until(PATIENCE, "the end of the ban", || Ok((!is_banned(host, guesser)?).then_some(())))?;
        assert_ssh(lab, host, guesser, Verdict::is_open)
    })?;
    rig.step("over IPv6 too", || {
        let v6 = "2001:db8:200::2".parse()?;
        guess(lab, host, v6)?;
        until(PATIENCE, "the ban", || Ok(is_banned(host, v6)?.then_some(())))?;
        assert_ssh(lab, host, v6, Verdict::is_closed)
    })?;
    rig.step("beside fail2ban, which bans as well: neither undoes the other", || {
        // It bans when told: each that bans by itself keeps the other from seeing further failures.
        let jail = "[sshd]\nenabled = true\nbackend = systemd\nmaxretry = 1000\nbantime = 600\n\
            banaction = iptables-multiport\n";
        host.write_file("/etc/fail2ban/jail.local", 0o644, jail.as_bytes())?;
        host.exec_ok(&["systemctl", "start", "fail2ban.service"])?;
        until(PATIENCE, "fail2ban", || {
            Ok(host.exec(&["fail2ban-client", "status", "sshd"])?.success().then_some(()))
        })?;
        guess(lab, host, other)?;
        host.exec_ok(&["fail2ban-client", "set", "sshd", "banip", &other.to_string()])?;
        until(PATIENCE, "both bans", || {
            let theirs = host.exec(&["iptables", "-w", "-S", "f2b-sshd"])?.stdout;
            let both = theirs.contains(&other.to_string()) && is_banned(host, other)?;
            if both { Ok(Some(())) } else { bail!("{theirs}") }
        })?;
        // Theirs may stand before ours: it only ever drops.
        let input = host.exec_ok(&["iptables", "-w", "-S", "INPUT"])?;
        for jump in ["-j CLAW-IN", "-j f2b-sshd"] {
            ensure!(input.contains(jump), "{jump} is not in\n{input}");
        }
        assert_ssh(lab, host, other, Verdict::is_closed)?;
        assert_ssh(lab, host, third, Verdict::is_open)
    })?;
    rig.step("and neither repairs what the other does without end", || {
        let repairs = || Ok::<_, anyhow::Error>(fleet.firewall_status(host)?.0["repairs"].as_u64());
        let before = repairs()?;
        // Five heartbeats: a fight would have shown.
        let seen = || -> Result<Value> {
            Ok(fleet.json(&["host", "get", host.name()])?["status"]["lastSeenTime"].clone())
        };
        let mut last = seen()?;
        for _ in 0..5 {
            last = until(PATIENCE, "another heartbeat", || {
                let next = seen()?;
                Ok((next != last).then_some(next))
            })?;
        }
        ensure!(repairs()? == before, "repairs: {before:?}, then {:?}", repairs()?);
        Ok(())
    })
}

/// Fails to log in over and over, as guessers do.
fn guess(lab: &Lab, host: &LabHost, from: IpAddr) -> Result<()> {
    let target: IpAddr =
        if from.is_ipv4() { host.address().into() } else { host.address_v6().into() };
    for attempt in 0..=FAILURES {
        // Whoever is banned in the midst of a connection hears nothing more of it.
        let mut ssh = command("timeout");
        ssh.args(["10", "ssh"]);
        ssh.args(["-F", "/dev/null", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"]);
        ssh.args(["-o", "UserKnownHostsFile=/dev/null", "-o", "ConnectTimeout=3", "-b"]);
        ssh.arg(from.to_string()).arg(format!("guess{attempt}@{target}")).arg("true");
        ssh.stdin(std::process::Stdio::null());
        let process = lab.spawn(Network::Client, &format!("ssh-{attempt}"), ssh)?;
        let ended = process.wait(PATIENCE)?;
        ensure!(!ended.success(), "a guess was right");
    }
    Ok(())
}

fn is_banned(host: &LabHost, source: IpAddr) -> Result<bool> {
    let set = if source.is_ipv4() { "claw-banned4" } else { "claw-banned6" };
    Ok(host.exec(&["ipset", "-q", "test", set, &source.to_string()])?.success())
}

fn assert_ssh(lab: &Lab, host: &LabHost, from: IpAddr, good: fn(&Verdict) -> bool) -> Result<()> {
    let to: IpAddr = if from.is_ipv4() { host.address().into() } else { host.address_v6().into() };
    let probe = Probe::Tcp { to: (to, 22_u16).into(), from: Some((from, 0).into()) };
    assert_probe(lab.netns(Network::Client), &probe, good)
}

fn assert_probe(place: &Netns, probe: &Probe, good: fn(&Verdict) -> bool) -> Result<()> {
    let servers = claw_tests::servers::Servers::new();
    let patience = if good(&Verdict::Open) { SOON } else { BRIEF };
    let verdict = place.within(|| probe.run(&servers, patience))??;
    ensure!(good(&verdict), "{probe}: {verdict}");
    Ok(())
}

/// What a customer at an address gets of instance `a`.
fn browse_from(lab: &Lab, host: &LabHost, from: IpAddr) -> Result<Answer> {
    let stream = lab.within(Network::Client, || {
        connect_from(from, (host.address(), WEB_PORT).into(), SOON)
    })??;
    http::get(stream, "a.claw.localhost", "/startupz")
}

#[test]
fn operators_see_what_is_refused_and_decide_who_comes_in() -> Result<()> {
    let rig = Rig::start("people")?;
    let (fleet, host) = (rig.fleet(), rig.host());
    let ground = Ground::start(fleet.lab())?;
    ground::crowd(fleet.lab())?;
    let instance = || Instance::new("a", host, &rig.image().reference);
    rig.step("an instance serves", || {
        fleet.apply(&instance())?;
        fleet.until_phase("a", "running", PATIENCE)?;
        fleet.until_serving(host, "a")?;
        fleet.until_firewall(host).map(drop)
    })?;
    rig.step("a burst to SMTP is an event, and counted", || burst(&rig, &ground))?;
    rig.step("the counters outlive other rules and the agent", || outlive(&rig, &ground))?;
    rig.step("clawctl shows policy, rules and counters", || show(&rig))?;
    rig.step("a bad policy is refused with every fault", || refuse(&rig))?;
    rig.step("only listed sources see an instance's web address", || {
        let [friend, stranger] = [70, 71].map(|last| IpAddr::V4(Ipv4Addr::new(203, 0, 113, last)));
        let network = json!({ "webSources": [format!("{friend}/32")] });
        fleet.apply(&instance().with("network", network))?;
        until(PATIENCE, "the stranger to be refused", || {
            let answer = browse_from(fleet.lab(), host, stranger)?;
            if answer.status == 403 { Ok(Some(())) } else { bail!("{answer:?}") }
        })?;
        let answer = browse_from(fleet.lab(), host, friend)?;
        ensure!(answer.status == 200, "{answer:?}");
        fleet.apply(&instance().with("network", json!({})))?;
        until(PATIENCE, "the stranger to be let in", || {
            let answer = browse_from(fleet.lab(), host, stranger)?;
            if answer.status == 200 { Ok(Some(())) } else { bail!("{answer:?}") }
        })
    })?;
    rig.step("the web port for some sources, for loopback, for an interface", || expose(&rig))
}

fn blocked(rig: &Rig) -> Result<Value> {
    Ok(rig.fleet().instance("a")?["status"]["blocked"].clone())
}

/// Attempts at 25/tcp that the coordinator knows of.
fn attempts(rig: &Rig) -> Result<u64> {
    let blocked = blocked(rig)?;
    let ports = blocked["ports"].as_array().cloned().unwrap_or_default();
    let smtp = ports.iter().find(|entry| entry["port"] == 25 && is_tcp(&entry["protocol"]));
    Ok(smtp.and_then(|entry| entry["attempts"].as_u64()).unwrap_or(0))
}

fn is_tcp(protocol: &Value) -> bool {
    protocol.as_str().is_some_and(|text| text.to_lowercase().ends_with("tcp"))
}

/// Tries SMTP from the instance so many times; each attempt is one packet.
fn try_smtp(rig: &Rig, ground: &Ground, times: usize) -> Result<()> {
    let inside = Inside::of(rig.host(), "a")?;
    let probe = Probe::tcp((ELSEWHERE, 25));
    inside.netns.within(|| {
        for _ in 0..times {
            let verdict = probe.run(ground.servers(), Duration::from_millis(100))?;
            ensure!(verdict.is_closed(), "{verdict}");
        }
        Ok(())
    })?
}

fn until_attempts(rig: &Rig, least: u64) -> Result<()> {
    until(PATIENCE, &format!("{least} attempts to be told"), || {
        let known = attempts(rig)?;
        if known >= least { Ok(Some(())) } else { bail!("{known}: {}", blocked(rig)?) }
    })
}

fn burst(rig: &Rig, ground: &Ground) -> Result<()> {
    try_smtp(rig, ground, BURST)?;
    let told = rig.fleet().until_event(rig.host(), "a", "traffic_burst")?;
    let message = told["message"].as_str().context("no message")?;
    rig.note(&format!("  {message}"));
    ensure!(message.contains("25/tcp"), "{message}");
    until_attempts(rig, u64::try_from(BURST)?)?;
    // Retransmissions count, copies of the same packet in another table do not.
    let known = attempts(rig)?;
    ensure!(known < u64::try_from(BURST)? * 3 / 2, "{known} of {BURST}");
    Ok(())
}

fn outlive(rig: &Rig, ground: &Ground) -> Result<()> {
    let (fleet, host) = (rig.fleet(), rig.host());
    let first = attempts(rig)?;
    for port in [31_000, 31_001] {
        fleet.set_firewall(host, &json!({ "extra": [{ "protocol": "udp", "port": port }] }))?;
        fleet.until_firewall(host)?;
    }
    try_smtp(rig, ground, 20)?;
    until_attempts(rig, first + 20)?;
    let second = attempts(rig)?;
    UnitProcess::of(host, "clawd.service")?.signal(Signal::SIGKILL)?;
    fleet.until(PATIENCE, "the agent to be back", |fleet| {
        let events = fleet.events(host)?;
        let starts = events.iter().filter(|event| event["kind"] == "agent_started").count();
        Ok((starts > 1).then_some(()))
    })?;
    fleet.until_phase("a", "running", PATIENCE)?;
    try_smtp(rig, ground, 20)?;
    until_attempts(rig, second + 20)?;
    let third = attempts(rig)?;
    ensure!(third < second + 40, "some were counted twice: {second}, then {third}");
    Ok(())
}

fn show(rig: &Rig) -> Result<()> {
    let (fleet, host) = (rig.fleet(), rig.host());
    let table = fleet.clawctl_ok(&["host", "firewall", host.name()])?;
    rig.note(&table);
    let rules = fleet.clawctl_ok(&["host", "firewall", host.name(), "--rules"])?;
    for expected in ["CLAW-IN", "CLAW-EGR", "-j DROP"] {
        ensure!(rules.contains(expected), "{expected} is not in\n{rules}");
    }
    let all = fleet.firewall(host)?;
    for (field, prefix) in [("rulesV4", "*raw"), ("rulesV6", "*raw")] {
        let rules = all[field].as_str().context("no rules")?;
        ensure!(rules.contains(prefix) && rules.contains('['), "{field}: {rules}");
    }
    ensure!(all["sshPorts"] == json!([22]), "{all}");
    ensure!(all["instances"][0]["bridge"] == "claw-i0", "{all}");
    Ok(())
}

fn refuse(rig: &Rig) -> Result<()> {
    let bad = json!({
        "blocked": ["10.0.0.0/8", "10.1.0.0/16", "300.1.1.1"],
        "extra": [{ "protocol": "tcp", "port": 0 }],
        "web": { "interfaces": ["eth+"] },
    });
    let refused = rig.fleet().set_firewall(rig.host(), &bad);
    let said = format!("{:#}", refused.err().context("it was taken")?);
    rig.note(&said);
    for fault in ["300.1.1.1", "10.1.0.0/16", "extra", "eth+"] {
        ensure!(said.contains(fault), "{fault} is not in: {said}");
    }
    let list = json!({ "egress": { "allowlist": { "names": [{ "pattern": "*" }] } } });
    let instance = Instance::new("a", rig.host(), &rig.image().reference).with("network", list);
    ensure!(rig.fleet().apply(&instance).is_err(), "a list that allows everything was taken");
    // Only the host knows on which ports its sshd listens.
    let moved = json!({ "ssh": { "ports": [2222] } });
    rig.fleet().set_firewall(rig.host(), &moved)?;
    let refused = rig.fleet().until_event(rig.host(), "", "state_refused")?;
    let said = refused["message"].as_str().context("no message")?;
    rig.note(said);
    ensure!(said.contains("ssh.ports") && said.contains("22"), "{said}");
    rig.fleet().set_firewall(rig.host(), &json!({}))?;
    rig.fleet().until_firewall(rig.host())?;
    assert_ssh(
        rig.fleet().lab(),
        rig.host(),
        Ipv4Addr::new(203, 0, 113, 80).into(),
        Verdict::is_open,
    )
}

fn expose(rig: &Rig) -> Result<()> {
    let (fleet, host) = (rig.fleet(), rig.host());
    let lab = fleet.lab();
    let [friend, stranger] = [70, 71].map(|last| IpAddr::V4(Ipv4Addr::new(203, 0, 113, last)));
    let client = lab.netns(Network::Client);
    let web = (host.address(), WEB_PORT).into();
    let from = |ip: IpAddr| Probe::Tcp { to: web, from: Some((ip, 0).into()) };
    let set = |policy: Value| -> Result<()> {
        fleet.set_firewall(host, &json!({ "web": policy }))?;
        fleet.until_firewall(host).map(drop)
    };
    set(json!({ "sources": [format!("{friend}/32")] }))?;
    assert_probe(client, &from(friend), Verdict::is_open)?;
    assert_probe(client, &from(stranger), Verdict::is_closed)?;

    set(json!({ "exposure": "loopback" }))?;
    assert_probe(client, &from(friend), Verdict::is_closed)?;
    let local = ["curl", "-fsS", "-H", "Host: a.claw.localhost", "http://127.0.0.1:8080/startupz"];
    host.exec_ok(&local)?;

    let peer = Netns::create()?;
    host.netns()?.ip(&format!(
        "link add wg0 type veth peer name eth0 netns {}\n\
         addr add 10.99.0.1/24 dev wg0\n\
         link set wg0 up\n",
        peer.path()
    ))?;
    peer.ip("addr add 10.99.0.2/24 dev eth0\nlink set eth0 up\n")?;
    let tunnel = Probe::tcp((Ipv4Addr::new(10, 99, 0, 1), WEB_PORT));
    assert_probe(&peer, &tunnel, Verdict::is_closed)?;
    set(json!({ "interfaces": ["wg0"] }))?;
    assert_probe(&peer, &tunnel, Verdict::is_open)?;
    assert_probe(client, &from(friend), Verdict::is_closed)?;

    set(json!({}))?;
    assert_probe(client, &from(stranger), Verdict::is_open)
}
