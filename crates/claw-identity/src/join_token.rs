//! One-time join tokens: what an operator gives to a new host.
//!
//! `clw1.<id>.<secret>.<pin>`: the id names the token in the store, the secret (32 random bytes,
//! base64url) proves possession, the pin lets the host recognise the coordinator before it sends
//! the secret. Lifetime, binding to a host and single use are kept by the coordinator's store, which
//! holds only [`JoinToken::secret_hash`].

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::CryptoRng;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use crate::identity::{IdentityNameError, check_name};
use crate::pin::{PinError, SpkiPin};

/// Format and version; a later format gets another number.
const PREFIX: &str = "clw1";
/// Keeps the hash of a token secret apart from every other SHA-256 in the system.
const HASH_CONTEXT: &[u8] = b"claw join token secret v1\0";
/// Longest id of a token.
const MAX_ID: usize = 63;

/// Names a token; public. Lower-case letters, digits, `-` and `_`, at most 63 characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenId(String);

/// A join token with its secret. `Debug` hides the secret, there is no `Display`.
#[derive(Clone)]
pub struct JoinToken {
    id: TokenId,
    secret: Zeroizing<[u8; 32]>,
    pin: SpkiPin,
}

/// What is stored of a token's secret. The secret has 256 random bits, so one SHA-256 is enough.
///
/// Equality takes the same time wherever the difference is.
#[derive(Debug, Clone, Copy)]
pub struct SecretHash([u8; 32]);

/// Why a text is no join token. No message contains any part of the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not `clw1.` and three more parts.
    #[error("join token must have the form clw1.<id>.<secret>.<pin>; was it copied completely?")]
    Form,
    /// The id is invalid.
    #[error("id of the join token is invalid")]
    Id,
    /// The secret is not 32 bytes of base64url.
    #[error("secret of the join token is damaged; was it copied completely?")]
    Secret,
    /// The pin is damaged.
    #[error("pin of the join token is damaged")]
    Pin(#[source] PinError),
}

impl TokenId {
    /// Parses an id.
    ///
    /// # Errors
    ///
    /// [`IdentityNameError`] says which rule the text breaks.
    pub fn parse(text: &str) -> Result<Self, IdentityNameError> {
        check_name(text, MAX_ID)?;
        if text.contains('.') {
            return Err(IdentityNameError::Characters { got: text.to_owned() });
        }
        Ok(Self(text.to_owned()))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl JoinToken {
    /// A new token for the authority with this pin.
    pub fn generate(id: TokenId, pin: SpkiPin, rng: &mut impl CryptoRng) -> Self {
        let mut secret = Zeroizing::new([0; 32]);
        rng.fill_bytes(secret.as_mut_slice());
        Self { id, secret, pin }
    }

    /// Parses what [`JoinToken::reveal`] wrote; white space around it is ignored.
    ///
    /// # Errors
    ///
    /// [`TokenError`], which never quotes the text.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let mut parts = text.trim().split('.');
        let (Some(PREFIX), Some(id), Some(secret), Some(pin), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(TokenError::Form);
        };
        let id = TokenId::parse(id).map_err(|_quotes_it| TokenError::Id)?;
        Ok(Self { id, secret: decode_secret(secret)?, pin: pin.parse().map_err(TokenError::Pin)? })
    }

    /// The whole token with its secret, for the one place that shows or sends it.
    #[must_use]
    pub fn reveal(&self) -> Zeroizing<String> {
        let secret = Zeroizing::new(URL_SAFE_NO_PAD.encode(self.secret.as_slice()));
        Zeroizing::new(format!("{PREFIX}.{}.{}.{}", self.id.0, secret.as_str(), self.pin))
    }

    /// Under which name the store knows the token.
    #[must_use]
    pub fn id(&self) -> &TokenId {
        &self.id
    }

    /// The authority that the host must find at the other end.
    #[must_use]
    pub fn pin(&self) -> SpkiPin {
        self.pin
    }

    /// What may be stored; bound to the id.
    #[must_use]
    pub fn secret_hash(&self) -> SecretHash {
        let hash = Sha256::new()
            .chain_update(HASH_CONTEXT)
            .chain_update(self.id.0.as_bytes())
            .chain_update([0])
            .chain_update(self.secret.as_slice());
        SecretHash(hash.finalize().into())
    }
}

impl SecretHash {
    /// As it was stored.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// To be stored.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl PartialEq for SecretHash {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for SecretHash {}

impl fmt::Display for TokenId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl FromStr for TokenId {
    type Err = IdentityNameError;

