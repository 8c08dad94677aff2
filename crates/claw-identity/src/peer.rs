//! Who a certificate stands for.
//!
//! [`peer_identity`] judges the *content* of a client certificate. Signature, chain and dates are
//! judged by the TLS handshake, which calls this too (see [`crate::Tls::server`]); revocation by the
//! coordinator.

use std::time::SystemTime;

use rustls_pki_types::CertificateDer;

use crate::certificate::{self, Usage};
use crate::identity::{IdentityNameError, PeerIdentity, TrustDomain, shortened};
use crate::serial::{KeyId, Serial};

/// The peer behind a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Role and name.
    pub identity: PeerIdentity,
    /// The certificate's serial number, the key of a denylist.
    pub serial: Serial,
    /// From when it is valid, in whole seconds.
    pub not_before: SystemTime,
    /// Until when it is valid, in whole seconds, inclusive.
    pub not_after: SystemTime,
    /// The authority key that signed it: tells the generations of a rotated authority apart.
    pub issuer_key_id: KeyId,
}

/// Why a certificate does not name a peer of this fleet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Not an X.509 certificate, or with repeated extensions.
    #[error("certificate cannot be read")]
    Malformed,
    /// The serial number is zero or too long, or the issuer's key is not named.
    #[error("certificate has no usable serial number or authority key identifier")]
    Unnamed,
    /// It is an authority's certificate.
    #[error("certificate of an authority is no identity")]
    Authority,
    /// Its extended key usage is not exactly client authentication.
    #[error("certificate is not for client authentication only")]
    NotClient,
    /// It has no URI, or more than one.
    #[error("certificate must have exactly one uri as alternative name, has {found}")]
    UriCount {
        /// How many it has.
        found: usize,
    },
    /// It has alternative names of other kinds.
    #[error("certificate has alternative names other than its uri")]
    OtherNames,
    /// The URI has not the form of our SPIFFE IDs.
    #[error("uri {uri:?} does not have the form spiffe://<trust domain>/<role>/<name>")]
    NotSpiffe {
        /// The URI, shortened to 80 characters.
        uri: String,
    },
    /// The trust domain is no valid one.
    #[error("trust domain is invalid")]
    TrustDomain(#[source] IdentityNameError),
    /// It belongs to another fleet.
    #[error("certificate belongs to trust domain {found:?}, this is {expected}")]
    Foreign {
        /// The domain in the certificate, shortened to 80 characters.
        found: String,
        /// The fleet's.
        expected: TrustDomain,
    },
    /// The role is unknown.
    #[error("role is invalid")]
    Role(#[source] IdentityNameError),
    /// The name is invalid.
    #[error("name is invalid")]
    Name(#[source] IdentityNameError),
}

/// Reads the peer out of a client certificate of the fleet.
///
/// # Errors
///
/// [`IdentityError`] unless the certificate is for client authentication only and its one
/// alternative name is `spiffe://<trust_domain>/<role>/<name>`.
pub fn peer_identity(
    certificate: &CertificateDer<'_>,
    trust_domain: &TrustDomain,
) -> Result<Peer, IdentityError> {
    let (found, peer) = read_peer(certificate)?;
    if found != *trust_domain {
        return Err(IdentityError::Foreign {
            found: shortened(found.as_str()),
            expected: trust_domain.clone(),
        });
    }
    Ok(peer)
}

/// The same for whatever fleet the certificate belongs to: a host's own.
pub(crate) fn read_peer(
    certificate: &CertificateDer<'_>,
) -> Result<(TrustDomain, Peer), IdentityError> {
    let facts = certificate::read(certificate).ok_or(IdentityError::Malformed)?;
    if facts.is_authority {
        return Err(IdentityError::Authority);
    }
    if facts.usage != Usage::ClientOnly {
        return Err(IdentityError::NotClient);
    }
    let [uri] = facts.uris.as_slice() else {
        return Err(IdentityError::UriCount { found: facts.uris.len() });
    };
    if facts.other_names > 0 {
        return Err(IdentityError::OtherNames);
    }
    let (trust_domain, identity) = PeerIdentity::parse_spiffe_id(uri)?;
    let (Some(serial), Some(issuer_key_id)) = (facts.serial, facts.issuer_key_id) else {
        return Err(IdentityError::Unnamed);
    };
    let peer = Peer {
        identity,
        serial,
        not_before: facts.not_before,
        not_after: facts.not_after,
        issuer_key_id,
    };
    Ok((trust_domain, peer))
}
