//! Changes of hosts.

use std::collections::BTreeMap;

use claw_core::firewall::HostPolicy;
use claw_core::name::HostName;
use claw_core::stamp::{Epoch, Generation, Stamp};
use claw_identity::{PeerIdentity, Role};
use claw_proto::convert::firewall::host_policy_from_wire;
use claw_proto::convert::violation::Violations;
use claw_proto::node::v1 as node;
use claw_store::rusqlite::Connection;

use super::{Fleet, check_etag, firewall};
use crate::refusal::{Precondition, Refusal};
use crate::store::hosts::{self, HostRow};
use crate::store::mutation::{Call, Codec, Done, Effects};
use crate::store::{Keys, certificates, epoch, host_state, instances, migrations, random_id};

/// Most labels of a host.
const MAX_LABELS: usize = 64;
/// Longest key of a label, as for a DNS label.
const MAX_LABEL_KEY: usize = 63;
/// Longest value of a label.
const MAX_LABEL_VALUE: usize = 256;

/// New values of a host; `None` keeps the old one.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct HostPatch {
    /// Labels, all of them.
    pub labels: Option<BTreeMap<String, String>>,
    /// Whether it takes new instances.
    pub cordoned: Option<bool>,
    /// What may come in; the default message stands for the default.
    pub firewall: Option<node::HostFirewall>,
}

impl HostPatch {
    /// Everything that is wrong with the values, paths from the request's root.
    #[must_use]
    pub fn faults(&self) -> Violations {
        let mut violations = label_faults(self.labels.as_ref());
        if let Some(Err(more)) = self.firewall.as_ref().map(host_policy_from_wire) {
            violations.extend(more.below("host.firewall"));
        }
        violations
    }

    fn applied_to(self, mut host: HostRow) -> HostRow {
        host.labels = self.labels.unwrap_or(host.labels);
        host.cordoned = self.cordoned.unwrap_or(host.cordoned);
        if let Some(firewall) = self.firewall {
            host.firewall = unless_default(firewall);
        }
        host
    }
}

