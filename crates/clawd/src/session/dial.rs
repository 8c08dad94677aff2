//! One connection to the coordinator: TCP, TLS 1.3, HTTP/2.
//!
//! The connection is made here and given to tonic ready-made, so that every way in which it can fail has
//! its own error, and tonic never dials again by itself.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use claw_identity::TlsError;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};

use super::address::Address;

/// For TCP and TLS together.
const CONNECT: Duration = Duration::from_secs(10);
/// A ping after this much silence, and how long its answer may take: a pulled cable is noticed within
/// their sum.
const PING: Duration = Duration::from_secs(20);
const PONG: Duration = Duration::from_secs(10);
/// Flow-control window of a stream: the agent is never sent more than this unread.
const WINDOW: u32 = 256 * 1024;
/// Requests that may wait in tonic's buffer.
const BUFFER: usize = 16;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The identity cannot be used.
    #[error("cannot use the host's identity")]
    Tls(#[from] TlsError),
    /// The name cannot be resolved, or nobody listens.
    #[error("cannot reach the coordinator at {address}")]
    Connect {
        /// Where it was tried.
        address: Address,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The other end is not the coordinator, or does not accept this host.
    #[error("the tls handshake with {address} failed")]
    Handshake {
        /// Where it was tried.
        address: Address,
        /// What rustls said.
        #[source]
        source: io::Error,
    },
    /// No answer in time.
    #[error("{address} did not answer within {} s", CONNECT.as_secs())]
    Silent {
        /// Where it was tried.
        address: Address,
    },
    /// HTTP/2 could not be set up.
    #[error("cannot speak http/2 with {address}")]
    Http {
        /// Where it was tried.
        address: Address,
        /// What tonic said.
        #[source]
        source: tonic::transport::Error,
    },
}

/// Connects to the coordinator.
///
/// # Errors
/// [`DialError`].
pub async fn dial(address: &Address, config: ClientConfig) -> Result<Channel, DialError> {
    let stream = tokio::time::timeout(CONNECT, handshake(address, config))
        .await
        .map_err(|_elapsed| DialError::Silent { address: address.clone() })??;
    let failed = |source| DialError::Http { address: address.clone(), source };
    // The scheme is only a label here: TLS is done already.
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(failed)?
        .http2_keep_alive_interval(PING)
        .keep_alive_timeout(PONG)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .buffer_size(BUFFER)
        .connect_timeout(CONNECT);
    let once = Arc::new(Mutex::new(Some(TokioIo::new(stream))));
    let connector = tower::service_fn(move |_uri: http::Uri| {
        let stream = once.lock().unwrap_or_else(PoisonError::into_inner).take();
        async move { stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)) }
    });
    endpoint.connect_with_connector(connector).await.map_err(failed)
}

async fn handshake(
    address: &Address,
    config: ClientConfig,
) -> Result<TlsStream<TcpStream>, DialError> {
    let unreachable = |source| DialError::Connect { address: address.clone(), source };
    let tcp = TcpStream::connect((address.host(), address.port())).await.map_err(unreachable)?;
    tcp.set_nodelay(true).map_err(unreachable)?;
    let name = address
        .server_name()
        .ok_or_else(|| unreachable(io::Error::from(io::ErrorKind::InvalidInput)))?;
    TlsConnector::from(Arc::new(config))
        .connect(name, tcp)
        .await
        .map_err(|source| DialError::Handshake { address: address.clone(), source })
}
