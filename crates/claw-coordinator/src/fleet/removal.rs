//! The end of a deletion: the row goes when the host says that the instance is gone.

use std::collections::BTreeSet;

use claw_core::name::{HostName, InstanceName};
use claw_core::report::{Phase, StatusReport};
use claw_core::stamp::Stamp;

use super::Fleet;
use crate::refusal::Refusal;
use crate::store::audit::{self, Entry};
use crate::store::instances::InstanceRow;
use crate::store::mutation::Effects;
use crate::store::{host_state, hosts, instances};

/// What a host has said of the instances that it holds.
#[derive(Debug, Clone)]
pub enum Evidence {
    /// A greeting: these are all that it holds.
    Inventory(BTreeSet<InstanceName>),
    /// A status.
    Status(Box<StatusReport>),
}

impl Evidence {
    /// Whether an instance whose deletion came with `generation` is certainly gone.
    fn proves_gone(&self, instance: &InstanceRow) -> bool {
        match self {
            Self::Inventory(held) => !held.contains(&instance.name),
            Self::Status(status) => match status.instances.get(&instance.name) {
                Some(report) => report.phase == Phase::Removed,
                // Carried out to its end, and nothing left to say of it: it was never there.
                None => {
                    status.applying.is_none()
                        && status.last_result.is_some_and(|last| last >= instance.generation)
                }
            },
        }
    }
}

impl Fleet {
    /// Drops the rows of deleted instances that a host no longer holds.
    ///
    /// Only what the host said after it had persisted the deletion counts.
    ///
    /// # Errors
    /// [`Refusal::Internal`], [`Refusal::Unavailable`]
    pub async fn settle_removals(
        &self,
        host: &HostName,
        persisted: Option<Stamp>,
        evidence: Evidence,
    ) -> Result<(), Refusal> {
        let Some(persisted) = persisted else { return Ok(()) };
        let gone: Vec<InstanceName> = self.store.read(|connection, _keys| {
            if hosts::load(connection, host)?.stamp.epoch != persisted.epoch {
                return Ok(Vec::new());
            }
            let rows = instances::of_host(connection, host)?;
            let deleting = rows.into_iter().filter(|row| row.deleted.is_some());
            Ok(deleting
                .filter(|row| row.generation <= persisted.generation && evidence.proves_gone(row))
                .map(|row| row.name)
                .collect())
        })?;
        if gone.is_empty() {
            return Ok(());
        }
        self.drop_instances(host.clone(), gone).await
    }

    async fn drop_instances(&self, host: HostName, gone: Vec<InstanceName>) -> Result<(), Refusal> {
        let now = self.clock.now();
        let effects = self
            .store
            .write(move |connection, keys| {
                let mut effects = Effects::default();
                for name in gone {
                    let deleting = instances::find(connection, &name)?
                        .is_some_and(|row| row.deleted.is_some() && row.host == host);
                    if !deleting {
                        continue;
                    }
                    instances::delete(connection, &name, now)?;
                    let entry = Entry {
                        principal: "system".to_owned(),
                        source: String::new(),
                        method: "claw.node.v1.NodeService/Session".to_owned(),
                        resource: format!("instances/{name}"),
                        summary: format!("hosts/{host} has removed it"),
                    };
                    audit::append(connection, now, &entry)?;
                    effects.instances.insert(name);
                }
                let row = hosts::load(connection, &host)?;
                host_state::advance(connection, keys, &row)?;
                effects.hosts.insert(host);
                Ok(effects)
            })
            .await?;
        self.apply(&effects);
        Ok(())
    }
}
