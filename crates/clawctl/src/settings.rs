//! Where the coordinator is, who is calling and how long a call may take.
//!
//! A flag or its environment variable wins over `clawctl.toml`. Nothing is sent from here.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::cli::ConnectionArgs;

/// The coordinator's port for everything.
pub(crate) const DEFAULT_PORT: u16 = 7443;

/// Deadline of one call.
const DEFAULT_DEADLINE: Duration = Duration::from_secs(30);

/// Everything that a connection needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) endpoint: Endpoint,
    /// Directory with key.pem, cert.pem and ca.pem.
    pub(crate) identity: PathBuf,
    /// Deadline of one call.
    pub(crate) deadline: Duration,
    /// What `--timeout` said, for waits.
    pub(crate) patience: Option<Duration>,
}

/// A host, by name or address, and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// Without brackets, also for IPv6.
    pub(crate) host: String,
    pub(crate) port: u16,
}

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SettingsError {
    #[error("no coordinator is set")]
    NoEndpoint,
    #[error("no identity is set and there is no home directory to look for one in")]
    NoIdentity,
    #[error("endpoint {text:?} is not HOST:PORT")]
    Endpoint { text: String },
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is malformed", path.display())]
    Malformed {
        path: PathBuf,
        #[source]
        source: Box<toml::de::Error>,
    },
}

/// `clawctl.toml`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSettings {
    endpoint: Option<String>,
    /// Relative to the file's directory.
    identity: Option<PathBuf>,
}

impl Settings {
    /// Puts flags and file together. `variable` reads the process's environment.
    pub(crate) fn load(
        arguments: &ConnectionArgs,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, SettingsError> {
        let home = config_home(variable);
        let raw = match &arguments.config {
            Some(path) => read(path)?.ok_or_else(|| SettingsError::Read {
                path: path.clone(),
                source: io::ErrorKind::NotFound.into(),
            })?,
            None => match &home {
                Some(home) => read(&home.join("clawctl.toml"))?.unwrap_or_default(),
                None => RawSettings::default(),
            },
        };
        let endpoint = arguments.endpoint.as_ref().or(raw.endpoint.as_ref());
        Ok(Self {
            endpoint: Endpoint::parse(endpoint.ok_or(SettingsError::NoEndpoint)?)?,
            identity: arguments
                .identity
                .clone()
                .or(raw.identity)
                .or(home)
                .ok_or(SettingsError::NoIdentity)?,
            deadline: arguments.timeout.unwrap_or(DEFAULT_DEADLINE),
            patience: arguments.timeout,
        })
    }
}

impl Endpoint {
    /// Parses `host`, `host:port`, `[v6]:port`, each also behind `https://`.
    pub(crate) fn parse(text: &str) -> Result<Self, SettingsError> {
        let malformed = || SettingsError::Endpoint { text: text.to_owned() };
        let bare = text.trim().strip_prefix("https://").unwrap_or_else(|| text.trim());
        let bare = bare.strip_suffix('/').unwrap_or(bare);
        let (host, port) = match bare.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']').ok_or_else(malformed)?;
                (host, if port.is_empty() { None } else { port.strip_prefix(':').or(Some("")) })
            }
            None => match bare.rsplit_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (bare, None),
            },
        };
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        let is_host = if bare.starts_with('[') {
            host.parse::<std::net::Ipv6Addr>().is_ok()
        } else {
            !host.is_empty() && host.chars().all(is_name)
        };
        if !is_host {
            return Err(malformed());
        }
        let port = match port {
            Some(port) => port.parse().map_err(|_| malformed())?,
            None => DEFAULT_PORT,
        };
        Ok(Self { host: host.to_owned(), port })
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// The XDG base directory specification's place for configuration, or macOS users' equivalent.
fn config_home(variable: &dyn Fn(&str) -> Option<String>) -> Option<PathBuf> {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("XDG_CONFIG_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".config")))
        .map(|base| base.join("clawctl"))
}

/// `None` if there is no such file.
fn read(path: &Path) -> Result<Option<RawSettings>, SettingsError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(SettingsError::Read { path: path.to_owned(), source }),
    };
    let mut raw: RawSettings = toml::from_str(&text).map_err(|source| {
        SettingsError::Malformed { path: path.to_owned(), source: Box::new(source) }
    })?;
    let directory = path.parent().unwrap_or_else(|| Path::new("."));
    raw.identity = raw.identity.map(|identity| directory.join(identity));
    Ok(Some(raw))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints() {
        let shown = |text| Endpoint::parse(text).map(|endpoint| endpoint.to_string());
        for (text, expected) in [
            ("fleet.example", "fleet.example:7443"),
            ("127.0.0.1:9000", "127.0.0.1:9000"),
            ("https://fleet.example:443/", "fleet.example:443"),
            ("[2001:db8::1]", "[2001:db8::1]:7443"),
            ("[::1]:80", "[::1]:80"),
        ] {
            assert_eq!(shown(text).unwrap(), expected);
        }
        for wrong in
            ["", ":7443", "a b", "host:", "host:x", "host:70000", "::1", "[::1", "[::1]x", "[a]:1"]
        {
            assert!(shown(wrong).is_err(), "{wrong}");
        }
    }

    fn arguments() -> ConnectionArgs {
        ConnectionArgs { endpoint: None, identity: None, config: None, timeout: None }
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join("clawctl");
        std::fs::create_dir(&directory).unwrap();
        let at = home.path().to_str().unwrap().to_owned();
        let variable = move |name: &str| (name == "XDG_CONFIG_HOME").then(|| at.clone());
        let load = |arguments: &ConnectionArgs| Settings::load(arguments, &variable);

        assert!(matches!(load(&arguments()), Err(SettingsError::NoEndpoint)));
        std::fs::write(directory.join("clawctl.toml"), "endpoint = \"one\"\nidentity = \"id\"\n")
            .unwrap();
        let settings = load(&arguments()).unwrap();
        assert_eq!(settings.endpoint.to_string(), "one:7443");
        assert_eq!(settings.identity, directory.join("id"));
        assert_eq!(settings.deadline, DEFAULT_DEADLINE);

        let flags = ConnectionArgs {
            endpoint: Some("two".to_owned()),
            identity: Some(PathBuf::from("/elsewhere")),
            timeout: Some(Duration::from_secs(2)),
            ..arguments()
        };
        let settings = load(&flags).unwrap();
        assert_eq!(settings.endpoint.to_string(), "two:7443");
        assert_eq!(settings.identity, Path::new("/elsewhere"));
        assert_eq!(settings.patience, Some(Duration::from_secs(2)));

        std::fs::write(directory.join("clawctl.toml"), "endpont = \"one\"\n").unwrap();
        assert!(matches!(load(&arguments()), Err(SettingsError::Malformed { .. })));
        let named = ConnectionArgs { config: Some(home.path().join("absent")), ..arguments() };
        assert!(matches!(load(&named), Err(SettingsError::Read { .. })));
    }
}
