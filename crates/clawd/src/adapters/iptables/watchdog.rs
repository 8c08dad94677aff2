//! Puts back what was in force unless somebody says in time that what came after it is good.
//!
//! The watchdog is a process of its own, the static unit `clawd-firewall-revert.service`: it is started
//! before a rule is touched and says when it is ready, so that nothing which the rules, a full disk or a
//! starved machine do can keep it from starting; it does not depend on the agent, and the service manager
//! starts it again when it fails or is killed. A timer would have to start a program at the very moment
//! when something is wrong, and setting its time takes either a reload of the service manager (slow, and
//! for every unit) or a transient unit, which cannot be made again under its name while the old one is
//! there. All of it works over systemd's private socket, without a D-Bus daemon.

use std::time::Duration;

use claw_core::firewall::Ruleset;
use nix::time::{ClockId, clock_gettime};

use super::Iptables;
use super::kernel::{self, failed};
use super::store::{Pending, Store, store};
use crate::adapters::command;
use crate::logging::chain;
use crate::ports::FirewallError;

/// The unit.
const UNIT: &str = "clawd-firewall-revert.service";
/// Starting it takes 30 ms.
const START: Duration = Duration::from_secs(9);
/// How often rules are put back until they are in force: a program that a killed agent left behind may
/// come in between.
const ATTEMPTS: u32 = 3;
/// How long such a program may need.
const AFTERMATH: Duration = Duration::from_millis(300);

/// How a watch ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WatchdogOutcome {
    /// Nothing was armed, or not any more.
    NothingArmed,
    /// The patience ended: what was in force before is again.
    PutBack,
}

impl Iptables {
    /// Saves what is in force, or if something is armed lets that be, and has the watchdog wait.
    pub(super) async fn start_watchdog(&self, patience: Duration) -> Result<(), FirewallError> {
        let lock = self.lock().await?;
        let before = kernel::in_force().await?.ruleset();
        let until = now()?.saturating_add(millis(patience));
        let was_armed = self.store.is_pending();
        self.stored(move |store| store.arm(&before, until)).await?;
        // It needs the lock only when its time is over.
        drop(lock);
        let started = command::run(&["systemctl", "restart", UNIT], START).await;
        let Err(error) = started else { return Ok(()) };
        if !was_armed {
            // No rule was touched yet: there is nothing to put back.
            let _lock = self.lock().await?;
            self.stored(Store::disarm).await?;
        }
        Err(failed("starting the watchdog")(error))
    }

    /// Ends it. If it cannot be ended it will find nothing to do.
    pub(super) async fn stop_watchdog(&self) {
        let stopped = command::run(&["systemctl", "stop", UNIT], START).await;
        if let Err(error) = stopped {
            tracing::warn!(error = chain(&error), "the firewall's watchdog cannot be stopped");
        }
    }

    /// Makes rules the last good ones and ends the watchdog.
    pub(super) async fn disarm(&self, rules: Ruleset) -> Result<(), FirewallError> {
        let lock = self.lock().await?;
        if !self.store.is_pending() {
            let path = self.store.pending_dir();
            let source =
                std::io::Error::other("the watchdog has put back what was in force before");
            return Err(store("committing the rules over", &path)(source));
        }
        let committed = self.stored(move |store| {
            store.set_good(&rules)?;
            store.disarm()
        });
        committed.await?;
        drop(lock);
        self.stop_watchdog().await;
        Ok(())
    }

    /// Puts back what was armed; false when nothing was.
    pub(super) async fn put_back(&self) -> Result<bool, FirewallError> {
        let _lock = self.lock().await?;
        let Some(Pending { before, .. }) = self.stored(Store::pending).await? else {
            return Ok(false);
        };
        let mut said = self.force(&before).await?;
        for _attempt in 1..ATTEMPTS {
            if said.is_empty() {
                break;
            }
            tokio::time::sleep(AFTERMATH).await;
            said = self.force(&before).await?;
        }
        if !said.is_empty() {
            let source = DiffersError(said);
            let doing = "putting back the rules that were in force";
            return Err(FirewallError::Command { doing, source: Box::new(source) });
        }
        let put_back = self.stored(move |store| {
            store.set_good(&before)?;
            store.disarm()
        });
        put_back.await.map(|()| true)
    }

    /// What the unit runs: waits until the patience ends, then puts back what was armed. `ready` is called
    /// once it waits.
    ///
    /// # Errors
    /// [`FirewallError`]; the service manager then starts it again.
    pub async fn watch(&self, ready: impl FnOnce()) -> Result<WatchdogOutcome, FirewallError> {
        let pending = self.stored(Store::pending).await?;
        ready();
        let Some(Pending { until, .. }) = pending else { return Ok(WatchdogOutcome::NothingArmed) };
        let left = Duration::from_millis(until.saturating_sub(now()?));
        tokio::time::sleep(left).await;
        if !self.put_back().await? {
            return Ok(WatchdogOutcome::NothingArmed);
        }
        // What a program of a killed agent did after that is put back too, by the next look of an agent at
        // the latest.
        Ok(WatchdogOutcome::PutBack)
    }
}

/// What is in force is not what was put back.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("; "))]
struct DiffersError(Vec<String>);

/// Milliseconds since the boot, time asleep included.
fn now() -> Result<u64, FirewallError> {
    let doing = "reading the clock";
    let failed = |error| FirewallError::Command { doing, source: Box::new(error) };
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).map_err(failed)?;
    Ok(millis(Duration::from(time)))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
