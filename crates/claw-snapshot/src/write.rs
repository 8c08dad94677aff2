//! Writes what a source gives into a repository: files cut into blobs, directories as trees.
//!
//! The engine could do this too. It hands each blob from thread to thread a dozen times and makes
//! tables and contexts anew for each file, which for many small files costs more than hashing,
//! compressing and encrypting them; and it goes on without what it could not read. Here one thread
//! reads, one seals, one writes, and blobs travel in batches.
//!
//! What it deliberately does not do: write the snapshot. That is for the caller, who knows whether
//! the source was read completely.
//!
//! Where to start: [`write()`]. [`cut`] cuts files, [`packs`] fills and writes packs, [`parent`] is
//! what need not be read again.

mod cut;
mod packs;
mod parent;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{self, ScopedJoinHandle};

use rustic_core::repofile::{BlobType, ConfigFile, Node, SnapshotSummary, Tree};
use rustic_core::{DataId, ReadSourceEntry, TreeId};

use crate::codec::{Codec, CodecError};
use crate::engine::RepositoryError;
use crate::id::FileId;
use crate::index::places::{BlobKind, Places};
use crate::repository::{Engine, Repository};
use crate::source::Unopened;
use crate::source::reader::Content;
use crate::storage::Storage;
use cut::{CutError, Cutter};
use packs::{Blob, Filling, PackWriter, Sealer, StoredKinds};
use parent::{Likeness, ParentNode, ParentTree};

/// Blobs travel together when they are so many or so large.
const BATCH: usize = 64;
const BATCH_BYTES: usize = 1 << 20;
/// Batches that wait to be sealed.
const WAITING: usize = 2;

/// Where and how it is written.
pub(crate) struct Target<'a> {
    pub(crate) repository: &'a Repository,
    /// The repository, open.
    pub(crate) engine: &'a Engine,
    /// What is there already.
    pub(crate) places: &'a Places,
    /// The tree of the parent snapshot.
    pub(crate) parent: Option<FileId>,
}

/// What became of it.
pub(crate) struct Written {
    /// The root tree and what was counted; nothing of it is certain before this is there.
    pub(crate) done: Result<(FileId, SnapshotSummary), RepositoryError>,
    /// Packs that were written, and one that, when that failed, perhaps was.
    pub(crate) packs: BTreeSet<FileId>,
}

impl Target<'_> {
    fn storage(&self) -> &dyn Storage {
        self.repository.storage.as_ref()
    }

    fn config(&self) -> &ConfigFile {
        self.engine.repository.config()
    }

    fn codec(&self) -> Result<Codec, RepositoryError> {
        self.repository.codec(self.engine)
    }
}

/// Stores everything that the entries have and the repository has not. Entries come depth first,
/// each directory before what is in it. A file that cannot be read is left out; the source knows.
pub(crate) fn write(
    target: &Target<'_>,
    entries: impl Iterator<Item = ReadSourceEntry<Unopened>>,
) -> Written {
    let writer_codec = match target.codec() {
        Ok(codec) => codec,
        Err(fault) => return Written { done: Err(fault), packs: BTreeSet::new() },
    };
    let mut writer = PackWriter::new(target.storage(), writer_codec);
    let done = thread::scope(|scope| {
        let (blobs, batches) = sync_channel(WAITING);
        let (full, packs) = sync_channel(1);
        let sealer = Sealer {
            codec: target.codec()?,
            full,
            data: Filling::new(target.config().packsize(BlobType::Data).0),
            trees: Filling::new(target.config().packsize(BlobType::Tree).0),
        };
        let mut archiver = Archiver::new(target, blobs)?;
        let sealing = scope.spawn(move || sealer.run(&batches));
        let writer = &mut writer;
        let writing = scope.spawn(move || writer.run(packs));
        let archived = archiver.archive(entries);
        // The others end when nothing more can come.
        let counted = archiver.finish();
        let (stored, written) = (join(sealing), join(writing));
        // Who was told that somebody is gone does not know why.
        written?;
        let stored = stored?;
        archived.map(|tree| (tree, summary(counted, stored)))
    });
    Written { done, packs: writer.written }
}

fn join<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Reads entries, and makes trees of them.
struct Archiver<'a> {
    target: &'a Target<'a>,
    codec: Codec,
    cutter: Cutter,
    batch: Batch,
    counts: SnapshotSummary,
}