    fn from_str(text: &str) -> Result<Self, IdentityNameError> {
        Self::parse(text)
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("JoinToken")
            .field("id", &self.id)
            .field("secret", &"[redacted]")
            .field("pin", &self.pin)
            .finish()
    }
}

fn decode_secret(text: &str) -> Result<Zeroizing<[u8; 32]>, TokenError> {
    let bytes =
        Zeroizing::new(URL_SAFE_NO_PAD.decode(text).map_err(|_quotes_it| TokenError::Secret)?);
    let secret = bytes.as_slice().try_into().map_err(|_length| TokenError::Secret)?;
    Ok(Zeroizing::new(secret))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> JoinToken {
        let id = TokenId::parse("host-7_a").unwrap();
        JoinToken::generate(id, SpkiPin::of_spki(b"root"), &mut rand::rng())
    }

    #[test]
    fn comes_back_from_its_text() {
        let token = token();
        let text = token.reveal();
        let parsed = JoinToken::parse(&format!("  {}\n", text.as_str())).unwrap();
        assert_eq!(parsed.id(), token.id());
        assert_eq!(parsed.pin(), token.pin());
        assert_eq!(parsed.secret_hash(), token.secret_hash());
        assert_eq!(text.split('.').count(), 4);
    }

    #[test]
    fn nothing_prints_the_secret() {
        let token = token();
        let text = token.reveal();
        let secret = text.split('.').nth(2).unwrap();
        assert_eq!(secret.len(), 43);
        let debug = format!("{token:?} {token:#?} {:?}", token.secret_hash());
        assert!(debug.contains("[redacted]"));
        assert!(!debug.contains(secret));
        for byte_list in
            [format!("{:?}", token.secret.as_slice()), format!("{:02x?}", token.secret)]
        {
            assert!(!debug.contains(&byte_list));
        }
        // A damaged token may still hold most of the secret: errors must not quote it.
        let damaged = text.replace("clw1", "clw2");
        let error = JoinToken::parse(&damaged).unwrap_err();
        assert!(!format!("{error} {error:?}").contains(secret));
        let misplaced = format!("clw1.{secret}.{secret}x.{secret}");
        let error = JoinToken::parse(&misplaced).unwrap_err();
        assert!(!format!("{error} {error:?}").contains(secret));
    }

    #[test]
    fn hash_depends_on_secret_and_id() {
        let token = token();
        let other_id = JoinToken { id: TokenId::parse("other").unwrap(), ..token.clone() };
        let mut other_secret = token.clone();
        other_secret.secret[31] ^= 1;
        assert_ne!(token.secret_hash(), other_id.secret_hash());
        assert_ne!(token.secret_hash(), other_secret.secret_hash());
        assert_eq!(token.secret_hash(), SecretHash::from_bytes(*token.secret_hash().as_bytes()));
    }

    #[test]
    fn damaged_tokens_are_refused() {
        let text = token().reveal();
        let parts: Vec<&str> = text.split('.').collect();
        let short: String = parts[2].chars().take(42).collect();
        let cases = [
            (String::new(), TokenError::Form),
            (format!("clw1.a.{}", parts[2]), TokenError::Form),
            (format!("{}.x", text.as_str()), TokenError::Form),
            (format!("clw1.A.{}.{}", parts[2], parts[3]), TokenError::Id),
            (format!("clw1..{}.{}", parts[2], parts[3]), TokenError::Id),
            (format!("clw1.a.{short}.{}", parts[3]), TokenError::Secret),
            (format!("clw1.a..{}", parts[3]), TokenError::Secret),
            (format!("clw1.a.{}=.{}", parts[2], parts[3]), TokenError::Secret),
            (format!("clw1.a.{}.{short}", parts[2]), TokenError::Pin(PinError)),
        ];
        for (text, expected) in cases {
            assert_eq!(JoinToken::parse(&text).unwrap_err(), expected);
        }
    }
}
