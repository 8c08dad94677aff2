//! `delete`: instances by name, or everything that files name.

use claw_proto::fleet::v1 as fleet;
use serde::Serialize;
use tonic::Code;

use super::{Session, Sources, apply, host, instance};
use crate::cli::{DeleteArgs, Format, Until};
use crate::clock;
use crate::connection::{Connection, Repeat};
use crate::failure::CommandError;
use crate::file::{self, Document, Kind};
use crate::view::id;

/// What to delete.
pub(super) struct Targets {
    /// Kind and id, in the order of deletion.
    items: Vec<(Kind, String)>,
    /// Files say what should not be; that it is not is no failure.
    absent_is_fine: bool,
    wait: bool,
}

/// One line of the answer.
#[derive(Debug, Serialize)]
struct Deleted {
    resource: String,
    outcome: &'static str,
}

impl Targets {
    /// Reads the files, if there are any.
    pub(super) fn read(
        arguments: &DeleteArgs,
        sources: &mut Sources<'_>,
    ) -> Result<Self, CommandError> {
        let named = arguments.names.iter().map(|name| (Kind::Instance, id(name).to_owned()));
        let mut items: Vec<(Kind, String)> = named.collect();
        for located in file::read(&arguments.files, sources.stdin)? {
            let name = match &located.document {
                Document::Host(host) => id(&host.name),
                Document::Instance(instance) => id(&instance.name),
            };
            items.push((located.document.kind(), name.to_owned()));
        }
        // A host can go only when its instances are gone.
        items.sort_by_key(|(kind, _)| std::cmp::Reverse(*kind));
        Ok(Self { items, absent_is_fine: !arguments.files.is_empty(), wait: arguments.wait })
    }
}

pub(super) async fn run(targets: Targets, session: &mut Session<'_>) -> Result<(), CommandError> {
    let all = targets.items.len();
    let holds_hosts = targets.items.iter().any(|(kind, _)| *kind == Kind::Host);
    let wait = targets.wait || (holds_hosts && all > 1);
    let mut deleted = Vec::new();
    let mut failures = Vec::new();
    let mut pending: Vec<String> = Vec::new();
    for (kind, name) in targets.items {
        let outcome = match kind {
            Kind::Instance => send(&session.connection, &name).await,
            Kind::Host => {
                if !pending.is_empty() {
                    session.wait(&std::mem::take(&mut pending), Until::Deleted.into()).await?;
                }
                host::delete(&session.connection, &name).await
            }
        };
        let prefix = if kind == Kind::Host { "hosts" } else { "instances" };
        let resource = format!("{prefix}/{name}");
        let outcome = match outcome {
            Ok(()) if kind == Kind::Host => "deleted",
            Ok(()) => {
                if wait {
                    pending.push(name);
                }
                if targets.wait { "deleted" } else { "deleting" }
            }
            Err(CommandError::Call(error))
                if targets.absent_is_fine && error.code == Code::NotFound =>
            {
                "absent"
            }
            Err(error) => {
                failures.push(error);
                continue;
            }
        };
        deleted.push(Deleted { resource, outcome });
    }
    if !pending.is_empty() {
        session.wait(&pending, Until::Deleted.into()).await?;
    }
    print(&deleted, session)?;
    if failures.is_empty() { Ok(()) } else { Err(apply::told(failures, all, session)?) }
}

fn print(deleted: &[Deleted], session: &mut Session<'_>) -> Result<(), CommandError> {
    let with_outcome = session.output.format == Format::Table;
    let line = |deleted: &Deleted| match with_outcome {
        true => format!("{} {}", deleted.resource, deleted.outcome),
        false => deleted.resource.clone(),
    };
    if deleted.is_empty() && session.output.format != Format::Json {
        return Ok(());
    }
    let lines: Vec<String> = deleted.iter().map(line).collect();
    Ok(session.output.value(&deleted, &lines.join("\n"))?)
}

async fn send(connection: &Connection, name: &str) -> Result<(), CommandError> {
    let request = fleet::DeleteInstanceRequest {
        name: format!("instances/{name}"),
        request_id: clock::request_id(),
        ..fleet::DeleteInstanceRequest::default()
    };
    let doing = format!("delete instances/{name}");
    connection
        .call(&doing, Repeat::Harmless, request, async |channel, request| {
            instance::client(channel).delete_instance(request).await
        })
        .await?;
    Ok(())
}
