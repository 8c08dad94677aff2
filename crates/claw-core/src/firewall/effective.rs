//! The policy of one host at one moment, with everything that rendering needs.

use std::collections::{BTreeMap, BTreeSet};

use super::{AllowedName, Cidr, HostPolicy, Mode, NetworkPolicy, Port, Reach};
use crate::address::{AddressPool, InstanceNetwork};
use crate::name::InstanceName;
use crate::stamp::Digest;

/// Everything that decides a host's rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effective {
    /// What may come in.
    pub host: HostPolicy,
    /// Ports of SSH: what the policy says, or what sshd listens on. Never empty.
    pub ssh_ports: BTreeSet<Port>,
    /// Ports of the reverse proxy.
    pub web_ports: BTreeSet<Port>,
    /// The network of all instances.
    pub pool: AddressPool,
    /// Every instance that this host holds.
    pub instances: BTreeMap<InstanceName, EffectiveInstance>,
}

/// One instance's part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EffectiveInstance {
    /// Where it lives.
    pub network: InstanceNetwork,
    /// What its network may do.
    pub policy: NetworkPolicy,
}

impl EffectiveInstance {
    /// Tells whether rules that were applied are those of this policy.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(format!("{self:?}").as_bytes())
    }
}

/// What the forwarder of names must know.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DnsPolicy {
    /// Every instance.
    pub instances: BTreeMap<InstanceName, DnsRules>,
}

/// What one instance may resolve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsRules {
    /// Where it lives; the forwarder listens on its bridge's address.
    pub network: InstanceNetwork,
    /// The only names; `None`: every name.
    pub only: Option<DnsNames>,
    /// Networks that the allowlist names. A name may lead to a private address only if it lies in one of
    /// these; elsewhere that is rebinding.
    pub networks: BTreeSet<Cidr>,
}

/// The names of an allowlist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsNames {
    /// Which, with the ports on which their addresses may be reached.
    pub names: Vec<AllowedName>,
    /// Held, or only tried: then every name is answered, and other names are recorded.
    pub mode: Mode,
}

impl Effective {
    /// The forwarder's part.
    #[must_use]
    pub fn dns(&self) -> DnsPolicy {
        let rules = |instance: &EffectiveInstance| {
            let (only, networks) = match &instance.policy.egress.reach {
                Reach::Open => (None, BTreeSet::new()),
                Reach::Allowlist(list) => (
                    Some(DnsNames { names: list.names.clone(), mode: list.mode }),
                    list.networks.iter().map(|allowed| allowed.network).collect(),
                ),
            };
            DnsRules { network: instance.network, only, networks }
        };
        let instances =
            self.instances.iter().map(|(name, instance)| (name.clone(), rules(instance)));
        DnsPolicy { instances: instances.collect() }
    }
}
