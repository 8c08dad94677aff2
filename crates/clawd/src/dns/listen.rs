//! Sockets on the bridges' addresses, and what keeps a flood of one instance from the others.
//!
//! A socket is bound before its bridge exists (`IP_FREEBIND`, ip(7)) and outlives it. The local address
//! tells the instance; a source outside its subnet gets no answer.
//!
//! What it deliberately does not do: read more than it can answer. What is beyond the bounds waits in the
//! kernel's buffers and is dropped there.

use std::future::pending;
use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::os::fd::AsRawFd as _;
use std::rc::Rc;
use std::time::Duration;

use claw_core::address::InstanceNetwork;
use claw_core::firewall::Cidr;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, setsockopt, socket, sockopt::IpFreebind,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::instance::Instance;
use super::question::{MAX_QUESTION, Transport};
use super::sets::Sets;

/// Most questions of one instance by UDP that are answered at the same time.
const MAX_QUESTIONS: usize = 64;
/// Most connections of one instance.
const MAX_CONNECTIONS: usize = 8;
/// Most questions that are answered at the same time in all: each takes up to 16 KiB.
const MAX_ALL: usize = 512;
/// Most questions of one instance in a second; a gateway under load asks for some tens.
const MAX_RATE: u32 = 1000;
/// A connection ends when nothing comes for so long, or nothing can be sent.
const IDLE: Duration = Duration::from_secs(10);
/// Connections that wait to be accepted.
const BACKLOG: u32 = 16;
/// After an error that is not a client's, such as too many open files.
const PAUSE: Duration = Duration::from_millis(100);

/// Where an instance asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Address and port of its socket.
    pub listen: SocketAddr,
    /// From where questions may come.
    pub sources: Cidr,
}

impl Place {
    /// Port 53 of the instance's bridge, for its subnet.
    #[must_use]
    pub fn bridge(network: InstanceNetwork) -> Self {
        let gateway = network.gateway();
        Self { listen: SocketAddr::new(gateway, 53), sources: Cidr::containing(gateway, 24) }
    }
}

/// The bound on questions of all instances.
#[derive(Debug, Clone)]
pub struct Limit(Rc<Semaphore>);

impl Default for Limit {
    fn default() -> Self {
        Self(Rc::new(Semaphore::new(MAX_ALL)))
    }
}

/// The sockets of one instance and the tasks behind them, which end when it is dropped.
#[derive(Debug)]
pub struct Listener {
    tasks: JoinSet<()>,
}

impl Listener {
    /// Binds UDP and TCP and begins to answer. Must be called within a `LocalSet`.
    ///
    /// # Errors
    /// What the system said; `EADDRINUSE` if something else answers on that address.
    pub fn start<S: Sets>(
        instance: &Rc<Instance<S>>,
        place: Place,
        limit: &Limit,
    ) -> io::Result<Self> {
        let udp = bind_udp(place.listen)?;
        let tcp = bind_tcp(place.listen)?;
        let rate = Rc::new(Rate::default());
        let desk = |instance: &Rc<Instance<S>>| Desk {
            instance: Rc::clone(instance),
            sources: place.sources,
            limit: limit.clone(),
            rate: Rc::clone(&rate),
        };
        let mut tasks = JoinSet::new();
        tasks.spawn_local(answer_datagrams(udp, desk(instance)));
        tasks.spawn_local(accept(tcp, desk(instance)));
        Ok(Self { tasks })
    }

    /// Ends the tasks; afterwards nothing of them is left, and the address is free.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
    }
}

/// What is needed to answer a question.
struct Desk<S> {
    instance: Rc<Instance<S>>,
    sources: Cidr,
    limit: Limit,
    rate: Rc<Rate>,
}

impl<S> Clone for Desk<S> {
    fn clone(&self) -> Self {
        Self {
            instance: Rc::clone(&self.instance),
            sources: self.sources,
            limit: self.limit.clone(),
            rate: Rc::clone(&self.rate),
        }
    }
}

impl<S: Sets> Desk<S> {
    async fn reply(&self, bytes: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let _permit = self.limit.0.try_acquire().ok()?;
        self.instance.reply(bytes, transport).await
    }
}

