//! Each step of a move as one transaction: its stage, both hosts' desired states, and what is told of it.

use claw_core::backup::BackupReport;
use claw_core::event::Severity;
use claw_core::migration::{Leftover, Stage, Start, Step};
use claw_core::name::HostName;
use claw_core::stamp::Generation;
use claw_core::time::Timestamp;
use claw_store::rusqlite::Connection;

use super::tell;
use crate::refusal::Refusal;
use crate::store::audit::{self, Entry};
use crate::store::instances::{self, InstanceRow};
use crate::store::migrations::{self, Departed, MigrationRow};
use crate::store::mutation::Effects;
use crate::store::{Keys, host_state, hosts, snapshots};

/// What a step is decided with.
pub(super) struct Decided {
    /// The migration that was looked at.
    pub(super) row: MigrationRow,
    /// What is to be done.
    pub(super) step: Step,
    /// What the new host says of the repository, if anything.
    pub(super) arrived: Option<BackupReport>,
}

/// Carries a step out; nothing when the migration is not as it was any more.
pub(super) fn carry_out(
    connection: &Connection,
    keys: &Keys,
    decided: Decided,
    now: Timestamp,
) -> Result<Option<Effects>, Refusal> {
    let Decided { row, step, arrived } = decided;
    let found = instances::find(connection, &row.name)?;
    let Some(instance) = found.filter(|instance| instance.migration.as_ref() == Some(&row)) else {
        return Ok(None);
    };
    let effects = Effects {
        hosts: [row.source.clone(), row.target.clone()].into(),
        instances: [row.name.clone()].into(),
        ..Effects::default()
    };
    match step {
        Step::Wait | Step::Begin => return Ok(None),
        Step::Retry(problem) => {
            let state = row.state.tried(problem, now);
            migrations::put(connection, &MigrationRow { state, ..row })?;
        }
        Step::Stop => stop(connection, keys, &instance, row, now)?,
        Step::Sync(snapshot) => enter(connection, row, Stage::Syncing { snapshot }, now)?,
        Step::Start(snapshot) => {
            let last = instance.counters.restore.as_ref().map_or(0, |order| order.number);
            let restore = last.saturating_add(1);
            let start = Start { snapshot, restore, generation: Generation(0) };
            begin(connection, keys, &instance, row, start, now)?;
        }
        Step::Finish => finish(connection, keys, instance, row, arrived, now)?,
        Step::Revert(problem) => revert(connection, keys, &instance, row, problem, now)?,
        Step::Cleaned => {
            if let Stage::Reverting { problem, generation, .. } = row.state.stage.clone() {
                let leftover = Leftover::Nothing;
                let stage = Stage::Reverting { problem, generation, leftover };
                enter(connection, row, stage, now)?;
            }
        }
        Step::End => {
            let problem = row.state.stage.problem().to_owned();
            enter(connection, row, Stage::Reverted { problem }, now)?;
        }
    }
    Ok(Some(effects))
}

fn enter(
    connection: &Connection,
    row: MigrationRow,
    stage: Stage,
    now: Timestamp,
) -> Result<(), Refusal> {
    let state = row.state.enter(stage, now);
    migrations::put(connection, &MigrationRow { state, ..row })
}

/// The old host's state with the stage that is stored: the generation from which on it says so.
fn advance_source(
    connection: &Connection,
    keys: &Keys,
    instance: &InstanceRow,
) -> Result<Generation, Refusal> {
    let before = hosts::load(connection, &instance.host)?;
    let generation = host_state::advance(connection, keys, &before)?;
    if generation == before.stamp.generation {
        return Ok(instance.generation);
    }
    instances::set_generation(connection, &instance.name, generation)?;
    Ok(generation)
}

fn stop(
    connection: &Connection,
    keys: &Keys,
    instance: &InstanceRow,
    row: MigrationRow,
    now: Timestamp,
) -> Result<(), Refusal> {
    let first = Stage::Stopping { generation: Generation(0) };
    enter(connection, row.clone(), first, now)?;
    let generation = advance_source(connection, keys, instance)?;
    enter(connection, row, Stage::Stopping { generation }, now)
}

