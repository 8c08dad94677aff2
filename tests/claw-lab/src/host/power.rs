//! A host's power: off, cut, on again, reboot.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{LabHost, Running};

/// How long an orderly shutdown may take: systemd's own limit for a stop job.
const SHUTDOWN: Duration = Duration::from_secs(90);

/// Why a host stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StopCause {
    /// It shut down and powered off.
    PowerOff,
    /// It shut down and asked for a reboot.
    Reboot,
    /// Its power was cut.
    PowerCut,
    /// Its PID 1 ended otherwise.
    Crash,
}

impl LabHost {
    /// Shuts down in order, as the power button does; after 90 s the power is cut.
    ///
    /// # Errors
    /// When it does not even die of that.
    pub fn power_off(&self) -> Result<StopCause> {
        self.shut_down("poweroff")
    }

    /// Kills PID 1 and with it everything on the host, at once.
    ///
    /// # Errors
    /// When it does not die.
    pub fn power_cut(&self) -> Result<()> {
        let running = self.power().clone();
        if let Some(running) = running {
            running.init.kill()?;
            self.collect(&running)?;
        }
        Ok(())
    }

    /// Boots the host again on its own state.
    ///
    /// # Errors
    /// When it still runs or PID 1 cannot be started.
    pub fn boot_again(&self) -> Result<()> {
        let before = self.power().clone();
        if let Some(before) = before {
            if before.init.is_running() {
                bail!("host {} still runs", self.name());
            }
            self.collect(&before)?;
        }
        let running = self.start()?;
        *self.power() = Some(Arc::new(running));
        self.cut_again()
    }

    /// `systemctl reboot`: shuts down in order and boots again; returns when the new PID 1 runs.
    ///
    /// # Errors
    /// When the shutdown takes more than 90 s or the boot fails.
    pub fn reboot(&self) -> Result<()> {
        match self.shut_down("reboot")? {
            StopCause::Reboot => self.boot_again(),
            cause => bail!("host {} was to reboot, and stopped by {cause:?}", self.name()),
        }
    }

    /// Waits until the host stops by itself, for example after `systemctl poweroff`.
    ///
    /// # Errors
    /// When the deadline passes first.
    pub fn wait_for_stop(&self, deadline: Duration) -> Result<StopCause> {
        let running = self.power().clone();
        let running = running.with_context(|| format!("host {} is off", self.name()))?;
        let status = running.init.wait(deadline)?;
        self.collect(&running)?;
        Ok(cause(status))
    }

    fn shut_down(&self, verb: &str) -> Result<StopCause> {
        self.running()?;
        // The command may itself be killed by the shutdown; what counts is PID 1's end.
        let asked = self.exec(&["systemctl", "--no-wall", verb]);
        match self.wait_for_stop(SHUTDOWN) {
            Ok(cause) => Ok(cause),
            Err(late) => {
                self.power_cut()?;
                asked.context(late.to_string())?;
                Ok(StopCause::PowerCut)
            }
        }
    }

    /// After the end of PID 1: takes away its cable and control groups.
    fn collect(&self, ended: &Arc<Running>) -> Result<()> {
        let mut power = self.power();
        if power.as_ref().is_some_and(|current| Arc::ptr_eq(current, ended)) {
            self.unplug();
            ended.subtree.remove()?;
            *power = None;
        }
        Ok(())
    }
}

/// The init of a process namespace that calls reboot(2) is seen to die of SIGHUP when it asks for a
/// restart and of SIGINT when it asks to be switched off (`man 2 reboot`).
fn cause(status: ExitStatus) -> StopCause {
    match status.signal() {
        Some(1) => StopCause::Reboot,
        Some(2) => StopCause::PowerOff,
        Some(9) => StopCause::PowerCut,
        _ => StopCause::Crash,
    }
}
