//! Signatures of requests: AWS Signature Version 4 in the header `Authorization`
//! (<https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html>).

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use ring::hmac;
use rustic_core::jiff;
use zeroize::Zeroizing;

use super::settings::{S3Secret, S3Settings};
use crate::id::hex;

const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// Signs requests of one key in one region.
pub(super) struct Signer {
    access_key: S3Secret,
    secret_key: S3Secret,
    region: String,
}

/// What of a request is signed: all of it.
#[derive(Debug)]
pub(super) struct Signed<'a> {
    pub(super) method: &'a str,
    /// Absolute, and without any character that would have to be encoded.
    pub(super) path: &'a str,
    /// As [`encode_query`] gave it.
    pub(super) query: &'a str,
    /// Names in lower case. The time and the content's hash are among them.
    pub(super) headers: &'a BTreeMap<&'static str, String>,
    /// SHA-256 of the content, in hexadecimal digits.
    pub(super) content: &'a str,
}

impl Signer {
    pub(super) fn new(settings: &S3Settings) -> Self {
        Self {
            access_key: settings.access_key.clone(),
            secret_key: settings.secret_key.clone(),
            region: settings.region.clone(),
        }
    }

    /// The value of `Authorization`; `time` as [`timestamp`] gave it.
    pub(super) fn sign(&self, request: &Signed<'_>, time: &str) -> String {
        let date = time.split_once('T').map_or(time, |(date, _)| date);
        let scope = format!("{date}/{}/s3/aws4_request", self.region);
        let mut headers = String::new();
        for (name, value) in request.headers {
            // Writing to a string does not fail.
            _ = writeln!(headers, "{name}:{}", value.trim());
        }
        let names: Vec<_> = request.headers.keys().copied().collect();
        let names = names.join(";");
        let Signed { method, path, query, content, .. } = request;
        let canonical = format!("{method}\n{path}\n{query}\n{headers}\n{names}\n{content}");
        let hash = hex(ring::digest::digest(&ring::digest::SHA256, canonical.as_bytes()).as_ref());
        let text = format!("{ALGORITHM}\n{time}\n{scope}\n{hash}");
        let signature = hex(keyed(&self.key(date), &text).as_ref());
        let access_key = self.access_key.expose();
        format!(
            "{ALGORITHM} Credential={access_key}/{scope},SignedHeaders={names},Signature={signature}"
        )
    }

    /// The key of a day.
    fn key(&self, date: &str) -> Zeroizing<Vec<u8>> {
        let secret = Zeroizing::new(format!("AWS4{}", self.secret_key.expose()));
        let mut key = Zeroizing::new(secret.as_bytes().to_vec());
        for step in [date, &self.region, "s3", "aws4_request"] {
            key = Zeroizing::new(keyed(&key, step).as_ref().to_vec());
        }
        key
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer").field("region", &self.region).finish_non_exhaustive()
    }
}

/// A query as it is both signed and sent: sorted, and everything encoded that is not unreserved
/// (RFC 3986, section 2.3).
pub(super) fn encode_query(query: &[(&'static str, String)]) -> String {
    let mut pairs: Vec<_> =
        query.iter().map(|(name, value)| format!("{name}={}", encode(value))).collect();
    pairs.sort_unstable();
    pairs.join("&")
}

/// A time in ISO 8601's basic form.
pub(super) fn timestamp(time: jiff::Timestamp) -> String {
    time.strftime("%Y%m%dT%H%M%SZ").to_string()
}

fn encode(value: &str) -> String {
    value.bytes().fold(String::with_capacity(value.len()), |mut text, byte| {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                text.push(char::from(byte));
            }
            _ => _ = write!(text, "%{byte:02X}"),
        }
        text
    })
}

fn keyed(key: &[u8], text: &str) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    const TIME: &str = "20130524T000000Z";

    /// The key of the examples in the page that the module names.
    fn signer() -> Signer {
        Signer {
            access_key: S3Secret::new("AKIAIOSFODNN7EXAMPLE"),
            secret_key: S3Secret::new("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"),
            region: "us-east-1".to_owned(),
        }
    }

    fn headers() -> BTreeMap<&'static str, String> {
        BTreeMap::from([
            ("host", "examplebucket.s3.amazonaws.com".to_owned()),
            ("x-amz-content-sha256", EMPTY.to_owned()),
            ("x-amz-date", TIME.to_owned()),
        ])
    }

    #[test]
    fn the_example_of_reading_a_part() {
        let mut headers = headers();
        headers.insert("range", "bytes=0-9".to_owned());
        let request = Signed {
            method: "GET",
            path: "/test.txt",
            query: "",
            headers: &headers,
            content: EMPTY,
        };
        let expected = "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/\
            aws4_request,SignedHeaders=host;range;x-amz-content-sha256;x-amz-date,Signature=\
            f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41";
        assert_eq!(signer().sign(&request, TIME), expected);
    }

    #[test]
    fn the_example_of_listing() {
        let query = encode_query(&[("prefix", "J".to_owned()), ("max-keys", "2".to_owned())]);
        let headers = headers();
        let request =
            Signed { method: "GET", path: "/", query: &query, headers: &headers, content: EMPTY };
        let signature = "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7";
        assert!(signer().sign(&request, TIME).ends_with(signature));
    }

    #[test]
    fn queries_are_sorted_and_encoded() {
        let query = [("prefix", "a/b c".to_owned()), ("list-type", "2".to_owned())];
        assert_eq!(encode_query(&query), "list-type=2&prefix=a%2Fb%20c");
        let time = jiff::Timestamp::from_second(1_369_353_600).unwrap();
        assert_eq!(timestamp(time), TIME);
    }
}
