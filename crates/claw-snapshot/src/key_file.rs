//! Restic's key files: the repository's master key under a password.
//!
//! Format: <https://restic.readthedocs.io/en/stable/100_references.html#keys-encryption-and-mac>.
//! The engine could write them too, but always with a derivation that takes 128 MiB, more than the
//! worker may have; and when it looks for a key, one damaged file hides the others.

use aes256ctr_poly1305aes::aead::{Aead, AeadInPlace};
use aes256ctr_poly1305aes::{Aes256CtrPoly1305Aes, Key, Nonce};
use rand::RngCore;
use rustic_core::repofile::{KeyFile, MasterKey};
use scrypt::Params;
use zeroize::Zeroizing;

use crate::secret::KeyRole;

/// Scrypt's cost for our own passwords, which have 160 bits or more: 2^10 rounds of 1 KiB, so 1 MiB and some milliseconds.
const LOG_ROUNDS: u8 = 10;
const BLOCK: u32 = 8;
const LANES: u32 = 1;
/// The most that a key file may ask for: 2^18 × 1 KiB. Restic's own take 32 MiB, rustic's 128.
const MOST_LOG_ROUNDS: u32 = 18;
const SALT: usize = 64;
const NONCE: usize = 16;
/// AES-256, AES-128 and Poly1305 keys one after another.
const KEY: usize = 64;

/// A key file could not be made.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// The key derivation refused its parameters.
    #[error("deriving a key from the password failed")]
    Derive,
    /// The cipher failed.
    #[error("encrypting the master key failed")]
    Encrypt,
    /// The key file could not be written as JSON.
    #[error("writing the key file as text failed")]
    Serialize(#[source] serde_json::Error),
}

/// The content of a key file that lets the password open what the master key opens.
pub(crate) fn seal(
    master: &MasterKey,
    role: KeyRole,
    password: &str,
    random: &mut impl RngCore,
) -> Result<Vec<u8>, KeyFileError> {
    let mut salt = vec![0; SALT];
    random.fill_bytes(&mut salt);
    let params = Params::new(LOG_ROUNDS, BLOCK, LANES).map_err(|_| KeyFileError::Derive)?;
    let key = derive(password, &salt, &params).ok_or(KeyFileError::Derive)?;
    let mut nonce = Nonce::default();
    random.fill_bytes(&mut nonce);
    let mut sealed = Zeroizing::new(serde_json::to_vec(master).map_err(KeyFileError::Serialize)?);
    let tag = Aes256CtrPoly1305Aes::new(Key::from_slice(key.as_slice()))
        .encrypt_in_place_detached(&nonce, &[], sealed.as_mut_slice())
        .map_err(|_| KeyFileError::Encrypt)?;
    let data = [nonce.as_slice(), sealed.as_slice(), tag.as_slice()].concat();
    let file = KeyFile {
        hostname: None,
        username: Some(role.name().to_owned()),
        created: None,
        kdf: "scrypt".to_owned(),
        n: 1 << LOG_ROUNDS,
        r: BLOCK,
        p: LANES,
        data,
        salt,
    };
    serde_json::to_vec(&file).map_err(KeyFileError::Serialize)
}

/// The master key, when the file is a key file and the password is its.
pub(crate) fn unseal(content: &[u8], password: &str) -> Option<MasterKey> {
    let file: KeyFile = serde_json::from_slice(content).ok()?;
    let log_rounds = file.n.checked_ilog2()?;
    if file.kdf != "scrypt" || log_rounds > MOST_LOG_ROUNDS || !file.n.is_power_of_two() {
        return None;
    }
    let params = Params::new(u8::try_from(log_rounds).ok()?, file.r, file.p).ok()?;
    let key = derive(password, &file.salt, &params)?;
    let (nonce, sealed) = file.data.split_at_checked(NONCE)?;
    let opened = Aes256CtrPoly1305Aes::new(Key::from_slice(key.as_slice()))
        .decrypt(Nonce::from_slice(nonce), sealed)
        .ok()?;
    let opened = Zeroizing::new(opened);
    serde_json::from_slice(&opened).ok()
}

/// Whether the file says that it is of this role. Anybody can write that: it is a hint.
pub(crate) fn is_of(content: &[u8], role: KeyRole) -> bool {
    serde_json::from_slice::<KeyFile>(content)
        .is_ok_and(|file| file.username.as_deref() == Some(role.name()))
}

fn derive(password: &str, salt: &[u8], params: &Params) -> Option<Zeroizing<[u8; KEY]>> {
    let mut key = Zeroizing::new([0; KEY]);
    scrypt::scrypt(password.as_bytes(), salt, params, key.as_mut()).ok()?;
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_its_password_opens_it() {
        let master = MasterKey::new();
        let sealed = seal(&master, KeyRole::Agent, "right", &mut rand::rng()).unwrap();
        let opened = unseal(&sealed, "right").unwrap();
        assert_eq!(opened.encrypt, master.encrypt);
        assert!(unseal(&sealed, "wrong").is_none());
        assert!(unseal(b"no key file", "right").is_none());
        assert!(is_of(&sealed, KeyRole::Agent));
        assert!(!is_of(&sealed, KeyRole::Recovery));
        let text = String::from_utf8(sealed).unwrap();
        assert!(!text.contains("right"), "{text}");
    }

    #[test]
    fn a_key_file_that_asks_for_too_much_is_refused() {
        let sealed = seal(&MasterKey::new(), KeyRole::Recovery, "right", &mut rand::rng()).unwrap();
        let text = String::from_utf8(sealed).unwrap();
        let greedy = text.replace("\"N\":1024", "\"N\":16777216");
        assert_ne!(text, greedy);
        assert!(unseal(greedy.as_bytes(), "right").is_none());
    }
}
