//! Floods, slowness and nonsense below gRPC. Whoever behaves must not notice.

use std::time::Duration;

use claw_identity::Role;
use claw_proto::fleet::v1::{self as fleet};
use http::{Request, Version};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tonic::Code;

use crate::fixture::{Fleet, client_tls, connect, handshake, soon, tls};

async fn h2_client(
    fleet: &Fleet,
) -> (h2::client::SendRequest<bytes::Bytes>, tokio::task::JoinHandle<Result<(), h2::Error>>) {
    let identity = fleet.identity(Role::Operator, "mallory");
    let stream = handshake(fleet.address(), client_tls(&identity)).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    let task = tokio::spawn(connection);
    (client.ready().await.unwrap(), task)
}

fn request(path: &str) -> http::request::Builder {
    Request::builder()
        .method("POST")
        .version(Version::HTTP_2)
        .uri(format!("https://localhost{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
}

const GET_HOST: &str = "/claw.fleet.v1.HostService/GetHost";

async fn still_serves(fleet: &Fleet) {
    let mut operator = soon(fleet.operator()).await;
    let listed = operator.hosts.list_hosts(fleet::ListHostsRequest::default());
    soon(listed).await.unwrap();
}

#[tokio::test]
async fn silent_connections_hold_nobody_up_and_are_closed() {
    let fleet = Fleet::start_with(|config| {
        config.listener.handshake_timeout = Duration::from_secs(2);
    })
    .await;
    let mut silent = Vec::new();
    for _connection in 0..300 {
        silent.push(TcpStream::connect(fleet.address()).await.unwrap());
    }
    let begin = Instant::now();
    still_serves(&fleet).await;
    assert!(begin.elapsed() < Duration::from_secs(30));
    for mut stream in silent {
        let mut buffer = [0; 1];
        assert_eq!(soon(stream.read(&mut buffer)).await.unwrap_or(0), 0);
    }
}

#[tokio::test]
async fn the_oldest_handshake_of_a_source_makes_room() {
    let fleet = Fleet::start_with(|config| {
        config.listener.handshake_timeout = Duration::from_secs(3600);
        config.listener.handshakes_per_source = 4;
    })
    .await;
    let mut silent = Vec::new();
    for _connection in 0..8 {
        silent.push(TcpStream::connect(fleet.address()).await.unwrap());
    }
    still_serves(&fleet).await;
    // The oldest ones are gone although the timeout is far away.
    for stream in silent.iter_mut().take(4) {
        let mut buffer = [0; 1];
        assert_eq!(soon(stream.read(&mut buffer)).await.unwrap_or(0), 0);
    }
}

#[tokio::test]
async fn half_a_handshake_is_closed() {
    let fleet = Fleet::start_with(|config| {
        config.listener.handshake_timeout = Duration::from_millis(300);
    })
    .await;
    let mut stream = TcpStream::connect(fleet.address()).await.unwrap();
    // A record header that announces more than follows.
    stream.write_all(&[0x16, 0x03, 0x01, 0x02, 0x00, 0x01]).await.unwrap();
    let mut buffer = Vec::new();
    soon(stream.read_to_end(&mut buffer)).await.unwrap_or(0);
    still_serves(&fleet).await;
}

#[tokio::test]
async fn noise_instead_of_tls_is_closed() {
    let fleet = Fleet::start().await;
    let mut stream = TcpStream::connect(fleet.address()).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut buffer = Vec::new();
    soon(stream.read_to_end(&mut buffer)).await.unwrap_or(0);
    still_serves(&fleet).await;
}

#[tokio::test]
async fn a_connection_without_certificate_is_short() {
    let fleet = Fleet::start_with(|config| {
        config.lifetimes.anonymous = Duration::from_millis(300);
        config.listener.anonymous_per_source = 2;
    })
    .await;
    let config = || tls().enrolment_client(fleet.authority.spki_pin()).unwrap();
    // TLS is done, HTTP/2 never begins.
    let mut held = Vec::new();
    for _connection in 0..2 {
        held.push(handshake(fleet.address(), config()).await.unwrap());
    }
    for mut stream in held {
        let mut buffer = Vec::new();
        soon(stream.read_to_end(&mut buffer)).await.unwrap_or(0);
    }
    still_serves(&fleet).await;
}

#[tokio::test]
async fn too_many_connections_without_certificate_are_refused() {
    let fleet = Fleet::start_with(|config| config.listener.anonymous_per_source = 1).await;
    let config = || tls().enrolment_client(fleet.authority.spki_pin()).unwrap();
    let _first = connect(fleet.address(), config()).await.unwrap();
    let mut second = handshake(fleet.address(), config()).await.unwrap();
    let mut buffer = Vec::new();
    soon(second.read_to_end(&mut buffer)).await.unwrap_or(0);
    still_serves(&fleet).await;
}

#[tokio::test]
async fn rapid_reset_ends_the_connection() {
    let fleet = Fleet::start().await;
    let (mut client, connection) = h2_client(&fleet).await;
    for _stream in 0..2_000 {
        let Ok(ready) = client.clone().ready().await else { break };
        client = ready;
        let Ok((answer, mut body)) =
            client.send_request(request(GET_HOST).body(()).unwrap(), false)
        else {
            break;
        };
        body.send_reset(h2::Reason::CANCEL);
        drop(answer);
    }
    let ended = soon(connection).await.unwrap();
    // The farewell may be lost when the socket is closed on what is still on its way.
    let reason = ended.unwrap_err().reason();
    assert!(matches!(reason, None | Some(h2::Reason::ENHANCE_YOUR_CALM)), "{reason:?}");
    still_serves(&fleet).await;
}

#[tokio::test]
async fn streams_at_a_time_are_bounded() {
    let fleet = Fleet::start().await;
    let (mut client, _connection) = h2_client(&fleet).await;
    let (answer, _body) = client.send_request(request("/none").body(()).unwrap(), true).unwrap();
    soon(answer).await.unwrap();
    assert_eq!(client.current_max_send_streams(), 128);
    let mut open = Vec::new();
    for _stream in 0..128 {
        client = client.ready().await.unwrap();
        open.push(client.send_request(request(GET_HOST).body(()).unwrap(), false).unwrap());
    }
    still_serves(&fleet).await;
}

#[tokio::test]
async fn a_header_bomb_is_refused() {
    let fleet = Fleet::start().await;
    let (mut client, _connection) = h2_client(&fleet).await;
    let bomb = request(GET_HOST).header("x-bomb", "x".repeat(64 * 1024)).body(()).unwrap();
    let (answer, _body) = client.send_request(bomb, true).unwrap();
    match soon(answer).await {
        Ok(response) => assert_eq!(response.status(), 431),
        Err(error) => assert!(error.is_remote() || error.is_io(), "{error}"),
    }
    still_serves(&fleet).await;
}

#[tokio::test]
async fn half_a_message_runs_into_the_deadline() {
    let fleet = Fleet::start_with(|config| {
        config.lifetimes.call = Duration::from_millis(500);
    })
    .await;
    let (mut client, _connection) = h2_client(&fleet).await;
    let (answer, mut body) =
        client.send_request(request(GET_HOST).body(()).unwrap(), false).unwrap();
    // A message of 100 bytes is announced, ten come.
    body.send_data(bytes::Bytes::from_static(&[0, 0, 0, 0, 100, 1, 2, 3, 4, 5]), false).unwrap();
    let response = soon(answer).await.unwrap();
    assert_eq!(response.headers()["grpc-status"], "4");
}

#[tokio::test]
async fn a_message_that_announces_too_much_is_refused_unread() {
    let fleet = Fleet::start().await;
    let (mut client, _connection) = h2_client(&fleet).await;
    let (answer, mut body) =
        client.send_request(request(GET_HOST).body(()).unwrap(), false).unwrap();
    body.send_data(bytes::Bytes::from_static(&[0, 0xff, 0xff, 0xff, 0xff, 1]), false).unwrap();
    let response = soon(answer).await.unwrap();
    assert_eq!(response.headers()["grpc-status"], "8");
}

#[tokio::test]
async fn a_message_that_is_none_is_refused() {
    let fleet = Fleet::start().await;
    let (mut client, _connection) = h2_client(&fleet).await;
    let (answer, mut body) =
        client.send_request(request(GET_HOST).body(()).unwrap(), false).unwrap();
    let nonsense = [0, 0, 0, 0, 4, 0xff, 0xff, 0xff, 0xff];
    body.send_data(bytes::Bytes::copy_from_slice(&nonsense), true).unwrap();
    let response = soon(answer).await.unwrap();
    let code: i32 = response.headers()["grpc-status"].to_str().unwrap().parse().unwrap();
    assert!(matches!(Code::from(code), Code::Internal | Code::InvalidArgument), "{code}");
    still_serves(&fleet).await;
}
