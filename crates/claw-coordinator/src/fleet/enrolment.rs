//! How a host gets a certificate: once with a join token, then by renewal.
//!
//! Of a request only the public key goes into a certificate. Using a token up and recording the
//! certificate's serial is one transaction, so of two racing hosts one gets a certificate.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use claw_core::event::Severity;
use claw_core::name::HostName;
use claw_core::time::Timestamp;
use claw_identity::{Csr, IssueRequest, JoinToken, Peer, SecretHash, Subject, TokenId};
use claw_proto::convert::violation::Violations;
use claw_store::rusqlite::Connection;

use super::Fleet;
use super::hosts::agent_identity;
use crate::clock::timestamp;
use crate::refusal::{Fault, Refusal};
use crate::store::audit::{self, Entry};
use crate::store::certificates::{self, CertificateRow};
use crate::store::events::{self, OwnEvent};
use crate::store::hosts;
use crate::store::mutation::Effects;
use crate::store::tokens::{self, TokenRow};

/// How long a lost reply can be asked for again.
pub const REPLY_KEPT: Duration = Duration::from_secs(600);
/// Certificates are valid from this long ago, for hosts whose clock is behind.
const BACKDATE: Duration = Duration::from_secs(300);

/// A request to join. `Debug` hides the secret.
pub struct Enrolment {
    /// The token's id.
    pub token_id: String,
    /// The token's secret.
    pub token_secret: Vec<u8>,
    /// The certificate signing request.
    pub csr_der: Vec<u8>,
    /// The host that wants to join.
    pub host: String,
    /// Where it comes from.
    pub source: String,
}

impl std::fmt::Debug for Enrolment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Enrolment")
            .field("token_id", &self.token_id)
            .field("host", &self.host)
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

/// The answer to an enrolment or renewal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certified {
    /// The certificate.
    pub chain_pem: String,
    /// Trusted roots.
    pub bundle_pem: String,
    /// The host.
    pub host: HostName,
}

/// The checked parts of a request to join.
struct Claim {
    token_id: String,
    secret_hash: SecretHash,
    host: HostName,
    source: String,
}

impl Fleet {
    /// Exchanges a join token for a certificate.
    ///
    /// # Errors
    /// [`Refusal::Invalid`], [`Refusal::Unauthenticated`].
    pub async fn enrol(&self, request: Enrolment) -> Result<Certified, Refusal> {
        let claim = check_claim(&request)?;
        let now = self.clock.now();
        let id = claim.token_id.clone();
        let token = self.store.read(|connection, _keys| tokens::find(connection, &id))?;
        let token = token.filter(|token| token.secret_hash == claim.secret_hash);
        let Some(token) = token else { return Err(bad_token()) };
        if token.host != claim.host {
            return Err(Refusal::Unauthenticated {
                reason: "TOKEN_OF_OTHER_HOST",
                description: format!(
                    "the join token is bound to another host than {}; make one for this host",
                    claim.host
                ),
            });
        }
        // A stranger without a token does not make us check signatures.
        let csr =
            Csr::from_der(&request.csr_der).map_err(|error| Refusal::field("csr_der", error))?;
        if token.used.is_some() {
            return self.answer_again(&token, &claim, &csr, now).await;
        }
        if token.expires <= now {
            return Err(bad_token());
        }
        self.consume(token, claim, &csr, now).await
    }

    /// Exchanges a certificate that is still valid for one with a new key.
    ///
    /// # Errors
    /// [`Refusal::Invalid`], [`Refusal::Denied`]
    pub async fn renew(
        &self,
        peer: &Peer,
        csr_der: &[u8],
        source: &str,
    ) -> Result<Certified, Refusal> {
        let host = HostName::parse(peer.identity.name())
            .map_err(|error| Refusal::damaged("name in a certificate", error))?;
        let csr = Csr::from_der(csr_der).map_err(|error| Refusal::field("csr_der", error))?;
        let now = self.clock.now();
        let since = crate::clock::before(now, REPLY_KEPT);
        let identity = peer.identity.clone();
        let recent = self.store.read(|connection, _keys| {
            certificates::find_recent(connection, &identity, csr.pin().into(), since)
        })?;
        if let Some(certificate) = recent {
            return self.certified(host, certificate.pem);
        }
        let certificate = self.issue(&host, &csr, now)?;
        let pem = certificate.pem.clone();
        let (job_host, source) = (host.clone(), source.to_owned());
        self.store
            .write(move |connection, _keys| {
                if hosts::find(connection, &job_host)?.is_none() {
                    return Err(unknown_host(&job_host));
                }
                let entry = Entry {
                    principal: certificate.identity.to_string(),
                    source,
                    method: "claw.node.v1.EnrolmentService/Renew".to_owned(),
                    resource: format!("hosts/{job_host}"),
                    summary: format!("certificate {} issued", certificate.serial),
                };
                record(connection, &job_host, &certificate, now, &entry)
            })
            .await?;
        self.certified(host, pem)
    }

    /// The same key soon after its enrolment gets the same certificate; anything else is an alarm.
    async fn answer_again(
        &self,
        token: &TokenRow,
        claim: &Claim,
        csr: &Csr,
        now: Timestamp,
    ) -> Result<Certified, Refusal> {
        let Some((used, serial)) = &token.used else { return Err(bad_token()) };
        let certificate =
            self.store.read(|connection, _keys| certificates::find(connection, serial))?;
        if let Some(certificate) = certificate
            && certificate.pin == csr.pin().into()
        {
            if now.since(*used) <= REPLY_KEPT && !self.denylist.contains(serial) {
                return self.certified(token.host.clone(), certificate.pem);
            }
            return Err(bad_token());
        }
        self.alert_second_key(claim, now).await?;
        Err(bad_token())
    }

