//! sshd's log: the journal, or `/var/log/auth.log` where there is no journal.
//!
//! What it is for: failures as they happen, from a child that follows the log (`journalctl --follow`,
//! or `tail --follow=name`, which outlives the rotation of the file). What it deliberately does not do:
//! count, ban, read what was logged before. Where to start: [`SystemLoginLog`].
//!
//! Of the journal only what root's sshd wrote counts: no other user can have somebody banned by writing
//! a line. From OpenSSH 9.8 on (trixie) sessions are a program of their own, `sshd-session`. Anybody who
//! may write to the system's log through syslog(3) could forge a line of auth.log, as with fail2ban.

use std::path::{Path, PathBuf};
use std::time::Duration;

use claw_core::firewall::brute_force::login_failure;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use crate::adapters::command::{self, Following};
use crate::ports::{LoginFailure, LoginLog};

/// Failures that wait to be taken; more come at once only when a whole network attacks.
const QUEUE: usize = 256;
/// Before the log is followed again, first and at most.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What follows the journal.
const JOURNAL: [&str; 7] = [
    "journalctl",
    "--follow",
    "--lines=0",
    "--output=cat",
    "_UID=0",
    "_COMM=sshd",
    "_COMM=sshd-session",
];

/// sshd's log on this system.
#[derive(Debug, Clone)]
pub struct SystemLoginLog {
    journals: Vec<PathBuf>,
    file: PathBuf,
}

impl Default for SystemLoginLog {
    /// Where Debian and Ubuntu keep it.
    fn default() -> Self {
        let journals = ["/run/log/journal", "/var/log/journal"].map(PathBuf::from).to_vec();
        Self { journals, file: PathBuf::from("/var/log/auth.log") }
    }
}

impl SystemLoginLog {
    /// A log that is this file, for systems without a journal.
    #[must_use]
    pub fn of_file(file: &Path) -> Self {
        Self { journals: Vec::new(), file: file.to_owned() }
    }

    fn follow(&self) -> Result<Following, command::CommandError> {
        if self.journals.iter().any(|journal| journal.is_dir()) {
            return command::follow(&JOURNAL);
        }
        let file = self.file.to_string_lossy();
        // `--retry`: the file may come later.
        command::follow(&["tail", "--follow=name", "--retry", "--lines=0", "--", &file])
    }
}

impl LoginLog for SystemLoginLog {
    fn failures(&self) -> mpsc::Receiver<LoginFailure> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        tokio::spawn(tell(self.clone(), sender));
        receiver
    }
}

/// Tells failures until nobody takes them any more.
async fn tell(log: SystemLoginLog, failures: mpsc::Sender<LoginFailure>) {
    let mut pause = FIRST_PAUSE;
    loop {
        tokio::select! {
            () = failures.closed() => return,
            told = read(&log, &failures) => {
                if told > 0 {
                    pause = FIRST_PAUSE;
                }
            }
        }
        tokio::select! {
            () = failures.closed() => return,
            () = tokio::time::sleep(pause) => {}
        }
        pause = LONGEST_PAUSE.min(pause * 2);
    }
}

/// Reads the log until it cannot be read on; returns how many lines came.
async fn read(log: &SystemLoginLog, failures: &mpsc::Sender<LoginFailure>) -> u64 {
    let mut following = match log.follow() {
        Ok(following) => following,
        Err(error) => {
            tracing::warn!(error = %crate::logging::chain(&error), "logins are not followed");
            return 0;
        }
    };
    let (mut lines, mut dropped) = (0_u64, 0_u64);
    loop {
        match following.next_line().await {
            Ok(Some(line)) => {
                lines = lines.saturating_add(1);
                let Some(source) = login_failure(&line) else { continue };
                match failures.try_send(LoginFailure { source }) {
                    Ok(()) if dropped > 0 => {
                        tracing::warn!(dropped, "failed logins came faster than they were counted");
                        dropped = 0;
                    }
                    Ok(()) => {}
                    Err(TrySendError::Full(_) | TrySendError::Closed(_)) => {
                        dropped = dropped.saturating_add(1);
                    }
                }
            }
            Ok(None) => break,
            Err(error) => {
                tracing::warn!(%error, "the log of logins cannot be read");
                break;
            }
        }
    }
    tracing::debug!(lines, "the log of logins ended");
    lines
}
