//! The fake gateway as the product's own probes see it: the client and the double agree.

use std::net::SocketAddr;
use std::time::Duration;

use nix::sys::signal::Signal;
use openclaw::probe::{BodyKind, ProbeAnswer, ProbeError, ProbePath, Target};

use crate::gateway::{Home, PATIENCE, ask, body, get};

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn probe(target: &Target<'_>, path: ProbePath) -> Result<ProbeAnswer, ProbeError> {
    block_on(target.probe(path, PATIENCE))
}

fn answer(address: SocketAddr, path: ProbePath) -> ProbeAnswer {
    probe(&Target::new(address), path).unwrap()
}

fn failing(name: &str) -> Vec<String> {
    vec![name.to_owned()]
}

#[test]
fn the_phases_of_a_start_are_refused_then_starting_then_started() {
    let home = Home::configured();
    let address = {
        let mut gateway = home.start(&[("STARTING_MS", "60000")]);
        let address = gateway.listening();
        assert_eq!(answer(address, ProbePath::Live), ProbeAnswer::Live);
        assert_eq!(
            answer(address, ProbePath::Startup),
            ProbeAnswer::Starting { status: 503, failing: failing("startup-sidecars") }
        );
        assert_eq!(
            answer(address, ProbePath::Ready),
            ProbeAnswer::NotReady { failing: failing("startup-sidecars") }
        );
        address
    };
    let error = probe(&Target::new(address), ProbePath::Live).unwrap_err();
    assert!(matches!(error, ProbeError::Refused { .. }), "{error:?}");

    let mut gateway = home.start(&[]);
    let address = gateway.ready();
    assert_eq!(answer(address, ProbePath::Startup), ProbeAnswer::Started);
    assert_eq!(answer(address, ProbePath::Ready), ProbeAnswer::Ready);
}

#[test]
fn draining_is_seen() {
    let home = Home::configured();
    let mut gateway = home.start(&[("DRAIN_MS", "60000")]);
    let address = gateway.ready();
    gateway.signal(Signal::SIGTERM);
    gateway.wait_for_log("shutting down");
    assert_eq!(answer(address, ProbePath::Startup), ProbeAnswer::Draining);
    assert_eq!(answer(address, ProbePath::Ready), ProbeAnswer::Draining);
}

#[test]
fn faults_on_demand_are_seen_and_can_be_healed() {
    let home = Home::configured();
    let mut gateway = home.start(&[("UNHEALTHY", "1"), ("CONTROL", "1")]);
    let address = gateway.ready();
    let starting = |answer| matches!(answer, ProbeAnswer::Starting { .. });
    assert!(starting(answer(address, ProbePath::Startup)));
    assert_eq!(body(address, "/__fake/healthy"), "ok");
    assert_eq!(answer(address, ProbePath::Startup), ProbeAnswer::Started);
    assert_eq!(body(address, "/__fake/not-ready"), "ok");
    assert_eq!(
        answer(address, ProbePath::Ready),
        ProbeAnswer::NotReady { failing: failing("fake-channel") }
    );
    assert_eq!(answer(address, ProbePath::Startup), ProbeAnswer::Started);
}

#[test]
fn forwarding_headers_from_a_stranger_are_the_trap() {
    let home = Home::configured();
    let mut gateway = home.start(&[]);
    let address = gateway.ready();
    let target = Target::new(address).forwarded_for("192.0.2.1".parse().unwrap());
    for path in [ProbePath::Startup, ProbePath::Ready] {
        let error = probe(&target, path).unwrap_err();
        assert!(matches!(error, ProbeError::ProxyAttribution), "{error:?}");
    }
    assert_eq!(probe(&target, ProbePath::Live).unwrap(), ProbeAnswer::Live);
    let error = block_on(target.probe_websocket_upgrade("/", PATIENCE)).unwrap_err();
    assert!(matches!(error, ProbeError::ProxyAttribution), "{error:?}");
}

