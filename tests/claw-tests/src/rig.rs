//! A fleet with hosts to try things on, and a readable transcript of what was done to them.
//!
//! Every test walks through [`Rig::step`]s. When one fails, the state of all machines is printed: what
//! to look at first is in [`diagnosis`].

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use claw_lab::{Cache, HostOptions, Image, Lab, LabHost, progress};

use crate::docker::Docker;
use crate::fleet::Fleet;
use crate::programs::{self, Programs};

/// Heartbeats every second: what changes is reported soon, and three missed ones make a host offline.
pub const QUICK: &str = "[session]\nheartbeat_seconds = 1\n";

/// Lines of every log that are shown of a failure.
const SHOWN: usize = 60;

/// A fleet, its hosts, and the fake gateway's image.
#[derive(Debug)]
pub struct Rig {
    start: Instant,
    image: Image,
    hosts: Vec<LabHost>,
    // Last: the hosts live in its lab.
    fleet: Fleet,
}

impl Rig {
    /// A coordinator and one host, joined, with the fake gateway's image; heartbeats are [`QUICK`].
    ///
    /// # Errors
    /// When a part does not come up.
    pub fn start(name: &str) -> Result<Self> {
        Self::with(name, QUICK, &[HostOptions::named("h1")])
    }

    /// With more lines for the coordinator's configuration, and hosts that boot side by side.
    ///
    /// # Errors
    /// When a part does not come up.
    pub fn with(name: &str, settings: &str, hosts: &[HostOptions]) -> Result<Self> {
        let mut rig = Self::without_hosts(name, settings)?;
        let options: Vec<_> =
            hosts.iter().map(|host| host.clone().with_image(&rig.image)).collect();
        let what = format!("{} host(s) boot, get the package and join", options.len());
        let booted = rig.step(&what, || {
            std::thread::scope(|scope| {
                let fleet = &rig.fleet;
                let boots: Vec<_> =
                    options.into_iter().map(|host| scope.spawn(|| fleet.host(host))).collect();
                let booted = boots.into_iter().map(|boot| {
                    boot.join().map_err(|_| anyhow::anyhow!("a booting thread panicked"))?
                });
                booted.collect::<Result<Vec<_>>>()
            })
        })?;
        rig.hosts = booted;
        Ok(rig)
    }

    /// Only a coordinator.
    ///
    /// # Errors
    /// When it does not come up.
    #[expect(clippy::disallowed_methods, reason = "transcripts show real time")]
    pub fn without_hosts(name: &str, settings: &str) -> Result<Self> {
        let start = Instant::now();
        let cache = Cache::open(progress::terminal())?;
        let image = programs::fake_image(&cache, "test")?;
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let lab = Lab::start(name, &cache)?;
        let fleet = Fleet::start_with(lab, Programs::of_tests()?, any, settings)?;
        let rig = Self { start, image, hosts: Vec::new(), fleet };
        rig.note("a coordinator is up");
        Ok(rig)
    }

    /// The fleet.
    #[must_use]
    pub const fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    /// The fake gateway's image.
    #[must_use]
    pub const fn image(&self) -> &Image {
        &self.image
    }

    /// All hosts.
    #[must_use]
    pub fn hosts(&self) -> &[LabHost] {
        &self.hosts
    }

    /// The only, or first, host.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    #[expect(clippy::expect_used, reason = "a test without hosts asks for none")]
    pub fn host(&self) -> &LabHost {
        self.hosts.first().expect("this rig has no host")
    }

    /// One more host, whose failures are shown too.
    pub fn add(&mut self, host: LabHost) {
        self.hosts.push(host);
    }

    /// Docker of the only, or first, host.
    ///
    /// # Errors
    /// When it is off.
    pub fn docker(&self) -> Result<Docker> {
        Docker::of(self.host())
    }

    /// One step of a test, named in the transcript.
    ///
    /// # Errors
    /// The step's own, with its name; the state of all machines is printed then, and when it panics.
    pub fn step<T>(&self, what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.note(what);
        // Nothing that a failed step has left half done is looked at but by people.
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        if !matches!(outcome, Ok(Ok(_))) {
            self.note(&format!("FAILED: {what}; what the machines say:"));
            say(&diagnosis(self));
        }
        match outcome {
            Ok(outcome) => outcome.with_context(|| format!("step failed: {what}")),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// A line of the transcript.
    pub fn note(&self, what: &str) {
        say(&format!("[{:6.1} s] {what}", self.start.elapsed().as_secs_f32()));
    }
}

/// What the coordinator and every host say of themselves.
#[must_use]
pub fn diagnosis(rig: &Rig) -> String {
    let mut text = String::new();
    section(&mut text, "coordinator", &rig.fleet.coordinator_log());
    for command in [["host", "list"], ["list", "--output=yaml"]] {
        let said = rig.fleet.clawctl(&command).map(|out| out.stdout + &out.stderr);
        section(&mut text, &format!("clawctl {}", command.join(" ")), &said.unwrap_or_default());
    }
    for host in &rig.hosts {
        let commands: [&[&str]; 5] = [
            &["journalctl", "--no-pager", "-b", "-o", "short-precise", "-u", "clawd", "-n", "60"],
            &["journalctl", "--no-pager", "-b", "-u", "claw-coordinator", "-n", "30"],
            &["journalctl", "--no-pager", "-b", "-o", "short-precise", "-u", "docker", "-n", "20"],
            &["timeout", "5", "docker", "ps", "-a", "--no-trunc"],
            &["systemctl", "--no-pager", "--failed"],
        ];
        for argv in commands {
            let said = host.exec_with(argv, b"", Duration::from_secs(10));
            let said =
                said.map_or_else(|error| format!("{error:#}"), |out| out.stdout + &out.stderr);
            section(&mut text, &format!("{}: {}", host.name(), argv.join(" ")), &said);
        }
    }
    text
}

fn section(text: &mut String, title: &str, content: &str) {
    let lines: Vec<&str> = content.lines().collect();
    let shown = lines.get(lines.len().saturating_sub(SHOWN)..).unwrap_or_default();
    let _ = writeln!(text, "---- {title}\n{}", shown.join("\n"));
}

#[expect(clippy::print_stdout, reason = "the transcript of a test")]
fn say(text: &str) {
    println!("{text}");
}

/// JSON of a list that must be there.
///
/// # Errors
/// When it is no list.
pub fn list(value: &serde_json::Value) -> Result<&[serde_json::Value]> {
    value.as_array().map(Vec::as_slice).with_context(|| format!("no list: {value}"))
}
