//! The record of the running demo: which process it is, and what it told the user.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use claw_tests::fleet::until;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// A demo that was started. A process id alone may be another process by now; with the time at which
/// it was started (field 22 of proc(5) `stat`) it names one for ever.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) pid: i32,
    started: u64,
    /// What it told the user; empty until it serves.
    pub(super) banner: String,
}

impl Record {
    /// Where the log of a detached demo is.
    pub(super) fn log_path() -> PathBuf {
        super::place("demo.log")
    }

    fn path() -> PathBuf {
        super::place("demo.json")
    }

    /// The demo that runs now, if one does.
    pub(super) fn of_live() -> Result<Option<Self>> {
        let Ok(text) = std::fs::read_to_string(Self::path()) else { return Ok(None) };
        let Ok(value) = serde_json::from_str::<Value>(&text) else { return Ok(None) };
        let pid = value["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
        let (Some(pid), Some(started)) = (pid, value["started"].as_u64()) else { return Ok(None) };
        let banner = value["banner"].as_str().unwrap_or_default().to_owned();
        let live = start_time(pid) == Some(started);
        Ok(live.then_some(Self { pid, started, banner }))
    }

    /// Whether it is this process.
    pub(super) fn is_own(&self) -> bool {
        u32::try_from(self.pid) == Ok(std::process::id())
    }

    /// Records this process as the demo.
    pub(super) fn claim() -> Result<()> {
        Self::write("")
    }

    /// Records what was told to the user: from now on it serves.
    pub(super) fn publish(banner: &str) -> Result<()> {
        Self::write(banner)
    }

    /// Removes the record; gone is success.
    pub(super) fn remove() -> Result<()> {
        match std::fs::remove_file(Self::path()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).context("cannot remove the demo's record")
            }
            _ => Ok(()),
        }
    }

    /// Asks it to end; kills it when it has not after `deadline`.
    pub(super) fn end(&self, deadline: Duration) -> Result<()> {
        let pid = Pid::from_raw(self.pid);
        let gone = || Ok((start_time(self.pid) != Some(self.started)).then_some(()));
        kill(pid, Signal::SIGTERM).context("cannot signal the demo")?;
        if until(deadline, "the demo to end", gone).is_err() {
            kill(pid, Signal::SIGKILL).context("cannot kill the demo")?;
            until(deadline, "the demo to be killed", gone)?;
        }
        Ok(())
    }

    fn write(banner: &str) -> Result<()> {
        let pid = i32::try_from(std::process::id())?;
        let started = start_time(pid).context("cannot read /proc/self/stat")?;
        let path = Self::path();
        std::fs::create_dir_all(path.parent().context("no directory")?)?;
        let text = json!({ "pid": pid, "started": started, "banner": banner }).to_string();
        let draft = path.with_extension("new");
        std::fs::write(&draft, text)?;
        std::fs::rename(draft, path).context("cannot write the demo's record")
    }
}

/// When a process was started, in clock ticks since boot; `None` when it has ended.
fn start_time(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; fields are counted after its end.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let zombie = fields.next() == Some("Z");
    fields.nth(18)?.parse().ok().filter(|_| !zombie)
}
