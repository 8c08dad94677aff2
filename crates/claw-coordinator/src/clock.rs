//! What time it is. The one place of the coordinator that asks the system.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use claw_core::time::Timestamp;

/// A source of the present time; tests give their own.
#[derive(Clone)]
pub struct Clock {
    source: Arc<dyn Fn() -> SystemTime + Send + Sync>,
}

impl Clock {
    /// The system's clock.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the clock itself")]
    pub fn system() -> Self {
        Self::from_fn(SystemTime::now)
    }

    /// Any other source.
    #[must_use]
    pub fn from_fn(source: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        Self { source: Arc::new(source) }
    }

    /// Now.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        timestamp(self.system_time())
    }

    /// Now, for certificates.
    #[must_use]
    pub fn system_time(&self) -> SystemTime {
        (self.source)()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clock").finish_non_exhaustive()
    }
}

/// A system time in milliseconds; times before 1970 are 1970.
#[must_use]
pub fn timestamp(time: SystemTime) -> Timestamp {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    Timestamp::default().after(since)
}

/// The point `duration` before `at`.
#[must_use]
pub fn before(at: Timestamp, duration: Duration) -> Timestamp {
    let millis = i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
    Timestamp::from_millis(at.millis().saturating_sub(millis))
}
