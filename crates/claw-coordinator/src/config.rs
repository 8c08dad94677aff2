//! The configuration file: TOML, every fault at once, defaults for everything.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use claw_core::spec::Resources;
use claw_core::tier::TierCatalogue;
use claw_core::unit::{CpuMillis, MIB, Memory, PidsLimit};
use serde::{Deserialize, Serialize};

use crate::connection::Lifetimes;
use crate::limits::Rate;
use crate::listener::ListenerLimits;
use crate::server_certificate::parse_name;
use crate::session::Terms;

/// A checked configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to listen; port 0 for any.
    pub listen: SocketAddr,
    /// Database, keys and certificates.
    pub data_dir: PathBuf,
    /// Threads of the runtime.
    pub workers: NonZeroUsize,
    /// Names of the server's certificate; empty for those given to `init`.
    pub server_names: Vec<String>,
    /// How to log.
    pub log_format: LogFormat,
    /// How long an agent's certificate lives.
    pub agent_lifetime: Duration,
    /// Terms of sessions.
    pub terms: Terms,
    /// Nobody is declared offline for this long after a start.
    pub grace: Duration,
    /// How fast sessions may begin.
    pub admission: Rate,
    /// Bounds of the listener.
    pub listener: ListenerLimits,
    /// Longest life of connections and calls.
    pub lifetimes: Lifetimes,
    /// Watches at a time.
    pub watches: usize,
    /// Time for connections to end.
    pub drain: Duration,
    /// What tiers give.
    pub tiers: TierCatalogue,
}

/// How to log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Not TOML, or with unknown keys.
    #[error("cannot parse the configuration")]
    Parse(#[from] toml::de::Error),
    /// Values that cannot be.
    #[error("the configuration is wrong:{}", list(.0))]
    Faults(Vec<ConfigFault>),
}

/// One wrong value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigFault {
    /// Where, such as `session.heartbeat_seconds`.
    pub key: String,
    /// What is wrong.
    pub problem: String,
}

impl fmt::Display for ConfigFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.problem)
    }
}

fn list(faults: &[ConfigFault]) -> String {
    faults.iter().map(|fault| format!("\n  {fault}")).collect()
}

/// The file as written.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawConfig {
    listen: String,
    data_dir: PathBuf,
    workers: usize,
    server_names: Vec<String>,
    log_format: LogFormat,
    agent_certificate_hours: u64,
    session: RawSession,
    limits: RawLimits,
    shutdown: RawShutdown,
    tiers: BTreeMap<String, RawTier>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawSession {
    heartbeat_seconds: u64,
    grace_seconds: u64,
    admission_per_second: u32,
    admission_burst: u32,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawLimits {
    handshake_seconds: u64,
    handshakes: usize,
    handshakes_per_source: usize,
    anonymous_per_source: usize,
    connections_per_identity: usize,
    connection_hours: u64,
    anonymous_seconds: u64,
    call_seconds: u64,
    watches: usize,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawShutdown {
    drain_seconds: u64,
    retry_after_seconds: u64,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTier {
    memory_mib: u64,
    cpu_millis: u64,
    pids: u64,
}

impl Default for RawConfig {
    fn default() -> Self {
        let tier = |memory_mib, cpu_millis| RawTier { memory_mib, cpu_millis, pids: 512 };
        Self {
            listen: "[::]:7443".to_owned(),
            data_dir: PathBuf::from("/var/lib/claw-coordinator"),
            workers: 2,
            server_names: Vec::new(),
            log_format: LogFormat::Text,
            agent_certificate_hours: 168,
            session: RawSession::default(),
            limits: RawLimits::default(),
            shutdown: RawShutdown::default(),
            tiers: BTreeMap::from([
                ("budget".to_owned(), tier(1024, 1000)),
                ("balanced".to_owned(), tier(2048, 2000)),
                ("pro".to_owned(), tier(4096, 4000)),
            ]),
        }
    }
}

impl Default for RawSession {
    fn default() -> Self {
        Self {
            heartbeat_seconds: 10,
            grace_seconds: 60,
            admission_per_second: 2000,
            admission_burst: 4000,
        }
    }
}

impl Default for RawLimits {
    fn default() -> Self {
        Self {
            handshake_seconds: 5,
            handshakes: 4096,
            handshakes_per_source: 1024,
            anonymous_per_source: 64,
            connections_per_identity: 64,
            connection_hours: 24,
            anonymous_seconds: 60,
            call_seconds: 30,
            watches: 1000,
        }
    }
}

impl Default for RawShutdown {
    fn default() -> Self {
        Self { drain_seconds: 20, retry_after_seconds: 2 }
    }
}

impl RawConfig {
    /// Reads a file.
    ///
    /// # Errors
    /// [`ConfigError::Read`], [`ConfigError::Parse`]
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text)
    }

    /// Parses a text.
    ///
    /// # Errors
    /// [`ConfigError::Parse`]
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        Ok(toml::from_str(text)?)
    }

    /// The configuration with every default filled in.
    ///
    /// # Errors
    /// When a value cannot be written as TOML.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string(self)
    }
}

