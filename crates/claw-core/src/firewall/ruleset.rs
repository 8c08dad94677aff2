//! What the kernel is told: chains, hooks and sets, as text that `iptables-save` gives back.

use std::collections::BTreeSet;
use std::time::Duration;

use super::Family;
use crate::address::Slot;

/// The tables that hold rules of ours, in the order in which they are applied: the guarantee first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// Before everything: spoofed sources, direct routes to containers.
    Raw,
    /// The guarantee: DROP only.
    Security,
    /// The copy that makes applications fail fast.
    Filter,
}

impl Table {
    /// In the order in which they are applied.
    pub const ALL: [Self; 3] = [Self::Raw, Self::Security, Self::Filter];

    /// As iptables calls it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Security => "security",
            Self::Filter => "filter",
        }
    }
}

/// A chain of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Its name; begins with `CLAW-`.
    pub name: String,
    /// Its rules in order, without `-A NAME `, exactly as `iptables-save` prints them.
    pub rules: Vec<String>,
}

/// A jump from a chain of somebody else to one of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    /// The other's chain, such as `FORWARD`.
    pub from: &'static str,
    /// Ours.
    pub to: String,
    /// Left out where the other's chain does not exist (DOCKER-USER).
    pub optional: bool,
}

/// Our part of one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableRules {
    /// Which.
    pub table: Table,
    /// Chains; one comes after those that it jumps to.
    pub chains: Vec<Chain>,
    /// Jumps to them.
    pub hooks: Vec<Hook>,
}

/// Our part of one family's tables, in the order of [`Table::ALL`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FamilyRules {
    /// Which.
    pub family: Family,
    /// The tables.
    pub tables: Vec<TableRules>,
}

/// The kind of a set, as ipset(8) calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SetKind {
    /// `hash:net`: blocks.
    Net,
    /// `hash:net,port`: blocks with protocol and port.
    NetPort,
    /// `hash:ip`: addresses.
    Ip,
    /// `hash:ip,port`: addresses with protocol and port.
    IpPort,
}

impl SetKind {
    /// As ipset(8) calls it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Net => "hash:net",
            Self::NetPort => "hash:net,port",
            Self::Ip => "hash:ip",
            Self::IpPort => "hash:ip,port",
        }
    }
}

/// Who decides what a set holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SetContent {
    /// The policy: exactly these entries, as `ipset save` prints them.
    Fixed(BTreeSet<String>),
    /// Others, as things happen (answers of name servers, bans, records of refusals): applying a ruleset
    /// makes the set and never touches its entries.
    Live {
        /// How long an entry stays unless it says otherwise.
        timeout: Duration,
        /// Whether entries count packets.
        counters: bool,
    },
}

/// A set of addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// Begins with `claw-`, at most 27 characters (ipset allows 31; four are for the set that is swapped in).
    pub name: String,
    /// What it holds.
    pub kind: SetKind,
    /// For which family.
    pub family: Family,
    /// Most entries.
    pub max_entries: u32,
    /// Its entries.
    pub content: SetContent,
}

/// Everything of ours in the kernel's firewall.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruleset {
    /// Sets that the rules name; they must exist first.
    pub sets: Vec<Set>,
    /// IPv4, then IPv6.
    pub families: [FamilyRules; 2],
}

/// The sets of one instance's allowlist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum InstanceSet {
    /// Allowed networks on every port.
    Networks,
    /// Allowed networks with ports.
    NetworkPorts,
    /// Addresses of allowed names, on every port. Live.
    Names,
    /// Addresses of allowed names with ports. Live.
    NamePorts,
    /// Destinations that were refused, or would have been. Live, counts packets.
    Refused,
}

impl InstanceSet {
    /// Every one.
    pub const ALL: [Self; 5] =
        [Self::Networks, Self::NetworkPorts, Self::Names, Self::NamePorts, Self::Refused];

    /// The set's name, such as `claw-i3-names4`.
    #[must_use]
    pub fn name(self, slot: Slot, family: Family) -> String {
        let role = match self {
            Self::Networks => "nets",
            Self::NetworkPorts => "netports",
            Self::Names => "names",
            Self::NamePorts => "nameports",
            Self::Refused => "refused",
        };
        format!("claw-i{}-{role}{}", slot.number(), family.digit())
    }
}

/// The sets of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostSet {
    /// Sources that may use SSH.
    Ssh,
    /// Sources that may use the web port.
    Web,
    /// Sources that reach nothing but SSH.
    Blocked,
    /// Sources that are banned from SSH for a while: blocks of 32 or 64 bits. Live.
    Banned,
    /// Sources of the extra port with this index.
    Extra(u8),
}

impl HostSet {
    /// The set's name, such as `claw-banned6`.
    #[must_use]
    pub fn name(self, family: Family) -> String {
        let digit = family.digit();
        match self {
            Self::Ssh => format!("claw-ssh{digit}"),
            Self::Web => format!("claw-web{digit}"),
            Self::Blocked => format!("claw-blocked{digit}"),
            Self::Banned => format!("claw-banned{digit}"),
            Self::Extra(index) => format!("claw-extra{index}-{digit}"),
        }
    }
}
