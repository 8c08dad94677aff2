//! `snapshot`: create, list, get, delete, verify, export, import.

mod archive;
mod wait;

use claw_core::backup::SnapshotCause;
use claw_core::name::SnapshotName;
use claw_proto::fleet::v1 as fleet;
use claw_proto::fleet::v1::snapshot_service_client::SnapshotServiceClient;
use tonic::transport::Channel;

use super::Session;
use crate::cli::{Format, SnapshotCommand};
use crate::clock;
use crate::connection::{Connection, MAX_ANSWER, PAGE_SIZE, Repeat};
use crate::failure::CommandError;
use crate::table::Table;
use crate::view::snapshot::{RepositoryView, SnapshotList, SnapshotView};
use crate::view::{Resource as _, id};
pub(crate) use archive::ArchiveError;
pub(crate) use wait::SnapshotError;

pub(super) async fn run(
    command: SnapshotCommand,
    session: &mut Session<'_>,
) -> Result<(), CommandError> {
    match command {
        SnapshotCommand::Create { instance, name, wait } => {
            let name = name.unwrap_or_else(|| named_now(SnapshotCause::Requested));
            create(id(&instance), id(&name), Then::of(wait), session).await
        }
        SnapshotCommand::List { instance, uid } => {
            let listed = all(&session.connection, id(&instance), uid).await?;
            print(&listed, session)
        }
        SnapshotCommand::Get { instance, name, uid } => {
            let name = resource(id(&instance), id(&name));
            let snapshot = get(&session.connection, &name, uid).await?;
            Ok(session.output.one(&snapshot)?)
        }
        SnapshotCommand::Delete { instance, name } => {
            delete(&resource(id(&instance), id(&name)), session).await
        }
        SnapshotCommand::Verify { instance, data, wait } => {
            let depth = if data { fleet::VerifyDepth::Data } else { fleet::VerifyDepth::Structure };
            verify(id(&instance), depth, Then::of(wait), session).await
        }
        SnapshotCommand::Export { instance, name, to } => {
            archive::export(id(&instance), id(&name), to, session).await
        }
        SnapshotCommand::Import { instance, file, name } => {
            let name = name.unwrap_or_else(|| named_now(SnapshotCause::Import));
            archive::import(id(&instance), id(&name), file, session).await
        }
    }
}

/// What happens after the host has accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    Return,
    Wait,
}

impl Then {
    /// From the flag `--wait`.
    fn of(wait: bool) -> Self {
        if wait { Self::Wait } else { Self::Return }
    }
}

fn client(channel: Channel) -> SnapshotServiceClient<Channel> {
    SnapshotServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER)
}

pub(super) fn resource(instance: &str, name: &str) -> String {
    format!("instances/{instance}/snapshots/{name}")
}

/// As the agent names those that nobody named.
fn named_now(cause: SnapshotCause) -> String {
    SnapshotName::of(cause, clock::now()).map_or_else(|_| cause.to_string(), |n| n.to_string())
}

async fn create(
    instance: &str,
    name: &str,
    then: Then,
    session: &mut Session<'_>,
) -> Result<(), CommandError> {
    let resource = resource(instance, name);
    let request = fleet::CreateSnapshotRequest {
        parent: format!("instances/{instance}"),
        snapshot_id: name.to_owned(),
        validate_only: false,
        request_id: clock::request_id(),
    };
    let doing = format!("create {resource}");
    let answer = session
        .connection
        .call(&doing, Repeat::Harmless, request, async |channel, request| {
            client(channel).create_snapshot(request).await
        })
        .await?;
    let snapshot = answer.snapshot.ok_or(CommandError::Answer { missing: "snapshot" })?;
    if then == Then::Return {
        return shown(&snapshot.into(), &format!("{resource} is being taken"), session);
    }
    session.remark(&format!("{resource} is being taken"))?;
    let snapshot = wait::until_taken(instance, &resource, session).await?;
    let text = format!("{resource} ready: {}", snapshot.contents());
    shown(&snapshot, &text, session)
}

async fn get(
    connection: &Connection,
    name: &str,
    uid: Option<String>,
) -> Result<SnapshotView, CommandError> {
    let instance_uid = uid.unwrap_or_default();
    let request = fleet::GetSnapshotRequest { name: name.to_owned(), instance_uid };
    let doing = format!("get {name}");
    let answer = connection
        .call(&doing, Repeat::Harmless, request, async |channel, request| {
            client(channel).get_snapshot(request).await
        })
        .await?;
    let snapshot = answer.snapshot.ok_or(CommandError::Answer { missing: "snapshot" })?;
    Ok(snapshot.into())
}

