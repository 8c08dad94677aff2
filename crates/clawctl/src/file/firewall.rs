//! `firewall:` of a host document, which is also how clawctl prints a host's firewall.
//!
//! Numbers and texts are passed on as they are: what they must be is the coordinator's business, which
//! names every wrong one at once.

use claw_proto::convert::duration_to_wire;
use claw_proto::node::v1 as node;
use serde::{Deserialize, Serialize};

use super::quantity::Span;

/// What may come in to a host; see `HostFirewall` of `claw.node.v1`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct FirewallDocument {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ssh: Option<SshDocument>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) web: Option<WebDocument>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) extra: Vec<ExtraDocument>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) blocked: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct SshDocument {
    /// Without them those on which sshd listens.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) ports: Vec<u32>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) sources: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) interfaces: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) brute_force: Option<BruteForceDocument>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct BruteForceDocument {
    /// 0 bans nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) failures: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) window: Option<Span>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ban: Option<Span>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct WebDocument {
    #[serde(default)]
    pub(crate) exposure: ExposureDocument,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) sources: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) interfaces: Vec<String>,
}

/// From where the web port is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ExposureDocument {
    #[default]
    Reachable,
    Loopback,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ExtraDocument {
    pub(crate) protocol: ProtocolDocument,
    pub(crate) port: u32,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) sources: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) interfaces: Vec<String>,
}

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ProtocolDocument {
    Tcp,
    Udp,
}

impl FirewallDocument {
    /// For the API.
    pub(crate) fn to_wire(&self) -> node::HostFirewall {
        node::HostFirewall {
            ssh: self.ssh.as_ref().map(SshDocument::to_wire),
            web: self.web.as_ref().map(WebDocument::to_wire),
            extra: self.extra.iter().map(ExtraDocument::to_wire).collect(),
            blocked: self.blocked.clone(),
        }
    }
}

impl SshDocument {
    fn to_wire(&self) -> node::SshPolicy {
        let brute_force = self.brute_force.as_ref().map(|against| node::BruteForce {
            failures: against.failures,
            window: against.window.map(|span| duration_to_wire(span.0)),
            ban: against.ban.map(|span| duration_to_wire(span.0)),
        });
        node::SshPolicy {
            ports: self.ports.clone(),
            sources: self.sources.clone(),
            interfaces: self.interfaces.clone(),
            brute_force,
        }
    }
}

impl WebDocument {
    fn to_wire(&self) -> node::WebAccess {
        let exposure = match self.exposure {
            ExposureDocument::Reachable => node::WebExposure::Reachable,
            ExposureDocument::Loopback => node::WebExposure::Loopback,
        };
        node::WebAccess {
            exposure: exposure.into(),
            sources: self.sources.clone(),
            interfaces: self.interfaces.clone(),
        }
    }
}

impl ExtraDocument {
    fn to_wire(&self) -> node::ExtraPort {
        let protocol = match self.protocol {
            ProtocolDocument::Tcp => node::Protocol::Tcp,
            ProtocolDocument::Udp => node::Protocol::Udp,
        };
        node::ExtraPort {
            protocol: protocol.into(),
            port: self.port,
            sources: self.sources.clone(),
            interfaces: self.interfaces.clone(),
        }
    }
}

impl From<node::HostFirewall> for FirewallDocument {
    fn from(wire: node::HostFirewall) -> Self {
        Self {
            ssh: wire.ssh.map(SshDocument::from),
            web: wire.web.map(WebDocument::from),
            extra: wire.extra.into_iter().map(ExtraDocument::from).collect(),
            blocked: wire.blocked,
        }
    }
}

impl From<node::SshPolicy> for SshDocument {
    fn from(wire: node::SshPolicy) -> Self {
        let brute_force = wire.brute_force.map(|against| BruteForceDocument {
            failures: against.failures,
            window: against.window.map(|span| Span::from_wire(span.seconds, span.nanos)),
            ban: against.ban.map(|span| Span::from_wire(span.seconds, span.nanos)),
        });
        Self { ports: wire.ports, sources: wire.sources, interfaces: wire.interfaces, brute_force }
    }
}

impl From<node::WebAccess> for WebDocument {
    fn from(wire: node::WebAccess) -> Self {
        let loopback = wire.exposure == i32::from(node::WebExposure::Loopback);
        Self {
            exposure: if loopback {
                ExposureDocument::Loopback
            } else {
                ExposureDocument::Reachable
            },
            sources: wire.sources,
            interfaces: wire.interfaces,
        }
    }
}

impl From<node::ExtraPort> for ExtraDocument {
    fn from(wire: node::ExtraPort) -> Self {
        let udp = wire.protocol == i32::from(node::Protocol::Udp);
        Self {
            protocol: if udp { ProtocolDocument::Udp } else { ProtocolDocument::Tcp },
            port: wire.port,
            sources: wire.sources,
            interfaces: wire.interfaces,
        }
    }
}
