//! The certificate authority of a fleet: one root key that certifies clients and servers.
//!
//! It decides what stands in a certificate; of a request it takes the public key only. It keeps no
//! list of what it issued, and a rotation is two authorities side by side, told apart by their
//! [`KeyId`].

use std::path::Path;
use std::time::{Duration, SystemTime};

use rand::CryptoRng;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, ServerName};
use time::OffsetDateTime;

use crate::bundle::{BundleError, CaBundle};
use crate::certificate::{self, Facts};
use crate::identity::{IdentityNameError, PeerIdentity, TrustDomain};
use crate::key::{Csr, HostKey, KeyError};
use crate::pem::{self, PemError};
use crate::pin::SpkiPin;
use crate::private_file::{self, PrivateFileError};
use crate::serial::{KeyId, Serial};
use crate::tls::ServerIdentity;

/// File of the root's key, mode 0600.
const KEY_FILE: &str = "root-key.pem";
/// File of the root certificate.
const ROOT_FILE: &str = "root.pem";
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A root key and its certificate.
pub struct CertificateAuthority {
    issuer: Issuer<'static, HostKey>,
    root: CertificateDer<'static>,
    trust_domain: TrustDomain,
    key_id: KeyId,
    not_after: SystemTime,
}

/// What to certify.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssueRequest {
    /// Whom for.
    pub subject: Subject,
    /// Valid from; a few minutes in the past forgive a host whose clock is behind.
    pub not_before: SystemTime,
    /// Valid for, rounded down to whole seconds.
    pub lifetime: Duration,
}

/// Whom a certificate is for; decides its only extended key usage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// A client: client authentication, one SPIFFE ID.
    Client(PeerIdentity),
    /// A server: server authentication, these DNS names and addresses.
    Server(Vec<ServerName<'static>>),
}

/// A new certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    /// The certificate itself.
    pub certificate: CertificateDer<'static>,
    /// Its serial number.
    pub serial: Serial,
    /// Valid from, in whole seconds.
    pub not_before: SystemTime,
    /// Valid until, in whole seconds.
    pub not_after: SystemTime,
}

