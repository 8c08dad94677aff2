//! TCP connects that do not block, and what becomes of them.
//!
//! The standard library cannot bind a socket before it connects, nor tell who refused it; a firewall's
//! tests need both.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, getsockopt, setsockopt,
    socket, sockopt,
};

/// What became of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// It came through.
    Open,
    /// Refused as if nobody listened: a reset, or "port unreachable".
    Refused,
    /// Somebody on the way said no (ICMP "administratively prohibited" and the like).
    Rejected,
    /// Nothing came back.
    TimedOut,
}

impl Verdict {
    /// Whether it came through.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        matches!(self, Self::Open)
    }

    /// Whether it did not.
    #[must_use]
    pub const fn is_closed(&self) -> bool {
        !self.is_open()
    }

    /// What an error of a socket means; `None` for one that is a fault of the attempt itself.
    #[must_use]
    pub const fn of(error: Errno) -> Option<Self> {
        match error {
            Errno::ECONNREFUSED | Errno::ECONNRESET => Some(Self::Refused),
            Errno::EHOSTUNREACH | Errno::EACCES | Errno::ENETUNREACH | Errno::ENOPROTOOPT => {
                Some(Self::Rejected)
            }
            Errno::ETIMEDOUT | Errno::EAGAIN => Some(Self::TimedOut),
            _ => None,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Open => "open",
            Self::Refused => "reset",
            Self::Rejected => "rejected",
            Self::TimedOut => "dropped",
        })
    }
}

/// A TCP connection that is being made.
#[derive(Debug)]
pub struct Dial(OwnedFd);

impl Dial {
    /// Begins to connect in the calling thread's network namespace; `from` binds the socket first.
    ///
    /// # Errors
    /// When there is no way to send even the first packet: no route, no such source.
    pub fn start(to: SocketAddr, from: Option<SocketAddr>) -> Result<Self> {
        let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd = socket(family, SockType::Stream, flags, None).context("no socket")?;
        if let Some(from) = from {
            setsockopt(&fd, sockopt::ReuseAddr, &true)?;
            bind(fd.as_raw_fd(), &SockaddrStorage::from(from))
                .with_context(|| format!("cannot bind {from}"))?;
        }
        match connect(fd.as_raw_fd(), &SockaddrStorage::from(to)) {
            Ok(()) | Err(Errno::EINPROGRESS) => Ok(Self(fd)),
            Err(error) => Err(error).with_context(|| format!("cannot even try {to}")),
        }
    }

    /// What became of it, once it is ready to be written to.
    ///
    /// # Errors
    /// With an error of the socket that is no verdict.
    pub fn verdict(&self) -> Result<Verdict> {
        match getsockopt(&self.0, sockopt::SocketError)? {
            0 => Ok(Verdict::Open),
            raw => {
                let error = Errno::from_raw(raw);
                Verdict::of(error).with_context(|| format!("a connect failed: {error}"))
            }
        }
    }

    /// Waits for the verdict.
    ///
    /// # Errors
    /// As [`verdict`](Self::verdict).
    pub fn wait(&self, patience: Duration) -> Result<Verdict> {
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLOUT)];
        let timeout = PollTimeout::try_from(patience).context("too much patience")?;
        loop {
            match poll(&mut fds, timeout) {
                Ok(0) => return Ok(Verdict::TimedOut),
                Ok(_) => return self.verdict(),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error).context("cannot wait for a connect"),
            }
        }
    }

    /// The connection, which must have been made.
    ///
    /// # Errors
    /// When the socket cannot be made blocking.
    pub fn into_stream(self) -> io::Result<TcpStream> {
        let stream = TcpStream::from(self.0);
        stream.set_nonblocking(false)?;
        Ok(stream)
    }

    /// Ends it with a reset, so that nothing of it lingers.
    pub fn abort(self) {
        let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
        // It may have ended by itself.
        let _ = setsockopt(&self.0, sockopt::Linger, &linger);
    }

    /// The socket, to wait for.
    #[must_use]
    pub const fn socket(&self) -> &OwnedFd {
        &self.0
    }
}

/// Connects from an address, within a time.
///
/// # Errors
/// When it does not come through.
pub fn connect_from(from: IpAddr, to: SocketAddr, patience: Duration) -> Result<TcpStream> {
    let dial = Dial::start(to, Some((from, 0).into()))?;
    match dial.wait(patience)? {
        Verdict::Open => Ok(dial.into_stream()?),
        verdict => bail!("{from} to {to}: {verdict}"),
    }
}
