//! What clawctl prints of the API's resources: its own, stable types.
//!
//! Field names are in camel case as in files, enums in lower case with hyphens, times in RFC 3339,
//! amounts in the unit that the field's name says. A field that is not known is absent. New fields
//! may appear; none changes its meaning. Secrets appear by name with an empty value.

pub(crate) mod change;
pub(crate) mod event;
pub(crate) mod firewall;
pub(crate) mod host;
pub(crate) mod instance;
pub(crate) mod migration;
pub(crate) mod operation;
pub(crate) mod snapshot;
pub(crate) mod time;
pub(crate) mod token;

use claw_core::time::Timestamp;
use serde::Serialize;

/// Something that can be listed and shown.
pub(crate) trait Resource: Serialize {
    /// Columns of a list.
    const HEADER: &'static [&'static str];

    /// The API's name, such as `instances/demo`.
    fn resource(&self) -> String;

    /// Cells of a list, one for each column.
    fn row(&self, now: Timestamp) -> Vec<String>;

    /// Everything, for one resource alone; empty values are left out.
    fn details(&self, now: Timestamp) -> Vec<(&'static str, String)>;
}

/// An enum of the API as text: `PHASE_CRASH_LOOP` is `crash-loop`.
///
/// `name` is `None` for a number that this clawctl does not know.
fn enum_text(name: Option<&str>, prefix: &str, number: i32) -> String {
    match name.and_then(|name| name.strip_prefix(prefix)) {
        Some("UNSPECIFIED") => String::new(),
        Some(name) => name.to_lowercase().replace('_', "-"),
        None => format!("unknown-{number}"),
    }
}

/// The id at the end of a resource name: `hosts/vps-1` is `vps-1`.
pub(crate) fn id(resource: &str) -> &str {
    resource.rsplit_once('/').map_or(resource, |(_, id)| id)
}

/// Bytes for a person, rounded: `1.4GiB`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match UNITS.iter().find(|(_, unit)| bytes >= *unit) {
        Some((suffix, unit)) => {
            let tenths = (u128::from(bytes) * 10 + u128::from(*unit) / 2) / u128::from(*unit);
            if tenths >= 1000 || tenths % 10 == 0 {
                format!("{}{suffix}", (tenths + 5) / 10)
            } else {
                format!("{}.{}{suffix}", tenths / 10, tenths % 10)
            }
        }
        None => format!("{bytes}B"),
    }
}

/// `used/total` for a person; empty when there is no total.
fn share(used: u64, total: u64) -> String {
    if total == 0 { String::new() } else { format!("{}/{}", size(used), size(total)) }
}

fn yes_no(value: bool) -> String {
    if value { "yes" } else { "no" }.to_owned()
}

/// An image with its digest cut to twelve digits, as docker shows it.
fn short_image(image: &str) -> String {
    match image.split_once("@sha256:") {
        Some((name, digest)) => {
            format!("{name}@sha256:{}", digest.chars().take(12).collect::<String>())
        }
        None => image.to_owned(),
    }
}

#[cfg(test)]
mod tests;
