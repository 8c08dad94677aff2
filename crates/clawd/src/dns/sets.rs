//! The kernel's live sets, through which the packet filter learns what the names of an allowlist lead to.
//!
//! What it deliberately does not do: make sets (applying the firewall's rules does) or remember what
//! they hold ([`super::grants`] does).

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use claw_core::address::Slot;
use claw_core::firewall::{Family, InstanceSet, Port, Protocol};
use tokio::sync::Semaphore;

use crate::adapters::command::{self, CommandError};

/// Longest time for one run of ipset; 20 000 entries take 43 ms.
const DEADLINE: Duration = Duration::from_secs(2);
/// Most runs of ipset at the same time, each about 1 MiB.
const MAX_RUNS: usize = 4;

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

/// A change of a set. Displayed, it is a line that `ipset restore` reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SetChange {
    /// Adds an entry, or gives it another timeout.
    Add {
        /// Name of the set.
        set: String,
        /// Which.
        entry: Entry,
        /// How long it stays; at least a second, rounded up to seconds.
        timeout: Duration,
    },
    /// Removes an entry; gone is success.
    Remove {
        /// Name of the set.
        set: String,
        /// Which.
        entry: Entry,
    },
}

impl fmt::Display for SetChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Add { set, entry, timeout } => {
                let seconds = timeout.as_millis().div_ceil(1000);
                write!(f, "add {set} {entry} timeout {seconds}")
            }
            Self::Remove { set, entry } => write!(f, "del {set} {entry}"),
        }
    }
}

/// Why a set is not as it should be.
#[derive(Debug, thiserror::Error)]
#[error("changing sets of addresses")]
pub struct SetsError(#[source] pub CommandError);

/// The live sets of every instance.
pub trait Sets: 'static {
    /// Carries out the changes in order; on an error, some of them.
    fn change(&self, changes: &[SetChange]) -> impl Future<Output = Result<(), SetsError>>;
    /// Removes every entry of a set; the set not being there is success.
    fn clear(&self, set: &str) -> impl Future<Output = Result<(), SetsError>>;
}

/// The sets, changed by the program ipset(8): one run for each answer that brings something new.
#[derive(Debug)]
pub struct Ipset {
    runs: Semaphore,
}

impl Ipset {
    /// Uses the ipset that is found by `PATH`.
    #[must_use]
    pub fn new() -> Self {
        Self { runs: Semaphore::new(MAX_RUNS) }
    }
}

impl Default for Ipset {
    fn default() -> Self {
        Self::new()
    }
}

impl Sets for Ipset {
    async fn change(&self, changes: &[SetChange]) -> Result<(), SetsError> {
        let script: String = changes.iter().map(|change| format!("{change}\n")).collect();
        // Never closed.
        let _run = self.runs.acquire().await;
        let run = command::feed(&["ipset", "restore", "-exist"], &script, DEADLINE);
        run.await.map(drop).map_err(SetsError)
    }

    async fn clear(&self, set: &str) -> Result<(), SetsError> {
        let _run = self.runs.acquire().await;
        match command::run(&["ipset", "flush", set], DEADLINE).await {
            Ok(_silent) => Ok(()),
            Err(CommandError::Failed { output, .. }) if output.contains("does not exist") => Ok(()),
            Err(error) => Err(SetsError(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(entry: Entry, expected: &str) {
        let slot = Slot::new(3).unwrap();
        let timeout = Duration::from_millis(119_001);
        let add = SetChange::Add { set: entry.set(slot), entry, timeout };
        assert_eq!(add.to_string(), format!("add {expected} timeout 120"));
        let remove = SetChange::Remove { set: entry.set(slot), entry };
        assert_eq!(remove.to_string(), format!("del {expected}"));
    }

    #[test]
    fn changes_are_lines_of_ipset() {
        let port = Port::new(443).map(|port| (Protocol::Udp, port));
        check(Entry { address: [192, 0, 2, 1].into(), port: None }, "claw-i3-names4 192.0.2.1");
        let address = "2001:db8::1".parse().unwrap();
        check(Entry { address, port }, "claw-i3-nameports6 2001:db8::1,udp:443");
    }
}
