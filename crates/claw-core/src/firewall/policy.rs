//! What operators say about the network of a host and of its instances.

use std::collections::BTreeSet;
use std::fmt;
use std::num::NonZeroU16;
use std::str::FromStr;
use std::time::Duration;

use super::Cidr;
use crate::name::{DomainName, NameError};

/// A TCP or UDP port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port(NonZeroU16);

impl Port {
    /// A port; `None` for 0.
    #[must_use]
    pub const fn new(number: u16) -> Option<Self> {
        match NonZeroU16::new(number) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }

    /// The number.
    #[must_use]
    pub const fn number(self) -> u16 {
        self.0.get()
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP, QUIC with it.
    Udp,
}

impl Protocol {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Tcp, Self::Udp];
}

impl fmt::Display for Protocol {
    /// As iptables and ipset write it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// A network interface such as `tailscale0` or `wg0`: 1 to 15 characters (IFNAMSIZ, netdevice(7)) of
/// letters, digits, `-`, `_`, `.`, and not one of ours.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InterfaceName(String);

impl InterfaceName {
    /// Parses a name. Wildcards (`+`), `lo` and the bridges of instances (`claw-…`) are refused.
    ///
    /// # Errors
    /// [`NameError`].
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let actual = text.chars().count();
        if actual == 0 {
            return Err(NameError::Empty);
        }
        if actual > 15 {
            return Err(NameError::TooLong { max: 15, actual });
        }
        let ours = text == "lo" || text.starts_with("claw-");
        if ours
            || text.starts_with('-')
            || text == "."
            || text == ".."
            || !text.chars().all(allowed)
        {
            return Err(NameError::Malformed {
                expected: "an interface such as tailscale0 or wg0, not lo and not claw-…",
                got: text.chars().take(80).collect(),
            });
        }
        Ok(Self(text.to_owned()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// From where a port may be reached. Both conditions must hold; an empty one holds always.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Access {
    /// Only from these sources; empty: from anywhere.
    pub sources: BTreeSet<Cidr>,
    /// Only through these interfaces; empty: through any.
    pub interfaces: BTreeSet<InterfaceName>,
}

/// How often a source may fail to log in before it is banned for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BruteForce {
    /// Failures within the window that lead to a ban; 0 switches bans off.
    pub failures: u32,
    /// The window.
    pub window: Duration,
    /// The ban's length; each further ban of the same source doubles it, up to a day.
    pub ban: Duration,
}

impl Default for BruteForce {
    /// 5 failures in 10 minutes, 10 minutes of ban: fail2ban's own defaults (jail.conf, 0.11).
    fn default() -> Self {
        Self { failures: 5, window: Duration::from_secs(600), ban: Duration::from_secs(600) }
    }
}

/// How operators log in.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SshPolicy {
    /// Ports of sshd; empty: those that it listens on when the rules are made. A list that lacks one of
    /// those is refused by the agent: it would lock its operators out.
    pub ports: BTreeSet<Port>,
    /// From where.
    pub access: Access,
    /// Against guessing.
    pub brute_force: BruteForce,
}

/// How the web port of the reverse proxy is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WebAccess {
    /// From outside, as far as the conditions allow.
    Reachable(Access),
    /// From the host itself only, through an SSH tunnel.
    Loopback,
}

impl Default for WebAccess {
    fn default() -> Self {
        Self::Reachable(Access::default())
    }
}

/// A further port that the host offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtraPort {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Which.
    pub port: Port,
    /// From where.
    pub access: Access,
}

/// What may come in to a host. The default is SSH and the web port, from anywhere.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostPolicy {
    /// SSH.
    pub ssh: SshPolicy,
    /// The reverse proxy's port.
    pub web: WebAccess,
    /// Further ports.
    pub extra: Vec<ExtraPort>,
    /// Sources that reach nothing but SSH, answers to the host's own connections included.
    pub blocked: BTreeSet<Cidr>,
}

/// Names that an instance may resolve and reach: `example.com`, or `*.example.com` for every name below
/// it, at any depth, and not itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainPattern {
    below: bool,
    name: DomainName,
}

