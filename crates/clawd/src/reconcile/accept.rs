//! Turns an offered desired state into targets, or into every reason to refuse it.
//!
//! Pure but for randomness: nothing here touches the machine or the journal.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use claw_core::address::{AddressPool, Slot};
use claw_core::data::DataGeneration;
use claw_core::firewall::{Surroundings, check};
use claw_core::host::{HostState, check_removal};
use claw_core::name::{InstanceName, StatePath};
use claw_core::plan::{Delivery, DesiredInstance, Target};
use claw_core::spec::{GATEWAY_TOKEN, InstanceSpec, Secret};
use claw_core::stamp::{Digest, Generation, Judgement, Stamp, judge};
use openclaw::config::{Enforced, GatewayConfig};
use openclaw::env_file;

use super::firewall::FirewallTarget;
use crate::agent::Settings;

/// The configuration file of the gateway below its state directory.
const CONFIG_FILE: &str = "openclaw.json";

/// What this host holds, for judging an offer.
#[derive(Debug)]
pub struct Held<'a> {
    /// The persisted state; `None` as well when it can no longer be read.
    pub stamp: Option<&'a Stamp>,
    /// Every instance with its slot.
    pub slots: &'a BTreeMap<InstanceName, Slot>,
    /// Slots that a network of an instance not held here occupies already.
    pub found: &'a BTreeMap<InstanceName, Slot>,
    /// What the firewall's rules must know of the host.
    pub surroundings: &'a Surroundings,
    /// From where networks are given, and what else the configuration says.
    pub settings: &'a Settings,
}

/// What to do with an offer.
#[derive(Debug)]
pub enum Verdict {
    /// It is the persisted one.
    Known,
    /// Persist it, then hand out its targets.
    Take(Box<Accepted>),
}

/// An offer that may be taken.
#[derive(Debug)]
pub struct Accepted {
    /// Instances that are new here, with the slot they get.
    pub added: Vec<(InstanceName, Slot)>,
    /// What should become of every instance that this host holds or shall hold.
    pub targets: BTreeMap<InstanceName, DesiredInstance>,
    /// Confirmed removals of instances that this host does not hold (any more).
    pub gone: BTreeSet<InstanceName>,
    /// The state itself.
    pub state: HostState,
}

/// Every reason to refuse an offer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct Refused(pub Vec<String>);

/// Targets that could be made, and why others could not.
#[derive(Debug, Default)]
pub struct Rendered {
    /// What should become of each instance.
    pub targets: BTreeMap<InstanceName, DesiredInstance>,
    /// Why an instance has no target.
    pub faults: BTreeMap<InstanceName, String>,
}

/// Judges an offer completely.
///
/// # Errors
/// [`Refused`] with every reason at once, as far as one does not hide the others.
pub fn judge_offer(held: &Held<'_>, stamp: &Stamp, bytes: &[u8]) -> Result<Verdict, Refused> {
    let one = |reason: String| Refused(vec![reason]);
    if Digest::of(bytes) != stamp.digest {
        return Err(one(format!("the bytes of state {stamp} do not have the digest of its stamp")));
    }
    match judge(held.stamp, stamp) {
        Judgement::Known => return Ok(Verdict::Known),
        Judgement::Refuse(refusal) => return Err(one(refusal.to_string())),
        Judgement::Take => {}
    }
    let state = claw_proto::convert::session::decode_host_state(bytes)
        .map_err(|violations| one(violations.to_string()))?;
    let names: BTreeSet<InstanceName> = held.slots.keys().cloned().collect();
    check_removal(&names, &state).map_err(|unconfirmed| one(unconfirmed.to_string()))?;
    let added = assign(held, &state)?;
    let mut slots = held.slots.clone();
    slots.extend(added.iter().cloned());
    let rendered = render(&state, stamp.generation, &slots, held.settings.pool);
    let faults = rendered.faults.iter().map(|(name, fault)| format!("{name}: {fault}"));
    let faults: Vec<String> = faults.chain(firewall_faults(held, &state, &slots)).collect();
    if !faults.is_empty() {
        return Err(Refused(faults));
    }
    let gone = state.confirm_removal.difference(&names).cloned();
    let gone = gone.filter(|name| !state.instances.contains_key(name)).collect();
    Ok(Verdict::Take(Box::new(Accepted { added, targets: rendered.targets, gone, state })))
}

/// What only the host can know to be wrong with the firewall's policy, above all what would lock its
/// operators out.
fn firewall_faults(
    held: &Held<'_>,
    state: &HostState,
    slots: &BTreeMap<InstanceName, Slot>,
) -> Vec<String> {
    let networks =
        slots.iter().map(|(name, slot)| (name.clone(), held.settings.pool.network(*slot)));
    let target = FirewallTarget::of(state, Generation::default(), networks);
    let effective = target.effective(target.host.clone(), held.surroundings, held.settings);
    check::effective(&effective, held.surroundings)
        .iter()
        .map(|fault| format!("firewall: {fault}"))
        .collect()
}

