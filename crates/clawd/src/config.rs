//! `clawd.toml`: read once, checked completely before anything starts.
//!
//! [`Config::load`] reports every fault at once. What the coordinator decides is not here.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use claw_core::address::AddressPool;
use serde::{Deserialize, Serialize};

use crate::session::address::Address;

/// Where the configuration is unless the command line says otherwise.
pub const STANDARD_PATH: &str = "/etc/clawd/clawd.toml";
/// The port of name servers (RFC 1035).
const DNS_PORT: u16 = 53;
/// The C library asks three; more would not be asked in time.
const MAX_UPSTREAMS: usize = 8;

/// A complete and valid configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where the coordinator is; `None` leaves it to what `clawd join` recorded.
    pub coordinator: Option<Address>,
    /// From where instances get their networks.
    pub pool: AddressPool,
    /// What the reverse proxy listens on; `None`: port 8080 of every address.
    pub proxy_listen: Option<Vec<SocketAddr>>,
    /// Directory of virtual hosts, included by nginx.
    pub proxy_hosts: PathBuf,
    /// Journal, identity, data of instances.
    pub data_dir: PathBuf,
    /// Secrets; on tmpfs.
    pub run_dir: PathBuf,
    /// Docker's socket.
    pub docker_socket: PathBuf,
    /// Name servers that the forwarder asks; `None`: those of `/etc/resolv.conf`.
    pub dns_upstreams: Option<Vec<SocketAddr>>,
    /// Between two looks at a healthy gateway.
    pub probe_healthy: Duration,
    /// Between two looks at a gateway that was healthy and is not.
    pub probe_failing: Duration,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// It is no TOML of the known form.
    #[error("{} cannot be understood", path.display())]
    Parse {
        /// Which.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// Values are wrong.
    #[error("{} has {} faults: {}", path.display(), faults.len(), Listed(faults))]
    Faults {
        /// Which.
        path: PathBuf,
        /// Every fault.
        faults: Vec<Fault>,
    },
}

/// One wrong value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Its key, such as `network.address_pool`.
    pub key: &'static str,
    /// What is wrong with what.
    pub problem: String,
}

/// As it stands in the file.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
struct RawConfig {
    coordinator: RawCoordinator,
    network: RawNetwork,
    proxy: RawProxy,
    paths: RawPaths,
    docker: RawDocker,
    dns: RawDns,
    probe: RawProbe,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
struct RawCoordinator {
    endpoint: Option<String>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
struct RawNetwork {
    address_pool: String,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
struct RawProxy {
    listen: Option<Vec<String>>,
    hosts_dir: PathBuf,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
struct RawPaths {
    data_dir: PathBuf,
    run_dir: PathBuf,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
struct RawDocker {
    socket: PathBuf,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
struct RawDns {
    upstreams: Option<Vec<String>>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
struct RawProbe {
    healthy_interval_ms: u64,
    failing_interval_ms: u64,
}

impl Default for RawNetwork {
    fn default() -> Self {
        Self { address_pool: AddressPool::STANDARD.to_string() }
    }
}

impl Default for RawProxy {
    fn default() -> Self {
        Self { listen: None, hosts_dir: PathBuf::from("/etc/nginx/claw.d") }
    }
}

impl Default for RawPaths {
    fn default() -> Self {
        Self { data_dir: PathBuf::from("/var/lib/clawd"), run_dir: PathBuf::from("/run/clawd") }
    }
}

impl Default for RawDocker {
    fn default() -> Self {
        Self { socket: PathBuf::from("/run/docker.sock") }
    }
}

impl Default for RawProbe {
    fn default() -> Self {
        Self { healthy_interval_ms: 10_000, failing_interval_ms: 1000 }
    }
}

impl Config {
    /// Reads a file; the standard one may be absent, which means every default.
    ///
    /// # Errors
    /// [`ConfigError`] with every fault.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text, path),
            Err(source)
                if source.kind() == std::io::ErrorKind::NotFound
                    && path == Path::new(STANDARD_PATH) =>
            {
                Self::parse("", path)
            }
            Err(source) => Err(ConfigError::Read { path: path.to_owned(), source }),
        }
    }

