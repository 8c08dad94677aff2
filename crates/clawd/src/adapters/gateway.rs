//! A gateway as its probes show it, directly and through the reverse proxy, and what it is asked to do.
//!
//! What it deliberately does not do: decide what an answer means for the instance, or remember
//! earlier answers. Where to start: [`OpenClaw::look`](Gateway::look); `control` asks, with the key of
//! `identity`.

mod control;
mod identity;

use std::error::Error;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use claw_core::plan::VirtualHost;
use openclaw::probe::{ProbeAnswer, ProbeError, ProbePath, Target};

use crate::ports::{Gateway, GatewayAnswer};

/// On whose behalf the agent asks: an address of TEST-NET-1 (RFC 5737), which nobody has.
///
/// The agent asks from the bridge's address, which is one of the gateway's trusted proxies; from
/// such an address a request must name a client that is neither a trusted proxy nor loopback, or
/// it is refused (OpenClaw 2026.9.6, `proxy_attribution_required`).
pub const PROBE_CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

/// Deadline of one request; a look makes one, then two side by side, and stays below 5 s.
const REQUEST: Duration = Duration::from_millis(2400);

pub use control::Suspended;

/// Looks at OpenClaw gateways, and asks them.
#[derive(Debug, Clone)]
pub struct OpenClaw {
    proxy: SocketAddr,
    data: PathBuf,
}

impl OpenClaw {
    /// Looks through the reverse proxy that listens on `proxy`, see
    /// [`Proxy::listen`](crate::ports::Proxy::listen), and keeps the host's key to gateways below `data`.
    #[must_use]
    pub const fn new(proxy: SocketAddr, data: PathBuf) -> Self {
        Self { proxy, data }
    }

    async fn through_proxy(&self, host: &VirtualHost) -> Result<(), GatewayAnswer> {
        // The last name is `<instance>.claw.localhost`, which no other instance can have.
        let name = host.hostnames.last().map_or("", String::as_str);
        let target = Target::new(self.proxy).host(name);
        match target.probe(ProbePath::Startup, REQUEST).await {
            Ok(ProbeAnswer::Started) => Ok(()),
            Ok(ProbeAnswer::Draining) => Err(GatewayAnswer::Draining),
            Ok(ProbeAnswer::Starting { failing, .. }) => {
                Err(GatewayAnswer::Starting(failing.join(", ")))
            }
            Ok(other) => Err(GatewayAnswer::ProxyFailing(format!("answered {other:?}"))),
            Err(error) => Err(GatewayAnswer::ProxyFailing(causes(&error))),
        }
    }
}

impl Gateway for OpenClaw {
    async fn look(&self, host: &VirtualHost) -> GatewayAnswer {
        let direct = directly(host.upstream);
        if let Err(answer) = startup(&direct).await {
            return answer;
        }
        let (proxied, ready) = tokio::join!(self.through_proxy(host), readiness(&direct));
        match proxied {
            Err(answer) => answer,
            Ok(()) => ready,
        }
    }

    async fn look_directly(&self, gateway: SocketAddr) -> GatewayAnswer {
        // It trusts the bridge of its own network only, not the one on which trials are: from any other
        // address a forwarded request is refused (403).
        let direct = Target::new(gateway);
        match startup(&direct).await {
            Err(answer) => answer,
            Ok(()) => readiness(&direct).await,
        }
    }
}

fn directly(gateway: SocketAddr) -> Target<'static> {
    Target::new(gateway).forwarded_for(PROBE_CLIENT)
}

/// Whether a gateway has started; what it is instead, if it has not.
async fn startup(direct: &Target<'_>) -> Result<(), GatewayAnswer> {
    match direct.probe(ProbePath::Startup, REQUEST).await {
        Ok(ProbeAnswer::Started) => Ok(()),
        Ok(ProbeAnswer::Draining) => Err(GatewayAnswer::Draining),
        Ok(ProbeAnswer::Starting { failing, .. }) => {
            Err(GatewayAnswer::Starting(failing.join(", ")))
        }
        Ok(other) => Err(GatewayAnswer::Failing(format!("answered {other:?}"))),
        Err(error) => Err(GatewayAnswer::Failing(causes(&error))),
    }
}

