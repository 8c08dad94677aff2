//! Texts over a WebSocket, in bounds.

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::{CapacityError, Error};
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use super::{MAX_MESSAGE_BYTES, RpcError, words};
use crate::probe::Target;

/// Bytes that are read at once: a connection is short, and its memory is the customer's.
const READ_BUFFER: usize = 16 * 1024;

/// Most bytes that may wait to be written. Requests have less than 2 KiB.
const WRITE_BUFFER: usize = 64 * 1024;

/// An open WebSocket.
#[derive(Debug)]
pub(super) struct Socket(WebSocketStream<TcpStream>);

impl Socket {
    pub(super) async fn open(target: &Target<'_>) -> Result<Self, RpcError> {
        let (stream, read) = target.websocket("/").await.map_err(RpcError::Open)?;
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER)
            .write_buffer_size(0)
            .max_write_buffer_size(WRITE_BUFFER)
            .max_message_size(Some(MAX_MESSAGE_BYTES))
            .max_frame_size(Some(MAX_MESSAGE_BYTES));
        let (read, role) = (read.to_vec(), Role::Client);
        Ok(Self(WebSocketStream::from_partially_read(stream, read, role, Some(config)).await))
    }

    pub(super) async fn send(&mut self, text: String) -> Result<(), RpcError> {
        self.0.send(Message::text(text)).await.map_err(broken)
    }

    /// The next text; pings are answered, everything else is passed over.
    pub(super) async fn receive(&mut self) -> Result<Utf8Bytes, RpcError> {
        loop {
            match self.0.next().await {
                Some(Ok(Message::Text(text))) => return Ok(text),
                Some(Ok(Message::Close(frame))) => return Err(closed(frame.as_ref())),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(broken(error)),
                None => return Err(closed(None)),
            }
        }
    }
}

fn closed(frame: Option<&CloseFrame>) -> RpcError {
    RpcError::Closed(frame.map_or_else(
        || "without a word".to_owned(),
        |frame| format!("{} {}", u16::from(frame.code), words(&frame.reason)),
    ))
}

fn broken(error: Error) -> RpcError {
    match error {
        Error::Capacity(CapacityError::MessageTooLong { .. }) => RpcError::TooLarge,
        Error::ConnectionClosed | Error::AlreadyClosed => closed(None),
        error => RpcError::Broken(Box::new(error)),
    }
}
