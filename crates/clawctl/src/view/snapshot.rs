//! Snapshots of an instance, and the repository that holds them, as clawctl prints them.

use std::fmt;

use claw_core::time::Timestamp;
use claw_proto::convert::timestamp_from_wire;
use claw_proto::fleet::v1 as fleet;
use claw_proto::node::v1 as node;
use serde::Serialize;

use super::{Resource, enum_text, id, short_image, size, time, yes_no};

/// A snapshot of an instance.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SnapshotView {
    pub(crate) name: String,
    pub(crate) instance: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    instance_uid: String,
    /// Such as `ready`.
    pub(crate) state: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) problem: String,
    /// Such as `scheduled`.
    cause: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    create_time: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    image: String,
    generation: u64,
    revision: u64,
    files: u64,
    bytes: u64,
    added_bytes: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    restic_id: String,
    /// All of it was copied off-site.
    offsite: bool,
    #[serde(skip)]
    created: Option<Timestamp>,
}

/// How an instance's repository stands.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RepositoryView {
    pub(crate) host: String,
    stored_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_due_time: Option<String>,
    overdue: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) problem: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) verify_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    drill_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    offsite: Option<CopyView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    report_time: Option<String>,
    escrowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    delete_time: Option<String>,
    #[serde(skip)]
    next_due: Option<Timestamp>,
    #[serde(skip)]
    reported: Option<Timestamp>,
}

/// How the copy of a repository off-site stands.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CopyView {
    #[serde(skip_serializing_if = "String::is_empty")]
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    copy_time: Option<String>,
    overdue: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    problem: String,
}

/// What `snapshot list` answers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct SnapshotList {
    /// Newest first.
    pub(crate) snapshots: Vec<SnapshotView>,
    pub(crate) repository: RepositoryView,
}

impl From<fleet::Snapshot> for SnapshotView {
    fn from(wire: fleet::Snapshot) -> Self {
        let created = wire.create_time.as_ref().map(timestamp_from_wire);
        let state = fleet::SnapshotState::try_from(wire.state).ok();
        let cause = node::SnapshotCause::try_from(wire.cause).ok();
        Self {
            name: id(&wire.name).to_owned(),
            instance: wire.name.split('/').nth(1).unwrap_or_default().to_owned(),
            instance_uid: wire.instance_uid,
            state: enum_text(state.map(|s| s.as_str_name()), "SNAPSHOT_STATE_", wire.state),
            problem: wire.problem,
            cause: enum_text(cause.map(|c| c.as_str_name()), "SNAPSHOT_CAUSE_", wire.cause),
            create_time: created.map(time::text),
            image: wire.image,
            generation: wire.generation,
            revision: wire.revision,
            files: wire.files,
            bytes: wire.bytes,
            added_bytes: wire.added_bytes,
            restic_id: wire.restic_id,
            offsite: wire.offsite,
            created,
        }
    }
}

impl From<fleet::SnapshotRepository> for RepositoryView {
    fn from(wire: fleet::SnapshotRepository) -> Self {
        let at = |at: Option<_>| at.map(|at| timestamp_from_wire(&at));
        let (next_due, reported) = (at(wire.next_due_time), at(wire.report_time));
        Self {
            host: id(&wire.host).to_owned(),
            stored_bytes: wire.stored_bytes,
            next_due_time: next_due.map(time::text),
            overdue: wire.overdue,
            problem: wire.problem,
            verify_time: at(wire.verify_time).map(time::text),
            drill_time: at(wire.drill_time).map(time::text),
            offsite: wire.offsite.map(CopyView::from),
            report_time: reported.map(time::text),
            escrowed: wire.escrowed,
            delete_time: at(wire.delete_time).map(time::text),
            next_due,
            reported,
        }
    }
}

impl From<fleet::RepositoryOffsite> for CopyView {
    fn from(wire: fleet::RepositoryOffsite) -> Self {
        Self {
            path: wire.path,
            copy_time: wire.copy_time.map(|at| time::text(timestamp_from_wire(&at))),
            overdue: wire.overdue,
            problem: wire.problem,
        }
    }
}

