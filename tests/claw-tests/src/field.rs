//! A firewall under fire: connects without pause at everything that it closes, in and out, both families,
//! while something is done to it.
//!
//! Tests ask that nothing comes through, the bench prints how much does when nobody can help it.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use claw_lab::{Lab, LabHost, Netns, Network};
use serde_json::json;

use crate::barrage::{Barrage, Pace, Seen, Target};
use crate::clock::now;
use crate::dial::Verdict;
use crate::fleet::{Fleet, until};
use crate::ground::{ELSEWHERE, ELSEWHERE_V6, Ground, HOST_PORTS, Inside};
use crate::programs::PATIENCE;

/// The ground, and who fires from where at what.
#[derive(Debug)]
pub struct Field<'a> {
    fleet: &'a Fleet,
    host: &'a LabHost,
    /// A machine on the bridge of an instance.
    plug: Netns,
    egress: Vec<Target>,
    ingress: Vec<Target>,
}

/// What was seen while something was done.
#[derive(Debug)]
pub struct Fire {
    /// From an instance.
    pub egress: Seen,
    /// From a customer's machine.
    pub ingress: Seen,
}

/// Something that is done to the firewall by somebody who is not us.
#[derive(Debug, Clone, Copy)]
pub struct Attack {
    /// For tables.
    pub name: &'static str,
    /// The command.
    pub argv: &'static [&'static str],
}

/// What came of an attack.
#[derive(Debug)]
pub struct Healed {
    /// What came through.
    pub fire: Fire,
    /// From the attack's begin until our chains were called again.
    pub after: Duration,
    /// The attacker's process id on this machine, which is how the kernel calls it.
    pub attacker: i32,
    /// Messages of the repairs that were told of.
    pub told: Vec<String>,
}

/// As firewalld does when it is reloaded: everything is flushed, and everything restored that is not ours.
const RELOAD: &str = "for t in iptables ip6tables; do $t-save | grep -v CLAW- > /run/saved.$t; done
for t in iptables ip6tables; do for c in raw mangle security filter; do $t -w -t $c -F; done; done
sleep 0.2
for t in iptables ip6tables; do $t-restore < /run/saved.$t; done";

/// From what loses only the copy to what loses everything.
pub const ATTACKS: [Attack; 4] = [
    Attack { name: "iptables -F", argv: &["iptables", "-w", "-F"] },
    Attack { name: "iptables -t security -F", argv: &["iptables", "-w", "-t", "security", "-F"] },
    Attack { name: "nft flush ruleset", argv: &["nft", "flush", "ruleset"] },
    Attack { name: "flush, pause, restore of others", argv: &["sh", "-c", RELOAD] },
];

impl<'a> Field<'a> {
    /// A field around two instances that run.
    ///
    /// # Errors
    /// When one does not.
    pub fn prepare(
        fleet: &'a Fleet,
        host: &'a LabHost,
        ground: &Ground,
        instances: [&str; 2],
    ) -> Result<Self> {
        ground.plant(fleet.lab(), host)?;
        let [first, second] = instances;
        let (own, other) = (Inside::of(host, first)?, Inside::of(host, second)?);
        let plug = ground.plug(host, &own)?;
        let port = HOST_PORTS[1];
        let egress = vec![
            Target::new("a denied port", (ELSEWHERE, 25)),
            Target::new("a denied port, IPv6", (ELSEWHERE_V6, 25)),
            Target::new("another instance", (other.address, 18789)),
            Target::new("the host's SSH", (own.gateway, 22)),
        ];
        let ingress = vec![
            Target::new("a port of the host", (host.address(), port)),
            Target::new("a port of the host, IPv6", (host.address_v6(), port)),
            Target::new("an instance, routed", (own.address, 18789)),
        ];
        Ok(Self { fleet, host, plug, egress, ingress })
    }

    /// Fires while something is done.
    ///
    /// # Errors
    /// Those of `work`.
    pub fn during(&self, work: impl FnOnce() -> Result<()>) -> Result<Fire> {
        let client = self.lab().netns(Network::Client);
        let egress = Barrage::start(&self.plug, self.egress.clone(), Pace::CLOSED)?;
        let ingress = Barrage::start(client, self.ingress.clone(), Pace::CLOSED)?;
        work()?;
        Ok(Fire { egress: egress.stop()?, ingress: ingress.stop()? })
    }

