//! Names of an allowlist, indexed: one look costs a step for each label, however long the list is.
//!
//! What it deliberately does not do: interpret escapes. A name with anything in it but letters, digits,
//! hyphens and underscores is on no list: `x\.example.com`, where the first dot is part of a label,
//! reads like a name below `example.com` and is none.

use std::collections::{BTreeMap, BTreeSet};

use claw_core::firewall::{AllowedName, Port};
use hickory_proto::rr::Name;

/// On which ports the addresses of a name may be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// On every port.
    All,
    /// On these, TCP and UDP.
    Ports(BTreeSet<Port>),
}

impl Access {
    fn new(ports: &BTreeSet<Port>) -> Self {
        if ports.is_empty() { Self::All } else { Self::Ports(ports.clone()) }
    }

    /// What both allow together.
    fn with(self, other: &Self) -> Self {
        match (self, other) {
            (Self::All, _) | (_, Self::All) => Self::All,
            (Self::Ports(mut ports), Self::Ports(more)) => {
                ports.extend(more);
                Self::Ports(ports)
            }
        }
    }
}

/// The names of a list.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Names {
    exact: BTreeMap<String, Access>,
    below: BTreeMap<String, Access>,
}

impl Names {
    /// Indexes a list. A pattern that stands there several times allows what all of them allow.
    #[must_use]
    pub fn new(list: &[AllowedName]) -> Self {
        let mut names = Self::default();
        for allowed in list {
            let text = allowed.pattern.to_string();
            let (map, key) = match text.strip_prefix("*.") {
                Some(rest) => (&mut names.below, rest.to_owned()),
                None => (&mut names.exact, text),
            };
            let access = Access::new(&allowed.ports);
            let access = match map.remove(&key) {
                Some(present) => present.with(&access),
                None => access,
            };
            map.insert(key, access);
        }
        names
    }

    /// On which ports a name, in lower case and without the final dot, may be reached; `None` if it is
    /// not on the list.
    #[must_use]
    pub fn access(&self, name: &str) -> Option<Access> {
        let mut found = self.exact.get(name).cloned();
        let mut rest = name;
        while let Some((label, parent)) = rest.split_once('.') {
            if !label.is_empty()
                && let Some(access) = self.below.get(parent)
            {
                found = Some(match found {
                    Some(present) => present.with(access),
                    None => access.clone(),
                });
            }
            rest = parent;
        }
        found
    }
}

/// A name in lower case and without the final dot; `None` if it holds anything but letters, digits,
/// hyphens, underscores and dots between labels.
#[must_use]
pub fn plain(name: &Name) -> Option<String> {
    let mut text = String::with_capacity(name.len());
    for label in name.iter() {
        if !text.is_empty() {
            text.push('.');
        }
        for byte in label {
            let character = char::from(byte.to_ascii_lowercase());
            if !character.is_ascii_alphanumeric() && !matches!(character, '-' | '_') {
                return None;
            }
            text.push(character);
        }
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use claw_core::firewall::DomainPattern;
    use std::str::FromStr as _;

    use super::*;

    fn allowed(pattern: &str, ports: &[u16]) -> AllowedName {
        AllowedName {
            pattern: DomainPattern::parse(pattern).unwrap(),
            ports: ports.iter().copied().filter_map(Port::new).collect(),
        }
    }

    #[test]
    fn the_index_says_what_the_patterns_say() {
        let patterns = ["example.com", "*.example.com", "*.b.example.com", "a.example.org"];
        let list: Vec<AllowedName> = patterns.map(|pattern| allowed(pattern, &[])).into();
        let names = Names::new(&list);
        let candidates = [
            "example.com",
            "a.example.com",
            "x.b.example.com",
            "b.example.com",
            "badexample.com",
            "example.org",
            "a.example.org",
            "x.a.example.org",
            "com",
            "",
            ".example.com",
            "example.com.evil.net",
        ];
        for candidate in candidates {
            let expected = list.iter().any(|allowed| allowed.pattern.matches(candidate));
            assert_eq!(names.access(candidate).is_some(), expected, "{candidate:?}");
        }
    }

    #[test]
    fn ports_of_all_patterns_count() {
        let names = Names::new(&[
            allowed("*.example.com", &[443]),
            allowed("*.example.com", &[80]),
            allowed("a.example.com", &[22]),
            allowed("b.example.com", &[]),
        ]);
        let ports = |list: &[u16]| {
            Some(Access::Ports(list.iter().copied().filter_map(Port::new).collect()))
        };
        assert_eq!(names.access("x.example.com"), ports(&[80, 443]));
        assert_eq!(names.access("a.example.com"), ports(&[22, 80, 443]));
        assert_eq!(names.access("b.example.com"), Some(Access::All));
    }

    #[test]
    fn labels_that_hold_a_dot_are_on_no_list() {
        let name = Name::from_str("API.Example.COM.").unwrap();
        assert_eq!(plain(&name).as_deref(), Some("api.example.com"));
        let name = Name::from_labels([b"x.example".as_slice(), b"com"]).unwrap();
        assert_eq!(plain(&name), None);
    }
}
