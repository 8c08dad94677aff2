//! Authority and certificates for the fake.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use claw_identity::{
    Admission, CertificateAuthority, HostKey, IssueRequest, PeerIdentity, Role, Subject, Tls,
    TrustDomain, provider,
};
use rustls::pki_types::ServerName;
use tokio_rustls::TlsAcceptor;

const HOUR: Duration = Duration::from_secs(3600);

/// A fleet's authority.
pub(super) struct Material {
    authority: CertificateAuthority,
    begun: SystemTime,
}

impl Material {
    #[expect(clippy::disallowed_methods, reason = "certificates are checked against real time")]
    pub(super) fn new() -> Self {
        let begun = SystemTime::now() - HOUR;
        let domain = TrustDomain::parse("test.claw").unwrap();
        let authority = CertificateAuthority::create(domain, begun, &mut rand::rng()).unwrap();
        Self { authority, begun }
    }

    /// `key.pem`, `cert.pem` and `ca.pem` of `operator/alice`.
    pub(super) fn write_operator(&self, directory: &Path) {
        self.write(directory, 24 * HOUR);
    }

    /// The same with a certificate that has ended.
    pub(super) fn write_expired(&self, directory: &Path) {
        self.write(directory, HOUR / 2);
    }

    fn write(&self, directory: &Path, lifetime: Duration) {
        std::fs::create_dir(directory).unwrap();
        let key = HostKey::generate().unwrap();
        key.save(&directory.join("key.pem")).unwrap();
        let subject = Subject::Client(PeerIdentity::new(Role::Operator, "alice").unwrap());
        let request = IssueRequest { subject, not_before: self.begun, lifetime };
        let issued =
            self.authority.issue_from_csr(&key.csr().unwrap(), &request, &mut rand::rng()).unwrap();
        std::fs::write(directory.join("cert.pem"), issued.to_pem()).unwrap();
        std::fs::write(directory.join("ca.pem"), self.authority.root_pem()).unwrap();
    }

    /// Does the server's side of handshakes.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        let names = vec![ServerName::try_from("127.0.0.1").unwrap()];
        let server =
            self.authority.issue_server(names, self.begun, 24 * HOUR, &mut rand::rng()).unwrap();
        let config = Tls::new(provider::ring())
            .server(
                &server,
                &self.authority.bundle().unwrap(),
                self.authority.trust_domain(),
                Admission::Certified,
            )
            .unwrap();
        TlsAcceptor::from(Arc::new(config))
    }
}