fn begin(
    connection: &Connection,
    keys: &Keys,
    instance: &InstanceRow,
    row: MigrationRow,
    start: Start,
    now: Timestamp,
) -> Result<(), Refusal> {
    enter(connection, row.clone(), Stage::Starting(start.clone()), now)?;
    advance_source(connection, keys, instance)?;
    let floor = hosts::load(connection, &row.source)?.stamp.generation;
    let target = hosts::load(connection, &row.target)?;
    let generation = host_state::advance_above(connection, keys, &target, floor)?;
    enter(connection, row, Stage::Starting(Start { generation, ..start }), now)
}

/// The instance belongs to the new host; the old one removes what it has of it.
fn finish(
    connection: &Connection,
    keys: &Keys,
    mut instance: InstanceRow,
    row: MigrationRow,
    arrived: Option<BackupReport>,
    now: Timestamp,
) -> Result<(), Refusal> {
    let Some(start) = row.state.stage.start().cloned() else { return Ok(()) };
    instance.host = row.target.clone();
    instance.generation = start.generation;
    instance.counters.restore = Some(host_state::order(&start));
    instance.revision = instance.revision.saturating_add(1);
    instance.updated = now;
    instances::update(connection, &instance)?;
    snapshots::move_to(connection, &instance.uid, &row.target)?;
    if let (Some(report), Some(known)) =
        (arrived, snapshots::repository(connection, &instance.uid)?)
    {
        snapshots::store_report(connection, &known, &report, None, now)?;
    }
    enter(connection, row.clone(), Stage::Done { snapshot: start.snapshot }, now)?;
    remove_from(connection, keys, &row.source, &row, now)?;
    let target = hosts::load(connection, &row.target)?;
    let generation = host_state::advance(connection, keys, &target)?;
    if generation != target.stamp.generation {
        instances::set_generation(connection, &row.name, generation)?;
    }
    let text = format!("has moved from hosts/{} to hosts/{}", row.source, row.target);
    tell(connection, &row, Severity::Info, "migration_done", &text, now)?;
    note(connection, &row, text, now)
}

/// Everything goes back.
pub(super) fn revert(
    connection: &Connection,
    keys: &Keys,
    instance: &InstanceRow,
    row: MigrationRow,
    problem: String,
    now: Timestamp,
) -> Result<(), Refusal> {
    let was_there = row.state.stage.start().is_some();
    let leftover = row.state.stage.leftover();
    let stage = |generation| Stage::Reverting { problem: problem.clone(), generation, leftover };
    enter(connection, row.clone(), stage(Generation(0)), now)?;
    if was_there {
        remove_from(connection, keys, &row.target, &row, now)?;
    }
    let generation = advance_source(connection, keys, instance)?;
    enter(connection, row.clone(), stage(generation), now)?;
    let text = format!("stays on hosts/{}: {problem}", row.source);
    tell(connection, &row, Severity::Warning, "migration_reverted", &text, now)?;
    note(connection, &row, text, now)
}

/// A host's state confirms the removal of the instance, until the host has carried it out.
fn remove_from(
    connection: &Connection,
    keys: &Keys,
    host: &HostName,
    row: &MigrationRow,
    now: Timestamp,
) -> Result<(), Refusal> {
    let mut departed = Departed { name: row.name.clone(), generation: Generation(0), since: now };
    migrations::depart(connection, host, &departed)?;
    departed.generation = host_state::advance(connection, keys, &hosts::load(connection, host)?)?;
    migrations::depart(connection, host, &departed)
}

fn note(
    connection: &Connection,
    row: &MigrationRow,
    summary: String,
    now: Timestamp,
) -> Result<(), Refusal> {
    let entry = Entry {
        principal: "system".to_owned(),
        source: String::new(),
        method: "claw.fleet.v1.InstanceService/MigrateInstance".to_owned(),
        resource: format!("instances/{}", row.name),
        summary,
    };
    audit::append(connection, now, &entry)
}
