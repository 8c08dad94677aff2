//! TLS configurations: version 1.3 only, HTTP/2 only, both sides certified, no resumption.
//!
//! They are plain rustls configurations for an acceptor or connector of the caller. Sockets,
//! timeouts and reloading are the caller's. Resumption is off because rustls takes the client's
//! chain of a resumed session from the ticket and checks neither dates nor authority again.

use std::fmt;
use std::sync::Arc;

use rustls::client::{Resumption, VerifierBuilderError, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::time_provider::{DefaultTimeProvider, TimeProvider};
use rustls::version::TLS13;
use rustls::{ClientConfig, ServerConfig, ServerConnection};
use rustls_pki_types::CertificateDer;

use crate::bundle::CaBundle;
use crate::identity::TrustDomain;
use crate::identity_dir::ClientIdentity;
use crate::key::HostKey;
use crate::peer::{IdentityError, Peer, peer_identity};
use crate::pem::{self, PemError};
use crate::pin::SpkiPin;
use crate::verify::{PeerVerifier, PinnedVerifier, ServerVerifier};

/// The application protocol: HTTP/2 (RFC 9113, section 3.2).
const ALPN: &[u8] = b"h2";

/// Makes TLS configurations with one provider and one clock.
#[derive(Clone)]
pub struct Tls {
    provider: Arc<CryptoProvider>,
    clock: Arc<dyn TimeProvider>,
}

/// Who may finish a handshake with a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Only peers with a certificate of the fleet.
    Certified,
    /// Also peers without any certificate, for a server that offers them enrolment and nothing
    /// else. A certificate that is presented must be good all the same.
    CertifiedOrNew,
}

/// A server's certificate chain and key.
pub struct ServerIdentity {
    chain: Vec<CertificateDer<'static>>,
    key: HostKey,
}

/// Why there is no TLS configuration.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The provider lacks TLS 1.3, or key and certificate do not belong together.
    #[error("cannot configure tls")]
    Configure(#[from] rustls::Error),
    /// The trusted authorities are unusable.
    #[error("cannot trust the ca bundle")]
    Trust(#[from] VerifierBuilderError),
}

impl Tls {
    /// With the system's clock.
    #[must_use]
    pub fn new(provider: Arc<CryptoProvider>) -> Self {
        Self::with_clock(provider, Arc::new(DefaultTimeProvider))
    }

    /// With the caller's clock.
    #[must_use]
    pub fn with_clock(provider: Arc<CryptoProvider>, clock: Arc<dyn TimeProvider>) -> Self {
        Self { provider, clock }
    }

    /// The coordinator's side: clients are checked against `clients` (chain, dates) and
    /// [`peer_identity`] before the handshake ends.
    ///
    /// # Errors
    ///
    /// [`TlsError`].
    pub fn server(
        &self,
        identity: &ServerIdentity,
        clients: &CaBundle,
        trust_domain: &TrustDomain,
        admission: Admission,
    ) -> Result<ServerConfig, TlsError> {
        let builder = WebPkiClientVerifier::builder_with_provider(
            clients.store(),
            Arc::clone(&self.provider),
        );
        let chain = match admission {
            Admission::Certified => builder,
            Admission::CertifiedOrNew => builder.allow_unauthenticated(),
        }
        .build()?;
        let verifier = PeerVerifier { chain, trust_domain: trust_domain.clone() };
        let mut config =
            ServerConfig::builder_with_details(Arc::clone(&self.provider), Arc::clone(&self.clock))
                .with_protocol_versions(&[&TLS13])?
                .with_client_cert_verifier(Arc::new(verifier))
                .with_single_cert(identity.chain.clone(), identity.key.private_key_der())?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        Ok(config)
    }

    /// A certified client's side.
    ///
    /// # Errors
    ///
    /// [`TlsError`].
    pub fn client(&self, identity: &ClientIdentity) -> Result<ClientConfig, TlsError> {
        let chain = WebPkiServerVerifier::builder_with_provider(
            identity.bundle().store(),
            Arc::clone(&self.provider),
        )
        .build()?;
        let config = self
            .client_builder()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(ServerVerifier { chain }))
            .with_client_auth_cert(identity.chain().to_vec(), identity.key().private_key_der())?;
        Ok(finish(config))
    }

    /// The side of a host that has only a join token: no certificate of its own, and the server must
    /// present the root with the pinned key, a chain to it, and the name that was dialled. The
    /// handshake fails otherwise, before any byte of the application is sent.
    ///
    /// # Errors
    ///
    /// [`TlsError`].
    pub fn enrolment_client(&self, pin: SpkiPin) -> Result<ClientConfig, TlsError> {
        let verifier = PinnedVerifier { pin, provider: Arc::clone(&self.provider) };
        let config = self
            .client_builder()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        Ok(finish(config))
    }

    fn client_builder(
        &self,
    ) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>, rustls::Error> {
        ClientConfig::builder_with_details(Arc::clone(&self.provider), Arc::clone(&self.clock))
            .with_protocol_versions(&[&TLS13])
    }
}

impl ServerIdentity {
    /// The leaf first; the root last, for clients that know only its pin.
    #[must_use]
    pub fn new(chain: Vec<CertificateDer<'static>>, key: HostKey) -> Self {
        Self { chain, key }
    }

    /// From a PEM chain in the same order.
    ///
    /// # Errors
    ///
    /// [`PemError`].
    pub fn from_pem(chain: &str, key: HostKey) -> Result<Self, PemError> {
        Ok(Self::new(pem::certificates(chain)?, key))
    }

    /// The chain.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The chain as PEM.
    #[must_use]
    pub fn chain_pem(&self) -> String {
        pem::encode_certificates(&self.chain)
    }

    /// The key, for instance to save it.
    #[must_use]
    pub fn key(&self) -> &HostKey {
        &self.key
    }
}

/// The peer of a finished handshake, `None` when it has no certificate (only possible with
/// [`Admission::CertifiedOrNew`]).
///
/// # Errors
///
/// [`IdentityError`], which a connection made with [`Tls::server`] and the same trust domain does
/// not produce.
pub fn peer_of_connection(
    connection: &ServerConnection,
    trust_domain: &TrustDomain,
) -> Result<Option<Peer>, IdentityError> {
    connection
        .peer_certificates()
        .and_then(<[CertificateDer<'_>]>::first)
        .map(|certificate| peer_identity(certificate, trust_domain))
        .transpose()
}

impl fmt::Debug for Tls {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Tls").finish_non_exhaustive()
    }
}

impl fmt::Debug for ServerIdentity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("ServerIdentity").field("key", &self.key).finish_non_exhaustive()
    }
}

fn finish(mut config: ClientConfig) -> ClientConfig {
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config
}
