//! A client's identity on disk: key, certificate and trusted authorities, always of one piece.
//!
//! ```text
//! identity/            0700
//!   current -> gen-3   swapped by one rename
//!   gen-3/key.pem      0600
//!   gen-3/cert.pem     the certificate (chain)
//!   gen-3/ca.pem       the authorities to trust
//!   pending-key.pem    0600, during enrolment or renewal only
//! ```
//!
//! A generation is written and synced completely before `current` points to it, so a crash leaves
//! the old pair or the new one. It has one writer at a time and does not renew anything by itself.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rand::CryptoRng;
use rand::Rng as _;
use rustls_pki_types::CertificateDer;

use crate::bundle::{BundleError, CaBundle};
use crate::certificate;
use crate::identity::TrustDomain;
use crate::key::{HostKey, KeyError};
use crate::peer::{IdentityError, Peer, read_peer};
use crate::pem::{self, PemError};
use crate::pin::SpkiPin;
use crate::private_file::{self, PrivateFileError};

const CURRENT: &str = "current";
const NEXT: &str = ".current.next";
const PENDING_KEY: &str = "pending-key.pem";
const KEY: &str = "key.pem";
const CERTIFICATE: &str = "cert.pem";
const AUTHORITIES: &str = "ca.pem";
const GENERATION: &str = "gen-";

/// The directory of one client's identity.
#[derive(Debug, Clone)]
pub struct IdentityDir {
    path: PathBuf,
}

/// Everything a client needs to prove who it is and to recognise the coordinator. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ClientIdentity {
    key: Arc<HostKey>,
    chain: Vec<CertificateDer<'static>>,
    bundle: CaBundle,
    peer: Peer,
    trust_domain: TrustDomain,
}

