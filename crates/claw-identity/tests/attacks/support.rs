//! A fleet, a forger who signs anything, and TLS handshakes in memory.

use std::fmt;
use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use claw_identity::{
    CaBundle, CertificateAuthority, ClientIdentity, HostKey, IssueRequest, PeerIdentity, Role,
    ServerIdentity, Subject, Tls, TrustDomain, provider,
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyUsagePurpose, SanType};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection};

pub(crate) const DAY: Duration = Duration::from_secs(86_400);
pub(crate) const SECRET: &[u8] = b"the secret of the join token";
pub(crate) const SERVER: &str = "coordinator.fleet.test";

/// The present of all tests.
pub(crate) fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_900_000_000)
}

pub(crate) fn domain() -> TrustDomain {
    TrustDomain::parse("fleet.test").unwrap()
}

pub(crate) fn agent(name: &str) -> PeerIdentity {
    PeerIdentity::new(Role::Agent, name).unwrap()
}

pub(crate) fn authority() -> CertificateAuthority {
    CertificateAuthority::create(domain(), now() - DAY, &mut rand::rng()).unwrap()
}

pub(crate) fn server_name() -> ServerName<'static> {
    SERVER.try_into().unwrap()
}

/// Certificate for `subject`, good from one hour ago for seven days.
pub(crate) fn client_of(authority: &CertificateAuthority, subject: PeerIdentity) -> ClientIdentity {
    let key = HostKey::generate().unwrap();
    let request = IssueRequest {
        subject: Subject::Client(subject),
        not_before: now() - Duration::from_secs(3600),
        lifetime: CertificateAuthority::AGENT_LIFETIME,
    };
    let csr = key.csr().unwrap();
    let issued = authority.issue_from_csr(&csr, &request, &mut rand::rng()).unwrap();
    let chain = vec![issued.certificate];
    ClientIdentity::new(Arc::new(key), chain, authority.bundle().unwrap()).unwrap()
}

pub(crate) fn server_of(authority: &CertificateAuthority) -> ServerIdentity {
    let names = vec![server_name(), "192.0.2.7".try_into().unwrap()];
    authority.issue_server(names, now() - DAY, 30 * DAY, &mut rand::rng()).unwrap()
}

/// A clock that stands.
#[derive(Debug)]
struct Standing(SystemTime);

impl TimeProvider for Standing {
    fn current_time(&self) -> Option<UnixTime> {
        self.0.duration_since(UNIX_EPOCH).ok().map(UnixTime::since_unix_epoch)
    }
}

/// The coordinator's way, at a given time.
pub(crate) fn tls_at(time: SystemTime) -> Tls {
    Tls::with_clock(provider::aws_lc_rs(), Arc::new(Standing(time)))
}

/// The agent's way, at a given time.
pub(crate) fn agent_tls_at(time: SystemTime) -> Tls {
    Tls::with_clock(provider::ring(), Arc::new(Standing(time)))
}

/// Signs whatever it is asked to, as an authority with a bug would.
pub(crate) struct Forger {
    issuer: Issuer<'static, HostKey>,
    pub(crate) root: CertificateDer<'static>,
}

impl Forger {
    pub(crate) fn new() -> Self {
        let key = HostKey::generate().unwrap();
        let mut parameters = dated();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let root = parameters.self_signed(&key).unwrap().der().clone();
        Self { issuer: Issuer::from_ca_cert_der(&root, key).unwrap(), root }
    }

    pub(crate) fn bundle(&self) -> CaBundle {
        CaBundle::new(vec![self.root.clone()]).unwrap()
    }

    /// A good agent's certificate except for what `change` does to it.
    pub(crate) fn client(
        &self,
        change: impl FnOnce(&mut CertificateParams),
    ) -> (HostKey, CertificateDer<'static>) {
        let key = HostKey::generate().unwrap();
        let mut parameters = dated();
        parameters.subject_alt_names = vec![uri("spiffe://fleet.test/agent/host-1")];
        parameters.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.use_authority_key_identifier_extension = true;
        change(&mut parameters);
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
        (key, certificate.der().clone())
    }

    /// An authority's certificate around somebody else's public key.
    pub(crate) fn around(
        &self,
        spki: &[u8],
        name: rcgen::DistinguishedName,
    ) -> CertificateDer<'static> {
        let mut parameters = dated();
        parameters.distinguished_name = name;
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let spki = rcgen::SubjectPublicKeyInfo::from_der(spki).unwrap();
        parameters.signed_by(&spki, &self.issuer).unwrap().der().clone()
    }
}

fn dated() -> CertificateParams {
    let mut parameters = CertificateParams::default();
    parameters.not_before = (now() - DAY).into();
    parameters.not_after = (now() + 30 * DAY).into();
    parameters
}

pub(crate) fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

pub(crate) fn dns(text: &str) -> SanType {
    SanType::DnsName(text.try_into().unwrap())
}

