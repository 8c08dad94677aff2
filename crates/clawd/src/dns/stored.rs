//! The two files between the agent and the forwarder, as JSON: what every instance may resolve, and what
//! was seen.
//!
//! Kept apart from the types that are used, so that a change of those is no silent change of a file:
//! on an upgrade, either program may be the older one for a while. Unknown fields are ignored; a field
//! that would loosen a policy when it is overlooked needs another [`VERSION`].

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use claw_core::address::{AddressPool, InstanceNetwork, Slot};
use claw_core::firewall::{
    AllowedName, Cidr, CidrError, DnsNames, DnsPolicy, DnsRules, DomainPattern, Mode, Port,
};
use claw_core::name::{InstanceName, NameError};
use serde::{Deserialize, Serialize};

use crate::ports::DnsCounters;

/// Form of the policy's file.
const VERSION: u32 = 1;

/// Why a file makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum StoredError {
    /// It is no JSON of the known form.
    #[error("it is no JSON of the known form")]
    Json(#[from] serde_json::Error),
    /// It is of another version of this program.
    #[error("it has version {version}, known is {VERSION}")]
    Version {
        /// The file's version.
        version: u32,
    },
    /// A name is none.
    #[error("it holds the name {text:?}")]
    Name {
        /// The text.
        text: String,
        /// Why.
        #[source]
        source: NameError,
    },
    /// A network is none.
    #[error("it holds a bad network")]
    Network(#[from] CidrError),
    /// A number is out of range.
    #[error("{field} of {instance} is out of range")]
    Range {
        /// Which number.
        field: &'static str,
        /// Whose.
        instance: InstanceName,
    },
}

#[derive(Serialize, Deserialize)]
struct StoredPolicy {
    version: u32,
    instances: BTreeMap<String, StoredRules>,
}

#[derive(Serialize, Deserialize)]
struct StoredRules {
    pool: [u8; 2],
    slot: u8,
    only: Option<StoredNames>,
    networks: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct StoredNames {
    mode: StoredMode,
    names: Vec<StoredName>,
}

#[derive(Serialize, Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum StoredMode {
    Enforced,
    Observed,
}

#[derive(Serialize, Deserialize)]
struct StoredName {
    pattern: String,
    ports: Vec<u16>,
}

#[derive(Serialize, Deserialize, Default)]
#[serde(default)]
struct StoredCounters {
    instances: BTreeMap<String, StoredSeen>,
}

#[derive(Serialize, Deserialize, Default)]
#[serde(default)]
struct StoredSeen {
    queries: u64,
    refused: u64,
    rebinding: u64,
    failed: u64,
    outside: Vec<(String, BTreeSet<IpAddr>)>,
}

/// The policy as text for its file.
///
/// # Errors
/// Never for what a policy can hold.
pub fn encode_policy(policy: &DnsPolicy) -> Result<Vec<u8>, serde_json::Error> {
    let instances = policy.instances.iter().map(|(name, rules)| {
        (
            name.to_string(),
            StoredRules {
                pool: pool(rules.network),
                slot: rules.network.slot().number(),
                only: rules.only.as_ref().map(stored_names),
                networks: rules.networks.iter().map(ToString::to_string).collect(),
            },
        )
    });
    serde_json::to_vec(&StoredPolicy { version: VERSION, instances: instances.collect() })
}

/// The policy of a file.
///
/// # Errors
/// [`StoredError`]; nothing of a file with a fault is used.
pub fn decode_policy(bytes: &[u8]) -> Result<DnsPolicy, StoredError> {
    let stored: StoredPolicy = serde_json::from_slice(bytes)?;
    if stored.version != VERSION {
        return Err(StoredError::Version { version: stored.version });
    }
    let instances = stored.instances.into_iter().map(|(name, rules)| {
        let name = instance(name)?;
        let rules = decode_rules(&name, rules)?;
        Ok((name, rules))
    });
    Ok(DnsPolicy { instances: instances.collect::<Result<_, StoredError>>()? })
}

/// What was seen, as text for its file.
///
/// # Errors
/// Never for what counters can hold.
pub fn encode_counters(
    counters: BTreeMap<InstanceName, DnsCounters>,
) -> Result<Vec<u8>, serde_json::Error> {
    let instances = counters.into_iter().map(|(name, seen)| {
        let DnsCounters { queries, refused, rebinding, failed, outside } = seen;
        (name.to_string(), StoredSeen { queries, refused, rebinding, failed, outside })
    });
    serde_json::to_vec(&StoredCounters { instances: instances.collect() })
}

/// What a file says was seen.
///
/// # Errors
/// [`StoredError`].
pub fn decode_counters(bytes: &[u8]) -> Result<BTreeMap<InstanceName, DnsCounters>, StoredError> {
    let stored: StoredCounters = serde_json::from_slice(bytes)?;
    let instances = stored.instances.into_iter().map(|(name, seen)| {
        let StoredSeen { queries, refused, rebinding, failed, outside } = seen;
        Ok((instance(name)?, DnsCounters { queries, refused, rebinding, failed, outside }))
    });
    instances.collect()
}

/// How sure a file must be of surviving a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// It is synced, and its directory with it: fsync(2).
    Synced,
    /// It lies on tmpfs, and goes with the boot.
    Volatile,
}

