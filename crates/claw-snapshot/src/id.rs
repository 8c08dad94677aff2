//! Names of objects: 32 bytes, SHA-256 of what they name, written as 64 hexadecimal digits.

use std::fmt;
use std::str::FromStr;

use ring::digest;
use rustic_core::Id;
use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The name of a file in a repository's storage: SHA-256 of its content.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId([u8; 32]);

/// The name of a snapshot: the [`FileId`] of its snapshot file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotId(FileId);

/// SHA-256 of what comes part by part.
#[derive(Clone)]
pub(crate) struct Hasher(digest::Context);

/// A text that is not 64 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an id has 64 hexadecimal digits")]
pub struct ParseIdError;

impl Hasher {
    pub(crate) fn new() -> Self {
        Self(digest::Context::new(&digest::SHA256))
    }

    pub(crate) fn update(&mut self, part: &[u8]) {
        self.0.update(part);
    }

    pub(crate) fn finish(self) -> [u8; 32] {
        bytes(&self.0.finish())
    }
}

/// All of it: SHA-256 has 32 bytes.
fn bytes(digest: &digest::Digest) -> [u8; 32] {
    let mut bytes = [0; 32];
    for (into, from) in bytes.iter_mut().zip(digest.as_ref()) {
        *into = *from;
    }
    bytes
}

/// Bytes as lower case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16).unwrap_or('0');
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

impl FileId {
    /// The name of something that has this content.
    #[must_use]
    pub fn of(content: &[u8]) -> Self {
        Self(bytes(&digest::digest(&digest::SHA256, content)))
    }

    /// An id from its bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The id's bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    pub(crate) fn engine(self) -> Id {
        Id::new(self.0)
    }
}

impl SnapshotId {
    /// The snapshot whose file has this name.
    #[must_use]
    pub const fn new(file: FileId) -> Self {
        Self(file)
    }

    /// The name of the snapshot's file in the storage.
    #[must_use]
    pub const fn file(self) -> FileId {
        self.0
    }
}

impl From<Id> for FileId {
    fn from(id: Id) -> Self {
        // The engine shows the bytes of its ids only as text, and that is always 64 digits.
        id.to_hex().as_str().parse().unwrap_or(Self([0; 32]))
    }
}

impl From<rustic_core::repofile::SnapshotId> for SnapshotId {
    fn from(id: rustic_core::repofile::SnapshotId) -> Self {
        Self(FileId::from(id.into_inner()))
    }
}

impl FromStr for FileId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.as_bytes();
        let mut bytes = [0; 32];
        if digits.len() != 64 {
            return Err(ParseIdError);
        }
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let [high, low] = pair else { return Err(ParseIdError) };
            *byte = (nibble(*high)? << 4) | nibble(*low)?;
        }
        Ok(Self(bytes))
    }
}

impl Serialize for FileId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex(&self.0))
    }
}

impl<'de> Deserialize<'de> for FileId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(IdText)
    }
}

/// Reads an id without a copy of its text.
struct IdText;

impl Visitor<'_> for IdText {
    type Value = FileId;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("64 hexadecimal digits")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<FileId, E> {
        text.parse().map_err(E::custom)
    }
}

impl FromStr for SnapshotId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Lower case only: names of files are compared as text by other programs.
fn nibble(digit: u8) -> Result<u8, ParseIdError> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        _ => Err(ParseIdError),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn print_and_parse_are_inverse() {
        let id = FileId::of(b"claw");
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(FileId::from(id.engine()), id);
        assert_eq!(id.to_string().len(), 64);
    }

    #[test]
    fn other_texts_are_no_ids() {
        let id = FileId::of(b"claw").to_string();
        assert_eq!(id.to_uppercase().parse::<FileId>(), Err(ParseIdError));
        assert_eq!(format!("{id}0").parse::<FileId>(), Err(ParseIdError));
        assert_eq!("config".parse::<FileId>(), Err(ParseIdError));
    }
}
