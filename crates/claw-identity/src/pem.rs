//! PEM text (RFC 7468): certificates in, certificates out.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::{self, PemObject as _};

/// Most certificates in one file; a bundle holds a few roots, a chain two or three links.
const MAX_CERTIFICATES: usize = 64;
/// Characters per line (RFC 7468, section 2).
const LINE: usize = 64;

/// Why a PEM text could not be used.
#[derive(Debug, thiserror::Error)]
pub enum PemError {
    /// Not PEM, or damaged.
    #[error("cannot read pem text")]
    Malformed(#[source] pem::Error),
    /// There is no certificate in it.
    #[error("pem text holds no certificate")]
    Empty,
    /// More certificates than anybody needs.
    #[error("pem text holds more than {MAX_CERTIFICATES} certificates")]
    TooMany,
}

/// All certificates of a text, at least one; other sections are skipped.
pub(crate) fn certificates(text: &str) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let found = CertificateDer::pem_slice_iter(text.as_bytes())
        .take(MAX_CERTIFICATES + 1)
        .collect::<Result<Vec<_>, _>>()
        .map_err(PemError::Malformed)?;
    match found.len() {
        0 => Err(PemError::Empty),
        count if count > MAX_CERTIFICATES => Err(PemError::TooMany),
        _ => Ok(found),
    }
}

/// Certificates one after the other.
pub(crate) fn encode_certificates(certificates: &[CertificateDer<'_>]) -> String {
    certificates.iter().map(|certificate| encode("CERTIFICATE", certificate)).collect()
}

/// One section with a line feed at its end. Not for secrets: the copies are not erased.
pub(crate) fn encode(label: &str, der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    for (index, character) in body.chars().enumerate() {
        if index > 0 && index % LINE == 0 {
            text.push('\n');
        }
        text.push(character);
    }
    text.push_str(&format!("\n-----END {label}-----\n"));
    text
}
