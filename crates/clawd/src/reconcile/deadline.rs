//! A deadline for every call of a port, by the machine's clock.

use std::time::Duration;

use tokio::select;

use crate::ports::Clock;

/// A look at the machine: Docker answers in milliseconds, a busy one in seconds.
pub const LOOK: Duration = Duration::from_secs(10);
/// A quick change: files, networks, containers, the reverse proxy. Docker on a starved disk has been
/// seen to take most of a minute.
pub const CHANGE: Duration = Duration::from_secs(90);
/// Between SIGTERM's grace and the end of a stop: SIGKILL and cleaning up.
pub const AFTER_GRACE: Duration = Duration::from_secs(60);
/// A pull, however slow: silence is bounded by the port itself.
pub const PULL: Duration = Duration::from_secs(2 * 3600);
/// Copying, migrating or deleting the data of an instance: gigabytes on a slow disk.
pub const DATA: Duration = Duration::from_secs(2 * 3600);
/// The journal.
pub const JOURNAL: Duration = Duration::from_secs(30);

/// The deadline has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no answer within {} s", .0.as_secs())]
pub struct Elapsed(pub Duration);

/// Runs `work` for at most `limit`; dropping it is how it ends then.
///
/// # Errors
/// [`Elapsed`].
pub async fn within<T>(
    clock: &impl Clock,
    limit: Duration,
    work: impl Future<Output = T>,
) -> Result<T, Elapsed> {
    select! {
        biased;
        outcome = work => Ok(outcome),
        () = clock.sleep(limit) => Err(Elapsed(limit)),
    }
}
