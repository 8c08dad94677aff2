//! Copies of repositories away from the host: where they go, and when they are late.
//!
//! A host writes below a directory of its own only, so that a storage can give each host a key that opens
//! nothing else: `<prefix>/<host>/<instance>/<repository>`, the last being the first 16 digits of the
//! repository's id. What is copied was encrypted on the host; names and sizes show.

use std::fmt;
use std::num::NonZeroU64;
use std::time::Duration;

use crate::backup::{SnapshotHealth, SnapshotInfo};
use crate::spec::Secret;
use crate::time::Timestamp;

/// Most bytes of each text of an [`OffsiteStorage`].
pub const MAX_TEXT: usize = 512;

/// A snapshot that is not copied this long after it was taken is late: half of the default interval.
pub const LATE_AFTER: Duration = Duration::from_secs(12 * 3600);

/// How a bucket is named in a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum BucketAddressing {
    /// `https://HOST/BUCKET/…`: what self-hosted storages understand.
    #[default]
    Path,
    /// `https://BUCKET.HOST/…`: what Amazon wants.
    Host,
}

/// An S3-compatible storage, and what opens it. Its texts are checked where it enters the fleet.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct OffsiteStorage {
    /// `https://HOST` or `https://HOST:PORT`; plain `http://` is possible.
    pub endpoint: String,
    /// The name of the region, as the storage calls it.
    pub region: String,
    /// An existing bucket.
    pub bucket: String,
    /// The directory in the bucket, without a slash at its ends; empty for the bucket itself.
    pub prefix: String,
    /// How the bucket is named in a request.
    pub addressing: BucketAddressing,
    /// The name of the key.
    pub access_key: Secret,
    /// The key.
    pub secret_key: Secret,
    /// How much is sent and received together, in bytes per second; none: no limit.
    pub bandwidth: Option<NonZeroU64>,
}

impl fmt::Display for OffsiteStorage {
    /// Where it is, without what opens it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.endpoint, self.bucket)?;
        if self.prefix.is_empty() { Ok(()) } else { write!(f, "/{}", self.prefix) }
    }
}

/// Whether an instance's snapshots are copied off-site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum OffsitePolicy {
    /// Where the host has a storage.
    #[default]
    Auto,
    /// Always: a host without a storage is a problem that is told.
    Required,
    /// Never.
    Never,
}

/// How the off-site copy of an instance's repository stands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OffsiteReport {
    /// Where it is in the bucket; empty before the first copy.
    pub path: String,
    /// When everything was last copied.
    pub copied_at: Option<Timestamp>,
    /// A snapshot is not copied that was taken more than [`LATE_AFTER`] ago, or copies are required and the host
    /// has no storage.
    pub overdue: bool,
    /// Why the last copy failed; empty when it did not.
    pub problem: String,
}

/// Whether a sound snapshot waits for too long to be copied.
#[must_use]
pub fn is_late(snapshots: &[SnapshotInfo], now: Timestamp) -> bool {
    snapshots.iter().any(|snapshot| {
        let sound = snapshot.health == SnapshotHealth::Sound;
        sound && !snapshot.offsite && now > snapshot.taken_at.after(LATE_AFTER)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::SnapshotCause;
    use crate::name::{ImageRef, SnapshotName};
    use crate::stamp::{Digest, Generation};

    fn snapshot(taken_at: Timestamp, offsite: bool, health: SnapshotHealth) -> SnapshotInfo {
        SnapshotInfo {
            name: SnapshotName::parse("a").expect("valid"),
            id: Digest::of(b"a"),
            taken_at,
            cause: SnapshotCause::Scheduled,
            image: ImageRef::parse("a:1").expect("valid"),
            generation: Generation(1),
            files: 1,
            bytes: 1,
            added_bytes: 1,
            health,
            offsite,
        }
    }

    #[test]
    fn only_a_sound_snapshot_that_waits_too_long_is_late() {
        let taken = Timestamp::from_millis(1_795_237_200_000);
        let due = taken.after(LATE_AFTER);
        let late = due.after(Duration::from_millis(1));
        let waiting = [snapshot(taken, false, SnapshotHealth::Sound)];
        assert!(!is_late(&waiting, due) && is_late(&waiting, late));
        assert!(!is_late(&[snapshot(taken, true, SnapshotHealth::Sound)], late));
        assert!(!is_late(&[snapshot(taken, false, SnapshotHealth::Damaged)], late));
        assert!(!is_late(&[], late));
    }

    #[test]
    fn a_storage_shows_where_it_is_and_not_what_opens_it() {
        let storage = OffsiteStorage {
            endpoint: "https://s3.example".to_owned(),
            region: "eu".to_owned(),
            bucket: "claws".to_owned(),
            prefix: "fleet".to_owned(),
            addressing: BucketAddressing::Path,
            access_key: Secret::new("AKID".to_owned()),
            secret_key: Secret::new("hush".to_owned()),
            bandwidth: None,
        };
        assert_eq!(storage.to_string(), "https://s3.example/claws/fleet");
        let shown = format!("{storage:?}");
        assert!(!shown.contains("hush") && !shown.contains("AKID"), "{shown}");
    }
}
