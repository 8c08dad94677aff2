//! The repository's compression and cipher: blobs and small files, sealed and opened.
//!
//! Format: <https://restic.readthedocs.io/en/stable/100_references.html>. What is sealed is opened
//! again at once and held against what it was made of: memory and processors fail too, and nothing
//! else would see it before a restore.
//!
//! Its contexts are made once and used for every blob; to make them costs more than to compress a
//! small file.

use std::fmt;
use std::io;

use aes256ctr_poly1305aes::aead::AeadInPlace;
use aes256ctr_poly1305aes::{Aes256CtrPoly1305Aes, Key, Nonce, Tag};
use rand::RngCore;
use rustic_core::repofile::MasterKey;
use zeroize::Zeroizing;
use zstd::bulk::{Compressor, Decompressor};

const NONCE: usize = 16;
const TAG: usize = 16;
/// First byte of a small file that is compressed.
const COMPRESSED: u8 = 2;

/// Seals and opens with a repository's key. One per thread.
pub(crate) struct Codec {
    cipher: Aes256CtrPoly1305Aes,
    /// Nothing in repositories of the first version, which compress nothing.
    compressor: Option<Compressor<'static>>,
    decompressor: Decompressor<'static>,
}

/// A blob as it lies in a pack.
pub(crate) struct SealedBlob {
    pub(crate) bytes: Vec<u8>,
    /// The length of the content, when it is compressed.
    pub(crate) unpacked: Option<u32>,
}

/// Something could not be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CodecError {
    /// The compressor could not be made or failed.
    #[error("compressing or unpacking failed")]
    Compression(#[source] io::Error),
    /// Longer than the format can say.
    #[error("it is longer than 4 GiB")]
    TooLong,
    /// The cipher refused, or the content is not what was sealed with this key.
    #[error("it cannot be decrypted")]
    Cipher,
    /// What was sealed does not open as what it was.
    #[error("what was sealed is not what is opened: the memory or processor is faulty")]
    Faulty,
}

impl Codec {
    /// `level` is zstd's; nothing when the repository does not compress.
    pub(crate) fn new(master: &MasterKey, level: Option<i32>) -> Result<Self, CodecError> {
        let compressor = level.map(Compressor::new).transpose();
        Ok(Self {
            cipher: cipher(master),
            compressor: compressor.map_err(CodecError::Compression)?,
            decompressor: Decompressor::new().map_err(CodecError::Compression)?,
        })
    }

    /// A blob for a pack, opened again for proof.
    pub(crate) fn seal_blob(&mut self, content: &[u8]) -> Result<SealedBlob, CodecError> {
        let length = u32::try_from(content.len()).map_err(|_| CodecError::TooLong)?;
        let (bytes, unpacked) = match &mut self.compressor {
            // Nothing cannot be compressed: its length would say that it is not.
            Some(compressor) if length > 0 => {
                let packed = compressor.compress(content).map_err(CodecError::Compression)?;
                (self.encrypt(&packed)?, Some(length))
            }
            _ => (self.encrypt(content)?, None),
        };
        let opened = self.open_blob(&bytes, unpacked)?;
        if opened != content {
            return Err(CodecError::Faulty);
        }
        Ok(SealedBlob { bytes, unpacked })
    }

    /// A blob's content; `unpacked` is its length when it is compressed.
    pub(crate) fn open_blob(
        &mut self,
        sealed: &[u8],
        unpacked: Option<u32>,
    ) -> Result<Vec<u8>, CodecError> {
        let opened = self.decrypt(sealed)?;
        let Some(length) = unpacked else { return Ok(opened) };
        let length = usize::try_from(length).map_err(|_| CodecError::TooLong)?;
        let content =
            self.decompressor.decompress(&opened, length).map_err(CodecError::Compression)?;
        if content.len() == length { Ok(content) } else { Err(CodecError::Faulty) }
    }

