//! Just enough HTTP/1.1 to look at a gateway as a browser would: one request per connection.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result};

/// Silence after which an answer is given up.
const PATIENCE: Duration = Duration::from_secs(5);

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
pub fn get(stream: TcpStream, host: &str, path: &str) -> Result<Answer> {
    get_within(stream, host, path, PATIENCE)
}

/// Like [`get`], within another time of silence.
///
/// # Errors
/// As [`get`].
pub fn get_within(stream: TcpStream, host: &str, path: &str, patience: Duration) -> Result<Answer> {
    stream.set_read_timeout(Some(patience))?;
    exchange(stream, "GET", host, path)
}

/// Like [`get`] with another method, without a body.
///
/// # Errors
/// As [`get`].
pub fn request(stream: TcpStream, method: &str, host: &str, path: &str) -> Result<Answer> {
    stream.set_read_timeout(Some(PATIENCE))?;
    exchange(stream, method, host, path)
}

fn exchange(mut stream: TcpStream, method: &str, host: &str, path: &str) -> Result<Answer> {
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n\
         Connection: close\r\n\r\n"
    )?;
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
