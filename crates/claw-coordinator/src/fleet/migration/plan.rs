//! What a move would do, and what stands in its way.

use claw_core::name::{InstanceName, SnapshotName};
use claw_core::time::Timestamp;
use claw_proto::convert::name::snapshot_resource;
use claw_proto::fleet::v1 as fleet;
use claw_store::rusqlite::Connection;

use super::{Destination, From};
use crate::fleet::instances::{being_removed, check_hostnames, load_settled, run_state};
use crate::refusal::{Precondition, Refusal};
use crate::registry::Registry;
use crate::store::hosts::{self, HostRow};
use crate::store::instances::InstanceRow;
use crate::store::migrations;
use crate::store::snapshots::{self, RepositoryRow, SnapshotRow};

/// What was found.
pub(super) struct Looked {
    /// What stands in the way.
    pub(super) blockers: Vec<Refusal>,
    /// What it starts with; none: what its host has.
    pub(super) snapshot: Option<SnapshotName>,
}

/// What a move would do.
pub(in crate::fleet) fn plan(
    registry: &Registry,
    connection: &Connection,
    name: &InstanceName,
    destination: &Destination,
    now: Timestamp,
) -> Result<fleet::InstancePlan, Refusal> {
    let instance = load_settled(connection, name, "")?;
    let looked = look(registry, connection, &instance, destination, now)?;
    let interrupts = run_state(&instance.spec) == fleet::RunState::Running;
    Ok(fleet::InstancePlan {
        replaces_container: true,
        interrupts,
        restores_data: true,
        consequences: consequences(&instance, destination, looked.snapshot.as_ref(), interrupts),
        spec: Some(instance.spec),
        blockers: looked.blockers.iter().map(ToString::to_string).collect(),
        ..fleet::InstancePlan::default()
    })
}

fn consequences(
    instance: &InstanceRow,
    destination: &Destination,
    snapshot: Option<&SnapshotName>,
    interrupts: bool,
) -> Vec<String> {
    let (old, new) = (&instance.host, &destination.host);
    let mut told = Vec::new();
    match snapshot {
        Some(snapshot) => {
            let snapshot = snapshot_resource(&instance.name, snapshot);
            told.push(format!("hosts/{new} fetches the copy off-site and begins with {snapshot}"));
            told.push("what was written since that snapshot is not there".to_owned());
        }
        None if interrupts => {
            told.push(format!("the repository is sent to hosts/{new} while the gateway serves"));
            told.push("the gateway is paused, and what is new is sent".to_owned());
        }
        None => told.push(format!("the repository is sent to hosts/{new}")),
    }
    told.push(format!("hosts/{new} restores the data and brings the instance up"));
    told.push(format!("if it does not become healthy there, it goes on on hosts/{old}"));
    told.push(format!("hosts/{old} takes a last snapshot and sets its data aside"));
    told
}

