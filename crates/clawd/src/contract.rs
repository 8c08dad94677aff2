//! What every implementation of a port must do, as functions over the port itself: run against the
//! fakes in unit tests and against the adapters on a lab host.
//!
//! Each function ends with the first rule that is broken. A suite leaves nothing behind if it
//! passes. Where to start: `tests/real_adapters.rs` runs all of them.

mod carry;
mod control;
mod files;
mod firewall;
mod proxy;
mod runtime;
mod snapshots;
mod trials;
mod volumes;

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::time::Duration;

use claw_core::plan::VirtualHost;

use crate::ports::{Clock, Gateway, GatewayAnswer, Host};

pub use carry::{CarryGround, carry};
pub use control::{ControlSubject, control};
pub use files::files;
pub use firewall::{firewall, traffic};
pub use proxy::proxy;
pub use runtime::{RuntimeSubject, runtime};
pub use snapshots::{SnapshotsSubject, snapshots};
pub use trials::{TrialsSubject, trials};
pub use volumes::volumes;

/// A rule that an implementation breaks.
#[derive(Debug, thiserror::Error)]
#[error("{rule}: {found}")]
pub struct Breach {
    /// What every implementation must do.
    pub rule: &'static str,
    /// What this one did.
    pub found: String,
}

impl Breach {
    fn new(rule: &'static str, found: impl Debug) -> Self {
        Self { rule, found: format!("{found:?}") }
    }
}

/// Checks that two values are equal.
fn same<T: PartialEq + Debug>(rule: &'static str, found: &T, expected: &T) -> Result<(), Breach> {
    if found == expected {
        return Ok(());
    }
    Err(Breach { rule, found: format!("{found:?} instead of {expected:?}") })
}

/// Checks a condition on what was found.
fn holds(rule: &'static str, condition: bool, found: impl Debug) -> Result<(), Breach> {
    if condition { Ok(()) } else { Err(Breach::new(rule, found)) }
}

/// Checks that something succeeded.
fn done<T, E: std::error::Error + 'static>(
    rule: &'static str,
    result: Result<T, E>,
) -> Result<T, Breach> {
    result.map_err(|error| {
        let first: &dyn std::error::Error = &error;
        let causes = std::iter::successors(Some(first), |error| error.source());
        let found = causes.map(ToString::to_string).collect::<Vec<_>>().join(": ");
        Breach { rule, found }
    })
}

/// The contract of [`Gateway`]: `started` is one that is up and published, `absent` one where nothing
/// listens.
///
/// # Errors
/// The first rule that is broken.
pub async fn gateway(
    gateway: &impl Gateway,
    started: &VirtualHost,
    absent: &VirtualHost,
) -> Result<(), Breach> {
    let answer = gateway.look(started).await;
    let rule = "a gateway that is up and published has started";
    holds(rule, matches!(answer, GatewayAnswer::Started { .. }), answer)?;
    let answer = gateway.look(absent).await;
    let rule = "where nothing listens the gateway fails, and a cause is given";
    let failing = matches!(&answer, GatewayAnswer::Failing(cause) if !cause.is_empty());
    holds(rule, failing, answer)
}

/// The contract of [`Host`].
///
/// # Errors
/// The first rule that is broken.
pub fn host(host: &impl Host) -> Result<(), Breach> {
    let boot = host.boot_id();
    holds("a boot has an identity", !boot.is_empty(), &boot)?;
    same("the identity of a boot stays", &host.boot_id(), &boot)?;
    let kernel = host.kernel_version();
    holds("the kernel has a version", !kernel.is_empty(), &kernel)?;
    let found = host.resources();
    let memory = found.memory_available_bytes <= found.memory_total_bytes;
    holds("no more memory is available than there is", memory, &found)?;
    let disk = found.disk_available_bytes <= found.disk_total_bytes;
    holds("no more disk is available than there is", disk, &found)?;
    holds("there is a core", found.cpu_count > 0, &found)?;
    holds("not more than all of the CPU is used", found.cpu_permille <= 1000, &found)?;
    same("a process that does not exist uses nothing", &host.usage(u32::MAX), &None)
}

/// The contract of [`Clock`]. Takes 20 ms of its time.
///
/// # Errors
/// The first rule that is broken.
pub async fn clock(clock: &impl Clock) -> Result<(), Breach> {
    let before = clock.now();
    let pause = Duration::from_millis(20);
    clock.sleep(pause).await;
    let passed = clock.now().since(before);
    holds("sleeping takes its time", passed + Duration::from_millis(1) >= pause, passed)?;
    let numbers: BTreeSet<u64> = (0..8).map(|_| clock.random()).collect();
    holds("random numbers differ", numbers.len() > 1, numbers)
}
