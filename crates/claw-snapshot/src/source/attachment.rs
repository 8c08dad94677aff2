//! Small files that belong to a snapshot and are not of the data directory.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use claw_core::stamp::Digest;
use rustic_core::repofile::{Metadata, Node, NodeType};
use rustic_core::{ReadSourceEntry, jiff};

use super::ledger::Ledger;
use super::node::{DIRECTORY_MODE, GO_DIRECTORY};
use super::reader::Content;
use super::{META, Unopened};

/// The name of an attachment: 1 to 64 letters, digits, hyphens and dots, not starting with a dot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct AttachmentName(String);

/// A text that cannot name an attachment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an attachment's name has 1 to 64 letters, digits, hyphens and dots, no dot first")]
pub struct ParseAttachmentNameError;

impl AttachmentName {
    /// The name, when it is one.
    ///
    /// # Errors
    ///
    /// When it could not be a file's name.
    pub fn parse(text: &str) -> Result<Self, ParseAttachmentNameError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
        if matches!(text.len(), 1..=64) && text.bytes().all(allowed) && !text.starts_with('.') {
            return Ok(Self(text.to_owned()));
        }
        Err(ParseAttachmentNameError)
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AttachmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The directory of the attachments and the attachments, in order. They have no owner, and for a time one
/// that follows from their content: equal attachments are equal files, and others are not taken for
/// the same, which the engine would do where name, size and times agree with the parent's.
pub(crate) fn entries(
    attachments: &BTreeMap<AttachmentName, Vec<u8>>,
    ledger: &Arc<Ledger>,
) -> impl Iterator<Item = ReadSourceEntry<Unopened>> + Send + 'static {
    let top = Path::new("/").join(META);
    let meta = Metadata { mode: Some(DIRECTORY_MODE | GO_DIRECTORY), ..Metadata::default() };
    let node = Node::new_node(OsStr::new(META), NodeType::Dir, meta);
    let mut entries = vec![ReadSourceEntry { path: top.clone(), node, open: None }];
    ledger.directory();
    for (name, content) in attachments {
        let size = u64::try_from(content.len()).unwrap_or(u64::MAX);
        let ctime = time_of(content);
        let meta = Metadata { mode: Some(0o400), size, ctime, ..Metadata::default() };
        let node = Node::new_node(OsStr::new(name.as_str()), NodeType::File, meta);
        let open = Some(Unopened(Content::bytes(content.clone())));
        entries.push(ReadSourceEntry { path: top.join(name.as_str()), node, open });
        ledger.file(size);
    }
    entries.into_iter()
}

/// A point in time between 1970 and 2106 that, but for one chance in 2^61, only this content has.
fn time_of(content: &[u8]) -> Option<jiff::Timestamp> {
    let digest = Digest::of(content);
    let mut bytes = digest.as_bytes().iter().map(|byte| u32::from(*byte));
    let mut number = || bytes.by_ref().take(4).fold(0_u32, |number, byte| (number << 8) | byte);
    let (seconds, nanos) = (number(), number() % 1_000_000_000);
    jiff::Timestamp::new(i64::from(seconds), i32::try_from(nanos).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain_file_names() {
        for name in ["spec", "image-digest", "spec.v2", &"a".repeat(64)] {
            assert_eq!(AttachmentName::parse(name).unwrap().as_str(), name);
        }
        for name in ["", ".", "..", "a/b", ".hidden", "a b", &"a".repeat(65)] {
            assert_eq!(AttachmentName::parse(name), Err(ParseAttachmentNameError), "{name}");
        }
    }
}
