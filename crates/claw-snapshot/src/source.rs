//! What is read for a snapshot: a directory, and small attachments beside it.
//!
//! What cannot be read must not just be absent from a snapshot: the source counts what it gave,
//! keeps every fault, and the snapshot is refused when there is one.
//!
//! The directory belongs to a tenant who may change it at any moment, so no path is ever resolved
//! twice: each directory is opened once without following links, and everything in it is reached
//! through that open directory (`/proc/self/fd`, proc(5)).
//!
//! Where to start: [`Source`], [`ledger::Ledger`]; the walk is in [`walk`].

pub(crate) mod attachment;
mod compact;
pub(crate) mod frozen;
pub(crate) mod ledger;
pub(crate) mod node;
pub(crate) mod reader;
pub(crate) mod walk;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use rustic_core::ReadSourceEntry;

use attachment::AttachmentName;
use frozen::Frozen;
use ledger::{Ledger, SourceFaultReason};
use reader::Content;
use walk::Walk;

/// Where the data directory stands in a snapshot.
pub const DATA: &str = "data";
/// Where attachments stand in a snapshot.
pub const META: &str = "meta";

/// How often somebody is told while nothing is read yet.
const BEAT: Duration = Duration::from_secs(1);

/// A directory to be snapshotted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The data directory.
    pub root: PathBuf,
    /// Directories at its top whose content is left out; they are restored empty.
    pub leave_out: BTreeSet<OsString>,
    /// Small files that belong to the snapshot: the exact spec, the image's digest, and so on.
    pub attachments: BTreeMap<AttachmentName, Vec<u8>>,
    /// Whether anything may change while it is read.
    pub stillness: Stillness,
}

/// Whether the source changes while it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stillness {
    /// Nothing writes: a file that changes, grows or vanishes is a fault.
    Still,
    /// Somebody writes: changed and vanished files are counted and the snapshot is marked
    /// [`crate::Snapshot::rough`]. It is good for one thing: as the parent of the next one, which
    /// then reads little.
    Moving,
}

/// One pass over a source.
#[derive(Debug)]
pub(crate) struct Reading {
    pub(crate) origin: Origin,
    pub(crate) ledger: Arc<Ledger>,
}

/// Where entries come from.
#[derive(Debug)]
pub(crate) enum Origin {
    /// From the directory, now.
    Directory(Source),
    /// From what was found in it when it stood still.
    Frozen(Arc<Frozen>),
}

/// One entry's content, not yet opened.
#[derive(Debug)]
pub(crate) struct Unopened(pub(crate) Content);

impl Source {
    /// An OpenClaw state directory: all but `cache` and `tmp`, which it makes again.
    #[must_use]
    pub fn openclaw(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            leave_out: ["cache", "tmp"].map(OsString::from).into(),
            attachments: BTreeMap::new(),
            stillness: Stillness::Still,
        }
    }
}

impl Reading {
    /// Writes out what is in memory only. A program that writes through a mapping changes a file's
    /// time only with the first write to a page that is on the disk: every later change shows, at
    /// the end of the reading or to the next snapshot. What changes from now on is young enough
    /// not to be trusted (see [`node::of_entry`]).
    ///
    /// The whole file system at once: file by file each would wait for the disk.
    pub(crate) fn settle(&self) {
        let Origin::Directory(source) = &self.origin else { return };
        // Without it there is nothing to walk either, which then says so.
        let Ok(directory) = walk::open_directory(&source.root) else { return };
        let (ended, over) = channel::<()>();
        let synced = thread::scope(|scope| {
            let syncing = scope.spawn(move || {
                let _ended = ended;
                nix::unistd::syncfs(directory)
            });
            // It may take long, and somebody waits for a word.
            while over.recv_timeout(BEAT) == Err(RecvTimeoutError::Timeout) {
                self.ledger.tell();
            }
            syncing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        if let Err(errno) = synced {
            let source = io::Error::from(errno);
            let reason = SourceFaultReason::Unreadable { doing: "writing it out", source };
            self.ledger.fault(Path::new(""), reason);
        }
    }

    /// Everything, depth first, names in order.
    pub(crate) fn entries(&self) -> Box<dyn Iterator<Item = ReadSourceEntry<Unopened>>> {
        let ledger = Arc::clone(&self.ledger);
        match &self.origin {
            Origin::Directory(source) => {
                let attachments = attachment::entries(&source.attachments, &ledger);
                Box::new(Walk::new(source, ledger).chain(attachments))
            }
            Origin::Frozen(frozen) => {
                let attachments = attachment::entries(frozen.attachments(), &ledger);
                Box::new(Arc::clone(frozen).entries(ledger).chain(attachments))
            }
        }
    }
}

/// Where an entry of the data directory stands in the snapshot.
pub(crate) fn path_in_snapshot(path: &Path) -> PathBuf {
    let top = Path::new("/").join(DATA);
    // `join` of an empty path would add a slash at the end.
    if path.as_os_str().is_empty() { top } else { top.join(path) }
}
