//! Listeners all over a lab, and what arrives at them: the far ends of every probe.
//!
//! TCP listeners echo. UDP sockets answer with what they got. Both note every arrival, so that a packet
//! that leaks is seen even where its answer gets lost.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use claw_lab::Netns;
use nix::sys::socket::{Shutdown, shutdown};

use crate::names::Names;

/// Threads of servers need little.
const STACK: usize = 128 << 10;

/// How often a UDP server looks whether it should end.
const LOOK: Duration = Duration::from_millis(200);

/// Listeners; dropping it closes them.
#[derive(Debug, Default)]
pub struct Servers {
    seen: Arc<Arrivals>,
    over: Arc<AtomicBool>,
    listeners: Mutex<Vec<Arc<TcpListener>>>,
}

/// What arrived.
#[derive(Debug, Default)]
struct Arrivals {
    /// Accepted connections, by the address that was called.
    connections: Mutex<BTreeMap<SocketAddr, u64>>,
    /// Connections by caller and port that was called.
    callers: Mutex<BTreeMap<(IpAddr, u16), u64>>,
    /// Payloads of datagrams.
    datagrams: Mutex<BTreeSet<Vec<u8>>>,
}

impl Servers {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Accepts and echoes on a port of every address of a network namespace, both families.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn tcp(&self, netns: &Netns, port: u16) -> Result<()> {
        self.tcp_at(netns, SocketAddr::from(([0_u16; 8], port)))
    }

    /// Accepts and echoes on one address.
    ///
    /// # Errors
    /// When it is taken.
    pub fn tcp_at(&self, netns: &Netns, address: SocketAddr) -> Result<()> {
        let seen = Arc::clone(&self.seen);
        self.accept(netns, address, move |stream| {
            seen.connection(&stream);
            echo(&stream);
        })
    }

    /// Answers datagrams on one address.
    ///
    /// # Errors
    /// When it is taken.
    pub fn udp(&self, netns: &Netns, address: SocketAddr) -> Result<()> {
        let seen = Arc::clone(&self.seen);
        self.datagrams(netns, address, move |question| {
            seen.datagrams().insert(question.to_vec());
            Some(question.to_vec())
        })
    }

    /// Answers for names on one address, UDP and TCP.
    ///
    /// # Errors
    /// When it is taken.
    pub fn names(&self, netns: &Netns, address: SocketAddr, names: &Arc<Names>) -> Result<()> {
        let (by_datagram, by_stream) = (Arc::clone(names), Arc::clone(names));
        self.datagrams(netns, address, move |question| by_datagram.answer(question))?;
        let seen = Arc::clone(&self.seen);
        self.accept(netns, address, move |stream| {
            seen.connection(&stream);
            // A client that breaks off is none of our business.
            let _ = by_stream.serve(&stream);
        })
    }

    /// Connections that were accepted at an address.
    #[must_use]
    pub fn connections(&self, to: SocketAddr) -> u64 {
        lock(&self.seen.connections).get(&to).copied().unwrap_or(0)
    }

    /// Connections that an address made to a port.
    #[must_use]
    pub fn calls(&self, from: IpAddr, port: u16) -> u64 {
        lock(&self.seen.callers).get(&(from, port)).copied().unwrap_or(0)
    }

    /// Whether a datagram with this payload has arrived anywhere.
    #[must_use]
    pub fn has_arrived(&self, payload: &[u8]) -> bool {
        self.seen.datagrams().contains(payload)
    }

    fn accept(
        &self,
        netns: &Netns,
        address: SocketAddr,
        serve: impl Fn(TcpStream) + Send + Sync + 'static,
    ) -> Result<()> {
        let listener = netns
            .within(|| TcpListener::bind(address))?
            .with_context(|| format!("cannot listen on {address}"))?;
        let listener = Arc::new(listener);
        lock(&self.listeners).push(Arc::clone(&listener));
        let (over, serve) = (Arc::clone(&self.over), Arc::new(serve));
        thread(move || {
            while !over.load(Ordering::Relaxed) {
                let Ok((stream, _)) = listener.accept() else { continue };
                let serve = Arc::clone(&serve);
                // Without a thread the connection just closes; it was accepted all the same.
                let _ = thread(move || serve(stream));
            }
        })
    }

    fn datagrams(
        &self,
        netns: &Netns,
        address: SocketAddr,
        mut answer: impl FnMut(&[u8]) -> Option<Vec<u8>> + Send + 'static,
    ) -> Result<()> {
        let socket = netns
            .within(|| UdpSocket::bind(address))?
            .with_context(|| format!("cannot bind {address} for datagrams"))?;
        socket.set_read_timeout(Some(LOOK))?;
        let over = Arc::clone(&self.over);
        thread(move || {
            let mut buffer = [0; 2048];
            while !over.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
                let question = buffer.get(..length).unwrap_or_default();
                if let Some(answer) = answer(question) {
                    // The asker sees no answer, then.
                    let _ = socket.send_to(&answer, from);
                }
            }
        })
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for listener in lock(&self.listeners).iter() {
            // Wakes its thread; fails only when there is nothing to wake.
            let _ = shutdown(listener.as_raw_fd(), Shutdown::Both);
        }
    }
}

impl Arrivals {
    fn connection(&self, stream: &TcpStream) {
        let (Ok(to), Ok(from)) = (stream.local_addr(), stream.peer_addr()) else { return };
        let to = SocketAddr::new(to.ip().to_canonical(), to.port());
        *lock(&self.connections).entry(to).or_default() += 1;
        *lock(&self.callers).entry((from.ip().to_canonical(), to.port())).or_default() += 1;
    }

    fn datagrams(&self) -> MutexGuard<'_, BTreeSet<Vec<u8>>> {
        lock(&self.datagrams)
    }
}

/// Gives back what comes until the other side ends.
fn echo(mut stream: &TcpStream) {
    let mut reading = stream;
    // A caller that breaks off has seen what it wanted.
    let _ = io::copy(&mut reading, &mut stream);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn thread(work: impl FnOnce() + Send + 'static) -> Result<()> {
    let builder = std::thread::Builder::new().name("server".to_owned()).stack_size(STACK);
    builder.spawn(work).context("no thread for a server").map(drop)
}
