//! One HTTP/1.1 request and its answer over one connection.
//!
//! The request and the connection run in the same future: no task is spawned, so cancelling closes the
//! socket.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::{MAX_BODY_BYTES, ProbeError, Target, answer};

/// The example key of RFC 6455, section 1.3, and the acceptance that belongs to it. The key only
/// proves that the peer speaks WebSocket; it protects nothing and need not be random.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &[u8] = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// A complete answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
    /// Whether it accepts the WebSocket handshake.
    pub(super) accepted: bool,
}

impl Answer {
    /// Why it is no acceptance of a WebSocket.
    pub(super) fn refusal(&self) -> ProbeError {
        if self.status == StatusCode::FORBIDDEN && answer::refuses_attribution(&self.body) {
            return ProbeError::ProxyAttribution;
        }
        ProbeError::NotUpgraded { status: self.status.as_u16() }
    }
}

/// Requests `path`.
pub(super) async fn get(
    target: &Target<'_>,
    path: &str,
    deadline: Duration,
) -> Result<Answer, ProbeError> {
    let request = request(target, path).header(header::CONNECTION, "close");
    exchange(target, request, deadline).await
}

/// Requests the upgrade of `path` to a WebSocket.
pub(super) async fn upgrade(
    target: &Target<'_>,
    path: &str,
    deadline: Duration,
) -> Result<Answer, ProbeError> {
    exchange(target, upgrade_request(target, path), deadline).await
}

/// Requests the upgrade of `path` to a WebSocket and keeps the connection, with what was read of it already.
pub(super) async fn keep(
    target: &Target<'_>,
    path: &str,
) -> Result<(TcpStream, Bytes), ProbeError> {
    let addr = target.addr;
    let http = |source| ProbeError::Http { addr, source };
    let request = upgrade_request(target, path).body(Empty::<Bytes>::new());
    let request = request.map_err(|source| ProbeError::Request { source })?;
    let stream = connect(addr).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(http)?;
    let upgraded = async {
        let response = sender.send_request(request).await.map_err(http)?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS && accepts(&response) {
            return hyper::upgrade::on(response).await.map_err(http);
        }
        let answer = collect(target, response).await?;
        Err(answer.refusal())
    };
    let mut upgraded = pin!(upgraded);
    let upgraded = tokio::select! {
        biased;
        upgraded = &mut upgraded => upgraded,
        // Done with HTTP: what it was upgraded to is handed over.
        _ended = connection.with_upgrades() => upgraded.await,
    }?;
    match upgraded.downcast::<TokioIo<TcpStream>>() {
        Ok(parts) => Ok((parts.io.into_inner(), parts.read_buf)),
        // It was made from one above.
        Err(_other) => {
            Err(ProbeError::NotUpgraded { status: StatusCode::SWITCHING_PROTOCOLS.as_u16() })
        }
    }
}

fn upgrade_request(target: &Target<'_>, path: &str) -> http::request::Builder {
    request(target, path)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_VERSION, "13")
        .header(header::SEC_WEBSOCKET_KEY, KEY)
}

async fn connect(addr: SocketAddr) -> Result<TcpStream, ProbeError> {
    TcpStream::connect(addr).await.map_err(|source| match source.kind() {
        io::ErrorKind::ConnectionRefused => ProbeError::Refused { addr },
        _ => ProbeError::Connect { addr, source },
    })
}

fn request(target: &Target<'_>, path: &str) -> http::request::Builder {
    let host = target.host.map_or_else(|| target.addr.to_string(), str::to_owned);
    let mut request = Request::get(path).header(header::HOST, host);
    if let Some(client) = target.forwarded_for {
        request = request.header("x-forwarded-for", client.to_string());
    }
    if let Some(token) = target.bearer {
        request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    request
}

async fn exchange(
    target: &Target<'_>,
    request: http::request::Builder,
    deadline: Duration,
) -> Result<Answer, ProbeError> {
    let request = request.body(Empty::new()).map_err(|source| ProbeError::Request { source })?;
    let addr = target.addr;
    tokio::time::timeout(deadline, converse(target, request))
        .await
        .unwrap_or(Err(ProbeError::TimedOut { addr, deadline }))
}

async fn converse(
    target: &Target<'_>,
    request: Request<Empty<Bytes>>,
) -> Result<Answer, ProbeError> {
    let addr = target.addr;
    let http = |source| ProbeError::Http { addr, source };
    let stream = connect(addr).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(http)?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(http)?;
        collect(target, response).await
    };
    let mut answer = pin!(answer);
    tokio::select! {
        biased;
        answer = &mut answer => answer,
        // The connection can be done before the last of the answer was taken from it.
        _ended = connection => answer.await,
    }
}

fn accepts(response: &Response<Incoming>) -> bool {
    let accept = response.headers().get(header::SEC_WEBSOCKET_ACCEPT);
    accept.is_some_and(|accept| accept.as_bytes() == ACCEPT)
}

async fn collect(target: &Target<'_>, response: Response<Incoming>) -> Result<Answer, ProbeError> {
    let status = response.status();
    let accepted = accepts(&response);
    if status == StatusCode::SWITCHING_PROTOCOLS {
        return Ok(Answer { status, accepted, body: Bytes::new() });
    }
    let body = Limited::new(response.into_body(), MAX_BODY_BYTES).collect().await;
    let body = body.map_err(|error| match error.downcast::<hyper::Error>() {
        Ok(source) => ProbeError::Http { addr: target.addr, source: *source },
        Err(other) => {
            debug_assert!(other.is::<LengthLimitError>(), "bodies fail in two ways only");
            ProbeError::TooLarge
        }
    })?;
    Ok(Answer { status, accepted, body: body.to_bytes() })
}