/// A client that presents `chain` and checks nothing of its own that would stop an attack.
pub(crate) fn raw_client(
    trusted: &CaBundle,
    chain: Vec<CertificateDer<'static>>,
    key: &HostKey,
) -> ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(trusted.roots().iter().cloned());
    let mut config =
        ClientConfig::builder_with_details(provider::ring(), Arc::new(Standing(now())))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key.private_key_der())
            .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// Both ends after everything has been exchanged.
pub(crate) struct Meeting {
    pub(crate) client: ClientConnection,
    pub(crate) server: ServerConnection,
    pub(crate) failure: Option<Failure>,
    /// Plaintext of the application that reached the server.
    pub(crate) received: Vec<u8>,
    /// Bytes that the client sent on the wire.
    pub(crate) wire: Vec<u8>,
}

/// Which end refused, and why.
#[derive(Debug)]
pub(crate) enum Failure {
    Client(rustls::Error),
    Server(rustls::Error),
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client(error) => write!(formatter, "client: {error:?}"),
            Self::Server(error) => write!(formatter, "server: {error:?}"),
        }
    }
}

/// Lets a client that has [`SECRET`] in its hands from the start meet a server.
pub(crate) fn meet(
    client: impl Into<Arc<ClientConfig>>,
    server: impl Into<Arc<ServerConfig>>,
    name: &ServerName<'static>,
) -> Meeting {
    let mut meeting = Meeting {
        client: ClientConnection::new(client.into(), name.clone()).unwrap(),
        server: ServerConnection::new(server.into()).unwrap(),
        failure: None,
        received: Vec::new(),
        wire: Vec::new(),
    };
    meeting.client.writer().write_all(SECRET).unwrap();
    loop {
        let sent = meeting.client_to_server();
        if meeting.failure.is_some() {
            break;
        }
        let answered = meeting.server_to_client();
        if meeting.failure.is_some() || !(sent || answered) {
            break;
        }
    }
    meeting
}

impl Meeting {
    #[track_caller]
    pub(crate) fn succeeded(self) -> Self {
        if let Some(failure) = &self.failure {
            panic!("refused: {failure}");
        }
        assert!(!self.client.is_handshaking() && !self.server.is_handshaking());
        assert_eq!(self.received, SECRET);
        self
    }

    /// The server refused with an error that contains `reason`, and read nothing.
    #[track_caller]
    pub(crate) fn refused_by_server(self, reason: &str) {
        let Some(Failure::Server(error)) = &self.failure else {
            panic!("not refused by the server: {:?}", self.failure);
        };
        let text = format!("{error:?}");
        assert!(text.contains(reason), "{text} is not about {reason}");
        assert!(self.received.is_empty());
    }

    /// The client refused with an error that contains `reason`, and the secret stayed with it.
    #[track_caller]
    pub(crate) fn refused_by_client(mut self, reason: &str) {
        let Some(Failure::Client(error)) = &self.failure else {
            panic!("not refused by the client: {:?}", self.failure);
        };
        let text = format!("{error:?}");
        assert!(text.contains(reason), "{text} is not about {reason}");
        // The server gets the farewell too, and finds an alert, not data.
        self.client_to_server();
        assert!(
            matches!(self.failure, Some(Failure::Server(rustls::Error::AlertReceived(_)))),
            "{:?}",
            self.failure
        );
        assert!(self.received.is_empty());
        // On the wire: one hello, one alert; no room for the secret after the hello.
        assert!(self.client.is_handshaking());
        let records = records(&self.wire);
        let after_hello: usize = records.iter().skip(1).map(Vec::len).sum();
        assert!(after_hello < 40 + SECRET.len(), "{after_hello} bytes after the hello");
    }

    fn client_to_server(&mut self) -> bool {
        let mut bytes = Vec::new();
        while self.client.wants_write() {
            self.client.write_tls(&mut bytes).unwrap();
        }
        self.wire.extend_from_slice(&bytes);
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            self.server.read_tls(&mut rest).unwrap();
            match self.server.process_new_packets() {
                Ok(state) => {
                    let mut plaintext = vec![0; state.plaintext_bytes_to_read()];
                    self.server.reader().read_exact(&mut plaintext).unwrap();
                    self.received.extend(plaintext);
                }
                Err(error) => {
                    self.failure = Some(Failure::Server(error));
                    return false;
                }
            }
        }
        !bytes.is_empty()
    }

    fn server_to_client(&mut self) -> bool {
        let mut bytes = Vec::new();
        while self.server.wants_write() {
            self.server.write_tls(&mut bytes).unwrap();
        }
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            self.client.read_tls(&mut rest).unwrap();
            if let Err(error) = self.client.process_new_packets() {
                self.failure = Some(Failure::Client(error));
                return false;
            }
        }
        !bytes.is_empty()
    }
}

/// TLS records of a byte stream (RFC 8446, section 5.1), change_cipher_spec left out.
fn records(mut wire: &[u8]) -> Vec<Vec<u8>> {
    let mut records = Vec::new();
    while let [kind, _, _, high, low, rest @ ..] = wire {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let (body, behind) = rest.split_at(length);
        if *kind != 20 {
            records.push(body.to_vec());
        }
        wire = behind;
    }
    records
}
