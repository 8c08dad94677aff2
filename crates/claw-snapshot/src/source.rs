//! What is read for a snapshot: a directory, and small attachments beside it.
//!
//! The engine drops what it cannot read and says nothing. So nothing here is left to it: this
//! source counts what it gave, keeps every fault, and the snapshot is refused when there is one.
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
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustic_core::{ReadSource, ReadSourceEntry, ReadSourceOpen, RusticResult};

use attachment::AttachmentName;
use frozen::Frozen;
use ledger::Ledger;
use reader::Content;
use walk::Walk;

/// Where the data directory stands in a snapshot.
pub const DATA: &str = "data";
/// Where attachments stand in a snapshot.
pub const META: &str = "meta";

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

/// The source as the engine reads it.
#[derive(Debug)]
pub(crate) struct EngineSource {
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

impl ReadSourceOpen for Unopened {
    type Reader = Content;

    fn open(mut self) -> RusticResult<Self::Reader> {
        self.0.begin()?;
        Ok(self.0)
    }
}

impl ReadSource for EngineSource {
    type Open = Unopened;
    type Iter = Box<dyn Iterator<Item = RusticResult<ReadSourceEntry<Unopened>>> + Send>;

    fn size(&self) -> RusticResult<Option<u64>> {
        Ok(None)
    }

    fn entries(&self) -> Self::Iter {
        let ledger = Arc::clone(&self.ledger);
        match &self.origin {
            Origin::Directory(source) => {
                let attachments = attachment::entries(&source.attachments, &ledger);
                Box::new(Walk::new(source, ledger).chain(attachments).map(Ok))
            }
            Origin::Frozen(frozen) => {
                let attachments = attachment::entries(frozen.attachments(), &ledger);
                Box::new(Arc::clone(frozen).entries(ledger).chain(attachments).map(Ok))
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
