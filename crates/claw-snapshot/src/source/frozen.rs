//! A directory as it was at one moment, held while its owner goes on.
//!
//! The owner is stopped only for a listing and for copying what changed since a rough snapshot:
//! a fraction of a second. The snapshot itself is taken afterwards, from the listing and the
//! copies; everything else is in the repository already.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use claw_core::time::Timestamp;
use rustic_core::ReadSourceEntry;
use rustic_core::jiff;

use super::attachment::AttachmentName;
use super::compact::CompactNode;
use super::ledger::{Ledger, Listing, SourceFault};
use super::reader::Content;
use super::walk::{Step, Walk};
use super::{DATA, Source, Stillness, Unopened, path_in_snapshot};
use crate::progress::Watcher;

/// Copied this much at a time.
const BUFFER: usize = 256 << 10;

/// A source as it stood still. Takes about 200 bytes of memory per entry.
#[derive(Debug)]
pub struct Frozen {
    entries: Vec<FrozenEntry>,
    /// Where the copies are.
    staging: PathBuf,
    attachments: BTreeMap<AttachmentName, Vec<u8>>,
    copied: u64,
    copied_bytes: u64,
    special: u64,
}

#[derive(Debug)]
struct FrozenEntry {
    /// Relative to the data directory.
    path: Box<Path>,
    node: CompactNode,
    /// The copy's number, which is its name.
    copy: Option<u64>,
}

/// The source could not be held. Copies may remain.
#[derive(Debug, thiserror::Error)]
pub enum FreezeError {
    /// Something of the source could not be read, or changed.
    #[error("{count} entries could not be taken, first: {}", super::ledger::first(.faults))]
    Source {
        /// How many.
        count: u64,
        /// The first of them.
        faults: Vec<SourceFault>,
    },
    /// A copy could not be written.
    #[error("copying {path} aside failed")]
    Copy {
        /// Relative to the data directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Frozen {
    /// Lists the source and copies what is not as `listing` says into `staging`, an empty
    /// directory that is the caller's to remove. The source must stand still until this returns.
    ///
    /// # Errors
    ///
    /// When anything could not be read or copied, or changed meanwhile.
    pub fn hold(
        source: &Source,
        listing: Listing,
        staging: &Path,
        time: Timestamp,
    ) -> Result<Self, FreezeError> {
        let ledger = Arc::new(Ledger::new(Stillness::Still, time, Watcher::none()));
        let mut frozen = Self {
            entries: Vec::new(),
            staging: staging.to_owned(),
            attachments: source.attachments.clone(),
            copied: 0,
            copied_bytes: 0,
            special: 0,
        };
        let mut walk = Walk::again(source, Arc::clone(&ledger), listing);
        while let Some(step) = walk.step() {
            match step {
                Step::Unchanged(path, node) => frozen.hold_entry(path, node, None),
                Step::Read(entry) => frozen.take(entry)?,
            }
        }
        let (count, faults) = ledger.take_faults();
        if count > 0 {
            return Err(FreezeError::Source { count, faults });
        }
        frozen.special = ledger.counts().special;
        Ok(frozen)
    }

    /// How many files were copied.
    #[must_use]
    pub fn copied(&self) -> u64 {
        self.copied
    }

    /// Their bytes.
    #[must_use]
    pub fn copied_bytes(&self) -> u64 {
        self.copied_bytes
    }

    pub(crate) fn attachments(&self) -> &BTreeMap<AttachmentName, Vec<u8>> {
        &self.attachments
    }

    pub(crate) fn special(&self) -> u64 {
        self.special
    }

    pub(crate) fn entries(
        self: Arc<Self>,
        ledger: Arc<Ledger>,
    ) -> impl Iterator<Item = ReadSourceEntry<Unopened>> {
        (0..self.entries.len()).filter_map(move |place| {
            let FrozenEntry { path, node, copy } = self.entries.get(place)?;
            let node = node.node(path.file_name().unwrap_or_else(|| DATA.as_ref()));
            if node.is_dir() {
                ledger.directory();
            } else {
                ledger.file(if node.is_file() { node.meta.size } else { 0 });
            }
            let open = node.is_file().then(|| {
                let copy = copy.map(|number| self.copy(number));
                Unopened(Content::copy(path.to_path_buf(), copy, Arc::clone(&ledger)))
            });
            Some(ReadSourceEntry { path: path_in_snapshot(path), node, open })
        })
    }

    fn copy(&self, number: u64) -> PathBuf {
        self.staging.join(number.to_string())
    }

    fn hold_entry(&mut self, path: PathBuf, node: CompactNode, copy: Option<u64>) {
        self.entries.push(FrozenEntry { path: path.into_boxed_path(), node, copy });
    }

    /// A directory, a link, or a file that changed.
    fn take(&mut self, entry: ReadSourceEntry<Unopened>) -> Result<(), FreezeError> {
        let mut node = entry.node;
        let path = entry.path.strip_prefix(path_in_snapshot(Path::new("")));
        let path = path.map(Path::to_owned).unwrap_or_default();
        let Some(Unopened(Content::File(file))) = entry.open else {
            self.hold_entry(path, CompactNode::new(node), None);
            return Ok(());
        };
        let number = self.copied;
        let copied = copy_aside(Content::File(file), &self.copy(number));
        // A fault of the file itself is in the ledger; without one it is the copy's.
        let bytes = match copied {
            Ok(bytes) => bytes,
            Err(CopyFault::Source) => 0,
            Err(CopyFault::Copy(source)) => return Err(FreezeError::Copy { path, source }),
        };
        self.copied += 1;
        self.copied_bytes += bytes;
        // Content that is in memory only may change without the time showing it, from now on.
        node.meta.ctime = Some(jiff::Timestamp::UNIX_EPOCH);
        self.hold_entry(path, CompactNode::new(node), Some(number));
        Ok(())
    }
}

enum CopyFault {
    Source,
    Copy(io::Error),
}

fn copy_aside(mut content: Content, copy: &Path) -> Result<u64, CopyFault> {
    content.begin().map_err(|_| CopyFault::Source)?;
    let mut file: File = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(copy)
        .map_err(CopyFault::Copy)?;
    let mut buffer = vec![0; BUFFER];
    let mut bytes = 0;
    loop {
        let count = match content.read(&mut buffer) {
            Ok(0) => return Ok(bytes),
            Ok(count) => count,
            Err(fault) if fault.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return Err(CopyFault::Source),
        };
        let part = buffer.get(..count).unwrap_or_default();
        file.write_all(part).map_err(CopyFault::Copy)?;
        bytes += u64::try_from(count).unwrap_or(u64::MAX);
    }
}
