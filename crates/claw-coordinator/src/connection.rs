//! One connection after its handshake: HTTP/2 with small bounds, and an end in any case.
//!
//! It ends at the certificate's end or after a day, shortly after the certificate was denylisted,
//! when the coordinator shuts down, or when the peer does not answer pings. Streams are told
//! through [`Caller::closing`] first and have a short time to say good-bye.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use claw_identity::{Peer, Role};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_rustls::server::TlsStream;
use tonic::body::Body;

use crate::auth::{Caller, Closing};
use crate::clock::{Clock, timestamp};
use crate::denylist::Denylist;
use crate::limits::jittered;
use crate::routes::Routes;

/// A denylisted peer hears so, and then no more.
const DENIED_LIFE: Duration = Duration::from_secs(10);
/// Time for streams to end after they were told.
const GOOD_BYE: Duration = Duration::from_secs(5);
/// Pings of HTTP/2: a pulled cable is noticed after the sum.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
/// The same for agents: their heartbeats tell sooner that they are gone, and pings of ten thousand agents cost
/// as much as heartbeats. This is for a connection without a session.
const AGENT_KEEPALIVE_INTERVAL: Duration = Duration::from_secs(120);
/// See [`KEEPALIVE_INTERVAL`].
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes that one stream may have in flight to us.
const STREAM_WINDOW: u32 = 64 * 1024;
/// Bytes that one connection may have in flight to us.
const CONNECTION_WINDOW: u32 = 256 * 1024;
/// Bytes of all headers of a request.
const HEADER_LIST: u32 = 16 * 1024;
/// Bytes that wait to be sent per stream.
const SEND_BUFFER: usize = 64 * 1024;
/// Streams that a peer opened and reset before we looked (CVE-2023-44487).
const PENDING_RESETS: usize = 20;

/// What all connections share.
#[derive(Debug, Clone)]
pub struct Shared {
    /// Answers calls.
    pub routes: Routes,
    /// Certificates that are no longer taken.
    pub denylist: Arc<Denylist>,
    /// Set when the coordinator shuts down.
    pub draining: watch::Receiver<bool>,
    /// The time.
    pub clock: Clock,
    /// Bounds of time.
    pub lifetimes: Lifetimes,
}

/// How long things may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetimes {
    /// A connection with a certificate.
    pub connection: Duration,
    /// A connection without one: there is one thing to do, and it is quick.
    pub anonymous: Duration,
    /// One answer.
    pub call: Duration,
}

type Http2 = http2::Connection<TokioIo<TlsStream<TcpStream>>, PeerService, TokioExecutor>;

/// A connection that speaks HTTP/2 once it is polled.
pub(crate) struct Serving {
    connection: Pin<Box<Http2>>,
    shared: Shared,
    caller: Arc<Caller>,
    closing: watch::Sender<Closing>,
    life: Duration,
}

/// Sets a connection up.
///
/// Not async, and the connection in a box: what an async function is given or moves stays in its state for as long as it
/// runs, and a fleet's connections paid for three copies of it.
pub(crate) fn prepare(
    shared: Shared,
    stream: TlsStream<TcpStream>,
    peer: Option<Peer>,
    source: SocketAddr,
) -> Serving {
    let (closing, receiver) = watch::channel(Closing::No);
    let streams = streams_of(peer.as_ref());
    let life = life(&shared, peer.as_ref());
    let caller = Arc::new(Caller { peer, source, closing: receiver });
    let service = PeerService {
        routes: shared.routes.clone(),
        caller: Arc::clone(&caller),
        deadline: shared.lifetimes.call,
    };
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(streams)
        .max_header_list_size(HEADER_LIST)
        .max_send_buf_size(SEND_BUFFER)
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .keep_alive_interval(keepalive_of(caller.peer.as_ref()))
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    Serving { connection: Box::pin(connection), shared, caller, closing, life }
}

impl Serving {
    /// Serves to the end.
    pub(crate) async fn run(mut self) {
        let source = self.caller.source;
        let reason = tokio::select! {
            ended = self.connection.as_mut() => return log_end(source, ended),
            reason = end_of_life(&self.shared, &self.caller, self.life) => reason,
        };
        self.closing.send_replace(reason);
        if reason != Closing::Denied {
            self.connection.as_mut().graceful_shutdown();
        }
        // A denied peer may still ask and hear why; everybody else finishes what is under way.
        let grace = match reason {
            Closing::Denied => DENIED_LIFE,
            _ if self.caller.peer.is_none() => Duration::ZERO,
            _ => GOOD_BYE + self.shared.lifetimes.call,
        };
        if let Ok(ended) = tokio::time::timeout(grace, self.connection).await {
            log_end(source, ended);
        }
    }
}

fn log_end(source: SocketAddr, ended: hyper::Result<()>) {
    if let Err(error) = ended {
        tracing::debug!(%source, error = %crate::status::Chain(&error), "a connection broke");
    }
}

/// Resolves when the connection must end.
async fn end_of_life(shared: &Shared, caller: &Caller, life: Duration) -> Closing {
    let mut draining = shared.draining.clone();
    let aged = tokio::time::sleep_until(Instant::now() + life);
    tokio::select! {
        () = aged => Closing::Aged,
        () = until_denied(&shared.denylist, caller.peer.as_ref()) => Closing::Denied,
        // An error means that the coordinator is gone already.
        _drained = draining.wait_for(|draining| *draining) => Closing::Draining,
    }
}

async fn until_denied(denylist: &Denylist, peer: Option<&Peer>) {
    let Some(peer) = peer else { return std::future::pending().await };
    let mut changes = denylist.subscribe();
    while !denylist.contains(&peer.serial) {
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// A day at most, shorter by up to a tenth at random so that a fleet does not come back at once;
/// never beyond the certificate's end.
fn life(shared: &Shared, peer: Option<&Peer>) -> Duration {
    let Some(peer) = peer else { return shared.lifetimes.anonymous };
    let longest = shared.lifetimes.connection;
    let age = longest.mul_f64(0.9) + jittered(longest.mul_f64(0.05));
    let left = timestamp(peer.not_after).since(shared.clock.now());
    age.min(left)
}

fn keepalive_of(peer: Option<&Peer>) -> Duration {
    match peer.map(|peer| peer.identity.role()) {
        Some(Role::Agent) => AGENT_KEEPALIVE_INTERVAL,
        None | Some(Role::Service | Role::Operator | Role::Viewer) => KEEPALIVE_INTERVAL,
    }
}

/// Streams that a peer may have open at once.
fn streams_of(peer: Option<&Peer>) -> u32 {
    match peer.map(|peer| peer.identity.role()) {
        None => 4,
        Some(Role::Agent) => 8,
        Some(Role::Service | Role::Operator | Role::Viewer) => 128,
    }
}

/// The service of one connection.
struct PeerService {
    routes: Routes,
    caller: Arc<Caller>,
    deadline: Duration,
}

impl hyper::service::Service<Request<Incoming>> for PeerService {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let routes = self.routes.clone();
        let caller = Arc::clone(&self.caller);
        let deadline = self.deadline;
        Box::pin(async move { Ok(routes.answer(caller, deadline, request.map(Body::new)).await) })
    }
}
