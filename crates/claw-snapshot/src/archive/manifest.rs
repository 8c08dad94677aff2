//! What an archive says about itself.

use std::collections::BTreeSet;

use claw_core::time::Timestamp;
use rustic_core::jiff;
use serde_json::{Value, json};

use super::refusal::UnpackError;
use crate::catalog::Snapshot;
use crate::id::SnapshotId;
use crate::restore::Restored;
use crate::source::attachment::AttachmentName;

const FORMAT: &str = "claw-archive";
const VERSION: u64 = 1;

/// The manifest of an archive of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiveManifest {
    /// The snapshot that was exported.
    pub snapshot: SnapshotId,
    /// When it was taken.
    pub time: Timestamp,
    /// Whose data it is.
    pub host: String,
    /// For what it was taken.
    pub tags: BTreeSet<String>,
    /// Files and links in the data.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What is in `meta/`.
    pub attachments: BTreeSet<AttachmentName>,
}

impl ArchiveManifest {
    pub(super) fn new(
        snapshot: &Snapshot,
        data: Restored,
        attachments: BTreeSet<AttachmentName>,
    ) -> Self {
        Self {
            snapshot: snapshot.id,
            time: snapshot.time,
            host: snapshot.host.clone(),
            tags: snapshot.tags.clone(),
            files: data.files,
            bytes: data.bytes,
            attachments,
        }
    }

    pub(super) fn to_json(&self) -> String {
        let time = jiff::Timestamp::from_millisecond(self.time.millis()).unwrap_or_default();
        let attachments: Vec<_> = self.attachments.iter().map(AttachmentName::as_str).collect();
        let manifest = json!({
            "format": FORMAT,
            "version": VERSION,
            "snapshot": self.snapshot.to_string(),
            "time": time.to_string(),
            "host": self.host,
            "tags": self.tags,
            "files": self.files,
            "bytes": self.bytes,
            "attachments": attachments,
        });
        format!("{manifest:#}\n")
    }

    pub(super) fn parse(text: &[u8]) -> Result<Self, UnpackError> {
        let wrong = UnpackError::Manifest;
        let value: Value = serde_json::from_slice(text).map_err(|_| wrong("it is no JSON"))?;
        if value["format"] != FORMAT {
            return Err(wrong("the format is another one"));
        }
        if value["version"] != VERSION {
            return Err(wrong("the version is another one"));
        }
        let text = |name: &str| value[name].as_str();
        let texts = |name: &str| {
            let list = value[name].as_array()?.iter();
            list.map(|text| text.as_str().map(str::to_owned)).collect::<Option<BTreeSet<_>>>()
        };
        let snapshot = text("snapshot").and_then(|id| id.parse().ok());
        let time = text("time").and_then(|time| time.parse::<jiff::Timestamp>().ok());
        let attachments = texts("attachments").and_then(|names| {
            names.iter().map(|name| AttachmentName::parse(name).ok()).collect::<Option<_>>()
        });
        Ok(Self {
            snapshot: snapshot.ok_or_else(|| wrong("snapshot"))?,
            time: Timestamp::from_millis(time.ok_or_else(|| wrong("time"))?.as_millisecond()),
            host: text("host").ok_or_else(|| wrong("host"))?.to_owned(),
            tags: texts("tags").ok_or_else(|| wrong("tags"))?,
            files: value["files"].as_u64().ok_or_else(|| wrong("files"))?,
            bytes: value["bytes"].as_u64().ok_or_else(|| wrong("bytes"))?,
            attachments: attachments.ok_or_else(|| wrong("attachments"))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::FileId;

    #[test]
    fn print_and_parse_are_inverse() {
        let manifest = ArchiveManifest {
            snapshot: SnapshotId::new(FileId::of(b"x")),
            time: Timestamp::from_millis(1_700_000_000_123),
            host: "shop".to_owned(),
            tags: BTreeSet::from(["daily".to_owned()]),
            files: 3,
            bytes: u64::MAX,
            attachments: BTreeSet::from([AttachmentName::parse("spec").unwrap()]),
        };
        let text = manifest.to_json();
        assert_eq!(ArchiveManifest::parse(text.as_bytes()).unwrap(), manifest);
        for (from, to) in [
            ("claw-archive", "zip"),
            ("\"version\": 1", "\"version\": 2"),
            ("\"spec\"", "\"../spec\""),
            ("\"files\": 3", "\"files\": -3"),
            ("\"shop\"", "7"),
            ("{", ""),
        ] {
            assert!(text.contains(from), "{text}");
            let refused = ArchiveManifest::parse(text.replacen(from, to, 1).as_bytes());
            assert!(matches!(refused, Err(UnpackError::Manifest(_))), "{from}: {refused:?}");
        }
    }
}
