//! Changes of instances.

use std::collections::BTreeSet;
use std::sync::Arc;

use claw_core::name::{HostName, InstanceName};
use claw_core::spec::GATEWAY_TOKEN;
use claw_core::stamp::Generation;
use claw_proto::convert::mask::apply_mask;
use claw_proto::convert::spec::{Counters, keep_secrets};
use claw_proto::convert::violation::Violations;
use claw_proto::fleet::v1 as fleet;
use claw_store::rusqlite::Connection;

use super::{Fleet, check_etag, spec_check};
use crate::refusal::{Precondition, Refusal};
use crate::store::instances::{self, InstanceRow};
use crate::store::mutation::{Call, Codec, Done, Effects};
use crate::store::{Keys, host_state, hosts, migrations, random_id, revisions};

/// How the answer to a change of an instance is made and kept.
#[derive(Debug)]
pub struct Answer<R> {
    /// To bytes and back.
    pub codec: Codec<R>,
    /// From the instance as it is afterwards.
    pub make: fn(fleet::Instance) -> R,
}

/// An update as the caller asks for it.
#[derive(Debug, Clone)]
pub struct SpecPatch {
    /// Where the caller believes it to be; empty to leave that out.
    pub host: Option<HostName>,
    /// New values.
    pub spec: fleet::InstanceSpec,
    /// Which of them to take; none means all.
    pub paths: Vec<String>,
}

/// A change that has no values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Up.
    Start,
    /// Down.
    Stop,
    /// Down, and a snapshot is held.
    Pause,
    /// Up again after a pause.
    Resume,
    /// Down and up, once.
    Restart,
    /// A new container.
    Rebuild,
    /// Away.
    Delete,
}

