//! A process that the lab started and that dies with it.
use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::Result;

/// A running process. Dropping it kills it (SIGKILL).
#[derive(Debug)]
pub struct Process {
    pid: i32,
    log: std::path::PathBuf,
}

impl Process {
    /// Its process id on the machine.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The file that its stdout and stderr go to.
    #[must_use]
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// What it has written so far (lossy UTF-8).
    #[must_use]
    pub fn log(&self) -> String {
        String::new()
    }

    /// Whether it has not ended.
    #[must_use]
    pub fn is_running(&self) -> bool {
        false
    }

    /// Sends a signal by number, such as 15; nothing happens when it has ended.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn signal(&self, signal: i32) -> Result<()> {
        anyhow::bail!("signal {signal}")
    }

    /// SIGKILL, and waits for its end.
    ///
    /// # Errors
    /// When it has not ended after ten seconds.
    pub fn kill(&self) -> Result<ExitStatus> {
        anyhow::bail!("kill")
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When the deadline passes first; the process goes on.
    pub fn wait(&self, deadline: Duration) -> Result<ExitStatus> {
        anyhow::bail!("{deadline:?}")
    }
}
