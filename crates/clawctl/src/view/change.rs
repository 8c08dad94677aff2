//! What a change would do, and what an instance was before, as clawctl prints them.

use claw_core::time::Timestamp;
use claw_proto::convert::timestamp_from_wire;
use claw_proto::fleet::v1 as fleet;
use serde::Serialize;

use super::{Resource, id, short_image, time};
use crate::cli::Format;
use crate::file::spec::{RunStateDocument, SpecDocument};

/// What a change would do to a host or an instance.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PlanView {
    pub(crate) resource: String,
    pub(crate) outcome: Expected,
    /// Absent where the resource would be created, and of hosts.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub(crate) effects: Option<EffectsView>,
}

/// What would become of a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Expected {
    Created,
    Updated,
    Unchanged,
}

/// What would become of an instance that exists.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EffectsView {
    changed_fields: Vec<String>,
    replaces_container: bool,
    interrupts: bool,
    updates_image: bool,
    restores_data: bool,
    consequences: Vec<String>,
    spec: SpecDocument,
}

/// A spec that an instance had.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RevisionView {
    #[serde(skip)]
    instance: String,
    revision: u64,
    generation: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    create_time: Option<String>,
    spec: SpecDocument,
    /// Those that were taken under it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    snapshots: Vec<String>,
    #[serde(skip)]
    created: Option<Timestamp>,
}

impl PlanView {
    pub(crate) fn of_instance(name: &str, plan: fleet::InstancePlan) -> Self {
        let same = plan.changed_fields.is_empty() && !plan.restores_data;
        Self {
            resource: format!("instances/{name}"),
            outcome: if same { Expected::Unchanged } else { Expected::Updated },
            effects: Some(EffectsView {
                changed_fields: plan.changed_fields,
                replaces_container: plan.replaces_container,
                interrupts: plan.interrupts,
                updates_image: plan.updates_image,
                restores_data: plan.restores_data,
                consequences: plan.consequences,
                spec: plan.spec.unwrap_or_default().into(),
            }),
        }
    }

    /// For people, or the name alone.
    pub(crate) fn text_in(&self, format: Format) -> String {
        if format == Format::Name { self.resource.clone() } else { self.text() }
    }

    /// A line, and below it what would happen in order.
    fn text(&self) -> String {
        let resource = &self.resource;
        let effects = match (&self.outcome, &self.effects) {
            (Expected::Created, _) => return format!("{resource} would be created"),
            (Expected::Unchanged, _) => return format!("{resource} unchanged"),
            (Expected::Updated, None) => return format!("{resource} would be updated"),
            (Expected::Updated, Some(effects)) => effects,
        };
        let mut text = format!("{resource} would be updated");
        if !effects.changed_fields.is_empty() {
            text.push_str(&format!(": {}", effects.changed_fields.join(", ")));
        }
        for line in effects.lines() {
            text.push_str(&format!("\n  - {}", crate::table::printable(&line)));
        }
        text
    }
}

impl EffectsView {
    /// What the coordinator says, in its words, and first whether the gateway goes down.
    fn lines(&self) -> Vec<String> {
        let first = match (self.interrupts, self.replaces_container) {
            (true, true) => "interrupts the gateway: its container is replaced",
            (true, false) => "interrupts the gateway",
            (false, true) => "replaces the container",
            (false, false) => "does not interrupt the gateway",
        };
        let consequences = self.consequences.iter().cloned();
        std::iter::once(first.to_owned()).chain(consequences).collect()
    }
}

impl RevisionView {
    pub(crate) fn new(instance: &str, wire: fleet::InstanceRevision) -> Self {
        let created = wire.create_time.as_ref().map(timestamp_from_wire);
        Self {
            instance: instance.to_owned(),
            revision: wire.revision,
            generation: wire.generation,
            create_time: created.map(time::text),
            spec: wire.spec.unwrap_or_default().into(),
            snapshots: wire.snapshots.iter().map(|name| id(name).to_owned()).collect(),
            created,
        }
    }

    fn run_state(&self) -> &'static str {
        match self.spec.run_state {
            Some(RunStateDocument::Running) => "running",
            Some(RunStateDocument::Stopped) => "stopped",
            Some(RunStateDocument::Paused) => "paused",
            None => "",
        }
    }
}

impl Resource for RevisionView {
    const HEADER: &'static [&'static str] =
        &["REVISION", "AGE", "RUN STATE", "TIER", "IMAGE", "SNAPSHOTS"];

    fn resource(&self) -> String {
        format!("instances/{}/revisions/{}", self.instance, self.revision)
    }

    fn row(&self, now: Timestamp) -> Vec<String> {
        vec![
            self.revision.to_string(),
            time::ago(self.created, now),
            self.run_state().to_owned(),
            self.spec.tier.clone().unwrap_or_default(),
            short_image(&self.spec.image),
            self.snapshots.join(", "),
        ]
    }

    fn details(&self, now: Timestamp) -> Vec<(&'static str, String)> {
        Self::HEADER.iter().copied().zip(self.row(now)).collect()
    }
}
