//! Puts rules in force so that they cannot cut this host off for good.
//!
//! validate → prove the way out → arm → apply → verify → prove it again → commit. From arming to the commit a
//! watchdog outside this process restores what was in force, whatever becomes of the process. The second
//! proof is a new connection to the coordinator: an established one would live on through rules that let
//! no new one pass. A coordinator that could not be reached before need not be reachable afterwards.
//!
//! What it does not do: decide what to try after a failure, or report it; that is
//! [`super::FirewallLoop`]'s.

use std::time::Duration;

use claw_core::firewall::Ruleset;

use crate::machine::Machine;
use crate::ports::{
    Clock as _, Firewall as _, FirewallError, ResolverError, Uplink as _, UplinkError,
};
use crate::reconcile::deadline::{Elapsed, within};

/// Trying the rules in a namespace of their own. Starting the unit takes most of it.
const VALIDATE: Duration = Duration::from_secs(20);
/// Saving what is in force and starting the watchdog.
const ARM: Duration = Duration::from_secs(10);
/// Applying: 2 000 rules take 73 ms, 20 000 entries of a set 43 ms (measured); a starved host is slower.
const APPLY: Duration = Duration::from_secs(15);
/// Reading everything back.
const VERIFY: Duration = Duration::from_secs(10);
/// A new connection. The outage of a policy that cuts the host off is about this long.
const PROVE: Duration = Duration::from_secs(4);
/// Between two attempts at a proof within [`PROVE`].
const PROVE_AGAIN: Duration = Duration::from_millis(250);
/// Making the rules the last good ones.
const COMMIT: Duration = Duration::from_secs(10);
/// Restoring.
const REVERT: Duration = Duration::from_secs(20);
/// The watchdog's patience: longer than everything between arming and the commit together.
const PATIENCE: Duration = Duration::from_secs(45);

/// Why rules were not put in force; what was in force before is again.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProtocolError {
    /// A step failed.
    #[error(transparent)]
    Firewall(#[from] FirewallError),
    /// A step did not end.
    #[error("{doing} takes too long")]
    Stuck {
        /// What was being done.
        doing: &'static str,
        /// For how long.
        #[source]
        source: Elapsed,
    },
    /// The forwarder of names was not told.
    #[error(transparent)]
    Resolver(#[from] ResolverError),
    /// The kernel holds something else than what it was told.
    #[error("the rules are not in force as they were made: {}", .0.join("; "))]
    Differs(Vec<String>),
    /// The coordinator could be reached before and cannot be reached with these rules.
    #[error("with these rules the coordinator cannot be reached")]
    CutOff(#[source] UplinkError),
    /// Reverting failed as well: the watchdog is still armed.
    #[error("reverting failed; the watchdog reverts within {} s", PATIENCE.as_secs())]
    RevertFailed(#[source] Box<Self>),
}

impl ProtocolError {
    /// Whether the rules themselves are to blame, and trying them again would end the same way.
    #[must_use]
    pub(super) const fn blames_the_rules(&self) -> bool {
        match self {
            Self::Firewall(error) => matches!(error, FirewallError::Invalid { .. }),
            Self::CutOff(_) => true,
            Self::Resolver(_) | Self::Stuck { .. } | Self::Differs(_) | Self::RevertFailed(_) => {
                false
            }
        }
    }
}

/// Puts rules in force.
///
/// Dropping the future at any point leaves it to the watchdog to restore what was in force.
///
/// # Errors
/// [`ProtocolError`].
pub(super) async fn put_in_force(
    machine: &impl Machine,
    rules: &Ruleset,
) -> Result<(), ProtocolError> {
    let firewall = machine.firewall();
    bounded(machine, "validating the rules", VALIDATE, firewall.validate(rules)).await?;
    let reachable = prove(machine).await.is_ok();
    bounded(machine, "arming the watchdog", ARM, firewall.arm(PATIENCE)).await?;
    match armed(machine, rules, reachable).await {
        Ok(()) => Ok(()),
        Err(error) => {
            let reverted = bounded(machine, "reverting the rules", REVERT, firewall.revert()).await;
            match reverted {
                Ok(_) => Err(error),
                Err(failure) => {
                    tracing::error!(error = crate::logging::chain(&failure), "cannot revert");
                    Err(ProtocolError::RevertFailed(Box::new(error)))
                }
            }
        }
    }
}

/// Repairs rules that were in force and that somebody may have changed: they are known to be good. Returns
/// what was changed. Nothing is looked at before: the time until a flushed firewall is whole again counts.
///
/// # Errors
/// [`ProtocolError`].
pub(super) async fn repair(
    machine: &impl Machine,
    rules: &Ruleset,
) -> Result<Vec<String>, ProtocolError> {
    let apply = machine.firewall().apply(rules);
    let found = bounded(machine, "applying the rules", APPLY, apply).await?;
    if !found.is_empty() {
        verify(machine, rules).await?;
    }
    Ok(found)
}

/// Where the kernel differs from rules that should be in force.
///
/// # Errors
/// [`ProtocolError`].
pub(super) async fn deviations(
    machine: &impl Machine,
    rules: &Ruleset,
) -> Result<Vec<String>, ProtocolError> {
    bounded(machine, "verifying the rules", VERIFY, machine.firewall().deviations(rules)).await
}

/// Restores what an earlier agent left armed; false when it left nothing.
///
/// # Errors
/// [`ProtocolError`].
pub(super) async fn revert(machine: &impl Machine) -> Result<bool, ProtocolError> {
    bounded(machine, "reverting the rules", REVERT, machine.firewall().revert()).await
}

async fn armed(
    machine: &impl Machine,
    rules: &Ruleset,
    reachable: bool,
) -> Result<(), ProtocolError> {
    repair(machine, rules).await?;
    match (reachable, prove(machine).await) {
        (true, Err(error)) => return Err(ProtocolError::CutOff(error)),
        (false, Err(error)) => {
            let error = crate::logging::chain(&error);
            tracing::info!(error, "the coordinator cannot be reached, as before: the rules stay");
        }
        (_, Ok(())) => {}
    }
    let commit = machine.firewall().commit(rules);
    bounded(machine, "keeping the rules", COMMIT, commit).await
}

async fn verify(machine: &impl Machine, rules: &Ruleset) -> Result<(), ProtocolError> {
    let found = deviations(machine, rules).await?;
    if found.is_empty() { Ok(()) } else { Err(ProtocolError::Differs(found)) }
}

/// Tries until it succeeds or [`PROVE`] is over; one lost packet must not revert a policy.
async fn prove(machine: &impl Machine) -> Result<(), UplinkError> {
    let clock = machine.clock();
    let mut last = UplinkError::Connect(Box::new(Elapsed(PROVE)));
    let attempts = async {
        loop {
            match machine.uplink().prove().await {
                Ok(()) => return Ok(()),
                Err(error @ (UplinkError::NotJoined | UplinkError::Identity(_))) => {
                    return Err(error);
                }
                Err(error) => last = error,
            }
            clock.sleep(PROVE_AGAIN).await;
        }
    };
    match within(clock, PROVE, attempts).await {
        Ok(outcome) => outcome,
        Err(_elapsed) => Err(last),
    }
}

async fn bounded<T>(
    machine: &impl Machine,
    doing: &'static str,
    limit: Duration,
    work: impl Future<Output = Result<T, FirewallError>>,
) -> Result<T, ProtocolError> {
    let outcome = within(machine.clock(), limit, work).await;
    Ok(outcome.map_err(|source| ProtocolError::Stuck { doing, source })??)
}
