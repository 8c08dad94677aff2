//! Where every blob lies, by what all indexes say together: about 50 bytes of memory per blob.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::ops::Range;

use rustic_core::jiff;
use rustic_core::repofile::BlobType;
use serde::{Deserialize, Serialize};

use crate::codec::Codec;
use crate::engine::RepositoryError;
use crate::id::FileId;
use crate::storage::{FileKind, Storage};

/// An index file
/// (<https://restic.readthedocs.io/en/stable/100_references.html#indexing>).
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct IndexContent {
    pub(crate) packs: Vec<PackContent>,
    /// Packs that a prune marked. What is in them does not count.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) packs_to_delete: Vec<PackContent>,
}

/// What is in a pack.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PackContent {
    pub(crate) id: FileId,
    pub(crate) blobs: Vec<BlobContent>,
    /// When it was written; the engine looks at it when it prunes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) time: Option<jiff::Timestamp>,
    /// Where it differs from what follows from the blobs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) size: Option<u32>,
}

/// Where a blob lies in its pack.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct BlobContent {
    pub(crate) id: FileId,
    #[serde(rename = "type")]
    pub(crate) kind: BlobKind,
    pub(crate) offset: u32,
    pub(crate) length: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) uncompressed_length: Option<NonZeroU32>,
}

/// What blobs are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum BlobKind {
    /// A part of a file.
    Data,
    /// A directory.
    Tree,
}

/// Where a blob lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlobPlace {
    pub(crate) pack: FileId,
    pub(crate) offset: u32,
    pub(crate) length: u32,
    /// The length of the content, when it is compressed.
    pub(crate) unpacked: Option<u32>,
}

/// Where every blob lies.
#[derive(Debug, Default)]
pub(crate) struct Places {
    packs: Vec<FileId>,
    data: Vec<Entry>,
    trees: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    id: FileId,
    pack: u32,
    offset: u32,
    length: u32,
    unpacked: u32,
}

/// Length of a pack's last field: the length of its header.
pub(crate) const HEADER_LENGTH: u32 = 4;
/// What the cipher adds.
pub(crate) const SEAL: u32 = 32;

impl From<BlobType> for BlobKind {
    fn from(kind: BlobType) -> Self {
        match kind {
            BlobType::Data => Self::Data,
            BlobType::Tree => Self::Tree,
        }
    }
}

impl BlobPlace {
    /// Its bytes in the pack.
    pub(crate) fn range(&self) -> Range<u64> {
        let start = u64::from(self.offset);
        start..start + u64::from(self.length)
    }
}

impl PackContent {
    /// The pack's size in bytes: its blobs, its header and the header's length.
    pub(crate) fn size(&self) -> u32 {
        let of_blobs = || {
            let sizes = self.blobs.iter().map(|blob| blob.length.saturating_add(blob.entry()));
            sizes.fold(SEAL + HEADER_LENGTH, u32::saturating_add)
        };
        self.size.unwrap_or_else(of_blobs)
    }
}

impl BlobContent {
    /// Bytes of its entry in the header: type, length, length unpacked, id.
    const fn entry(&self) -> u32 {
        if self.uncompressed_length.is_some() { 41 } else { 37 }
    }
}

impl Places {
    /// Reads every index but those that are hidden.
    pub(crate) fn read(
        storage: &dyn Storage,
        codec: &Codec,
        hidden: &BTreeSet<FileId>,
    ) -> Result<Self, RepositoryError> {
        let mut places = Self::default();
        each_index(storage, codec, hidden, |index| {
            for pack in index.packs {
                places.add(&pack);
            }
        })?;
        places.sort();
        Ok(places)
    }

    pub(crate) fn has(&self, kind: BlobKind, id: FileId) -> bool {
        self.entry(kind, id).is_some()
    }

    /// Where the blob lies; in one of the places, when it has several.
    pub(crate) fn find(&self, kind: BlobKind, id: FileId) -> Option<BlobPlace> {
        let entry = self.entry(kind, id)?;
        let pack = self.packs.get(usize::try_from(entry.pack).ok()?)?;
        let unpacked = (entry.unpacked > 0).then_some(entry.unpacked);
        Some(BlobPlace { pack: *pack, offset: entry.offset, length: entry.length, unpacked })
    }

    fn entry(&self, kind: BlobKind, id: FileId) -> Option<&Entry> {
        let entries = match kind {
            BlobKind::Data => &self.data,
            BlobKind::Tree => &self.trees,
        };
        let place = entries.binary_search_by(|entry| entry.id.cmp(&id)).ok()?;
        entries.get(place)
    }

    pub(crate) fn add(&mut self, pack: &PackContent) {
        let number = u32::try_from(self.packs.len()).unwrap_or(u32::MAX);
        self.packs.push(pack.id);
        for blob in &pack.blobs {
            let entries = match blob.kind {
                BlobKind::Data => &mut self.data,
                BlobKind::Tree => &mut self.trees,
            };
            entries.push(Entry {
                id: blob.id,
                pack: number,
                offset: blob.offset,
                length: blob.length,
                unpacked: blob.uncompressed_length.map_or(0, NonZeroU32::get),
            });
        }
    }

    pub(crate) fn sort(&mut self) {
        for entries in [&mut self.data, &mut self.trees] {
            entries.sort_unstable_by_key(|entry| entry.id);
            entries.shrink_to_fit();
        }
    }
}

/// Packs that indexes name, and their sizes.
#[derive(Debug, Default)]
pub(crate) struct NamedPacks {
    /// Those whose content counts.
    pub(crate) live: BTreeMap<FileId, u32>,
    /// Those that a prune marked.
    pub(crate) marked: BTreeSet<FileId>,
}

impl NamedPacks {
    pub(crate) fn add(&mut self, index: &IndexContent) {
        self.live.extend(index.packs.iter().map(|pack| (pack.id, pack.size())));
        self.marked.extend(index.packs_to_delete.iter().map(|pack| pack.id));
    }

    pub(crate) fn has(&self, id: FileId) -> bool {
        self.live.contains_key(&id) || self.marked.contains(&id)
    }
}

/// Reads every index but those that are hidden, one after the other. One that cannot be read is an
/// error: what is in none may be removed.
pub(crate) fn each_index(
    storage: &dyn Storage,
    codec: &Codec,
    hidden: &BTreeSet<FileId>,
    mut take: impl FnMut(IndexContent),
) -> Result<(), RepositoryError> {
    for (id, _) in storage.list(FileKind::Index)? {
        if hidden.contains(&id) {
            continue;
        }
        let sealed = storage.read(FileKind::Index, id)?;
        let content = codec
            .open_file(&sealed)
            .map_err(|fault| RepositoryError::unusable("reading the index", fault))?;
        let index = serde_json::from_slice(&content)
            .map_err(|fault| RepositoryError::unusable("reading the index", fault))?;
        take(index);
    }
    Ok(())
}