impl Fleet {
    /// Creates an instance.
    ///
    /// # Errors
    /// [`Refusal::Invalid`], [`Refusal::NotFound`] (host), [`Refusal::Exists`],
    /// [`Refusal::Precondition`].
    pub async fn create_instance<R: Send + 'static>(
        &self,
        call: Call,
        name: InstanceName,
        host: HostName,
        mut spec: fleet::InstanceSpec,
        answer: Answer<R>,
    ) -> Result<R, Refusal> {
        spec_check::ensure_gateway_token(&mut spec, None);
        spec_check::faults(&spec, &self.store.keys().tiers).into_result()?;
        let now = call.now;
        let job = move |connection: &Connection, keys: &Keys| {
            let host_row = hosts::load(connection, &host)?;
            check_name_is_free(connection, &name, &host)?;
            if host_row.cordoned {
                return Err(Refusal::precondition(
                    Precondition::HostCordoned,
                    format!("hosts/{host}"),
                    format!("hosts/{host} is cordoned: no new instances are placed there"),
                ));
            }
            check_hostnames(connection, &host, &name, &spec)?;
            let mut instance = InstanceRow {
                name,
                uid: random_id(),
                host,
                spec: fleet::InstanceSpec::default(),
                sealed: Vec::new(),
                counters: Counters::default(),
                revision: 1,
                generation: Generation(0),
                created: now,
                updated: now,
                deleted: None,
                migration: None,
            };
            let summary = format!("created on hosts/{}, image {}", instance.host, spec.image);
            instance.set_spec(spec, &keys.seal)?;
            instances::insert(connection, &instance)?;
            Ok((instance, summary))
        };
        self.change_instance(call, answer, job).await
    }

    /// Changes fields of the spec.
    ///
    /// # Errors
    /// [`Refusal::Invalid`], [`Refusal::NotFound`], [`Refusal::StaleEtag`],
    /// [`Refusal::Precondition`] when it is being deleted.
    pub async fn update_instance<R: Send + 'static>(
        &self,
        call: Call,
        name: InstanceName,
        etag: String,
        patch: SpecPatch,
        answer: Answer<R>,
    ) -> Result<R, Refusal> {
        // Checked here so that the writing thread need not parse the configuration again; what
        // fails here fails there too, unless the request is a repeated one.
        let check = |connection: &Connection, keys: &Keys| {
            let old = instances::load(connection, &name)?.full_spec(&keys.seal)?;
            let merged = merge(&old, &patch)?;
            spec_check::faults(&merged, &keys.tiers).into_result()?;
            Ok(merged)
        };
        let checked = self.store.read(check).ok();
        let now = call.now;
        let job = move |connection: &Connection, keys: &Keys| {
            let mut instance = load_settled(connection, &name, &etag)?;
            let mut faults = Violations::default();
            if patch.host.as_ref().is_some_and(|host| *host != instance.host) {
                let text = format!("cannot be changed, is hosts/{}", instance.host);
                faults.push("instance.host", text);
            }
            let old = instance.full_spec(&keys.seal)?;
            let merged = match merge(&old, &patch) {
                Err(Refusal::Invalid(more)) => {
                    faults.extend(more);
                    return Err(faults.into());
                }
                merged => merged?,
            };
            if checked.as_ref() != Some(&merged) && merged != old {
                faults.extend(spec_check::faults(&merged, &keys.tiers));
            }
            faults.into_result()?;
            if merged == old {
                return Ok((instance, "nothing changed".to_owned()));
            }
            check_hostnames(connection, &instance.host, &name, &merged)?;
            let summary = format!("changed {}", changed_fields(&old, &merged).join(", "));
            instance.set_spec(merged, &keys.seal)?;
            instance.revision = instance.revision.saturating_add(1);
            instance.updated = now;
            instances::update(connection, &instance)?;
            Ok((instance, summary))
        };
        self.change_instance(call, answer, job).await
    }

    /// Starts, stops, pauses, resumes, restarts, rebuilds or deletes.
    ///
    /// # Errors
    /// [`Refusal::NotFound`], [`Refusal::StaleEtag`], [`Refusal::Precondition`].
    pub async fn act_on_instance<R: Send + 'static>(
        &self,
        call: Call,
        name: InstanceName,
        etag: String,
        action: Action,
        answer: Answer<R>,
    ) -> Result<R, Refusal> {
        let now = call.now;
        let job = move |connection: &Connection, _keys: &Keys| {
            let mut instance = if action == Action::Delete {
                load(connection, &name, &etag)?
            } else {
                load_live(connection, &name, &etag)?
            };
            check_settled(&instance)?;
            let Some(summary) = act(&mut instance, action, now)? else {
                return Ok((instance, "nothing changed".to_owned()));
            };
            instance.revision = instance.revision.saturating_add(1);
            instance.updated = now;
            instances::update(connection, &instance)?;
            Ok((instance, summary.to_owned()))
        };
        self.change_instance(call, answer, job).await
    }

    /// The token of an instance's gateway; that it was fetched is audited.
    ///
    /// # Errors
    /// [`Refusal::NotFound`]
    pub async fn fetch_gateway_token<R: Send + 'static>(
        &self,
        call: Call,
        name: InstanceName,
        codec: Codec<R>,
        make: fn(String) -> R,
    ) -> Result<R, Refusal> {
        let job = move |connection: &Connection, keys: &Keys| {
            let instance = instances::load(connection, &name)?;
            let mut full = instance.full_spec(&keys.seal)?;
            let token = full
                .secrets
                .remove(GATEWAY_TOKEN)
                .ok_or_else(|| Refusal::damaged(format!("instances/{name}"), "no gateway token"))?;
            Ok(Done {
                response: make(token),
                resource: format!("instances/{name}"),
                summary: "gateway token fetched".to_owned(),
                effects: Effects::default(),
            })
        };
        let (response, _none) = self.store.mutate(call, codec, job).await?;
        Ok(response)
    }

    /// Stores a change of one instance together with the new state of its host.
    pub(super) async fn change_instance<R: Send + 'static>(
        &self,
        call: Call,
        answer: Answer<R>,
        job: impl FnOnce(&Connection, &Keys) -> Result<(InstanceRow, String), Refusal> + Send + 'static,
    ) -> Result<R, Refusal> {
        let Answer { codec, make } = answer;
        let registry = Arc::clone(&self.registry);
        let now = call.now;
        let (response, effects) = self
            .store
            .mutate(call, codec, move |connection, keys| {
                let (mut instance, summary) = job(connection, keys)?;
                let is_live = instance.deleted.is_none();
                let before = hosts::load(connection, &instance.host)?;
                let generation = host_state::advance(connection, keys, &before)?;
                if generation != before.stamp.generation {
                    instances::set_generation(connection, &instance.name, generation)?;
                    instance.generation = generation;
                }
                if is_live {
                    revisions::keep(connection, &instance)?;
                }
                let host = hosts::load(connection, &instance.host)?;
                let response = make(crate::view::instance(&instance, &host, &registry, now));
                Ok(Done {
                    response,
                    resource: format!("instances/{}", instance.name),
                    summary,
                    effects: Effects {
                        hosts: [instance.host].into(),
                        instances: [instance.name].into(),
                        ..Effects::default()
                    },
                })
            })
            .await?;
        self.apply(&effects);
        Ok(response)
    }
}

