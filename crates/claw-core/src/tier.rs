//! The tiers a hosting company sells, as data.
//!
//! The values below are the default catalogue; the coordinator's configuration may replace it.

use std::collections::BTreeMap;

use crate::spec::Resources;
use crate::unit::{CpuMillis, MIB, Memory, OutOfRange, PidsLimit};

/// Tiers by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TierCatalogue(BTreeMap<String, Resources>);

/// A name that the catalogue does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown tier {name:?}, known tiers: {known}")]
pub struct UnknownTier {
    /// The name asked for.
    pub name: String,
    /// The names there are, separated by commas.
    pub known: String,
}

impl TierCatalogue {
    /// A catalogue of the given tiers.
    #[must_use]
    pub fn new(tiers: BTreeMap<String, Resources>) -> Self {
        Self(tiers)
    }

    /// The default catalogue: budget 1 GB, balanced 2 GB, pro 4 GB of memory (PRODUCT row 2).
    ///
    /// # Errors
    /// Never with the constants below; the type says so instead of a panic.
    pub fn standard() -> Result<Self, OutOfRange> {
        let tier = |mib: u64, cpu: u64| -> Result<Resources, OutOfRange> {
            Ok(Resources {
                memory: Memory::from_bytes(mib * MIB)?,
                cpu: CpuMillis::from_millis(cpu)?,
                pids: PidsLimit::from_count(512)?,
            })
        };
        Ok(Self(BTreeMap::from([
            ("budget".to_owned(), tier(1024, 1000)?),
            ("balanced".to_owned(), tier(2048, 2000)?),
            ("pro".to_owned(), tier(4096, 4000)?),
        ])))
    }

    /// What a tier gives.
    ///
    /// # Errors
    /// [`UnknownTier`] names the tiers there are.
    pub fn resources(&self, name: &str) -> Result<Resources, UnknownTier> {
        self.0.get(name).copied().ok_or_else(|| UnknownTier {
            name: name.to_owned(),
            known: self.0.keys().cloned().collect::<Vec<_>>().join(", "),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_tier_names_the_known_ones() {
        let catalogue = TierCatalogue::standard().expect("constants");
        assert_eq!(catalogue.resources("pro").map(|r| r.memory.bytes()), Ok(4096 * MIB));
        let error = catalogue.resources("gold").expect_err("unknown");
        assert_eq!(error.to_string(), "unknown tier \"gold\", known tiers: balanced, budget, pro");
    }
}