    async fn alert_second_key(&self, claim: &Claim, now: Timestamp) -> Result<(), Refusal> {
        let message = format!(
            "a used join token was presented with another key, from {}: if that was not you, the \
             token has leaked; revoke the host and join it again",
            claim.source
        );
        tracing::warn!(host = %claim.host, source = %claim.source, "a used join token came again");
        let (host, source) = (claim.host.clone(), claim.source.clone());
        let resource = format!("joinTokens/{}", claim.token_id);
        self.store
            .write(move |connection, _keys| {
                let event = OwnEvent {
                    kind: "enrolment_refused",
                    severity: Severity::Error,
                    message: message.clone(),
                };
                events::append_own(connection, &host, now, &event)?;
                let entry = Entry {
                    principal: "anonymous".to_owned(),
                    source,
                    method: "claw.node.v1.EnrolmentService/Enrol".to_owned(),
                    resource,
                    summary: message,
                };
                audit::append(connection, now, &entry)
            })
            .await
    }

    async fn consume(
        &self,
        token: TokenRow,
        claim: Claim,
        csr: &Csr,
        now: Timestamp,
    ) -> Result<Certified, Refusal> {
        let certificate = self.issue(&claim.host, csr, now)?;
        let pem = certificate.pem.clone();
        let host = claim.host.clone();
        let effects = self
            .store
            .write(move |connection, _keys| {
                if !tokens::consume(connection, &token.id, now, &certificate.serial)? {
                    return Err(bad_token());
                }
                // A host has one identity: joining again ends the one before.
                let identity = &certificate.identity;
                let denied = certificates::deny_all(connection, identity, now, "joined again")?;
                hosts::set_joined(connection, &claim.host, now)?;
                let entry = Entry {
                    principal: certificate.identity.to_string(),
                    source: claim.source,
                    method: "claw.node.v1.EnrolmentService/Enrol".to_owned(),
                    resource: format!("hosts/{}", claim.host),
                    summary: format!(
                        "joined with token {}, certificate {} issued",
                        token.id, certificate.serial
                    ),
                };
                record(connection, &claim.host, &certificate, now, &entry)?;
                Ok(Effects { denied, ..Effects::default() })
            })
            .await?;
        self.apply(&effects);
        self.registry.clear_clone_alarm(&host);
        self.certified(host, pem)
    }

    fn issue(&self, host: &HostName, csr: &Csr, now: Timestamp) -> Result<CertificateRow, Refusal> {
        let identity = agent_identity(host)?;
        let request = IssueRequest {
            subject: Subject::Client(identity.clone()),
            not_before: self.clock.system_time() - BACKDATE,
            lifetime: self.agent_lifetime + BACKDATE,
        };
        let issued =
            self.authority.issue_from_csr(csr, &request, &mut rand::rng()).map_err(Fault::Issue)?;
        Ok(CertificateRow {
            pem: issued.to_pem(),
            serial: issued.serial,
            identity,
            pin: csr.pin().into(),
            issued: now,
            not_after: timestamp(issued.not_after),
        })
    }

    fn certified(&self, host: HostName, chain_pem: String) -> Result<Certified, Refusal> {
        Ok(Certified { chain_pem, bundle_pem: self.authority.root_pem(), host })
    }
}

fn record(
    connection: &Connection,
    host: &HostName,
    certificate: &CertificateRow,
    now: Timestamp,
    entry: &Entry,
) -> Result<(), Refusal> {
    certificates::insert(connection, certificate)?;
    hosts::set_certificate_expires(connection, host, certificate.not_after)?;
    audit::append(connection, now, entry)
}

fn check_claim(request: &Enrolment) -> Result<Claim, Refusal> {
    let mut violations = Violations::default();
    let token_id = violations.take("token_id", TokenId::parse(&request.token_id));
    if request.token_secret.len() != 32 {
        violations.push("token_secret", "must be 32 bytes");
    }
    if request.csr_der.is_empty() {
        violations.push("csr_der", "must not be empty");
    }
    let host = violations.take("host", HostName::parse(&request.host));
    let (Some(token_id), Some(host)) = (token_id, host) else {
        return Err(Refusal::Invalid(violations));
    };
    violations.into_result()?;
    Ok(Claim {
        secret_hash: secret_hash(&token_id, &request.token_secret)?,
        token_id: token_id.to_string(),
        host,
        source: request.source.clone(),
    })
}

/// The hash as [`JoinToken::secret_hash`] makes it; the pin plays no part in it.
fn secret_hash(id: &TokenId, secret: &[u8]) -> Result<SecretHash, Refusal> {
    let secret = URL_SAFE_NO_PAD.encode(secret);
    let pin = URL_SAFE_NO_PAD.encode([0; 32]);
    JoinToken::parse(&format!("clw1.{id}.{secret}.{pin}"))
        .map(|token| token.secret_hash())
        .map_err(|error| Refusal::field("token_secret", error))
}

/// One answer for every way in which a token is no good, so that nothing can be found out.
fn bad_token() -> Refusal {
    Refusal::Unauthenticated {
        reason: "BAD_TOKEN",
        description: "the join token is unknown, expired or used; make a new one: \
                      clawctl token create <host>"
            .to_owned(),
    }
}

pub(crate) fn unknown_host(host: &HostName) -> Refusal {
    Refusal::Denied {
        reason: "HOST_UNKNOWN",
        description: format!(
            "hosts/{host} is not registered here: register it and join it with a new token"
        ),
    }
}
