//! What a change of an instance would do, told without doing it.
//!
//! The change itself is made by the same functions as the real one; what the container has to do with it is
//! asked of [`claw_core::plan::container_digest`]. No host is asked: what an agent finds in its way, such as
//! too little room for a rehearsal, it says when the change is made.

use claw_core::address::{AddressPool, Slot};
use claw_core::data::DataGeneration;
use claw_core::name::InstanceName;
use claw_core::plan::{DesiredInstance, Target, container_digest};
use claw_core::spec::{InstanceSpec, Rehearsal, RestoreSource, RunState};
use claw_core::time::Timestamp;
use claw_proto::convert::name::snapshot_resource;
use claw_proto::convert::spec::redact;
use claw_proto::fleet::v1 as fleet;
use claw_store::rusqlite::Connection;

use super::instances::{SpecPatch, changed_fields, check_hostnames, load_settled, merge};
use super::migration::{self, Destination};
use super::rollback::{RollbackTarget, RolledBack, rolled_back};
use super::{Fleet, spec_check};
use crate::refusal::Refusal;
use crate::store::Keys;
use crate::store::host_state::complete;
use crate::store::instances::InstanceRow;

/// A change that is only thought of.
#[derive(Debug, Clone)]
pub enum Change {
    /// As an update would make it.
    Update(Box<SpecPatch>),
    /// As a rollback would make it.
    Rollback(RollbackTarget),
    /// As a migration would make it.
    Migrate(Destination),
}

impl Fleet {
    /// What a change would do.
    ///
    /// # Errors
    /// Those that the change itself would have.
    pub async fn plan_instance(
        &self,
        name: InstanceName,
        change: Change,
    ) -> Result<fleet::InstancePlan, Refusal> {
        let now = self.clock.now();
        let registry = std::sync::Arc::clone(&self.registry);
        let query = move |connection: &Connection, keys: &Keys| match change {
            Change::Migrate(destination) => {
                migration::plan::plan(&registry, connection, &name, &destination, now)
            }
            change => plan(connection, keys, &name, change, now),
        };
        self.store.read_long(query).await
    }
}

fn plan(
    connection: &Connection,
    keys: &Keys,
    name: &InstanceName,
    change: Change,
    now: Timestamp,
) -> Result<fleet::InstancePlan, Refusal> {
    let instance = load_settled(connection, name, "")?;
    let old = instance.full_spec(&keys.seal)?;
    let back = match change {
        Change::Update(patch) => {
            let spec = merge(&old, &patch)?;
            RolledBack { spec, revision: instance.revision, snapshot: None }
        }
        Change::Rollback(target) => rolled_back(connection, keys, &instance, &target, now)?,
        Change::Migrate(_) => {
            return Err(Refusal::damaged("plan", "a migration is planned elsewhere"));
        }
    };
    spec_check::faults(&back.spec, &keys.tiers).into_result()?;
    check_hostnames(connection, &instance.host, name, &back.spec)?;
    let before = complete(keys, &instance, &old, spec_check::SPEC)?;
    let after = complete(keys, &instance, &back.spec, spec_check::SPEC)?;
    let fields = changed_fields(&old, &back.spec);
    let told = Told { instance: &instance, before: &before, after: &after, back: &back };
    let mut plan = told.plan(&fields);
    let mut spec = back.spec.clone();
    redact(&mut spec);
    plan.spec = Some(spec);
    Ok(plan)
}

/// An instance before and after a change.
struct Told<'a> {
    instance: &'a InstanceRow,
    before: &'a InstanceSpec,
    after: &'a InstanceSpec,
    back: &'a RolledBack,
}

impl Told<'_> {
    fn plan(&self, fields: &[&str]) -> fleet::InstancePlan {
        let restores_data = self.back.snapshot.is_some();
        let updates_image = self.before.image != self.after.image;
        let replaces_container =
            restores_data || self.digest(self.before) != self.digest(self.after);
        let is_up = self.before.run == RunState::Running;
        let goes_down = is_up && self.after.run != RunState::Running;
        let restarts = is_up && !goes_down && !replaces_container && self.new_secrets();
        let mut plan = fleet::InstancePlan {
            changed_fields: fields.iter().map(ToString::to_string).collect(),
            replaces_container,
            interrupts: goes_down || restarts || (is_up && replaces_container),
            updates_image,
            restores_data,
            consequences: Vec::new(),
            spec: None,
            blockers: Vec::new(),
        };
        plan.consequences = self.consequences(&plan, restarts);
        plan
    }

    fn new_secrets(&self) -> bool {
        self.before.secrets != self.after.secrets
    }

    fn consequences(&self, plan: &fleet::InstancePlan, restarts: bool) -> Vec<String> {
        let mut told = Vec::new();
        let runs = self.after.run == RunState::Running;
        if let Some((snapshot, bytes, from)) = &self.back.snapshot {
            let name = snapshot_resource(&self.instance.name, snapshot);
            let read = if *from == RestoreSource::Offsite { ", read off-site," } else { "" };
            told.push(format!(
                "{bytes} bytes of {name}{read} are restored beside the present data"
            ));
        }
        if plan.updates_image {
            told.push(self.about_image(plan.restores_data));
        }
        if (plan.updates_image && runs) || plan.restores_data {
            told.push("a snapshot of the present data is taken and held for 3 days".to_owned());
            told.push(
                "if the new version does not become healthy, image, data and configuration go back together"
                    .to_owned(),
            );
        } else if plan.replaces_container && runs {
            told.push(
                "a new container takes the place of the old one; the gateway is down meanwhile"
                    .to_owned(),
            );
        }
        if restarts {
            told.push("the gateway is restarted, because its secrets change".to_owned());
        }
        told.extend(self.about_run_state());
        let rest = plan.changed_fields.len() > usize::from(self.before.run != self.after.run);
        if rest && !plan.interrupts && self.before.run == RunState::Running && runs {
            told.push("everything takes effect while the gateway runs".to_owned());
        }
        if told.is_empty() {
            let text =
                if rest { "nothing until the gateway is started" } else { "nothing changes" };
            told.push(text.to_owned());
        }
        told
    }

    fn about_image(&self, restores: bool) -> String {
        let (old, new) = (&self.before.image, &self.after.image);
        if restores {
            return format!("image {new} comes back with it, instead of {old}");
        }
        if self.after.run != RunState::Running {
            return format!("image {new} is tried instead of {old} when the gateway is started");
        }
        let rehearsal = match self.after.update.rehearsal {
            Rehearsal::Always => "rehearsed on it without any network",
            Rehearsal::Auto => "rehearsed on it without any network if there is room",
            Rehearsal::Never => "not rehearsed",
        };
        format!(
            "image {new} is pulled, the data copied and {rehearsal}, all while {old} serves; then it takes its place"
        )
    }

    fn about_run_state(&self) -> Option<String> {
        if self.before.run == self.after.run {
            return None;
        }
        let text = match self.after.run {
            RunState::Running => "the gateway is started",
            RunState::Stopped => "the gateway is stopped",
            RunState::Paused => "the gateway is stopped and a snapshot of its data is held",
        };
        Some(text.to_owned())
    }

    /// What cannot change without a new container. Where on the host it lives does not change with a spec,
    /// so any place will do to compare.
    fn digest(&self, spec: &InstanceSpec) -> Option<claw_core::stamp::Digest> {
        let desired = DesiredInstance {
            name: self.instance.name.clone(),
            generation: self.instance.generation,
            network: AddressPool::STANDARD.network(Slot::new(0)?),
            data: DataGeneration::FIRST,
            target: Target::Removed,
        };
        Some(container_digest(&desired, spec))
    }
}
