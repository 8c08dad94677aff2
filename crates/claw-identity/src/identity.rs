//! Names in certificates: trust domain, role and name, written as a SPIFFE ID.
//!
//! `spiffe://<trust domain>/<role>/<name>`, after
//! <https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md>. Parsing is strict: one
//! spelling per identity, no percent-encoding, no query.

use std::fmt;
use std::str::FromStr;

use crate::peer::IdentityError;

/// Longest name of a peer, as for a DNS label (RFC 1035, section 2.3.4).
const MAX_NAME: usize = 63;
/// Longest trust domain (SPIFFE-ID, section 2.3).
const MAX_TRUST_DOMAIN: usize = 255;

/// What kind of peer a certificate stands for; what it may do is decided elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// The agent of one host; the name is the host's.
    Agent,
    /// An internal service: billing, dashboard, provisioning.
    Service,
    /// A person who may change the fleet.
    Operator,
    /// A person or program that may only look.
    Viewer,
}

/// The fleet that a certificate belongs to, for example `fleet.example.net`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrustDomain(String);

/// A role and a name: lower-case letters, digits, `-`, `.` and `_`, at most 63 characters,
/// beginning and ending with a letter or digit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerIdentity {
    role: Role,
    name: String,
}

/// Why a text is no trust domain, name, role or token id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityNameError {
    /// Empty or longer than the limit.
    #[error("must have 1 to {max} characters, has {actual}")]
    Length {
        /// The limit.
        max: usize,
        /// What it has.
        actual: usize,
    },
    /// A character or an end that is not allowed.
    #[error(
        "must be lower-case letters, digits, '-', '.' or '_', beginning and ending with a letter \
         or digit, got {got:?}"
    )]
    Characters {
        /// The text.
        got: String,
    },
    /// No such role.
    #[error("must be agent, service, operator or viewer, got {got:?}")]
    Role {
        /// The text, shortened to 80 characters.
        got: String,
    },
}

impl Role {
    /// As it stands in a SPIFFE ID.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Service => "service",
            Self::Operator => "operator",
            Self::Viewer => "viewer",
        }
    }
}

impl TrustDomain {
    /// Parses a trust domain; upper case is refused, not folded.
    ///
    /// # Errors
    ///
    /// [`IdentityNameError`] says which rule the text breaks.
    pub fn parse(text: &str) -> Result<Self, IdentityNameError> {
        check_name(text, MAX_TRUST_DOMAIN)?;
        Ok(Self(text.to_owned()))
    }

    /// The domain as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The SPIFFE ID of the domain itself, carried by its root certificate.
    #[must_use]
    pub fn spiffe_id(&self) -> String {
        format!("spiffe://{self}")
    }
}

impl PeerIdentity {
    /// An identity with a checked name.
    ///
    /// # Errors
    ///
    /// [`IdentityNameError`] says which rule the name breaks.
    pub fn new(role: Role, name: &str) -> Result<Self, IdentityNameError> {
        check_name(name, MAX_NAME)?;
        Ok(Self { role, name: name.to_owned() })
    }

    /// What kind of peer it is.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role
    }

    /// Its name, unique within the role.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `spiffe://<trust domain>/<role>/<name>`.
    #[must_use]
    pub fn spiffe_id(&self, trust_domain: &TrustDomain) -> String {
        format!("spiffe://{trust_domain}/{self}")
    }

    /// Takes a SPIFFE ID apart.
    ///
    /// # Errors
    ///
    /// [`IdentityError`]: no SPIFFE ID, unknown role, invalid name.
    pub(crate) fn parse_spiffe_id(uri: &str) -> Result<(TrustDomain, Self), IdentityError> {
        let malformed = || IdentityError::NotSpiffe { uri: shortened(uri) };
        let rest = uri.strip_prefix("spiffe://").ok_or_else(malformed)?;
        let mut parts = rest.split('/');
        let (Some(domain), Some(role), Some(name), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(malformed());
        };
        let domain = TrustDomain::parse(domain).map_err(IdentityError::TrustDomain)?;
        let role = role.parse().map_err(IdentityError::Role)?;
        Ok((domain, Self::new(role, name).map_err(IdentityError::Name)?))
    }
}

impl fmt::Display for Role {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = IdentityNameError;

    fn from_str(text: &str) -> Result<Self, IdentityNameError> {
        [Self::Agent, Self::Service, Self::Operator, Self::Viewer]
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or_else(|| IdentityNameError::Role { got: shortened(text) })
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl FromStr for TrustDomain {
    type Err = IdentityNameError;

    fn from_str(text: &str) -> Result<Self, IdentityNameError> {
        Self::parse(text)
    }
}

/// `<role>/<name>`.
impl fmt::Display for PeerIdentity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.role, self.name)
    }
}

/// Text of a stranger, bounded for an error message.
pub(crate) fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}

pub(crate) fn check_name(text: &str, max: usize) -> Result<(), IdentityNameError> {
    let actual = text.chars().count();
    if actual == 0 || actual > max {
        return Err(IdentityNameError::Length { max, actual });
    }
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-._".contains(c);
    let outer = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if text.chars().all(inner) && text.starts_with(outer) && text.ends_with(outer) {
        return Ok(());
    }
    Err(IdentityNameError::Characters { got: shortened(text) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spiffe_ids_come_back() {
        let domain = TrustDomain::parse("fleet.example.net").unwrap();
        for role in [Role::Agent, Role::Service, Role::Operator, Role::Viewer] {
            let identity = PeerIdentity::new(role, "host-1.a_b").unwrap();
            let uri = identity.spiffe_id(&domain);
            assert_eq!(uri, format!("spiffe://fleet.example.net/{role}/host-1.a_b"));
            assert_eq!(PeerIdentity::parse_spiffe_id(&uri).unwrap(), (domain.clone(), identity));
        }
    }

    #[test]
    fn anything_but_the_one_spelling_is_refused() {
        for uri in [
            "",
            "spiffe://",
            "spiffe://d",
            "spiffe://d/agent",
            "spiffe://d/agent/",
            "spiffe://d/agent/a/b",
            "spiffe://d/agent/a/",
            "spiffe://d//a",
            "spiffe:///agent/a",
            "SPIFFE://d/agent/a",
            "spiffe://D/agent/a",
            "spiffe://d/Agent/a",
            "spiffe://d/root/a",
            "spiffe://d/agent/A",
            "spiffe://d/agent/a b",
            "spiffe://d/agent/a%2fb",
            "spiffe://d/agent/..",
            "spiffe://d/agent/a?x=1",
            "spiffe://d/agent/a#x",
            "spiffe://u@d/agent/a",
            "spiffe://d:443/agent/a",
            "spiffe://d/agent/a\0",
            "https://d/agent/a",
        ] {
            assert!(PeerIdentity::parse_spiffe_id(uri).is_err(), "{uri}");
        }
        let long = format!("spiffe://d/agent/{}", "a".repeat(64));
        assert!(PeerIdentity::parse_spiffe_id(&long).is_err());
    }
}