/// Blobs on their way, and those that went.
struct Batch {
    blobs: SyncSender<Vec<Blob>>,
    waiting: Vec<Blob>,
    bytes: usize,
    sent: BTreeSet<(BlobKind, FileId)>,
}

/// Nothing more is stored.
enum Stop {
    /// Whoever takes the blobs is gone; it says why.
    Gone,
    /// A directory could not be written down.
    Tree(serde_json::Error),
}

/// A directory that is being read.
struct Level {
    /// In the snapshot; empty for the root.
    path: PathBuf,
    /// Nothing for the root.
    node: Option<Node>,
    nodes: Vec<Node>,
    parent: Option<ParentTree>,
    likeness: Likeness,
}

impl<'a> Archiver<'a> {
    fn new(target: &'a Target<'a>, blobs: SyncSender<Vec<Blob>>) -> Result<Self, RepositoryError> {
        let cutter = Cutter::new(target.config())
            .map_err(|fault| RepositoryError::unusable("reading the configuration", fault))?;
        let batch = Batch { blobs, waiting: Vec::new(), bytes: 0, sent: BTreeSet::new() };
        let codec = target.codec()?;
        let counts = SnapshotSummary::default();
        Ok(Self { target, codec, cutter, batch, counts })
    }

    /// Gives up its end of the channel.
    fn finish(self) -> SnapshotSummary {
        self.counts
    }

    /// Gives the root tree.
    fn archive(
        &mut self,
        entries: impl Iterator<Item = ReadSourceEntry<Unopened>>,
    ) -> Result<FileId, RepositoryError> {
        let parent = self.target.parent.and_then(|id| self.parent_tree(id));
        let likeness = if parent.is_some() { Likeness::Changed } else { Likeness::New };
        let root =
            Level { path: PathBuf::from("/"), node: None, nodes: Vec::new(), parent, likeness };
        let root = self.archive_all(root, entries);
        root.map_err(|stop| match stop {
            Stop::Tree(fault) => RepositoryError::unusable("writing a directory down", fault),
            // Nobody sees this: whoever is gone said why.
            Stop::Gone => RepositoryError::unusable("storing blobs", CodecError::Cipher),
        })
    }

    fn parent_tree(&mut self, id: FileId) -> Option<ParentTree> {
        ParentTree::read(self.target.storage(), &mut self.codec, self.target.places, id)
    }

    fn archive_all(
        &mut self,
        root: Level,
        entries: impl Iterator<Item = ReadSourceEntry<Unopened>>,
    ) -> Result<FileId, Stop> {
        let mut stack = Vec::new();
        let mut inner = root;
        for ReadSourceEntry { path, node, open } in entries {
            let above = path.parent().unwrap_or_else(|| Path::new("/"));
            while inner.path != above {
                let Some(outer) = stack.pop() else { break };
                inner = self.leave(inner, outer)?;
            }
            if node.is_dir() {
                let new = self.enter(&inner, path, node);
                stack.push(std::mem::replace(&mut inner, new));
            } else {
                self.add(&mut inner, node, open)?;
            }
        }
        while let Some(outer) = stack.pop() {
            inner = self.leave(inner, outer)?;
        }
        let root = self.store_tree(inner)?;
        self.batch.flush()?;
        Ok(root)
    }

    /// A file or link.
    fn add(
        &mut self,
        level: &mut Level,
        mut node: Node,
        open: Option<Unopened>,
    ) -> Result<(), Stop> {
        let places = self.target.places;
        let old = level.parent.as_ref().and_then(|parent| parent.node(&node.name));
        // What the repository lost is read again.
        let whole =
            |old: &&ParentNode| old.content().iter().all(|id| places.has(BlobKind::Data, *id));
        let same = old.filter(|old| old.is_same(&node)).filter(whole);
        let likeness = match (old, same) {
            (None, _) => Likeness::New,
            (Some(_), None) => Likeness::Changed,
            (Some(_), Some(_)) => Likeness::Same,
        };
        if node.is_file() {
            let blobs = match (same, open) {
                (Some(same), _) => Some(same.content().to_vec()),
                (None, Some(Unopened(content))) => self.read(content)?,
                (None, None) => None,
            };
            let Some(blobs) = blobs else { return Ok(()) };
            node.content = Some(blobs.into_iter().map(|id| DataId::from(id.engine())).collect());
        }
        self.count_file(&likeness, if node.is_file() { node.meta.size } else { 0 });
        level.nodes.push(node);
        Ok(())
    }

