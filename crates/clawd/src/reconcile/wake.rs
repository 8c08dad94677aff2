//! How an instance's loop is woken, and why.

use std::cell::Cell;

use tokio::sync::Notify;

/// The bell of one instance's loop. Rings are merged.
#[derive(Debug, Default)]
pub struct Bell {
    notify: Notify,
    retry: Cell<bool>,
}

/// Why a loop was woken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Something happened to its container, or somebody asks to look again.
    Look,
    /// Docker is back: what failed because of it may be tried at once.
    Retry,
}

impl Bell {
    /// Wakes the loop, now or when it waits next.
    pub fn ring(&self, cause: Cause) {
        if cause == Cause::Retry {
            self.retry.set(true);
        }
        self.notify.notify_one();
    }

    /// Waits for a ring; cancel-safe.
    pub(super) async fn rung(&self) -> Cause {
        self.notify.notified().await;
        if self.retry.replace(false) { Cause::Retry } else { Cause::Look }
    }
}
