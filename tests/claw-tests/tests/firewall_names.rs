//! Allowlists by address and by name: what is on one works every time, what is not never does, and flows
//! live and die as they should.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use claw_tests::clock::now;
use claw_tests::dial::{Dial, Verdict};
use claw_tests::fleet::until;
use claw_tests::ground::{DOH, ELSEWHERE, Ground, Inside, LISTED, NAMED};
use claw_tests::names::Answer;
use claw_tests::probe::{Probe, Transport, resolve};
use claw_tests::programs::PATIENCE;
use claw_tests::{Instance, Rig, UnitProcess};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(5);
const BRIEF: Duration = Duration::from_millis(500);
const ROTATING: &str = "rotating.listed.example";

/// An instance with a list, and its container from inside.
struct Listed<'a> {
    rig: &'a Rig,
    ground: Ground,
    inside: Inside,
}

#[test]
fn lists_of_addresses_and_names_hold_and_flows_live_on() -> Result<()> {
    let rig = Rig::start("names")?;
    let listed = rig.step("an instance with a list", || {
        let ground = Ground::start(rig.fleet().lab())?;
        apply(&rig, &list("enforced", &["*.listed.example", "*.wild.example"]))?;
        rig.fleet().until_phase("listed", "running", PATIENCE)?;
        rig.fleet().until_firewall(rig.host())?;
        let inside = Inside::of(rig.host(), "listed")?;
        Ok(Listed { rig: &rig, ground, inside })
    })?;
    rig.step("100 of 100 connects to a name that rotates come through", || listed.rotate())?;
    rig.step("its addresses only on its ports, others not at all", || {
        listed.verdict(NAMED[2], 80, Verdict::is_closed)?;
        listed.verdict(ELSEWHERE, 443, Verdict::is_closed)?;
        listed.verdict(LISTED, 443, Verdict::is_open)?;
        listed.verdict(LISTED, 8443, Verdict::is_closed)?;
        let refused = listed.ask("other.example")?;
        ensure!(refused.code == 3, "not NXDOMAIN: {refused:?}");
        ensure!(listed.ground.names().asked("other.example") == 0, "it was asked upstream");
        Ok(())
    })?;
    rig.step("an established flow outlives its addresses, a new one does not", || {
        listed.outlive()
    })?;
    rig.step("names are answered while clawd is away, without a pause", || listed.agent_away())?;
    rig.step("the name server is killed and comes back by itself", || {
        let unit = UnitProcess::of(rig.host(), "clawd-dns.service")?;
        unit.signal(Signal::SIGKILL)?;
        until(PATIENCE, "it to be dead", || Ok(unit.is_gone().then_some(())))?;
        until(PATIENCE, "names again", || {
            let answer = listed.ask_within("api.listed.example", BRIEF)?;
            Ok((answer.addresses == [NAMED[0]]).then_some(()))
        })?;
        listed.verdict(NAMED[0], 443, Verdict::is_open)
    })?;
    rig.step("a tighter list ends flows that it does not allow, and only those", || {
        listed.tighten()
    })?;
    rig.step("a list that is only tried refuses nothing and proposes what lacks", || {
        listed.observe()
    })?;
    rig.step("the instance was never made anew for any of it", || {
        let container = rig.docker()?.netns("claw-listed")?;
        let status = &rig.fleet().instance("listed")?["status"];
        ensure!(status["restartCount"] == 0, "{status}");
        // Its namespace is the one that was opened at first.
        let same = |netns: &claw_lab::Netns| std::fs::metadata(netns.path()).map(|m| inode(&m));
        ensure!(same(&container)? == same(&listed.inside.netns)?, "another container");
        Ok(())
    })
}

/// The device and number of a file.
fn inode(metadata: &std::fs::Metadata) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    (metadata.dev(), metadata.ino())
}

fn list(mode: &str, names: &[&str]) -> Value {
    let names: Vec<Value> =
        names.iter().map(|pattern| json!({ "pattern": pattern, "ports": [443] })).collect();
    let networks = json!([{ "network": format!("{LISTED}/32"), "ports": [443] }]);
    json!({ "egress": { "allowlist": { "networks": networks, "names": names, "mode": mode } } })
}