    fn enter(&mut self, above: &Level, path: PathBuf, node: Node) -> Level {
        let old = above.parent.as_ref().and_then(|parent| parent.node(&node.name));
        let likeness = if old.is_some() { Likeness::Changed } else { Likeness::New };
        let parent = old.and_then(|old| old.subtree).and_then(|id| self.parent_tree(id));
        Level { path, node: Some(node), nodes: Vec::new(), parent, likeness }
    }

    /// Ends a directory, and names it in the one around it.
    fn leave(&mut self, mut inner: Level, mut outer: Level) -> Result<Level, Stop> {
        let node = inner.node.take();
        let tree = self.store_tree(inner)?;
        if let Some(mut node) = node {
            node.subtree = Some(TreeId::from(tree.engine()));
            outer.nodes.push(node);
        }
        Ok(outer)
    }

    fn store_tree(&mut self, level: Level) -> Result<FileId, Stop> {
        let mut content = serde_json::to_vec(&Tree { nodes: level.nodes }).map_err(Stop::Tree)?;
        // As restic ends it.
        content.push(b'\n');
        let id = FileId::of(&content);
        self.counts.total_dirs_processed += 1;
        self.counts.total_dirsize_processed += length(&content);
        match (&level.parent, level.likeness) {
            (Some(parent), _) if parent.id == id => self.counts.dirs_unmodified += 1,
            (_, Likeness::New) => self.counts.dirs_new += 1,
            _ => self.counts.dirs_changed += 1,
        }
        if !self.target.places.has(BlobKind::Tree, id) {
            self.batch.send(BlobKind::Tree, id, &content)?;
        }
        Ok(id)
    }

    /// A file's blobs; nothing when it could not be read, which its content has told the ledger.
    fn read(&mut self, mut content: Content) -> Result<Option<Vec<FileId>>, Stop> {
        if content.begin().is_err() {
            return Ok(None);
        }
        let mut blobs = Vec::new();
        let (batch, places) = (&mut self.batch, self.target.places);
        let cut = self.cutter.cut(&mut content, |chunk| {
            let id = FileId::of(chunk);
            blobs.push(id);
            if places.has(BlobKind::Data, id) {
                return Ok(());
            }
            batch.send(BlobKind::Data, id, chunk)
        });
        match cut {
            Ok(()) => Ok(Some(blobs)),
            Err(CutError::Read) => Ok(None),
            Err(CutError::Taker(gone)) => Err(gone),
        }
    }

    fn count_file(&mut self, likeness: &Likeness, size: u64) {
        let counts = &mut self.counts;
        counts.total_files_processed += 1;
        counts.total_bytes_processed += size;
        match likeness {
            Likeness::New => counts.files_new += 1,
            Likeness::Changed => counts.files_changed += 1,
            Likeness::Same => counts.files_unmodified += 1,
        }
    }
}

impl Batch {
    /// Once per blob.
    fn send(&mut self, kind: BlobKind, id: FileId, content: &[u8]) -> Result<(), Stop> {
        if !self.sent.insert((kind, id)) {
            return Ok(());
        }
        self.waiting.push(Blob { kind, id, content: content.to_vec() });
        self.bytes += content.len();
        if self.waiting.len() >= BATCH || self.bytes >= BATCH_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), Stop> {
        self.bytes = 0;
        let batch = std::mem::take(&mut self.waiting);
        if batch.is_empty() {
            return Ok(());
        }
        self.blobs.send(batch).map_err(|_| Stop::Gone)
    }
}

fn summary(mut counts: SnapshotSummary, stored: StoredKinds) -> SnapshotSummary {
    let StoredKinds { data, trees } = stored;
    counts.data_blobs = data.blobs;
    counts.tree_blobs = trees.blobs;
    counts.data_added = data.bytes + trees.bytes;
    counts.data_added_packed = data.packed + trees.packed;
    counts.data_added_files = data.bytes;
    counts.data_added_files_packed = data.packed;
    counts.data_added_trees = trees.bytes;
    counts.data_added_trees_packed = trees.packed;
    counts
}

fn length(content: &[u8]) -> u64 {
    u64::try_from(content.len()).unwrap_or(u64::MAX)
}
