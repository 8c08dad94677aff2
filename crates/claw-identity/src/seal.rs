//! Encryption of small secrets at rest: gateway tokens, provider keys, off-site credentials.
//!
//! XChaCha20-Poly1305 under one key of the coordinator, in a file beside its database and outside
//! its backups. What is sealed for one context (for example `secrets/<name>`) opens for no other,
//! so rows cannot be swapped. It hides no lengths and prevents no roll-back to an older value.

use std::fmt;
use std::path::{Path, PathBuf};

use chacha20poly1305::aead::{Aead as _, Payload};
use chacha20poly1305::{KeyInit as _, XChaCha20Poly1305};
use rand::CryptoRng;
use zeroize::Zeroizing;

use crate::private_file::{self, PrivateFileError};

/// First bytes of every sealed value: format and version.
const HEADER: [u8; 5] = *b"CLWS\x01";
/// Length of an XChaCha20 nonce.
const NONCE: usize = 24;
/// Length of a key.
const KEY: usize = 32;

/// The key of a store; `Debug` hides it.
pub struct SealKey(Zeroizing<[u8; KEY]>);

/// Why a key could not be had.
#[derive(Debug, thiserror::Error)]
pub enum SealKeyError {
    /// The file could not be read or written.
    #[error("cannot use seal key file")]
    File(#[from] PrivateFileError),
    /// The file has another length.
    #[error("{} holds {actual} bytes, a seal key has 32", path.display())]
    Length {
        /// The file.
        path: PathBuf,
        /// What it holds.
        actual: usize,
    },
}

/// Sealing failed: the plaintext is larger than the cipher allows (256 GiB).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cannot seal a value of this size")]
pub struct SealError;

/// Why a sealed value was not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Too short or another format version.
    #[error("not a sealed value of a known version")]
    Format,
    /// Wrong key, wrong context, or changed bytes; which one cannot be told.
    #[error("sealed value does not open: other key, other context, or damaged")]
    Refused,
}

impl SealKey {
    /// A new key.
    pub fn generate(rng: &mut impl CryptoRng) -> Self {
        let mut key = Zeroizing::new([0; KEY]);
        rng.fill_bytes(key.as_mut_slice());
        Self(key)
    }

    /// Loads the key file, or creates it (mode 0600, 32 raw bytes) when absent.
    ///
    /// # Errors
    ///
    /// [`SealKeyError`]; a file that others can read is refused.
    pub fn load_or_create(path: &Path, rng: &mut impl CryptoRng) -> Result<Self, SealKeyError> {
        match Self::load(path) {
            Err(SealKeyError::File(PrivateFileError::Absent { .. })) => {}
            outcome => return outcome,
        }
        let key = Self::generate(rng);
        match private_file::create(path, key.0.as_slice(), private_file::SECRET) {
            Ok(()) => Ok(key),
            // Another process was faster: its key counts.
            Err(PrivateFileError::Exists { .. }) => Self::load(path),
            Err(error) => Err(error.into()),
        }
    }

    /// Encrypts `plaintext` for `context`; 45 bytes longer than the plaintext.
    ///
    /// # Errors
    ///
    /// [`SealError`] above 256 GiB.
    pub fn seal(
        &self,
        context: &[u8],
        plaintext: &[u8],
        rng: &mut impl CryptoRng,
    ) -> Result<Vec<u8>, SealError> {
        let mut nonce = [0; NONCE];
        rng.fill_bytes(&mut nonce);
        let aad = bound(context);
        let ciphertext = self
            .cipher()
            .encrypt(&nonce.into(), Payload { msg: plaintext, aad: &aad })
            .map_err(|_too_large| SealError)?;
        Ok([HEADER.as_slice(), &nonce, &ciphertext].concat())
    }

    /// Decrypts what [`SealKey::seal`] made for the same `context`.
    ///
    /// # Errors
    ///
    /// [`OpenError`].
    pub fn open(&self, context: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, OpenError> {
        let rest = sealed.strip_prefix(&HEADER).ok_or(OpenError::Format)?;
        let (nonce, ciphertext) = rest.split_first_chunk::<NONCE>().ok_or(OpenError::Format)?;
        let aad = bound(context);
        self.cipher()
            .decrypt(nonce.into(), Payload { msg: ciphertext, aad: &aad })
            .map(Zeroizing::new)
            .map_err(|_refused| OpenError::Refused)
    }

    fn load(path: &Path) -> Result<Self, SealKeyError> {
        let bytes = private_file::read_secret(path)?;
        let key = bytes.as_slice().try_into().map_err(|_length| SealKeyError::Length {
            path: path.to_owned(),
            actual: bytes.len(),
        })?;
        Ok(Self(Zeroizing::new(key)))
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new(self.0.as_slice().into())
    }
}

impl fmt::Debug for SealKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("SealKey([redacted])")
    }
}

/// The header has a fixed length, so header and context cannot run into each other.
fn bound(context: &[u8]) -> Vec<u8> {
    [HEADER.as_slice(), context].concat()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn opens_only_with_the_same_key_and_context() {
        let rng = &mut rand::rng();
        let key = SealKey::generate(rng);
        let sealed = key.seal(b"secrets/a", b"plain", rng).unwrap();
        assert_eq!(sealed.len(), 5 + 45);
        assert!(!sealed.windows(5).any(|window| window == b"plain"));
        assert_eq!(key.open(b"secrets/a", &sealed).unwrap().as_slice(), b"plain");
        assert_eq!(key.open(b"secrets/b", &sealed), Err(OpenError::Refused));
        assert_eq!(SealKey::generate(rng).open(b"secrets/a", &sealed), Err(OpenError::Refused));
        assert_ne!(key.seal(b"secrets/a", b"plain", rng).unwrap(), sealed);
    }

    #[test]
    fn every_changed_byte_and_length_is_noticed() {
        let rng = &mut rand::rng();
        let key = SealKey::generate(rng);
        let sealed = key.seal(b"c", b"", rng).unwrap();
        for index in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[index] ^= 1;
            let expected = if index < 5 { OpenError::Format } else { OpenError::Refused };
            assert_eq!(key.open(b"c", &changed), Err(expected), "{index}");
            assert!(key.open(b"c", &sealed[..index]).is_err());
        }
    }

    #[test]
    fn key_file_is_made_once_and_kept_private() {
        let rng = &mut rand::rng();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("seal.key");
        let first = SealKey::load_or_create(&path, rng).unwrap();
        let sealed = first.seal(b"c", b"plain", rng).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        let again = SealKey::load_or_create(&path, rng).unwrap();
        assert_eq!(again.open(b"c", &sealed).unwrap().as_slice(), b"plain");
        assert_eq!(format!("{again:?}"), "SealKey([redacted])");

        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(
            SealKey::load_or_create(&path, rng),
            Err(SealKeyError::File(PrivateFileError::Loose { mode: 0o644, .. }))
        ));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, b"short").unwrap();
        assert!(matches!(
            SealKey::load_or_create(&path, rng),
            Err(SealKeyError::Length { actual: 5, .. })
        ));
    }
}
