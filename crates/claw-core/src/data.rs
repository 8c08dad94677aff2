//! Which of an instance's data directories is meant.
//!
//! An instance has one directory in use and, while it is being updated or restored, another beside it.
//! They are never exchanged in place: the journal says which one is in use.

use std::fmt;
use std::num::NonZeroU32;

/// A data directory of an instance, `gen-N`, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DataGeneration(NonZeroU32);

impl DataGeneration {
    /// The one that an instance begins with.
    pub const FIRST: Self = Self(NonZeroU32::MIN);

    /// A generation by number; `None` for 0.
    #[must_use]
    pub const fn new(number: u32) -> Option<Self> {
        match NonZeroU32::new(number) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }

    /// The number.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.0.get()
    }

    /// The one after this; the last possible one has none after it and returns itself.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The generation that a directory's name says.
    #[must_use]
    pub fn of_directory(name: &str) -> Option<Self> {
        let generation = name.strip_prefix("gen-")?.parse().ok().and_then(Self::new)?;
        (generation.to_string() == name).then_some(generation)
    }
}

impl Default for DataGeneration {
    fn default() -> Self {
        Self::FIRST
    }
}

impl fmt::Display for DataGeneration {
    /// The directory's name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "gen-{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_says_its_generation_in_one_way_only() {
        let third = DataGeneration::FIRST.next().next();
        assert_eq!(third.to_string(), "gen-3");
        assert_eq!(DataGeneration::of_directory("gen-3"), Some(third));
        for wrong in ["gen-0", "gen-03", "gen-+3", "gen-", "3", "gen-3.partial"] {
            assert_eq!(DataGeneration::of_directory(wrong), None, "{wrong}");
        }
    }
}
