//! What must be known to reach a bucket, checked once.

use std::fmt;
use std::io;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

use zeroize::Zeroizing;

/// Where Debian's package `ca-certificates` keeps the authorities that browsers trust.
pub const DEBIAN_CA_FILE: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Where a repository lies, and what opens the way to it.
#[derive(Debug, Clone)]
pub struct S3Settings {
    /// `https://HOST` or `https://HOST:PORT`. Plain `http://` is allowed: what is stored is
    /// encrypted before, and a signature does not give the key away; names and sizes show.
    pub endpoint: String,
    /// The name of the region, as the storage calls it; many call their only one `us-east-1`.
    pub region: String,
    /// An existing bucket.
    pub bucket: String,
    /// The directory in the bucket, without a slash at its ends; empty for the bucket itself.
    pub prefix: String,
    /// How the bucket is named in a request.
    pub addressing: S3Addressing,
    /// The name of the key: no secret, but of no use to others either.
    pub access_key: S3Secret,
    /// The key.
    pub secret_key: S3Secret,
    /// The authorities whose certificates are trusted, in PEM form. Not read for plain HTTP.
    pub ca_file: PathBuf,
    /// How much is sent and received together, in bytes per second.
    pub bandwidth: Option<NonZeroU64>,
    /// How long is waited for what, and how often is tried again.
    pub patience: S3Patience,
}

/// How a bucket is named in a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum S3Addressing {
    /// `https://HOST/BUCKET/…`: what self-hosted storages understand.
    #[default]
    Path,
    /// `https://BUCKET.HOST/…`: what Amazon wants.
    Host,
}

/// How long is waited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct S3Patience {
    /// For a name to be resolved, and again for a connection.
    pub connect: Duration,
    /// For the begin of an answer, and for every further part of it or of what is sent.
    pub stall: Duration,
    /// For one transfer; what the bandwidth's limit makes it take is added.
    pub transfer: Duration,
    /// How often a request is made again when the storage is troubled or cannot be reached.
    pub retries: u32,
    /// Before the first repetition; each further one waits twice as long, 10 s at most, and all
    /// of them a random part less.
    pub pause: Duration,
}

/// A part of credentials. It does not show and is wiped from memory.
#[derive(Clone, PartialEq, Eq)]
pub struct S3Secret(Zeroizing<String>);

/// The settings cannot be right.
#[derive(Debug, thiserror::Error)]
pub enum S3SettingsError {
    /// Without a key nothing can be signed.
    #[error("the {0} is missing")]
    NoCredentials(&'static str),
    /// A key with characters that no key has.
    #[error("the {0} has characters that no key has")]
    BadCredentials(&'static str),
    /// It is not of the form `https://HOST:PORT`.
    #[error("{0} is no endpoint: it has the form https://HOST or https://HOST:PORT")]
    Endpoint(String),
    /// A bucket's name has 3 to 63 lower case letters, digits, dots and hyphens.
    #[error("{0:?} cannot be a bucket's name")]
    Bucket(String),
    /// A region's name has letters, digits and hyphens.
    #[error("{0:?} cannot be a region's name")]
    Region(String),
    /// A prefix has names of letters, digits, dots, hyphens and underscores between slashes.
    #[error("{0:?} cannot be a directory in a bucket")]
    Prefix(String),
    /// The authorities' certificates could not be read.
    #[error("reading the certificates in {path} failed")]
    CaFile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file has no certificate.
    #[error("{0} has no certificate in PEM form")]
    NoCertificate(PathBuf),
}

/// An endpoint, parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    pub(super) tls: bool,
    /// The host with its port, when that is not the scheme's own.
    pub(super) authority: String,
}

impl Default for S3Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            stall: Duration::from_secs(30),
            transfer: Duration::from_secs(300),
            retries: 5,
            pause: Duration::from_millis(250),
        }
    }
}

impl S3Secret {
    /// Takes a secret, without the white space around it.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(Zeroizing::new(text.trim().to_owned()))
    }

    pub(super) fn expose(&self) -> &str {
        &self.0
    }

    fn check(&self, name: &'static str) -> Result<(), S3SettingsError> {
        if self.0.is_empty() {
            return Err(S3SettingsError::NoCredentials(name));
        }
        if self.0.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Ok(());
        }
        Err(S3SettingsError::BadCredentials(name))
    }
}

