//! Enough of WebSocket (RFC 6455) to show that an upgrade passes through a proxy, and to carry the RPC.
//!
//! Sends the `connect.challenge` event like the real gateway, hands requests to [`crate::rpc`], echoes text
//! that is no request, answers pings and closes. A gateway that has not started closes with 1013, as the real
//! one.

use std::io::{self, Read, Write};
use std::net::TcpStream;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::clock;
use crate::ingress::Ingress;
use crate::request::Request;
use crate::route::Site;
use crate::rpc::Session;
use crate::sha1;
use crate::startup::random_hex;
use crate::status::Phase;

/// The constant of RFC 6455, section 1.3.
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The largest frame that is read, in bytes.
const MAX_FRAME: u64 = 64 * 1024;

const TEXT: u8 = 1;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// Close codes of RFC 6455, section 7.4, and the registry beside it.
const PROTOCOL_ERROR: u16 = 1002;
const TRY_AGAIN_LATER: u16 = 1013;

/// The key of a request for an upgrade.
pub(crate) fn key(request: &Request) -> Option<&str> {
    let upgrade = request.header("upgrade")?;
    (request.method == "GET" && upgrade.eq_ignore_ascii_case("websocket"))
        .then(|| request.header("sec-websocket-key"))?
}

/// Accepts the upgrade and serves the connection until it closes.
pub(crate) fn serve(
    mut stream: TcpStream,
    key: &str,
    ingress: Ingress,
    site: &Site,
) -> io::Result<()> {
    let accept = STANDARD.encode(sha1::digest(format!("{key}{GUID}").as_bytes()));
    let head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n\r\n"
    );
    stream.write_all(head.as_bytes())?;
    let mut session = Session::new(random_hex()?, clock::unix_millis(), ingress == Ingress::Local);
    send(&mut stream, TEXT, session.challenge().as_bytes())?;
    if site.status.phase() != Phase::Started {
        return close(&mut stream, TRY_AGAIN_LATER);
    }
    while let Some((opcode, payload)) = receive(&mut stream)? {
        match opcode {
            TEXT => {
                let reply = session.respond(site, payload);
                send(&mut stream, TEXT, &reply.text)?;
                if let Some(code) = reply.close {
                    return close(&mut stream, code);
                }
            }
            PING => send(&mut stream, PONG, &payload)?,
            PONG => {}
            CLOSE => return send(&mut stream, CLOSE, &payload),
            _ => return close(&mut stream, PROTOCOL_ERROR),
        }
    }
    close(&mut stream, PROTOCOL_ERROR)
}

/// Reads one frame; `None` if it is none that a client may send here.
fn receive(stream: &mut impl Read) -> io::Result<Option<(u8, Vec<u8>)>> {
    let [first, second] = read_array(stream)?;
    let length = match second & 0x7f {
        126 => u64::from(u16::from_be_bytes(read_array(stream)?)),
        127 => u64::from_be_bytes(read_array(stream)?),
        short => u64::from(short),
    };
    let (whole, masked) = (first & 0xf0 == 0x80, second & 0x80 != 0);
    if !whole || !masked || length > MAX_FRAME {
        return Ok(None);
    }
    let mask: [u8; 4] = read_array(stream)?;
    let mut payload = Vec::new();
    stream.take(length).read_to_end(&mut payload)?;
    for (byte, mask) in payload.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
    Ok(Some((first & 0x0f, payload)))
}

fn read_array<const N: usize>(stream: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Sends one frame. Nothing sent here is longer than what was received, so the length fits.
fn send(stream: &mut impl Write, opcode: u8, payload: &[u8]) -> io::Result<()> {
    let mut frame = vec![0x80 | opcode];
    match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
        (Ok(length @ 0..126), _) => frame.push(length),
        (_, Ok(length)) => {
            frame.push(126);
            frame.extend(length.to_be_bytes());
        }
        _ => {
            frame.push(127);
            frame.extend(u64::try_from(payload.len()).unwrap_or(u64::MAX).to_be_bytes());
        }
    }
    frame.extend_from_slice(payload);
    stream.write_all(&frame)
}

fn close(stream: &mut impl Write, code: u16) -> io::Result<()> {
    send(stream, CLOSE, &code.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_unmasked() {
        // "Hello", masked: the example of RFC 6455, section 5.7.
        let frame = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
        let received = receive(&mut frame.as_slice()).unwrap();
        assert_eq!(received, Some((TEXT, b"Hello".to_vec())));
    }

    #[test]
    fn frames_that_no_client_may_send_are_refused() {
        let unmasked = [0x81, 0x05, b'H', b'e', b'l', b'l', b'o'];
        let fragment = [0x01, 0x80, 0, 0, 0, 0];
        let huge = [0x82, 0xff, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
        for frame in [unmasked.as_slice(), &fragment, &huge] {
            assert_eq!(receive(&mut &*frame).unwrap(), None, "{frame:?}");
        }
    }

    #[test]
    fn lengths_take_the_form_that_fits() {
        for (length, head) in [
            (125, vec![0x81, 125]),
            (126, vec![0x81, 126, 0, 126]),
            (65_536, vec![0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
        ] {
            let mut frame = Vec::new();
            send(&mut frame, TEXT, &vec![b'x'; length]).unwrap();
            assert_eq!(frame.strip_suffix(vec![b'x'; length].as_slice()), Some(head.as_slice()));
        }
    }
}
