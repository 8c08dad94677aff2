//! Copies of repositories away from the host on the wire.

use std::num::NonZeroU64;

use claw_core::offsite::{
    BucketAddressing, MAX_TEXT, OffsitePolicy, OffsiteReport, OffsiteStorage,
};
use claw_core::spec::{RestoreSource, Secret};

use crate::convert::session::text;
use crate::convert::time::{timestamp_from_wire, timestamp_to_wire};
use crate::convert::violation::Violations;
use crate::node::v1 as node;

/// A storage, with what opens it.
#[must_use]
pub fn offsite_storage_to_wire(storage: &OffsiteStorage) -> node::OffsiteStorage {
    let addressing = match storage.addressing {
        BucketAddressing::Path => node::BucketAddressing::Path,
        BucketAddressing::Host => node::BucketAddressing::Host,
    };
    node::OffsiteStorage {
        endpoint: storage.endpoint.clone(),
        region: storage.region.clone(),
        bucket: storage.bucket.clone(),
        prefix: storage.prefix.clone(),
        addressing: addressing.into(),
        access_key: storage.access_key.reveal().to_owned(),
        secret_key: storage.secret_key.reveal().to_owned(),
        bandwidth: storage.bandwidth.map_or(0, NonZeroU64::get),
    }
}

/// A storage, with what opens it.
///
/// # Errors
/// Every wrong field at once; no key is shown.
pub fn offsite_storage_from_wire(
    wire: &node::OffsiteStorage,
) -> Result<OffsiteStorage, Violations> {
    let mut v = Violations::default();
    let texts = [
        (
            "endpoint",
            &wire.endpoint,
            is_endpoint(&wire.endpoint),
            "https://HOST or https://HOST:PORT",
        ),
        ("region", &wire.region, is_region(&wire.region), "letters, digits, - and _"),
        (
            "bucket",
            &wire.bucket,
            is_bucket(&wire.bucket),
            "3 to 63 lower case letters, digits, dots and hyphens",
        ),
        (
            "prefix",
            &wire.prefix,
            is_prefix(&wire.prefix),
            "names of letters, digits, dots, - and _ between slashes",
        ),
    ];
    for (field, value, is_valid, form) in texts {
        if value.len() > MAX_TEXT || !is_valid {
            v.push(field, format!("must be {form}, at most {MAX_TEXT} bytes"));
        }
    }
    for (field, key) in [("access_key", &wire.access_key), ("secret_key", &wire.secret_key)] {
        if key.is_empty() {
            v.push(field, "must be given: without it nothing is copied");
        } else if key.len() > MAX_TEXT || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            v.push(field, format!("must have at most {MAX_TEXT} printable ASCII characters"));
        }
    }
    let addressing = match node::BucketAddressing::try_from(wire.addressing) {
        Ok(node::BucketAddressing::Unspecified | node::BucketAddressing::Path) => {
            BucketAddressing::Path
        }
        Ok(node::BucketAddressing::Host) => BucketAddressing::Host,
        Err(_) => {
            v.push("addressing", format!("unknown value {}", wire.addressing));
            BucketAddressing::default()
        }
    };
    v.into_result().map(|()| OffsiteStorage {
        endpoint: wire.endpoint.clone(),
        region: wire.region.clone(),
        bucket: wire.bucket.clone(),
        prefix: wire.prefix.clone(),
        addressing,
        access_key: Secret::new(wire.access_key.clone()),
        secret_key: Secret::new(wire.secret_key.clone()),
        bandwidth: NonZeroU64::new(wire.bandwidth),
    })
}

fn is_endpoint(text: &str) -> bool {
    let Some(rest) = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")) else {
        return false;
    };
    let in_authority = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte);
    !rest.is_empty() && rest.bytes().all(in_authority)
}

fn is_region(text: &str) -> bool {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    !text.is_empty() && text.bytes().all(known)
}

fn is_bucket(text: &str) -> bool {
    let known = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.');
    let edges = text.starts_with(['.', '-']) || text.ends_with(['.', '-']);
    (3..=63).contains(&text.len()) && !edges && text.bytes().all(known)
}

fn is_prefix(text: &str) -> bool {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    let is_name = |name: &str| !matches!(name, "" | "." | "..") && name.bytes().all(known);
    text.is_empty() || text.split('/').all(is_name)
}

pub(super) fn policy_to_wire(policy: OffsitePolicy) -> node::OffsitePolicy {
    match policy {
        OffsitePolicy::Auto => node::OffsitePolicy::Auto,
        OffsitePolicy::Required => node::OffsitePolicy::Required,
        OffsitePolicy::Never => node::OffsitePolicy::Never,
    }
}

pub(super) fn policy_from_wire(v: &mut Violations, wire: i32) -> OffsitePolicy {
    match node::OffsitePolicy::try_from(wire) {
        Ok(node::OffsitePolicy::Unspecified | node::OffsitePolicy::Auto) => OffsitePolicy::Auto,
        Ok(node::OffsitePolicy::Required) => OffsitePolicy::Required,
        Ok(node::OffsitePolicy::Never) => OffsitePolicy::Never,
        Err(_) => {
            v.push("offsite", format!("unknown value {wire}"));
            OffsitePolicy::default()
        }
    }
}

pub(super) fn source_to_wire(from: RestoreSource) -> node::RestoreSource {
    match from {
        RestoreSource::Host => node::RestoreSource::Host,
        RestoreSource::Offsite => node::RestoreSource::Offsite,
    }
}

pub(super) fn source_from_wire(v: &mut Violations, wire: i32) -> RestoreSource {
    match node::RestoreSource::try_from(wire) {
        Ok(node::RestoreSource::Unspecified | node::RestoreSource::Host) => RestoreSource::Host,
        Ok(node::RestoreSource::Offsite) => RestoreSource::Offsite,
        Err(_) => {
            v.push("from", format!("unknown value {wire}"));
            RestoreSource::default()
        }
    }
}

pub(super) fn report_to_wire(report: &OffsiteReport) -> node::OffsiteReport {
    node::OffsiteReport {
        path: report.path.clone(),
        copied_at: report.copied_at.map(timestamp_to_wire),
        overdue: report.overdue,
        problem: text(&report.problem),
    }
}

pub(super) fn report_from_wire(v: &mut Violations, wire: &node::OffsiteReport) -> OffsiteReport {
    if !is_prefix(&wire.path) || wire.path.len() > 2 * MAX_TEXT {
        v.push("offsite.path", "must be a directory in a bucket");
    }
    OffsiteReport {
        path: wire.path.clone(),
        copied_at: wire.copied_at.as_ref().map(timestamp_from_wire),
        overdue: wire.overdue,
        problem: text(&wire.problem),
    }
}
