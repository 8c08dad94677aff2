//! Whether a spec can be taken: our own rules, OpenClaw's rules, and every variable supplied.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use claw_core::spec::GATEWAY_TOKEN;
use claw_core::tier::TierCatalogue;
use claw_proto::convert::spec::{Counters, instance_spec};
use claw_proto::convert::violation::Violations;
use claw_proto::fleet::v1 as fleet;
use openclaw::config::GatewayConfig;

/// Where the spec stands in requests.
pub(super) const SPEC: &str = "instance.spec";

/// Every fault of a spec that holds its secrets, paths from the request's root.
pub(super) fn faults(full: &fleet::InstanceSpec, tiers: &TierCatalogue) -> Violations {
    let mut violations = match instance_spec(full, tiers, Counters::default()) {
        Ok(_) => Violations::default(),
        Err(violations) => violations,
    };
    for (name, value) in &full.secrets {
        if value.is_empty() {
            let shown: String = name.chars().take(80).collect();
            violations.push(&format!("secrets[{shown}]"), "must have a value");
        }
    }
    config_faults(full, &mut violations);
    violations.below(SPEC)
}

/// A new token: 32 random bytes, base64url.
pub(super) fn generate_gateway_token() -> String {
    let bytes: [u8; 32] = rand::random();
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Gives a spec without a token the one that it had, or a new one.
pub(super) fn ensure_gateway_token(full: &mut fleet::InstanceSpec, old: Option<&str>) {
    full.secrets
        .entry(GATEWAY_TOKEN.to_owned())
        .or_insert_with(|| old.map_or_else(generate_gateway_token, str::to_owned));
}

fn config_faults(full: &fleet::InstanceSpec, violations: &mut Violations) {
    if full.config.trim().is_empty() {
        return;
    }
    let given = full.env.iter().chain(&full.secrets);
    let supplied: BTreeSet<&str> =
        given.filter(|(_, value)| !value.is_empty()).map(|(name, _)| name.as_str()).collect();
    let faults = match GatewayConfig::parse(&full.config) {
        Ok(config) => config.missing_variables(&supplied),
        Err(faults) => faults,
    };
    for fault in faults {
        violations.push("config", fault);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> fleet::InstanceSpec {
        fleet::InstanceSpec {
            image: "example:1".to_owned(),
            tier: "pro".to_owned(),
            ..Default::default()
        }
    }

    #[track_caller]
    fn check(full: &fleet::InstanceSpec, expected: &str) {
        let tiers = TierCatalogue::standard().unwrap();
        assert_eq!(faults(full, &tiers).to_string(), expected);
    }

    #[test]
    fn all_rules_are_checked_at_once() {
        check(&spec(), "");
        let bad = fleet::InstanceSpec {
            image: String::new(),
            secrets: [("KEY".to_owned(), String::new())].into(),
            config: "{nonsense: 1, models: {a: '${KEY}'}}".to_owned(),
            ..spec()
        };
        check(
            &bad,
            "instance.spec.image: must not be empty; \
             instance.spec.secrets[KEY]: must have a value; \
             instance.spec.config: nonsense: unknown key",
        );
        let missing = fleet::InstanceSpec {
            config: "{models: {providers: {a: {apiKey: '${KEY}'}}}}".to_owned(),
            ..spec()
        };
        check(
            &missing,
            "instance.spec.config: models.providers.a.apiKey: nothing supplies the variable KEY",
        );
    }

    #[test]
    fn a_token_is_made_once_and_kept() {
        let mut full = spec();
        ensure_gateway_token(&mut full, None);
        let token = full.secrets[GATEWAY_TOKEN].clone();
        assert_eq!(token.len(), 43);
        ensure_gateway_token(&mut full, Some("other"));
        assert_eq!(full.secrets[GATEWAY_TOKEN], token);
        let mut again = spec();
        ensure_gateway_token(&mut again, Some("kept"));
        assert_eq!(again.secrets[GATEWAY_TOKEN], "kept");
    }
}
