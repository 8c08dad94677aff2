//! The API's `InstanceSpec`: tiers resolved, defaults filled in, secrets kept and hidden.

use claw_core::name::{ImageRef, StatePath};
use claw_core::spec::{HealthPolicy, InstanceSpec, Resources, RestoreOrder, RunState, Secret};
use claw_core::tier::TierCatalogue;

use super::backup::{backup_policy_from_wire, part, update_policy_from_wire};
use super::spec::{
    HANG_DEADLINE, MIN_HEALTHY, STARTUP_DEADLINE, STOP_GRACE, bounded, check_content, env,
    env_names, files, network, resources, web,
};
use super::violation::Violations;
use crate::fleet::v1 as fleet;

/// Where `identity` is delivered, below the state directory: the default workspace of OpenClaw.
pub const IDENTITY_PATH: &str = "workspace/IDENTITY.md";

/// What restarts, rebuilds and restores of an instance have been asked for; not part of the API's spec.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Counters {
    /// Restarts asked for so far.
    pub restarts: u64,
    /// Rebuilds asked for so far.
    pub rebuilds: u64,
    /// The restore that was ordered last.
    pub restore: Option<RestoreOrder>,
}

/// The complete spec of an instance. Secrets must hold their values.
///
/// # Errors
/// Every wrong field at once, paths relative to the spec.
pub fn instance_spec(
    wire: &fleet::InstanceSpec,
    tiers: &TierCatalogue,
    counters: Counters,
) -> Result<InstanceSpec, Violations> {
    let mut v = Violations::default();
    let image = v.take("image", ImageRef::parse(&wire.image));
    let resources = resolve_resources(&mut v, wire, tiers);
    let run = run_state(&mut v, wire.run_state);
    let env = env(&mut v, "env", wire.env.clone());
    let secrets = env_names(&mut v, "secrets", wire.secrets.clone(), Secret::new);
    for name in env.keys().filter(|name| secrets.contains_key(*name)) {
        v.push(&format!("env[{name}]"), "is also a secret");
    }
    let mut files = files(&mut v, "files", wire.files.clone());
    if !wire.identity.is_empty()
        && let Some(path) = v.take("identity", StatePath::parse(IDENTITY_PATH))
        && files.insert(path, wire.identity.clone()).is_some()
    {
        v.push("identity", format!("is also given as files[{IDENTITY_PATH}]"));
    }
    let web = web(&mut v, &wire.hostnames, &wire.allowed_origins);
    let health = wire.health.unwrap_or_default();
    let health = HealthPolicy {
        startup_deadline: bounded(&mut v, STARTUP_DEADLINE, health.startup_deadline.as_ref()),
        min_healthy: bounded(&mut v, MIN_HEALTHY, health.min_healthy.as_ref()),
        hang_deadline: bounded(&mut v, HANG_DEADLINE, health.hang_deadline.as_ref()),
    };
    let stop_grace = bounded(&mut v, STOP_GRACE, wire.stop_grace.as_ref());
    let network = network(&mut v, wire.network.as_ref());
    let backup = part(&mut v, "backup", wire.backup.as_ref(), backup_policy_from_wire);
    let update = part(&mut v, "update", wire.update.as_ref(), update_policy_from_wire);
    let (Some(image), Some(resources)) = (image, resources) else { return Err(v) };
    let spec = InstanceSpec {
        image,
        resources,
        run,
        restarts: counters.restarts,
        rebuilds: counters.rebuilds,
        env,
        secrets,
        config: wire.config.clone(),
        files,
        web,
        network,
        health,
        stop_grace,
        backup,
        update,
        restore: counters.restore,
    };
    check_content(&mut v, &spec);
    v.into_result().map(|()| spec)
}

/// Empties the value of every secret; the names stay.
pub fn redact(wire: &mut fleet::InstanceSpec) {
    wire.secrets.values_mut().for_each(String::clear);
}

/// Puts the old value where a secret of the new spec is empty.
pub fn keep_secrets(new: &mut fleet::InstanceSpec, old: &fleet::InstanceSpec) {
    for (name, value) in new.secrets.iter_mut().filter(|(_, value)| value.is_empty()) {
        if let Some(kept) = old.secrets.get(name) {
            value.clone_from(kept);
        }
    }
}

