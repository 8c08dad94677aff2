//! `apply`: creates what does not exist, updates what does, host before instance.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use claw_core::spec::GATEWAY_TOKEN;
use claw_proto::fleet::v1 as fleet;
use serde::Serialize;
use tonic::Code;

use super::instance::{self, NewInstance};
use super::{Mode, Session, Sources, host};
use crate::cli::{ApplyArgs, Format, Until};
use crate::clock;
use crate::connection::{Connection, Repeat};
use crate::failure::{self, CommandError};
use crate::file::content::{self, Origins, Wanted};
use crate::file::{self, Document, HostDocument, Located};
use crate::view::id;

/// Everything that `apply` will send.
pub(super) struct Plan {
    items: Vec<Item>,
    mode: Mode,
    wait: bool,
}

/// A document with all that it points to.
pub(super) enum Item {
    Host(Box<HostDocument>),
    Instance { name: String, host: String, wanted: Box<Wanted> },
}

/// What became of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Outcome {
    Created,
    Updated,
    Unchanged,
}

/// One line of the answer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Applied {
    resource: String,
    outcome: Outcome,
    dry_run: bool,
}

impl Plan {
    /// Reads files and all that they point to.
    pub(super) fn read(
        arguments: &ApplyArgs,
        sources: &mut Sources<'_>,
    ) -> Result<Self, CommandError> {
        let items = read_items(&arguments.files, sources)?;
        Ok(Self { items, mode: Mode::of(arguments.dry_run), wait: arguments.wait })
    }
}

/// Reads files and all that they point to, hosts first.
pub(super) fn read_items(
    files: &[PathBuf],
    sources: &mut Sources<'_>,
) -> Result<Vec<Item>, CommandError> {
    let mut documents = file::read(files, sources.stdin)?;
    // Stable: within a kind the order of the files stays.
    documents.sort_by_key(|located| located.document.kind());
    documents.into_iter().map(|located| Item::read(located, sources)).collect()
}

impl Item {
    fn read(located: Located, sources: &Sources<'_>) -> Result<Self, CommandError> {
        match located.document {
            Document::Host(host) => Ok(Self::Host(host)),
            Document::Instance(instance) => {
                let origins =
                    Origins { directory: directory(&located.file), variable: sources.variable };
                Ok(Self::Instance {
                    name: id(&instance.name).to_owned(),
                    host: id(&instance.host).to_owned(),
                    wanted: content::wanted(&instance.spec, origins)?.into(),
                })
            }
        }
    }

    /// Applies one item and notes what to wait for.
    async fn apply(
        self,
        connection: &Connection,
        mode: Mode,
        waits: &mut BTreeMap<Until, Vec<String>>,
    ) -> Result<Outcome, CommandError> {
        match self {
            Self::Host(document) => Box::pin(host::apply(connection, &document, mode)).await,
            Self::Instance { name, host, wanted } => {
                let applied = apply_instance(connection, name.clone(), host, *wanted, mode);
                let (outcome, after) = Box::pin(applied).await?;
                // What the file leaves open is as it was.
                waits.entry(Until::of(&after)).or_default().push(name);
                Ok(outcome)
            }
        }
    }

    pub(super) fn resource(&self) -> String {
        match self {
            Self::Host(host) => format!("hosts/{}", id(&host.name)),
            Self::Instance { name, .. } => format!("instances/{name}"),
        }
    }
}

/// Applies every item, also after one failed: what is independent should not wait for it.
pub(super) async fn run(plan: Plan, session: &mut Session<'_>) -> Result<(), CommandError> {
    let all = plan.items.len();
    let mut applied = Vec::new();
    let mut waits: BTreeMap<Until, Vec<String>> = BTreeMap::new();
    let mut failures: Vec<CommandError> = Vec::new();
    for item in plan.items {
        let resource = item.resource();
        match Box::pin(item.apply(&session.connection, plan.mode, &mut waits)).await {
            Ok(outcome) => {
                let line = Applied { resource, outcome, dry_run: plan.mode == Mode::Check };
                if session.output.format == Format::Table {
                    session.output.value(&line, &line.text())?;
                }
                applied.push(line);
            }
            Err(error) => failures.push(error),
        }
    }
    if session.output.format != Format::Table && !applied.is_empty() {
        let names: Vec<&str> = applied.iter().map(|line| line.resource.as_str()).collect();
        session.output.value(&applied, &names.join("\n"))?;
    }
    if !failures.is_empty() {
        return Err(told(failures, all, session)?);
    }
    if plan.wait {
        for (until, names) in waits {
            session.wait(&names, until.into()).await?;
        }
    }
    Ok(())
}

