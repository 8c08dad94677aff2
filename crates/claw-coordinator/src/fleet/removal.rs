//! The end of a deletion: the row goes when the host says that the instance is gone.

use std::collections::BTreeSet;

use claw_core::name::{HostName, InstanceName};
use claw_core::report::{Phase, StatusReport};
use claw_core::stamp::{Generation, Stamp};
use claw_store::rusqlite::Connection;

use super::Fleet;
use crate::refusal::Refusal;
use crate::store::audit::{self, Entry};
use crate::store::mutation::Effects;
use crate::store::{Keys, host_state, hosts, instances, migrations};

/// What a host has said of the instances that it holds.
#[derive(Debug, Clone)]
pub enum Evidence {
    /// A greeting: these are all that it holds.
    Inventory(BTreeSet<InstanceName>),
    /// A status.
    Status(Box<StatusReport>),
}

impl Evidence {
    /// Whether an instance whose removal came with `generation` is certainly gone.
    fn proves_gone(&self, name: &InstanceName, generation: Generation) -> bool {
        match self {
            Self::Inventory(held) => !held.contains(name),
            Self::Status(status) => match status.instances.get(name) {
                Some(report) => report.phase == Phase::Removed,
                // Carried out to its end, and nothing left to say of it: it was never there.
                None => {
                    status.applying.is_none()
                        && status.last_result.is_some_and(|last| last >= generation)
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
        let is_gone = |name: &InstanceName, generation: Generation| {
            generation <= persisted.generation && evidence.proves_gone(name, generation)
        };
        let (gone, departed) = self.store.read(|connection, _keys| {
            if hosts::load(connection, host)?.stamp.epoch != persisted.epoch {
                return Ok((Vec::new(), Vec::new()));
            }
            // Most hosts have nothing to remove, and say so with every acknowledgement.
            let rows = if instances::has_deleted(connection, host)? {
                instances::of_host(connection, host)?
            } else {
                Vec::new()
            };
            let deleting = rows.into_iter().filter(|row| row.deleted.is_some());
            let gone = deleting.filter(|row| is_gone(&row.name, row.generation));
            let left = migrations::departed(connection, host)?.into_iter();
            let left = left.filter(|left| is_gone(&left.name, left.generation));
            let gone: Vec<InstanceName> = gone.map(|row| row.name).collect();
            Ok((gone, left.map(|left| left.name).collect::<Vec<InstanceName>>()))
        })?;
        if !departed.is_empty() {
            self.forget_departed(host.clone(), departed).await?;
        }
        if gone.is_empty() {
            return Ok(());
        }
        self.drop_instances(host.clone(), gone).await
    }

    /// The host holds nothing more of instances that live elsewhere.
    async fn forget_departed(
        &self,
        host: HostName,
        departed: Vec<InstanceName>,
    ) -> Result<(), Refusal> {
        let now = self.clock.now();
        let job = move |connection: &Connection, keys: &Keys| {
            for name in departed {
                migrations::forget_departed(connection, &host, &name)?;
                let entry = Entry {
                    principal: "system".to_owned(),
                    source: String::new(),
                    method: "claw.node.v1.NodeService/Session".to_owned(),
                    resource: format!("instances/{name}"),
                    summary: format!("hosts/{host} has removed what it had of it"),
                };
                audit::append(connection, now, &entry)?;
            }
            host_state::advance(connection, keys, &hosts::load(connection, &host)?)?;
            Ok(Effects { hosts: [host].into(), ..Effects::default() })
        };
        let effects = self.store.write(job).await?;
        self.apply(&effects);
        Ok(())
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
