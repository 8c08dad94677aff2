//! The floor beside every figure of a fleet: raw rustls echo, with the same certificates, in the same run.
//!
//! A change to every host becomes 2 KB there and back on every connection, a heartbeat 200 bytes, a reconnect
//! storm the same back-off with nothing but a handshake behind it.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use claw_core::backoff::{Backoff, RECONNECT};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::sync::Mutex;
use tokio::time::Instant;
use tokio_rustls::client::TlsStream;

use crate::agent::Agent;
use crate::api::each;
use crate::figures::{Figures, number, progress, quantile};
use crate::fleet::{Arguments, RAMP, SETTLE};
use crate::process::Usage;
use crate::site::{self, Site};
use crate::wire;

/// Bytes of a desired state.
const STATE: usize = 2048;
/// Bytes of a heartbeat with its status, about.
const BEAT: usize = 400;

type Connections = Arc<Vec<Mutex<TlsStream<TcpStream>>>>;

/// A running echo.
struct Floor {
    site_dir: std::path::PathBuf,
    port: u16,
    child: Child,
}

/// Measures everything of the fleet that the echo has too.
pub(crate) async fn run(
    site: &Site,
    agents: &Arc<Vec<Agent>>,
    arguments: &Arguments,
    figures: &mut Figures,
) -> Result<()> {
    progress("the floor: raw rustls");
    let mut floor = Floor::start(site).await?;
    let base = floor.usage()?;
    let begun = Instant::now();
    let connections = Arc::new(connect(agents, floor.address(), RAMP).await?);
    let count = number(agents.len());
    figures.note("floor_connects_per_s", count / begun.elapsed().as_secs_f64());
    let connected = floor.usage()?;
    figures.note("floor_connect_cpu_ms", (connected.cpu - base.cpu) / count * 1e3);
    tokio::time::sleep(SETTLE).await;
    let idle = floor.usage()?;
    figures.note("floor_rss_idle_kib", (idle.rss_kib - base.rss_kib) / count);
    beats(&connections, &floor, arguments, figures).await?;
    let mut rounds = Vec::new();
    for _round in 0..arguments.rounds {
        let begun = Instant::now();
        echo_all(&connections, 256, STATE).await?;
        rounds.push(begun.elapsed().as_secs_f64());
    }
    figures.note("floor_push_all_s", quantile(&rounds, 0.5));
    let pushed = floor.usage()?;
    figures.note("floor_rss_pushed_kib", (pushed.rss_kib - base.rss_kib) / count);
    let mut singles = Vec::new();
    for (_turn, connection) in (0..arguments.singles).zip(connections.iter().cycle()) {
        let begun = Instant::now();
        echo(connection, STATE).await?;
        singles.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    figures.note("floor_push_one_p50_ms", quantile(&singles, 0.5));
    figures.note("floor_push_one_p99_ms", quantile(&singles, 0.99));
    drop(connections);
    let begun = Instant::now();
    floor.child.kill().await?;
    floor = Floor::start(site).await?;
    connect_all_at_once(agents, floor.address()).await?;
    figures.note("floor_storm_s", begun.elapsed().as_secs_f64());
    Ok(())
}

impl Floor {
    async fn start(site: &Site) -> Result<Self> {
        let (port, site_dir) = (site::free_port()?, site.data_dir());
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("echo-server").arg("--data-dir").arg(&site_dir);
        command.arg("--port").arg(port.to_string());
        let (child, _took) = site::start(command, (Ipv4Addr::LOCALHOST, port).into()).await?;
        Ok(Self { site_dir, port, child })
    }

    fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    fn usage(&self) -> Result<Usage> {
        let pid = self.child.id();
        Usage::of(pid.with_context(|| format!("no echo of {}", self.site_dir.display()))?)
    }
}

/// A connection for every agent, so many at a time.
async fn connect(
    agents: &Arc<Vec<Agent>>,
    address: SocketAddr,
    at_once: usize,
) -> Result<Vec<Mutex<TlsStream<TcpStream>>>> {
    let all = Arc::clone(agents);
    let connected = each(agents.len(), at_once, move |number| {
        let all = Arc::clone(&all);
        async move {
            let agent = all.get(number).context("no such agent")?;
            let stream = wire::handshake(agent.source, address, Arc::clone(&agent.tls)).await?;
            let stream = Mutex::new(stream);
            // The server has accepted the certificate when it answers.
            echo(&stream, 1).await?;
            Ok(stream)
        }
    });
    connected.await
}

/// Every agent comes back with its own jitter, until it is in.
async fn connect_all_at_once(agents: &Arc<Vec<Agent>>, address: SocketAddr) -> Result<()> {
    let all = Arc::clone(agents);
    let back = each(agents.len(), agents.len(), move |number| {
        let all = Arc::clone(&all);
        async move {
            let agent = all.get(number).context("no such agent")?;
            let mut backoff = Backoff::new(RECONNECT);
            loop {
                tokio::time::sleep(backoff.next_delay(rand::random())).await;
                let tls = Arc::clone(&agent.tls);
                if let Ok(stream) = wire::handshake(agent.source, address, tls).await {
                    let stream = Mutex::new(stream);
                    if echo(&stream, 1).await.is_ok() {
                        return Ok(stream);
                    }
                }
            }
        }
    });
    back.await.map(drop)
}

/// Every connection echoes a heartbeat's worth of bytes at the interval, for the idle time.
async fn beats(
    connections: &Connections,
    floor: &Floor,
    arguments: &Arguments,
    figures: &mut Figures,
) -> Result<()> {
    let interval = Duration::from_secs(10);
    let (before, begun) = (floor.usage()?, Instant::now());
    let until = begun + Duration::from_secs(arguments.idle);
    let all = Arc::clone(connections);
    let beating = each(connections.len(), connections.len(), move |number| {
        let all = Arc::clone(&all);
        async move {
            let connection = all.get(number).context("no such connection")?;
            let mut next = Instant::now() + interval.mul_f64(rand::random());
            while next < until {
                tokio::time::sleep_until(next).await;
                echo(connection, BEAT).await?;
                next += interval;
            }
            Ok(())
        }
    });
    beating.await?;
    tokio::time::sleep_until(until).await;
    let cpu = floor.usage()?.cpu - before.cpu;
    figures.note("floor_heartbeat_cpu_percent", cpu / begun.elapsed().as_secs_f64() * 100.0);
    Ok(())
}

async fn echo_all(connections: &Connections, at_once: usize, bytes: usize) -> Result<()> {
    let all = Arc::clone(connections);
    let echoed = each(connections.len(), at_once, move |number| {
        let all = Arc::clone(&all);
        async move { echo(all.get(number).context("no such connection")?, bytes).await }
    });
    echoed.await.map(drop)
}

async fn echo(connection: &Mutex<TlsStream<TcpStream>>, bytes: usize) -> Result<()> {
    let mut stream = connection.lock().await;
    let mut buffer = vec![0; bytes];
    stream.write_all(&buffer).await?;
    stream.flush().await?;
    stream.read_exact(&mut buffer).await?;
    Ok(())
}