#[test]
fn a_trusted_proxy_gets_details_only_with_the_token() {
    let home = Home::configured();
    home.write("openclaw.json", "{ gateway: { mode: 'local', trustedProxies: ['127.0.0.0/8'] } }");
    let mut gateway = home.start(&[("STARTING_MS", "60000")]);
    let address = gateway.listening();
    let target = Target::new(address).forwarded_for("192.0.2.1".parse().unwrap());
    let starting = |failing| ProbeAnswer::Starting { status: 503, failing };
    assert_eq!(probe(&target, ProbePath::Startup).unwrap(), starting(Vec::new()));
    assert_eq!(probe(&target.bearer("wrong"), ProbePath::Startup).unwrap(), starting(Vec::new()));
    assert_eq!(
        probe(&target.bearer("t0ken"), ProbePath::Startup).unwrap(),
        starting(failing("startup-sidecars"))
    );
    let loopback = Target::new(address).forwarded_for("127.0.0.9".parse().unwrap());
    let error = probe(&loopback, ProbePath::Startup).unwrap_err();
    assert!(matches!(error, ProbeError::ProxyAttribution), "{error:?}");
}

#[test]
fn a_hanging_gateway_times_out_and_never_answers() {
    let home = Home::configured();
    let mut gateway = home.start(&[("HANG", "1")]);
    let target = Target::new(gateway.ready());
    let deadline = Duration::from_millis(100);
    for path in [ProbePath::Live, ProbePath::Startup] {
        let error = block_on(target.probe(path, deadline)).unwrap_err();
        assert!(matches!(error, ProbeError::TimedOut { .. }), "{error:?}");
    }
}

#[test]
fn any_other_path_is_the_web_interface_and_no_probe() {
    let home = Home::configured();
    let mut gateway = home.start(&[]);
    let address = gateway.ready();
    for path in ["/", "/metrics", "/status", "/__fake/crash", "/healthzz"] {
        let answer = get(address, path);
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{path}: {answer}");
        assert!(answer.contains("<title>OpenClaw (fake)</title>"), "{path}: {answer}");
    }
    for path in ["/healthz/more", "/ready/"] {
        let answer = get(address, path);
        assert!(answer.starts_with("HTTP/1.1 404 "), "{path}: {answer}");
    }
    let answer = ask(address, "POST /startupz HTTP/1.1\r\nHost: test\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
    let answer = ask(address, "HEAD /startupz HTTP/1.1\r\nHost: test\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\n"), "{answer}");
    assert_eq!(ask(address, "not http\r\n\r\n"), "");
}

#[test]
fn what_is_no_gateway_is_not_taken_for_one() {
    use std::io::{Read, Write};
    let serve = |answer: String| {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = [0; 1024];
            let read = stream.read(&mut head).unwrap();
            // The prober may hang up on a long answer.
            let _ = stream.write_all(answer.as_bytes());
            String::from_utf8_lossy(head.split_at(read).0).into_owned()
        });
        let target = Target::new(address).host("tenant.example");
        let error = probe(&target, ProbePath::Live).unwrap_err();
        let head = server.join().unwrap();
        assert!(head.contains("host: tenant.example\r\n"), "{head}");
        error
    };
    let head = "HTTP/1.1 200 OK\r\nContent-Length:";
    let page = serve(format!("{head} 15\r\n\r\n<!doctype html>"));
    assert!(
        matches!(page, ProbeError::UnexpectedBody { status: 200, found: BodyKind::Html }),
        "{page:?}"
    );
    let huge = serve(format!("{head} 70000\r\n\r\n{}", " ".repeat(70_000)));
    assert!(matches!(huge, ProbeError::TooLarge), "{huge:?}");
    let endless = serve(format!("HTTP/1.1 200 OK\r\n\r\n{}", " ".repeat(70_000)));
    assert!(matches!(endless, ProbeError::TooLarge), "{endless:?}");
    let cut = serve(format!("{head} 70\r\n\r\n{{"));
    assert!(matches!(cut, ProbeError::Http { .. }), "{cut:?}");
    let other = serve("220 mail.example ESMTP\r\n".to_owned());
    assert!(matches!(other, ProbeError::Http { .. }), "{other:?}");
}
