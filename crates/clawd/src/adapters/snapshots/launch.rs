//! Starting the process of a job, and finding out how it ended.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use super::{DirectLauncher, Launcher, Sockets};
use crate::adapters::command;
use crate::logging::chain;
use crate::snap_worker::protocol::{OUT_OF_MEMORY, Reach};

/// How long a process may take to end after it said its last word.
const ENDING: Duration = Duration::from_secs(5);
/// How long the service manager may take to say something.
const ANSWER: Duration = Duration::from_secs(10);

/// How often, and in what intervals, the service manager is asked whether a process has ended.
const TRIES: u32 = 50;
const PAUSE: Duration = Duration::from_millis(100);
/// Whoever sends this signal is the kernel, or a person.
const SIGKILL: i32 = 9;
/// What is said then.
const KILLED: &str = "it was killed by signal 9, by the kernel for want of memory or by somebody";

/// A process that was started.
#[derive(Debug)]
pub(super) enum Launched {
    /// By the service manager; its unit, once it has said it.
    Unit(Option<String>),
    /// Killed when this is dropped.
    Child(Box<Child>),
}

/// Starts a process; it reads its job from the socket.
pub(super) async fn launch(
    launcher: &Launcher,
    reach: Reach,
) -> io::Result<(UnixStream, Launched)> {
    match launcher {
        Launcher::Systemd(sockets) => {
            let connected = connect(sockets.of(reach)).await;
            Ok((connected?, Launched::Unit(None)))
        }
        Launcher::Direct(direct) => spawn(direct),
    }
}

impl Sockets {
    fn of(&self, reach: Reach) -> &Path {
        match reach {
            Reach::Host => &self.host,
            Reach::Network => &self.network,
        }
    }
}

impl Launched {
    /// How it ended, in words; it is ended if it has not done so by now.
    pub(super) async fn end(self, last_words: &str) -> String {
        let how = match self {
            Self::Child(mut child) => {
                let status = timeout(ENDING, child.wait()).await;
                match status {
                    Ok(Ok(status)) => describe(status, last_words),
                    Ok(Err(error)) => format!("nobody knows how: {error}"),
                    Err(_late) => "it closed its socket and went on".to_owned(),
                }
            }
            Self::Unit(None) => {
                "it never began; see the journal of clawd-snapshots@ or clawd-offsite@".to_owned()
            }
            Self::Unit(Some(unit)) => result_of(&unit).await,
        };
        let last_words = last_words.trim();
        if last_words.is_empty() { how } else { format!("{how}; it said: {last_words}") }
    }

    /// Ends it now. One that the service manager started ends when its socket closes as well; this is for one
    /// that hangs.
    pub(super) async fn kill(self) {
        match self {
            Self::Child(mut child) => _ = child.kill().await,
            Self::Unit(None) => {}
            Self::Unit(Some(unit)) => {
                let argv = ["systemctl", "kill", "--signal=SIGKILL", &unit];
                if let Err(error) = command::run(&argv, ANSWER).await {
                    tracing::warn!(error = chain(&error), unit, "a job's process was not killed");
                }
                // How it ended is known: it was killed.
                let _how = result_of(&unit).await;
            }
        }
    }

    /// Waits until a process that has said its last word is gone, so that the next one finds everything free.
    pub(super) async fn gone(self) {
        if let Self::Child(mut child) = self {
            // Killed when it is dropped.
            let _late = timeout(ENDING, child.wait()).await;
        }
    }
}

async fn connect(socket: &Path) -> io::Result<UnixStream> {
    let connected = timeout(ANSWER, UnixStream::connect(socket)).await;
    connected.unwrap_or_else(|_late| Err(io::ErrorKind::TimedOut.into()))
}

fn spawn(direct: &DirectLauncher) -> io::Result<(UnixStream, Launched)> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let theirs = OwnedFd::from(theirs);
    let child = Command::new(&direct.program)
        .arg("snap-worker")
        .env_clear()
        // An arena for each thread would count against the limit.
        .env("MALLOC_ARENA_MAX", "1")
        .stdin(Stdio::from(theirs.try_clone()?))
        .stdout(Stdio::from(theirs.try_clone()?))
        .stderr(Stdio::from(theirs))
        .kill_on_drop(true)
        .spawn()?;
    Ok((UnixStream::from_std(ours)?, Launched::Child(Box::new(child))))
}

fn describe(status: ExitStatus, last_words: &str) -> String {
    if last_words.contains("memory allocation of") {
        return OUT_OF_MEMORY.to_owned();
    }
    match status.signal() {
        Some(SIGKILL) => KILLED.to_owned(),
        Some(signal) => format!("it was killed by signal {signal}"),
        None => status.to_string(),
    }
}

/// How a unit ended (`Result` of systemd.exec(5), `$SERVICE_RESULT`). The service manager hears of the end of
/// a process a little later than whoever had the other end of its socket.
async fn result_of(unit: &str) -> String {
    let argv = ["systemctl", "show", "--property=ActiveState,Result,ExecMainStatus", unit];
    let mut tries = 0;
    let shown = loop {
        match command::run(&argv, ANSWER).await {
            Err(error) => return format!("nobody knows how: {}", chain(&error)),
            Ok(shown) if value(&shown, "ActiveState=") == "active" && tries < TRIES => {}
            Ok(shown) => break shown,
        }
        tries += 1;
        sleep(PAUSE).await;
    };
    forgive(unit).await;
    match (value(&shown, "Result="), value(&shown, "ExecMainStatus=")) {
        ("oom-kill", _) => OUT_OF_MEMORY.to_owned(),
        // Of control groups of version 1 the service manager does not learn more than this.
        ("signal", "9") => KILLED.to_owned(),
        ("signal" | "core-dump", signal) => format!("it was killed by signal {signal}"),
        (result, status) => format!("result {result}, status {status}"),
    }
}

fn value<'a>(shown: &'a str, name: &str) -> &'a str {
    shown.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default()
}

/// A failed job does not make the host a degraded one.
async fn forgive(unit: &str) {
    if let Err(error) = command::run(&["systemctl", "reset-failed", unit], ANSWER).await {
        tracing::debug!(error = chain(&error), unit, "not in the list of failed units");
    }
}