/// Why an authority could not be made, saved or loaded.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The key could not be made or loaded.
    #[error("cannot use key of the authority")]
    Key(#[from] KeyError),
    /// A file could not be read or written.
    #[error("cannot use files of the authority")]
    File(#[from] PrivateFileError),
    /// The root certificate could not be made.
    #[error("cannot make root certificate")]
    Create(#[source] rcgen::Error),
    /// The lifetime leads beyond what a date can express.
    #[error("root certificate would end beyond the last possible date")]
    Date,
    /// The certificate file is no PEM text.
    #[error("cannot read root certificate")]
    Pem(#[from] PemError),
    /// The certificate file is unusable as an authority.
    #[error("root certificate is unusable")]
    Root(#[source] BundleError),
    /// The certificate file was not made by this program.
    #[error("root certificate does not name one trust domain and its key")]
    NotOurs,
    /// The trust domain in the certificate is invalid.
    #[error("trust domain of the root certificate is invalid")]
    TrustDomain(#[source] IdentityNameError),
    /// Key and certificate files are not of one pair.
    #[error("key and root certificate do not belong together")]
    Mismatch,
}

/// Why nothing was issued.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// Lifetime of zero, or dates beyond what can be expressed.
    #[error("lifetime of the certificate is impossible")]
    Lifetime,
    /// The certificate would outlive the root.
    #[error("certificate would outlive the authority, which must be rotated first")]
    OutlivesAuthority,
    /// A server certificate without names.
    #[error("server certificate needs at least one name or address")]
    NoNames,
    /// The key for a new server could not be made.
    #[error("cannot make server key")]
    Key(#[from] KeyError),
    /// The certificate could not be made.
    #[error("cannot make certificate")]
    Create(#[source] rcgen::Error),
}

impl CertificateAuthority {
    /// How long a root lives.
    pub const ROOT_LIFETIME: Duration = DAY.saturating_mul(3650);
    /// How long an agent's certificate lives.
    pub const AGENT_LIFETIME: Duration = DAY.saturating_mul(7);

    /// A new root key and certificate, valid from `not_before` for [`Self::ROOT_LIFETIME`].
    ///
    /// # Errors
    ///
    /// [`AuthorityError`].
    pub fn create(
        trust_domain: TrustDomain,
        not_before: SystemTime,
        rng: &mut impl CryptoRng,
    ) -> Result<Self, AuthorityError> {
        let key = HostKey::generate()?;
        let serial = Serial::random(rng);
        let (from, until) =
            validity(not_before, Self::ROOT_LIFETIME).ok_or(AuthorityError::Date)?;
        let mut parameters = parameters(&serial, from, until);
        // The short number keeps the names of two generations apart.
        let generation: String = serial.to_string().chars().take(8).collect();
        parameters.distinguished_name.push(DnType::CommonName, format!("claw root {generation}"));
        parameters.subject_alt_names =
            vec![SanType::URI(ia5(&trust_domain.spiffe_id()).map_err(AuthorityError::Create)?)];
        parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let root = parameters.self_signed(&key).map_err(AuthorityError::Create)?;
        Self::assemble(key, root.der().clone())
    }

    /// Loads an authority that [`Self::save`] wrote.
    ///
    /// # Errors
    ///
    /// [`AuthorityError`]; a key file that others can read is refused.
    pub fn load(directory: &Path) -> Result<Self, AuthorityError> {
        let key = HostKey::load(&directory.join(KEY_FILE))?;
        let text = private_file::read_text(&directory.join(ROOT_FILE))?;
        let root = pem::certificates(&text)?.swap_remove(0);
        Self::assemble(key, root)
    }

    /// Writes key (0600) and certificate into `directory`, which is created with mode 0700; never
    /// replaces an authority.
    ///
    /// # Errors
    ///
    /// [`AuthorityError::File`].
    pub fn save(&self, directory: &Path) -> Result<(), AuthorityError> {
        private_file::ensure_directory(directory)?;
        self.issuer.key().save(&directory.join(KEY_FILE))?;
        let root = directory.join(ROOT_FILE);
        private_file::create(&root, self.root_pem().as_bytes(), private_file::PUBLIC)?;
        Ok(())
    }

    /// Certifies the public key of a request, and nothing else of it.
    ///
    /// # Errors
    ///
    /// [`IssueError`].
    pub fn issue_from_csr(
        &self,
        csr: &Csr,
        request: &IssueRequest,
        rng: &mut impl CryptoRng,
    ) -> Result<Issued, IssueError> {
        let key = rcgen::SubjectPublicKeyInfo::from_der(csr.spki()).map_err(IssueError::Create)?;
        self.issue(&key, request, rng)
    }

    /// Makes a key and a certificate for a server; its chain includes the root, so that a client
    /// that knows only the pin can check it.
    ///
    /// # Errors
    ///
    /// [`IssueError`].
    pub fn issue_server(
        &self,
        names: Vec<ServerName<'static>>,
        not_before: SystemTime,
        lifetime: Duration,
        rng: &mut impl CryptoRng,
    ) -> Result<ServerIdentity, IssueError> {
        let key = HostKey::generate()?;
        let request = IssueRequest { subject: Subject::Server(names), not_before, lifetime };
        let issued = self.issue(&key, &request, rng)?;
        Ok(ServerIdentity::new(vec![issued.certificate, self.root.clone()], key))
    }

    /// The root certificate as PEM.
    #[must_use]
    pub fn root_pem(&self) -> String {
        pem::encode_certificates(std::slice::from_ref(&self.root))
    }

    /// What peers of this authority trust.
    ///
    /// # Errors
    ///
    /// [`BundleError`] cannot occur for a root that this program made.
    pub fn bundle(&self) -> Result<CaBundle, BundleError> {
        CaBundle::new(vec![self.root.clone()])
    }

    /// The pin for join tokens.
    #[must_use]
    pub fn spki_pin(&self) -> SpkiPin {
        self.issuer.key().pin()
    }

    /// What stands as [`crate::Peer::issuer_key_id`] in the certificates of this authority.
    #[must_use]
    pub fn key_id(&self) -> &KeyId {
        &self.key_id
    }

    /// The fleet.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// When the root ends; nothing is issued beyond.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    fn assemble(key: HostKey, root: CertificateDer<'static>) -> Result<Self, AuthorityError> {
        CaBundle::new(vec![root.clone()]).map_err(AuthorityError::Root)?;
        let facts = certificate::read(&root).ok_or(AuthorityError::NotOurs)?;
        if facts.pin != key.pin() {
            return Err(AuthorityError::Mismatch);
        }
        let trust_domain = root_trust_domain(&facts)?;
        let key_id = facts.key_id.ok_or(AuthorityError::NotOurs)?;
        let issuer = Issuer::from_ca_cert_der(&root, key).map_err(AuthorityError::Create)?;
        Ok(Self { issuer, root, trust_domain, key_id, not_after: facts.not_after })
    }

    fn issue(
        &self,
        key: &impl PublicKeyData,
        request: &IssueRequest,
        rng: &mut impl CryptoRng,
    ) -> Result<Issued, IssueError> {
        let serial = Serial::random(rng);
        let (from, until) =
            validity(request.not_before, request.lifetime).ok_or(IssueError::Lifetime)?;
        if SystemTime::from(until) > self.not_after {
            return Err(IssueError::OutlivesAuthority);
        }
        let mut parameters = parameters(&serial, from, until);
        self.describe(&mut parameters, &request.subject)?;
        let certificate = parameters.signed_by(key, &self.issuer).map_err(IssueError::Create)?;
        Ok(Issued {
            certificate: certificate.der().clone(),
            serial,
            not_before: from.into(),
            not_after: until.into(),
        })
    }

    fn describe(
        &self,
        parameters: &mut CertificateParams,
        subject: &Subject,
    ) -> Result<(), IssueError> {
        let (usage, names) = match subject {
            Subject::Client(identity) => {
                let name = identity.to_string();
                parameters.distinguished_name.push(DnType::CommonName, name);
                let uri = ia5(&identity.spiffe_id(&self.trust_domain));
                (
                    ExtendedKeyUsagePurpose::ClientAuth,
                    vec![SanType::URI(uri.map_err(IssueError::Create)?)],
                )
            }
            Subject::Server(names) if names.is_empty() => return Err(IssueError::NoNames),
            Subject::Server(names) => {
                parameters.distinguished_name.push(DnType::CommonName, "claw server");
                let names = names.iter().map(alternative_name).collect::<Result<_, _>>();
                (ExtendedKeyUsagePurpose::ServerAuth, names.map_err(IssueError::Create)?)
            }
        };
        parameters.subject_alt_names = names;
        parameters.extended_key_usages = vec![usage];
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.is_ca = IsCa::ExplicitNoCa;
        parameters.use_authority_key_identifier_extension = true;
        Ok(())
    }
}

impl std::fmt::Debug for CertificateAuthority {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("CertificateAuthority")
            .field("trust_domain", &self.trust_domain)
            .field("key_id", &self.key_id)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

impl Issued {
    /// The certificate as PEM.
    #[must_use]
    pub fn to_pem(&self) -> String {
        pem::encode_certificates(std::slice::from_ref(&self.certificate))
    }
}

fn parameters(serial: &Serial, from: OffsetDateTime, until: OffsetDateTime) -> CertificateParams {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = DistinguishedName::new();
    parameters.serial_number = Some(SerialNumber::from_slice(serial.as_bytes()));
    parameters.not_before = from;
    parameters.not_after = until;
    parameters
}

/// Both ends in whole seconds, within years 1950 to 9999 (RFC 5280, section 4.1.2.5).
fn validity(
    not_before: SystemTime,
    lifetime: Duration,
) -> Option<(OffsetDateTime, OffsetDateTime)> {
    let seconds = not_before.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs();
    let end = seconds.checked_add(lifetime.as_secs())?;
    let moment = |seconds| {
        i64::try_from(seconds).ok().and_then(|s| OffsetDateTime::from_unix_timestamp(s).ok())
    };
    if end == seconds { None } else { moment(seconds).zip(moment(end)) }
}

fn alternative_name(name: &ServerName<'static>) -> Result<SanType, rcgen::Error> {
    match name {
        ServerName::DnsName(name) => Ok(SanType::DnsName(ia5(name.as_ref())?)),
        ServerName::IpAddress(address) => Ok(SanType::IpAddress((*address).into())),
        _ => Err(rcgen::Error::InvalidNameType),
    }
}

fn ia5(text: &str) -> Result<rcgen::string::Ia5String, rcgen::Error> {
    text.try_into()
}

fn root_trust_domain(facts: &Facts) -> Result<TrustDomain, AuthorityError> {
    let [uri] = facts.uris.as_slice() else {
        return Err(AuthorityError::NotOurs);
    };
    let domain = uri.strip_prefix("spiffe://").ok_or(AuthorityError::NotOurs)?;
    TrustDomain::parse(domain).map_err(AuthorityError::TrustDomain)
}
