//! The rules of `openclaw.json`.
//!
//! [`GatewayConfig::parse`] refuses, with every fault at once, what a gateway would refuse at start as
//! far as the host must know it. [`render()`] lays the operator's keys over a tenant's document.
//!
//! The check is narrower than OpenClaw's own, so a document that passes here can still be refused by the
//! gateway: contents of sections such as `models` or `channels` are not looked into, nor is the form of
//! `gateway.publicOrigin`, `telemetry.consentedAt` and `worktreeRoot`. It refuses nothing that OpenClaw
//! accepts, with two exceptions on purpose: `$include`, which would read files that nobody delivered or
//! checked, and texts beyond [`MAX_BYTES`] or [`MAX_DEPTH`].
//!
//! Source of the rules: npm package `openclaw` 2026.9.6, its `config schema` and `config validate`.

mod check;
mod document;
mod reference;
mod render;
mod shape;

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use serde_json::{Map, Value};

pub use document::{MAX_BYTES, MAX_DEPTH};
pub use reference::EnvReference;
pub(crate) use reference::is_name as is_variable_name;
pub use render::{Enforced, GATEWAY_PORT, TOKEN_VARIABLE, render};

/// One thing that is wrong with a configuration, and where.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConfigFault {
    /// Keys from the root joined by dots, list positions in brackets; `<root>` for the whole document.
    pub path: String,
    /// What is wrong, without the value itself: values can be secrets.
    pub message: String,
}

impl ConfigFault {
    fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into() }
    }
}

impl fmt::Display for ConfigFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message)
    }
}

/// A configuration that a gateway would start with.
#[derive(Clone, PartialEq)]
pub struct GatewayConfig {
    document: Map<String, Value>,
    references: Vec<EnvReference>,
}

impl GatewayConfig {
    /// Reads a JSON5 document of at most [`MAX_BYTES`] and checks it.
    ///
    /// # Errors
    /// Every fault found, ordered by path. A text that is not JSON5 has exactly one.
    pub fn parse(text: &str) -> Result<Self, Vec<ConfigFault>> {
        let document = document::read(text).map_err(|fault| vec![fault])?;
        let mut faults = check::document(&document);
        if faults.is_empty() {
            let references = reference::all(&document);
            return Ok(Self { document, references });
        }
        faults.sort();
        Err(faults)
    }

    /// Every `${NAME}` in a value, in document order.
    #[must_use]
    pub fn references(&self) -> &[EnvReference] {
        &self.references
    }

    /// One fault for each reference that neither `supplied` nor the document's own `env.vars` covers.
    ///
    /// OpenClaw starts all the same and keeps the text `${NAME}` as the value, which for the token
    /// means a random one: callers must treat this as a refusal. It counts an empty variable as
    /// missing, so do not list those as supplied.
    #[must_use]
    pub fn missing_variables(&self, supplied: &BTreeSet<&str>) -> Vec<ConfigFault> {
        let own = self.at(&["env", "vars"]).and_then(Value::as_object);
        let covered = |name: &str| {
            supplied.contains(name)
                || own
                    .and_then(|vars| vars.get(name))
                    .and_then(Value::as_str)
                    .is_some_and(|value| !value.is_empty())
        };
        self.references
            .iter()
            .filter(|reference| !covered(&reference.name))
            .map(|reference| {
                ConfigFault::new(
                    reference.path.as_str(),
                    format!("nothing supplies the variable {}", reference.name),
                )
            })
            .collect()
    }

    /// Whether `gateway.mode` is `local`, without which a gateway exits with code 78.
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.at(&["gateway", "mode"]).and_then(Value::as_str) == Some("local")
    }

    /// `gateway.port`, if the document sets it.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        let port = self.at(&["gateway", "port"])?;
        port.as_u64().and_then(|port| u16::try_from(port).ok())
    }

    /// `gateway.bind` as written, if the document sets it.
    #[must_use]
    pub fn bind(&self) -> Option<&str> {
        self.at(&["gateway", "bind"]).and_then(Value::as_str)
    }

    /// `gateway.auth.token` as written, references unresolved. A reference to a secret is no text.
    #[must_use]
    pub fn token(&self) -> Option<&str> {
        self.at(&["gateway", "auth", "token"]).and_then(Value::as_str)
    }

    /// Whether a caller at `address` counts as one of `gateway.trustedProxies`.
    ///
    /// Entries that are neither an address nor a network match nothing, as in OpenClaw.
    #[must_use]
    pub fn trusts_proxy(&self, address: IpAddr) -> bool {
        self.at(&["gateway", "trustedProxies"])
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .any(|entry| network_contains(entry.trim(), address))
    }

    fn at(&self, path: &[&str]) -> Option<&Value> {
        let (first, rest) = path.split_first()?;
        rest.iter().try_fold(self.document.get(*first)?, |value, key| value.get(key))
    }
}

/// Prints no values: a configuration can hold secrets.
impl fmt::Debug for GatewayConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GatewayConfig")
            .field("keys", &self.document.keys().collect::<Vec<_>>())
            .field("references", &self.references)
            .finish()
    }
}

