//! Connections as agents and callers of the API make them: TCP, TLS 1.3, HTTP/2.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::{Context as _, Result};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::body::Body;
use tonic::codegen::Service;

/// Name in the coordinator's certificate.
pub(crate) const NAME: &str = "localhost";
/// For TCP and TLS together; clawd's own bound (`clawd::session::dial`).
const CONNECT: Duration = Duration::from_secs(10);
/// Pings of HTTP/2, and how long an answer may take; clawd's own.
const PING: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(10));
/// Flow-control window; clawd's own.
const WINDOW: u32 = 256 * 1024;

/// The address that a simulated host dials from: each has its own, as bounds per address are part of what
/// is measured. All of 127.0.0.0/8 is loopback on Linux (ip(7)).
pub(crate) fn address_of(number: usize) -> IpAddr {
    let offset = u32::try_from(number).unwrap_or(0);
    let base = Ipv4Addr::new(127, 1, 0, 1).to_bits();
    IpAddr::V4(Ipv4Addr::from_bits(base.wrapping_add(offset)))
}

/// A finished handshake.
pub(crate) async fn handshake(
    source: IpAddr,
    target: SocketAddr,
    config: Arc<ClientConfig>,
) -> Result<TlsStream<TcpStream>> {
    let shaken = async {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(source, 0))?;
        let stream = socket.connect(target).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from(NAME)?;
        Ok(TlsConnector::from(config).connect(name, stream).await?)
    };
    tokio::time::timeout(CONNECT, shaken).await.context("no handshake in time")?
}

/// One HTTP/2 connection as tonic's clients take it.
#[derive(Debug, Clone)]
pub(crate) struct Wire(SendRequest<Body>);

/// Speaks HTTP/2 on a connection until every handle on it is gone.
pub(crate) async fn http2(stream: TlsStream<TcpStream>) -> Result<Wire> {
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .keep_alive_interval(PING.0)
        .keep_alive_timeout(PING.1)
        .keep_alive_while_idle(true)
        .handshake(TokioIo::new(stream))
        .await?;
    // How it ends shows at the streams.
    tokio::spawn(async move { drop(connection.await) });
    Ok(Wire(sender))
}

/// Where requests say they go to; TLS is done already.
pub(crate) fn origin() -> http::Uri {
    http::Uri::from_static("https://localhost")
}

impl Service<http::Request<Body>> for Wire {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = std::pin::Pin<
        Box<dyn Future<Output = Result<http::Response<Incoming>, hyper::Error>> + Send>,
    >;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}
