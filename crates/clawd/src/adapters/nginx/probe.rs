//! Asks the running nginx which version of a virtual host it serves.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use claw_core::stamp::Digest;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::render::DIGEST_PATH;

/// Deadline of one question: it never leaves the host.
const DEADLINE: Duration = Duration::from_secs(3);

/// A digest has 64 characters; whatever is longer is none.
const MAX_ANSWER: usize = 256;

/// Why nginx said nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProbeError {
    #[error("connecting to {address}")]
    Connect {
        address: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("talking to {address}")]
    Http {
        address: SocketAddr,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("{address} did not answer within {} s", DEADLINE.as_secs())]
    Timeout { address: SocketAddr },
}

/// The digest of the virtual host that answers to `name`; `None` if none of ours does.
pub(super) async fn loaded_digest(
    address: SocketAddr,
    name: &str,
) -> Result<Option<Digest>, ProbeError> {
    let asked = tokio::time::timeout(DEADLINE, ask(address, name)).await;
    asked.unwrap_or(Err(ProbeError::Timeout { address }))
}

async fn ask(address: SocketAddr, name: &str) -> Result<Option<Digest>, ProbeError> {
    let stream = TcpStream::connect(address)
        .await
        .map_err(|source| ProbeError::Connect { address, source })?;
    converse(stream, name).await.map_err(|source| ProbeError::Http { address, source })
}

async fn converse(
    stream: TcpStream,
    name: &str,
) -> Result<Option<Digest>, Box<dyn std::error::Error + Send + Sync>> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get(DIGEST_PATH)
        .header(header::HOST, name)
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())?;
    let answer = async {
        let response = sender.send_request(request).await?;
        if response.status() != StatusCode::OK {
            return Ok(None);
        }
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await?.to_bytes();
        Ok(str::from_utf8(&body).ok().and_then(Digest::from_hex))
    };
    let mut answer = std::pin::pin!(answer);
    tokio::select! {
        biased;
        answer = &mut answer => answer,
        // The connection can be done before the last of the answer was taken from it.
        _ended = connection => answer.await,
    }
}
