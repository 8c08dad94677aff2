//! Requests: made, limited in time, and repeated while the trouble may pass.
//!
//! The only part of this crate that has a clock: a signature has the time in it, and waiting is of
//! real time. Nothing of it is stored.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read};
use std::ops::Range;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use md5::Md5;
use rand::Rng as _;
use rustic_core::jiff;
use sha2::{Digest, Sha256};
use ureq::http::{HeaderMap, Method, Request as HttpRequest, Response, header};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, TlsProvider, parse_pem};
use ureq::{Agent, Body, SendBody};

use super::answer;
use super::fault::S3Fault;
use super::pace::{Pace, Parts};
use super::settings::{Endpoint, S3Addressing, S3Patience, S3Settings, S3SettingsError};
use super::sign::{Signed, Signer, encode_query, timestamp};
use crate::id::hex;

/// An answer is read into memory; no file of ours is larger.
const LARGEST: u64 = 512 << 20;
/// The longest pause between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Makes requests to one bucket.
pub(super) struct Client {
    agent: Agent,
    endpoint: Endpoint,
    bucket: String,
    /// The host as it is asked for.
    authority: String,
    /// Of every key, with a slash at its end.
    path: String,
    signer: Signer,
    pace: Arc<Pace>,
    patience: S3Patience,
}

/// What is asked.
#[derive(Debug)]
pub(super) struct Request<'a> {
    pub(super) method: Method,
    /// Empty for the bucket itself. Has no character that needs an encoding.
    pub(super) key: &'a str,
    pub(super) query: Vec<(&'static str, String)>,
    pub(super) range: Option<Range<u64>>,
    pub(super) parts: &'a [Bytes],
}

/// A success.
#[derive(Debug)]
pub(super) struct Answer {
    status: u16,
    headers: HeaderMap,
    pub(super) body: Bytes,
}

/// What is sent, hashed twice: the signature needs one hash, old storages check the other.
struct Content {
    length: u64,
    sha256: String,
    md5: [u8; 16],
}

impl<'a> Request<'a> {
    pub(super) fn get(key: &'a str) -> Self {
        Self { method: Method::GET, key, query: Vec::new(), range: None, parts: &[] }
    }

    pub(super) fn put(key: &'a str, parts: &'a [Bytes]) -> Self {
        Self { method: Method::PUT, parts, ..Self::get(key) }
    }

    pub(super) fn delete(key: &'a str) -> Self {
        Self { method: Method::DELETE, ..Self::get(key) }
    }
}