/// Carries an action out on the row; `None` when there is nothing to do.
fn act(
    instance: &mut InstanceRow,
    action: Action,
    now: claw_core::time::Timestamp,
) -> Result<Option<&'static str>, Refusal> {
    let run = run_state(&instance.spec);
    let wanted = match action {
        Action::Start | Action::Resume => Some(fleet::RunState::Running),
        Action::Stop => Some(fleet::RunState::Stopped),
        Action::Pause => Some(fleet::RunState::Paused),
        Action::Restart | Action::Rebuild | Action::Delete => None,
    };
    if wanted == Some(run) {
        return Ok(None);
    }
    if let Some(wanted) = wanted {
        instance.spec.run_state = wanted.into();
    }
    let refuse = |reason, problem: &str| {
        let subject = format!("instances/{}", instance.name);
        let text = format!("{subject} is {problem} instead");
        Err(Refusal::precondition(reason, subject, text))
    };
    Ok(match action {
        Action::Resume if run == fleet::RunState::Stopped => {
            return refuse(Precondition::InstanceNotPaused, "stopped, not paused; start it");
        }
        Action::Restart if run == fleet::RunState::Stopped => {
            return refuse(Precondition::InstanceStopped, "stopped; start it");
        }
        Action::Restart if run == fleet::RunState::Paused => {
            return refuse(Precondition::InstanceStopped, "paused; resume it");
        }
        Action::Start => Some("wanted up"),
        Action::Resume => Some("resumed"),
        Action::Stop => Some("wanted down"),
        Action::Pause => Some("paused"),
        Action::Restart => {
            instance.counters.restarts = instance.counters.restarts.saturating_add(1);
            Some("restart asked for")
        }
        Action::Rebuild => {
            instance.counters.rebuilds = instance.counters.rebuilds.saturating_add(1);
            Some("rebuild asked for")
        }
        Action::Delete if instance.deleted.is_none() => {
            instance.deleted = Some(now);
            Some("deleted; its host removes it")
        }
        Action::Delete => None,
    })
}

/// Whether it shall run.
pub(super) fn run_state(spec: &fleet::InstanceSpec) -> fleet::RunState {
    match spec.run_state() {
        fleet::RunState::Unspecified => fleet::RunState::Running,
        said => said,
    }
}

fn load(connection: &Connection, name: &InstanceName, etag: &str) -> Result<InstanceRow, Refusal> {
    let instance = instances::load(connection, name)?;
    check_etag(&format!("instances/{name}"), etag, &instance.etag())?;
    Ok(instance)
}

pub(super) fn load_live(
    connection: &Connection,
    name: &InstanceName,
    etag: &str,
) -> Result<InstanceRow, Refusal> {
    let instance = load(connection, name, etag)?;
    if instance.deleted.is_none() {
        return Ok(instance);
    }
    Err(Refusal::precondition(
        Precondition::InstanceDeleting,
        format!("instances/{name}"),
        format!("instances/{name} is being deleted"),
    ))
}

/// An instance that is neither being deleted nor being moved.
pub(super) fn load_settled(
    connection: &Connection,
    name: &InstanceName,
    etag: &str,
) -> Result<InstanceRow, Refusal> {
    let instance = load_live(connection, name, etag)?;
    check_settled(&instance)?;
    Ok(instance)
}