async fn answer_datagrams<S: Sets>(socket: UdpSocket, desk: Desk<S>) {
    let socket = Rc::new(socket);
    let mut answers = JoinSet::new();
    // One byte more than is allowed tells what is too long.
    let mut buffer = vec![0; MAX_QUESTION + 1];
    loop {
        while answers.len() >= MAX_QUESTIONS {
            answers.join_next().await;
        }
        let received = tokio::select! {
            received = socket.recv_from(&mut buffer) => received,
            () = reaped(&mut answers) => continue,
        };
        let (length, from) = match received {
            Ok(received) => received,
            // Nothing but a passing lack of memory: ICMP errors do not reach unconnected sockets.
            Err(_) => {
                sleep(PAUSE).await;
                continue;
            }
        };
        let bytes = buffer.get(..length).filter(|bytes| bytes.len() <= MAX_QUESTION);
        let (Some(bytes), true) = (bytes, desk.sources.contains(from.ip())) else { continue };
        desk.rate.admit().await;
        let (bytes, desk, socket) = (bytes.to_vec(), desk.clone(), Rc::clone(&socket));
        answers.spawn_local(async move {
            if let Some(reply) = desk.reply(&bytes, Transport::Udp).await {
                // The container may be gone.
                let _sent = socket.send_to(&reply, from).await;
            }
        });
    }
}

async fn accept<S: Sets>(listener: TcpListener, desk: Desk<S>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.len() >= MAX_CONNECTIONS {
            connections.join_next().await;
        }
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = reaped(&mut connections) => continue,
        };
        match accepted {
            Ok((stream, from)) if desk.sources.contains(from.ip()) => {
                let desk = desk.clone();
                connections.spawn_local(async move {
                    // A connection that breaks has ended.
                    let _ended = converse(stream, &desk).await;
                });
            }
            Ok(_stranger) => {}
            Err(_) => sleep(PAUSE).await,
        }
    }
}

/// Ends when one of the tasks has; never, if there is none.
async fn reaped(tasks: &mut JoinSet<()>) {
    if tasks.join_next().await.is_none() {
        pending::<()>().await;
    }
}

/// Answers the questions of one connection, one after the other (RFC 7766).
async fn converse<S: Sets>(mut stream: TcpStream, desk: &Desk<S>) -> io::Result<()> {
    loop {
        let question = timeout(IDLE, read_message(&mut stream)).await??;
        desk.rate.admit().await;
        let Some(reply) = desk.reply(&question, Transport::Tcp).await else { return Ok(()) };
        let length = u16::try_from(reply.len()).map_err(io::Error::other)?;
        let framed = [length.to_be_bytes().as_slice(), &reply].concat();
        timeout(IDLE, stream.write_all(&framed)).await??;
    }
}

async fn read_message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = usize::from(stream.read_u16().await?);
    if length > MAX_QUESTION {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

/// Counts questions of the current second.
#[derive(Debug, Default)]
struct Rate {
    window: std::cell::Cell<Option<(Instant, u32)>>,
}

impl Rate {
    /// Waits until the instance may ask again.
    async fn admit(&self) {
        loop {
            let now = Instant::now();
            let (start, count) = self.window.get().unwrap_or((now, 0));
            let end = start + Duration::from_secs(1);
            if now >= end {
                self.window.set(Some((now, 1)));
                return;
            }
            if count < MAX_RATE {
                self.window.set(Some((start, count + 1)));
                return;
            }
            tokio::time::sleep_until(end).await;
        }
    }
}

fn bind_udp(address: SocketAddr) -> io::Result<UdpSocket> {
    let address = ipv4(address)?;
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd = socket(AddressFamily::Inet, SockType::Datagram, flags, None)?;
    setsockopt(&fd, IpFreebind, &true)?;
    bind(fd.as_raw_fd(), &SockaddrIn::from(address))?;
    UdpSocket::from_std(fd.into())
}

fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let address = ipv4(address)?;
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    setsockopt(&socket, IpFreebind, &true)?;
    socket.bind(address.into())?;
    socket.listen(BACKLOG)
}

/// Bridges have IPv4 addresses only.
fn ipv4(address: SocketAddr) -> io::Result<SocketAddrV4> {
    match (address.ip(), address.port()) {
        (IpAddr::V4(ip), port) => Ok(SocketAddrV4::new(ip, port)),
        (IpAddr::V6(_), _) => Err(io::ErrorKind::Unsupported.into()),
    }
}
