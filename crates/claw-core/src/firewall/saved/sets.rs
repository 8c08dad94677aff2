//! Sets as `ipset save` prints them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::str::SplitWhitespace;
use std::time::Duration;

use super::SavedError;
use crate::firewall::render::SET_PREFIX;
use crate::firewall::{Family, Set, SetContent, SetEntry, SetKind};

/// Our sets in the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SavedSets {
    /// By name.
    pub sets: BTreeMap<String, SavedSet>,
}

/// One set. How many buckets it has is not kept: it grows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedSet {
    /// Its kind; `None` for one that we do not use.
    pub kind: Option<SetKind>,
    /// Its family; `None` for one that we do not know.
    pub family: Option<Family>,
    /// Most entries.
    pub max_entries: u32,
    /// How long an entry stays unless it says otherwise; `None`: for ever.
    pub timeout: Option<Duration>,
    /// Whether entries count packets.
    pub counters: bool,
    /// In the order of the kernel.
    pub entries: Vec<SetEntry>,
}

impl SavedSets {
    /// Reads the output of `ipset save`; sets that are not ours are left out.
    ///
    /// # Errors
    /// [`SavedError::Line`].
    pub fn parse(text: &str) -> Result<Self, SavedError> {
        let mut saved = Self::default();
        for (number, line) in (1..).zip(text.lines()) {
            let mut words = line.split_whitespace();
            let known = match (words.next(), words.next()) {
                (None, _) => Some(()),
                (Some("create" | "add"), Some(name)) if !name.starts_with(SET_PREFIX) => Some(()),
                (Some("create"), Some(name)) => SavedSet::created(words).map(|set| {
                    saved.sets.insert(name.to_owned(), set);
                }),
                (Some("add"), Some(name)) => saved.sets.get_mut(name).and_then(|set| {
                    set.entries.push(entry(words)?);
                    Some(())
                }),
                _ => None,
            };
            known.ok_or_else(|| SavedError::Line {
                number,
                text: line.chars().take(80).collect(),
            })?;
        }
        Ok(saved)
    }

    /// Our sets as if they had been rendered; live ones without their entries.
    #[must_use]
    pub fn sets(&self) -> Vec<Set> {
        self.sets.iter().filter_map(|(name, set)| set.rendered(name)).collect()
    }
}

impl SavedSet {
    /// Whether it is a rendered set: as it was made, and where the policy decides, what it holds.
    #[must_use]
    pub fn is(&self, set: &Set) -> bool {
        if !self.same_type(set) || self.max_entries != set.max_entries {
            return false;
        }
        match &set.content {
            SetContent::Fixed(entries) => {
                self.timeout.is_none() && !self.counters && self.values() == borrowed(entries)
            }
            SetContent::Live { timeout, counters } => {
                self.timeout == Some(*timeout) && self.counters == *counters
            }
        }
    }

    /// Whether a rendered set can be swapped in for it.
    #[must_use]
    pub fn same_type(&self, set: &Set) -> bool {
        self.kind == Some(set.kind) && self.family == Some(set.family)
    }

    /// What it holds.
    pub(super) fn values(&self) -> BTreeSet<&str> {
        self.entries.iter().map(|entry| entry.value.as_str()).collect()
    }

    /// From the words after `create NAME`.
    fn created(mut words: SplitWhitespace<'_>) -> Option<Self> {
        let mut set = Self {
            kind: SetKind::parse(words.next()?),
            family: None,
            max_entries: 0,
            timeout: None,
            counters: false,
            entries: Vec::new(),
        };
        while let Some(word) = words.next() {
            match word {
                "family" => {
                    set.family = match words.next()? {
                        "inet" => Some(Family::V4),
                        "inet6" => Some(Family::V6),
                        _ => None,
                    }
                }
                "maxelem" => set.max_entries = words.next()?.parse().ok()?,
                "timeout" => set.timeout = Some(Duration::from_secs(words.next()?.parse().ok()?)),
                "counters" => set.counters = true,
                _ => {}
            }
        }
        Some(set)
    }

    fn rendered(&self, name: &str) -> Option<Set> {
        let content = match self.timeout {
            None => {
                SetContent::Fixed(self.entries.iter().map(|entry| entry.value.clone()).collect())
            }
            Some(timeout) => SetContent::Live { timeout, counters: self.counters },
        };
        Some(Set {
            name: name.to_owned(),
            kind: self.kind?,
            family: self.family?,
            max_entries: self.max_entries,
            content,
        })
    }
}

pub(super) fn borrowed(entries: &BTreeSet<String>) -> BTreeSet<&str> {
    entries.iter().map(String::as_str).collect()
}

/// From the words after `add NAME`.
fn entry(mut words: SplitWhitespace<'_>) -> Option<SetEntry> {
    let mut entry = SetEntry { value: canonical(words.next()?), expires_in: None, packets: 0 };
    while let Some(word) = words.next() {
        match word {
            "timeout" => entry.expires_in = Some(Duration::from_secs(words.next()?.parse().ok()?)),
            "packets" => entry.packets = words.next()?.parse().ok()?,
            _ => {}
        }
    }
    Some(entry)
}

/// An entry with its address as Rust prints it: the C library writes `::1.2.3.4` for `::102:304`
/// (inet_ntop(3)), Rust does not.
fn canonical(value: &str) -> String {
    let end = value.find(['/', ',']).unwrap_or(value.len());
    match value.split_at_checked(end) {
        Some((address, rest)) => match address.parse::<IpAddr>() {
            Ok(address) => format!("{address}{rest}"),
            Err(_no_address) => value.to_owned(),
        },
        None => value.to_owned(),
    }
}
