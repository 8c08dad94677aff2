//! Keys that never leave their host, and the requests made with them.
//!
//! A [`HostKey`] is an ECDSA P-256 key. A [`Csr`] is only ever a proof that its sender holds a
//! private key: names, extensions and everything else in it are ignored.

use std::fmt;
use std::path::Path;

use rcgen::{
    CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm,
    SigningKey,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY};
use x509_parser::prelude::FromDer as _;
use x509_parser::x509::SubjectPublicKeyInfo;
use zeroize::{Zeroize as _, Zeroizing};

use crate::pem;
use crate::pin::SpkiPin;
use crate::private_file::{self, PrivateFileError};

/// Largest request in bytes; one of ours has about 250.
const MAX_CSR: usize = 8 * 1024;

/// A private key, ECDSA P-256. `Debug` hides it; it is erased when dropped.
pub struct HostKey {
    pair: KeyPair,
}

/// A certificate signing request whose signature has been checked.
#[derive(Clone, PartialEq, Eq)]
pub struct Csr {
    der: Vec<u8>,
    spki: Vec<u8>,
}

/// Why a key could not be made, loaded or used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The key could not be generated.
    #[error("cannot generate a key")]
    Generate(#[source] rcgen::Error),
    /// The file could not be read or written.
    #[error("cannot use key file")]
    File(#[from] PrivateFileError),
    /// The text is no PKCS#8 PEM of a P-256 key.
    #[error("not a pkcs#8 pem text of an ecdsa p-256 key")]
    Malformed,
    /// The request could not be signed.
    #[error("cannot make a certificate request")]
    Request(#[source] rcgen::Error),
}

/// Why a certificate signing request was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// Larger than 8 KiB.
    #[error("certificate request has {actual} bytes, the limit is {MAX_CSR}")]
    TooLarge {
        /// Its size.
        actual: usize,
    },
    /// Not a certificate signing request.
    #[error("not a certificate request (pkcs#10)")]
    Malformed,
    /// The key is not ECDSA P-256.
    #[error("key of the certificate request is not ecdsa p-256")]
    KeyKind,
    /// The sender does not hold the private key.
    #[error("signature of the certificate request is wrong")]
    Signature,
}

impl HostKey {
    /// A new key from the system's randomness.
    ///
    /// # Errors
    ///
    /// [`KeyError::Generate`].
    pub fn generate() -> Result<Self, KeyError> {
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
            .map(|pair| Self { pair })
            .map_err(KeyError::Generate)
    }

    /// Parses a PKCS#8 PEM text.
    ///
    /// # Errors
    ///
    /// [`KeyError::Malformed`].
    pub fn from_pem(text: &[u8]) -> Result<Self, KeyError> {
        let der =
            PrivatePkcs8KeyDer::from_pem_slice(text).map_err(|_no_pem| KeyError::Malformed)?;
        KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ECDSA_P256_SHA256)
            .map(|pair| Self { pair })
            .map_err(|_other_key| KeyError::Malformed)
    }

    /// The key as PKCS#8 PEM.
    #[must_use]
    pub fn to_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.pair.serialize_pem())
    }

    /// Loads a key file.
    ///
    /// # Errors
    ///
    /// [`KeyError`]; a file that others can read is refused.
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        Self::from_pem(&private_file::read_secret(path)?)
    }

    /// Creates a key file of mode 0600, durably; never replaces one.
    ///
    /// # Errors
    ///
    /// [`KeyError::File`].
    pub fn save(&self, path: &Path) -> Result<(), KeyError> {
        private_file::create(path, self.to_pem().as_bytes(), private_file::SECRET)?;
        Ok(())
    }

    /// A request that proves possession of this key and asks for nothing else.
    ///
    /// # Errors
    ///
    /// [`KeyError::Request`].
    pub fn csr(&self) -> Result<Csr, KeyError> {
        let mut parameters = CertificateParams::default();
        // Names come from the authority; a stranger's tool should not show an invented one.
        parameters.distinguished_name = rcgen::DistinguishedName::new();
        let request = parameters.serialize_request(&self.pair).map_err(KeyError::Request)?;
        Ok(Csr { der: request.der().to_vec(), spki: self.pair.subject_public_key_info() })
    }

    /// Hash of the public key.
    #[must_use]
    pub fn pin(&self) -> SpkiPin {
        SpkiPin::of_spki(&self.pair.subject_public_key_info())
    }

    /// For TLS.
    #[must_use]
    pub fn private_key_der(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.pair.serialized_der().to_vec()).into()
    }
}

impl Csr {
    /// Checks a DER request.
    ///
    /// # Errors
    ///
    /// [`CsrError`].
    pub fn from_der(der: &[u8]) -> Result<Self, CsrError> {
        if der.len() > MAX_CSR {
            return Err(CsrError::TooLarge { actual: der.len() });
        }
        let (rest, request) =
            X509CertificationRequest::from_der(der).map_err(|_error| CsrError::Malformed)?;
        if !rest.is_empty() {
            return Err(CsrError::Malformed);
        }
        let spki = &request.certification_request_info.subject_pki;
        if !is_p256(spki) {
            return Err(CsrError::KeyKind);
        }
        request.verify_signature().map_err(|_error| CsrError::Signature)?;
        Ok(Self { der: der.to_vec(), spki: spki.raw.to_vec() })
    }