/// Whether `entry`, an address or `address/prefix`, contains `address`.
fn network_contains(entry: &str, address: IpAddr) -> bool {
    let (base, prefix) = match entry.split_once('/') {
        Some((base, prefix)) => (base, prefix.parse::<u32>().ok()),
        None => (entry, Some(u128::BITS)),
    };
    let (Ok(base), Some(prefix)) = (base.parse::<IpAddr>(), prefix) else {
        return false;
    };
    match (base.to_canonical(), address.to_canonical()) {
        (IpAddr::V4(base), IpAddr::V4(address)) => {
            let shift = u32::BITS - prefix.min(u32::BITS);
            same_prefix(u128::from(base.to_bits()), u128::from(address.to_bits()), shift)
        }
        (IpAddr::V6(base), IpAddr::V6(address)) => {
            let shift = u128::BITS - prefix.min(u128::BITS);
            same_prefix(base.to_bits(), address.to_bits(), shift)
        }
        _ => false,
    }
}

fn same_prefix(left: u128, right: u128, shift: u32) -> bool {
    (left ^ right).checked_shr(shift).unwrap_or(0) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let found = match GatewayConfig::parse(text) {
            Ok(_) => "valid".to_owned(),
            Err(faults) => faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"),
        };
        assert_eq!(found, expected, "for {text}");
    }

    // Each of these texts was given to `openclaw config validate --json` 2026.9.6 with the same verdict.
    #[test]
    fn refuses_what_openclaw_refuses() {
        check("[1]", "<root>: expected an object, found a list");
        check("", "<root>: not JSON5: EOF parsing value");
        check("{a:", "<root>: not JSON5: EOF parsing value");
        check(
            "{gatewayx:{}, gateway:{port:'x', foo:1, auth:{mode:'bad'}}, update:{auto:3}}",
            "gateway.auth.mode: expected one of none, token, password, trusted-proxy\n\
             gateway.foo: unknown key\n\
             gateway.port: expected a whole number from 1 to 65535, found a string\n\
             gatewayx: unknown key\n\
             update.auto: expected an object, found a number",
        );
        check(
            "{gateway:{port:0x10, mode:null, trustedProxies:'x'}, models:3, \
             env:{vars:{a:1}, FOO:'x', BAR:2}}",
            "env.BAR: unknown key\n\
             env.FOO: unknown key\n\
             env.vars.a: expected a string, found a number\n\
             gateway.mode: expected one of local, remote\n\
             gateway.trustedProxies: expected a list, found a string\n\
             models: expected an object, found a number",
        );
    }

    #[test]
    fn accepts_what_openclaw_accepts() {
        check("{}", "valid");
        check("{\"gateway\":{\"mode\":\"local\"},\"gateway\":{\"mode\":\"remote\"}}", "valid");
        check("{gateway:{mode:'local',bind:'lan',port:18789.0,tls:{foo:1}}}", "valid");
        check("{gateway:{trustedProxies:['nonsense']}, // comment\n}", "valid");
        check("{gateway:{nodes:{pairing:{sshVerify:{}}}}}", "valid");
        check("{gateway:{http:{securityHeaders:{strictTransportSecurity:false}}}}", "valid");
        check("{gateway:{auth:{token:{source:'env',provider:'x',id:'Y'}}}}", "valid");
    }

    #[test]
    fn a_reference_stands_for_any_string() {
        check("{logging:{level:'${LEVEL}'}}", "valid");
        check(
            "{logging:{level:'$${LEVEL}'}}",
            "logging.level: expected one of silent, fatal, error, warn, info, debug, trace",
        );
        check(
            "{gateway:{port:'${PORT}'}}",
            "gateway.port: expected a whole number from 1 to 65535, found a string",
        );
    }

    #[test]
    fn refuses_includes_at_any_depth() {
        check(
            "{agents:{list:[{$include:'./other.json'}]}}",
            "agents.list[0].$include: includes are not supported: deliver one whole document",
        );
    }

    #[test]
    fn hostile_nesting_is_refused_without_recursion() {
        let deep = "[".repeat(100_000);
        let faults = GatewayConfig::parse(&format!("{{agents:{deep}")).unwrap_err();
        assert_eq!(faults.len(), 1);
        assert!(faults[0].message.contains("nested deeper"), "{faults:?}");
    }

    #[test]
    fn missing_variables_name_their_place() {
        let config = GatewayConfig::parse(
            "{gateway:{auth:{token:'${TOKEN}'}}, env:{vars:{OWN:'1', EMPTY:''}}, \
             models:{a:['x${OWN}', '${EMPTY}${KEY}', '$${NOT}', '${lower}']}}",
        )
        .unwrap();
        let missing = config.missing_variables(&BTreeSet::from(["TOKEN"]));
        let missing: Vec<_> = missing.iter().map(ToString::to_string).collect();
        assert_eq!(
            missing,
            [
                "models.a[1]: nothing supplies the variable EMPTY",
                "models.a[1]: nothing supplies the variable KEY",
            ]
        );
    }

    #[test]
    fn trusts_addresses_and_networks() {
        let config = GatewayConfig::parse(
            "{gateway:{trustedProxies:['10.1.0.0/16','192.0.2.7','fd00::/8','nonsense','1.2.3.4/x']}}",
        )
        .unwrap();
        let trusts = |address: &str| config.trusts_proxy(address.parse().unwrap());
        assert!(trusts("10.1.255.9"));
        assert!(trusts("::ffff:10.1.2.3"));
        assert!(trusts("192.0.2.7"));
        assert!(trusts("fd12::1"));
        assert!(!trusts("10.2.0.1"));
        assert!(!trusts("192.0.2.8"));
        assert!(!trusts("fe80::1"));
        assert!(!trusts("1.2.3.4"));
    }

    #[test]
    fn debug_output_holds_no_values() {
        let config = GatewayConfig::parse("{gateway:{auth:{token:'s3cret'}}}").unwrap();
        assert!(!format!("{config:?}").contains("s3cret"));
    }
}