impl Client {
    pub(super) fn new(settings: &S3Settings) -> Result<Self, S3SettingsError> {
        let endpoint = settings.check()?;
        let bucket = settings.bucket.clone();
        let (authority, path) = match settings.addressing {
            S3Addressing::Path => (endpoint.authority.clone(), format!("/{bucket}/")),
            S3Addressing::Host => (format!("{bucket}.{}", endpoint.authority), "/".to_owned()),
        };
        let patience = settings.patience;
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            // What the environment says is for programs that a person starts.
            .proxy(None)
            .user_agent(concat!("claw-snapshot/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(patience.connect))
            .timeout_connect(Some(patience.connect))
            .timeout_send_request(Some(patience.stall))
            .timeout_recv_response(Some(patience.stall))
            .timeout_per_read(Some(patience.stall))
            .timeout_per_write(Some(patience.stall));
        if endpoint.tls {
            config = config.tls_config(trust(settings)?);
        }
        Ok(Self {
            agent: config.build().new_agent(),
            endpoint,
            bucket,
            authority,
            path,
            signer: Signer::new(settings),
            pace: Arc::new(Pace::new(settings.bandwidth)),
            patience,
        })
    }

    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Asks until there is an answer or no hope of one.
    pub(super) fn call(&self, request: &Request<'_>) -> Result<Answer, S3Fault> {
        let content = Content::of(request.parts);
        let mut tries = 0;
        loop {
            let fault = match self.once(request, &content) {
                Ok(answer) => return Ok(answer),
                Err(fault) => fault,
            };
            if !fault.passes() || tries >= self.patience.retries {
                return Err(fault);
            }
            let pause = self.patience.pause.saturating_mul(2_u32.saturating_pow(tries));
            let part = rand::rng().random_range(0.5..1.0);
            sleep(pause.min(LONGEST_PAUSE).mul_f64(part));
            tries += 1;
        }
    }

    fn once(&self, request: &Request<'_>, content: &Content) -> Result<Answer, S3Fault> {
        let body = match request.method {
            Method::PUT => SendBody::from_owned_reader(Parts::new(request.parts, &self.pace)),
            _ => SendBody::none(),
        };
        let http = self.signed(request, content).body(body).map_err(|_| malformed())?;
        let expected = request.range.as_ref().map_or(LARGEST, |range| range.end - range.start);
        let sending = self.patience.transfer + self.pace.takes(content.length);
        let receiving = self.patience.transfer + self.pace.takes(expected.min(16 << 20));
        let http = self
            .agent
            .configure_request(http)
            .timeout_send_body(Some(sending))
            .timeout_recv_body(Some(receiving))
            .build();
        let response = self.agent.run(http).map_err(|fault| self.fault(fault))?;
        let answer = self.receive(response)?;
        if !matches!(answer.status, 200..=299) {
            let code = answer::code(&answer.body);
            return Err(S3Fault::of_answer(answer.status, &code, &self.bucket));
        }
        answer.check(request, content)?;
        Ok(answer)
    }

    fn signed(&self, request: &Request<'_>, content: &Content) -> ureq::http::request::Builder {
        let path = format!("{}{}", self.path, request.key);
        // The bucket itself has no slash behind its name.
        let path = match path.strip_suffix('/') {
            Some(bucket) if !bucket.is_empty() => bucket.to_owned(),
            _ => path,
        };
        let query = encode_query(&request.query);
        let time = timestamp(now());
        let mut headers = BTreeMap::from([
            ("host", self.authority.clone()),
            ("x-amz-content-sha256", content.sha256.clone()),
            ("x-amz-date", time.clone()),
        ]);
        if let Some(range) = &request.range {
            headers.insert("range", format!("bytes={}-{}", range.start, range.end - 1));
        }
        if request.method == Method::PUT {
            headers.insert("content-md5", STANDARD.encode(content.md5));
            headers.insert("content-length", content.length.to_string());
        }
        let method = request.method.as_str();
        let signed = Signed {
            method,
            path: &path,
            query: &query,
            headers: &headers,
            content: &content.sha256,
        };
        let authorization = self.signer.sign(&signed, &time);
        let scheme = if self.endpoint.tls { "https" } else { "http" };
        let mark = if query.is_empty() { "" } else { "?" };
        let uri = format!("{scheme}://{}{path}{mark}{query}", self.authority);
        let mut builder = HttpRequest::builder().method(&request.method).uri(uri);
        for (name, value) in headers {
            builder = builder.header(name, value);
        }
        builder.header(header::AUTHORIZATION, authorization)
    }

    fn receive(&self, response: Response<Body>) -> Result<Answer, S3Fault> {
        let (head, body) = response.into_parts();
        let expected = body.content_length();
        let mut reader = body.into_with_config().limit(LARGEST).reader();
        let mut content = Vec::new();
        let mut part = vec![0; self.pace.part()];
        loop {
            let count = match reader.read(&mut part) {
                Ok(0) => break,
                Ok(count) => count,
                Err(fault) if fault.kind() == ErrorKind::Interrupted => continue,
                Err(fault) => return Err(self.fault(ureq::Error::from(fault))),
            };
            self.pace.wait(count);
            content.extend_from_slice(part.get(..count).unwrap_or_default());
        }
        let received = u64::try_from(content.len()).unwrap_or(u64::MAX);
        if expected.is_some_and(|expected| expected != received) {
            let source = Arc::new(io::Error::from(ErrorKind::UnexpectedEof));
            return Err(S3Fault::Broken { endpoint: self.endpoint.to_string(), source });
        }
        Ok(Answer { status: head.status.as_u16(), headers: head.headers, body: content.into() })
    }

    fn fault(&self, fault: ureq::Error) -> S3Fault {
        let endpoint = self.endpoint.to_string();
        match fault {
            ureq::Error::Timeout(_) => S3Fault::TimedOut { endpoint },
            ureq::Error::Io(source) => self.io_fault(source),
            ureq::Error::Rustls(source) => self.io_fault(io::Error::other(source)),
            ureq::Error::BodyExceedsLimit(_) => S3Fault::TooLarge,
            ureq::Error::HostNotFound | ureq::Error::ConnectionFailed | ureq::Error::Tls(_) => {
                S3Fault::Unreachable { endpoint, source: Arc::new(io::Error::other(fault)) }
            }
            other => S3Fault::Broken { endpoint, source: Arc::new(io::Error::other(other)) },
        }
    }

    fn io_fault(&self, fault: io::Error) -> S3Fault {
        let endpoint = self.endpoint.to_string();
        let tls: Option<&rustls::Error> = fault.get_ref().and_then(|fault| fault.downcast_ref());
        let untrusted = matches!(tls, Some(rustls::Error::InvalidCertificate(_)));
        let source = Arc::new(fault);
        match source.kind() {
            _ if untrusted => S3Fault::Untrusted { endpoint, source },
            ErrorKind::TimedOut | ErrorKind::WouldBlock => S3Fault::TimedOut { endpoint },
            ErrorKind::ConnectionReset
            | ErrorKind::ConnectionAborted
            | ErrorKind::BrokenPipe
            | ErrorKind::UnexpectedEof
            | ErrorKind::InvalidData => S3Fault::Broken { endpoint, source },
            // A name that cannot be looked up has no kind of its own.
            _ => S3Fault::Unreachable { endpoint, source },
        }
    }
}

impl Answer {
    /// Holds a success against what was asked.
    fn check(&self, request: &Request<'_>, content: &Content) -> Result<(), S3Fault> {
        if let Some(range) = &request.range {
            let length = u64::try_from(self.body.len()).unwrap_or(u64::MAX);
            return match self.status {
                206 if length == range.end - range.start => Ok(()),
                206 => Err(S3Fault::Short),
                _ => Err(S3Fault::Answer("a whole file for a part of one")),
            };
        }
        if request.method != Method::PUT {
            return Ok(());
        }
        let text = |name: &str| self.headers.get(name).and_then(|value| value.to_str().ok());
        // A tag is the content's MD5, unless the storage encrypts with a key of its own
        // (<https://docs.aws.amazon.com/AmazonS3/latest/API/API_Object.html>).
        let is_plain = text("x-amz-server-side-encryption").is_none_or(|name| name == "AES256");
        let tag = text("etag").map(|tag| tag.trim_matches('"'));
        let is_hash = |tag: &str| tag.len() == 32 && tag.bytes().all(|b| b.is_ascii_hexdigit());
        match tag.filter(|tag| is_plain && is_hash(tag)) {
            Some(tag) if !tag.eq_ignore_ascii_case(&hex(&content.md5)) => Err(S3Fault::Altered),
            _ => Ok(()),
        }
    }
}

impl Content {
    fn of(parts: &[Bytes]) -> Self {
        let (mut sha256, mut md5) = (Sha256::new(), Md5::new());
        let mut length = 0;
        for part in parts {
            sha256.update(part);
            md5.update(part);
            length += u64::try_from(part.len()).unwrap_or(u64::MAX);
        }
        Self { length, sha256: hex(&sha256.finalize()), md5: md5.finalize().into() }
    }
}

/// TLS with the authorities of the settings' file and no others.
fn trust(settings: &S3Settings) -> Result<TlsConfig, S3SettingsError> {
    let path = &settings.ca_file;
    let failed = |source| S3SettingsError::CaFile { path: path.clone(), source };
    let text = std::fs::read(path).map_err(failed)?;
    let mut certificates: Vec<Certificate<'static>> = Vec::new();
    for item in parse_pem(&text) {
        if let PemItem::Certificate(certificate) =
            item.map_err(|fault| failed(io::Error::new(ErrorKind::InvalidData, fault)))?
        {
            certificates.push(certificate);
        }
    }
    if certificates.is_empty() {
        return Err(S3SettingsError::NoCertificate(path.clone()));
    }
    Ok(TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .root_certs(RootCerts::Specific(Arc::new(certificates)))
        .build())
}

/// Nothing that a request is made of can have this; it is checked when the client is made.
fn malformed() -> S3Fault {
    S3Fault::Answer("a request that cannot be made")
}

#[expect(clippy::disallowed_methods, reason = "a signature has the time of the request in it")]
fn now() -> jiff::Timestamp {
    jiff::Timestamp::try_from(SystemTime::now()).unwrap_or_default()
}
