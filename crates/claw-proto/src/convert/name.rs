//! Resource names: `hosts/{host}`, `instances/{instance}`, `instances/{instance}/snapshots/{snapshot}`,
//! `joinTokens/{token}`.

use claw_core::name::{HostName, InstanceName, SnapshotName};

use super::violation::Violation;

/// The collection of hosts.
pub const HOSTS: &str = "hosts";
/// The collection of instances.
pub const INSTANCES: &str = "instances";
/// The collection of an instance's snapshots.
pub const SNAPSHOTS: &str = "snapshots";
/// The collection of join tokens.
pub const JOIN_TOKENS: &str = "joinTokens";
/// The collection of audit entries.
pub const AUDIT_ENTRIES: &str = "auditEntries";

/// `instances/{instance}` of a field.
///
/// # Errors
/// A [`Violation`] of that field.
pub fn parse_instance_name(field: &str, text: &str) -> Result<InstanceName, Violation> {
    let id = member(field, INSTANCES, text)?;
    InstanceName::parse(id).map_err(|error| violation(field, &error.to_string()))
}

/// `hosts/{host}` of a field.
///
/// # Errors
/// A [`Violation`] of that field.
pub fn parse_host_name(field: &str, text: &str) -> Result<HostName, Violation> {
    let id = member(field, HOSTS, text)?;
    HostName::parse(id).map_err(|error| violation(field, &error.to_string()))
}

/// `instances/{instance}/snapshots/{snapshot}` of a field.
///
/// # Errors
/// A [`Violation`] of that field.
pub fn parse_snapshot_name(
    field: &str,
    text: &str,
) -> Result<(InstanceName, SnapshotName), Violation> {
    let ids = text.strip_prefix(INSTANCES).and_then(|rest| rest.strip_prefix('/'));
    let ids = ids.and_then(|rest| rest.split_once('/'));
    let parts = ids.and_then(|(instance, rest)| {
        let snapshot = rest.strip_prefix(SNAPSHOTS)?.strip_prefix('/')?;
        Some((instance, snapshot))
    });
    let Some((instance, snapshot)) = parts else {
        let shown: String = text.chars().take(160).collect();
        let form = format!("{INSTANCES}/<id>/{SNAPSHOTS}/<id>");
        return Err(violation(field, &format!("must be \"{form}\", got {shown:?}")));
    };
    let wrong = |error: claw_core::name::NameError| violation(field, &error.to_string());
    Ok((
        InstanceName::parse(instance).map_err(wrong)?,
        SnapshotName::parse(snapshot).map_err(wrong)?,
    ))
}

/// The id in `joinTokens/{token}` of a field.
///
/// # Errors
/// A [`Violation`] of that field.
pub fn parse_join_token_name(field: &str, text: &str) -> Result<String, Violation> {
    member(field, JOIN_TOKENS, text).map(str::to_owned)
}

/// `instances/{instance}`.
#[must_use]
pub fn instance_resource(name: &InstanceName) -> String {
    format!("{INSTANCES}/{name}")
}

/// `instances/{instance}/snapshots/{snapshot}`.
#[must_use]
pub fn snapshot_resource(instance: &InstanceName, snapshot: &SnapshotName) -> String {
    format!("{INSTANCES}/{instance}/{SNAPSHOTS}/{snapshot}")
}

/// `hosts/{host}`.
#[must_use]
pub fn host_resource(name: &HostName) -> String {
    format!("{HOSTS}/{name}")
}

fn member<'a>(field: &str, collection: &str, text: &'a str) -> Result<&'a str, Violation> {
    text.strip_prefix(collection).and_then(|rest| rest.strip_prefix('/')).ok_or_else(|| {
        let shown: String = text.chars().take(80).collect();
        violation(field, &format!("must be \"{collection}/<id>\", got {shown:?}"))
    })
}

fn violation(field: &str, description: &str) -> Violation {
    Violation { field: field.to_owned(), description: description.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshot_names_round_trip_and_others_are_told_apart() {
        let text = "instances/demo/snapshots/before-lunch";
        let (instance, snapshot) = parse_snapshot_name("name", text).expect("valid");
        assert_eq!(snapshot_resource(&instance, &snapshot), text);
        for bad in ["", "instances/demo", "instances/demo/snapshots", "instances/demo/snapshots/"] {
            assert!(parse_snapshot_name("name", bad).is_err(), "{bad}");
        }
        for bad in ["instances/Demo/snapshots/a", "instances/a/snapshots/b/c", "a/b/c/d"] {
            assert!(parse_snapshot_name("name", bad).is_err(), "{bad}");
        }
    }
}
