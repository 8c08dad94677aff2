//! Blocking work on a thread of its own, which can be watched and given up.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::ports::{JobProgress, VolumeError};

/// Between two looks at how far it is.
const LOOK: Duration = Duration::from_millis(100);

/// A disk on which nothing at all gets done for so long is stuck. Writing out what an instance has written
/// is one such step: minutes on a slow disk.
const SILENCE: Duration = Duration::from_secs(600);

/// How far a job is, and whether anybody still wants it.
#[derive(Debug, Default)]
pub(super) struct Watch {
    given_up: AtomicBool,
    steps: AtomicU64,
    done: AtomicU64,
    total: AtomicU64,
}

impl Watch {
    /// Something was done, or is about to be.
    ///
    /// # Errors
    /// Nobody wants the job any more.
    pub(super) fn step(&self, path: &Path) -> Result<(), VolumeError> {
        self.steps.fetch_add(1, Relaxed);
        if self.is_given_up() {
            return Err(fault("going on with", path, io::ErrorKind::Interrupted.into()));
        }
        Ok(())
    }

    pub(super) fn is_given_up(&self) -> bool {
        self.given_up.load(Relaxed)
    }

    pub(super) fn expect(&self, bytes: u64) {
        self.total.store(bytes, Relaxed);
    }

    pub(super) fn add(&self, bytes: u64) {
        self.done.fetch_add(bytes, Relaxed);
        self.steps.fetch_add(1, Relaxed);
    }

    fn progress(&self) -> JobProgress {
        JobProgress { done_bytes: self.done.load(Relaxed), total_bytes: self.total.load(Relaxed) }
    }
}

/// Gives the job up when the future is dropped.
struct Wanted(Arc<Watch>);

impl Drop for Wanted {
    fn drop(&mut self) {
        self.0.given_up.store(true, Relaxed);
    }
}

/// Runs a job, and says how far it is.
pub(super) async fn run<T: Send + 'static>(
    doing: &'static str,
    path: PathBuf,
    progress: &dyn Fn(JobProgress),
    work: impl FnOnce(&Watch) -> Result<T, VolumeError> + Send + 'static,
) -> Result<T, VolumeError> {
    let wanted = Wanted(Arc::default());
    let watch = &wanted.0;
    let mut task = tokio::task::spawn_blocking({
        let watch = Arc::clone(watch);
        move || work(&watch)
    });
    let (mut seen, mut silent) = (0, Duration::ZERO);
    loop {
        if let Ok(ended) = tokio::time::timeout(LOOK, &mut task).await {
            progress(watch.progress());
            return ended.unwrap_or_else(|died| Err(fault(doing, &path, io::Error::other(died))));
        }
        let steps = watch.steps.load(Relaxed);
        if steps == seen {
            silent += LOOK;
        } else {
            (seen, silent) = (steps, Duration::ZERO);
            progress(watch.progress());
        }
        if silent >= SILENCE {
            let late = io::Error::new(io::ErrorKind::TimedOut, "the disk did not answer");
            return Err(fault(doing, &path, late));
        }
    }
}

/// What went wrong, in the port's terms.
pub(super) fn fault(doing: &'static str, path: &Path, source: io::Error) -> VolumeError {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            VolumeError::Full { path, source }
        }
        _ => VolumeError::Io { doing, path, source },
    }
}
