//! Generated `claw.*.v1` messages and every conversion between wire and core.
//!
//! What it is for: wire types end here. A message becomes a core type through `TryFrom` or a
//! function of [`convert`], and an error names every field that is wrong.
//!
//! What it does not do: transport, authorisation, storage.
//!
//! Where to start: [`convert::spec`] for instances, [`convert::session`] for the agent's stream.

pub mod codec;
pub mod convert;
mod redact;

/// Messages and services between agent and coordinator.
#[allow(
    missing_docs,
    clippy::all,
    clippy::pedantic,
    clippy::as_conversions,
    unused_qualifications,
    unreachable_pub,
    reason = "generated"
)]
pub mod node {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("claw.node.v1");
    }
}

/// Messages and services of the fleet's API.
#[allow(
    missing_docs,
    clippy::all,
    clippy::pedantic,
    clippy::as_conversions,
    unused_qualifications,
    unreachable_pub,
    reason = "generated"
)]
pub mod fleet {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("claw.fleet.v1");
    }
}

/// The encoded `FileDescriptorSet` of everything above, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/claw.binpb"));

/// Version of `claw.node.v1` that this build speaks; see `Hello.protocol_version`.
pub const PROTOCOL_VERSION: u32 = 1;

/// Bytes that are not the message they should be.
#[derive(Debug, thiserror::Error)]
#[error("decoding a {message}")]
pub struct DecodeError {
    /// The message's type.
    pub message: &'static str,
    /// Where it went wrong.
    #[source]
    source: prost::DecodeError,
}

/// A message as bytes.
#[must_use]
pub fn encode<M: prost::Message>(message: &M) -> Vec<u8> {
    message.encode_to_vec()
}

/// A message from bytes.
///
/// # Errors
/// [`DecodeError`] when the bytes are no such message.
pub fn decode<M: prost::Message + Default>(bytes: &[u8]) -> Result<M, DecodeError> {
    M::decode(bytes).map_err(|source| DecodeError { message: std::any::type_name::<M>(), source })
}
