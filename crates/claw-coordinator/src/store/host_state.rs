//! The desired state of a host, built from its firewall and instances, and its stamp.
//!
//! The bytes are not stored: they follow from the rows. The stamp is stored, and its generation
//! rises exactly when the bytes change. A new version of this program or another tier catalogue can
//! change the bytes without a call; [`refresh_all`] notices that at start.

use bytes::Bytes;
use claw_core::firewall::HostPolicy;
use claw_core::host::{HostState, MAX_STATE_BYTES};
use claw_core::migration::Start;
use claw_core::name::HostName;
use claw_core::spec::{InstanceSpec, RestoreOrder, RestoreSource, RunState};
use claw_core::stamp::{Digest, Generation, Stamp};
use claw_proto::convert::session::encode_host_state;
use claw_proto::convert::spec::instance_spec;
use claw_proto::fleet::v1 as fleet;
use claw_store::rusqlite::Connection;

use super::hosts::HostRow;
use super::instances::InstanceRow;
use super::{Keys, epoch, hosts, instances, migrations};
use crate::refusal::{Precondition, Refusal};

/// What a host should hold, ready to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// Which one it is.
    pub stamp: Stamp,
    /// The encoded state.
    pub bytes: Bytes,
}

/// The present desired state of a host.
///
/// # Errors
/// [`Refusal::NotFound`], or [`Refusal::Internal`] when the rows do not give the stored stamp.
pub fn load(connection: &Connection, keys: &Keys, name: &HostName) -> Result<Desired, Refusal> {
    of_row(connection, keys, &hosts::load(connection, name)?)
}

/// The present desired state of a host, unless `known` is exactly that.
///
/// # Errors
/// As [`load`].
pub fn load_unless(
    connection: &Connection,
    keys: &Keys,
    name: &HostName,
    known: Option<Stamp>,
) -> Result<Option<Desired>, Refusal> {
    let host = hosts::load(connection, name)?;
    if known == Some(host.stamp) {
        return Ok(None);
    }
    of_row(connection, keys, &host).map(Some)
}

fn of_row(connection: &Connection, keys: &Keys, host: &HostRow) -> Result<Desired, Refusal> {
    let bytes = build(connection, keys, host)?;
    if Digest::of(&bytes) != host.stamp.digest {
        return Err(Refusal::damaged(
            format!("desired state of hosts/{}", host.name),
            "its digest is not the stored one",
        ));
    }
    Ok(Desired { stamp: host.stamp, bytes })
}

/// Raises the host's generation if its state has changed, and returns the generation.
///
/// # Errors
/// [`Refusal::Precondition`] when the state would be too large.
pub fn advance(
    connection: &Connection,
    keys: &Keys,
    host: &HostRow,
) -> Result<Generation, Refusal> {
    advance_above(connection, keys, host, Generation(0))
}

/// As [`advance`]; a new generation is above `floor` as well.
///
/// What an instance's snapshots and revisions say of generations stays in order when it moves to a host whose
/// generations are lower.
///
/// # Errors
/// As [`advance`].
pub fn advance_above(
    connection: &Connection,
    keys: &Keys,
    host: &HostRow,
    floor: Generation,
) -> Result<Generation, Refusal> {
    let bytes = build(connection, keys, host)?;
    if bytes.len() > MAX_STATE_BYTES {
        return Err(Refusal::precondition(
            Precondition::HostFull,
            format!("hosts/{}", host.name),
            format!(
                "the desired state of hosts/{} would have {} bytes, an agent takes {}",
                host.name,
                bytes.len(),
                MAX_STATE_BYTES
            ),
        ));
    }
    let digest = Digest::of(&bytes);
    if digest == host.stamp.digest {
        return Ok(host.stamp.generation);
    }
    let generation = Generation(host.stamp.generation.max(floor).0.saturating_add(1));
    hosts::set_stamp(connection, &host.name, &Stamp { generation, digest, ..host.stamp })?;
    Ok(generation)
}

/// Digest of the state of a host without instances.
#[must_use]
pub fn empty_digest(firewall: HostPolicy) -> Digest {
    Digest::of(&encode_host_state(&HostState { firewall, ..HostState::default() }))
}

/// Compares every host's stamp with its state, if this program may encode it in another way than
/// the one before; returns how many have changed.
///
/// # Errors
/// [`Refusal::Invalid`] when a stored spec is no longer valid, for instance because its tier is no
/// longer in the catalogue.
pub fn refresh_all(connection: &Connection, keys: &Keys) -> Result<usize, Refusal> {
    let format = format!(
        "{} {}",
        env!("CARGO_PKG_VERSION"),
        Digest::of(format!("{:?}", keys.tiers).as_bytes())
    );
    if epoch::state_format(connection)? == format {
        return Ok(0);
    }
    let mut changed = 0;
    for name in hosts::names(connection)? {
        let host = hosts::load(connection, &name)?;
        let generation = advance(connection, keys, &host)?;
        if generation != host.stamp.generation {
            instances::set_generation_of_host(connection, &name, generation)?;
            changed += 1;
        }
    }
    epoch::set_state_format(connection, &format)?;
    Ok(changed)
}

/// A complete spec, with secrets, as the agent will get it.
///
/// # Errors
/// [`Refusal::Invalid`] with every wrong field below `field`.
pub fn complete(
    keys: &Keys,
    instance: &InstanceRow,
    full: &fleet::InstanceSpec,
    field: &str,
) -> Result<InstanceSpec, Refusal> {
    instance_spec(full, &keys.tiers, instance.counters.clone())
        .map_err(|violations| Refusal::Invalid(violations.below(field)))
}

fn build(connection: &Connection, keys: &Keys, host: &HostRow) -> Result<Bytes, Refusal> {
    let mut state = HostState {
        firewall: host.host_policy()?,
        offsite: host.offsite_storage(&keys.seal)?,
        ..HostState::default()
    };
    for departed in migrations::departed(connection, &host.name)? {
        state.confirm_removal.insert(departed.name);
    }
    for instance in instances::of_host(connection, &host.name)? {
        if instance.deleted.is_some() {
            state.confirm_removal.insert(instance.name);
            continue;
        }
        let mut spec = as_wanted(keys, &instance)?;
        if instance.migration.as_ref().is_some_and(|moving| moving.state.stage.pauses_source()) {
            spec.run = RunState::Paused;
        }
        state.instances.insert(instance.name, spec);
    }
    for moving in migrations::arriving(connection, &host.name)? {
        let Some(start) = moving.state.stage.start() else { continue };
        let instance = instances::load(connection, &moving.name)?;
        let spec = InstanceSpec { restore: Some(order(start)), ..as_wanted(keys, &instance)? };
        state.instances.insert(instance.name, spec);
    }
    Ok(encode_host_state(&state))
}

fn as_wanted(keys: &Keys, instance: &InstanceRow) -> Result<InstanceSpec, Refusal> {
    let full = instance.full_spec(&keys.seal)?;
    complete(keys, instance, &full, &format!("instances/{}", instance.name))
}

/// The order to restore with which an instance starts on its new host.
#[must_use]
pub fn order(start: &Start) -> RestoreOrder {
    let (number, snapshot) = (start.restore, start.snapshot.clone());
    RestoreOrder { number, snapshot, from: RestoreSource::Host }
}
