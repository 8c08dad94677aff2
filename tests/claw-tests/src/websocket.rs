//! Just enough WebSocket (RFC 6455) to talk to a gateway through the reverse proxy.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// The example key of RFC 6455, section 1.3, and what a server must make of it.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// Largest frame that is read.
const MAX_FRAME: u64 = 8 << 20;

/// An open WebSocket.
#[derive(Debug)]
pub struct WebSocket(TcpStream);

impl WebSocket {
    /// Upgrades a connection, with more header lines (each with its line end).
    ///
    /// # Errors
    /// When the other side does not upgrade.
    pub fn open(mut stream: TcpStream, host: &str, headers: &str) -> Result<Self> {
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        write!(
            stream,
            "GET / HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n{headers}\r\n"
        )?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).context("the answer broke off")?;
            head.extend(byte);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        ensure!(head.starts_with("HTTP/1.1 101 "), "no upgrade: {head}");
        let accept = format!("sec-websocket-accept: {ACCEPT}").to_lowercase();
        ensure!(head.to_lowercase().contains(&accept), "another key was accepted: {head}");
        Ok(Self(stream))
    }

    /// The next text as JSON; pings are passed over.
    ///
    /// # Errors
    /// When the connection ends or no JSON comes.
    pub fn receive(&mut self) -> Result<Value> {
        loop {
            let [first, second] = self.bytes()?;
            let length = match second & 0x7f {
                126 => u64::from(u16::from_be_bytes(self.bytes()?)),
                127 => u64::from_be_bytes(self.bytes()?),
                short => u64::from(short),
            };
            ensure!(length <= MAX_FRAME, "a frame of {length} bytes");
            let mut payload = Vec::new();
            Read::by_ref(&mut self.0).take(length).read_to_end(&mut payload)?;
            match first & 0x0f {
                1 => return serde_json::from_slice(&payload).context("no JSON"),
                8 => bail!("closed: {}", String::from_utf8_lossy(&payload)),
                _ => {}
            }
        }
    }

    /// Waits for the answer to a request; events are passed over.
    ///
    /// # Errors
    /// When the connection ends.
    pub fn answer(&mut self, request: &Value) -> Result<Value> {
        self.send(&request.to_string())?;
        loop {
            let received = self.receive()?;
            if received["type"] == "res" && received["id"] == request["id"] {
                return Ok(received);
            }
        }
    }

    fn send(&mut self, text: &str) -> Result<()> {
        // A mask of zeros leaves the text as it is.
        let mut frame = match (u8::try_from(text.len()), u16::try_from(text.len())) {
            (Ok(length @ 0..126), _) => vec![0x81, 0x80 | length],
            (_, Ok(length)) => [vec![0x81, 0xfe], length.to_be_bytes().to_vec()].concat(),
            _ => bail!("a text of {} bytes is too long for a test", text.len()),
        };
        frame.extend([0; 4]);
        frame.extend(text.as_bytes());
        self.0.write_all(&frame).context("cannot send")
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.0.read_exact(&mut bytes).context("the connection ended")?;
        Ok(bytes)
    }
}
