//! Who is who in a fleet: join tokens, the certificate authority, mTLS and peer identities.
//!
//! What it is for: every decision about identity that can be made from keys, certificates and
//! tokens alone. A host makes its key and keeps it; the coordinator's authority certifies it; both
//! sides check each other with TLS 1.3 before a byte of the application passes.
//!
//! What it deliberately does not do: no network, no database, no clock. It does not know whether a
//! token was used or a certificate was revoked (the coordinator's store does), and it grants
//! nothing: it says who a peer is, not what the peer may do.
//!
//! # Where to start
//!
//! | on the host | on the coordinator |
//! | --- | --- |
//! | [`JoinToken::parse`] | [`CertificateAuthority`], [`JoinToken::generate`] |
//! | [`IdentityDir::pending_key`] → [`HostKey::csr`] | [`Csr::from_pem`], [`CertificateAuthority::issue_from_csr`] |
//! | [`Tls::enrolment_client`], then [`IdentityDir::install`] | [`Tls::server`] |
//! | [`Tls::client`] | [`peer_of_connection`] or [`peer_identity`] |
//!
//! [`seal`] encrypts small secrets at rest.
//!
//! # TLS providers
//!
//! Features `ring` and `aws-lc-rs` add the functions of [`provider`]; nothing here uses or sets
//! the process default, so both can be on at once.
#![forbid(unsafe_code)]

mod authority;
mod bundle;
mod certificate;
mod identity;
mod identity_dir;
mod join_token;
mod key;
mod peer;
mod pem;
mod pin;
mod private_file;
pub mod provider;
pub mod seal;
mod serial;
mod tls;
mod verify;

pub use authority::{
    AuthorityError, CertificateAuthority, IssueError, IssueRequest, Issued, Subject,
};
pub use bundle::{BundleError, CaBundle};
pub use identity::{IdentityNameError, PeerIdentity, Role, TrustDomain};
pub use identity_dir::{ClientIdentity, IdentityDir, IdentityDirError};
pub use join_token::{JoinToken, SecretHash, TokenError, TokenId};
pub use key::{Csr, CsrError, HostKey, KeyError};
pub use peer::{IdentityError, Peer, peer_identity};
pub use pem::PemError;
pub use pin::{PinError, SpkiPin};
pub use private_file::PrivateFileError;
pub use serial::{KeyId, Serial, SerialError};
pub use tls::{Admission, ServerIdentity, Tls, TlsError, peer_of_connection};