impl TryFrom<RawConfig> for Config {
    type Error = ConfigError;

    fn try_from(raw: RawConfig) -> Result<Self, ConfigError> {
        let mut faults = Faults::default();
        let listen = raw.listen.parse().map_err(|error| {
            faults.add("listen", format!("must be an address with a port: {error}"));
        });
        if !raw.data_dir.is_absolute() {
            faults.add("data_dir", "must be an absolute path");
        }
        for (index, name) in raw.server_names.iter().enumerate() {
            if let Err(error) = parse_name(name) {
                faults.add(&format!("server_names[{index}]"), error);
            }
        }
        let workers = faults.bounded("workers", raw.workers, 1, 1024);
        let hours = |hours: u64| Duration::from_secs(hours * 3600);
        let agent_hours =
            faults.bounded("agent_certificate_hours", raw.agent_certificate_hours, 1, 24 * 365);
        let session = faults.session(&raw.session);
        let listener = faults.listener(&raw.limits);
        let lifetimes = faults.lifetimes(&raw.limits);
        let watches = faults.bounded("limits.watches", raw.limits.watches, 1, 100_000);
        let drain = faults.bounded("shutdown.drain_seconds", raw.shutdown.drain_seconds, 0, 600);
        let retry = raw.shutdown.retry_after_seconds;
        let retry = faults.bounded("shutdown.retry_after_seconds", retry, 0, 600);
        let tiers = faults.tiers(&raw.tiers);
        let (Ok(listen), []) = (listen, faults.0.as_slice()) else {
            return Err(ConfigError::Faults(faults.0));
        };
        let (heartbeat, grace, admission) = session;
        Ok(Self {
            listen,
            data_dir: raw.data_dir,
            workers: NonZeroUsize::new(workers).unwrap_or(NonZeroUsize::MIN),
            server_names: raw.server_names,
            log_format: raw.log_format,
            agent_lifetime: hours(agent_hours),
            terms: Terms {
                heartbeat_interval: heartbeat,
                hello_deadline: Duration::from_secs(10),
                retry_after: Duration::from_secs(retry),
            },
            grace,
            admission,
            listener,
            lifetimes,
            watches,
            drain: Duration::from_secs(drain),
            tiers: TierCatalogue::new(tiers),
        })
    }
}

/// Collects what is wrong.
#[derive(Default)]
struct Faults(Vec<ConfigFault>);

impl Faults {
    fn add(&mut self, key: &str, problem: impl fmt::Display) {
        self.0.push(ConfigFault { key: key.to_owned(), problem: problem.to_string() });
    }

    fn bounded<T: PartialOrd + fmt::Display>(&mut self, key: &str, value: T, min: T, max: T) -> T {
        if value < min || value > max {
            self.add(key, format!("must be between {min} and {max}, is {value}"));
        }
        value
    }

    fn session(&mut self, raw: &RawSession) -> (Duration, Duration, Rate) {
        let heartbeat = self.bounded("session.heartbeat_seconds", raw.heartbeat_seconds, 1, 300);
        let grace = self.bounded("session.grace_seconds", raw.grace_seconds, 0, 3600);
        let per_second = raw.admission_per_second;
        let per_second = self.bounded("session.admission_per_second", per_second, 1, 1_000_000);
        let burst = self.bounded("session.admission_burst", raw.admission_burst, 1, 1_000_000);
        let rate = Rate { per_second: f64::from(per_second), burst: f64::from(burst) };
        (Duration::from_secs(heartbeat), Duration::from_secs(grace), rate)
    }

