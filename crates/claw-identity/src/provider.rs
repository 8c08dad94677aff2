//! The cryptography behind TLS, chosen by each caller.
//!
//! The coordinator uses `aws_lc_rs` (faster handshakes), the agent `ring` (smaller). Neither is
//! ever installed as the default of the process.

#[cfg(any(feature = "ring", feature = "aws-lc-rs"))]
use std::sync::Arc;

#[cfg(any(feature = "ring", feature = "aws-lc-rs"))]
use rustls::crypto::CryptoProvider;

/// The ring provider.
#[cfg(feature = "ring")]
#[must_use]
pub fn ring() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The aws-lc-rs provider.
#[cfg(feature = "aws-lc-rs")]
#[must_use]
pub fn aws_lc_rs() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}
