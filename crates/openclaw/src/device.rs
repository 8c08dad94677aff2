//! The identity with which a controller stands before gateways: an Ed25519 key of its own.
//!
//! A gateway knows a device by the hash of its public key and gives it scopes once somebody has approved it.
//! The signature binds a connection to the gateway's challenge and to the token, so that it is worth nothing
//! to another gateway.
//!
//! It does not keep keys: callers do. Source: openclaw 2026.9.6, signature `v3`, run and read. Start with
//! [`Device::generate`].

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::digest::{SHA256, digest};
use ring::rand::SystemRandom;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use thiserror::Error;

/// Why there is no key.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum DeviceError {
    /// The system gives no randomness.
    #[error("the system gives no randomness for a key")]
    Randomness,
    /// The bytes are no Ed25519 key in PKCS #8.
    #[error("these bytes are no Ed25519 key in PKCS #8")]
    Malformed,
}

/// A key and what follows from it.
pub struct Device {
    pair: Ed25519KeyPair,
    id: String,
}

/// What a signature is about.
#[derive(Debug, Clone, Copy)]
pub struct Claim<'a> {
    /// `client.id` of the connection.
    pub client_id: &'a str,
    /// `client.mode`.
    pub client_mode: &'a str,
    /// The role that is asked for.
    pub role: &'a str,
    /// The scopes that are asked for, in the request's order.
    pub scopes: &'a [&'a str],
    /// The challenge's `ts`: milliseconds since 1970.
    pub signed_at: u64,
    /// `auth.token`, empty without one.
    pub token: &'a str,
    /// The challenge's nonce.
    pub nonce: &'a str,
    /// `client.platform`, in small letters.
    pub platform: &'a str,
}

impl Device {
    /// A new key, as it is to be kept (PKCS #8).
    ///
    /// # Errors
    /// [`DeviceError::Randomness`].
    pub fn generate() -> Result<Vec<u8>, DeviceError> {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new());
        document.map(|key| key.as_ref().to_vec()).map_err(|_unspecified| DeviceError::Randomness)
    }

    /// A key that was kept.
    ///
    /// # Errors
    /// [`DeviceError::Malformed`].
    pub fn from_pkcs8(key: &[u8]) -> Result<Self, DeviceError> {
        let pair = Ed25519KeyPair::from_pkcs8(key).map_err(|_rejected| DeviceError::Malformed)?;
        let id = device_id(pair.public_key().as_ref());
        Ok(Self { pair, id })
    }

    /// What gateways call it: 64 hexadecimal digits.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The public key as it is sent: base64url without padding.
    #[must_use]
    pub fn public_key(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.pair.public_key())
    }

    /// A signature as it is sent: base64url without padding.
    #[must_use]
    pub fn sign(&self, claim: &Claim<'_>) -> String {
        URL_SAFE_NO_PAD.encode(self.pair.sign(claim.text(&self.id).as_bytes()))
    }
}

/// Leaves the private key out.
impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Claim<'_> {
    /// Whether a device has signed this: what a gateway does. All texts are as they were sent.
    #[must_use]
    pub fn is_signed_by(&self, device_id: &str, public_key: &str, signature: &str) -> bool {
        let (Ok(key), Ok(signature)) =
            (URL_SAFE_NO_PAD.decode(public_key), URL_SAFE_NO_PAD.decode(signature))
        else {
            return false;
        };
        let text = self.text(device_id);
        self::device_id(&key) == device_id
            && UnparsedPublicKey::new(&ED25519, key).verify(text.as_bytes(), &signature).is_ok()
    }

    /// The last field, `deviceFamily`, is empty: a server has none.
    fn text(&self, device_id: &str) -> String {
        format!(
            "v3|{device_id}|{}|{}|{}|{}|{}|{}|{}|{}|",
            self.client_id,
            self.client_mode,
            self.role,
            self.scopes.join(","),
            self.signed_at,
            self.token,
            self.nonce,
            self.platform
        )
    }
}

fn device_id(public_key: &[u8]) -> String {
    digest(&SHA256, public_key).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLAIM: Claim<'_> = Claim {
        client_id: "gateway-client",
        client_mode: "backend",
        role: "operator",
        scopes: &["operator.admin", "operator.read"],
        signed_at: 1_795_250_243_891,
        token: "t",
        nonce: "n",
        platform: "linux",
    };

    #[test]
    fn the_text_is_as_measured() {
        assert_eq!(
            CLAIM.text("id"),
            "v3|id|gateway-client|backend|operator|operator.admin,operator.read|1795250243891|t|n|linux|"
        );
    }

    #[test]
    fn an_id_is_the_hash_of_the_public_key() {
        // The first test vector of RFC 8032, section 7.1; the hash by sha256sum.
        let seed = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";
        let seed: Vec<u8> = (0..32)
            .map(|n| u8::from_str_radix(seed.get(2 * n..2 * n + 2).unwrap(), 16).unwrap())
            .collect();
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).unwrap();
        assert_eq!(
            device_id(pair.public_key().as_ref()),
            "21fe31dfa154a261626bf854046fd2271b7bed4b6abe45aa58877ef47f9721b9"
        );
    }

    #[test]
    fn a_signature_holds_for_one_claim_and_one_device() {
        let key = Device::generate().unwrap();
        let (device, other) = (
            Device::from_pkcs8(&key).unwrap(),
            Device::from_pkcs8(&Device::generate().unwrap()).unwrap(),
        );
        let signature = device.sign(&CLAIM);
        assert!(CLAIM.is_signed_by(device.id(), &device.public_key(), &signature));
        assert!(!CLAIM.is_signed_by(other.id(), &other.public_key(), &signature));
        assert!(!CLAIM.is_signed_by(device.id(), &other.public_key(), &signature));
        for changed in [Claim { token: "u", ..CLAIM }, Claim { nonce: "m", ..CLAIM }] {
            assert!(!changed.is_signed_by(device.id(), &device.public_key(), &signature));
        }
        assert!(!CLAIM.is_signed_by(device.id(), &device.public_key(), "no base64!"));
        assert_eq!(Device::from_pkcs8(&key).unwrap().id(), device.id());
    }

    #[test]
    fn nonsense_is_no_key_and_debug_shows_none() {
        assert_eq!(Device::from_pkcs8(b"key").unwrap_err(), DeviceError::Malformed);
        let device = Device::from_pkcs8(&Device::generate().unwrap()).unwrap();
        assert_eq!(format!("{device:?}"), format!("Device {{ id: {:?}, .. }}", device.id()));
    }
}
