//! Kills the programs that the agent works with, at moments that last a few milliseconds only.
//!
//! Moments are seen from this machine, in the host's files and processes: a command on the host would come too
//! late. What becomes of the instance then is for the tests to look at.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use claw_lab::LabHost;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::fleet::until;
use crate::programs::PATIENCE;
use crate::unit::UnitProcess;

/// Docker may be killed as often as a test likes, and is back soon.
const DOCKER_DROP_IN: &str = "[Unit]\nStartLimitIntervalSec=0\n[Service]\nRestartSec=100ms\n";
/// Within this a program that was killed is gone.
const GONE: Duration = Duration::from_secs(10);

/// Looks a thousand times a second until something is so, for a minute at most.
///
/// # Errors
/// When it never is, or cannot be looked at.
pub fn at(what: &str, mut there: impl FnMut() -> Result<bool>) -> Result<()> {
    for _ in 0..PATIENCE.as_millis() {
        if there()? {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    bail!("waited in vain for {what}")
}

/// dockerd of a host.
#[derive(Debug, Clone, Copy)]
pub struct Dockerd<'a>(&'a LabHost);

impl<'a> Dockerd<'a> {
    /// Has its unit start it again at once, however often it ends.
    ///
    /// # Errors
    /// When the host is off.
    pub fn of(host: &'a LabHost) -> Result<Self> {
        let place = "/etc/systemd/system/docker.service.d/test.conf";
        host.write_file(place, 0o644, DOCKER_DROP_IN.as_bytes())?;
        host.exec_ok(&["systemctl", "daemon-reload"])?;
        Ok(Self(host))
    }

    /// The process that is to be killed: found beforehand, so that the kill takes no time.
    ///
    /// # Errors
    /// When it does not run.
    pub fn process(self) -> Result<UnitProcess> {
        self.0.wait_until_active("docker.service", PATIENCE)?;
        UnitProcess::of(self.0, "docker.service")
    }

    /// Waits until a killed one is gone, and the next one answers.
    ///
    /// # Errors
    /// When it does not within a minute.
    pub fn until_back(self, killed: UnitProcess) -> Result<()> {
        until(GONE, "dockerd to be dead", || Ok(killed.is_gone().then_some(())))?;
        until(PATIENCE, "dockerd to be back", || {
            Ok(self.0.exec(&["docker", "version"])?.success().then_some(()))
        })
    }
}

/// The processes on a host that do jobs on snapshots, by their process ids on this machine.
///
/// # Errors
/// When the host is off.
pub fn snapshot_workers(host: &LabHost) -> Result<Vec<Pid>> {
    let init = host.pid().context("the host is off")?;
    let namespace = fs::read_link(format!("/proc/{init}/ns/pid"))?;
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let process = entry.path();
        let words = fs::read(process.join("cmdline")).unwrap_or_default();
        let is_worker = words.split(|byte| *byte == 0).any(|word| word == b"snap-worker");
        if is_worker && fs::read_link(process.join("ns/pid")).is_ok_and(|ns| ns == namespace) {
            let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
            found.extend(pid.map(Pid::from_raw));
        }
    }
    Ok(found)
}

/// kill -9 of all of them; how many there were.
///
/// # Errors
/// When the host is off.
pub fn kill_snapshot_workers(host: &LabHost) -> Result<usize> {
    let workers = snapshot_workers(host)?;
    // One that has ended meanwhile has not been killed.
    Ok(workers.into_iter().filter(|pid| kill(*pid, Signal::SIGKILL).is_ok()).count())
}

/// How many files there are below a directory; those that go meanwhile count or not.
#[must_use]
pub fn files_below(dir: &Path) -> usize {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let count = |entry: fs::DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => files_below(&entry.path()),
        _ => 1,
    };
    entries.map(count).sum()
}
