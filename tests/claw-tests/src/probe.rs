//! One attempt at something, from one place, with a verdict.

use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;

use crate::dial::{Dial, Verdict};
use crate::names::{self, Answer};
use crate::servers::Servers;

/// What is tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// A TCP connect, perhaps from a certain address or port.
    Tcp {
        /// Whereto.
        to: SocketAddr,
        /// Wherefrom; the kernel chooses otherwise.
        from: Option<SocketAddr>,
    },
    /// A datagram: open when it arrives or is answered.
    Udp {
        /// Whereto.
        to: SocketAddr,
        /// Wherefrom; the kernel chooses otherwise.
        from: Option<SocketAddr>,
    },
    /// A question to a name server: open when it answers with an address.
    Name {
        /// Which server.
        server: SocketAddr,
        /// The question.
        name: String,
        /// How.
        over: Transport,
    },
}

/// How a name server is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// By datagram.
    Udp,
    /// By connection.
    Tcp,
}

impl Probe {
    /// A TCP connect.
    pub fn tcp(to: impl Into<SocketAddr>) -> Self {
        Self::Tcp { to: to.into(), from: None }
    }

    /// A datagram.
    pub fn udp(to: impl Into<SocketAddr>) -> Self {
        Self::Udp { to: to.into(), from: None }
    }

    /// A question for a name's IPv4 addresses, by datagram.
    pub fn name(server: impl Into<SocketAddr>, name: &str) -> Self {
        Self::Name { server: server.into(), name: name.to_owned(), over: Transport::Udp }
    }

    /// Tries it in the calling thread's network namespace.
    ///
    /// # Errors
    /// When it could not be tried, or failed as no firewall makes it fail.
    pub fn run(&self, servers: &Servers, patience: Duration) -> Result<Verdict> {
        match self {
            Self::Tcp { to, from } => {
                let dial = Dial::start(*to, *from)?;
                let verdict = dial.wait(patience)?;
                dial.abort();
                Ok(verdict)
            }
            Self::Udp { to, from } => datagram(*to, *from, servers, patience),
            Self::Name { server, name, over } => {
                let answered = resolve(*server, name, *over, patience)?;
                Ok(match answered {
                    Ok(Answer { code: 0, addresses }) if !addresses.is_empty() => Verdict::Open,
                    Ok(_) => Verdict::Refused,
                    Err(verdict) => verdict,
                })
            }
        }
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { to, from } => write!(f, "tcp {to}{}", Source(*from)),
            Self::Udp { to, from } => write!(f, "udp {to}{}", Source(*from)),
            Self::Name { server, name, over: Transport::Udp } => write!(f, "{name} of {server}"),
            Self::Name { server, name, over: Transport::Tcp } => {
                write!(f, "{name} of {server} by tcp")
            }
        }
    }
}

struct Source(Option<SocketAddr>);

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |from| write!(f, " from {from}"))
    }
}

/// Asks a name server for IPv4 addresses; the inner error says why no answer came.
///
/// # Errors
/// When it could not be asked.
pub fn resolve(
    server: SocketAddr,
    name: &str,
    over: Transport,
    patience: Duration,
) -> Result<Result<Answer, Verdict>> {
    let id = u16::try_from(number() & 0xffff)?;
    let question = names::question(name, false, id);
    let reply = match over {
        Transport::Udp => exchange(server, None, &question, patience)?,
        Transport::Tcp => stream_exchange(server, &question, patience)?,
    };
    Ok(match reply {
        Ok(bytes) => Ok(names::read(&bytes, id).context("an answer that is none")?),
        Err(verdict) => Err(verdict),
    })
}

fn datagram(
    to: SocketAddr,
    from: Option<SocketAddr>,
    servers: &Servers,
    patience: Duration,
) -> Result<Verdict> {
    let payload = format!("probe {}", number()).into_bytes();
    let verdict = match exchange(to, from, &payload, patience)? {
        Ok(_) => Verdict::Open,
        Err(verdict) => verdict,
    };
    Ok(if servers.has_arrived(&payload) { Verdict::Open } else { verdict })
}

/// Sends a datagram and waits for one back.
fn exchange(
    to: SocketAddr,
    from: Option<SocketAddr>,
    payload: &[u8],
    patience: Duration,
) -> Result<Result<Vec<u8>, Verdict>> {
    let any = SocketAddr::new(unspecified(to), 0);
    let socket = UdpSocket::bind(from.unwrap_or(any)).with_context(|| format!("from {from:?}"))?;
    socket.set_read_timeout(Some(patience))?;
    let mut buffer = vec![0; 4096];
    let exchanged = socket
        .connect(to)
        .and_then(|()| socket.send(payload))
        .and_then(|_| socket.recv(&mut buffer));
    match exchanged {
        Ok(length) => {
            buffer.truncate(length);
            Ok(Ok(buffer))
        }
        Err(error) => verdict_of(&error).map(Err).with_context(|| format!("datagram to {to}")),
    }
}

fn stream_exchange(
    to: SocketAddr,
    question: &[u8],
    patience: Duration,
) -> Result<Result<Vec<u8>, Verdict>> {
    let dial = Dial::start(to, None)?;
    match dial.wait(patience)? {
        Verdict::Open => {}
        verdict => return Ok(Err(verdict)),
    }
    let mut stream = dial.into_stream()?;
    stream.set_read_timeout(Some(patience))?;
    match ask(&mut stream, question) {
        Ok(answer) => Ok(Ok(answer)),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(Err(Verdict::Refused)),
        Err(error) => verdict_of(&error).map(Err),
    }
}

fn ask(stream: &mut TcpStream, question: &[u8]) -> std::io::Result<Vec<u8>> {
    let length = u16::try_from(question.len()).unwrap_or(0).to_be_bytes();
    stream.write_all(&[&length[..], question].concat())?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer)?;
    Ok(answer)
}

fn verdict_of(error: &std::io::Error) -> Result<Verdict> {
    let number = error.raw_os_error().map(Errno::from_raw);
    number.and_then(Verdict::of).with_context(|| format!("no verdict: {error}"))
}

const fn unspecified(like: SocketAddr) -> IpAddr {
    match like {
        SocketAddr::V4(_) => IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
    }
}

/// Another number each time.
fn number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
