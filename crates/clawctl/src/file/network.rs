//! `network:` of an instance document, which is also how clawctl prints a network policy.
//!
//! Numbers and texts are passed on as they are: what they must be is the coordinator's business, which
//! names every wrong one at once.

use std::fmt;

use claw_proto::node::v1 as node;
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What the network of an instance may do; see `NetworkPolicy` of `claw.node.v1`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct NetworkDocument {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) egress: Option<EgressDocument>,
    /// Networks that may use its web address; without them everyone whom the host lets in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) web_sources: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct EgressDocument {
    /// Without it SMTP and IRC; an empty list denies nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) denied_ports: Option<Vec<u32>>,
    /// Without it everywhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) allowlist: Option<AllowlistDocument>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct AllowlistDocument {
    #[serde(default)]
    pub(crate) mode: ModeDocument,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) networks: Vec<Destination<AtNetwork>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) names: Vec<Destination<AtPattern>>,
}

/// Whether a list holds or is only tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ModeDocument {
    #[default]
    Enforced,
    Observed,
}

/// A destination: its text alone for every port, or a mapping with the text and `ports`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Destination<T> {
    pub(crate) at: String,
    pub(crate) ports: Vec<u32>,
    form: std::marker::PhantomData<T>,
}

/// The mapping of a destination.
pub(crate) trait Form: Serialize + for<'de> Deserialize<'de> {
    /// What a destination may be, for errors.
    const EXPECTED: &'static str;

    fn of(at: String, ports: Vec<u32>) -> Self;
    fn parts(self) -> (String, Vec<u32>);
}

/// `{network: 192.0.2.0/24, ports: [443]}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AtNetwork {
    network: String,
    ports: Vec<u32>,
}

/// `{pattern: "*.example.com", ports: [443]}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AtPattern {
    pattern: String,
    ports: Vec<u32>,
}

impl NetworkDocument {
    /// For the API.
    pub(crate) fn to_wire(&self) -> node::NetworkPolicy {
        node::NetworkPolicy {
            egress: self.egress.as_ref().map(EgressDocument::to_wire),
            web_sources: self.web_sources.clone(),
        }
    }
}

impl EgressDocument {
    fn to_wire(&self) -> node::Egress {
        let denied = self.denied_ports.clone();
        node::Egress {
            denied_ports: denied.map(|ports| node::DeniedPorts { ports }),
            allowlist: self.allowlist.as_ref().map(AllowlistDocument::to_wire),
        }
    }
}

impl AllowlistDocument {
    fn to_wire(&self) -> node::Allowlist {
        let network = |destination: &Destination<AtNetwork>| node::AllowedNetwork {
            network: destination.at.clone(),
            ports: destination.ports.clone(),
        };
        let name = |destination: &Destination<AtPattern>| node::AllowedName {
            pattern: destination.at.clone(),
            ports: destination.ports.clone(),
        };
        let mode = match self.mode {
            ModeDocument::Enforced => node::AllowlistMode::Enforced,
            ModeDocument::Observed => node::AllowlistMode::Observed,
        };
        node::Allowlist {
            networks: self.networks.iter().map(network).collect(),
            names: self.names.iter().map(name).collect(),
            mode: mode.into(),
        }
    }
}

impl<T> Destination<T> {
    pub(crate) fn new(at: String, ports: Vec<u32>) -> Self {
        Self { at, ports, form: std::marker::PhantomData }
    }
}

impl Form for AtNetwork {
    const EXPECTED: &'static str = "a network such as 192.0.2.0/24, or {network: …, ports: […]}";

    fn of(network: String, ports: Vec<u32>) -> Self {
        Self { network, ports }
    }

    fn parts(self) -> (String, Vec<u32>) {
        (self.network, self.ports)
    }
}

impl Form for AtPattern {
    const EXPECTED: &'static str = "a name such as *.example.com, or {pattern: …, ports: […]}";

    fn of(pattern: String, ports: Vec<u32>) -> Self {
        Self { pattern, ports }
    }

    fn parts(self) -> (String, Vec<u32>) {
        (self.pattern, self.ports)
    }
}

impl<T: Form> Serialize for Destination<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.ports.is_empty() {
            return serializer.serialize_str(&self.at);
        }
        T::of(self.at.clone(), self.ports.clone()).serialize(serializer)
    }
}

impl<'de, T: Form> Deserialize<'de> for Destination<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(DestinationVisitor(std::marker::PhantomData))
    }
}

struct DestinationVisitor<T>(std::marker::PhantomData<T>);

impl<'de, T: Form> Visitor<'de> for DestinationVisitor<T> {
    type Value = Destination<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXPECTED)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Destination<T>, E> {
        Ok(Destination::new(text.to_owned(), Vec::new()))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Destination<T>, A::Error> {
        let (at, ports) = T::deserialize(MapAccessDeserializer::new(map))?.parts();
        Ok(Destination::new(at, ports))
    }
}

impl From<node::NetworkPolicy> for NetworkDocument {
    fn from(wire: node::NetworkPolicy) -> Self {
        let egress = wire.egress.map(|egress| EgressDocument {
            denied_ports: egress.denied_ports.map(|denied| denied.ports),
            allowlist: egress.allowlist.map(AllowlistDocument::from),
        });
        Self { egress, web_sources: wire.web_sources }
    }
}

impl From<node::Allowlist> for AllowlistDocument {
    fn from(wire: node::Allowlist) -> Self {
        let observed = wire.mode == i32::from(node::AllowlistMode::Observed);
        let networks = wire.networks.into_iter();
        let names = wire.names.into_iter();
        Self {
            mode: if observed { ModeDocument::Observed } else { ModeDocument::Enforced },
            networks: networks.map(|one| Destination::new(one.network, one.ports)).collect(),
            names: names.map(|one| Destination::new(one.pattern, one.ports)).collect(),
        }
    }
}