impl S3Settings {
    pub(super) fn check(&self) -> Result<Endpoint, S3SettingsError> {
        self.access_key.check("access key")?;
        self.secret_key.check("secret key")?;
        let in_bucket = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.');
        let bucket = &self.bucket;
        let edges = bucket.starts_with(['.', '-']) || bucket.ends_with(['.', '-']);
        if !(3..=63).contains(&bucket.len()) || !bucket.bytes().all(in_bucket) || edges {
            return Err(S3SettingsError::Bucket(bucket.clone()));
        }
        let in_region = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if self.region.is_empty() || !self.region.bytes().all(in_region) {
            return Err(S3SettingsError::Region(self.region.clone()));
        }
        let refused = || S3SettingsError::Endpoint(self.endpoint.clone());
        Endpoint::parse(&self.endpoint).ok_or_else(refused)
    }

    /// Empty, or with a slash at its end. No character in it needs an encoding.
    pub(super) fn key_prefix(&self) -> Result<String, S3SettingsError> {
        if self.prefix.is_empty() {
            return Ok(String::new());
        }
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
        let is_name = |name: &str| !matches!(name, "" | "." | "..") && name.bytes().all(plain);
        if self.prefix.split('/').all(is_name) && self.prefix.len() <= 512 {
            return Ok(format!("{}/", self.prefix));
        }
        Err(S3SettingsError::Prefix(self.prefix.clone()))
    }
}

impl Endpoint {
    fn parse(text: &str) -> Option<Self> {
        let text = text.strip_suffix('/').unwrap_or(text);
        let (scheme, authority) = text.split_once("://")?;
        let (tls, own_port) = match scheme {
            "https" => (true, ":443"),
            "http" => (false, ":80"),
            _ => return None,
        };
        let authority = authority.strip_suffix(own_port).unwrap_or(authority);
        let parsed: ureq::http::uri::Authority = authority.parse().ok()?;
        let allowed = |byte: u8| {
            byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b':' | b'[' | b']')
        };
        let plain = !parsed.host().is_empty() && authority.bytes().all(allowed);
        plain.then(|| Self { tls, authority: authority.to_ascii_lowercase() })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}", self.authority)
    }
}

impl fmt::Debug for S3Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("S3Secret(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> S3Settings {
        S3Settings {
            endpoint: "https://s3.example.net".to_owned(),
            region: "eu-central-1".to_owned(),
            bucket: "snapshots".to_owned(),
            prefix: "hosts/one".to_owned(),
            addressing: S3Addressing::Path,
            access_key: S3Secret::new("AKIA"),
            secret_key: S3Secret::new("hush\n"),
            ca_file: PathBuf::from(DEBIAN_CA_FILE),
            bandwidth: None,
            patience: S3Patience::default(),
        }
    }

    #[test]
    fn endpoints_are_a_scheme_and_a_host() {
        let parse = |text| Endpoint::parse(text).map(|endpoint| endpoint.to_string());
        for (text, expected) in [
            ("https://s3.example.net", "https://s3.example.net"),
            ("https://s3.example.net:443/", "https://s3.example.net"),
            ("http://127.0.0.1:9000", "http://127.0.0.1:9000"),
            ("http://[::1]:80", "http://[::1]"),
            ("https://S3.Example.Net", "https://s3.example.net"),
        ] {
            assert_eq!(parse(text).as_deref(), Some(expected), "{text}");
        }
        for text in [
            "",
            "s3.example.net",
            "ftp://a",
            "https://",
            "https://a/b",
            "https://u:p@a",
            "https://a?b",
            "https://a b",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = |settings: S3Settings| settings.check().unwrap_err().to_string();
        let empty = S3Secret::new(" ");
        let missing = error(S3Settings { access_key: empty.clone(), ..settings() });
        assert_eq!(missing, "the access key is missing");
        let missing = error(S3Settings { secret_key: empty, ..settings() });
        assert_eq!(missing, "the secret key is missing");
        for bucket in ["", "ab", "Upper", "a/b", ".abc", "abc-"] {
            error(S3Settings { bucket: bucket.to_owned(), ..settings() });
        }
        error(S3Settings { region: String::new(), ..settings() });
        settings().check().unwrap();
    }

    #[test]
    fn prefixes_stay_in_the_bucket() {
        let prefix =
            |prefix: &str| S3Settings { prefix: prefix.to_owned(), ..settings() }.key_prefix();
        assert_eq!(prefix("").unwrap(), "");
        assert_eq!(prefix("hosts/one.2_b-c").unwrap(), "hosts/one.2_b-c/");
        for bad in ["/", "/a", "a/", "a//b", "..", "a/../b", "a b", "ä", "a?b"] {
            assert!(matches!(prefix(bad), Err(S3SettingsError::Prefix(_))), "{bad}");
        }
    }

    #[test]
    fn secrets_do_not_show() {
        let text = format!("{:?}", settings());
        assert!(!text.contains("hush") && !text.contains("AKIA"), "{text}");
    }
}
