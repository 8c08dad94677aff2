//! What a source gave and what went wrong, counted while it is read.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use claw_core::time::Timestamp;
use rustic_core::repofile::Node;

use super::Stillness;
use super::compact::CompactNode;
use super::node::Fingerprint;
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

/// The files of a moving source as they were when they were listed: per directory, by its path
/// relative to the data directory, in the order of their names. About 250 bytes of memory per file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Listing(pub(crate) BTreeMap<OsString, Vec<Remembered>>);

/// A file that was listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Remembered {
    pub(crate) name: Box<OsStr>,
    pub(crate) listed: Fingerprint,
    pub(crate) node: CompactNode,
}

/// How many faults are kept; all are counted.
const KEPT: usize = 20;

/// Counts of one pass over a source.
#[derive(Debug)]
pub(crate) struct Ledger {
    pub(crate) stillness: Stillness,
    /// When the snapshot began.
    pub(crate) start: Timestamp,
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

    /// A file that was listed in a directory, for [`super::frozen`]. One whose times prove nothing
    /// is not remembered: it counts as changed then.
    pub(crate) fn remember(
        &self,
        directory: &Path,
        name: &OsStr,
        listed: Fingerprint,
        node: &Node,
    ) {
        if self.stillness != Stillness::Moving || listed.is_racy(self.start) {
            return;
        }
        let node = CompactNode::new(node.clone());
        let file = Remembered { name: name.into(), listed, node };
        let mut listing = self.listing.lock().unwrap_or_else(PoisonError::into_inner);
        match listing.0.get_mut(directory.as_os_str()) {
            Some(files) => files.push(file),
            None => _ = listing.0.insert(directory.as_os_str().to_owned(), vec![file]),
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

    /// Listed, and gone before it could be given on.
    pub(crate) fn vanished(&self, path: &Path) {
        match self.stillness {
            Stillness::Still => self.fault(path, SourceFaultReason::Vanished),
            Stillness::Moving => {
                self.moved.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Given on, and gone or another one when it was to be opened.
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

    pub(crate) fn tell(&self) {
        let files = self.files.load(Ordering::Relaxed);
        let entries = files + self.directories.load(Ordering::Relaxed);
        self.watcher.tell(Progress { entries, bytes: self.bytes.load(Ordering::Relaxed) });
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