    /// Reads a text; `path` is for errors.
    ///
    /// # Errors
    /// [`ConfigError`] with every fault.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let raw: RawConfig = toml::from_str(text).map_err(|source| ConfigError::Parse {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        Self::try_from(raw).map_err(|faults| ConfigError::Faults { path: path.to_owned(), faults })
    }

    /// The whole configuration as TOML, defaults filled in.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let raw = RawConfig {
            coordinator: RawCoordinator {
                endpoint: self.coordinator.as_ref().map(ToString::to_string),
            },
            network: RawNetwork { address_pool: self.pool.to_string() },
            proxy: RawProxy {
                listen: self
                    .proxy_listen
                    .as_ref()
                    .map(|listen| listen.iter().map(ToString::to_string).collect()),
                hosts_dir: self.proxy_hosts.clone(),
            },
            paths: RawPaths { data_dir: self.data_dir.clone(), run_dir: self.run_dir.clone() },
            docker: RawDocker { socket: self.docker_socket.clone() },
            dns: RawDns {
                upstreams: self
                    .dns_upstreams
                    .as_ref()
                    .map(|servers| servers.iter().map(ToString::to_string).collect()),
            },
            probe: RawProbe {
                healthy_interval_ms: millis(self.probe_healthy),
                failing_interval_ms: millis(self.probe_failing),
            },
        };
        // Texts, numbers and tables: nothing that TOML cannot hold.
        toml::to_string(&raw).unwrap_or_default()
    }
}

impl TryFrom<RawConfig> for Config {
    type Error = Vec<Fault>;

    fn try_from(raw: RawConfig) -> Result<Self, Vec<Fault>> {
        let mut faults = Faults(Vec::new());
        let endpoint = raw.coordinator.endpoint.map(|text| text.parse::<Address>());
        let coordinator = faults.take("coordinator.endpoint", endpoint.transpose()).flatten();
        let pool = faults.take("network.address_pool", parse_pool(&raw.network.address_pool));
        let listen = raw.proxy.listen.map(|list| parse_listen(&list));
        let proxy_listen = faults.take("proxy.listen", listen.transpose()).flatten();
        faults.absolute("proxy.hosts_dir", &raw.proxy.hosts_dir);
        faults.absolute("paths.data_dir", &raw.paths.data_dir);
        faults.absolute("paths.run_dir", &raw.paths.run_dir);
        faults.absolute("docker.socket", &raw.docker.socket);
        let upstreams = raw.dns.upstreams.map(|list| parse_upstreams(&list));
        let dns_upstreams = faults.take("dns.upstreams", upstreams.transpose()).flatten();
        let healthy = raw.probe.healthy_interval_ms;
        let probe_healthy = faults.interval("probe.healthy_interval_ms", healthy);
        let failing = raw.probe.failing_interval_ms;
        let probe_failing = faults.interval("probe.failing_interval_ms", failing);
        let (Some(pool), true) = (pool, faults.0.is_empty()) else { return Err(faults.0) };
        Ok(Self {
            coordinator,
            pool,
            proxy_listen,
            proxy_hosts: raw.proxy.hosts_dir,
            data_dir: raw.paths.data_dir,
            run_dir: raw.paths.run_dir,
            docker_socket: raw.docker.socket,
            dns_upstreams,
            probe_healthy,
            probe_failing,
        })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.problem)
    }
}

struct Listed<'a>(&'a [Fault]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faults: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&faults.join("; "))
    }
}

struct Faults(Vec<Fault>);

impl Faults {
    fn push(&mut self, key: &'static str, problem: impl fmt::Display) {
        self.0.push(Fault { key, problem: problem.to_string() });
    }

    fn take<T, E: fmt::Display>(&mut self, key: &'static str, result: Result<T, E>) -> Option<T> {
        result.map_err(|problem| self.push(key, problem)).ok()
    }

    fn absolute(&mut self, key: &'static str, path: &Path) {
        if !path.is_absolute() {
            self.push(
                key,
                format!("must be an absolute path, got {:?}", path.display().to_string()),
            );
        }
    }