fn apply(rig: &Rig, network: &Value) -> Result<()> {
    let instance = Instance::new("listed", rig.host(), &rig.image().reference);
    rig.fleet().apply(&instance.with("network", network.clone()))
}

impl Listed<'_> {
    fn ask(&self, name: &str) -> Result<Answer> {
        self.ask_within(name, SOON)
    }

    fn ask_within(&self, name: &str, patience: Duration) -> Result<Answer> {
        let server = self.inside.dns();
        let answer =
            self.inside.netns.within(|| resolve(server, name, Transport::Udp, patience))??;
        answer.map_err(|verdict| anyhow::anyhow!("{name}: {verdict}"))
    }

    /// A connect; closed ones are given up on soon.
    fn verdict(&self, to: impl Into<IpAddr>, port: u16, good: fn(&Verdict) -> bool) -> Result<()> {
        let probe = Probe::tcp((to.into(), port));
        let patience = if good(&Verdict::Open) { SOON } else { BRIEF };
        let verdict = self.inside.netns.within(|| probe.run(self.ground.servers(), patience))??;
        ensure!(good(&verdict), "{probe}: {verdict}");
        Ok(())
    }

    /// A connection that stays.
    fn connect(&self, to: SocketAddr) -> Result<TcpStream> {
        self.inside.netns.within(|| {
            let dial = Dial::start(to, None)?;
            let verdict = dial.wait(SOON)?;
            ensure!(verdict.is_open(), "{to}: {verdict}");
            let stream = dial.into_stream()?;
            stream.set_read_timeout(Some(Duration::from_secs(3)))?;
            Ok(stream)
        })?
    }

    /// Asks and connects a hundred times; each answer may be another one.
    fn rotate(&self) -> Result<()> {
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..100 {
            let answer = self.ask(ROTATING)?;
            let address = *answer.addresses.first().with_context(|| format!("{answer:?}"))?;
            self.verdict(address, 443, Verdict::is_open)?;
            seen.insert(address);
        }
        self.rig.note(&format!("  asked upstream {} times", self.ground.names().asked(ROTATING)));
        ensure!(!seen.is_empty(), "nowhere");
        Ok(())
    }

    fn outlive(&self) -> Result<()> {
        let answer = self.ask("api.listed.example")?;
        ensure!(answer.addresses == [NAMED[0]], "{answer:?}");
        let mut flow = self.connect((NAMED[0], 443).into())?;
        ensure!(echoes(&mut flow), "it does not even begin");
        // What the end of every lifetime comes to.
        for set in self.sets()?.iter().filter(|set| set.contains("name")) {
            self.rig.host().exec_ok(&["ipset", "flush", set])?;
        }
        self.verdict(NAMED[0], 443, Verdict::is_closed)?;
        ensure!(echoes(&mut flow), "the flow died with its address");
        self.ask("api.listed.example")?;
        self.verdict(NAMED[0], 443, Verdict::is_open)
    }

    /// Our sets in the kernel.
    fn sets(&self) -> Result<Vec<String>> {
        let all = self.rig.host().exec_ok(&["ipset", "list", "-n"])?;
        Ok(all.lines().filter(|set| set.starts_with("claw-i")).map(str::to_owned).collect())
    }

    fn agent_away(&self) -> Result<()> {
        let host = self.rig.host();
        let server = UnitProcess::of(host, "clawd-dns.service")?;
        let over = std::sync::atomic::AtomicBool::new(false);
        let asked = std::thread::scope(|scope| {
            let asking = scope.spawn(|| -> Result<usize> {
                let mut asked = 0;
                while !over.load(std::sync::atomic::Ordering::Relaxed) {
                    let answer = self.ask("deep.below.wild.example")?;
                    ensure!(answer.addresses == [NAMED[1]], "{answer:?}");
                    self.verdict(NAMED[1], 443, Verdict::is_open)?;
                    asked += 1;
                }
                Ok(asked)
            });
            let work = || -> Result<()> {
                UnitProcess::of(host, "clawd.service")?.signal(Signal::SIGKILL)?;
                host.exec_ok(&["systemctl", "stop", "clawd.service"])?;
                host.exec_ok(&["systemctl", "start", "clawd.service"])?;
                self.rig.fleet().until_online(host)?;
                self.rig.fleet().until_phase("listed", "running", PATIENCE).map(drop)
            };
            let worked = work();
            over.store(true, std::sync::atomic::Ordering::Relaxed);
            let asked = asking.join().map_err(|_| anyhow::anyhow!("it panicked"))?;
            worked.and(asked)
        })?;
        self.rig.note(&format!("  {asked} answers meanwhile"));
        ensure!(asked > 20, "only {asked} answers");
        ensure!(!server.is_gone(), "the name server was started anew");
        Ok(())
    }

    fn tighten(&self) -> Result<()> {
        self.ask("api.listed.example")?;
        self.ask("deep.below.wild.example")?;
        let mut kept = self.connect((NAMED[0], 443).into())?;
        let mut doomed = self.connect((NAMED[1], 443).into())?;
        ensure!(echoes(&mut kept) && echoes(&mut doomed), "they do not even begin");
        apply(self.rig, &list("enforced", &["*.listed.example"]))?;
        self.rig.fleet().until_firewall(self.rig.host())?;
        until(PATIENCE, "the flow to be cut", || Ok((!echoes(&mut doomed)).then_some(())))?;
        self.verdict(NAMED[1], 443, Verdict::is_closed)?;
        ensure!(echoes(&mut kept), "a flow that is allowed was cut");
        let refused = self.ask("deep.below.wild.example")?;
        ensure!(refused.code == 3, "{refused:?}");
        Ok(())
    }

    fn observe(&self) -> Result<()> {
        apply(self.rig, &list("observed", &["*.listed.example"]))?;
        self.rig.fleet().until_firewall(self.rig.host())?;
        let begun = now();
        let answer = until(PATIENCE, "the name server to know", || {
            let answer = self.ask("other.example")?;
            if answer.code == 0 { Ok(Some(answer)) } else { bail!("{answer:?}") }
        })?;
        ensure!(answer.addresses == [DOH], "{answer:?}");
        for _ in 0..3 {
            self.verdict(DOH, 443, Verdict::is_open)?;
            self.verdict(ELSEWHERE, 8443, Verdict::is_open)?;
        }
        // What is closed always, and denied ports, are closed all the same.
        self.verdict(ELSEWHERE, 25, Verdict::is_closed)?;
        self.verdict(self.inside.gateway, 22, Verdict::is_closed)?;
        let told = until(PATIENCE, "the proposal", || {
            let all = self.rig.fleet().firewall(self.rig.host())?;
            let text = all.to_string();
            let proposed = all.pointer("/instances/0/proposal").map(Value::to_string);
            let complete = proposed
                .is_some_and(|p| p.contains("other.example") && p.contains(&ELSEWHERE.to_string()));
            if complete { Ok(Some(all)) } else { bail!("{text}") }
        })?;
        let instance = &told["instances"][0];
        self.rig.note(&format!(
            "  after {:.1} s refused: {}\n  proposed: {}",
            begun.elapsed().as_secs_f32(),
            instance["refused"],
            instance["proposal"]
        ));
        let recorded = claw_tests::rig::list(&instance["refused"])?;
        let packets = recorded.iter().find(|entry| entry["address"] == ELSEWHERE.to_string());
        let packets = packets.and_then(|entry| entry["packets"].as_u64());
        ensure!(packets >= Some(1), "{recorded:#?}");
        Ok(())
    }
}

/// Whether a flow gives back what it is given.
fn echoes(flow: &mut TcpStream) -> bool {
    let mut buffer = [0; 4];
    let exchanged = flow.write_all(b"ping").and_then(|()| flow.read_exact(&mut buffer));
    exchanged.is_ok() && buffer == *b"ping"
}