    /// An index or snapshot, opened again for proof.
    pub(crate) fn seal_file(&mut self, content: &[u8]) -> Result<Vec<u8>, CodecError> {
        let sealed = match &mut self.compressor {
            Some(compressor) => {
                let mut packed = vec![COMPRESSED];
                let rest = compressor.compress(content).map_err(CodecError::Compression)?;
                packed.extend_from_slice(&rest);
                self.encrypt(&packed)?
            }
            None => self.encrypt(content)?,
        };
        if self.open_file(&sealed)? == content { Ok(sealed) } else { Err(CodecError::Faulty) }
    }

    /// The content of an index or snapshot.
    pub(crate) fn open_file(&self, sealed: &[u8]) -> Result<Vec<u8>, CodecError> {
        let opened = self.decrypt(sealed)?;
        match opened.split_first() {
            Some((&COMPRESSED, packed)) => {
                zstd::decode_all(packed).map_err(CodecError::Compression)
            }
            _ => Ok(opened),
        }
    }

    /// Nonce, what it was, and the tag that proves it.
    pub(crate) fn encrypt(&self, plain: &[u8]) -> Result<Vec<u8>, CodecError> {
        let mut nonce = Nonce::default();
        rand::rng().fill_bytes(&mut nonce);
        let mut sealed = Vec::with_capacity(NONCE + plain.len() + TAG);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(plain);
        let body = sealed.get_mut(NONCE..).unwrap_or_default();
        let tag = self.cipher.encrypt_in_place_detached(&nonce, &[], body);
        sealed.extend_from_slice(&tag.map_err(|_| CodecError::Cipher)?);
        Ok(sealed)
    }

    fn decrypt(&self, sealed: &[u8]) -> Result<Vec<u8>, CodecError> {
        let parts = sealed.split_at_checked(NONCE).and_then(|(nonce, rest)| {
            let (body, tag) = rest.split_at_checked(rest.len().checked_sub(TAG)?)?;
            Some((Nonce::from_slice(nonce), body.to_vec(), Tag::from_slice(tag)))
        });
        let (nonce, mut body, tag) = parts.ok_or(CodecError::Cipher)?;
        let opened = self.cipher.decrypt_in_place_detached(nonce, &[], &mut body, tag);
        opened.map_err(|_| CodecError::Cipher)?;
        Ok(body)
    }
}

impl fmt::Debug for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Codec").finish_non_exhaustive()
    }
}

fn cipher(master: &MasterKey) -> Aes256CtrPoly1305Aes {
    let parts = [&master.encrypt, &master.mac.k, &master.mac.r];
    let bytes = Zeroizing::new(parts.map(Vec::as_slice).concat());
    // Of another length it would not have opened the repository.
    let mut key = Key::default();
    for (into, from) in key.iter_mut().zip(bytes.iter()) {
        *into = *from;
    }
    Aes256CtrPoly1305Aes::new(&key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_and_nothing_else_does() {
        let master = MasterKey::new();
        for level in [None, Some(3)] {
            let mut codec = Codec::new(&master, level).unwrap();
            for content in [&b""[..], b"x", &[7; 100_000]] {
                let sealed = codec.seal_blob(content).unwrap();
                assert_eq!(codec.open_blob(&sealed.bytes, sealed.unpacked).unwrap(), content);
                for place in [0, 16, sealed.bytes.len() - 1] {
                    let mut broken = sealed.bytes.clone();
                    broken[place] ^= 1;
                    assert!(codec.open_blob(&broken, sealed.unpacked).is_err());
                }
                let longer = sealed.unpacked.map(|length| length + 1);
                assert!(longer.is_none() || codec.open_blob(&sealed.bytes, longer).is_err());
            }
            let file = codec.seal_file(b"{}").unwrap();
            assert_eq!(codec.open_file(&file).unwrap(), b"{}");
            assert!(codec.open_file(&file[..31]).is_err());
            let other = Codec::new(&MasterKey::new(), level).unwrap();
            assert!(other.open_file(&file).is_err());
        }
    }
}