    fn interval(&mut self, key: &'static str, millis: u64) -> Duration {
        if !(100..=600_000).contains(&millis) {
            self.push(key, format!("must be between 100 and 600000 ms, got {millis}"));
        }
        Duration::from_millis(millis)
    }
}

fn parse_pool(text: &str) -> Result<AddressPool, String> {
    let fault = || format!("must be a private /16 such as 10.201.0.0/16, got {text:?}");
    let octets = text.strip_suffix(".0.0/16").ok_or_else(fault)?;
    let (first, second) = octets.split_once('.').ok_or_else(fault)?;
    match (first.parse(), second.parse()) {
        (Ok(first), Ok(second)) => AddressPool::new(first, second).ok_or_else(fault),
        _ => Err(fault()),
    }
}

fn parse_listen(texts: &[String]) -> Result<Vec<SocketAddr>, String> {
    let addresses = texts.iter().map(|text| {
        let address: Result<SocketAddr, _> = text.parse();
        address.map_err(|_invalid| {
            format!("must be addresses such as 0.0.0.0:8080 or [::]:8080, got {text:?}")
        })
    });
    let addresses = addresses.collect::<Result<Vec<_>, String>>()?;
    if addresses.is_empty() {
        return Err("must not be empty".to_owned());
    }
    Ok(addresses)
}

/// Addresses of name servers, with port 53 unless they name another.
fn parse_upstreams(texts: &[String]) -> Result<Vec<SocketAddr>, String> {
    let servers = texts.iter().map(|text| {
        let plain = text.parse().map(|address| SocketAddr::new(address, DNS_PORT));
        let server = plain.or_else(|_no_address| text.parse());
        server.map_err(|_invalid| {
            format!("must be addresses such as 9.9.9.9 or [2620:fe::fe]:53, got {text:?}")
        })
    });
    let servers = servers.collect::<Result<Vec<_>, String>>()?;
    if servers.is_empty() || servers.len() > MAX_UPSTREAMS {
        return Err(format!("must be 1 to {MAX_UPSTREAMS} addresses, got {}", servers.len()));
    }
    Ok(servers)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("clawd.toml"))
    }

    #[test]
    fn defaults_are_complete_and_print_as_they_are_read() {
        let config = parse("").unwrap();
        assert_eq!(config.pool, AddressPool::STANDARD);
        assert_eq!(parse(&config.to_toml()).unwrap(), config);
        let text = "[coordinator]\nendpoint = \"a.example:7443\"\n[proxy]\nlisten = [\"127.0.0.1:8080\"]\n\
                    [dns]\nupstreams = [\"192.0.2.1\", \"[2001:db8::1]:5353\"]\n";
        let config = parse(text).unwrap();
        assert_eq!(parse(&config.to_toml()).unwrap(), config);
    }

    #[test]
    fn the_shipped_file_holds_exactly_the_defaults() {
        let shipped = include_str!("../../../packaging/clawd/clawd.toml");
        assert_eq!(parse(shipped).unwrap(), parse("").unwrap());
    }

    #[test]
    fn every_fault_is_reported_at_once() {
        let text = "
            coordinator.endpoint = 'nowhere'
            network.address_pool = '8.8.0.0/16'
            proxy = { listen = ['x'], hosts_dir = 'relative' }
            dns.upstreams = ['9.9.9.9', 'dns.example']
            probe.healthy_interval_ms = 1
        ";
        let Err(ConfigError::Faults { faults, .. }) = parse(text) else {
            panic!("must be refused")
        };
        let keys: Vec<_> = faults.iter().map(|fault| fault.key).collect();
        assert_eq!(
            keys,
            [
                "coordinator.endpoint",
                "network.address_pool",
                "proxy.listen",
                "proxy.hosts_dir",
                "dns.upstreams",
                "probe.healthy_interval_ms",
            ]
        );
    }

    #[test]
    fn unknown_keys_are_refused() {
        let error = parse("[docker]\nsokcet = '/x'\n").unwrap_err();
        assert!(crate::logging::chain(&error).contains("sokcet"), "{error}");
    }
}
