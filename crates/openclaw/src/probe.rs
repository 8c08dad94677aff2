//! Asking a running gateway how it is, over plain HTTP.
//!
//! [`Target::probe`] reads one of the three probe endpoints, [`Target::probe_websocket_upgrade`] tries
//! the opening handshake of a WebSocket; both also work through a reverse proxy. An answer is only taken
//! for healthy when it is the endpoint's own JSON: every other path of a gateway answers 200 with the web
//! interface, so a status code alone proves nothing.
//!
//! It does not retry, wait for a state or judge: callers do. One connection is made per call and closed
//! after it. All functions are safe to cancel: dropping the future closes the connection.
//!
//! Source of the endpoints and their bodies: openclaw 2026.9.6, run and read.

mod answer;
mod exchange;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use thiserror::Error;
use tokio::net::TcpStream;

pub use answer::ProbeAnswer;

/// The largest answer that is read, in bytes. Ours; a real one has some hundred bytes.
pub const MAX_BODY_BYTES: usize = 64 * 1024;

/// The endpoints, all unauthenticated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbePath {
    /// `/startupz`: whether the gateway has started. Gate on this one.
    Startup,
    /// `/readyz`: whether everything works, channels to third parties included. Report this one.
    Ready,
    /// `/healthz`: whether the process answers at all.
    Live,
}

impl ProbePath {
    /// The path in a URL.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Startup => "/startupz",
            Self::Ready => "/readyz",
            Self::Live => "/healthz",
        }
    }
}

/// Why a probe has no answer.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// Nothing listens there: usual in the first seconds of a start.
    #[error("{addr} refused the connection")]
    Refused {
        /// Where it was tried.
        addr: SocketAddr,
    },
    /// The connection could not be made for another reason.
    #[error("connecting to {addr}")]
    Connect {
        /// Where it was tried.
        addr: SocketAddr,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// No complete answer within the deadline.
    #[error("{addr} did not answer within {} ms", deadline.as_millis())]
    TimedOut {
        /// Where it was tried.
        addr: SocketAddr,
        /// How long it was given.
        deadline: Duration,
    },
    /// The gateway does not know on whose behalf the request came (403).
    #[error(
        "the gateway refused to attribute the request to a client; hint: send X-Forwarded-For with an \
         address that is not loopback if, and only if, the caller's own address is in \
         gateway.trustedProxies"
    )]
    ProxyAttribution,
    /// A status that the endpoint never gives.
    #[error("unexpected status {status}")]
    UnexpectedStatus {
        /// The status.
        status: u16,
    },
    /// The right status with a body that is not the endpoint's own, such as the web interface.
    #[error("status {status} with {found} instead of the endpoint's own answer")]
    UnexpectedBody {
        /// The status.
        status: u16,
        /// What the body was.
        found: BodyKind,
    },
    /// The answer has more than [`MAX_BODY_BYTES`].
    #[error("the answer is larger than {MAX_BODY_BYTES} bytes")]
    TooLarge,
    /// The WebSocket handshake was answered, but not as RFC 6455 demands.
    #[error("status {status} without a valid WebSocket acceptance")]
    NotUpgraded {
        /// The status.
        status: u16,
    },
    /// A `Host` value, path or token that cannot be put in a request.
    #[error("the request cannot be written")]
    Request {
        /// The cause.
        #[source]
        source: http::Error,
    },
    /// The peer does not speak HTTP/1.1 properly, or went away in the middle.
    #[error("talking HTTP to {addr}")]
    Http {
        /// Where it was tried.
        addr: SocketAddr,
        /// The cause.
        #[source]
        source: hyper::Error,
    },
}

/// What an unexpected body was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyKind {
    /// Nothing at all.
    Empty,
    /// An HTML page: the request did not reach the endpoint.
    Html,
    /// JSON, but not the endpoint's.
    OtherJson,
    /// Anything else.
    Other,
}

impl std::fmt::Display for BodyKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Empty => "no body",
            Self::Html => "an HTML page",
            Self::OtherJson => "other JSON",
            Self::Other => "an unknown body",
        })
    }
}

/// A gateway and how to address it.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    addr: SocketAddr,
    host: Option<&'a str>,
    forwarded_for: Option<IpAddr>,
    bearer: Option<&'a str>,
}

impl<'a> Target<'a> {
    /// The gateway, or the reverse proxy before it, at `addr`.
    #[must_use]
    pub const fn new(addr: SocketAddr) -> Self {
        Self { addr, host: None, forwarded_for: None, bearer: None }
    }

    /// Sends this as `Host` instead of the address: a reverse proxy chooses the instance by it.
    #[must_use]
    pub const fn host(self, host: &'a str) -> Self {
        Self { host: Some(host), ..self }
    }

    /// Sends `X-Forwarded-For`.
    ///
    /// Needed exactly when the caller's own address is one of the gateway's `trustedProxies`; then it
    /// must not be a loopback address. From any other address the header itself is refused with
    /// [`ProbeError::ProxyAttribution`].
    #[must_use]
    pub const fn forwarded_for(self, client: IpAddr) -> Self {
        Self { forwarded_for: Some(client), ..self }
    }

    /// Sends the gateway's token, in exchange for which `/readyz` says what is failing and `/startupz`
    /// what it is waiting for. A wrong token costs only these details.
    #[must_use]
    pub const fn bearer(self, token: &'a str) -> Self {
        Self { bearer: Some(token), ..self }
    }

    /// Asks `path` once and waits for the whole answer, `deadline` at most.
    ///
    /// # Errors
    /// See [`ProbeError`]. "Not yet" and "no longer" are answers, not errors.
    pub async fn probe(
        &self,
        path: ProbePath,
        deadline: Duration,
    ) -> Result<ProbeAnswer, ProbeError> {
        let answer = exchange::get(self, path.as_str(), deadline).await?;
        answer::interpret(path, answer.status, &answer.body)
    }

    /// Opens a WebSocket at `path` up to the point where the gateway accepts it, then closes the
    /// connection.
    ///
    /// # Errors
    /// [`ProbeError::NotUpgraded`] if the answer is no acceptance; else see [`ProbeError`].
    pub async fn probe_websocket_upgrade(
        &self,
        path: &str,
        deadline: Duration,
    ) -> Result<(), ProbeError> {
        let answer = exchange::upgrade(self, path, deadline).await?;
        if answer.status == StatusCode::SWITCHING_PROTOCOLS && answer.accepted {
            return Ok(());
        }
        Err(answer.refusal())
    }

    /// As [`Self::probe_websocket_upgrade`], and keeps the connection, with what was read of it already. Has
    /// no deadline of its own.
    pub(crate) async fn websocket(&self, path: &str) -> Result<(TcpStream, Bytes), ProbeError> {
        exchange::keep(self, path).await
    }
}

/// Leaves the token out.
impl std::fmt::Debug for Target<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Target")
            .field("addr", &self.addr)
            .field("host", &self.host)
            .field("forwarded_for", &self.forwarded_for)
            .finish_non_exhaustive()
    }
}
