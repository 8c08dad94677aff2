//! What can be done with the fleet: every change and every view, free of transport.
//!
//! A change is validated completely, compared with the caller's etag, and stored with its audit
//! entry in one transaction; whoever is concerned is told once it is durable. Handlers in
//! [`crate::api`] decode and encode around these functions.

pub mod archives;
pub mod enrolment;
pub mod epoch;
pub mod firewall;
pub mod hosts;
pub mod instances;
pub mod migration;
pub mod offsite;
pub mod plan;
pub mod removal;
pub mod rollback;
pub mod snapshots;
mod spec_check;
pub mod tokens;

use std::sync::Arc;
use std::time::Duration;

use claw_identity::CertificateAuthority;

use crate::clock::Clock;
use crate::denylist::Denylist;
use crate::refusal::Refusal;
use crate::registry::Registry;
use crate::store::Store;
use crate::store::mutation::Effects;
use crate::transfers::Transfers;
use crate::watch::Hub;
use migration::Migrations;

/// Everything that the fleet's functions need; cheap to clone.
#[derive(Debug, Clone)]
pub struct Fleet {
    /// What survives a restart.
    pub store: Store,
    /// Live sessions and what they report.
    pub registry: Arc<Registry>,
    /// Who watches instances.
    pub hub: Arc<Hub>,
    /// Archives and repositories on their way.
    pub transfers: Transfers,
    /// Moves of instances.
    pub migrations: Arc<Migrations>,
    /// Certificates that are no longer taken, and the connections that use them.
    pub denylist: Arc<Denylist>,
    /// Issues certificates.
    pub authority: Arc<CertificateAuthority>,
    /// How long an agent's certificate lives.
    pub agent_lifetime: Duration,
    /// The time.
    pub clock: Clock,
}

impl Fleet {
    /// Tells whom a durable change concerns.
    pub fn apply(&self, effects: &Effects) {
        self.denylist.add(&effects.denied);
        for host in &effects.hosts {
            self.registry.wake(host);
        }
        for host in &effects.forgotten {
            self.registry.forget(host);
        }
        self.hub.changed(&effects.instances);
    }
}

/// Compares the etag that a caller has seen with the present one; an empty one means any.
pub(crate) fn check_etag(resource: &str, given: &str, current: &str) -> Result<(), Refusal> {
    if given.is_empty() || given == current {
        return Ok(());
    }
    Err(Refusal::StaleEtag {
        resource: resource.to_owned(),
        given: given.chars().take(80).collect(),
        current: current.to_owned(),
    })
}
