//! Blobs become packs: one thread seals them, another writes what is full and names it in an
//! index. Both end when nothing more comes; what fails ends them early.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::sync::mpsc::{Receiver, SyncSender};

use bytes::Bytes;
use rustic_core::jiff;

use crate::codec::{Codec, CodecError};
use crate::engine::RepositoryError;
use crate::id::{FileId, Hasher};
use crate::index::places::{BlobContent, BlobKind, IndexContent, PackContent};
use crate::storage::{FileKind, Storage};

/// A pack is full with so many blobs, as the engine's are.
const MOST_BLOBS: usize = 10_000;
/// An index is full with so many blobs, as the engine's are.
const MOST_INDEXED: usize = 50_000;

/// A blob to be stored.
pub(super) struct Blob {
    pub(super) kind: BlobKind,
    pub(super) id: FileId,
    pub(super) content: Vec<u8>,
}

/// What was stored of one kind.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Stored {
    pub(super) blobs: u64,
    pub(super) bytes: u64,
    /// Sealed, without the packs' headers.
    pub(super) packed: u64,
}

/// Of both kinds.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct StoredKinds {
    pub(super) data: Stored,
    pub(super) trees: Stored,
}

/// A pack that is full.
pub(super) struct FullPack {
    parts: Vec<Bytes>,
    blobs: Vec<BlobContent>,
}

/// Seals blobs and fills packs.
pub(super) struct Sealer {
    pub(super) codec: Codec,
    pub(super) full: SyncSender<FullPack>,
    pub(super) data: Filling,
    pub(super) trees: Filling,
}

/// A pack that is being filled.
pub(super) struct Filling {
    /// In bytes. The blob that reaches it is still in.
    limit: u32,
    offset: u32,
    parts: Vec<Bytes>,
    blobs: Vec<BlobContent>,
    stored: Stored,
}

/// Whoever takes the packs is gone; it says why.
struct Gone;

enum SealError {
    Gone,
    Codec(CodecError),
}

impl Filling {
    pub(super) fn new(limit: u32) -> Self {
        let (parts, blobs) = (Vec::new(), Vec::new());
        Self { limit, offset: 0, parts, blobs, stored: Stored::default() }
    }

    fn is_full(&self) -> bool {
        self.offset >= self.limit || self.blobs.len() >= MOST_BLOBS
    }

    fn take(&mut self) -> FullPack {
        self.offset = 0;
        FullPack { parts: std::mem::take(&mut self.parts), blobs: std::mem::take(&mut self.blobs) }
    }
}

impl Sealer {
    /// Until no more blobs come.
    pub(super) fn run(
        mut self,
        blobs: &Receiver<Vec<Blob>>,
    ) -> Result<StoredKinds, RepositoryError> {
        let sealed = blobs.iter().flatten().try_for_each(|blob| self.add(&blob));
        let sealed = sealed.and_then(|()| {
            self.finish(BlobKind::Data)?;
            self.finish(BlobKind::Tree)
        });
        match sealed {
            Ok(()) | Err(SealError::Gone) => {
                Ok(StoredKinds { data: self.data.stored, trees: self.trees.stored })
            }
            Err(SealError::Codec(fault)) => Err(RepositoryError::unusable("sealing a blob", fault)),
        }
    }

    fn filling(&mut self, kind: BlobKind) -> &mut Filling {
        match kind {
            BlobKind::Data => &mut self.data,
            BlobKind::Tree => &mut self.trees,
        }
    }

    fn add(&mut self, blob: &Blob) -> Result<(), SealError> {
        let sealed = self.codec.seal_blob(&blob.content)?;
        let length = u32::try_from(sealed.bytes.len()).map_err(|_| CodecError::TooLong)?;
        let filling = self.filling(blob.kind);
        filling.blobs.push(BlobContent {
            id: blob.id,
            kind: blob.kind,
            offset: filling.offset,
            length,
            uncompressed_length: sealed.unpacked.and_then(NonZeroU32::new),
        });
        filling.offset = filling.offset.checked_add(length).ok_or(CodecError::TooLong)?;
        filling.parts.push(Bytes::from(sealed.bytes));
        filling.stored.blobs += 1;
        filling.stored.bytes += u64::try_from(blob.content.len()).unwrap_or(u64::MAX);
        filling.stored.packed += u64::from(length);
        if filling.is_full() { self.finish(blob.kind) } else { Ok(()) }
    }

