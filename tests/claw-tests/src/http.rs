//! Just enough HTTP/1.1 to look at a gateway as a browser would: one GET per connection.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result};

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Header lines as they came.
    pub head: String,
    /// Body, lossy UTF-8.
    pub body: String,
}

/// GETs `path` of `host` over an open connection, within five seconds of silence.
///
/// # Errors
/// When the connection breaks or the answer is no HTTP.
pub fn get(mut stream: TcpStream, host: &str, path: &str) -> Result<Answer> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
    let mut bytes = Vec::new();
    stream.take(1 << 20).read_to_end(&mut bytes).context("the answer broke off")?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").context("the answer has no header")?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    Ok(Answer {
        status: status.with_context(|| format!("no status in {head:?}"))?,
        head: head.to_owned(),
        body: body.to_owned(),
    })
}
