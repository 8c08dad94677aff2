//! Who a request comes from, and the trap in it.
//!
//! OpenClaw answers 403 `proxy_attribution_required` to a request that looks like a proxy's but names no
//! client: from an address in `gateway.trustedProxies` without a usable `X-Forwarded-For`, and from any
//! other address **with** forwarding headers. Only `/healthz` is exempt.
//!
//! Source: `ingress-attribution.ts` in openclaw 2026.9.6.

use std::net::IpAddr;

use openclaw::config::GatewayConfig;

use crate::request::Request;

/// Where a request came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ingress {
    /// The same machine, without a proxy: gets details without a token.
    Local,
    /// Somebody else.
    Remote,
    /// Nobody that can be named.
    Unattributable,
}

impl Ingress {
    /// Attributes `request`, which came from `peer`.
    pub(crate) fn of(request: &Request, peer: IpAddr, config: &GatewayConfig) -> Self {
        let forwarded = request.header_names().any(|name| {
            name == "forwarded" || name == "x-real-ip" || name.starts_with("x-forwarded-")
        });
        if peer.is_loopback() && !forwarded {
            return Self::Local;
        }
        if config.trusts_proxy(peer) {
            let chain = request.header("x-forwarded-for").unwrap_or_default();
            let client = chain
                .rsplit(',')
                .filter_map(|hop| hop.trim().parse::<IpAddr>().ok())
                .find(|hop| !hop.is_loopback() && !config.trusts_proxy(*hop));
            return if client.is_some() { Self::Remote } else { Self::Unattributable };
        }
        if forwarded { Self::Unattributable } else { Self::Remote }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(peer: &str, headers: &str, expected: Ingress) {
        let config = GatewayConfig::parse("{gateway:{trustedProxies:['172.18.0.1/32']}}").unwrap();
        let text = format!("GET / HTTP/1.1\r\nHost: x\r\n{headers}\r\n");
        let request = Request::read(&mut text.as_bytes()).unwrap().unwrap();
        assert_eq!(Ingress::of(&request, peer.parse().unwrap(), &config), expected);
    }

    #[test]
    fn requests_are_attributed_as_openclaw_does() {
        check("127.0.0.1", "", Ingress::Local);
        check("127.0.0.1", "X-Forwarded-For: 192.0.2.1\r\n", Ingress::Unattributable);
        check("172.18.0.2", "", Ingress::Remote);
        check("172.18.0.2", "X-Forwarded-For: 192.0.2.1\r\n", Ingress::Unattributable);
        check("172.18.0.2", "X-Real-IP: 192.0.2.1\r\n", Ingress::Unattributable);
        check("172.18.0.1", "", Ingress::Unattributable);
        check("172.18.0.1", "X-Real-IP: 192.0.2.1\r\n", Ingress::Unattributable);
        check("172.18.0.1", "X-Forwarded-For: 127.0.0.1\r\n", Ingress::Unattributable);
        check("172.18.0.1", "X-Forwarded-For: 172.18.0.1\r\n", Ingress::Unattributable);
        check("172.18.0.1", "X-Forwarded-For: 192.0.2.1\r\n", Ingress::Remote);
        check("172.18.0.1", "X-Forwarded-For: 192.0.2.1, 127.0.0.1\r\n", Ingress::Remote);
    }
}
