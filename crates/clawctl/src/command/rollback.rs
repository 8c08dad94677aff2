//! `rollback` and `revisions`: what an instance was before, and back to it.

use claw_proto::fleet::v1 as fleet;
use claw_proto::fleet::v1::plan_instance_request::Change;
use claw_proto::fleet::v1::rollback_instance_request::Target;
use claw_proto::node::v1 as node;

use super::{Session, instance, snapshot};
use crate::cli::{RollbackArgs, Until};
use crate::clock;
use crate::connection::{Connection, PAGE_SIZE, Repeat};
use crate::failure::CommandError;
use crate::view::change::{PlanView, RevisionView};
use crate::view::id;
use crate::view::instance::InstanceView;
use crate::watch::goal::Goal;

/// Where to.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Destination {
    /// Its resource name, and where it is read.
    Snapshot(String, node::RestoreSource),
    Revision(u64),
}

pub(super) async fn run(
    arguments: &RollbackArgs,
    session: &mut Session<'_>,
) -> Result<(), CommandError> {
    let name = id(&arguments.name);
    let destination = match (&arguments.to_snapshot, arguments.to_revision) {
        (Some(to), _) => {
            let from = if arguments.from_offsite {
                node::RestoreSource::Offsite
            } else {
                node::RestoreSource::Host
            };
            Destination::Snapshot(snapshot::resource(name, id(to)), from)
        }
        // The command line has one of the two.
        (None, revision) => Destination::Revision(revision.unwrap_or_default()),
    };
    if arguments.plan {
        let from = destination.from();
        let plan = ask_plan(&session.connection, name, destination.change(), from).await?;
        let view = PlanView::of_instance(name, plan);
        return Ok(session.output.value(&view, &view.text_in(session.output.format))?);
    }
    if arguments.wait {
        return send_and_wait(name, destination, session).await;
    }
    let text = format!("instances/{name} will be rolled back to {destination}");
    let instance = send(&session.connection, name, destination).await?;
    instance::answer(instance.into(), &text, session)
}

async fn send_and_wait(
    name: &str,
    destination: Destination,
    session: &mut Session<'_>,
) -> Result<(), CommandError> {
    let before: InstanceView = instance::get(&session.connection, name).await?.into();
    let after = send(&session.connection, name, destination.clone()).await?;
    session.remark(&format!("instances/{name} will be rolled back to {destination}"))?;
    let until = Until::of(&after);
    let goal = match &destination {
        Destination::Snapshot(..) => Goal::restored(until, &before),
        Destination::Revision(_) => until.into(),
    };
    session.wait(&[name.to_owned()], goal).await?;
    let text = format!("instances/{name} {} as of {destination}", goal.words());
    let instance = instance::get(&session.connection, name).await?.into();
    instance::answer(instance, &text, session)
}

async fn send(
    connection: &Connection,
    name: &str,
    destination: Destination,
) -> Result<fleet::Instance, CommandError> {
    let doing = format!("roll instances/{name} back to {destination}");
    let request = fleet::RollbackInstanceRequest {
        name: format!("instances/{name}"),
        from: destination.from().into(),
        target: Some(destination.target()),
        request_id: clock::request_id(),
        ..fleet::RollbackInstanceRequest::default()
    };
    let answer = connection
        .call(&doing, Repeat::Harmless, request, async |channel, request| {
            instance::client(channel).rollback_instance(request).await
        })
        .await?;
    answer.instance.ok_or(CommandError::Answer { missing: "instance" })
}

/// What a change of an instance would do.
pub(super) async fn ask_plan(
    connection: &Connection,
    name: &str,
    change: Change,
    from: node::RestoreSource,
) -> Result<fleet::InstancePlan, CommandError> {
    let request = fleet::PlanInstanceRequest {
        name: format!("instances/{name}"),
        change: Some(change),
        from: from.into(),
    };
    let doing = format!("plan a change of instances/{name}");
    let answer = connection
        .call(&doing, Repeat::Harmless, request, async |channel, request| {
            instance::client(channel).plan_instance(request).await
        })
        .await?;
    answer.plan.ok_or(CommandError::Answer { missing: "plan" })
}

/// Lists revisions.
pub(super) async fn revisions(name: &str, session: &mut Session<'_>) -> Result<(), CommandError> {
    let doing = format!("list the revisions of instances/{name}");
    let mut revisions: Vec<RevisionView> = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = fleet::ListInstanceRevisionsRequest {
            name: format!("instances/{name}"),
            page_size: PAGE_SIZE,
            page_token,
        };
        let page = session
            .connection
            .call(&doing, Repeat::Harmless, request, async |channel, request| {
                instance::client(channel).list_instance_revisions(request).await
            })
            .await?;
        revisions.extend(page.revisions.into_iter().map(|one| RevisionView::new(name, one)));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(session.output.list(&revisions)?);
        }
    }
}

impl Destination {
    fn from(&self) -> node::RestoreSource {
        match self {
            Self::Snapshot(_, from) => *from,
            Self::Revision(_) => node::RestoreSource::Unspecified,
        }
    }

    fn target(self) -> Target {
        match self {
            Self::Snapshot(name, _) => Target::Snapshot(name),
            Self::Revision(number) => Target::Revision(number),
        }
    }

    fn change(self) -> Change {
        match self {
            Self::Snapshot(name, _) => Change::Snapshot(name),
            Self::Revision(number) => Change::Revision(number),
        }
    }
}

impl std::fmt::Display for Destination {
    /// `snapshot good` or `revision 3`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Snapshot(name, node::RestoreSource::Offsite) => {
                write!(f, "snapshot {} off-site", id(name))
            }
            Self::Snapshot(name, _) => write!(f, "snapshot {}", id(name)),
            Self::Revision(number) => write!(f, "revision {number}"),
        }
    }
}
