//! Field masks of updates.

use super::violation::Violations;
use crate::fleet::v1 as fleet;

/// Paths that an instance's update may name.
pub const SPEC_PATHS: [&str; 19] = [
    "spec",
    "spec.image",
    "spec.tier",
    "spec.resources",
    "spec.run_state",
    "spec.env",
    "spec.secrets",
    "spec.config",
    "spec.identity",
    "spec.files",
    "spec.hostnames",
    "spec.allowed_origins",
    "spec.health",
    "spec.stop_grace",
    "spec.network",
    "spec.network.egress",
    "spec.network.web_sources",
    "spec.backup",
    "spec.update",
];

/// `old` with the fields that `paths` name taken from `new`; no path means the whole spec.
///
/// # Errors
/// Every path that does not exist.
pub fn apply_mask(
    old: &fleet::InstanceSpec,
    new: &fleet::InstanceSpec,
    paths: &[String],
) -> Result<fleet::InstanceSpec, Violations> {
    if paths.is_empty() {
        return Ok(new.clone());
    }
    let mut merged = old.clone();
    let mut violations = Violations::default();
    for path in paths {
        match path.as_str() {
            "spec" => merged = new.clone(),
            "spec.image" => merged.image.clone_from(&new.image),
            "spec.tier" => merged.tier.clone_from(&new.tier),
            "spec.resources" => merged.resources = new.resources,
            "spec.run_state" => merged.run_state = new.run_state,
            "spec.env" => merged.env.clone_from(&new.env),
            "spec.secrets" => merged.secrets.clone_from(&new.secrets),
            "spec.config" => merged.config.clone_from(&new.config),
            "spec.identity" => merged.identity.clone_from(&new.identity),
            "spec.files" => merged.files.clone_from(&new.files),
            "spec.hostnames" => merged.hostnames.clone_from(&new.hostnames),
            "spec.allowed_origins" => merged.allowed_origins.clone_from(&new.allowed_origins),
            "spec.health" => merged.health = new.health,
            "spec.stop_grace" => merged.stop_grace = new.stop_grace,
            "spec.backup" => merged.backup = new.backup,
            "spec.update" => merged.update = new.update,
            "spec.network" => merged.network.clone_from(&new.network),
            "spec.network.egress" => {
                let egress = new.network.as_ref().and_then(|network| network.egress.clone());
                merged.network.get_or_insert_default().egress = egress;
            }
            "spec.network.web_sources" => {
                let sources = new.network.as_ref().map(|network| network.web_sources.clone());
                merged.network.get_or_insert_default().web_sources = sources.unwrap_or_default();
            }
            unknown => violations.push(
                "update_mask",
                format!("unknown path {unknown:?}; known paths: {}", SPEC_PATHS.join(", ")),
            ),
        }
    }
    violations.into_result().map(|()| merged)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::v1 as node;

    #[test]
    fn every_documented_path_is_known() {
        let spec = fleet::InstanceSpec::default();
        let paths: Vec<String> = SPEC_PATHS.iter().map(ToString::to_string).collect();
        assert!(apply_mask(&spec, &spec, &paths).is_ok());
        let error = apply_mask(&spec, &spec, &["spec.nope".to_owned()]).expect_err("unknown");
        assert!(
            error.to_string().starts_with("update_mask: unknown path \"spec.nope\""),
            "{error}"
        );
    }

    #[test]
    fn only_named_fields_change() {
        let old =
            fleet::InstanceSpec { image: "a".into(), tier: "pro".into(), ..Default::default() };
        let new = fleet::InstanceSpec { image: "b".into(), ..Default::default() };
        let merged = apply_mask(&old, &new, &["spec.image".to_owned()]).expect("valid");
        assert_eq!((merged.image.as_str(), merged.tier.as_str()), ("b", "pro"));
    }

    #[test]
    fn parts_of_the_network_policy_change_alone() {
        let policy = |sources: &str| node::NetworkPolicy {
            egress: Some(node::Egress::default()),
            web_sources: vec![sources.to_owned()],
        };
        let spec = |network| fleet::InstanceSpec { network, ..Default::default() };
        let merge = |old, new, path: &str| {
            let merged = apply_mask(&spec(old), &spec(new), &[path.to_owned()]).expect("valid");
            merged.network.expect("given")
        };
        let merged = merge(Some(policy("a")), None, "spec.network.egress");
        assert_eq!((merged.egress, merged.web_sources), (None, vec!["a".to_owned()]));
        let merged = merge(None, Some(policy("b")), "spec.network.web_sources");
        assert_eq!((merged.egress, merged.web_sources), (None, vec!["b".to_owned()]));
        let merged = merge(Some(policy("a")), Some(policy("b")), "spec.network");
        assert_eq!(merged, policy("b"));
    }
}
