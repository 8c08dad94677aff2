//! Laying the operator's keys over a tenant's document.
//!
//! The operator owns how the gateway is reached and guarded; everything else in the document stays the
//! tenant's. Enforced values replace the tenant's silently, so that a tenant can keep one document
//! between hosts. The result is the same text for the same input.

use std::net::IpAddr;

use serde_json::{Map, Value, json};

use super::{ConfigFault, GatewayConfig};

/// The port on which a gateway listens inside its container. OpenClaw's default.
pub const GATEWAY_PORT: u16 = 18789;

/// The variable from which a gateway takes its token. OpenClaw's own name for it.
pub const TOKEN_VARIABLE: &str = "OPENCLAW_GATEWAY_TOKEN";

/// What the operator decides about one instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enforced {
    /// Addresses from which the host's reverse proxy and probes reach the gateway: the bridge's
    /// own address. Requests from there **must** carry `X-Forwarded-For`.
    pub trusted_proxies: Vec<IpAddr>,
    /// Origins (`scheme://host[:port]`) whose pages may open a WebSocket to the gateway.
    pub allowed_origins: Vec<String>,
}

impl Enforced {
    fn faults(&self) -> Vec<ConfigFault> {
        self.allowed_origins
            .iter()
            .enumerate()
            .filter(|(_, origin)| !is_origin(origin))
            .map(|(index, _)| {
                ConfigFault::new(
                    format!("gateway.controlUi.allowedOrigins[{index}]"),
                    "expected scheme://host[:port] with scheme http or https and no path",
                )
            })
            .collect()
    }

    fn values(&self) -> Vec<(&'static [&'static str], Value)> {
        let proxies: Vec<_> = self
            .trusted_proxies
            .iter()
            .map(|address| match address.to_canonical() {
                IpAddr::V4(address) => format!("{address}/32"),
                IpAddr::V6(address) => format!("{address}/128"),
            })
            .collect();
        vec![
            (&["gateway", "mode"], json!("local")),
            (&["gateway", "bind"], json!("lan")),
            (&["gateway", "port"], json!(GATEWAY_PORT)),
            (&["gateway", "auth", "mode"], json!("token")),
            (&["gateway", "auth", "token"], json!(format!("${{{TOKEN_VARIABLE}}}"))),
            (&["gateway", "trustedProxies"], json!(proxies)),
            (&["gateway", "controlUi", "allowedOrigins"], json!(self.allowed_origins)),
            (&["update", "checkOnStart"], json!(false)),
            (&["update", "auto", "enabled"], json!(false)),
            (&["discovery", "mdns", "mode"], json!("off")),
        ]
    }
}

/// The text of `openclaw.json` for one instance: indented JSON with sorted keys and a final newline.
///
/// `tenant` is the tenant's JSON5 document, if there is one. If it describes a TLS listener, that is
/// switched off: TLS ends at the host's proxy, and a gateway that speaks TLS passes no health check.
///
/// # Errors
/// Every fault of the tenant's document and of `operator`.
pub fn render(operator: &Enforced, tenant: Option<&str>) -> Result<String, Vec<ConfigFault>> {
    let mut faults = operator.faults();
    let mut document = match tenant.map(GatewayConfig::parse).transpose() {
        Ok(config) => config.map(|config| config.document).unwrap_or_default(),
        Err(more) => {
            faults.extend(more);
            Map::new()
        }
    };
    if !faults.is_empty() {
        faults.sort();
        return Err(faults);
    }
    for (path, value) in operator.values() {
        put(&mut document, path, value);
    }
    if document.get("gateway").is_some_and(|gateway| gateway.get("tls").is_some()) {
        put(&mut document, &["gateway", "tls", "enabled"], json!(false));
    }
    let mut document = Value::Object(document);
    document.sort_all_objects();
    Ok(format!("{document:#}\n"))
}

/// Sets the value at `path`, making the objects on the way.
fn put(map: &mut Map<String, Value>, path: &[&str], value: Value) {
    match path {
        [] => {}
        [last] => {
            map.insert((*last).to_owned(), value);
        }
        [first, rest @ ..] => {
            let child = map.entry(*first).or_insert_with(|| json!({}));
            if !child.is_object() {
                *child = json!({});
            }
            if let Value::Object(child) = child {
                put(child, rest, value);
            }
        }
    }
}

