//! A secret in a file: read, sent, and never shown again.

use std::fmt;

use claw_core::spec::Secret;
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A secret's value. It serialises as an empty text, which the coordinator takes for "as it is".
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SecretText(pub(crate) Secret);

impl SecretText {
    /// Stands for the value that the coordinator has.
    pub(crate) fn kept() -> Self {
        Self(Secret::new(String::new()))
    }
}

impl Serialize for SecretText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("")
    }
}

impl<'de> Deserialize<'de> for SecretText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SecretVisitor)
    }
}

struct SecretVisitor;

/// Serde's own messages quote what they found: every one of them is replaced.
fn refused<E: Error>() -> E {
    E::custom("a secret must be a text; write it in quotes")
}

impl Visitor<'_> for SecretVisitor {
    type Value = SecretText;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<SecretText, E> {
        Ok(SecretText(Secret::new(text.to_owned())))
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<SecretText, E> {
        Err(refused())
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<SecretText, E> {
        Err(refused())
    }

    fn visit_i128<E: Error>(self, _: i128) -> Result<SecretText, E> {
        Err(refused())
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<SecretText, E> {
        Err(refused())
    }

    fn visit_u128<E: Error>(self, _: u128) -> Result<SecretText, E> {
        Err(refused())
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<SecretText, E> {
        Err(refused())
    }
}
