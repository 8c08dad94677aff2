//! What a source gave and what went wrong, counted while it is read.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use claw_core::time::Timestamp;

use super::Stillness;
use super::node::Fingerprint;
use crate::backend::Gate;
use crate::progress::{Progress, Watcher};

/// Something that would be missing from the snapshot or wrong in it.
#[derive(Debug, thiserror::Error)]
#[error("{path}")]
pub struct SourceFault {
    /// Relative to the data directory; empty for the directory itself.
    pub path: PathBuf,
    /// What is wrong.
    #[source]
    pub reason: SourceFaultReason,
}

/// Why an entry could not be taken into a snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SourceFaultReason {
    /// It could not be read.
    #[error("{doing} failed")]
    Unreadable {
        /// What was being done.
        doing: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It was listed and then gone.
    #[error("it vanished")]
    Vanished,
    /// It was listed as one thing and opened as another, or changed while it was read.
    #[error("it changed while it was read")]
    Changed,
    /// Another file system is mounted there.
    #[error("another file system is mounted there")]
    OtherFileSystem,
    /// It was not copied while the source stood still, and the repository lost what it had of it.
    #[error("it was not copied while the source stood still")]
    NotStaged,
    /// The engine stopped reading it before its end.
    #[error("it was not read to its end")]
    Unfinished,
    /// It is no directory, though it should be one.
    #[error("it is no directory")]
    NoDirectory,
}

/// What happens to content that is not on the disk yet when a file is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unwritten {
    /// It is written first, so that the file's times can be trusted from then on.
    Flush,
    /// Nothing; then the file's times must not be trusted.
    Leave,
}

/// The state in which the files of a moving source were when they were read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Listing(pub(crate) BTreeMap<PathBuf, Fingerprint>);

/// How many faults are kept; all are counted.
const KEPT: usize = 20;

/// Counts of one pass over a source.
#[derive(Debug)]
pub(crate) struct Ledger {
    pub(crate) stillness: Stillness,
    /// When the snapshot began.
    pub(crate) start: Timestamp,
    pub(crate) unwritten: Unwritten,
    /// What was listed, of a moving source.
    listing: Mutex<Listing>,
    watcher: Watcher,
    /// Entries that are no directories.
    files: AtomicU64,
    directories: AtomicU64,
    bytes: AtomicU64,
    /// Listed and then absent or changed, where that is no fault.
    moved: AtomicU64,
    /// Of `moved`: those that the engine will not see.
    dropped: AtomicU64,
    special: AtomicU64,
    fault_count: AtomicU64,
    faults: Mutex<Vec<SourceFault>>,
}

/// What a pass over a source found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Counts {
    pub(crate) files: u64,
    pub(crate) directories: u64,
    pub(crate) bytes: u64,
    pub(crate) moved: u64,
    pub(crate) dropped: u64,
    pub(crate) special: u64,
}

impl Ledger {
    pub(crate) fn new(stillness: Stillness, start: Timestamp, watcher: Watcher) -> Self {
        Self {
            stillness,
            start,
            unwritten: Unwritten::Flush,
            listing: Mutex::new(Listing::default()),
            watcher,
            files: AtomicU64::new(0),
            directories: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            special: AtomicU64::new(0),
            fault_count: AtomicU64::new(0),
            faults: Mutex::new(Vec::new()),
        }
    }

    /// For a copy that is made while somebody waits.
    pub(crate) fn without_flushing(self) -> Self {
        Self { unwritten: Unwritten::Leave, ..self }
    }

    /// A file that was listed, for [`super::frozen`]. One whose times prove nothing is not
    /// remembered: it counts as changed then.
    pub(crate) fn remember(&self, path: &Path, listed: Fingerprint) {
        if self.stillness == Stillness::Moving && !listed.is_racy(self.start) {
            let mut listing = self.listing.lock().unwrap_or_else(PoisonError::into_inner);
            listing.0.insert(path.to_owned(), listed);
        }
    }

    pub(crate) fn take_listing(&self) -> Listing {
        std::mem::take(&mut self.listing.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn directory(&self) {
        self.directories.fetch_add(1, Ordering::Relaxed);
        self.tell();
    }

    /// A file or link that was given to the engine, with its size.
    pub(crate) fn file(&self, size: u64) {
        self.files.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(size, Ordering::Relaxed);
        self.tell();
    }

    /// A socket, pipe or device: holds no data, so nothing is lost without it.
    pub(crate) fn special(&self) {
        self.special.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn fault(&self, path: &Path, reason: SourceFaultReason) {
        self.fault_count.fetch_add(1, Ordering::SeqCst);
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        if faults.len() < KEPT {
            faults.push(SourceFault { path: path.to_owned(), reason });
        }
    }

    /// Listed, and gone before it could be given to the engine.
    pub(crate) fn vanished(&self, path: &Path) {
        match self.stillness {
            Stillness::Still => self.fault(path, SourceFaultReason::Vanished),
            Stillness::Moving => {
                self.moved.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Given to the engine, and gone or another one when it was to be opened.
    pub(crate) fn dropped(&self, path: &Path, reason: SourceFaultReason) {
        match self.stillness {
            Stillness::Still => self.fault(path, reason),
            Stillness::Moving => {
                self.moved.fetch_add(1, Ordering::Relaxed);
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Read, and not the same at the end as at the beginning.
    pub(crate) fn changed(&self, path: &Path) {
        match self.stillness {
            Stillness::Still => self.fault(path, SourceFaultReason::Changed),
            Stillness::Moving => {
                self.moved.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// The number of faults, and the first of them.
    pub(crate) fn take_faults(&self) -> (u64, Vec<SourceFault>) {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        (self.fault_count.load(Ordering::SeqCst), std::mem::take(&mut faults))
    }

    pub(crate) fn counts(&self) -> Counts {
        Counts {
            files: self.files.load(Ordering::SeqCst),
            directories: self.directories.load(Ordering::SeqCst),
            bytes: self.bytes.load(Ordering::SeqCst),
            moved: self.moved.load(Ordering::SeqCst),
            dropped: self.dropped.load(Ordering::SeqCst),
            special: self.special.load(Ordering::SeqCst),
        }
    }

    fn tell(&self) {
        let files = self.files.load(Ordering::Relaxed);
        let entries = files + self.directories.load(Ordering::Relaxed);
        self.watcher.tell(Progress { entries, bytes: self.bytes.load(Ordering::Relaxed) });
    }
}

impl Gate for Ledger {
    fn is_open(&self) -> bool {
        self.fault_count.load(Ordering::SeqCst) == 0
    }
}

/// The first fault with its causes, for a message.
pub(crate) fn first(faults: &[SourceFault]) -> String {
    use std::error::Error;
    let Some(fault) = faults.first() else { return String::new() };
    let mut text = fault.to_string();
    let mut cause = fault.source();
    while let Some(next) = cause {
        text.push_str(": ");
        text.push_str(&next.to_string());
        cause = next.source();
    }
    text
}
