//! What a stage of a move has agents do: each errand may be run again.

use std::time::Duration;

use claw_core::migration::{Migration, Stage};
use claw_proto::convert::backup::escrow::escrow_to_wire;
use claw_proto::convert::backup::offsite_storage_to_wire;
use claw_proto::node::v1 as node;
use claw_proto::node::v1::command::Command;
use claw_store::rusqlite::Connection;

use crate::fleet::Fleet;
use crate::fleet::snapshots::ACCEPT_WITHIN;
use crate::refusal::Refusal;
use crate::store::migrations::MigrationRow;
use crate::store::{Keys, escrow, hosts, snapshots};
use crate::transfers::{Begun, Cause};

/// A copy is asked for again after this long: the agent may have been restarted.
const ASK_AGAIN: Duration = Duration::from_secs(600);
/// How often what the new host says is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// Runs the errand of a migration's stage.
///
/// # Errors
/// Why it failed, for a person.
pub(super) async fn run(fleet: Fleet, row: MigrationRow) -> Result<(), Refusal> {
    let Migration { stage, .. } = &row.state;
    match stage {
        Stage::Preparing | Stage::Syncing { .. } => send(&fleet, &row).await,
        Stage::Fetching { .. } => fetch(&fleet, &row).await,
        Stage::Reverting { .. } => {
            let instance = row.name.to_string();
            let command = Command::DiscardRepository(node::DiscardRepository { instance });
            ask(&fleet, &row.target, command).await
        }
        _ => Ok(()),
    }
}

/// A transfer that nobody waits for any more is broken off.
struct Guarded(Begun);

impl Drop for Guarded {
    fn drop(&mut self) {
        self.0.break_off(Cause::GaveUp("it is not wanted any more".to_owned()));
    }
}

async fn send(fleet: &Fleet, row: &MigrationRow) -> Result<(), Refusal> {
    let keys = fleet.store.read(|connection, keys| keys_of(connection, keys, row))?;
    let begun = Guarded(fleet.transfers.between([&row.source, &row.target])?);
    let instance = row.name.to_string();
    let receive = Command::ReceiveRepository(node::ReceiveRepository {
        instance: instance.clone(),
        transfer: begun.0.id.clone(),
        keys: Some(keys),
    });
    let send =
        Command::SendRepository(node::SendRepository { instance, transfer: begun.0.id.clone() });
    tokio::try_join!(ask(fleet, &row.target, receive), ask(fleet, &row.source, send))?;
    begun.0.outcome().await.map_err(Refusal::from)
}

async fn fetch(fleet: &Fleet, row: &MigrationRow) -> Result<(), Refusal> {
    let command = fleet.store.read(|connection, keys| fetch_command(connection, keys, row))?;
    let asked = fleet.clock.now();
    ask(fleet, &row.target, command).await?;
    let failed = async {
        loop {
            let arrival = fleet.migrations.arrival(&row.target, &row.name);
            let said = arrival.filter(|arrival| arrival.at >= asked);
            if let Some(said) = said.filter(|said| !said.report.problem.is_empty()) {
                let description = format!("hosts/{}: {}", row.target, said.report.problem);
                return Refusal::BrokenOff { description };
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::time::timeout(ASK_AGAIN, failed).await.map_or(Ok(()), Err)
}

fn keys_of(
    connection: &Connection,
    keys: &Keys,
    row: &MigrationRow,
) -> Result<node::RepositoryEscrow, Refusal> {
    let escrow = escrow::load(connection, &keys.seal, &row.uid, &row.name)?;
    let escrow = escrow.ok_or_else(|| {
        Refusal::damaged(format!("migration of instances/{}", row.name), "its escrow is gone")
    })?;
    Ok(escrow_to_wire(&escrow))
}

fn fetch_command(
    connection: &Connection,
    keys: &Keys,
    row: &MigrationRow,
) -> Result<Command, Refusal> {
    let storage = hosts::load(connection, &row.source)?.offsite_storage(&keys.seal)?;
    let repository = snapshots::repository(connection, &row.uid)?;
    let report = repository.and_then(|repository| repository.report);
    let path = report.map(|(report, _at)| report.offsite.path).unwrap_or_default();
    let Some(storage) = storage.filter(|_storage| !path.is_empty()) else {
        let description = format!("hosts/{} has no storage off-site any more", row.source);
        return Err(Refusal::BrokenOff { description });
    };
    Ok(Command::FetchRepository(node::FetchRepository {
        instance: row.name.to_string(),
        storage: Some(offsite_storage_to_wire(&storage)),
        path,
        keys: Some(keys_of(connection, keys, row)?),
    }))
}

async fn ask(
    fleet: &Fleet,
    host: &claw_core::name::HostName,
    command: Command,
) -> Result<(), Refusal> {
    let deadline = fleet.clock.now().after(ACCEPT_WITHIN);
    let asked = fleet.registry.ask(host, command, deadline)?;
    asked.answer(ACCEPT_WITHIN).await.map(|_accepted| ())
}
