//! The layer table: which crate may depend on which, and on what from outside.
//!
//! The table is data; [`run`] holds it against `cargo metadata`, so that an arrow in the wrong
//! direction does not build.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::cargo::{cargo, output};

/// A crate, the crates of ours that it may use, and crates from outside that it must not use.
struct Rule {
    name: &'static str,
    ours: &'static [&'static str],
    never: &'static [&'static str],
}

const WIRE: &[&str] = &["prost", "prost-types", "protox"];

const RULES: &[Rule] = &[
    Rule {
        name: "claw-core",
        ours: &[],
        never: &["tokio", "tonic", "bollard", "rusqlite", "tracing", "serde", "prost"],
    },
    Rule { name: "claw-store", ours: &[], never: &["tokio", "tonic", "prost"] },
    Rule { name: "claw-proto", ours: &["claw-core"], never: &["rusqlite", "bollard"] },
    Rule { name: "claw-identity", ours: &["claw-core"], never: &["tonic", "rusqlite", "prost"] },
    Rule {
        name: "claw-snapshot",
        ours: &["claw-core"],
        never: &["tokio", "tonic", "prost", "rusqlite", "bollard"],
    },
    Rule {
        name: "openclaw",
        ours: &["claw-core"],
        never: &["tonic", "rusqlite", "prost", "bollard"],
    },
    Rule {
        name: "clawd",
        ours: &[
            "claw-core",
            "claw-store",
            "claw-proto",
            "claw-identity",
            "claw-snapshot",
            "openclaw",
        ],
        never: WIRE,
    },
    Rule {
        name: "claw-coordinator",
        ours: &["claw-core", "claw-store", "claw-proto", "claw-identity", "openclaw"],
        never: &["bollard", "sysinfo", "iptables"],
    },
    Rule {
        name: "clawctl",
        ours: &["claw-core", "claw-proto", "claw-identity"],
        never: &["bollard", "rusqlite", "sysinfo", "iptables"],
    },
    Rule { name: "claw-fake-gateway", ours: &["openclaw"], never: &["tokio", "tonic"] },
    // A load generator speaks the protocol and opens the coordinator's store: it is made of its crates.
    Rule {
        name: "claw-load",
        ours: &["claw-core", "claw-store", "claw-proto", "claw-identity", "claw-coordinator"],
        never: &["bollard"],
    },
    Rule { name: "claw-lab", ours: &[], never: &["tokio", "tonic"] },
    Rule { name: "claw-tests", ours: &["claw-lab"], never: &[] },
    Rule { name: "xtask", ours: &["claw-lab", "claw-tests"], never: &["tokio", "tonic"] },
];

/// Checks every crate of the workspace; one that the table does not have is a fault too.
pub(crate) fn run() -> Result<()> {
    let text = output(cargo(&["metadata", "--format-version", "1", "--no-deps"]))?;
    let metadata: Value = serde_json::from_str(&text).context("cargo metadata printed no JSON")?;
    let crates = normal_dependencies(&metadata)?;
    let faults = faults(&crates);
    if faults.is_empty() {
        println!("check-deps: {} crates keep to their layers", crates.len());
        return Ok(());
    }
    bail!("{}", faults.join("\n"))
}

/// Name of each crate → names of its normal dependencies (development ones may point anywhere up to
/// the crate's own layer).
fn normal_dependencies(metadata: &Value) -> Result<BTreeMap<String, BTreeSet<String>>> {
    let packages = metadata["packages"].as_array().context("cargo metadata has no packages")?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut crates = BTreeMap::new();
    for package in packages {
        let dependencies = package["dependencies"].as_array().context("no dependencies")?;
        let normal = dependencies.iter().filter(|dependency| dependency["kind"].is_null());
        crates.insert(text(&package["name"]), normal.map(|d| text(&d["name"])).collect());
    }
    Ok(crates)
}

fn faults(crates: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let mut faults = Vec::new();
    for (name, dependencies) in crates {
        let Some(rule) = RULES.iter().find(|rule| rule.name == name) else {
            faults.push(format!("{name} is not in the layer table of xtask/src/check_deps.rs"));
            continue;
        };
        for dependency in dependencies {
            let ours = crates.contains_key(dependency);
            if ours && !rule.ours.contains(&dependency.as_str()) {
                faults.push(format!("{name} must not depend on {dependency}: not a lower layer"));
            }
            if rule.never.contains(&dependency.as_str()) {
                faults.push(format!("{name} must not depend on {dependency}"));
            }
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(name: &str, dependency: &str, expected: &[&str]) {
        let mut crates = BTreeMap::from([("claw-core".to_owned(), BTreeSet::new())]);
        crates.insert("clawd".to_owned(), BTreeSet::new());
        crates.insert(name.to_owned(), BTreeSet::from([dependency.to_owned()]));
        assert_eq!(faults(&crates), expected);
    }

    #[test]
    fn arrows_point_down() {
        check("clawd", "claw-core", &[]);
        check("clawd", "prost", &["clawd must not depend on prost"]);
        check("claw-core", "clawd", &["claw-core must not depend on clawd: not a lower layer"]);
        check("claw-core", "tokio", &["claw-core must not depend on tokio"]);
        check("new", "x", &["new is not in the layer table of xtask/src/check_deps.rs"]);
    }
}
