//! Against a gateway in this process, well-behaved and hostile.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::*;

/// No test waits longer; those that wait for a deadline use [`SHORT`].
const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(100);

const TOKEN: &str = "the token";
const UPGRADED: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
const CHALLENGE: &str =
    r#"{"type":"event","event":"connect.challenge","payload":{"nonce":"n-1","ts":1795250243891}}"#;
const HELLO: &str =
    r#"{"type":"hello-ok","protocol":4,"snapshot":{"suspension":{"phase":"accepting"}}}"#;

/// The gateway's end.
struct Gateway(WebSocketStream<TcpStream>);

impl Gateway {
    async fn text(&mut self, text: &str) {
        self.0.send(Message::text(text)).await.unwrap();
    }

    async fn request(&mut self) -> Value {
        let message = self.0.next().await.unwrap().unwrap();
        serde_json::from_str(message.to_text().unwrap()).unwrap()
    }

    /// Answers the next request, which must be for `method`; returns its parameters.
    async fn answer(&mut self, method: &str, outcome: Result<&str, &str>) -> Value {
        let request = self.request().await;
        assert_eq!(
            (request["type"].as_str(), request["method"].as_str()),
            (Some("req"), Some(method))
        );
        let (ok, name, value) = match outcome {
            Ok(payload) => (true, "payload", payload),
            Err(error) => (false, "error", error),
        };
        let id = &request["id"];
        self.text(&format!(r#"{{"type":"res","id":{id},"ok":{ok},"{name}":{value}}}"#)).await;
        request["params"].clone()
    }

    async fn logged_in(&mut self) {
        self.text(CHALLENGE).await;
        self.answer("connect", Ok(HELLO)).await;
    }
}

/// Serves one connection, from the upgrade on; returns the request's head and the connection.
async fn serve(
    listener: &TcpListener,
    script: impl AsyncFnOnce(&mut Gateway),
) -> (String, Gateway) {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut head = vec![0; 4096];
    let length = stream.read(&mut head).await.unwrap();
    stream.write_all(UPGRADED.as_bytes()).await.unwrap();
    let socket = WebSocketStream::from_raw_socket(stream, Role::Server, None).await;
    let mut gateway = Gateway(socket);
    script(&mut gateway).await;
    (String::from_utf8_lossy(&head[..length]).into_owned(), gateway)
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn device() -> Device {
    Device::from_pkcs8(&Device::generate().unwrap()).unwrap()
}

async fn connect(
    address: SocketAddr,
    device: &Device,
    deadline: Duration,
) -> Result<Rpc, RpcError> {
    let login = Login { token: TOKEN, device, display_name: "a host" };
    let target = Target::new(address).forwarded_for([192, 0, 2, 1].into());
    Rpc::connect(&target, &login, deadline).await
}

/// What becomes of a call while the gateway follows a script.
async fn outcome(
    deadline: Duration,
    script: impl AsyncFnOnce(&mut Gateway),
) -> Result<(), RpcError> {
    let (listener, address) = listen().await;
    let device = device();
    let client = async {
        let mut rpc = connect(address, &device, deadline).await?;
        rpc.health(deadline).await
    };
    let gateway = async {
        let _open = serve(&listener, script).await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        outcome = client => outcome,
        () = gateway => unreachable!("it is served without end"),
    }
}

async fn problem(script: impl AsyncFnOnce(&mut Gateway)) -> String {
    outcome(LONG, script).await.expect_err("an error").to_string()
}

#[tokio::test]
async fn a_login_is_signed_and_calls_are_answered_among_events() {
    let (listener, address) = listen().await;
    let device = device();
    let id = device.id().to_owned();
    let gateway = serve(&listener, async |gateway: &mut Gateway| {
        gateway.text(CHALLENGE).await;
        let login = gateway.answer("connect", Ok(HELLO)).await;
        assert_eq!(login["auth"], json!({ "token": TOKEN }));
        assert_eq!(login["client"]["displayName"], "a host");
        let claim = Claim {
            client_id: "gateway-client",
            client_mode: "backend",
            role: "operator",
            scopes: &["operator.admin"],
            signed_at: 1_795_250_243_891,
            token: TOKEN,
            nonce: "n-1",
            platform: "linux",
        };
        let text = |name: &str| login["device"][name].as_str().unwrap().to_owned();
        assert!(claim.is_signed_by(&text("id"), &text("publicKey"), &text("signature")));
        assert_eq!(text("id"), id);
        gateway.text(r#"{"type":"event","event":"tick","payload":{"deep":[[[[1]]]]}}"#).await;
        gateway.0.send(Message::Ping("p".into())).await.unwrap();
        gateway.text(r#"{"type":"res","id":"77","ok":true,"payload":{}}"#).await;
        let ready = r#"{"status":"ready","suspensionId":"s-1","expiresAtMs":99,"blockers":[]}"#;
        let asked = gateway.answer("gateway.suspend.prepare", Ok(ready)).await;
        assert_eq!(asked, json!({ "requestId": "r" }));
        assert!(matches!(gateway.0.next().await, Some(Ok(Message::Pong(_)))), "pings are answered");
        let resumed = r#"{"ok":true,"status":"running","resumed":true}"#;
        let asked = gateway.answer("gateway.suspend.resume", Ok(resumed)).await;
        assert_eq!(asked, json!({ "suspensionId": "s-1" }));
        let busy = r#"{"status":"busy","reason":"active-work","retryAfterMs":20000,"blockers":[{"kind":"reply","count":1,"message":"1 reply"}]}"#;
        gateway.answer("gateway.suspend.prepare", Ok(busy)).await;
    });
    let client = async {
        let mut rpc = connect(address, &device, LONG).await.unwrap();
        let prepared = rpc.suspend_prepare("r", LONG).await.unwrap();
        let suspension = Suspension { id: "s-1".to_owned(), expires_at_ms: 99 };
        assert_eq!(prepared, Prepared::Ready(suspension));
        assert!(rpc.suspend_resume("s-1", LONG).await.unwrap());
        let busy = Prepared::Busy("1 reply".to_owned());
        assert_eq!(rpc.suspend_prepare("r", LONG).await.unwrap(), busy);
    };
    let ((head, _open), ()) = tokio::join!(gateway, client);
    assert!(head.starts_with("GET / HTTP/1.1\r\n"), "{head}");
    assert!(head.contains("x-forwarded-for: 192.0.2.1\r\n"), "{head}");
}

#[tokio::test]
async fn a_wish_to_resume_is_sent_before_the_gateway_reads_it() {
    let (listener, address) = listen().await;
    let device = device();
    let sent = tokio::sync::Notify::new();
    let gateway = serve(&listener, async |gateway: &mut Gateway| {
        gateway.logged_in().await;
        // Frozen, until the other side has sent everything.
        sent.notified().await;
        gateway.answer("gateway.suspend.resume", Ok(r#"{"resumed":false}"#)).await;
    });
    let client = async {
        let mut rpc = connect(address, &device, LONG).await.unwrap();
        let resuming = rpc.send_resume("s-1", LONG).await.unwrap();
        sent.notify_one();
        assert!(!rpc.resumed(resuming, LONG).await.unwrap());
    };
    tokio::join!(gateway, client);
}

#[tokio::test]
async fn a_device_that_is_not_paired_learns_its_request() {
    let refusal = |details: &'static str| async move {
        let text = format!(r#"{{"code":"NOT_PAIRED","message":"m"{details}}}"#);
        let outcome = outcome(LONG, async |gateway: &mut Gateway| {
            gateway.text(CHALLENGE).await;
            gateway.answer("connect", Err(&text)).await;
        });
        outcome.await.expect_err("an error")
    };
    let known =
        refusal(r#","details":{"code":"PAIRING_REQUIRED","requestId":"f0166aeb-b8ef"}"#).await;
    assert!(matches!(known, RpcError::NotPaired { request_id } if request_id == "f0166aeb-b8ef"));
    // It becomes an argument: nothing that could be taken for an option or be very long.
    for details in [
        "",
        r#","details":{"requestId":"--latest"}"#,
        r#","details":{"requestId":"a b"}"#,
        r#","details":{"requestId":7}"#,
    ] {
        let error = refusal(details).await;
        assert!(matches!(error, RpcError::Protocol { .. }), "{details}: {error:?}");
    }
}

#[tokio::test]
async fn refusals_are_repeated_in_bounds() {
    let message = format!("{}\\u001b[31m", "x".repeat(500));
    let error = problem(async |gateway: &mut Gateway| {
        gateway.logged_in().await;
        let refusal = format!(r#"{{"code":"UNAVAILABLE","message":"{message}","retryable":true}}"#);
        gateway.answer("health", Err(&refusal)).await;
    });
    let error = error.await;
    assert!(error.starts_with("health was refused: UNAVAILABLE: xxx"), "{error}");
    assert_eq!(error.chars().filter(|c| *c == 'x').count(), MAX_WORDS, "{error}");
    assert_eq!(words("a\u{1b}[31m\n"), "a [31m ");
}

#[tokio::test]
async fn a_gateway_that_is_silent_or_gone_is_told_apart() {
    let silent = outcome(SHORT, async |gateway: &mut Gateway| gateway.logged_in().await).await;
    assert!(matches!(silent, Err(RpcError::TimedOut { doing: "health", .. })), "{silent:?}");
    let mute = outcome(SHORT, async |_: &mut Gateway| std::future::pending().await).await;
    assert!(matches!(mute, Err(RpcError::TimedOut { doing: "connect", .. })), "{mute:?}");
    // Not started yet: OpenClaw closes with 1013.
    let starting = problem(async |gateway: &mut Gateway| {
        gateway.0.send(Message::binary(vec![0x03, 0xf5])).await.unwrap();
        let frame = tokio_tungstenite::tungstenite::protocol::CloseFrame {
            code: 1013.into(),
            reason: "later".into(),
        };
        gateway.0.close(Some(frame)).await.unwrap();
    });
    assert_eq!(starting.await, "the gateway closed the connection: 1013 later");
    let gone =
        outcome(LONG, async |gateway: &mut Gateway| gateway.0.get_mut().shutdown().await.unwrap())
            .await;
    assert!(matches!(gone, Err(RpcError::Broken(_) | RpcError::Closed(_))), "{gone:?}");
    let (listener, address) = listen().await;
    drop(listener);
    let refused = connect(address, &device(), LONG).await.expect_err("nobody listens");
    assert!(matches!(refused, RpcError::Open(ProbeError::Refused { .. })), "{refused:?}");
}

#[tokio::test]
async fn what_is_no_upgrade_is_told_with_its_status() {
    for (answer, expected) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi", "status 200"),
        (
            "HTTP/1.1 403 Forbidden\r\ncontent-length: 49\r\n\r\n{\"error\":{\"type\":\"proxy_attribution_required\"}}  ",
            "attribute the request",
        ),
        (
            "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
            "status 101",
        ),
    ] {
        let (listener, address) = listen().await;
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = vec![0; 4096];
            let _ = stream.read(&mut head).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            stream
        };
        let device = device();
        let (_stream, refused) = tokio::join!(server, connect(address, &device, LONG));
        let RpcError::Open(error) = refused.expect_err("no upgrade") else { panic!("{answer}") };
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[tokio::test]
async fn hostile_messages_are_refused() {
    let first =
        async |text: String| problem(async |gateway: &mut Gateway| gateway.text(&text).await).await;
    let another_form = "the answer to connect has another form";
    let nonce = |nonce: &str| CHALLENGE.replace("n-1", nonce);
    for text in [
        "no JSON".to_owned(),
        "[".repeat(100_000),
        r#"{"type":"event","event":"tick","payload":{}}"#.to_owned(),
        nonce("a|b"),
        nonce(&"n".repeat(257)),
        CHALLENGE.replace("1795250243891", "-1"),
    ] {
        assert_eq!(first(text.clone()).await, another_form, "{text:.80}");
    }
    let protocol = problem(async |gateway: &mut Gateway| {
        gateway.text(CHALLENGE).await;
        gateway.answer("connect", Ok(r#"{"protocol":5}"#)).await;
    });
    assert_eq!(protocol.await, "connect: it speaks another protocol");
    let odd = problem(async |gateway: &mut Gateway| {
        gateway.logged_in().await;
        gateway.answer("health", Ok("7")).await;
    });
    assert_eq!(odd.await, "the answer to health has another form");
}

#[tokio::test]
async fn large_messages_and_floods_are_cut_off() {
    // A head that promises 2^40 bytes, and no more: nothing is reserved for them.
    let promised = problem(async |gateway: &mut Gateway| {
        let head = [0x81, 127, 0, 0, 1, 0, 0, 0, 0, 0];
        gateway.0.get_mut().write_all(&head).await.unwrap();
    });
    assert_eq!(promised.await, "a message is larger than 1048576 bytes");
    let fragments = problem(async |gateway: &mut Gateway| {
        let (first, next) = ([[0x01, 127].as_slice(), &(1_u64 << 19).to_be_bytes()], 0x00);
        let part = vec![b' '; 1 << 19];
        for head in [first[0][0], next, next] {
            let head = [[head].as_slice(), &first.concat()[1..]].concat();
            // It hangs up before the last one was taken.
            if gateway.0.get_mut().write_all(&[head, part.clone()].concat()).await.is_err() {
                return;
            }
        }
    });
    assert_eq!(fragments.await, "a message is larger than 1048576 bytes");
    let flood = problem(async |gateway: &mut Gateway| {
        gateway.logged_in().await;
        let event = format!(r#"{{"type":"event","event":"{}"}}"#, "x".repeat(1 << 19));
        while gateway.0.send(Message::text(event.clone())).await.is_ok() {}
    });
    assert_eq!(flood.await, "no answer to health among 8388608 bytes");
    let masked = problem(async |gateway: &mut Gateway| {
        gateway.0.get_mut().write_all(&[0x81, 0x85, 1, 2, 3, 4, 0, 0, 0, 0, 0]).await.unwrap();
    });
    assert_eq!(masked.await, "the connection broke");
}

#[test]
fn a_login_shows_no_token() {
    let device = device();
    let login = Login { token: TOKEN, device: &device, display_name: "a host" };
    assert!(!format!("{login:?}").contains(TOKEN));
}
