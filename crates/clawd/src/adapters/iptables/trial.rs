//! Trying rules where they can do no harm: in a network namespace of their own.
//!
//! The agent may not make namespaces (`RestrictNamespaces=yes`), so the service manager does it: a
//! one-shot unit with `PrivateNetwork=yes` runs `clawd firewall-check`, which applies the candidate as it
//! would be applied here, sets included, and reads it back. `iptables-restore --test` would not do: it
//! accepts jumps to chains that do not exist (measured).

use std::time::Duration;

use claw_core::firewall::Ruleset;

use super::Iptables;
use super::kernel::failed;
use super::store::{Store, store};
use crate::adapters::command::{self, CommandError};
use crate::logging::chain;
use crate::ports::FirewallError;

/// The unit.
const UNIT: &str = "clawd-firewall-check.service";
/// The unit takes 50 to 100 ms; its own limit is 15 s.
const DEADLINE: Duration = Duration::from_secs(18);

impl Iptables {
    /// Has rules tried.
    pub(super) async fn try_apart(&self, rules: &Ruleset) -> Result<(), FirewallError> {
        let rules = rules.clone();
        self.stored(move |store| store.propose(&rules)).await?;
        let started = command::run(&["systemctl", "start", UNIT], DEADLINE).await;
        let refusal = self.stored(|store| Ok(store.refusal())).await?;
        match (started, refusal) {
            (Ok(_), None) => Ok(()),
            (Err(CommandError::Failed { .. }) | Ok(_), Some(output)) => {
                // A bad policy does not make the host a degraded one.
                let reset = command::run(&["systemctl", "reset-failed", UNIT], DEADLINE).await;
                if let Err(error) = reset {
                    tracing::warn!(
                        error = chain(&error),
                        "{UNIT} stays in the list of failed units"
                    );
                }
                Err(FirewallError::Invalid { output })
            }
            (Err(error), _) => Err(failed("trying the rules in a namespace of their own")(error)),
        }
    }

    /// What the unit runs: applies the candidate to this network namespace, which must be empty, and
    /// reads it back. A refusal is also written down beside the candidate.
    ///
    /// # Errors
    /// [`FirewallError`]: [`FirewallError::Invalid`] when the kernel refuses the rules, or makes something
    /// else of them.
    pub async fn check_candidate(&self) -> Result<(), FirewallError> {
        let candidate = self.stored(Store::candidate).await?;
        let missing = || std::io::Error::from(std::io::ErrorKind::NotFound);
        let path = self.store.candidate_dir();
        let rules = candidate.ok_or_else(|| store("reading", &path)(missing()))?;
        let output = match self.force(&rules).await {
            Ok(said) if said.is_empty() => return Ok(()),
            Ok(said) => said.join("; "),
            Err(FirewallError::Command { source, doing }) => {
                format!("{doing}: {}", chain(source.as_ref()))
            }
            Err(error) => return Err(error),
        };
        let written = output.clone();
        self.stored(move |store| store.refuse(&written)).await?;
        Err(FirewallError::Invalid { output })
    }
}
