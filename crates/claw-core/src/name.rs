//! Names that are valid by construction: hosts, instances, variables, files, images, domains.
//!
//! Each type is made once, at the edge of a process, by `parse`; code that holds one needs no
//! further check. Nothing here looks anything up.

use std::fmt;
use std::str::FromStr;

/// Why a text is not a valid name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The text is empty.
    #[error("must not be empty")]
    Empty,
    /// The text is longer than the kind of name allows.
    #[error("must be at most {max} characters, has {actual}")]
    TooLong {
        /// Most characters that the kind allows.
        max: usize,
        /// Characters that the text has.
        actual: usize,
    },
    /// The text does not follow the form of this kind of name.
    #[error("must be {expected}, got {got:?}")]
    Malformed {
        /// The form, in words.
        expected: &'static str,
        /// The text, shortened to 80 characters.
        got: String,
    },
}

impl NameError {
    fn malformed(expected: &'static str, got: &str) -> Self {
        Self::Malformed { expected, got: got.chars().take(80).collect() }
    }
}

fn bounded(text: &str, max: usize) -> Result<(), NameError> {
    let actual = text.chars().count();
    if actual == 0 {
        return Err(NameError::Empty);
    }
    if actual > max {
        return Err(NameError::TooLong { max, actual });
    }
    Ok(())
}

fn is_label(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    !text.is_empty()
        && text.len() <= 63
        && text.chars().all(allowed)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

macro_rules! text_name {
    ($(#[$doc:meta])* $name:ident, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// Parses a name.
            ///
            /// # Errors
            /// [`NameError`] says which rule the text breaks.
            pub fn parse(text: &str) -> Result<Self, NameError> {
                let check: fn(&str) -> Result<(), NameError> = $check;
                check(text)?;
                Ok(Self(text.to_owned()))
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::parse(text)
            }
        }
    };
}

text_name!(
    /// A customer's gateway: a DNS label of at most 40 characters that starts with a letter.
    ///
    /// 40 leaves room for prefixes (`claw-`) in container, network and host names, whose own limit
    /// is 63 (RFC 1035, section 2.3.4).
    InstanceName,
    |text| {
        bounded(text, 40)?;
        if is_label(text) && text.starts_with(|c: char| c.is_ascii_lowercase()) {
            return Ok(());
        }
        Err(NameError::malformed(
            "lower-case letters, digits and hyphens, starting with a letter and ending with a letter or digit",
            text,
        ))
    }
);

text_name!(
    /// A snapshot of an instance: a DNS label, unique within the instance.
    SnapshotName,
    |text| {
        bounded(text, 63)?;
        if is_label(text) {
            return Ok(());
        }
        Err(NameError::malformed(
            "lower-case letters, digits and hyphens, starting and ending with a letter or digit",
            text,
        ))
    }
);

text_name!(
    /// A host of the fleet: a DNS label of at most 63 characters (RFC 1035, section 2.3.4).
    HostName,
    |text| {
        bounded(text, 63)?;
        if is_label(text) {
            return Ok(());
        }
        Err(NameError::malformed(
            "lower-case letters, digits and hyphens, starting and ending with a letter or digit",
            text,
        ))
    }
);

text_name!(
    /// The name of an environment variable: `[A-Z_][A-Z0-9_]*`, at most 128 characters.
    ///
    /// Lower case is refused because OpenClaw substitutes upper-case names only.
    EnvName,
    |text| {
        bounded(text, 128)?;
        let allowed = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
        if text.chars().all(allowed) && !text.starts_with(|c: char| c.is_ascii_digit()) {
            return Ok(());
        }
        Err(NameError::malformed("an environment variable name of A-Z, 0-9 and _", text))
    }
);

text_name!(
    /// A fully qualified domain name in lower case: at most 253 characters (RFC 1035).
    DomainName,
    |text| {
        bounded(text, 253)?;
        if text.split('.').all(is_label) {
            return Ok(());
        }
        Err(NameError::malformed("a domain name in lower case", text))
    }
);

text_name!(
    /// A web origin as a browser sends it: `http://` or `https://`, a host, an optional port.
    Origin,
    |text| {
        bounded(text, 300)?;
        let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
        let valid = rest.is_some_and(|rest| {
            let (host, port) = rest.split_once(':').map_or((rest, None), |(h, p)| (h, Some(p)));
            let host_ok = host.split('.').all(is_label);
            host_ok && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
        });
        if valid {
            return Ok(());
        }
        Err(NameError::malformed("an origin such as https://tenant.example", text))
    }
);

text_name!(
    /// A file below an instance's state directory: relative, no `..`, no hidden component, ≤ 200 characters.
    ///
    /// Hidden components are refused because `.env` is where secrets are mounted.
    StatePath,
    |text| {
        bounded(text, 200)?;
        let component = |part: &str| {
            !part.is_empty()
                && !part.starts_with('.')
                && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        };
        if text.split('/').all(component) {
            return Ok(());
        }
        Err(NameError::malformed("a relative path of letters, digits, '-', '_' and '.', with no hidden part", text))
    }
);

text_name!(
    /// An image to run: `repository@sha256:…`, `repository:tag`, or `sha256:…` (the id of a loaded image).
    ///
    /// The form is the reference grammar of the OCI distribution specification, bounded to 400 characters.
    ImageRef,
    |text| {
        bounded(text, 400)?;
        if is_image_reference(text) {
            return Ok(());
        }
        Err(NameError::malformed("an image such as ghcr.io/openclaw/openclaw@sha256:<64 hex digits>", text))
    }
);

impl ImageRef {
    /// Whether the reference names exactly one content for ever.
    #[must_use]
    pub fn is_pinned(&self) -> bool {
        self.is_id() || self.0.contains("@sha256:")
    }

    /// Whether it is the id of an image on a host, which no registry knows.
    #[must_use]
    pub fn is_id(&self) -> bool {
        self.0.starts_with("sha256:")
    }
}

fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f'))
}