    /// Checks a PEM request.
    ///
    /// # Errors
    ///
    /// [`CsrError`].
    pub fn from_pem(text: &str) -> Result<Self, CsrError> {
        if text.len() > 2 * MAX_CSR {
            return Err(CsrError::TooLarge { actual: text.len() });
        }
        let der = CertificateSigningRequestDer::from_pem_slice(text.as_bytes())
            .map_err(|_error| CsrError::Malformed)?;
        Self::from_der(&der)
    }

    /// The request as DER.
    #[must_use]
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The request as PEM.
    #[must_use]
    pub fn to_pem(&self) -> String {
        pem::encode("CERTIFICATE REQUEST", &self.der)
    }

    /// Hash of the public key: equal for two requests made with one key.
    #[must_use]
    pub fn pin(&self) -> SpkiPin {
        SpkiPin::of_spki(&self.spki)
    }

    /// The public key as DER `SubjectPublicKeyInfo`.
    pub(crate) fn spki(&self) -> &[u8] {
        &self.spki
    }
}

impl Drop for HostKey {
    fn drop(&mut self) {
        self.pair.zeroize();
    }
}

impl fmt::Debug for HostKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("HostKey").field("pin", &self.pin()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Csr {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Csr").field("pin", &self.pin()).finish_non_exhaustive()
    }
}

impl PublicKeyData for HostKey {
    fn der_bytes(&self) -> &[u8] {
        self.pair.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        PublicKeyData::algorithm(&self.pair)
    }
}

impl SigningKey for HostKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.pair.sign(message)
    }
}

fn is_p256(spki: &SubjectPublicKeyInfo<'_>) -> bool {
    let curve = spki.algorithm.parameters.as_ref().and_then(|any| any.as_oid().ok());
    spki.algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY && curve == Some(OID_EC_P256)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn key_comes_back_from_its_file_and_only_from_a_private_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key.pem");
        let key = HostKey::generate().unwrap();
        key.save(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(HostKey::load(&path).unwrap().pin(), key.pin());
        assert!(matches!(key.save(&path), Err(KeyError::File(PrivateFileError::Exists { .. }))));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(
            HostKey::load(&path),
            Err(KeyError::File(PrivateFileError::Loose { mode: 0o640, .. }))
        ));
    }

    #[test]
    fn debug_shows_no_key() {
        let key = HostKey::generate().unwrap();
        let pem = key.to_pem();
        let body = pem.lines().nth(1).unwrap();
        let debug = format!("{key:?}");
        assert!(!debug.contains(body) && debug.contains("HostKey"), "{debug}");
    }

    #[test]
    fn request_comes_back_as_der_and_pem() {
        let key = HostKey::generate().unwrap();
        let csr = key.csr().unwrap();
        assert_eq!(csr.pin(), key.pin());
        assert_eq!(Csr::from_der(csr.der()).unwrap(), csr);
        assert_eq!(Csr::from_pem(&csr.to_pem()).unwrap(), csr);
    }

    #[test]
    fn request_with_another_key_inside_is_refused() {
        let csr = HostKey::generate().unwrap().csr().unwrap();
        let other = HostKey::generate().unwrap();
        let mut forged = csr.der().to_vec();
        let at = forged.windows(csr.spki().len()).position(|part| part == csr.spki()).unwrap();
        let spki = other.subject_public_key_info();
        forged[at..at + spki.len()].copy_from_slice(&spki);
        assert_eq!(Csr::from_der(&forged), Err(CsrError::Signature));
    }

    #[test]
    fn other_keys_and_garbage_are_refused() {
        for algorithm in [&rcgen::PKCS_ED25519, &rcgen::PKCS_ECDSA_P384_SHA384] {
            let pair = KeyPair::generate_for(algorithm).unwrap();
            let request = CertificateParams::default().serialize_request(&pair).unwrap();
            assert_eq!(Csr::from_der(request.der()), Err(CsrError::KeyKind));
            assert!(matches!(
                HostKey::from_pem(pair.serialize_pem().as_bytes()),
                Err(KeyError::Malformed)
            ));
        }
        let mut trailing = HostKey::generate().unwrap().csr().unwrap().der().to_vec();
        trailing.push(0);
        assert_eq!(Csr::from_der(&trailing), Err(CsrError::Malformed));
        for length in 0..trailing.len() - 1 {
            assert_eq!(Csr::from_der(&trailing[..length]), Err(CsrError::Malformed));
        }
        let huge = vec![0x30; MAX_CSR + 1];
        assert_eq!(Csr::from_der(&huge), Err(CsrError::TooLarge { actual: MAX_CSR + 1 }));
        assert_eq!(Csr::from_pem("nothing"), Err(CsrError::Malformed));
    }
}
