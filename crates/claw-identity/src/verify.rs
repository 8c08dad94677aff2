//! The certificate checks that rustls does not make by itself.
//!
//! Three verifiers around those of webpki, all TLS 1.3 only: the coordinator's view of a client
//! (must be a peer of the fleet), a client's view of the coordinator (must be a server and nothing
//! else), and the view of a host that knows only a pin.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    PeerIncompatible, RootCertStore, SignatureScheme,
};

use crate::certificate::{self, Usage};
use crate::identity::TrustDomain;
use crate::peer::peer_identity;
use crate::pin::SpkiPin;

/// Lets in only certificates that [`peer_identity`] accepts.
#[derive(Debug)]
pub(crate) struct PeerVerifier {
    pub(crate) chain: Arc<dyn ClientCertVerifier>,
    pub(crate) trust_domain: TrustDomain,
}

/// Accepts a server of a known authority.
#[derive(Debug)]
pub(crate) struct ServerVerifier {
    pub(crate) chain: Arc<WebPkiServerVerifier>,
}

/// Accepts a server whose presented root has the pinned key.
#[derive(Debug)]
pub(crate) struct PinnedVerifier {
    pub(crate) pin: SpkiPin,
    pub(crate) provider: Arc<CryptoProvider>,
}

/// Why a handshake was refused beyond what webpki says; arrives inside
/// [`CertificateError::Other`].
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("server certificate is not for server authentication only")]
    NotServer,
    #[error(
        "server presents no authority with the pinned key: the join token is for another fleet, \
         or something stands between this host and the coordinator"
    )]
    PinNotFound,
    #[error("cannot trust the pinned authority")]
    Anchor(#[source] rustls::client::VerifierBuilderError),
}

impl ClientCertVerifier for PeerVerifier {
    fn offer_client_auth(&self) -> bool {
        self.chain.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.chain.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.chain.verify_client_cert(end_entity, intermediates, now)?;
        peer_identity(end_entity, &self.trust_domain).map_err(refused)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(too_old())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.chain.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        )?;
        require_server(end_entity)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(too_old())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

impl ServerCertVerifier for PinnedVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let chain = self.anchored_chain(intermediates)?;
        ServerVerifier { chain }.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        )
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(too_old())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl PinnedVerifier {
    /// Trusts exactly the presented authority that has the pinned key.
    ///
    /// A forged certificate around that key gains nothing: the server's certificate must still be
    /// signed with it.
    fn anchored_chain(
        &self,
        intermediates: &[CertificateDer<'_>],
    ) -> Result<Arc<WebPkiServerVerifier>, Error> {
        let is_pinned = |candidate: &&CertificateDer<'_>| {
            certificate::read(candidate)
                .is_some_and(|facts| facts.is_authority && facts.pin == self.pin)
        };
        let root =
            intermediates.iter().find(is_pinned).ok_or_else(|| refused(Refusal::PinNotFound))?;
        let mut store = RootCertStore::empty();
        store.add(root.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(store), Arc::clone(&self.provider))
            .build()
            .map_err(|source| refused(Refusal::Anchor(source)))
    }
}

fn require_server(certificate: &CertificateDer<'_>) -> Result<(), Error> {
    match certificate::read(certificate) {
        Some(facts) if facts.usage == Usage::ServerOnly && !facts.is_authority => Ok(()),
        _ => Err(refused(Refusal::NotServer)),
    }
}

fn refused(reason: impl std::error::Error + Send + Sync + 'static) -> Error {
    CertificateError::Other(OtherError(Arc::new(reason))).into()
}

fn too_old() -> Error {
    PeerIncompatible::SupportedVersionsExtensionRequired.into()
}
