//! The stream of events itself.
//!
//! Not through bollard, whose stream sends its request when it is first polled and hides the
//! answer's head: until that has come, an event can be missed. Docker writes the head at once, then
//! one JSON object after another (Docker Engine API, `GET /events`).

use std::error::Error;
use std::path::Path;
use std::time::Duration;

use bollard::models::EventMessage;
use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

/// Deadline of the answer's head.
const OPEN: Duration = Duration::from_secs(10);

/// Most bytes of one event; a real one has less than 4 KiB.
const MAX_EVENT: usize = 1 << 20;

/// Why there are no events, or no more.
#[derive(Debug, thiserror::Error)]
pub(super) enum StreamError {
    #[error("connecting to docker")]
    Connect(#[source] std::io::Error),
    #[error("talking to docker")]
    Http(#[source] Box<dyn Error + Send + Sync>),
    #[error("docker did not answer within {} s", OPEN.as_secs())]
    Timeout,
    #[error("docker answered with status {0}")]
    Status(u16),
    #[error("docker sent an event that is none")]
    Malformed(#[source] serde_json::Error),
    #[error("docker sent an event of more than {MAX_EVENT} bytes")]
    TooLarge,
    #[error("docker ended the event stream")]
    Ended,
}

/// Events as they happen.
#[derive(Debug)]
pub(super) struct EventStream {
    body: Incoming,
    unread: Vec<u8>,
}

impl EventStream {
    /// Subscribes to events since a moment of the daemon's clock (`seconds.nanoseconds`). Once this
    /// has succeeded, no later event is missed, unless the stream ends.
    pub(super) async fn open(
        socket: &Path,
        since: &str,
        filters: &serde_json::Value,
    ) -> Result<Self, StreamError> {
        let opened = tokio::time::timeout(OPEN, Self::connect(socket, since, filters)).await;
        opened.unwrap_or(Err(StreamError::Timeout))
    }

    async fn connect(
        socket: &Path,
        since: &str,
        filters: &serde_json::Value,
    ) -> Result<Self, StreamError> {
        let stream = UnixStream::connect(socket).await.map_err(StreamError::Connect)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| StreamError::Http(e.into()))?;
        // Ends by itself once the body is dropped.
        tokio::spawn(connection);
        let filters = percent_encoded(&filters.to_string());
        let request = Request::get(format!("/events?since={since}&filters={filters}"))
            .header(header::HOST, "docker")
            .body(Empty::<Bytes>::new())
            .map_err(|e| StreamError::Http(e.into()))?;
        let response =
            sender.send_request(request).await.map_err(|e| StreamError::Http(e.into()))?;
        if !response.status().is_success() {
            return Err(StreamError::Status(response.status().as_u16()));
        }
        Ok(Self { body: response.into_body(), unread: Vec::new() })
    }

    /// The next event. Cancel-safe.
    pub(super) async fn next(&mut self) -> Result<EventMessage, StreamError> {
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                return serde_json::from_slice(&line).map_err(StreamError::Malformed);
            }
            if self.unread.len() > MAX_EVENT {
                return Err(StreamError::TooLarge);
            }
            let frame = self.body.frame().await.ok_or(StreamError::Ended)?;
            let frame = frame.map_err(|error| StreamError::Http(error.into()))?;
            if let Some(data) = frame.data_ref() {
                self.unread.extend_from_slice(data);
            }
        }
    }
}

/// A value of a query (RFC 3986, section 2.1).
fn percent_encoded(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                encoded.push(char::from(byte));
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    use super::*;

    /// A daemon that answers with `pieces`, one write each, and then ends the connection.
    async fn daemon(listener: UnixListener, pieces: &[&str]) -> String {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = vec![0; 4096];
        let length = stream.read(&mut request).await.unwrap();
        let head = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n";
        for piece in [head].iter().chain(pieces) {
            stream.write_all(piece.as_bytes()).await.unwrap();
            stream.flush().await.unwrap();
            tokio::task::yield_now().await;
        }
        String::from_utf8_lossy(&request[..length]).into_owned()
    }

    async fn actions(pieces: &[&str]) -> (String, Vec<String>, String) {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("docker.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let filters = serde_json::json!({ "type": ["container"] });
        let client = async {
            let mut stream = EventStream::open(&socket, "12.5", &filters).await.unwrap();
            let mut seen = Vec::new();
            loop {
                match stream.next().await {
                    Ok(event) => seen.push(event.action.unwrap()),
                    Err(error) => return (seen, error.to_string()),
                }
            }
        };
        let (request, (seen, end)) = tokio::join!(daemon(listener, pieces), client);
        (request.lines().next().unwrap().to_owned(), seen, end)
    }

    #[tokio::test]
    async fn events_are_read_however_they_are_cut() {
        let pieces =
            ["{\"Action\":\"die\"}\n{\"Act", "ion\":\"oom\"}\n{\"Action\":", "\"start\"}\n"];
        let (request, seen, end) = actions(&pieces).await;
        assert_eq!(seen, ["die", "oom", "start"]);
        assert_eq!(end, "docker ended the event stream");
        let query = "/events?since=12.5&filters=%7B%22type%22%3A%5B%22container%22%5D%7D";
        assert_eq!(request, format!("GET {query} HTTP/1.1"));
    }

    #[tokio::test]
    async fn nonsense_ends_the_stream() {
        let (_, seen, end) = actions(&["{\"Action\":\"die\"}\nnonsense\n"]).await;
        assert_eq!((seen.len(), end.as_str()), (1, "docker sent an event that is none"));
    }
}