/// Creates the instance or changes what the document decides.
async fn apply_instance(
    connection: &Connection,
    name: String,
    host: String,
    wanted: Wanted,
    mode: Mode,
) -> Result<(Outcome, fleet::Instance), CommandError> {
    let before = match instance::get(connection, &name).await {
        Ok(before) => before,
        Err(CommandError::Call(error)) if error.code == Code::NotFound => {
            let new = NewInstance { name, host, wanted, mode, wait: false };
            let after = instance::send_create(connection, &new).await?;
            return Ok((Outcome::Created, after));
        }
        Err(error) => return Err(error),
    };
    let wanted = fitted_to(&before, &name, &host, wanted)?;
    let after = update(connection, &before, wanted, mode).await?;
    let same = after.etag == before.etag && after.spec == before.spec;
    Ok((if same { Outcome::Unchanged } else { Outcome::Updated }, after))
}

/// What is wanted of an instance that exists.
pub(super) fn fitted_to(
    before: &fleet::Instance,
    name: &str,
    host: &str,
    mut wanted: Wanted,
) -> Result<Wanted, CommandError> {
    let present = id(&before.host);
    if present != host {
        let (instance, present) = (name.to_owned(), present.to_owned());
        return Err(CommandError::Moved { instance, present, wanted: host.to_owned() });
    }
    // The coordinator made it unless a file said otherwise; a list of secrets does not revoke it.
    if before.spec.as_ref().is_some_and(|spec| spec.secrets.contains_key(GATEWAY_TOKEN)) {
        wanted.spec.secrets.entry(GATEWAY_TOKEN.to_owned()).or_default();
    }
    Ok(wanted)
}

async fn update(
    connection: &Connection,
    before: &fleet::Instance,
    wanted: Wanted,
    mode: Mode,
) -> Result<fleet::Instance, CommandError> {
    let mut request = fleet::UpdateInstanceRequest {
        instance: Some(fleet::Instance {
            name: before.name.clone(),
            host: before.host.clone(),
            spec: Some(wanted.spec),
            etag: before.etag.clone(),
            ..fleet::Instance::default()
        }),
        validate_only: mode == Mode::Check,
        request_id: clock::request_id(),
        ..fleet::UpdateInstanceRequest::default()
    };
    request.update_mask.get_or_insert_default().paths = wanted.mask;
    let doing = format!("update {}", before.name);
    let answer = connection
        .call(&doing, Repeat::Harmless, request, async |channel, request| {
            instance::client(channel).update_instance(request).await
        })
        .await?;
    answer.instance.ok_or(CommandError::Answer { missing: "instance" })
}

impl Applied {
    fn text(&self) -> String {
        let Self { resource, outcome, dry_run } = self;
        let text = match (outcome, dry_run) {
            (Outcome::Created, false) => "created",
            (Outcome::Created, true) => "would be created",
            (Outcome::Updated, false) => "updated",
            (Outcome::Updated, true) => "would be updated",
            (Outcome::Unchanged, _) => "unchanged",
        };
        format!("{resource} {text}")
    }
}

/// One failure is the command's own; of several each is shown.
pub(super) fn told(
    mut failures: Vec<CommandError>,
    all: usize,
    session: &mut Session<'_>,
) -> Result<CommandError, CommandError> {
    if all == 1
        && let Some(only) = failures.pop()
    {
        return Ok(only);
    }
    for error in &failures {
        failure::show(error, session.err)?;
    }
    Ok(CommandError::Several { failed: failures.len(), all })
}

/// Where relative paths of a document start.
fn directory(file: &Path) -> &Path {
    match file.parent() {
        Some(parent) if file != "-" => parent,
        _ => Path::new(""),
    }
}