/// The targets of every instance that has a slot.
#[must_use]
pub fn render(
    state: &HostState,
    generation: Generation,
    slots: &BTreeMap<InstanceName, Slot>,
    pool: AddressPool,
) -> Rendered {
    let mut rendered = Rendered::default();
    for (name, slot) in slots {
        let network = pool.network(*slot);
        let target = match state.instances.get(name) {
            Some(spec) => match deliver(spec, network.gateway()) {
                Ok(delivery) => {
                    Target::Present { spec: Box::new(spec.clone()), delivery: Box::new(delivery) }
                }
                Err(faults) => {
                    rendered.faults.insert(name.clone(), faults.to_string());
                    continue;
                }
            },
            None if state.confirm_removal.contains(name) => Target::Removed,
            None => {
                let fault = "held here and missing from the state";
                rendered.faults.insert(name.clone(), fault.to_owned());
                continue;
            }
        };
        let desired = DesiredInstance {
            name: name.clone(),
            generation,
            network,
            data: DataGeneration::FIRST,
            target,
        };
        rendered.targets.insert(name.clone(), desired);
    }
    rendered
}

/// Everything that keeps a gateway from starting with what it would be given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Faults(Vec<String>);

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(", "))
    }
}

pub(super) fn deliver(spec: &InstanceSpec, bridge: std::net::IpAddr) -> Result<Delivery, Faults> {
    let mut faults = Vec::new();
    if spec.gateway_token().is_none_or(|token| token.reveal().is_empty()) {
        faults.push(format!("the secret {GATEWAY_TOKEN} is missing: the gateway would invent one"));
    }
    let operator = Enforced {
        trusted_proxies: vec![bridge],
        allowed_origins: spec.web.allowed_origins.iter().map(ToString::to_string).collect(),
    };
    let tenant = Some(spec.config.as_str()).filter(|config| !config.trim().is_empty());
    let config = openclaw::config::render(&operator, tenant).unwrap_or_else(|more| {
        faults.extend(more.iter().map(|fault| format!("{CONFIG_FILE}: {fault}")));
        String::new()
    });
    if faults.is_empty() {
        faults.extend(missing_variables(spec, &config));
    }
    let variables = spec
        .secrets
        .iter()
        .map(|(name, value)| (name.to_string(), value.reveal().to_owned()))
        .collect();
    let secrets = env_file::render(&variables).unwrap_or_else(|more| {
        faults.extend(more.iter().map(ToString::to_string));
        String::new()
    });
    let mut files = spec.files.clone();
    match StatePath::parse(CONFIG_FILE) {
        Ok(path) => {
            if files.insert(path, config).is_some() {
                faults.push(format!(
                    "{CONFIG_FILE} is among the files: it is made from the configuration"
                ));
            }
        }
        Err(error) => faults.push(error.to_string()),
    }
    if faults.is_empty() {
        Ok(Delivery { files, secrets: Secret::new(secrets) })
    } else {
        Err(Faults(faults))
    }
}

fn missing_variables(spec: &InstanceSpec, config: &str) -> Vec<String> {
    let env = spec.env.iter().filter(|(_, value)| !value.is_empty()).map(|(name, _)| name.as_str());
    let secrets = spec.secrets.iter().filter(|(_, value)| !value.reveal().is_empty());
    let supplied = env.chain(secrets.map(|(name, _)| name.as_str())).collect();
    let faults = match GatewayConfig::parse(config) {
        Ok(config) => config.missing_variables(&supplied),
        Err(faults) => faults,
    };
    faults.iter().map(|fault| format!("{CONFIG_FILE}: {fault}")).collect()
}

fn assign(held: &Held<'_>, state: &HostState) -> Result<Vec<(InstanceName, Slot)>, Refused> {
    let mut taken: Vec<Slot> = held.slots.values().chain(held.found.values()).copied().collect();
    let mut added = Vec::new();
    for name in state.instances.keys().filter(|name| !held.slots.contains_key(*name)) {
        // A journal was lost and its networks are still there: adopt them as they are.
        let found = held.found.get(name).filter(|slot| !held.slots.values().any(|s| s == *slot));
        let slot = found.copied().or_else(|| Slot::lowest_free(&taken));
        let Some(slot) = slot else {
            return Err(Refused(vec![format!(
                "{name}: this host holds {} instances already, and has no network for another",
                taken.len()
            )]));
        };
        taken.push(slot);
        added.push((name.clone(), slot));
    }
    Ok(added)
}

#[cfg(test)]
mod tests;