fn resolve_resources(
    v: &mut Violations,
    wire: &fleet::InstanceSpec,
    tiers: &TierCatalogue,
) -> Option<Resources> {
    let explicit = wire.resources.unwrap_or_default();
    let tier = if wire.tier.is_empty() {
        None
    } else {
        Some(v.take("tier", tiers.resources(&wire.tier))?)
    };
    let complete = explicit.memory_bytes > 0 && explicit.cpu_millis > 0 && explicit.pids_limit > 0;
    if tier.is_none() && !complete {
        v.push(
            "tier",
            "a tier, or resources with memory_bytes, cpu_millis and pids_limit, must be given",
        );
        return None;
    }
    let or = |value: u64, tier_value: Option<u64>| {
        if value > 0 { value } else { tier_value.unwrap_or(0) }
    };
    resources(
        v,
        "resources.",
        or(explicit.memory_bytes, tier.map(|t| t.memory.bytes())),
        or(explicit.cpu_millis, tier.map(|t| t.cpu.millis())),
        or(explicit.pids_limit, tier.map(|t| t.pids.count())),
    )
}

fn run_state(v: &mut Violations, wire: i32) -> RunState {
    match fleet::RunState::try_from(wire) {
        Ok(fleet::RunState::Unspecified | fleet::RunState::Running) => RunState::Running,
        Ok(fleet::RunState::Stopped) => RunState::Stopped,
        Ok(fleet::RunState::Paused) => RunState::Paused,
        Err(_) => {
            v.push("run_state", format!("unknown value {wire}"));
            RunState::Running
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::v1 as node;

    fn spec() -> fleet::InstanceSpec {
        fleet::InstanceSpec {
            image: "ghcr.io/openclaw/openclaw:2026.9.6".to_owned(),
            tier: "balanced".to_owned(),
            secrets: [("OPENCLAW_GATEWAY_TOKEN".to_owned(), "t".to_owned())].into(),
            ..fleet::InstanceSpec::default()
        }
    }

    fn tiers() -> TierCatalogue {
        TierCatalogue::standard().expect("constants")
    }

    #[track_caller]
    fn check(wire: &fleet::InstanceSpec, expected: &str) {
        let text = match instance_spec(wire, &tiers(), Counters::default()) {
            Ok(_) => "ok".to_owned(),
            Err(violations) => violations.to_string().replace("; ", "\n"),
        };
        assert_eq!(text, expected);
    }

    #[test]
    fn a_minimal_spec_is_complete() {
        check(&spec(), "ok");
        let full = instance_spec(&spec(), &tiers(), Counters::default()).expect("valid");
        assert_eq!(full.stop_grace.as_secs(), 330);
        assert_eq!(full.resources.cpu.millis(), 2000);
    }

    #[test]
    fn every_wrong_field_is_named_at_once() {
        let wire = fleet::InstanceSpec {
            image: "A b".to_owned(),
            tier: "gold".to_owned(),
            env: [("lower".to_owned(), "x".to_owned())].into(),
            files: [
                ("../x".to_owned(), String::new()),
                ("openclaw.json".to_owned(), String::new()),
            ]
            .into(),
            hostnames: vec!["UPPER".to_owned()],
            allowed_origins: vec!["nonsense".to_owned()],
            run_state: 9,
            backup: Some(node::BackupPolicy {
                retention: Some(node::Retention { last: 5000, ..Default::default() }),
                ..Default::default()
            }),
            update: Some(node::UpdatePolicy { rehearsal: 9, ..Default::default() }),
            stop_grace: Some(prost_types::Duration { seconds: -1, nanos: 0 }),
            health: Some(fleet::HealthPolicy {
                startup_deadline: Some(prost_types::Duration { seconds: 7200, nanos: 0 }),
                ..fleet::HealthPolicy::default()
            }),
            ..spec()
        };
        check(
            &wire,
            "image: must be an image such as ghcr.io/openclaw/openclaw@sha256:<64 hex digits>, got \"A b\"
tier: unknown tier \"gold\", known tiers: balanced, budget, pro
run_state: unknown value 9
env[lower]: must be an environment variable name of A-Z, 0-9 and _, got \"lower\"
files[../x]: must be a relative path of letters, digits, '-', '_' and '.', with no hidden part, got \"../x\"
files[openclaw.json]: is delivered through the field config
hostnames[0]: must be a domain name in lower case, got \"UPPER\"
allowed_origins[0]: must be an origin such as https://tenant.example, got \"nonsense\"
health.startup_deadline: must be between 1 s and 3600 s
stop_grace: must be a duration that is not negative and below 100 years
backup.retention.last: must be at most 1000, is 5000
update.rehearsal: unknown value 9",
        );
    }

    #[test]
    fn secrets_are_hidden_and_kept() {
        let old = spec();
        let mut shown = old.clone();
        redact(&mut shown);
        assert_eq!(shown.secrets.get("OPENCLAW_GATEWAY_TOKEN").map(String::as_str), Some(""));
        keep_secrets(&mut shown, &old);
        assert_eq!(shown, old);
    }

    #[test]
    fn too_much_content_is_refused_with_both_numbers() {
        let wire = fleet::InstanceSpec { config: "x".repeat(300_000), ..spec() };
        check(
            &wire,
            "config: config, files, env and secrets together must be at most 262144 bytes, are 300023",
        );
    }
}
