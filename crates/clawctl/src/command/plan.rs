//! `plan`: what `apply` of files would do; nothing is changed.

use std::collections::BTreeSet;

use claw_proto::fleet::v1 as fleet;
use claw_proto::fleet::v1::plan_instance_request::Change;
use claw_proto::node::v1 as node;
use tonic::Code;

use super::apply::{self, Item, Outcome};
use super::instance::{self, NewInstance};
use super::{Mode, Session, Sources, host, rollback};
use crate::cli::PlanArgs;
use crate::connection::Connection;
use crate::failure::CommandError;
use crate::file::content::Wanted;
use crate::view::change::{Expected, PlanView};

/// Everything whose effect is asked for.
pub(super) struct Draft {
    items: Vec<Item>,
}

impl Draft {
    /// Reads files and all that they point to.
    pub(super) fn read(
        arguments: &PlanArgs,
        sources: &mut Sources<'_>,
    ) -> Result<Self, CommandError> {
        Ok(Self { items: apply::read_items(&arguments.files, sources)? })
    }
}

/// Asks for each item, also after one failed.
pub(super) async fn run(draft: Draft, session: &mut Session<'_>) -> Result<(), CommandError> {
    let all = draft.items.len();
    let (mut views, mut failures) = (Vec::new(), Vec::new());
    let mut planned = BTreeSet::new();
    for item in draft.items {
        match Box::pin(of_item(item, &planned, &session.connection)).await {
            Ok(view) => {
                if view.outcome == Expected::Created {
                    planned.insert(view.resource.clone());
                }
                views.push(view);
            }
            Err(error) => failures.push(error),
        }
    }
    let format = session.output.format;
    let texts: Vec<String> = views.iter().map(|view: &PlanView| view.text_in(format)).collect();
    if !views.is_empty() {
        session.output.value(&views, &texts.join("\n"))?;
    }
    if failures.is_empty() { Ok(()) } else { Err(apply::told(failures, all, session)?) }
}

/// `planned`: resources that would have been created before it.
async fn of_item(
    item: Item,
    planned: &BTreeSet<String>,
    connection: &Connection,
) -> Result<PlanView, CommandError> {
    let resource = item.resource();
    match item {
        Item::Host(document) => {
            let outcome = match host::apply(connection, &document, Mode::Check).await? {
                Outcome::Created => Expected::Created,
                Outcome::Updated => Expected::Updated,
                Outcome::Unchanged => Expected::Unchanged,
            };
            Ok(PlanView { resource, outcome, effects: None })
        }
        Item::Instance { name, host, wanted } => {
            let host_is_planned = planned.contains(&format!("hosts/{host}"));
            match of_instance(name, host, *wanted, connection).await {
                // It is the host that does not exist yet.
                Err(CommandError::Call(error))
                    if host_is_planned && error.code == Code::NotFound =>
                {
                    Ok(PlanView { resource, outcome: Expected::Created, effects: None })
                }
                planned => planned,
            }
        }
    }
}

async fn of_instance(
    name: String,
    host: String,
    wanted: Wanted,
    connection: &Connection,
) -> Result<PlanView, CommandError> {
    let before = match instance::get(connection, &name).await {
        Ok(before) => before,
        Err(CommandError::Call(error)) if error.code == Code::NotFound => {
            let resource = format!("instances/{name}");
            let new = NewInstance { name, host, wanted, mode: Mode::Check, wait: false };
            instance::send_create(connection, &new).await?;
            return Ok(PlanView { resource, outcome: Expected::Created, effects: None });
        }
        Err(error) => return Err(error),
    };
    let wanted = apply::fitted_to(&before, &name, &host, wanted)?;
    let mut change = fleet::SpecChange { spec: Some(wanted.spec), update_mask: None };
    change.update_mask.get_or_insert_default().paths = wanted.mask;
    let from = node::RestoreSource::Unspecified;
    let plan = rollback::ask_plan(connection, &name, Change::Update(change), from).await?;
    Ok(PlanView::of_instance(&name, plan))
}