fn is_image_reference(text: &str) -> bool {
    if let Some(hex) = text.strip_prefix("sha256:") {
        return is_sha256(hex);
    }
    let (name, digest) = text.split_once('@').map_or((text, None), |(n, d)| (n, Some(d)));
    if let Some(digest) = digest
        && !digest.strip_prefix("sha256:").is_some_and(is_sha256)
    {
        return false;
    }
    let (path, tag) = match name.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
        _ => (name, None),
    };
    let tag_ok = |tag: &str| {
        (1..=128).contains(&tag.len())
            && tag.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
            && !tag.starts_with(['.', '-'])
    };
    let component = |(index, part): (usize, &str)| {
        let port = |c: char| index == 0 && c == ':';
        let allowed = |c: char| {
            c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '-' | '_') || port(c)
        };
        !part.is_empty()
            && part.chars().all(allowed)
            && part.starts_with(|c: char| c.is_ascii_alphanumeric())
    };
    path.split('/').enumerate().all(component) && tag.is_none_or(tag_ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instance_names() {
        for good in ["a", "demo", "tenant-1", "x9"] {
            assert_eq!(InstanceName::parse(good).map(|n| n.to_string()), Ok(good.to_owned()));
        }
        let long = "a".repeat(41);
        for bad in ["", "1a", "-a", "a-", "A", "a_b", "a.b", "ä", long.as_str()] {
            assert!(InstanceName::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn image_references() {
        let hex = "0123456789abcdef".repeat(4);
        for good in [
            "nginx".to_owned(),
            "ghcr.io/openclaw/openclaw:2026.9.6".to_owned(),
            format!("ghcr.io/openclaw/openclaw@sha256:{hex}"),
            format!("localhost:5000/a/b:latest@sha256:{hex}"),
            format!("sha256:{hex}"),
        ] {
            assert!(ImageRef::parse(&good).is_ok(), "{good}");
        }
        for bad in ["", "a b", "a:", "A/b", "x@sha256:12", "sha256:zz", "a//b", "a;rm", "-a"] {
            assert!(ImageRef::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn state_paths_stay_inside_and_off_the_secrets() {
        for good in ["workspace/SOUL.md", "a", "a-b_c.d/e"] {
            assert!(StatePath::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "/etc/passwd", "../x", "a/../b", ".env", "a/.git/config", "a//b", "a b"] {
            assert!(StatePath::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn origins() {
        for good in ["https://a.example", "http://localhost:8080"] {
            assert!(Origin::parse(good).is_ok(), "{good}");
        }
        for bad in ["a.example", "https://", "https://a/b", "https://a:0", "ftp://a", "https://*"] {
            assert!(Origin::parse(bad).is_err(), "{bad}");
        }
    }
}