    /// Ends a pack with its header.
    fn finish(&mut self, kind: BlobKind) -> Result<(), SealError> {
        let mut pack = self.filling(kind).take();
        if pack.blobs.is_empty() {
            return Ok(());
        }
        let header = self.codec.encrypt(&header(&pack.blobs))?;
        let length = u32::try_from(header.len()).map_err(|_| CodecError::TooLong)?;
        pack.parts.push(Bytes::from(header));
        pack.parts.push(Bytes::copy_from_slice(&length.to_le_bytes()));
        self.full.send(pack).map_err(|_| Gone)?;
        Ok(())
    }
}

impl From<CodecError> for SealError {
    fn from(fault: CodecError) -> Self {
        Self::Codec(fault)
    }
}

impl From<Gone> for SealError {
    fn from(_: Gone) -> Self {
        Self::Gone
    }
}

/// Writes packs, and the indexes that name them.
pub(super) struct PackWriter<'a> {
    pub(super) storage: &'a dyn Storage,
    pub(super) codec: Codec,
    index: IndexContent,
    indexed: usize,
    /// Packs that were written, and one that, when that failed, perhaps was.
    pub(super) written: BTreeSet<FileId>,
}

impl<'a> PackWriter<'a> {
    pub(super) fn new(storage: &'a dyn Storage, codec: Codec) -> Self {
        let index = IndexContent::default();
        Self { storage, codec, index, indexed: 0, written: BTreeSet::new() }
    }

    /// Until no more packs come.
    pub(super) fn run(&mut self, packs: Receiver<FullPack>) -> Result<(), RepositoryError> {
        for pack in packs {
            self.write(pack)?;
        }
        self.write_index()
    }

    fn write(&mut self, pack: FullPack) -> Result<(), RepositoryError> {
        let mut hasher = Hasher::new();
        pack.parts.iter().for_each(|part| hasher.update(part));
        let id = FileId::from_bytes(hasher.finish());
        self.written.insert(id);
        self.storage.write(FileKind::Pack, id, &pack.parts)?;
        self.indexed += pack.blobs.len();
        // The engine compares it with its own clock when it prunes.
        let time = Some(jiff::Timestamp::now());
        self.index.packs.push(PackContent { id, blobs: pack.blobs, time, size: None });
        if self.indexed >= MOST_INDEXED { self.write_index() } else { Ok(()) }
    }

    /// The packs are durable by now.
    fn write_index(&mut self) -> Result<(), RepositoryError> {
        let index = std::mem::take(&mut self.index);
        self.indexed = 0;
        if index.packs.is_empty() {
            return Ok(());
        }
        let unusable = "writing an index";
        let content = serde_json::to_vec(&index)
            .map_err(|fault| RepositoryError::unusable(unusable, fault))?;
        let sealed = self
            .codec
            .seal_file(&content)
            .map_err(|fault| RepositoryError::unusable(unusable, fault))?;
        let id = FileId::of(&sealed);
        Ok(self.storage.write(FileKind::Index, id, &[Bytes::from(sealed)])?)
    }
}

/// What a pack ends with: type, length, length unpacked and id of each blob
/// (<https://restic.readthedocs.io/en/stable/100_references.html#pack-format>).
fn header(blobs: &[BlobContent]) -> Vec<u8> {
    let mut header = Vec::new();
    for blob in blobs {
        header.push(match (blob.kind, blob.uncompressed_length) {
            (BlobKind::Data, None) => 0,
            (BlobKind::Tree, None) => 1,
            (BlobKind::Data, Some(_)) => 2,
            (BlobKind::Tree, Some(_)) => 3,
        });
        header.extend_from_slice(&blob.length.to_le_bytes());
        if let Some(length) = blob.uncompressed_length {
            header.extend_from_slice(&length.get().to_le_bytes());
        }
        header.extend_from_slice(blob.id.as_bytes());
    }
    header
}