    fn listener(&mut self, raw: &RawLimits) -> ListenerLimits {
        let mut count = |key: &str, value| self.bounded(key, value, 1, 1_000_000);
        let limits = ListenerLimits {
            handshakes: count("limits.handshakes", raw.handshakes),
            handshakes_per_source: count("limits.handshakes_per_source", raw.handshakes_per_source),
            anonymous_per_source: count("limits.anonymous_per_source", raw.anonymous_per_source),
            connections_per_identity: count(
                "limits.connections_per_identity",
                raw.connections_per_identity,
            ),
            handshake_timeout: Duration::from_secs(raw.handshake_seconds),
        };
        self.bounded("limits.handshake_seconds", raw.handshake_seconds, 1, 60);
        limits
    }

    fn lifetimes(&mut self, raw: &RawLimits) -> Lifetimes {
        let hours = self.bounded("limits.connection_hours", raw.connection_hours, 1, 24);
        let anonymous = self.bounded("limits.anonymous_seconds", raw.anonymous_seconds, 1, 600);
        let call = self.bounded("limits.call_seconds", raw.call_seconds, 1, 600);
        Lifetimes {
            connection: Duration::from_secs(hours * 3600),
            anonymous: Duration::from_secs(anonymous),
            call: Duration::from_secs(call),
        }
    }

    fn tiers(&mut self, raw: &BTreeMap<String, RawTier>) -> BTreeMap<String, Resources> {
        let mut tiers = BTreeMap::new();
        for (name, tier) in raw {
            let mut take = |key: &str, error: &dyn fmt::Display| {
                self.add(&format!("tiers.{name}.{key}"), error);
            };
            let bytes = tier.memory_mib.saturating_mul(MIB);
            let memory = Memory::from_bytes(bytes).map_err(|error| take("memory_mib", &error));
            let cpu =
                CpuMillis::from_millis(tier.cpu_millis).map_err(|error| take("cpu_millis", &error));
            let pids = PidsLimit::from_count(tier.pids).map_err(|error| take("pids", &error));
            if let (Ok(memory), Ok(cpu), Ok(pids)) = (memory, cpu, pids) {
                tiers.insert(name.clone(), Resources { memory, cpu, pids });
            }
        }
        tiers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The file that packages ship.
    const SHIPPED: &str = include_str!("../coordinator.toml");

    #[test]
    fn the_shipped_file_is_the_defaults() {
        let shipped = RawConfig::parse(SHIPPED).unwrap().to_toml().unwrap();
        assert_eq!(shipped, RawConfig::default().to_toml().unwrap());
        let config = Config::try_from(RawConfig::parse(SHIPPED).unwrap()).unwrap();
        assert_eq!(config.tiers, TierCatalogue::standard().unwrap());
    }

    #[test]
    fn every_fault_is_named_at_once() {
        let text = "
            listen = 'nowhere'
            data_dir = 'relative'
            server_names = ['ok.example', 'not ok']
            [session]
            heartbeat_seconds = 0
            [tiers.tiny]
            memory_mib = 1
            cpu_millis = 1000
            pids = 512
        ";
        let error = Config::try_from(RawConfig::parse(text).unwrap()).unwrap_err();
        let ConfigError::Faults(faults) = error else { panic!("{error}") };
        let keys: Vec<&str> = faults.iter().map(|fault| fault.key.as_str()).collect();
        assert_eq!(
            keys,
            [
                "listen",
                "data_dir",
                "server_names[1]",
                "session.heartbeat_seconds",
                "tiers.tiny.memory_mib"
            ]
        );
    }

    #[test]
    fn unknown_keys_are_refused() {
        assert!(RawConfig::parse("lisen = 'x'").is_err());
        assert!(RawConfig::parse("[session]\nheartbeat = 1").is_err());
    }
}
