//! `migrate` and `cancel-migration`: an instance moves to another host, or stays.

use claw_proto::fleet::v1 as fleet;
use claw_proto::fleet::v1::plan_instance_request::Change;
use claw_proto::node::v1 as node;

use super::waiting::Glimpse;
use super::{Session, instance, rollback, snapshot};
use crate::cli::MigrateArgs;
use crate::clock;
use crate::connection::{Connection, Repeat};
use crate::failure::CommandError;
use crate::view::change::PlanView;
use crate::view::id;
use crate::view::instance::InstanceView;

/// How a move ended, and not well.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MigrationError {
    #[error("instances/{instance} stays on hosts/{host}: {why}")]
    Reverted { instance: String, host: String, why: String },
    #[error("instances/{instance} is not moving any more")]
    Gone { instance: String },
}

impl MigrationError {
    pub(crate) fn hint(&self) -> String {
        match self {
            Self::Reverted { instance, .. } => format!(
                "it serves where it was; `clawctl migrate {instance} HOST --plan` shows what stands \
                 in the way"
            ),
            Self::Gone { instance } => format!("`clawctl get {instance}` shows where it is"),
        }
    }
}

pub(super) async fn run(
    arguments: &MigrateArgs,
    session: &mut Session<'_>,
) -> Result<(), CommandError> {
    let name = id(&arguments.name);
    let change = change(arguments);
    if arguments.plan {
        let from = node::RestoreSource::Unspecified;
        let change = Change::Migrate(change);
        let plan = rollback::ask_plan(&session.connection, name, change, from).await?;
        let view = PlanView::of_instance(name, plan);
        return Ok(session.output.value(&view, &view.text_in(session.output.format))?);
    }
    let moved = send(&session.connection, name, change).await?;
    let host = id(&arguments.host);
    if !arguments.wait {
        let text = format!("instances/{name} moves to hosts/{host}");
        return instance::answer(moved.into(), &text, session);
    }
    session.remark(&format!("instances/{name} moves to hosts/{host}"))?;
    let ask = async |connection: &Connection, _seen: &Glimpse| {
        let instance = instance::get(connection, name).await?;
        Ok(has_moved(name, &instance)?.then_some(instance))
    };
    let instance: InstanceView = session.ask_until(name, "moved", ask).await?.into();
    instance::answer(instance, &format!("instances/{name} is on hosts/{host}"), session)
}

/// Gives a move up.
pub(super) async fn cancel(name: &str, session: &mut Session<'_>) -> Result<(), CommandError> {
    let request = fleet::CancelMigrationRequest {
        name: format!("instances/{name}"),
        request_id: clock::request_id(),
        ..fleet::CancelMigrationRequest::default()
    };
    let doing = format!("cancel the migration of instances/{name}");
    let answer = session
        .connection
        .call(&doing, Repeat::Harmless, request, async |channel, request| {
            instance::client(channel).cancel_migration(request).await
        })
        .await?;
    let kept = answer.instance.ok_or(CommandError::Answer { missing: "instance" })?;
    let text = format!("instances/{name} stays on {}", kept.host);
    instance::answer(kept.into(), &text, session)
}

fn change(arguments: &MigrateArgs) -> fleet::MigrationChange {
    let source = if arguments.from_offsite {
        fleet::MigrationSource::Offsite
    } else {
        fleet::MigrationSource::Host
    };
    let name = id(&arguments.name);
    let wanted = arguments.snapshot.as_ref().map(|wanted| snapshot::resource(name, id(wanted)));
    fleet::MigrationChange {
        host: format!("hosts/{}", id(&arguments.host)),
        source: source.into(),
        snapshot: wanted.unwrap_or_default(),
    }
}

async fn send(
    connection: &Connection,
    name: &str,
    change: fleet::MigrationChange,
) -> Result<fleet::Instance, CommandError> {
    let doing = format!("move instances/{name} to {}", change.host);
    let request = fleet::MigrateInstanceRequest {
        name: format!("instances/{name}"),
        host: change.host,
        source: change.source,
        snapshot: change.snapshot,
        request_id: clock::request_id(),
        ..fleet::MigrateInstanceRequest::default()
    };
    let answer = connection
        .call(&doing, Repeat::Harmless, request, async |channel, request| {
            instance::client(channel).migrate_instance(request).await
        })
        .await?;
    answer.instance.ok_or(CommandError::Answer { missing: "instance" })
}

/// Whether a move has ended well; an error when it has ended otherwise.
fn has_moved(name: &str, instance: &fleet::Instance) -> Result<bool, MigrationError> {
    let gone = || MigrationError::Gone { instance: name.to_owned() };
    let migration = instance.migration.as_ref().ok_or_else(gone)?;
    match migration.stage() {
        fleet::MigrationStage::Done => Ok(true),
        fleet::MigrationStage::Reverted => Err(MigrationError::Reverted {
            instance: name.to_owned(),
            host: id(&instance.host).to_owned(),
            why: migration.problem.clone(),
        }),
        _ => Ok(false),
    }
}
