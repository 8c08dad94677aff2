//! The main process of a host's unit, signalled from the machine without any delay.
//!
//! A command on the host takes milliseconds to start, in which an agent does much.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use claw_lab::LabHost;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The main process of a unit, by its process id on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnitProcess(Pid);

impl UnitProcess {
    /// The process that systemd calls the unit's main one.
    ///
    /// # Errors
    /// When the host is off or the unit does not run.
    pub fn of(host: &LabHost, unit: &str) -> Result<Self> {
        let shown = host.exec_ok(&["systemctl", "show", "--property=MainPID", "--value", unit])?;
        let inside = shown.trim();
        if inside == "0" {
            bail!("{unit} does not run on {}", host.name());
        }
        let init = host.pid().context("the host is off")?;
        let namespace = fs::read_link(format!("/proc/{init}/ns/pid"))?;
        let pid = fs::read_dir("/proc")?
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
            .filter(|pid| id_inside(*pid).as_deref() == Some(inside))
            .find(|pid| {
                fs::read_link(format!("/proc/{pid}/ns/pid")).is_ok_and(|ns| ns == namespace)
            });
        let pid = pid.with_context(|| format!("no process of {unit} on this machine"))?;
        Ok(Self(Pid::from_raw(pid)))
    }

    /// Sends a signal at once.
    ///
    /// # Errors
    /// When it has ended.
    pub fn signal(self, signal: Signal) -> Result<()> {
        kill(self.0, signal).with_context(|| format!("cannot send {signal} to {}", self.0))
    }

    /// Whether it has ended.
    #[must_use]
    pub fn is_gone(self) -> bool {
        kill(self.0, None).is_err()
    }
}

/// A host's file as a path of this machine, while the host is on: for looks without any delay.
///
/// # Errors
/// When it is off.
pub fn outside(host: &LabHost, path: &str) -> Result<PathBuf> {
    let init = host.pid().context("the host is off")?;
    Ok(PathBuf::from(format!("/proc/{init}/root{path}")))
}

/// A process's id in its innermost namespace (`NSpid` of proc(5) `status`).
fn id_inside(pid: i32) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    ids.split_whitespace().last().map(str::to_owned)
}
