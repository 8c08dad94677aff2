//! The coordinator's own certificate: issued by its authority, renewed long before it ends.
//!
//! ```text
//! server/                      0700
//!   0001790000000000/key.pem   0600; the directory's name is when it was issued, in milliseconds
//!   0001790000000000/cert.pem  the chain, root included, so that a host can check its pin
//!   0001790000000000/names     one name per line
//! ```
//!
//! The newest complete generation counts; an interrupted one lacks `names` and is skipped.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use claw_identity::{
    Admission, AuthorityError, BundleError, CertificateAuthority, HostKey, IssueError, KeyError,
    PemError, ServerIdentity, Tls, TlsError,
};
use rustls::ServerConfig;
use rustls_pki_types::ServerName;

use crate::clock::{Clock, timestamp};

/// Directory below the data directory.
const DIRECTORY: &str = "server";
/// How long a certificate lives.
const LIFETIME: Duration = Duration::from_secs(90 * 24 * 3600);
/// It is replaced at a third of its life.
const RENEW_AFTER: Duration = Duration::from_secs(30 * 24 * 3600);
/// Valid from this long ago, for hosts whose clock is behind.
const BACKDATE: Duration = Duration::from_secs(24 * 3600);

/// Why there is no server certificate.
#[derive(Debug, thiserror::Error)]
pub enum ServerCertificateError {
    /// A file.
    #[error("cannot use {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A name that is neither a DNS name nor an address.
    #[error("{name:?} is neither a dns name nor an address")]
    Name {
        /// The name.
        name: String,
    },
    /// The key.
    #[error("cannot use the server key")]
    Key(#[from] KeyError),
    /// The chain.
    #[error("cannot read the server certificate")]
    Pem(#[from] PemError),
    /// Issuing.
    #[error("cannot issue the server certificate")]
    Issue(#[from] IssueError),
    /// The authority.
    #[error("cannot use the authority")]
    Authority(#[from] AuthorityError),
    /// The roots that clients are checked against.
    #[error("cannot use the roots")]
    Bundle(#[from] BundleError),
    /// TLS.
    #[error("cannot configure tls")]
    Tls(#[from] TlsError),
}

/// Where the certificates lie and who makes them.
#[derive(Debug)]
pub struct ServerCertificates<'a> {
    /// The data directory.
    pub data_dir: &'a Path,
    /// Issues them.
    pub authority: &'a CertificateAuthority,
    /// What the certificate must name.
    pub names: &'a [String],
    /// The time.
    pub clock: &'a Clock,
}

impl ServerCertificates<'_> {
    /// The TLS configuration with the newest certificate, which is made or replaced when due.
    ///
    /// # Errors
    /// [`ServerCertificateError`]
    pub fn config(&self) -> Result<ServerConfig, ServerCertificateError> {
        let identity = match self.newest()? {
            Some((issued, names, identity)) if !self.is_due(issued) && names == self.names => {
                identity
            }
            _ => self.issue()?,
        };
        let tls = Tls::new(claw_identity::provider::aws_lc_rs());
        let (roots, domain) = (self.authority.bundle()?, self.authority.trust_domain());
        Ok(tls.server(&identity, &roots, domain, Admission::CertifiedOrNew)?)
    }

    /// Name of the newest generation, to notice a new one.
    ///
    /// # Errors
    /// [`ServerCertificateError::File`]
    pub fn newest_generation(&self) -> Result<Option<String>, ServerCertificateError> {
        Ok(self.generations()?.pop())
    }

    /// Whether a certificate issued then must be replaced.
    fn is_due(&self, issued_ms: i64) -> bool {
        let age = self.clock.now().millis().saturating_sub(issued_ms);
        u128::try_from(age).is_ok_and(|age| age >= RENEW_AFTER.as_millis())
    }

    /// Whether the newest certificate must be replaced, or there is none.
    ///
    /// # Errors
    /// [`ServerCertificateError::File`]
    pub fn renewal_is_due(&self) -> Result<bool, ServerCertificateError> {
        let newest = self.newest_generation()?;
        Ok(newest.and_then(|name| name.parse().ok()).is_none_or(|issued| self.is_due(issued)))
    }

    fn newest(&self) -> Result<Option<(i64, Vec<String>, ServerIdentity)>, ServerCertificateError> {
        let Some(name) = self.newest_generation()? else { return Ok(None) };
        let directory = self.directory().join(&name);
        let read = |file: &str| {
            let path = directory.join(file);
            fs::read_to_string(&path)
                .map_err(|source| ServerCertificateError::File { path, source })
        };
        let names = read("names")?.lines().map(str::to_owned).collect();
        let key = HostKey::load(&directory.join("key.pem"))?;
        let identity = ServerIdentity::from_pem(&read("cert.pem")?, key)?;
        Ok(Some((name.parse().unwrap_or(0), names, identity)))
    }

    fn issue(&self) -> Result<ServerIdentity, ServerCertificateError> {
        let names = self.names.iter().map(|name| parse_name(name)).collect::<Result<_, _>>()?;
        let not_before = self.clock.system_time() - BACKDATE;
        let lifetime = LIFETIME + BACKDATE;
        let rng = &mut rand::rng();
        let identity = self.authority.issue_server(names, not_before, lifetime, rng)?;
        let issued = timestamp(self.clock.system_time()).millis();
        let directory = self.directory().join(format!("{issued:016}"));
        let failed = |source| ServerCertificateError::File { path: directory.clone(), source };
        fs::DirBuilder::new().mode(0o700).recursive(true).create(&directory).map_err(failed)?;
        identity.key().save(&directory.join("key.pem"))?;
        fs::write(directory.join("cert.pem"), identity.chain_pem()).map_err(failed)?;
        fs::write(directory.join("names"), self.names.join("\n")).map_err(failed)?;
        for old in self.generations()?.iter().rev().skip(2) {
            fs::remove_dir_all(self.directory().join(old)).map_err(failed)?;
        }
        Ok(identity)
    }

    /// Complete generations, oldest first.
    fn generations(&self) -> Result<Vec<String>, ServerCertificateError> {
        let directory = self.directory();
        let failed = |source| ServerCertificateError::File { path: directory.clone(), source };
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(failed(source)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed)?;
            if entry.path().join("names").exists() {
                names.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    fn directory(&self) -> PathBuf {
        self.data_dir.join(DIRECTORY)
    }
}

/// A DNS name or an address.
///
/// # Errors
/// [`ServerCertificateError::Name`]
pub fn parse_name(name: &str) -> Result<ServerName<'static>, ServerCertificateError> {
    ServerName::try_from(name.to_owned())
        .map_err(|_invalid| ServerCertificateError::Name { name: name.to_owned() })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use claw_identity::TrustDomain;

    use super::*;

    #[test]
    fn it_is_made_once_and_replaced_when_due_or_renamed() {
        let data_dir = tempfile::tempdir().unwrap();
        let system = Clock::system();
        let ahead = Arc::new(AtomicU64::new(0));
        let shifted = Arc::clone(&ahead);
        let clock = Clock::from_fn(move || {
            system.system_time() + Duration::from_secs(shifted.load(Ordering::Relaxed))
        });
        let domain = TrustDomain::parse("fleet.test").unwrap();
        let authority =
            CertificateAuthority::create(domain, clock.system_time(), &mut rand::rng()).unwrap();
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let of = |names| ServerCertificates {
            data_dir: data_dir.path(),
            authority: &authority,
            names,
            clock: &clock,
        };
        let certificates = of(&names);
        assert!(certificates.renewal_is_due().unwrap());
        certificates.config().unwrap();
        let first = certificates.newest_generation().unwrap();
        certificates.config().unwrap();
        assert_eq!(certificates.newest_generation().unwrap(), first);
        assert!(!certificates.renewal_is_due().unwrap());

        ahead.store(RENEW_AFTER.as_secs(), Ordering::Relaxed);
        assert!(certificates.renewal_is_due().unwrap());
        certificates.config().unwrap();
        let second = certificates.newest_generation().unwrap();
        assert!(second > first);

        ahead.store(RENEW_AFTER.as_secs() + 1, Ordering::Relaxed);
        of(&names[..1]).config().unwrap();
        assert!(certificates.newest_generation().unwrap() > second);
        assert!(matches!(
            of(&["not a name".to_owned()]).config(),
            Err(ServerCertificateError::Name { .. })
        ));
    }
}
