//! A snapshot as one file to carry away, and such files, and those of OpenClaw itself, back as a
//! directory.
//!
//! An archive is a tar compressed with zstd: first `manifest.json`, then `meta/` with the
//! attachments, then `data/`, last `checksums.sha256`, which `sha256sum --check` understands. So
//! `tar --zstd -x` is enough to use one without us. An archive without its last entry is not whole.
//!
//! What it deliberately does not do: extended attributes are not carried, and nothing is encrypted:
//! whoever has the archive has the data.
//!
//! An archive to be unpacked was made by anybody. It is read as a stream, in bounded memory, into a
//! directory that does not exist yet; what it may be and why it is refused stands with
//! [`UnpackError`].
//!
//! Where to start: [`crate::Repository::export`], [`unpack()`].

mod blocks;
mod checksums;
mod export;
mod manifest;
mod openclaw;
mod place;
mod refusal;
mod unpack;

pub use export::{ExportError, Exported};
pub use manifest::ArchiveManifest;
pub use openclaw::{OpenClawAsset, OpenClawBackup};
pub use refusal::UnpackError;
pub use unpack::{ArchiveOrigin, Owner, UnpackLimits, Unpacked, unpack};

/// The first entry.
const MANIFEST: &str = "manifest.json";
/// The last entry.
const CHECKSUMS: &str = "checksums.sha256";
/// A manifest or an attachment is read into memory; a larger one is none of ours.
const LARGEST_SMALL_FILE: u64 = 1 << 20;
