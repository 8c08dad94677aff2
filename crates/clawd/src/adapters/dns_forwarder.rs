//! The forwarder of names, which is a process of its own (`clawd dns`): told and heard through two files.
//!
//! Files, because it must know its policy when it starts alone, after a power cut too, and because
//! neither program may wait for the other. What it deliberately does not do: start the process; the
//! service manager does.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use claw_core::firewall::DnsPolicy;
use claw_core::name::InstanceName;

use crate::dns::stored::{Durability, decode_counters, encode_policy, replace};
use crate::dns::{counters_path, policy_path};
use crate::ports::{DnsCounters, Resolver, ResolverError};

/// The forwarder behind its files.
#[derive(Debug, Clone)]
pub struct DnsForwarder {
    policy: PathBuf,
    counters: PathBuf,
}

impl DnsForwarder {
    /// The forwarder that works with these directories: durable data, and tmpfs.
    #[must_use]
    pub fn new(data_dir: &Path, run_dir: &Path) -> Self {
        Self { policy: policy_path(data_dir), counters: counters_path(run_dir) }
    }
}

impl Resolver for DnsForwarder {
    async fn publish(&self, policy: &DnsPolicy) -> Result<(), ResolverError> {
        let (path, policy) = (self.policy.clone(), policy.clone());
        let write = move || {
            let text = encode_policy(&policy).map_err(io::Error::other)?;
            // The forwarder need not be woken for nothing.
            if std::fs::read(&path).is_ok_and(|present| present == text) {
                return Ok(());
            }
            replace(&path, &text, Durability::Synced)
        };
        blocking(write).await.map_err(|source| ResolverError {
            doing: "writing",
            path: self.policy.clone(),
            source,
        })
    }

    async fn counters(&self) -> Result<BTreeMap<InstanceName, DnsCounters>, ResolverError> {
        let path = self.counters.clone();
        let read = move || match std::fs::read(path) {
            Ok(bytes) => decode_counters(&bytes).map_err(io::Error::other),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(error) => Err(error),
        };
        blocking(read).await.map_err(|source| ResolverError {
            doing: "reading",
            path: self.counters.clone(),
            source,
        })
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|gone| Err(io::Error::other(gone)))
}
