//! Resource names: `hosts/{host}`, `instances/{instance}`, `joinTokens/{token}`.

use claw_core::name::{HostName, InstanceName};

use super::violation::Violation;

/// The collection of hosts.
pub const HOSTS: &str = "hosts";
/// The collection of instances.
pub const INSTANCES: &str = "instances";
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