impl fmt::Display for CopyView {
    /// `2026-11-21T09:00:00Z, OVERDUE: the storage refuses the key`; empty when there is nothing to say.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let overdue = self.overdue.then_some("OVERDUE");
        let parts: Vec<&str> = self.copy_time.as_deref().into_iter().chain(overdue).collect();
        f.write_str(&parts.join(", "))?;
        match self.problem.as_str() {
            "" => Ok(()),
            problem if parts.is_empty() => f.write_str(problem),
            problem => write!(f, ": {problem}"),
        }
    }
}

impl SnapshotView {
    /// `1.2GiB in 20246 files, 86MiB added`.
    pub(crate) fn contents(&self) -> String {
        format!("{} in {} files, {} added", size(self.bytes), self.files, size(self.added_bytes))
    }

    /// What is not known before the host lists it is empty.
    fn known(&self, text: String) -> String {
        if self.restic_id.is_empty() { String::new() } else { text }
    }

    fn revision(&self) -> String {
        if self.revision == 0 { String::new() } else { self.revision.to_string() }
    }
}

impl Resource for SnapshotView {
    const HEADER: &'static [&'static str] = &[
        "SNAPSHOT", "AGE", "STATE", "CAUSE", "SIZE", "ADDED", "OFF-SITE", "REVISION", "IMAGE",
        "NOTE",
    ];

    fn resource(&self) -> String {
        format!("instances/{}/snapshots/{}", self.instance, self.name)
    }

    fn row(&self, now: Timestamp) -> Vec<String> {
        vec![
            self.name.clone(),
            time::ago(self.created, now),
            self.state.clone(),
            self.cause.clone(),
            self.known(size(self.bytes)),
            self.known(size(self.added_bytes)),
            self.known(yes_no(self.offsite)),
            self.revision(),
            short_image(&self.image),
            self.problem.clone(),
        ]
    }

    fn details(&self, now: Timestamp) -> Vec<(&'static str, String)> {
        vec![
            ("snapshot", self.name.clone()),
            ("instance", self.instance.clone()),
            ("instance uid", self.instance_uid.clone()),
            ("state", self.state.clone()),
            ("problem", self.problem.clone()),
            ("cause", self.cause.clone()),
            ("created", self.create_time.clone().unwrap_or_default()),
            ("age", time::ago(self.created, now)),
            ("image", self.image.clone()),
            ("revision", self.revision()),
            ("generation", self.known(self.generation.to_string())),
            ("contents", self.known(self.contents())),
            ("off-site", self.known(yes_no(self.offsite))),
            ("restic id", self.restic_id.clone()),
        ]
    }
}

impl RepositoryView {
    /// Everything, for a person.
    pub(crate) fn details(&self, now: Timestamp) -> Vec<(&'static str, String)> {
        let of_host = |text: String| if self.reported.is_none() { String::new() } else { text };
        vec![
            ("host", self.host.clone()),
            ("stored", of_host(size(self.stored_bytes))),
            ("next due", time::ago(self.next_due, now)),
            ("overdue", if self.overdue { yes_no(true) } else { String::new() }),
            ("problem", self.problem.clone()),
            ("verified", self.verify_time.clone().unwrap_or_default()),
            ("drilled", self.drill_time.clone().unwrap_or_default()),
            ("off-site", self.offsite.as_ref().map(ToString::to_string).unwrap_or_default()),
            ("reported", self.report_time.clone().unwrap_or_default()),
            ("password kept", yes_no(self.escrowed)),
            ("deleted", self.delete_time.clone().unwrap_or_default()),
        ]
    }
}

impl SnapshotList {
    /// Snapshots of no use.
    pub(crate) fn damaged(&self) -> impl Iterator<Item = &str> {
        let damaged = self.snapshots.iter().filter(|snapshot| snapshot.state == "damaged");
        damaged.map(|snapshot| snapshot.name.as_str())
    }
}
