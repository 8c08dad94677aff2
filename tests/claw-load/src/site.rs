//! A coordinator to measure: the released program on a fresh fleet, on loopback.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::Instant;

/// Longest wait for a program to serve.
const SERVING: Duration = Duration::from_secs(60);
/// Longest wait for a program to end after SIGTERM; it drains for 20 s.
const ENDING: Duration = Duration::from_secs(60);
/// Ports below those that connections get by themselves.
const PORTS: std::ops::Range<u16> = 20_000..30_000;

/// A fleet's directory and the program that serves it.
#[derive(Debug)]
pub(crate) struct Site {
    program: PathBuf,
    dir: PathBuf,
    port: u16,
    child: Option<Child>,
}

impl Site {
    /// Makes a fleet with `claw-coordinator init`; nothing runs yet.
    pub(crate) async fn make(program: &Path, dir: &Path) -> Result<Self> {
        let (data, operator) = (dir.join("data"), dir.join("operator"));
        let made = Command::new(program)
            .args(["init", "--name", "localhost", "--operator", "load", "--out"])
            .arg(&operator)
            .arg("--data-dir")
            .arg(&data)
            .output()
            .await
            .with_context(|| format!("cannot run {}", program.display()))?;
        let said = String::from_utf8_lossy(&made.stderr);
        ensure!(made.status.success(), "init: {said}");
        let port = free_port()?;
        let config = format!(
            "listen = \"127.0.0.1:{port}\"\ndata_dir = {:?}\n",
            data.to_str().context("the directory is no text")?
        );
        std::fs::write(dir.join("coordinator.toml"), config)?;
        Ok(Self { program: program.to_owned(), dir: dir.to_owned(), port, child: None })
    }

    /// Starts the program; returns how long it took until it took connections.
    pub(crate) async fn start(&mut self) -> Result<Duration> {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir.join("coordinator.log"))?;
        let mut command = Command::new(&self.program);
        command.arg("--config").arg(self.dir.join("coordinator.toml")).stderr(log);
        let (child, took) = start(command, self.address()).await?;
        self.child = Some(child);
        Ok(took)
    }

    /// Its process.
    pub(crate) fn pid(&self) -> Result<u32> {
        self.child.as_ref().and_then(Child::id).context("the coordinator does not run")
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// The fleet's data directory.
    pub(crate) fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Directory of the operator's credentials.
    pub(crate) fn operator(&self) -> PathBuf {
        self.dir.join("operator")
    }

    /// As an administrator stops it.
    pub(crate) async fn stop(&mut self) -> Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        let pid = child.id().context("it has ended already")?;
        kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGTERM)?;
        let ended = tokio::time::timeout(ENDING, child.wait()).await;
        let status = ended.context("the coordinator does not end")??;
        ensure!(status.success(), "the coordinator ended with {status}");
        Ok(())
    }

    /// SIGKILL: nothing is said to anybody.
    pub(crate) async fn kill(&mut self) -> Result<()> {
        let Some(mut child) = self.child.take() else { bail!("the coordinator does not run") };
        Ok(child.kill().await?)
    }
}

/// Starts a server and waits until it takes connections; it dies with its handle.
pub(crate) async fn start(mut command: Command, address: SocketAddr) -> Result<(Child, Duration)> {
    let begun = Instant::now();
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true).spawn()?;
    loop {
        if TcpStream::connect(address).await.is_ok() {
            return Ok((child, begun.elapsed()));
        }
        if let Some(status) = child.try_wait()? {
            bail!("the server ended with {status}; see its log");
        }
        ensure!(begun.elapsed() < SERVING, "nobody serves on {address}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A port that nobody uses now.
pub(crate) fn free_port() -> Result<u16> {
    for _attempt in 0..100 {
        let port = rand::random_range(PORTS);
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port")
}
