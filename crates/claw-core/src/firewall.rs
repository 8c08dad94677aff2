//! The firewall of a host: what may come in, what may go out of each instance, as data and as rules.
//!
//! Where to start: [`HostPolicy`] and [`NetworkPolicy`] are what operators say, [`Ruleset`] is what the
//! kernel is told. Between them stands one pure function that renders both families from one
//! description. Nothing here runs a command; the agent's adapter applies a [`Ruleset`] as it is.
//!
//! The layout is that of the measurements in `facts/firewall.md`: the guarantee (DROP only) lives in
//! tables that Docker never rewrites (`raw`, `security`), a copy that makes applications fail fast
//! (REJECT) in `filter`. Bridges of instances match the wildcard `claw-+`, so that an instance is
//! covered before it exists: what has no rules of its own reaches nothing.

pub mod brute_force;
pub mod check;
mod cidr;
mod effective;
pub mod flow;
mod observed;
mod policy;
pub mod proposal;
pub mod render;
mod ruleset;
pub mod saved;
pub mod tally;

pub use cidr::{Cidr, CidrError, Family};
pub use effective::{DnsNames, DnsPolicy, DnsRules, Effective, EffectiveInstance};
pub use observed::{
    FirewallDetail, Flow, InstanceDetail, RefusedDestination, RuleCounter, SetEntry, Surroundings,
};
pub use policy::{
    Access, AllowedName, AllowedNetwork, Allowlist, BruteForce, DomainPattern, Egress, ExtraPort,
    HostPolicy, InterfaceName, Mode, NetworkPolicy, Port, Protocol, Reach, SshPolicy, WebAccess,
    default_denied_ports,
};
pub use ruleset::{
    Chain, FamilyRules, Hook, HostSet, InstanceSet, Ruleset, Set, SetContent, SetKind, Table,
    TableRules,
};