/// Why an identity could not be loaded or stored.
#[derive(Debug, thiserror::Error)]
pub enum IdentityDirError {
    /// A file or directory could not be read or written.
    #[error("cannot use identity files")]
    File(#[from] PrivateFileError),
    /// The key could not be made or read.
    #[error("cannot use identity key")]
    Key(#[from] KeyError),
    /// The certificate is no PEM text.
    #[error("cannot read identity certificate")]
    Certificate(#[from] PemError),
    /// The authorities are unusable.
    #[error("cannot use authorities of the identity")]
    Bundle(#[from] BundleError),
    /// The certificate is not a client's of a fleet.
    #[error("identity certificate is unusable")]
    Identity(#[from] IdentityError),
    /// The certificate is for another key.
    #[error("identity certificate does not belong to the key")]
    Mismatch,
    /// The directory's links could not be read or changed.
    #[error("cannot switch to new identity in {}", path.display())]
    Switch {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl IdentityDir {
    /// Uses `path`, and creates it with mode 0700 when absent; its parent must exist.
    ///
    /// # Errors
    ///
    /// [`IdentityDirError::File`]; a directory that others can enter is refused.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, IdentityDirError> {
        let path = path.into();
        private_file::ensure_directory(&path)?;
        Ok(Self { path })
    }

    /// The current identity, `None` before the first [`Self::install`].
    ///
    /// Expired ones are returned too: what to do then is the caller's decision.
    ///
    /// # Errors
    ///
    /// [`IdentityDirError`].
    pub fn load(&self) -> Result<Option<ClientIdentity>, IdentityDirError> {
        let Some(generation) = self.current()? else {
            return Ok(None);
        };
        let directory = self.path.join(generation);
        let key = HostKey::load(&directory.join(KEY))?;
        let chain = private_file::read_text(&directory.join(CERTIFICATE))?;
        let bundle = private_file::read_text(&directory.join(AUTHORITIES))?;
        let bundle = CaBundle::from_pem(&bundle)?;
        ClientIdentity::new(Arc::new(key), pem::certificates(&chain)?, bundle).map(Some)
    }

    /// The key of an enrolment or renewal under way: made on the first call, the same until
    /// [`Self::install`], restarts included. A lost reply is thus asked for again with the same key.
    ///
    /// # Errors
    ///
    /// [`IdentityDirError`].
    pub fn pending_key(&self) -> Result<HostKey, IdentityDirError> {
        let path = self.path.join(PENDING_KEY);
        match HostKey::load(&path) {
            Err(KeyError::File(PrivateFileError::Absent { .. })) => {}
            // Left by a crash at the end of `install`: it is in use already.
            Ok(key) if self.current_pin()? == Some(key.pin()) => self.discard_pending_key()?,
            outcome => return Ok(outcome?),
        }
        let key = HostKey::generate()?;
        key.save(&path)?;
        Ok(key)
    }

    /// Forgets the pending key, when its enrolment was refused for good.
    ///
    /// # Errors
    ///
    /// [`IdentityDirError::File`].
    pub fn discard_pending_key(&self) -> Result<(), IdentityDirError> {
        let path = self.path.join(PENDING_KEY);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(PrivateFileError::Write { path, source }.into())
            }
            _ => Ok(()),
        }
    }

    /// Makes a new identity current, durably: after an enrolment, a renewal, or a change of the
    /// trusted authorities. The generation before it and the pending key are removed.
    ///
    /// # Errors
    ///
    /// [`IdentityDirError`]; the current identity is then unchanged.
    pub fn install(&self, identity: &ClientIdentity) -> Result<(), IdentityDirError> {
        let generation = self.unused_generation()?;
        let directory = self.path.join(&generation);
        private_file::ensure_directory(&directory)?;
        identity.key.save(&directory.join(KEY))?;
        let chain = pem::encode_certificates(&identity.chain);
        let public = private_file::PUBLIC;
        private_file::create(&directory.join(CERTIFICATE), chain.as_bytes(), public)?;
        let bundle = identity.bundle.to_pem();
        private_file::create(&directory.join(AUTHORITIES), bundle.as_bytes(), public)?;
        self.switch_to(&generation)
            .map_err(|source| IdentityDirError::Switch { path: self.path.clone(), source })?;
        self.discard_pending_key()?;
        self.remove_others(&generation)
            .map_err(|source| IdentityDirError::Switch { path: self.path.clone(), source })
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn current_pin(&self) -> Result<Option<SpkiPin>, IdentityDirError> {
        let Some(generation) = self.current()? else {
            return Ok(None);
        };
        Ok(Some(HostKey::load(&self.path.join(generation).join(KEY))?.pin()))
    }

    fn current(&self) -> Result<Option<PathBuf>, IdentityDirError> {
        match fs::read_link(self.path.join(CURRENT)) {
            Ok(generation) => Ok(Some(generation)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(IdentityDirError::Switch { path: self.path.clone(), source }),
        }
    }

    /// One above all that exist, so that the rest of an interrupted installation is never reused.
    fn unused_generation(&self) -> Result<String, IdentityDirError> {
        let failed = |source| IdentityDirError::Switch { path: self.path.clone(), source };
        let mut highest = 0;
        for entry in fs::read_dir(&self.path).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            if let Some(number) = generation_number(&name.to_string_lossy()) {
                highest = highest.max(number);
            }
        }
        Ok(format!("{GENERATION}{}", highest.saturating_add(1)))
    }

    fn switch_to(&self, generation: &str) -> io::Result<()> {
        let next = self.path.join(NEXT);
        match fs::remove_file(&next) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        symlink(generation, &next)?;
        fs::rename(&next, self.path.join(CURRENT))?;
        private_file::sync_directory(&self.path)
    }

    fn remove_others(&self, current: &str) -> io::Result<()> {
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name != current && generation_number(&name).is_some() {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    }
}

impl ClientIdentity {
    /// Puts a key, the certificate it got (leaf first) and the trusted authorities together.
    ///
    /// # Errors
    ///
    /// [`IdentityDirError`] when the certificate is for another key or no client's.
    pub fn new(
        key: Arc<HostKey>,
        chain: Vec<CertificateDer<'static>>,
        bundle: CaBundle,
    ) -> Result<Self, IdentityDirError> {
        let leaf = chain.first().ok_or(PemError::Empty)?;
        let (trust_domain, peer) = read_peer(leaf)?;
        if certificate::read(leaf).is_none_or(|facts| facts.pin != key.pin()) {
            return Err(IdentityDirError::Mismatch);
        }
        Ok(Self { key, chain, bundle, peer, trust_domain })
    }

    /// The same from PEM texts, as an enrolment returns them.
    ///
    /// # Errors
    ///
    /// See [`Self::new`].
    pub fn from_pem(
        key: Arc<HostKey>,
        chain: &str,
        bundle: &str,
    ) -> Result<Self, IdentityDirError> {
        Self::new(key, pem::certificates(chain)?, CaBundle::from_pem(bundle)?)
    }

    /// The same pair with other authorities to trust.
    #[must_use]
    pub fn with_bundle(&self, bundle: CaBundle) -> Self {
        Self { bundle, ..self.clone() }
    }

    /// When to renew: one third of the certificate's life after its beginning, ± 10 % of that, so
    /// that a fleet that enrolled at once does not renew at once.
    pub fn renew_at(&self, rng: &mut impl CryptoRng) -> SystemTime {
        let life = self.peer.not_after.duration_since(self.peer.not_before).unwrap_or_default();
        let thousandths: u32 = rng.random_range(900..=1100);
        self.peer.not_before + life / 3000 * thousandths
    }

    /// The last second of the certificate.
    #[must_use]
    pub fn expires(&self) -> SystemTime {
        self.peer.not_after
    }

    /// Who this is.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// The fleet.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The key.
    #[must_use]
    pub fn key(&self) -> &HostKey {
        &self.key
    }

    /// The certificate and what leads from it to the root, leaf first.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The trusted authorities.
    #[must_use]
    pub fn bundle(&self) -> &CaBundle {
        &self.bundle
    }
}

fn generation_number(name: &str) -> Option<u64> {
    name.strip_prefix(GENERATION)?.parse().ok()
}
