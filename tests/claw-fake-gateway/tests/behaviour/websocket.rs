//! WebSocket connections.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use openclaw::probe::{ProbeError, Target};

use crate::gateway::{Home, PATIENCE, body, connect};

/// The example key of RFC 6455, section 1.3.
const UPGRADE: &str = "GET /ws HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\n\
    Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

fn upgrade(address: SocketAddr) -> TcpStream {
    let mut stream = connect(address);
    stream.write_all(UPGRADE.as_bytes()).unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert!(head.contains("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"), "{head}");
    let (opcode, challenge) = receive(&mut stream);
    let challenge = String::from_utf8(challenge).unwrap();
    assert_eq!(opcode, 1);
    assert!(challenge.contains(r#""event":"connect.challenge""#), "{challenge}");
    stream
}

/// Sends a frame of less than 126 bytes, masked with zeros.
fn send(stream: &mut TcpStream, opcode: u8, payload: &[u8]) {
    let length = u8::try_from(payload.len()).unwrap();
    assert!(length < 126);
    stream.write_all(&[&[0x80 | opcode, 0x80 | length, 0, 0, 0, 0], payload].concat()).unwrap();
}

fn receive(stream: &mut TcpStream) -> (u8, Vec<u8>) {
    let mut head = [0; 2];
    stream.read_exact(&mut head).unwrap();
    let length = match head[1] {
        126 => {
            let mut length = [0; 2];
            stream.read_exact(&mut length).unwrap();
            usize::from(u16::from_be_bytes(length))
        }
        short => usize::from(short),
    };
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload).unwrap();
    (head[0] & 0x0f, payload)
}

fn request(stream: &mut TcpStream, text: &str) -> serde_json::Value {
    send(stream, 1, text.as_bytes());
    serde_json::from_slice(&receive(stream).1).unwrap()
}

fn probe_upgrade(address: SocketAddr) -> Result<(), ProbeError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(Target::new(address).probe_websocket_upgrade("/ws", PATIENCE))
}

#[test]
fn an_upgrade_is_accepted_and_frames_pass() {
    let home = Home::configured();
    let mut gateway = home.start(&[]);
    let mut stream = upgrade(gateway.ready());
    send(&mut stream, 1, b"hello");
    assert_eq!(receive(&mut stream), (1, b"hello".to_vec()));
    send(&mut stream, 9, b"ping");
    assert_eq!(receive(&mut stream), (10, b"ping".to_vec()));
    send(&mut stream, 8, &[]);
    assert_eq!(receive(&mut stream), (8, Vec::new()));
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
}

#[test]
fn only_the_right_token_is_greeted() {
    let home = Home::configured();
    let mut gateway = home.start(&[]);
    let mut stream = upgrade(gateway.ready());
    let ask = |token| {
        format!(
            r#"{{"type":"req","id":1,"method":"connect","params":{{"auth":{{"token":"{token}"}}}}}}"#
        )
    };
    assert_eq!(request(&mut stream, &ask("wrong"))["ok"], false);
    assert_eq!(request(&mut stream, &ask("t0ken"))["payload"]["type"], "hello-ok");
    let health = request(&mut stream, r#"{"type":"req","id":2,"method":"health"}"#);
    assert_eq!((&health["id"], &health["ok"]), (&2.into(), &true.into()));
    let other = request(&mut stream, r#"{"type":"req","id":3,"method":"x"}"#);
    assert_eq!(other["error"]["code"], "INVALID_REQUEST");
}

#[test]
fn before_the_start_it_is_closed_with_try_again_later() {
    let home = Home::configured();
    let mut gateway = home.start(&[("STARTING_MS", "60000")]);
    let mut stream = upgrade(gateway.listening());
    assert_eq!(receive(&mut stream), (8, 1013_u16.to_be_bytes().to_vec()));
}

#[test]
fn the_products_probe_sees_the_upgrade() {
    let home = Home::configured();
    let mut gateway = home.start(&[]);
    probe_upgrade(gateway.ready()).unwrap();
}

#[test]
fn the_products_probe_is_not_fooled_by_a_page() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let answers = [
        "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: bm9uc2Vuc2U=\r\n\r\n",
    ];
    let server = std::thread::spawn(move || {
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 1024]).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    for expected in [200, 101] {
        match probe_upgrade(address) {
            Err(ProbeError::NotUpgraded { status }) => assert_eq!(status, expected),
            other => panic!("{other:?}"),
        }
    }
    server.join().unwrap();
}

#[test]
fn connections_beyond_the_bound_are_closed_and_slots_come_back() {
    let home = Home::configured();
    let mut gateway = home.start(&[("CONTROL", "1")]);
    let address = gateway.ready();
    let open: Vec<_> = (0..64).map(|_| upgrade(address)).collect();
    // Reset or end of file, depending on what arrives first; never an answer.
    let mut one_more = connect(address);
    let _ = one_more.write_all(b"GET /healthz HTTP/1.1\r\nHost: test\r\n\r\n");
    let mut answer = Vec::new();
    let _ = one_more.read_to_end(&mut answer);
    assert!(answer.is_empty(), "{answer:?}");
    drop(open);
    // Each slot comes back when its thread has seen the end of its connection.
    let again = || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let _ = stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: test\r\n\r\n");
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        !answer.is_empty()
    };
    let came_back = (0..1000).any(|_| {
        again() || {
            std::thread::sleep(std::time::Duration::from_millis(10));
            false
        }
    });
    assert!(came_back);
    assert!(body(address, "/__fake/token-sha256").len() == 64);
}
