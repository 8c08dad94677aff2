//! The host's packet filter: iptables, ip6tables, ipset, conntrack.
//!
//! What it is for: rules that were rendered are tried, applied, read back, and put back, so that at no
//! moment there is a gap and at no moment nobody would put them back. What it deliberately does not do:
//! know what a rule means (`claw_core::firewall` renders and reads them), decide when.
//!
//! Where to start: [`Iptables`]. `kernel` runs the programs, `hooks` places jumps through the `iptables`
//! crate, `store` is what survives a kill (with the table of states), `watchdog` what puts things back,
//! `trial` tries rules where they can do no harm, `traffic` reads what passes, `events` tells of changes by
//! others, which `ledger` tells from our own.

mod events;
mod flows;
mod hooks;
mod kernel;
mod ledger;
mod netlink;
mod ssh;
mod store;
mod traffic;
mod trial;
mod watchdog;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use claw_core::firewall::{InterfaceName, Port, Ruleset, Surroundings};
use tokio::sync::mpsc;

use crate::adapters::command;
use crate::ports::{Firewall, FirewallError, FirewallEvent};
use kernel::{DEADLINE, failed};
use ledger::Ledger;
use store::{Lock, Store};

pub use watchdog::WatchdogOutcome;

/// How long another holder of the lock is waited for: an application of rules by the watchdog or an agent
/// that is on its way out. Less than what callers wait for a whole step.
const LOCK: Duration = Duration::from_secs(8);

/// iptables as Debian and Ubuntu package it.
#[derive(Debug, Clone)]
pub struct Iptables {
    store: Store,
    ledger: Ledger,
}

impl Iptables {
    /// With what must survive below a data directory and what need not below a runtime directory, such
    /// as `/var/lib/clawd` and `/run/clawd`. Does nothing yet.
    #[must_use]
    pub fn new(data: &Path, run: &Path) -> Self {
        let store = Store::new(data.join("firewall"), run.join("firewall"));
        Self { store, ledger: Ledger::default() }
    }

    /// The rules that a boot restores; `None` when none were ever proven.
    ///
    /// # Errors
    /// [`FirewallError::Store`], also when they are damaged.
    pub async fn last_good(&self) -> Result<Option<Ruleset>, FirewallError> {
        self.stored(Store::good).await
    }

    /// Drops what an earlier boot left armed and applies rules, without a watchdog; verifies them.
    ///
    /// # Errors
    /// [`FirewallError`].
    pub async fn boot(&self, rules: &Ruleset) -> Result<Vec<String>, FirewallError> {
        let lock = self.store.lock(LOCK).await?;
        self.stored(Store::disarm).await?;
        let said = self.force(rules).await?;
        drop(lock);
        Ok(said)
    }

    /// Applies rules and reads them back; the lock must be held.
    async fn force(&self, rules: &Ruleset) -> Result<Vec<String>, FirewallError> {
        let found = kernel::in_force().await?;
        kernel::apply(rules, &found, &self.ledger).await?;
        Ok(kernel::in_force().await?.deviations(rules))
    }

    /// Does something with files on a thread for what blocks.
    async fn stored<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, FirewallError> + Send + 'static,
    ) -> Result<T, FirewallError> {
        let store = self.store.clone();
        let ended = tokio::task::spawn_blocking(move || work(&store)).await;
        let doing = "waiting for a thread";
        ended.map_err(|error| FirewallError::Command { doing, source: Box::new(error) })?
    }

    async fn lock(&self) -> Result<Lock, FirewallError> {
        self.store.lock(LOCK).await
    }
}

impl Firewall for Iptables {
    async fn surroundings(&self) -> Result<Surroundings, FirewallError> {
        let argv = ["iptables", "--version"];
        let version =
            command::run(&argv, DEADLINE).await.map_err(failed("asking for the version"))?;
        let version = version.trim();
        let backend = version.strip_prefix("iptables v").unwrap_or(version).to_owned();
        Ok(Surroundings {
            ssh_ports: self.ssh_ports().await,
            interfaces: interfaces(),
            backend,
            legacy: legacy(),
        })
    }

    async fn validate(&self, rules: &Ruleset) -> Result<(), FirewallError> {
        self.try_apart(rules).await
    }

    async fn arm(&self, patience: Duration) -> Result<(), FirewallError> {
        self.start_watchdog(patience).await
    }

    async fn apply(&self, rules: &Ruleset) -> Result<Vec<String>, FirewallError> {
        let lock = self.lock().await?;
        let found = kernel::in_force().await?;
        kernel::apply(rules, &found, &self.ledger).await?;
        drop(lock);
        Ok(found.deviations(rules))
    }

    async fn deviations(&self, rules: &Ruleset) -> Result<Vec<String>, FirewallError> {
        Ok(kernel::in_force().await?.deviations(rules))
    }

    async fn commit(&self, rules: &Ruleset) -> Result<(), FirewallError> {
        self.disarm(rules.clone()).await
    }

    async fn revert(&self) -> Result<bool, FirewallError> {
        let reverted = self.put_back().await?;
        self.stop_watchdog().await;
        Ok(reverted)
    }

    fn events(&self) -> mpsc::Receiver<FirewallEvent> {
        let (sender, receiver) = mpsc::channel(events::QUEUE);
        tokio::spawn(events::tell(self.ledger.clone(), sender));
        receiver
    }
}

impl Iptables {
    /// Ports on which operators reach this host by SSH, now or after sshd's next start; never empty.
    pub async fn ssh_ports(&self) -> BTreeSet<Port> {
        ssh::ports().await
    }
}

/// Interfaces that exist and that a policy may name.
fn interfaces() -> BTreeSet<InterfaceName> {
    let Ok(entries) = std::fs::read_dir("/sys/class/net") else { return BTreeSet::new() };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter_map(|name| InterfaceName::parse(&name).ok()).collect()
}

/// Whether legacy tables exist, of either family. Asking `iptables-legacy` would make one.
fn legacy() -> bool {
    let tables = ["/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"];
    tables.into_iter().any(|path| {
        std::fs::read_to_string(PathBuf::from(path)).is_ok_and(|names| !names.trim().is_empty())
    })
}
