//! The frames of the protocol: JSON texts in, JSON texts out.
//!
//! Pure. An event's payload is passed over without being kept, whatever it holds.

use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};

/// The longest nonce that is signed; a real one has 36 characters.
const MAX_NONCE: usize = 256;

/// `{type:"req", id, method, params}`.
#[derive(Debug, Serialize)]
struct Outgoing<'a, P> {
    #[serde(rename = "type")]
    kind: &'static str,
    id: &'a str,
    method: &'static str,
    params: &'a P,
}

/// The text of a request.
pub(super) fn request<P: Serialize>(
    id: &str,
    method: &'static str,
    params: &P,
) -> Result<String, serde_json::Error> {
    serde_json::to_string(&Outgoing { kind: "req", id, method, params })
}

/// What a message is to somebody who waits for one answer.
#[derive(Debug)]
pub(super) enum Incoming<T> {
    Answer(T),
    Refusal(ErrorShape),
    Other,
}

/// What every frame has.
#[derive(Debug, Deserialize)]
struct Envelope {
    #[serde(rename = "type")]
    kind: String,
    id: Option<String>,
    ok: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct Payload<T> {
    payload: T,
}

#[derive(Debug, Deserialize)]
struct Failure {
    error: ErrorShape,
}

/// Why a gateway refused.
#[derive(Debug, Deserialize)]
pub(super) struct ErrorShape {
    pub(super) code: String,
    pub(super) message: String,
    #[serde(default)]
    details: Details,
}

/// Only pairing has a form that matters; the details of other refusals are passed over.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Details {
    Pairing {
        #[serde(rename = "requestId")]
        request_id: String,
    },
    Other(IgnoredAny),
}

impl Default for Details {
    fn default() -> Self {
        Self::Other(IgnoredAny)
    }
}

impl ErrorShape {
    /// The request that is to be approved.
    pub(super) fn request_id(self) -> Option<String> {
        match self.details {
            Details::Pairing { request_id } => Some(request_id),
            Details::Other(IgnoredAny) => None,
        }
    }
}

impl<T: DeserializeOwned> Incoming<T> {
    /// Reads a message while waiting for the answer to `id`.
    pub(super) fn read(text: &str, id: &str) -> Result<Self, serde_json::Error> {
        let envelope: Envelope = serde_json::from_str(text)?;
        if envelope.kind != "res" || envelope.id.as_deref() != Some(id) {
            return Ok(Self::Other);
        }
        if envelope.ok == Some(true) {
            return Ok(Self::Answer(serde_json::from_str::<Payload<T>>(text)?.payload));
        }
        Ok(Self::Refusal(serde_json::from_str::<Failure>(text)?.error))
    }
}

/// The first message of a gateway.
#[derive(Debug, Deserialize)]
pub(super) struct Challenge {
    pub(super) nonce: String,
    pub(super) ts: u64,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "event")]
enum First {
    #[serde(rename = "connect.challenge")]
    Challenge { payload: Challenge },
}

impl Challenge {
    /// Reads it.
    pub(super) fn read(text: &str) -> Result<Self, serde_json::Error> {
        let First::Challenge { payload } = serde_json::from_str(text)?;
        // A separator would let the nonce speak for other fields of the signed text.
        if payload.nonce.len() > MAX_NONCE || payload.nonce.contains('|') {
            return Err(<serde_json::Error as serde::de::Error>::custom("a nonce that is none"));
        }
        Ok(payload)
    }
}

/// The answer to `connect`.
#[derive(Debug, Deserialize)]
pub(super) struct Hello {
    pub(super) protocol: u32,
}