impl DomainPattern {
    /// Parses a pattern. A name of one label (`com`, `*.com`) is refused: it would allow a whole registry.
    ///
    /// # Errors
    /// [`NameError`].
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let (below, rest) = text.strip_prefix("*.").map_or((false, text), |rest| (true, rest));
        let malformed = || NameError::Malformed {
            expected: "a domain name such as api.example.com or *.example.com, in lower case",
            got: text.chars().take(80).collect(),
        };
        let name = DomainName::parse(rest).map_err(|error| match error {
            NameError::Malformed { .. } => malformed(),
            other => other,
        })?;
        if !rest.contains('.') || rest.parse::<std::net::IpAddr>().is_ok() {
            return Err(malformed());
        }
        Ok(Self { below, name })
    }

    /// Whether a name, in lower case and without the final dot, is meant.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        if !self.below {
            return name == self.name.as_str();
        }
        name.strip_suffix(self.name.as_str())
            .is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
    }
}

impl fmt::Display for DomainPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.below { "*." } else { "" }, self.name)
    }
}

impl FromStr for DomainPattern {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::parse(text)
    }
}

/// A destination by address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AllowedNetwork {
    /// Where.
    pub network: Cidr,
    /// On these ports, TCP and UDP; empty: on every port.
    pub ports: BTreeSet<Port>,
}

/// A destination by name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AllowedName {
    /// Which names.
    pub pattern: DomainPattern,
    /// On these ports, TCP and UDP; empty: on every port.
    pub ports: BTreeSet<Port>,
}

/// Whether a list holds or is only tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// What is not on the list is refused.
    Enforced,
    /// Everything goes as if the policy were open; what would have been refused is recorded.
    Observed,
}

/// The only destinations of an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allowlist {
    /// By address.
    pub networks: Vec<AllowedNetwork>,
    /// By name.
    pub names: Vec<AllowedName>,
    /// Held or tried.
    pub mode: Mode,
}

/// Where an instance may go, apart from what is closed always: cloud metadata, the host, other
/// instances, and name servers other than the host's.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Reach {
    /// Everywhere.
    #[default]
    Open,
    /// To the destinations of a list.
    Allowlist(Allowlist),
}

/// What may go out of an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Egress {
    /// Destination ports, TCP and UDP, that are refused wherever they are.
    pub denied_ports: BTreeSet<Port>,
    /// Where it may go.
    pub reach: Reach,
}

impl Default for Egress {
    fn default() -> Self {
        Self { denied_ports: default_denied_ports(), reach: Reach::Open }
    }
}

/// SMTP (25, 465, 587, 2525) and IRC (194, 6667, 6697).
#[must_use]
pub fn default_denied_ports() -> BTreeSet<Port> {
    [25, 194, 465, 587, 2525, 6667, 6697].into_iter().filter_map(Port::new).collect()
}

/// The network of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NetworkPolicy {
    /// What may go out.
    pub egress: Egress,
    /// Sources that may use its web address; empty: everyone whom the host's policy lets in. The reverse
    /// proxy holds this, because all instances share its port.
    pub web_sources: BTreeSet<Cidr>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_below_and_not_beside() {
        let pattern = DomainPattern::parse("*.example.com").expect("valid");
        assert!(pattern.matches("a.example.com") && pattern.matches("a.b.example.com"));
        assert!(!pattern.matches("example.com") && !pattern.matches("badexample.com"));
        assert!(!pattern.matches(".example.com"));
        let exact = DomainPattern::parse("example.com").expect("valid");
        assert!(exact.matches("example.com") && !exact.matches("a.example.com"));
        for refused in ["com", "*.com", "*", "a.*.com", "UPPER.example", "192.0.2.1", ""] {
            assert!(DomainPattern::parse(refused).is_err(), "{refused}");
        }
    }

    #[test]
    fn interfaces_of_ours_and_wildcards_are_refused() {
        for refused in ["", "lo", "claw-i0", "eth+", "a-name-too-long-for", "a b", "-x", ".."] {
            assert!(InterfaceName::parse(refused).is_err(), "{refused}");
        }
        assert!(InterfaceName::parse("tailscale0").is_ok());
    }
}