/// What a gateway that has started says of its readiness.
async fn readiness(direct: &Target<'_>) -> GatewayAnswer {
    match direct.probe(ProbePath::Ready, REQUEST).await {
        Ok(ProbeAnswer::Draining) => GatewayAnswer::Draining,
        ready => GatewayAnswer::Started { ready: matches!(ready, Ok(ProbeAnswer::Ready)) },
    }
}

/// An error with its causes, for a person.
fn causes(error: &ProbeError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use claw_core::name::InstanceName;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    const STARTED: (u16, &str) = (200, r#"{"ok":true,"status":"started"}"#);
    const STARTING: (u16, &str) = (503, r#"{"ok":false,"status":"starting"}"#);
    const DRAINING: (u16, &str) = (503, r#"{"ok":false,"status":"draining"}"#);
    const READY: (u16, &str) = (200, r#"{"ready":true,"failing":[]}"#);
    const NOT_READY: (u16, &str) = (503, r#"{"ready":false,"failing":["telegram"]}"#);
    const PAGE: (u16, &str) = (200, "<!doctype html>");

    /// A server that answers `/startupz` and `/readyz`, and wants every request to have `header`.
    async fn server(
        startup: (u16, &'static str),
        ready: (u16, &'static str),
        header: &'static str,
    ) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = vec![0; 4096];
                let length = stream.read(&mut request).await.unwrap();
                let request = String::from_utf8_lossy(&request[..length]).into_owned();
                let (status, body) = match request.split(' ').nth(1) {
                    _ if !request.contains(header) => (400, "the header is missing"),
                    Some("/startupz") => startup,
                    Some("/readyz") => ready,
                    _ => PAGE,
                };
                let length = body.len();
                let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\n\r\n");
                stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
            }
        });
        address
    }

    async fn look(
        startup: (u16, &'static str),
        ready: (u16, &'static str),
        proxied: (u16, &'static str),
    ) -> GatewayAnswer {
        let host = VirtualHost {
            sources: std::collections::BTreeSet::new(),
            instance: InstanceName::parse("demo").unwrap(),
            hostnames: vec!["a.example".to_owned(), "demo.claw.localhost".to_owned()],
            upstream: server(startup, ready, "x-forwarded-for: 192.0.2.1\r\n").await,
        };
        let proxy = server(proxied, PAGE, "host: demo.claw.localhost\r\n").await;
        OpenClaw::new(proxy, PathBuf::new()).look(&host).await
    }

    #[tokio::test]
    async fn both_ways_must_have_started() {
        let started = |ready| GatewayAnswer::Started { ready };
        assert_eq!(look(STARTED, READY, STARTED).await, started(true));
        assert_eq!(look(STARTED, NOT_READY, STARTED).await, started(false));
        assert_eq!(look(STARTED, PAGE, STARTED).await, started(false), "ready is only reported");
        assert_eq!(look(DRAINING, READY, STARTED).await, GatewayAnswer::Draining);
        assert_eq!(look(STARTED, READY, DRAINING).await, GatewayAnswer::Draining);
        assert_eq!(look(STARTING, READY, STARTED).await, GatewayAnswer::Starting(String::new()));
    }

    #[tokio::test]
    async fn one_without_a_proxy_is_looked_at_directly() {
        let look = async |startup, ready| {
            let gateway = server(startup, ready, "host: 127.0.0.1").await;
            let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
            OpenClaw::new(nowhere, PathBuf::new()).look_directly(gateway).await
        };
        assert_eq!(look(STARTED, READY).await, GatewayAnswer::Started { ready: true });
        assert_eq!(look(STARTED, NOT_READY).await, GatewayAnswer::Started { ready: false });
        let ends = (503, r#"{"ready":false,"failing":["gateway-draining"]}"#);
        assert_eq!(look(STARTED, ends).await, GatewayAnswer::Draining);
        assert_eq!(look(STARTING, READY).await, GatewayAnswer::Starting(String::new()));
        assert!(matches!(look(PAGE, READY).await, GatewayAnswer::Failing(_)));
    }

    #[tokio::test]
    async fn causes_are_given() {
        let GatewayAnswer::Failing(cause) = look(PAGE, READY, STARTED).await else {
            panic!("the web interface is no answer")
        };
        assert!(cause.contains("an HTML page"), "{cause}");
        let GatewayAnswer::ProxyFailing(cause) = look(STARTED, READY, (404, "none")).await else {
            panic!("the proxy does not know it")
        };
        assert_eq!(cause, "unexpected status 404");
    }
}