impl Fleet {
    /// Registers a host.
    ///
    /// # Errors
    /// [`Refusal::Invalid`], [`Refusal::Exists`].
    pub async fn create_host<R: Send + 'static>(
        &self,
        call: Call,
        name: HostName,
        patch: HostPatch,
        answer: Answer<R>,
    ) -> Result<R, Refusal> {
        patch.faults().into_result()?;
        let now = call.now;
        let job = move |connection: &Connection, _keys: &Keys| {
            if hosts::find(connection, &name)?.is_some() {
                return Err(Refusal::Exists { resource: format!("hosts/{name}") });
            }
            let firewall = patch.firewall.unwrap_or_default();
            let policy = host_policy_from_wire(&firewall)?;
            let host = HostRow {
                name,
                uid: random_id(),
                labels: patch.labels.unwrap_or_default(),
                cordoned: patch.cordoned.unwrap_or(false),
                firewall: unless_default(firewall),
                offsite: None,
                revision: 1,
                created: now,
                updated: now,
                joined: None,
                revoked: false,
                certificate_expires: None,
                last_seen: None,
                stamp: Stamp {
                    epoch: Epoch(epoch::current(connection)?),
                    generation: Generation(1),
                    digest: host_state::empty_digest(policy.clone()),
                },
                event_stream: 1,
                next_event: 1,
            };
            hosts::insert(connection, &host)?;
            let mut summary = "registered".to_owned();
            if policy != HostPolicy::default() {
                summary.push_str(", ");
                summary.push_str(&firewall::summary(&policy));
            }
            Ok((host, summary, Effects::default()))
        };
        self.change_host(call, answer, job).await
    }

    /// Changes labels, cordon or firewall.
    ///
    /// # Errors
    /// [`Refusal::Invalid`], [`Refusal::NotFound`], [`Refusal::StaleEtag`].
    pub async fn update_host<R: Send + 'static>(
        &self,
        call: Call,
        name: HostName,
        etag: String,
        patch: HostPatch,
        answer: Answer<R>,
    ) -> Result<R, Refusal> {
        patch.faults().into_result()?;
        let now = call.now;
        let job = move |connection: &Connection, keys: &Keys| {
            let before = hosts::load(connection, &name)?;
            check_etag(&format!("hosts/{name}"), &etag, &before.etag())?;
            let mut host = patch.applied_to(before.clone());
            if host == before {
                return Ok((host, "nothing changed".to_owned(), Effects::default()));
            }
            host.revision = host.revision.saturating_add(1);
            host.updated = now;
            hosts::update(connection, &host)?;
            let mut summary = format!("labels {:?}, cordoned {}", host.labels, host.cordoned);
            let mut effects = Effects::default();
            if host.firewall != before.firewall {
                summary.push_str(", ");
                summary.push_str(&firewall::summary(&host.host_policy()?));
                host_state::advance(connection, keys, &host)?;
                host = hosts::load(connection, &name)?;
                effects.hosts.insert(name);
            }
            Ok((host, summary, effects))
        };
        self.change_host(call, answer, job).await
    }

    /// Denylists every certificate of a host and ends its session.
    ///
    /// # Errors
    /// [`Refusal::NotFound`], [`Refusal::StaleEtag`].
    pub async fn revoke_host<R: Send + 'static>(
        &self,
        call: Call,
        name: HostName,
        etag: String,
        answer: Answer<R>,
    ) -> Result<R, Refusal> {
        let now = call.now;
        let job = move |connection: &Connection, _keys: &Keys| {
            let mut host = hosts::load(connection, &name)?;
            check_etag(&format!("hosts/{name}"), &etag, &host.etag())?;
            let identity = agent_identity(&name)?;
            let denied = certificates::deny_all(connection, &identity, now, "revoked")?;
            host.revoked = host.joined.is_some();
            hosts::update(connection, &host)?;
            connection.execute("DELETE FROM join_token WHERE host = ?1", [name.as_str()])?;
            let summary = format!("denylisted {} certificates", denied.len());
            Ok((host, summary, Effects { denied, ..Effects::default() }))
        };
        self.change_host(call, answer, job).await
    }

    /// Forgets a host and denylists its certificates.
    ///
    /// Instances that are being deleted go with it: a host that never comes back must not keep
    /// them for ever.
    ///
    /// # Errors
    /// [`Refusal::NotFound`], [`Refusal::StaleEtag`], [`Refusal::Precondition`] when it holds
    /// instances.
    pub async fn delete_host<R: Send + 'static>(
        &self,
        call: Call,
        name: HostName,
        etag: String,
        answer: Answer<R>,
    ) -> Result<R, Refusal> {
        let now = call.now;
        let job = move |connection: &Connection, _keys: &Keys| {
            let host = hosts::load(connection, &name)?;
            check_etag(&format!("hosts/{name}"), &etag, &host.etag())?;
            let held = instances::names_of_host(connection, &name)?;
            let wanted: Vec<&str> = held
                .iter()
                .filter(|(_, deleted)| deleted.is_none())
                .map(|(instance, _)| instance.as_str())
                .collect();
            if !wanted.is_empty() {
                let description =
                    format!("hosts/{name} still holds {}; delete them first", wanted.join(", "));
                let subject = format!("hosts/{name}");
                return Err(Refusal::precondition(Precondition::HostInUse, subject, description));
            }
            if let Some(moving) = migrations::arriving(connection, &name)?.first() {
                let subject = format!("hosts/{name}");
                let text = format!("instances/{} is being moved to {subject}", moving.name);
                return Err(Refusal::precondition(Precondition::HostInUse, subject, text));
            }
            for instance in held.keys() {
                instances::delete(connection, instance, now)?;
            }
            let denied =
                certificates::deny_all(connection, &agent_identity(&name)?, now, "deleted")?;
            hosts::delete(connection, &name)?;
            let summary = format!(
                "forgotten, {} certificates denylisted, {} instances under removal given up",
                denied.len(),
                held.len()
            );
            let effects = Effects {
                denied,
                instances: held.into_keys().collect(),
                forgotten: [name].into(),
                ..Effects::default()
            };
            Ok((host, summary, effects))
        };
        self.change_host(call, answer, job).await
    }

    pub(super) async fn change_host<R: Send + 'static>(
        &self,
        call: Call,
        answer: Answer<R>,
        job: impl FnOnce(&Connection, &Keys) -> Result<(HostRow, String, Effects), Refusal>
        + Send
        + 'static,
    ) -> Result<R, Refusal> {
        let Answer { codec, make } = answer;
        let registry = std::sync::Arc::clone(&self.registry);
        let now = call.now;
        let (response, effects) = self
            .store
            .mutate(call, codec, move |connection, keys| {
                let (host, summary, effects) = job(connection, keys)?;
                let resource = format!("hosts/{}", host.name);
                let wanted = migrations::names_on_host(connection, &host.name)?;
                let response = make(crate::view::host(&host, &wanted, &registry, now));
                Ok(Done { response, resource, summary, effects })
            })
            .await?;
        self.apply(&effects);
        Ok(response)
    }
}

/// How the answer to a change of a host is made and kept.
#[derive(Debug)]
pub struct Answer<R> {
    /// To bytes and back.
    pub codec: Codec<R>,
    /// From the host as it is afterwards.
    pub make: fn(claw_proto::fleet::v1::Host) -> R,
}

/// The identity that a host's certificates carry.
///
/// # Errors
/// Never for a valid host name; the type says so instead of a panic.
pub fn agent_identity(name: &HostName) -> Result<PeerIdentity, Refusal> {
    PeerIdentity::new(Role::Agent, name.as_str())
        .map_err(|error| Refusal::damaged(format!("name of hosts/{name}"), error))
}

/// A default message is stored as none.
fn unless_default(firewall: node::HostFirewall) -> Option<node::HostFirewall> {
    (firewall != node::HostFirewall::default()).then_some(firewall)
}

fn label_faults(labels: Option<&BTreeMap<String, String>>) -> Violations {
    let mut violations = Violations::default();
    let labels = labels.into_iter().flatten();
    let count = labels.clone().count();
    if count > MAX_LABELS {
        let text = format!("must have at most {MAX_LABELS} entries, has {count}");
        violations.push("host.labels", text);
    }
    for (key, value) in labels {
        let shown: String = key.chars().take(80).collect();
        let field = format!("host.labels[{shown}]");
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
        if key.is_empty() || key.len() > MAX_LABEL_KEY || !key.chars().all(allowed) {
            let text =
                format!("key must be 1 to {MAX_LABEL_KEY} letters, digits, '-', '_', '.', '/'");
            violations.push(&field, text);
        }
        if value.chars().count() > MAX_LABEL_VALUE || value.chars().any(char::is_control) {
            let text = format!(
                "value must be at most {MAX_LABEL_VALUE} characters without control characters"
            );
            violations.push(&field, text);
        }
    }
    violations
}
