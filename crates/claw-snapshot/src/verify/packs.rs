//! Reads packs, each once: its hash, and every blob that an index says is in it.
//!
//! A hash proves that a pack is what was written. That what was written was right, is only proved
//! by decrypting and unpacking it: memory fails too.

use std::collections::BTreeSet;
use std::io::Read;

use aes256ctr_poly1305aes::aead::Aead;
use aes256ctr_poly1305aes::{Aes256CtrPoly1305Aes, Key, Nonce};
use rustic_core::repofile::{IndexPack, MasterKey};
use zeroize::Zeroizing;

use super::{Damage, Extent, Verified, blob_id};
use crate::id::FileId;
use crate::storage::{FileKind, Storage};

const NONCE: usize = 16;

/// Which packs were read, and which of them are bad.
pub(super) struct Packs<'a> {
    storage: &'a dyn Storage,
    extent: Extent,
    cipher: Aes256CtrPoly1305Aes,
    read: BTreeSet<FileId>,
    bad: BTreeSet<FileId>,
}

impl<'a> Packs<'a> {
    pub(super) fn new(storage: &'a dyn Storage, master: &MasterKey, extent: Extent) -> Self {
        let parts = [&master.encrypt, &master.mac.k, &master.mac.r];
        let bytes = Zeroizing::new(parts.map(Vec::as_slice).concat());
        // Of another length it would not have opened the repository.
        let mut key = Key::default();
        for (into, from) in key.iter_mut().zip(bytes.iter()) {
            *into = *from;
        }
        let cipher = Aes256CtrPoly1305Aes::new(&key);
        Self { storage, extent, cipher, read: BTreeSet::new(), bad: BTreeSet::new() }
    }

    /// Reads a pack that an index names, when its turn has come. Gives its blobs that are bad.
    pub(super) fn indexed(&mut self, pack: &IndexPack, verified: &mut Verified) -> Vec<FileId> {
        let id = FileId::from(pack.id.into_inner());
        let all = || pack.blobs.iter().map(|blob| blob_id(blob.id)).collect();
        if self.bad.contains(&id) {
            return all();
        }
        let Some(content) = self.read(id, verified) else {
            return if self.bad.contains(&id) { all() } else { Vec::new() };
        };
        let mut bad = Vec::new();
        for blob in &pack.blobs {
            let place = &blob.location;
            let start = usize::try_from(place.offset).unwrap_or(usize::MAX);
            let length = usize::try_from(place.length).unwrap_or(usize::MAX);
            let sealed = content.get(start..start.saturating_add(length));
            let size = place.uncompressed_length.map(|size| u64::from(size.get()));
            let opened = sealed.and_then(|sealed| self.open(sealed, size));
            let blob = blob_id(blob.id);
            if opened.is_none_or(|opened| FileId::of(&opened) != blob) {
                verified.damage.push(Damage::Blob { id: blob, pack: id });
                bad.push(blob);
            } else {
                verified.read_blobs += 1;
            }
        }
        bad
    }

    /// Reads a pack that no index named so far, when its turn has come.
    pub(super) fn other(&mut self, id: FileId, verified: &mut Verified) {
        self.read(id, verified);
    }

    /// The content, when it is read now and is what its name says.
    fn read(&mut self, id: FileId, verified: &mut Verified) -> Option<bytes::Bytes> {
        if !self.extent.has(id) || !self.read.insert(id) {
            return None;
        }
        verified.read_packs += 1;
        let unreadable = match self.storage.read(FileKind::Pack, id) {
            Ok(content) if FileId::of(&content) == id => {
                verified.read_bytes += u64::try_from(content.len()).unwrap_or(u64::MAX);
                return Some(content);
            }
            Ok(_) => None,
            Err(fault) => Some(fault.source.to_string()),
        };
        self.bad.insert(id);
        verified.damage.push(Damage::Corrupt { kind: FileKind::Pack, id, unreadable });
        None
    }

    /// A blob's content: decrypted, and unpacked when it is packed to `size` bytes.
    fn open(&self, sealed: &[u8], size: Option<u64>) -> Option<Vec<u8>> {
        let (nonce, sealed) = sealed.split_at_checked(NONCE)?;
        let opened = self.cipher.decrypt(Nonce::from_slice(nonce), sealed).ok()?;
        let Some(size) = size else { return Some(opened) };
        let mut content = Vec::new();
        // One byte more, so that a longer one is seen.
        let decoder = zstd::Decoder::new(opened.as_slice()).ok()?;
        decoder.take(size + 1).read_to_end(&mut content).ok()?;
        (u64::try_from(content.len()) == Ok(size)).then_some(content)
    }
}