    /// Fires while somebody does something to the firewall, until it is whole and the repair is told.
    ///
    /// # Errors
    /// When it is not repaired.
    pub fn attacked(&self, attack: Attack) -> Result<Healed> {
        let known = self.repairs()?.len();
        let (mut attacker, mut after) = (0, Duration::ZERO);
        let fire = self.during(|| {
            let begun = now();
            let process = self.host.spawn(attack.argv)?;
            attacker = process.pid();
            let ended = process.wait(PATIENCE)?;
            ensure!(ended.success(), "{}: {}", attack.name, process.log());
            until_hooked(self.host)?;
            after = begun.elapsed();
            until(PATIENCE, "the repair to be told", || {
                Ok((self.repairs()?.len() > known).then_some(()))
            })?;
            self.fleet.until_firewall(self.host).map(drop)
        })?;
        Ok(Healed { fire, after, attacker, told: self.repairs()?.split_off(known) })
    }

    /// Gives the host another policy, and waits until it is in force.
    ///
    /// # Errors
    /// When it does not come into force.
    pub fn replace(&self, round: u32) -> Result<()> {
        let extra = json!([{ "protocol": "tcp", "port": 30_000 + round }]);
        self.fleet.set_firewall(self.host, &json!({ "extra": extra }))?;
        self.fleet.until_firewall(self.host).map(drop)
    }

    /// Networks of somebody else come and go.
    ///
    /// # Errors
    /// When Docker refuses.
    pub fn churn(&self, times: usize) -> Result<()> {
        for round in 0..times {
            let name = format!("churn{round}");
            self.host.exec_ok(&["docker", "network", "create", &name])?;
            self.host.exec_ok(&["docker", "network", "rm", &name])?;
        }
        Ok(())
    }

    /// The filter is flushed and repaired, over and over.
    ///
    /// # Errors
    /// When it is not repaired.
    pub fn flush(&self, times: usize) -> Result<()> {
        for _ in 0..times {
            self.host.exec_ok(&["iptables", "-w", "-F"])?;
            self.host.exec_ok(&["ip6tables", "-w", "-F"])?;
            until_hooked(self.host)?;
        }
        Ok(())
    }

    /// Targets from the instance and from outside.
    #[must_use]
    pub fn targets(&self) -> [&[Target]; 2] {
        [&self.egress, &self.ingress]
    }

    /// Messages of all repairs that the host told of.
    fn repairs(&self) -> Result<Vec<String>> {
        let events = self.fleet.events(self.host)?;
        let repaired = events.iter().filter(|event| event["kind"] == "firewall_repaired");
        repaired
            .map(|event| event["message"].as_str().map(str::to_owned).context("no message"))
            .collect()
    }

    const fn lab(&self) -> &Lab {
        self.fleet.lab()
    }
}

impl Fire {
    /// Attempts that came through, in and out.
    #[must_use]
    pub fn leaks(&self) -> usize {
        self.egress.opened.len() + self.ingress.opened.len()
    }
}

impl Healed {
    /// Column titles of [`Self::line`].
    pub const TITLE: &'static str = "what was done                   egress: open, for   \
        ingress: open, for   amiss for   hooks seen";

    /// How long refusals were not as they should be, by the connects of an instance: without the copy
    /// they are dropped and not reset, without both they come through. Nothing was amiss when only the
    /// guarantee was gone.
    #[must_use]
    pub fn amiss_for(&self) -> Duration {
        self.fire.egress.amiss_for(Verdict::Refused)
    }

    /// One line of a table.
    #[must_use]
    pub fn line(&self, attack: Attack) -> String {
        let mut line = format!("{:30}", attack.name);
        for seen in [&self.fire.egress, &self.fire.ingress] {
            let _ = write!(line, "  {:7} {:8}", seen.opened.len(), millis(seen.open_for()));
        }
        let _ = write!(line, "  {:10}  {:10}", millis(self.amiss_for()), millis(self.after));
        line
    }
}

/// Waits until our chains are called from the filter and from the guarantee.
///
/// # Errors
/// With what is called instead, when a minute passes.
pub fn until_hooked(host: &LabHost) -> Result<()> {
    const HOOKS: &str = "for t in iptables ip6tables; do for c in raw security filter; do $t -w -t $c -S; done; done";
    let wanted =
        [("PREROUTING", "CLAW-PRE", 2), ("INPUT", "CLAW-IN", 4), ("FORWARD", "CLAW-FWD", 4)];
    until(PATIENCE, "the hooks to be back", || {
        let rules = host.exec_ok(&["sh", "-c", HOOKS])?;
        for (from, to, times) in wanted {
            let hook = format!("-A {from} -j {to}");
            let found = rules.lines().filter(|rule| **rule == *hook).count();
            if found != times {
                bail!("{found} times {hook}");
            }
        }
        Ok(Some(()))
    })
}

fn millis(length: Duration) -> String {
    format!("{:.0} ms", length.as_secs_f64() * 1000.0)
}
