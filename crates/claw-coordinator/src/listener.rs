//! The socket: accepts freely, drops the slow, and hands finished handshakes on.
//!
//! Nothing is held while waiting for bytes: silent connections cost a slot among the pending ones,
//! the oldest of which goes when there are too many (of one source, or in total). Handshakes need no
//! permit for the processor: each runs between two waits, on as many threads as the runtime has.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use claw_identity::{TrustDomain, peer_of_connection};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::connection::{self, Serving, Shared};
use crate::limits::{Counted, Place, Source};

/// Bounds of the listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListenerLimits {
    /// Time for a TLS handshake.
    pub handshake_timeout: Duration,
    /// Handshakes under way in total.
    pub handshakes: usize,
    /// Handshakes under way of one source.
    pub handshakes_per_source: usize,
    /// Connections of one source without a certificate.
    pub anonymous_per_source: usize,
    /// Connections with certificates of one identity.
    pub connections_per_identity: usize,
}

/// The accepting side.
#[derive(Debug)]
pub struct Listener {
    /// The bound socket.
    pub socket: TcpListener,
    /// The TLS configuration of the next handshake.
    pub tls: Arc<ArcSwap<ServerConfig>>,
    /// Whose certificates are taken.
    pub trust_domain: TrustDomain,
    /// Bounds.
    pub limits: ListenerLimits,
    /// What connections share.
    pub shared: Shared,
}

impl Listener {
    /// Accepts until `stop` is set, then waits for the connections to end.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        let doors = Arc::new(Doors {
            pending: Mutex::default(),
            anonymous: Counted::new(self.limits.anonymous_per_source),
            identities: Counted::new(self.limits.connections_per_identity),
            limits: self.limits,
            trust_domain: self.trust_domain,
            shared: self.shared,
        });
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = self.socket.accept() => accepted,
                Some(_ended) = connections.join_next() => continue,
                // An error means that nobody can stop us any more.
                _stopped = stop.wait_for(|stop| *stop) => break,
            };
            match accepted {
                Ok((stream, source)) => {
                    let acceptor = TlsAcceptor::from(self.tls.load_full());
                    let number = doors.reserve(source);
                    let task = Arc::clone(&doors).admit(number, acceptor, stream, source);
                    let handle = connections.spawn(task);
                    doors.register(number, source, handle);
                }
                Err(error) => pause_after(&error).await,
            }
        }
        drop(self.socket);
        while connections.join_next().await.is_some() {}
    }
}

/// Too many open files: waiting a little is all that can be done.
async fn pause_after(error: &io::Error) {
    tracing::warn!(%error, "cannot accept a connection");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

/// What decides whether a connection comes in.
#[derive(Debug)]
struct Doors {
    pending: Mutex<Pending>,
    anonymous: Arc<Counted<Source>>,
    identities: Arc<Counted<String>>,
    limits: ListenerLimits,
    trust_domain: TrustDomain,
    shared: Shared,
}

/// Handshakes under way, oldest first.
#[derive(Debug, Default)]
struct Pending {
    next: u64,
    handshakes: BTreeMap<u64, (Source, Option<AbortHandle>)>,
    per_source: BTreeMap<Source, BTreeSet<u64>>,
}

impl Pending {
    fn remove(&mut self, number: u64) -> Option<AbortHandle> {
        let (source, handle) = self.handshakes.remove(&number)?;
        if let Some(numbers) = self.per_source.get_mut(&source) {
            numbers.remove(&number);
            if numbers.is_empty() {
                self.per_source.remove(&source);
            }
        }
        handle
    }

    fn oldest_of(&self, source: Source) -> Option<u64> {
        self.per_source.get(&source)?.first().copied()
    }
}

impl Doors {
    /// Makes room for one more handshake, at the cost of the oldest.
    fn reserve(&self, address: SocketAddr) -> u64 {
        let source = Source::from(address.ip());
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let of_source = pending.per_source.get(&source).map_or(0, BTreeSet::len);
        let victim = if of_source >= self.limits.handshakes_per_source {
            pending.oldest_of(source)
        } else if pending.handshakes.len() >= self.limits.handshakes {
            pending.handshakes.keys().next().copied()
        } else {
            None
        };
        if let Some(handle) = victim.and_then(|victim| pending.remove(victim)) {
            handle.abort();
        }
        let number = pending.next;
        pending.next += 1;
        pending.handshakes.insert(number, (source, None));
        pending.per_source.entry(source).or_default().insert(number);
        number
    }

    /// The handshake can be dropped from now on; it may have ended already.
    fn register(&self, number: u64, address: SocketAddr, handle: AbortHandle) {
        let source = Source::from(address.ip());
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = pending.handshakes.get_mut(&number) {
            *entry = (source, Some(handle));
        }
    }

    async fn admit(
        self: Arc<Self>,
        number: u64,
        acceptor: TlsAcceptor,
        stream: TcpStream,
        source: SocketAddr,
    ) {
        // Small messages in both directions; an error leaves the default.
        let _nodelay = stream.set_nodelay(true);
        let timeout = self.limits.handshake_timeout;
        // In a box: a connection need not keep room for its handshake.
        let shaken = tokio::time::timeout(timeout, Box::pin(acceptor.accept(stream))).await;
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).remove(number);
        let entered = match shaken {
            Ok(Ok(stream)) => self.enter(stream, source),
            Ok(Err(error)) => return tracing::debug!(%source, %error, "a handshake failed"),
            Err(_elapsed) => return tracing::debug!(%source, "a handshake took too long"),
        };
        drop(self);
        if let Some((serving, _place)) = entered {
            serving.run().await;
        }
    }

    /// The connection and the place that it takes, unless it has no right to one.
    fn enter(&self, stream: TlsStream<TcpStream>, source: SocketAddr) -> Option<(Serving, Entry)> {
        let peer = peer_of_connection(stream.get_ref().1, &self.trust_domain);
        let peer = peer
            .inspect_err(|error| tracing::debug!(%source, %error, "a certificate is no identity"))
            .ok()?;
        let entry = match &peer {
            None => self.anonymous.take(Source::from(source.ip())).map(Entry::Anonymous),
            Some(known) => self.identities.take(known.identity.to_string()).map(Entry::Known),
        };
        match (&entry, &peer) {
            (Some(_), _) => {}
            (None, None) => tracing::debug!(%source, "too many connections without certificate"),
            (None, Some(known)) => {
                tracing::warn!(%source, peer = %known.identity, "too many connections");
            }
        }
        Some((connection::prepare(self.shared.clone(), stream, peer, source), entry?))
    }
}

/// The place of a connection among those of its source or its identity.
#[expect(dead_code, reason = "held until the connection ends")]
enum Entry {
    Anonymous(Place<Source>),
    Known(Place<String>),
}
