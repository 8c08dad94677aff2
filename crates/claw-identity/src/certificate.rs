//! Facts read out of an X.509 certificate, without any judgement of trust.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer as _;
use x509_parser::time::ASN1Time;

use crate::pin::SpkiPin;
use crate::serial::{KeyId, Serial};

/// What one certificate says.
#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) serial: Option<Serial>,
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
    pub(crate) issuer_key_id: Option<KeyId>,
    pub(crate) key_id: Option<KeyId>,
    pub(crate) pin: SpkiPin,
    pub(crate) is_authority: bool,
    pub(crate) uris: Vec<String>,
    /// Subject alternative names that are no URIs.
    pub(crate) other_names: usize,
    pub(crate) usage: Usage,
}

/// The extended key usages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Usage {
    ClientOnly,
    ServerOnly,
    /// None, both, or anything more.
    Other,
}

/// `None` for what is no certificate, has bytes behind it, or repeats an extension.
pub(crate) fn read(certificate: &CertificateDer<'_>) -> Option<Facts> {
    let (rest, parsed) = X509Certificate::from_der(certificate).ok()?;
    if !rest.is_empty() {
        return None;
    }
    // Fails when an extension stands twice.
    let extensions = parsed.tbs_certificate.extensions_map().ok()?;
    let mut facts = Facts {
        serial: Serial::from_bytes(parsed.raw_serial()).ok(),
        not_before: system_time(parsed.validity().not_before),
        not_after: system_time(parsed.validity().not_after),
        issuer_key_id: None,
        key_id: None,
        pin: SpkiPin::of_spki(parsed.public_key().raw),
        is_authority: false,
        uris: Vec::new(),
        other_names: 0,
        usage: Usage::Other,
    };
    for extension in extensions.values() {
        note(&mut facts, extension.parsed_extension());
    }
    Some(facts)
}

fn note(facts: &mut Facts, extension: &ParsedExtension<'_>) {
    match extension {
        ParsedExtension::AuthorityKeyIdentifier(authority) => {
            let id = authority.key_identifier.as_ref();
            facts.issuer_key_id = id.and_then(|id| KeyId::from_bytes(id.0).ok());
        }
        ParsedExtension::SubjectKeyIdentifier(id) => {
            facts.key_id = KeyId::from_bytes(id.0).ok();
        }
        ParsedExtension::BasicConstraints(constraints) => facts.is_authority = constraints.ca,
        ParsedExtension::ExtendedKeyUsage(usage) => {
            let more = usage.any
                || usage.code_signing
                || usage.email_protection
                || usage.time_stamping
                || usage.ocsp_signing
                || !usage.other.is_empty();
            facts.usage = match (more, usage.client_auth, usage.server_auth) {
                (false, true, false) => Usage::ClientOnly,
                (false, false, true) => Usage::ServerOnly,
                _ => Usage::Other,
            };
        }
        ParsedExtension::SubjectAlternativeName(names) => {
            for name in &names.general_names {
                match name {
                    GeneralName::URI(uri) => facts.uris.push((*uri).to_owned()),
                    _ => facts.other_names += 1,
                }
            }
        }
        _ => {}
    }
}

fn system_time(time: ASN1Time) -> SystemTime {
    let distance = Duration::from_secs(time.timestamp().unsigned_abs());
    let result = if time.timestamp() < 0 {
        UNIX_EPOCH.checked_sub(distance)
    } else {
        UNIX_EPOCH.checked_add(distance)
    };
    // Four-digit years fit on every platform with 64-bit time.
    result.unwrap_or(UNIX_EPOCH)
}
