//! The authorities that a peer trusts: one root, or two while the authority is being rotated.

use std::sync::Arc;

use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;

use crate::certificate;
use crate::pem::{self, PemError};
use crate::pin::SpkiPin;

/// One or more root certificates, in the order given, without repetition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaBundle {
    roots: Vec<CertificateDer<'static>>,
}

/// Why certificates make no bundle.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The text could not be read.
    #[error("cannot read ca bundle")]
    Pem(#[from] PemError),
    /// A certificate is no authority's.
    #[error("certificate {position} of the ca bundle is not an authority's")]
    NotAuthority {
        /// Counted from 1.
        position: usize,
    },
    /// A certificate cannot be a trust anchor.
    #[error("certificate {position} of the ca bundle cannot be used")]
    Unusable {
        /// Counted from 1.
        position: usize,
        /// What rustls said.
        #[source]
        source: rustls::Error,
    },
}

impl CaBundle {
    /// Parses a PEM text.
    ///
    /// # Errors
    ///
    /// [`BundleError`].
    pub fn from_pem(text: &str) -> Result<Self, BundleError> {
        Self::new(pem::certificates(text)?)
    }

    /// Checks that each certificate can be trusted as an authority.
    ///
    /// # Errors
    ///
    /// [`BundleError`]; an empty list is [`PemError::Empty`].
    pub fn new(certificates: Vec<CertificateDer<'static>>) -> Result<Self, BundleError> {
        if certificates.is_empty() {
            return Err(PemError::Empty.into());
        }
        let mut store = RootCertStore::empty();
        let mut roots = Vec::new();
        for (index, root) in certificates.into_iter().enumerate() {
            let position = index + 1;
            if !certificate::read(&root).is_some_and(|facts| facts.is_authority) {
                return Err(BundleError::NotAuthority { position });
            }
            store.add(root.clone()).map_err(|source| BundleError::Unusable { position, source })?;
            if !roots.contains(&root) {
                roots.push(root);
            }
        }
        Ok(Self { roots })
    }

    /// This bundle and another: what a host trusts while an authority is being replaced.
    #[must_use]
    pub fn with(mut self, other: &Self) -> Self {
        for root in &other.roots {
            if !self.roots.contains(root) {
                self.roots.push(root.clone());
            }
        }
        self
    }

    /// The certificates one after the other.
    #[must_use]
    pub fn to_pem(&self) -> String {
        pem::encode_certificates(&self.roots)
    }

    /// The roots.
    #[must_use]
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// Whether one of the roots has the pinned key: checks the bundle that an enrolment returned.
    #[must_use]
    pub fn contains(&self, pin: &SpkiPin) -> bool {
        self.pins().contains(pin)
    }

    /// The pins of all roots, in their order.
    #[must_use]
    pub fn pins(&self) -> Vec<SpkiPin> {
        self.roots.iter().filter_map(certificate::read).map(|facts| facts.pin).collect()
    }

    pub(crate) fn store(&self) -> Arc<RootCertStore> {
        let mut store = RootCertStore::empty();
        // Each was accepted in `new`.
        let _all = store.add_parsable_certificates(self.roots.iter().cloned());
        Arc::new(store)
    }
}
