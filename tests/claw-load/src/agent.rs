//! One simulated agent: everything that clawd says and answers on the wire, and nothing behind it.
//!
//! It dials with its own key and certificate, greets with what it has "persisted" (in memory), acknowledges each
//! desired state with a Status, sends heartbeat and Status at the interval that Welcome sets, and comes back
//! with clawd's own decorrelated jitter, or when it is told to. A state that goes back, which an agent would
//! refuse, is counted.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use claw_core::backoff::{Backoff, RECONNECT};
use claw_proto::node::v1::node_service_client::NodeServiceClient;
use claw_proto::node::v1::session_request::Message as Up;
use claw_proto::node::v1::session_response::Message as Down;
use claw_proto::node::v1::{self as node};
use rustls::ClientConfig;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::wire;

/// How long a Welcome may take; clawd's own bound.
const WELCOME: Duration = Duration::from_secs(30);

/// What all agents share: counters, and how many may dial at once while the fleet is being made.
#[derive(Debug)]
pub(crate) struct Board {
    /// Agents that have been welcomed and are connected.
    pub(crate) connected: AtomicUsize,
    /// Desired states acknowledged so far.
    pub(crate) acknowledged: AtomicUsize,
    /// States that went back, or that differ under one stamp: must stay 0.
    pub(crate) backwards: AtomicUsize,
    /// Attempts to connect that failed.
    pub(crate) failed: AtomicUsize,
    /// Permits for the first dial.
    ramp: Semaphore,
}

impl Board {
    /// At most `ramp` first dials at once.
    pub(crate) fn new(ramp: usize) -> Arc<Self> {
        Arc::new(Self {
            connected: AtomicUsize::new(0),
            acknowledged: AtomicUsize::new(0),
            backwards: AtomicUsize::new(0),
            failed: AtomicUsize::new(0),
            ramp: Semaphore::new(ramp),
        })
    }
}

/// A simulated host.
#[derive(Debug, Clone)]
pub(crate) struct Agent {
    /// Its name.
    pub(crate) host: String,
    /// Its one instance.
    pub(crate) instance: String,
    /// Where it dials from.
    pub(crate) source: IpAddr,
    /// With its own key and certificate.
    pub(crate) tls: Arc<ClientConfig>,
}

/// What an agent would have on disk.
#[derive(Debug, Default)]
struct Held {
    persisted: Option<node::Stamp>,
}

/// Counts an agent as connected for as long as it lives.
struct Connected<'a>(&'a Board);

impl<'a> Connected<'a> {
    fn on(board: &'a Board) -> Self {
        board.connected.fetch_add(1, Ordering::Relaxed);
        Self(board)
    }
}

