//! The kernel's live sets, through which the packet filter learns what the names of an allowlist lead to.
//!
//! What it deliberately does not do: make sets (applying the firewall's rules does) or remember what
//! they hold ([`super::grants`] does).

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use claw_core::address::Slot;
use claw_core::firewall::{Family, InstanceSet, Port, Protocol};

/// An address that a name led to, as an entry of a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Entry {
    /// Where.
    pub address: IpAddr,
    /// How; `None`: on every port.
    pub port: Option<(Protocol, Port)>,
}

impl Entry {
    /// The set of the instance in `slot` to which the entry belongs.
    #[must_use]
    pub fn set(self, slot: Slot) -> String {
        let role = if self.port.is_some() { InstanceSet::NamePorts } else { InstanceSet::Names };
        role.name(slot, Family::of(self.address))
    }
}

impl fmt::Display for Entry {
    /// As `ipset save` prints it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            None => self.address.fmt(f),
            Some((protocol, port)) => write!(f, "{},{protocol}:{port}", self.address),
        }
    }
}

/// What is changed in a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetChange {
    /// Adds an entry for a while, rounded up to seconds, or gives it that timeout.
    Add(Entry, Duration),
    /// Removes an entry; gone is success.
    Remove(Entry),
    /// Removes every entry; the set not being there is success.
    Clear,
}

impl fmt::Display for SetChange {
    /// As ipset(8) is told it, without the set's name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Add(entry, timeout) => write!(f, "add {entry} timeout {}", seconds(*timeout)),
            Self::Remove(entry) => write!(f, "del {entry}"),
            Self::Clear => f.write_str("flush"),
        }
    }
}

/// A timeout as the kernel takes it.
#[must_use]
pub fn seconds(timeout: Duration) -> u32 {
    u32::try_from(timeout.as_millis().div_ceil(1000)).unwrap_or(u32::MAX)
}

/// Why a set is not as it should be.
#[derive(Debug, thiserror::Error)]
#[error("{change} of set {set}")]
pub struct SetsError {
    /// Which set.
    pub set: String,
    /// What was tried.
    pub change: SetChange,
    /// What the kernel said.
    #[source]
    pub source: std::io::Error,
}

/// The live sets of every instance.
pub trait Sets: 'static {
    /// Carries out one change. It takes microseconds and waits for nobody, so that no other question comes
    /// between a look at the rules and the change.
    ///
    /// # Errors
    /// [`SetsError`]; the set is then as it was.
    fn change(&self, set: &str, change: SetChange) -> Result<(), SetsError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(entry: Entry, set: &str, text: &str) {
        assert_eq!(entry.set(Slot::new(3).unwrap()), set);
        let add = SetChange::Add(entry, Duration::from_millis(119_001));
        assert_eq!(add.to_string(), format!("add {text} timeout 120"));
        assert_eq!(SetChange::Remove(entry).to_string(), format!("del {text}"));
    }

    #[test]
    fn entries_belong_to_the_set_of_their_kind() {
        let port = Port::new(443).map(|port| (Protocol::Udp, port));
        check(Entry { address: [192, 0, 2, 1].into(), port: None }, "claw-i3-names4", "192.0.2.1");
        let address = "2001:db8::1".parse().unwrap();
        check(Entry { address, port }, "claw-i3-nameports6", "2001:db8::1,udp:443");
    }
}
