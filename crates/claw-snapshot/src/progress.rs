//! How far an operation is, for whoever watches.

use std::fmt;
use std::sync::Arc;

/// What has been done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Files, directories and links.
    pub entries: u64,
    /// Bytes of files: those read, and those known to be unchanged.
    pub bytes: u64,
}

/// Is called for every entry, from several threads; it should return at once.
#[derive(Clone)]
pub struct Watcher(Arc<dyn Fn(Progress) + Send + Sync>);

impl Watcher {
    /// Calls a function.
    pub fn new(watch: impl Fn(Progress) + Send + Sync + 'static) -> Self {
        Self(Arc::new(watch))
    }

    /// Nobody watches.
    #[must_use]
    pub fn none() -> Self {
        Self::new(|_| ())
    }

    pub(crate) fn tell(&self, progress: Progress) {
        (self.0)(progress);
    }
}

impl fmt::Debug for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watcher(..)")
    }
}