impl Drop for Connected<'_> {
    fn drop(&mut self) {
        self.0.connected.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Why a session is over, and when the coordinator wants to see the agent again.
struct Over {
    retry_after: Option<Duration>,
}

impl Agent {
    /// Connects, and connects again, until it is dropped.
    pub(crate) async fn run(self, target: SocketAddr, board: Arc<Board>) {
        let mut backoff = Backoff::new(RECONNECT);
        let mut held = Held::default();
        let mut permit = board.ramp.acquire().await.ok();
        loop {
            let over = self.session(target, &board, &mut held, || drop(permit.take())).await;
            let retry_after = over.map_or_else(
                |_error| {
                    board.failed.fetch_add(1, Ordering::Relaxed);
                    None
                },
                |over| over.retry_after,
            );
            let jittered = backoff.next_delay(rand::random());
            tokio::time::sleep(retry_after.map_or(jittered, spread)).await;
        }
    }

    async fn session(
        &self,
        target: SocketAddr,
        board: &Board,
        held: &mut Held,
        settled: impl FnOnce(),
    ) -> Result<Over> {
        let stream = wire::handshake(self.source, target, Arc::clone(&self.tls)).await?;
        let wire = wire::http2(stream).await?;
        let mut client = NodeServiceClient::with_origin(wire, wire::origin());
        let (up, requests) = mpsc::channel(4);
        let hello = node::SessionRequest { message: Some(Up::Hello(self.hello(held))) };
        up.send(hello).await.context("no room for Hello")?;
        let greeted = tokio::time::timeout(WELCOME, async {
            let mut down = client.session(ReceiverStream::new(requests)).await?.into_inner();
            let first = down.message().await?;
            Ok::<_, Status>((down, first))
        });
        let (down, first) = match greeted.await.context("no Welcome in time")? {
            Ok(greeted) => greeted,
            Err(status) => return Ok(Over { retry_after: retry_after(&status) }),
        };
        let welcome = match first.and_then(|response| response.message) {
            Some(Down::Welcome(welcome)) => welcome,
            Some(Down::GoAway(away)) => return Ok(Over { retry_after: pause_of(&away) }),
            other => bail!("the first message is {other:?}"),
        };
        let _connected = Connected::on(board);
        let interval = welcome.heartbeat_interval.context("no interval")?;
        let interval = Duration::try_from(interval).context("an impossible interval")?;
        self.live(down, &up, board, held, interval, settled).await
    }

    async fn live(
        &self,
        mut down: Streaming<node::SessionResponse>,
        up: &mpsc::Sender<node::SessionRequest>,
        board: &Board,
        held: &mut Held,
        interval: Duration,
        settled: impl FnOnce(),
    ) -> Result<Over> {
        let mut settled = Some(settled);
        if held.persisted.is_some() {
            self.say(up, Up::Status(self.status(held))).await?;
        }
        let mut beat = std::pin::pin!(tokio::time::sleep(interval));
        loop {
            tokio::select! {
                message = down.message() => match message {
                    Ok(Some(response)) => match response.message {
                        Some(Down::DesiredState(state)) => {
                            held.take(state.stamp, board);
                            self.say(up, Up::Status(self.status(held))).await?;
                            board.acknowledged.fetch_add(1, Ordering::Relaxed);
                            if let Some(settled) = settled.take() {
                                settled();
                            }
                        }
                        Some(Down::GoAway(away)) => {
                            return Ok(Over { retry_after: pause_of(&away) });
                        }
                        _ => {}
                    },
                    Ok(None) => return Ok(Over { retry_after: None }),
                    Err(status) => return Ok(Over { retry_after: retry_after(&status) }),
                },
                () = &mut beat => {
                    let resources = Some(resources());
                    self.say(up, Up::Heartbeat(node::Heartbeat { resources })).await?;
                    self.say(up, Up::Status(self.status(held))).await?;
                    beat.set(tokio::time::sleep(interval));
                }
            }
        }
    }

    async fn say(&self, up: &mpsc::Sender<node::SessionRequest>, message: Up) -> Result<()> {
        let request = node::SessionRequest { message: Some(message) };
        up.send(request).await.with_context(|| format!("{} lost its stream", self.host))
    }

    fn hello(&self, held: &Held) -> node::Hello {
        node::Hello {
            host: self.host.clone(),
            boot_id: format!("boot-of-{}", self.host),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            protocol_version: claw_proto::PROTOCOL_VERSION,
            persisted: held.persisted.clone(),
            inventory: held.persisted.iter().map(|_| self.instance.clone()).collect(),
            docker_version: "28.0.0".to_owned(),
            kernel_version: "6.1.0-40-amd64".to_owned(),
            oldest_event: 1,
            next_event: 1,
        }
    }

    /// As clawd reports one healthy instance; its usage is another one each time.
    fn status(&self, held: &Held) -> node::Status {
        let generation = held.persisted.as_ref().map_or(0, |stamp| stamp.generation);
        let usage = node::Usage {
            memory_bytes: 600 << 20,
            memory_limit_bytes: 2 << 30,
            cpu_usage_us: rand::random_range(0..1 << 40),
            pids: 23,
            oom_kills: 0,
        };
        let report = node::InstanceReport {
            name: self.instance.clone(),
            generation,
            phase: node::Phase::Running.into(),
            container_id: "4f0c1d2e".repeat(8),
            started_at: Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 0 }),
            healthy_since: Some(prost_types::Timestamp { seconds: 1_700_000_010, nanos: 0 }),
            ready: Some(true),
            usage: Some(usage),
            ..node::InstanceReport::default()
        };
        node::Status {
            persisted: held.persisted.clone(),
            last_result_generation: generation,
            instances: vec![report],
            ..node::Status::default()
        }
    }
}

impl Held {
    /// Persists a state, unless it goes back.
    fn take(&mut self, stamp: Option<node::Stamp>, board: &Board) {
        let order = |stamp: &node::Stamp| (stamp.epoch, stamp.generation);
        let is_next = match (&self.persisted, &stamp) {
            (_, None) => false,
            (None, Some(_)) => true,
            (Some(old), Some(new)) => order(new) > order(old) || new == old,
        };
        if is_next {
            self.persisted = stamp;
        } else {
            board.backwards.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// What a host of two cores says of itself.
fn resources() -> node::HostResources {
    node::HostResources {
        memory_total_bytes: 4 << 30,
        memory_available_bytes: 3 << 30,
        cpu_count: 2,
        cpu_permille: rand::random_range(0..1000),
        load1_centi: 40,
        load5_centi: 35,
        load15_centi: 30,
        disk_total_bytes: 80 << 30,
        disk_available_bytes: 60 << 30,
        cpu_pressure: Some(node::Pressure { some_avg10_centi: 12, full_avg10_centi: 0 }),
        memory_pressure: Some(node::Pressure::default()),
        io_pressure: Some(node::Pressure { some_avg10_centi: 3, full_avg10_centi: 1 }),
        uptime: Some(prost_types::Duration { seconds: 86_400, nanos: 0 }),
    }
}

fn pause_of(away: &node::GoAway) -> Option<Duration> {
    away.retry_after.and_then(|pause| pause.try_into().ok())
}

/// `google.rpc.RetryInfo` of a status.
fn retry_after(status: &Status) -> Option<Duration> {
    use tonic_types::StatusExt as _;
    status.get_details_retry_info().and_then(|info| info.retry_delay)
}

/// A pause that was asked for, spread by a fifth as clawd does.
fn spread(asked: Duration) -> Duration {
    asked + asked.mul_f64(0.2 * rand::random::<f64>())
}