/// Whether `text` is an origin as browsers send it: no path, no user, no trailing slash.
fn is_origin(text: &str) -> bool {
    let authority = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let Some(authority) = authority else { return false };
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (authority, None),
    };
    let host_fits = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host.bytes().all(|byte| {
                    byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-._".contains(&byte)
                })
        }
    };
    host_fits && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port != 0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn operator() -> Enforced {
        Enforced {
            trusted_proxies: vec!["172.18.0.1".parse().unwrap()],
            allowed_origins: vec!["https://tenant1.claw.example".to_owned()],
        }
    }

    // This text passes `openclaw config validate --json` 2026.9.6.
    const BARE: &str = r#"{
  "discovery": {
    "mdns": {
      "mode": "off"
    }
  },
  "gateway": {
    "auth": {
      "mode": "token",
      "token": "${OPENCLAW_GATEWAY_TOKEN}"
    },
    "bind": "lan",
    "controlUi": {
      "allowedOrigins": [
        "https://tenant1.claw.example"
      ]
    },
    "mode": "local",
    "port": 18789,
    "trustedProxies": [
      "172.18.0.1/32"
    ]
  },
  "update": {
    "auto": {
      "enabled": false
    },
    "checkOnStart": false
  }
}
"#;

    #[test]
    fn without_a_tenant_only_the_enforced_keys_are_there() {
        assert_eq!(render(&operator(), None).unwrap(), BARE);
        assert_eq!(render(&operator(), Some("{}")).unwrap(), BARE);
    }

    #[test]
    fn what_it_renders_is_valid_and_stays_as_it_is() {
        let config = GatewayConfig::parse(BARE).unwrap();
        assert!(config.is_local());
        assert_eq!(config.port(), Some(GATEWAY_PORT));
        assert_eq!(render(&operator(), Some(BARE)).unwrap(), BARE);
    }

    #[test]
    fn the_tenant_cannot_override_and_keeps_the_rest() {
        let tenant = "{
            gateway: { mode: 'remote', port: 1, auth: { mode: 'none', token: 'mine', rateLimit: { maxAttempts: 3 } },
                       trustedProxies: ['0.0.0.0/0'], tls: { enabled: true, certPath: '/x' } },
            agents: { defaults: { model: { primary: 'a/b' } } },
            update: { auto: { enabled: true }, channel: 'beta' },
        }";
        let text = render(&operator(), Some(tenant)).unwrap();
        let document: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            document,
            json!({
                "gateway": {
                    "mode": "local", "bind": "lan", "port": 18789,
                    "auth": { "mode": "token", "token": "${OPENCLAW_GATEWAY_TOKEN}",
                              "rateLimit": { "maxAttempts": 3 } },
                    "trustedProxies": ["172.18.0.1/32"],
                    "controlUi": { "allowedOrigins": ["https://tenant1.claw.example"] },
                    "tls": { "enabled": false, "certPath": "/x" },
                },
                "agents": { "defaults": { "model": { "primary": "a/b" } } },
                "update": { "auto": { "enabled": false }, "checkOnStart": false, "channel": "beta" },
                "discovery": { "mdns": { "mode": "off" } },
            })
        );
    }

    #[test]
    fn every_fault_of_both_sides_is_reported() {
        let operator = Enforced {
            allowed_origins: vec!["https://ok.example".to_owned(), "https://a.example/".to_owned()],
            ..operator()
        };
        let faults = render(&operator, Some("{ gateway: 3, nope: 1 }")).unwrap_err();
        let faults: Vec<_> = faults.iter().map(ToString::to_string).collect();
        assert_eq!(
            faults,
            [
                "gateway: expected an object, found a number",
                "gateway.controlUi.allowedOrigins[1]: \
                 expected scheme://host[:port] with scheme http or https and no path",
                "nope: unknown key",
            ]
        );
    }

    #[test]
    fn origins_are_what_browsers_send() {
        for good in
            ["http://localhost:8080", "https://a.example", "http://[::1]:80", "http://192.0.2.1"]
        {
            assert!(is_origin(good), "{good}");
        }
        for bad in [
            "https://",
            "a.example",
            "ftp://a.example",
            "https://a.example/x",
            "https://u@a.example",
            "https://A.example",
            "https://a.example:0",
            "https://a.example:x",
            "http://[::g]",
            "*",
        ] {
            assert!(!is_origin(bad), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn rendering_twice_changes_nothing(
            tenant in prop::collection::btree_map("[a-z]{1,6}", any::<Option<i32>>(), 0..6),
            level in prop::sample::select(vec!["info", "debug", "${LEVEL}"]),
        ) {
            let document = json!({ "agents": tenant, "logging": { "level": level } }).to_string();
            let once = render(&operator(), Some(&document)).unwrap();
            prop_assert_eq!(&render(&operator(), Some(&once)).unwrap(), &once);
            let parsed: Value = serde_json::from_str(&once).unwrap();
            prop_assert_eq!(&parsed["agents"], &json!(tenant));
        }
    }
}
