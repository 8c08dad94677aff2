//! Which desired state is newer, and which must be refused.
//!
//! A host's desired state carries a [`Stamp`]. The agent keeps the stamp of what it persisted and
//! compares with [`judge`]; nothing else decides whether a state may be taken.

use std::fmt;

/// Rises when the coordinator's store was restored or changed owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Epoch(pub u64);

/// Rises with every change of one host's desired state, within an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Generation(pub u64);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A SHA-256 digest (FIPS 180-4).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        use sha2::Digest as _;
        Self(sha2::Sha256::digest(bytes).into())
    }

    /// A digest received from elsewhere; `None` unless it is 32 bytes long.
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The 32 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// A digest from its 64 hexadecimal digits.
    #[must_use]
    pub fn from_hex(text: &str) -> Option<Self> {
        if text.len() != 64 || !text.is_ascii() {
            return None;
        }
        let mut bytes = [0; 32];
        for (index, byte) in bytes.iter_mut().enumerate() {
            let pair = text.get(index * 2..index * 2 + 2)?;
            *byte = u8::from_str_radix(pair, 16).ok()?;
        }
        Some(Self(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

/// Identifies one desired state of one host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Stamp {
    /// See [`Epoch`].
    pub epoch: Epoch,
    /// See [`Generation`].
    pub generation: Generation,
    /// Digest of the exact bytes of the state.
    pub digest: Digest,
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.generation)
    }
}

/// What to do with an offered state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judgement {
    /// Newer: persist, acknowledge, apply.
    Take,
    /// Exactly what is persisted already: acknowledge again.
    Known,
    /// Must not be taken.
    Refuse(StampRefusal),
}

/// Why an offered state must not be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StampRefusal {
    /// Epoch or generation lies before the persisted one.
    #[error("state {offered} is older than {persisted}, which this host has persisted")]
    Stale {
        /// Stamp of the offered state.
        offered: Stamp,
        /// Stamp of the persisted state.
        persisted: Stamp,
    },
    /// Same epoch and generation, different content.
    #[error(
        "state {offered} has another content than the one this host has persisted under the same generation"
    )]
    Conflict {
        /// Stamp of the offered state.
        offered: Stamp,
    },
}

/// Compares an offered state with the persisted one.
#[must_use]
pub fn judge(persisted: Option<&Stamp>, offered: &Stamp) -> Judgement {
    let Some(persisted) = persisted else { return Judgement::Take };
    let old = (persisted.epoch, persisted.generation);
    let new = (offered.epoch, offered.generation);
    match new.cmp(&old) {
        std::cmp::Ordering::Greater => Judgement::Take,
        std::cmp::Ordering::Equal if offered.digest == persisted.digest => Judgement::Known,
        std::cmp::Ordering::Equal => {
            Judgement::Refuse(StampRefusal::Conflict { offered: *offered })
        }
        std::cmp::Ordering::Less => {
            Judgement::Refuse(StampRefusal::Stale { offered: *offered, persisted: *persisted })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(epoch: u64, generation: u64, content: &str) -> Stamp {
        let digest = Digest::of(content.as_bytes());
        Stamp { epoch: Epoch(epoch), generation: Generation(generation), digest }
    }

    #[track_caller]
    fn check(persisted: Option<Stamp>, offered: Stamp, expected: &str) {
        let text = match judge(persisted.as_ref(), &offered) {
            Judgement::Take => "take".to_owned(),
            Judgement::Known => "known".to_owned(),
            Judgement::Refuse(refusal) => refusal.to_string(),
        };
        assert_eq!(text, expected);
    }

    #[test]
    fn judges() {
        let held = stamp(2, 5, "a");
        check(None, held, "take");
        check(Some(held), held, "known");
        check(Some(held), stamp(2, 6, "a"), "take");
        check(Some(held), stamp(3, 1, "b"), "take");
        check(
            Some(held),
            stamp(2, 4, "a"),
            "state 2.4 is older than 2.5, which this host has persisted",
        );
        check(
            Some(held),
            stamp(1, 9, "a"),
            "state 1.9 is older than 2.5, which this host has persisted",
        );
        check(
            Some(held),
            stamp(2, 5, "b"),
            "state 2.5 has another content than the one this host has persisted under the same generation",
        );
    }

    #[test]
    fn digest_text_round_trips() {
        let digest = Digest::of(b"x");
        assert_eq!(Digest::from_hex(&digest.to_string()), Some(digest));
        assert_eq!(Digest::from_hex("zz"), None);
    }
}