fn check_settled(instance: &InstanceRow) -> Result<(), Refusal> {
    let Some(moving) = instance.migration.as_ref().filter(|moving| moving.is_active()) else {
        return Ok(());
    };
    let subject = format!("instances/{}", instance.name);
    let text = format!(
        "{subject} is being moved to hosts/{}; wait for its end, or cancel it",
        moving.target
    );
    Err(Refusal::precondition(Precondition::Migrating, subject, text))
}

fn check_name_is_free(
    connection: &Connection,
    name: &InstanceName,
    host: &HostName,
) -> Result<(), Refusal> {
    if migrations::has_departed(connection, host, name)? {
        return Err(being_removed(name, host));
    }
    match instances::find(connection, name)? {
        None => Ok(()),
        Some(instance) if instance.deleted.is_some() => Err(being_removed(name, &instance.host)),
        Some(_) => Err(Refusal::Exists { resource: format!("instances/{name}") }),
    }
}

pub(super) fn being_removed(name: &InstanceName, host: &HostName) -> Refusal {
    Refusal::precondition(
        Precondition::NameBeingRemoved,
        format!("instances/{name}"),
        format!("an instance of this name is still being removed from hosts/{host}"),
    )
}

/// A reverse proxy serves each name for one instance only.
pub(super) fn check_hostnames(
    connection: &Connection,
    host: &HostName,
    name: &InstanceName,
    spec: &fleet::InstanceSpec,
) -> Result<(), Refusal> {
    if spec.hostnames.is_empty() {
        return Ok(());
    }
    let mut violations = Violations::default();
    let mut others = instances::of_host(connection, host)?;
    for moving in migrations::arriving(connection, host)? {
        others.extend(instances::find(connection, &moving.name)?);
    }
    for other in others {
        if other.name == *name || other.deleted.is_some() {
            continue;
        }
        let taken: BTreeSet<&String> = other.spec.hostnames.iter().collect();
        for (index, hostname) in spec.hostnames.iter().enumerate() {
            if taken.contains(hostname) {
                violations.push(
                    &format!("{}.hostnames[{index}]", spec_check::SPEC),
                    format!("{hostname} is served for instances/{} on this host", other.name),
                );
            }
        }
    }
    violations.into_result().map_err(Refusal::Invalid)
}

/// The spec that an update makes of `old`.
pub(super) fn merge(
    old: &fleet::InstanceSpec,
    patch: &SpecPatch,
) -> Result<fleet::InstanceSpec, Refusal> {
    let mut merged = apply_mask(old, &patch.spec, &patch.paths)?;
    keep_secrets(&mut merged, old);
    let token = old.secrets.get(GATEWAY_TOKEN).map(String::as_str);
    spec_check::ensure_gateway_token(&mut merged, token);
    Ok(merged)
}

/// Names of the fields that differ, for the audit.
pub(super) fn changed_fields(
    old: &fleet::InstanceSpec,
    new: &fleet::InstanceSpec,
) -> Vec<&'static str> {
    let fields = [
        ("image", old.image != new.image),
        ("tier", old.tier != new.tier),
        ("resources", old.resources != new.resources),
        ("run_state", old.run_state != new.run_state),
        ("env", old.env != new.env),
        ("secrets", old.secrets != new.secrets),
        ("config", old.config != new.config),
        ("identity", old.identity != new.identity),
        ("files", old.files != new.files),
        ("hostnames", old.hostnames != new.hostnames),
        ("allowed_origins", old.allowed_origins != new.allowed_origins),
        ("health", old.health != new.health),
        ("stop_grace", old.stop_grace != new.stop_grace),
        ("network", old.network != new.network),
        ("backup", old.backup != new.backup),
        ("update", old.update != new.update),
    ];
    fields.into_iter().filter(|(_, changed)| *changed).map(|(name, _)| name).collect()
}

impl Fleet {
    /// Every fault of a new instance's spec, for a request that is wrong elsewhere too.
    #[must_use]
    pub fn spec_faults(&self, mut spec: fleet::InstanceSpec) -> Violations {
        spec_check::ensure_gateway_token(&mut spec, None);
        spec_check::faults(&spec, &self.store.keys().tiers)
    }
}
