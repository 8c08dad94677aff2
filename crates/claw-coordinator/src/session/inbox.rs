//! What an agent says after its greeting.

use claw_core::name::InstanceName;
use claw_proto::convert::backup::backup_status_from_wire;
use claw_proto::convert::backup::escrow::{escrow_ack, escrow_from_wire};
use claw_proto::convert::session::{resources_from_wire, status_from_wire};
use claw_proto::convert::violation::Violations;
use claw_proto::node::v1 as node;
use claw_proto::node::v1::session_request::Message;
use tokio::time::Instant;
use tonic::Status;

use super::Live;
use crate::fleet::removal::Evidence;
use crate::refusal::Refusal;
use crate::store::{events, hosts};

/// Most events in one message.
const MAX_BATCH: usize = 256;
/// Longest name of a kind of event.
const MAX_KIND: usize = 64;
/// Longest message of an event that is kept; the rest is cut off.
const MAX_MESSAGE: usize = 2000;

impl Live {
    /// Takes one message.
    pub(super) async fn receive(&mut self, message: node::SessionRequest) -> Result<(), Status> {
        self.heard = Instant::now();
        if let Err(retry) = self.bucket.take() {
            let description = "the agent sends too many messages".to_owned();
            return Err(Refusal::Exhausted { description, retry }.into());
        }
        match message.message {
            Some(Message::Hello(_)) => Err(Refusal::field("hello", "may be said only once").into()),
            Some(Message::Heartbeat(heartbeat)) => {
                let resources = heartbeat.resources.as_ref().map(resources_from_wire);
                let now = self.fleet.clock.now();
                self.fleet.registry.heartbeat(&self.host, &self.id, resources, now);
                Ok(())
            }
            Some(Message::Status(status)) => self.status(status).await,
            Some(Message::Events(batch)) => Box::pin(self.events(batch.events)).await,
            Some(Message::CommandResult(result)) => {
                self.fleet.registry.answered(&self.host, &self.id, result);
                Ok(())
            }
            Some(Message::BackupStatus(status)) => Box::pin(self.backup(&status)).await,
            Some(Message::RepositoryEscrow(escrow)) => Box::pin(self.escrow(&escrow)).await,
            // A kind of message that is newer than this program is none of its business.
            None => Ok(()),
        }
    }

    async fn status(&self, status: node::Status) -> Result<(), Status> {
        let report = status_from_wire(&status).map_err(|v| Refusal::Invalid(v.below("status")))?;
        let now = self.fleet.clock.now();
        let persisted = report.persisted;
        let changed = self.fleet.registry.status(&self.host, &self.id, report, now);
        self.fleet.hub.changed(&changed.instances);
        if let Some(report) = changed.settles {
            let evidence = Evidence::Status(report);
            Box::pin(self.fleet.settle_removals(&self.host, persisted, evidence)).await?;
        }
        Ok(())
    }

    async fn backup(&self, status: &node::BackupStatus) -> Result<(), Status> {
        let below = |v: Violations| Refusal::Invalid(v.below("backup_status"));
        let (instance, report) = backup_status_from_wire(status).map_err(below)?;
        if self.fleet.registry.is_current(&self.host, &self.id) {
            self.fleet.note_backup(&self.host, &instance, report).await?;
        }
        Ok(())
    }

    async fn escrow(&mut self, escrow: &node::RepositoryEscrow) -> Result<(), Status> {
        let below = |v: Violations| Refusal::Invalid(v.below("repository_escrow"));
        let escrow = escrow_from_wire(escrow).map_err(below)?;
        if !self.fleet.registry.is_current(&self.host, &self.id) {
            return Ok(());
        }
        let ack = escrow_ack(&escrow);
        // Passwords of what nobody knows of are not kept, and not acknowledged.
        if self.fleet.note_escrow(&self.host, escrow).await? {
            self.outbox.acknowledge_escrow(ack);
        }
        Ok(())
    }

    async fn events(&mut self, batch: Vec<node::Event>) -> Result<(), Status> {
        let batch = check_events(batch)?;
        if !self.fleet.registry.is_current(&self.host, &self.id) {
            return Ok(());
        }
        let (host, now) = (self.host.clone(), self.fleet.clock.now());
        let stored = self
            .fleet
            .store
            .write(move |connection, _keys| {
                let row = hosts::load(connection, &host)?;
                events::append(connection, &row, &batch, now)
            })
            .await?;
        self.outbox.acknowledge(stored);
        Ok(())
    }
}

/// Events are kept as the agent's version names them: a kind that is newer than this program must
/// not end the session. Their form is checked.
fn check_events(mut batch: Vec<node::Event>) -> Result<Vec<node::Event>, Refusal> {
    if batch.len() > MAX_BATCH {
        let text = format!("must have at most {MAX_BATCH} entries, has {}", batch.len());
        return Err(Refusal::field("events.events", text));
    }
    let mut violations = Violations::default();
    for (index, event) in batch.iter_mut().enumerate() {
        let field = format!("events.events[{index}]");
        if event.sequence == 0 {
            violations.push(&format!("{field}.sequence"), "must be positive");
        }
        if !event.instance.is_empty() {
            violations.take(&format!("{field}.instance"), InstanceName::parse(&event.instance));
        }
        let allowed = |c: char| c.is_ascii_lowercase() || c == '_';
        let kind = &event.kind;
        if kind.is_empty() || kind.len() > MAX_KIND || !kind.chars().all(allowed) {
            violations.push(&format!("{field}.kind"), "must be 1 to 64 lower-case letters or '_'");
        }
        if event.message.chars().count() > MAX_MESSAGE {
            event.message = event.message.chars().take(MAX_MESSAGE).collect();
        }
    }
    violations.into_result()?;
    Ok(batch)
}