/// Replaces a file (0600) atomically; makes its directory (0700) if needed.
///
/// # Errors
/// What the system said; the file is then as it was.
pub fn replace(path: &Path, content: &[u8], durability: Durability) -> io::Result<()> {
    let dir = path.parent().unwrap_or_else(|| Path::new("/"));
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let unfinished = path.with_extension("unfinished");
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
    file.write_all(content)?;
    if durability == Durability::Synced {
        file.sync_all()?;
    }
    std::fs::rename(&unfinished, path)?;
    match durability {
        Durability::Synced => std::fs::File::open(dir)?.sync_all(),
        Durability::Volatile => Ok(()),
    }
}

/// The first two octets of every address of the network.
fn pool(network: InstanceNetwork) -> [u8; 2] {
    match network.gateway() {
        IpAddr::V4(gateway) => {
            let [first, second, ..] = gateway.octets();
            [first, second]
        }
        IpAddr::V6(_) => [0, 0],
    }
}

fn stored_names(only: &DnsNames) -> StoredNames {
    let names = only.names.iter().map(|allowed| StoredName {
        pattern: allowed.pattern.to_string(),
        ports: allowed.ports.iter().map(|port| port.number()).collect(),
    });
    let mode = match only.mode {
        Mode::Enforced => StoredMode::Enforced,
        Mode::Observed => StoredMode::Observed,
    };
    StoredNames { mode, names: names.collect() }
}

fn decode_rules(instance: &InstanceName, stored: StoredRules) -> Result<DnsRules, StoredError> {
    let range = |field| StoredError::Range { field, instance: instance.clone() };
    let [first, second] = stored.pool;
    let pool = AddressPool::new(first, second).ok_or_else(|| range("pool"))?;
    let slot = Slot::new(stored.slot).ok_or_else(|| range("slot"))?;
    let networks = stored.networks.iter().map(|text| Cidr::parse(text));
    let names = |stored: StoredNames| {
        let names = stored.names.into_iter().map(|stored| {
            let ports = stored.ports.iter().map(|&port| Port::new(port));
            let ports = ports.collect::<Option<_>>().ok_or_else(|| range("a port"))?;
            let StoredName { pattern: text, .. } = stored;
            let pattern = DomainPattern::parse(&text);
            let pattern = pattern.map_err(|source| StoredError::Name { text, source })?;
            Ok(AllowedName { pattern, ports })
        });
        let mode = match stored.mode {
            StoredMode::Enforced => Mode::Enforced,
            StoredMode::Observed => Mode::Observed,
        };
        Ok::<_, StoredError>(DnsNames { names: names.collect::<Result<_, StoredError>>()?, mode })
    };
    Ok(DnsRules {
        network: pool.network(slot),
        only: stored.only.map(names).transpose()?,
        networks: networks.collect::<Result<_, CidrError>>()?,
    })
}

fn instance(text: String) -> Result<InstanceName, StoredError> {
    InstanceName::parse(&text).map_err(|source| StoredError::Name { text, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> DnsPolicy {
        let rules = |slot, only| DnsRules {
            network: AddressPool::new(192, 168).unwrap().network(Slot::new(slot).unwrap()),
            only,
            networks: BTreeSet::from([Cidr::parse("10.0.0.0/8").unwrap()]),
        };
        let name = |pattern: &str, ports: &[u16]| AllowedName {
            pattern: DomainPattern::parse(pattern).unwrap(),
            ports: ports.iter().copied().filter_map(Port::new).collect(),
        };
        let names = vec![name("*.example.com", &[443, 80]), name("example.org", &[])];
        let only = Some(DnsNames { names, mode: Mode::Observed });
        let parse = |text| InstanceName::parse(text).unwrap();
        let instances = [(parse("open"), rules(0, None)), (parse("only"), rules(253, only))];
        DnsPolicy { instances: instances.into() }
    }

    #[test]
    fn policies_and_counters_come_back() {
        let text = encode_policy(&policy()).unwrap();
        assert_eq!(decode_policy(&text).unwrap(), policy());
        let seen = DnsCounters {
            queries: u64::MAX,
            refused: 1,
            rebinding: 2,
            failed: 3,
            outside: vec![
                ("b".into(), BTreeSet::from([[192, 0, 2, 1].into()])),
                ("a".into(), BTreeSet::new()),
            ],
        };
        let counters = BTreeMap::from([(InstanceName::parse("demo").unwrap(), seen)]);
        assert_eq!(decode_counters(&encode_counters(counters.clone()).unwrap()).unwrap(), counters);
    }

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let error = decode_policy(text.as_bytes()).unwrap_err();
        assert_eq!(crate::logging::chain(&error), expected);
    }

    #[test]
    fn a_bad_policy_is_refused_whole() {
        let rules = |rules: &str| format!("{{\"version\":1,\"instances\":{{\"demo\":{rules}}}}}");
        check("{\"version\":2,\"instances\":{}}", "it has version 2, known is 1");
        check(
            &rules("{\"pool\":[8,8],\"slot\":0,\"only\":null,\"networks\":[]}"),
            "pool of demo is out of range",
        );
        check(
            &rules("{\"pool\":[10,1],\"slot\":254,\"only\":null,\"networks\":[]}"),
            "slot of demo is out of range",
        );
        let names = "{\"mode\":\"enforced\",\"names\":[{\"pattern\":\"a.b\",\"ports\":[0]}]}";
        check(
            &rules(&format!("{{\"pool\":[10,1],\"slot\":1,\"only\":{names},\"networks\":[]}}")),
            "a port of demo is out of range",
        );
        // Half a file, as after a copy that was cut off.
        let whole = encode_policy(&policy()).unwrap();
        assert!(matches!(
            decode_policy(whole.get(..whole.len() / 2).unwrap()),
            Err(StoredError::Json(_))
        ));
    }
}
