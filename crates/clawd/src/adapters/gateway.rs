//! A gateway as its probes show it, directly and through the reverse proxy.
//!
//! What it deliberately does not do: decide what an answer means for the instance, or remember
//! earlier answers. Where to start: [`OpenClaw::look`](Gateway::look).

use std::error::Error;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
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

/// Looks at OpenClaw gateways.
#[derive(Debug, Clone, Copy)]
pub struct OpenClaw {
    proxy: SocketAddr,
}

impl OpenClaw {
    /// Looks through the reverse proxy that listens on `proxy`, see
    /// [`Proxy::listen`](crate::ports::Proxy::listen).
    #[must_use]
    pub const fn new(proxy: SocketAddr) -> Self {
        Self { proxy }
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
        let direct = Target::new(host.upstream).forwarded_for(PROBE_CLIENT);
        match direct.probe(ProbePath::Startup, REQUEST).await {
            Ok(ProbeAnswer::Started) => {}
            Ok(ProbeAnswer::Draining) => return GatewayAnswer::Draining,
            Ok(ProbeAnswer::Starting { failing, .. }) => {
                return GatewayAnswer::Starting(failing.join(", "));
            }
            Ok(other) => return GatewayAnswer::Failing(format!("answered {other:?}")),
            Err(error) => return GatewayAnswer::Failing(causes(&error)),
        }
        let ready = direct.probe(ProbePath::Ready, REQUEST);
        let (proxied, ready) = tokio::join!(self.through_proxy(host), ready);
        match (proxied, ready) {
            (Err(answer), _) => answer,
            (Ok(()), Ok(ProbeAnswer::Draining)) => GatewayAnswer::Draining,
            (Ok(()), ready) => {
                GatewayAnswer::Started { ready: matches!(ready, Ok(ProbeAnswer::Ready)) }
            }
        }
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