/// Looks at everything that a move needs.
///
/// # Errors
/// [`Refusal::Invalid`] and [`Refusal::NotFound`]: there is nothing to plan.
pub(super) fn look(
    registry: &Registry,
    connection: &Connection,
    instance: &InstanceRow,
    destination: &Destination,
    now: Timestamp,
) -> Result<Looked, Refusal> {
    let target = hosts::load(connection, &destination.host)?;
    if target.name == instance.host {
        let text = format!("instances/{} is there already", instance.name);
        return Err(Refusal::field("host", text));
    }
    let source = hosts::load(connection, &instance.host)?;
    let repository = snapshots::of_instance(connection, instance)?;
    let mut blockers = Vec::new();
    let is_online = |host: &HostRow| registry.host_state(host, now) == fleet::HostState::Online;
    if target.cordoned {
        let text = format!("hosts/{} is cordoned: no instances are placed there", target.name);
        blockers.push(of_host(Precondition::HostCordoned, &target, text));
    }
    if !is_online(&target) {
        let text = format!("hosts/{} is not connected", target.name);
        blockers.push(of_host(Precondition::HostNotConnected, &target, text));
    }
    blockers.extend(names(connection, instance, &target)?);
    if repository.escrow.is_none() {
        let subject = format!("instances/{}", instance.name);
        let text = format!("hosts/{} has not sent the passwords of {subject} yet", source.name);
        blockers.push(Refusal::precondition(Precondition::NoEscrow, subject, text));
    }
    let snapshot = match &destination.from {
        From::Host => {
            if !is_online(&source) {
                let text = format!(
                    "hosts/{} is not connected; if it is gone, move from the copy off-site",
                    source.name
                );
                blockers.push(of_host(Precondition::HostNotConnected, &source, text));
            }
            None
        }
        From::Newest | From::Snapshot(_) => {
            if is_online(&source) {
                let text = format!(
                    "hosts/{} is connected and has newer data; move from it, or revoke it first",
                    source.name
                );
                blockers.push(of_host(Precondition::HostConnected, &source, text));
            }
            match offsite(connection, instance, &source, &repository, &destination.from)? {
                Ok(snapshot) => Some(snapshot),
                Err(refusal) => {
                    blockers.push(refusal);
                    None
                }
            }
        }
    };
    Ok(Looked { blockers, snapshot })
}

/// Names that stand in the way on the new host.
fn names(
    connection: &Connection,
    instance: &InstanceRow,
    target: &HostRow,
) -> Result<Vec<Refusal>, Refusal> {
    let mut blockers = Vec::new();
    if migrations::has_departed(connection, &target.name, &instance.name)? {
        blockers.push(being_removed(&instance.name, &target.name));
    }
    match check_hostnames(connection, &target.name, &instance.name, &instance.spec) {
        Err(Refusal::Invalid(violations)) => {
            let taken: Vec<&str> =
                violations.0.iter().map(|taken| taken.description.as_str()).collect();
            let text = format!("hosts/{}: {}", target.name, taken.join("; "));
            blockers.push(of_host(Precondition::HostnameTaken, target, text));
        }
        checked => checked?,
    }
    Ok(blockers)
}

/// The snapshot with which the instance would start from off-site, or why there is none.
fn offsite(
    connection: &Connection,
    instance: &InstanceRow,
    source: &HostRow,
    repository: &RepositoryRow,
    from: &From,
) -> Result<Result<SnapshotName, Refusal>, Refusal> {
    let subject = format!("instances/{}", instance.name);
    let nothing = |text: String| {
        Ok(Err(Refusal::precondition(Precondition::NoOffsiteCopy, subject.clone(), text)))
    };
    let path = repository.report.as_ref().map(|(report, _at)| report.offsite.path.as_str());
    if source.offsite.is_none() || path.is_none_or(str::is_empty) {
        return nothing(format!("no copy of {subject} off-site is known"));
    }
    let is_offsite = |row: &SnapshotRow| row.listed.as_ref().is_some_and(|info| info.offsite);
    match from {
        From::Snapshot(name) => {
            let resource = snapshot_resource(&instance.name, name);
            let row = snapshots::find(connection, &instance.uid, name)?
                .ok_or_else(|| Refusal::NotFound { resource: resource.clone() })?;
            if is_offsite(&row) {
                return Ok(Ok(row.name));
            }
            let text = format!("{resource} is not known to be off-site");
            Ok(Err(Refusal::precondition(Precondition::SnapshotNotOffsite, resource, text)))
        }
        From::Host | From::Newest => {
            let all = snapshots::all(connection, &instance.uid)?;
            match all.into_iter().rfind(is_offsite) {
                Some(newest) => Ok(Ok(newest.name)),
                None => nothing(format!("no snapshot of {subject} is known to be off-site")),
            }
        }
    }
}

fn of_host(reason: Precondition, host: &HostRow, text: String) -> Refusal {
    Refusal::precondition(reason, format!("hosts/{}", host.name), text)
}