/// Every snapshot of an instance, and its repository as the first page has it.
async fn all(
    connection: &Connection,
    instance: &str,
    uid: Option<String>,
) -> Result<SnapshotList, CommandError> {
    let (parent, instance_uid) = (format!("instances/{instance}"), uid.unwrap_or_default());
    let doing = format!("list the snapshots of {parent}");
    let mut listed = SnapshotList { snapshots: Vec::new(), repository: RepositoryView::default() };
    let mut page_token = String::new();
    loop {
        let first = page_token.is_empty();
        let request = fleet::ListSnapshotsRequest {
            parent: parent.clone(),
            instance_uid: instance_uid.clone(),
            page_size: PAGE_SIZE,
            page_token,
        };
        let page = connection
            .call(&doing, Repeat::Harmless, request, async |channel, request| {
                client(channel).list_snapshots(request).await
            })
            .await?;
        listed.snapshots.extend(page.snapshots.into_iter().map(SnapshotView::from));
        if first {
            listed.repository = page.repository.unwrap_or_default().into();
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(listed);
        }
    }
}

/// The table with the repository below it; one value for programs.
fn print(listed: &SnapshotList, session: &mut Session<'_>) -> Result<(), CommandError> {
    match session.output.format {
        Format::Table => {
            session.output.list(&listed.snapshots)?;
            let repository = Table::of_pairs(listed.repository.details(session.output.now));
            Ok(write!(session.output.out, "\n{repository}")?)
        }
        Format::Name => Ok(session.output.list(&listed.snapshots)?),
        Format::Json | Format::Yaml => Ok(session.output.value(listed, "")?),
    }
}

async fn delete(name: &str, session: &mut Session<'_>) -> Result<(), CommandError> {
    let request = fleet::DeleteSnapshotRequest {
        name: name.to_owned(),
        validate_only: false,
        request_id: clock::request_id(),
    };
    let doing = format!("delete {name}");
    let answer = session
        .connection
        .call(&doing, Repeat::Harmless, request, async |channel, request| {
            client(channel).delete_snapshot(request).await
        })
        .await?;
    let snapshot = answer.snapshot.ok_or(CommandError::Answer { missing: "snapshot" })?;
    shown(&snapshot.into(), &format!("{name} deleting"), session)
}

async fn verify(
    instance: &str,
    depth: fleet::VerifyDepth,
    then: Then,
    session: &mut Session<'_>,
) -> Result<(), CommandError> {
    let parent = format!("instances/{instance}");
    let before = match then {
        Then::Wait => Some(all(&session.connection, instance, None).await?),
        Then::Return => None,
    };
    let request = fleet::VerifySnapshotsRequest {
        parent: parent.clone(),
        depth: depth.into(),
        validate_only: false,
        request_id: clock::request_id(),
    };
    let doing = format!("verify the snapshots of {parent}");
    let answer = session
        .connection
        .call(&doing, Repeat::Harmless, request, async |channel, request| {
            client(channel).verify_snapshots(request).await
        })
        .await?;
    let Some(before) = before else {
        let repository = answer.repository.ok_or(CommandError::Answer { missing: "repository" })?;
        let text = named(session, &parent, "snapshots are being verified");
        return Ok(session.output.value(&RepositoryView::from(repository), &text)?);
    };
    session.remark(&format!("{parent}: snapshots are being verified"))?;
    let listed = wait::until_verified(instance, &before, session).await?;
    let text = named(session, &parent, "snapshots are sound");
    Ok(session.output.value(&listed.repository, &text)?)
}

fn named(session: &Session<'_>, parent: &str, text: &str) -> String {
    match session.output.format {
        Format::Name => parent.to_owned(),
        _ => format!("{parent}: {text}"),
    }
}

/// A sentence for people, the snapshot for programs, its name for `-o name`.
fn shown(
    snapshot: &SnapshotView,
    text: &str,
    session: &mut Session<'_>,
) -> Result<(), CommandError> {
    let text = match session.output.format {
        Format::Name => snapshot.resource(),
        _ => text.to_owned(),
    };
    Ok(session.output.value(snapshot, &text)?)
}
