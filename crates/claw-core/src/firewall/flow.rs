//! Whether a connection that is open may go on under a policy.
//!
//! The kernel asks the rules about the first packet of a connection only; when a policy is tightened, the agent
//! cuts the connections for which [`may_go_on`] says no. It decides as the rules of egress do, from the same
//! constants: what is closed always, then denied ports, then the allowlist.
//!
//! It does not know which addresses are the host's own (the rules refuse them where they arrive) and not which
//! addresses names have: the caller says so.

use std::net::IpAddr;

use super::render::METADATA;
use super::{AllowedNetwork, Cidr, EffectiveInstance, Flow, Mode, Port, Protocol, Reach};

/// Whether a connection that an instance's container began may go on. `is_named` tells whether an address on a
/// port is, as far as is known, one of an allowed name.
#[must_use]
pub fn may_go_on(
    instance: &EffectiveInstance,
    flow: &Flow,
    is_named: impl Fn(IpAddr, Protocol, u16) -> bool,
) -> bool {
    let gateway = instance.network.gateway();
    if flow.destination == gateway {
        return flow.port == DNS_PORT;
    }
    if is_closed(flow.destination, flow.port)
        || instance.network.pool().block().contains(flow.destination)
    {
        return false;
    }
    let egress = &instance.policy.egress;
    let port = Port::new(flow.port);
    if port.is_some_and(|port| egress.denied_ports.contains(&port)) {
        return false;
    }
    match &egress.reach {
        Reach::Open => true,
        Reach::Allowlist(list) if list.mode == Mode::Observed => true,
        Reach::Allowlist(list) => {
            let allows = |AllowedNetwork { network, ports }: &AllowedNetwork| {
                network.contains(flow.destination)
                    && (ports.is_empty() || port.is_some_and(|port| ports.contains(&port)))
            };
            list.networks.iter().any(allows) || is_named(flow.destination, flow.protocol, flow.port)
        }
    }
}

/// Whether a destination is closed to every instance, whatever its policy says, wherever the host stands.
pub(super) fn is_closed(destination: IpAddr, port: u16) -> bool {
    is_closed_port(port) || closed_destinations().any(|closed| closed.contains(destination))
}

/// Whether a destination port is closed to every instance: names are resolved through the host only.
pub(super) fn is_closed_port(port: u16) -> bool {
    CLOSED_PORTS.contains(&port)
}

/// The blocks that are closed to every instance.
pub(super) fn closed_destinations() -> impl Iterator<Item = Cidr> {
    METADATA.iter().filter_map(|text| Cidr::parse(text).ok())
}

/// DNS (RFC 1035), which the bridge's address answers.
const DNS_PORT: u16 = 53;

/// DNS (RFC 1035), DNS over TLS (RFC 7858) and over QUIC (RFC 9250), as the rules close them.
const CLOSED_PORTS: [u16; 2] = [53, 853];

#[cfg(test)]
mod tests;
