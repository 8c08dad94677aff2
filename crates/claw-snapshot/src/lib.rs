//! Snapshots of a data directory, kept in a repository of restic's format.
//!
//! What it is for: taking, listing, restoring, verifying and thinning out snapshots of one
//! instance's data, each with the small files that belong to it (its exact spec, its image's
//! digest); copying a repository to S3 and back; carrying a snapshot away as one file, and taking
//! such files in. The format is restic's, so that a customer's data never depends on this program:
//! `restic -r DIRECTORY restore latest` with the recovery password is enough.
//!
//! What it deliberately does not do: it has no clock (but for what S3 demands, and the engine of packs), no schedule and no
//! runtime (every call blocks), it pauses nothing, and it knows no instance. It is made to run in a short-lived child
//! process with a memory limit: a panic or an out-of-memory in the engine below loses that job and
//! nothing else.
//!
//! The engine is `rustic_core`, behind types of our own. What it does not do well is done here:
//!
//! | hazard of the engine | answer |
//! | --- | --- |
//! | unreadable files are dropped, the call succeeds; many small files take three times the processor | [`Repository::snapshot`] writes blobs and trees itself |
//! | the local backend drops errors of listings, never syncs directories | [`DirectoryStorage`] |
//! | its restore takes 263 MB and more, warns where it should fail | [`Repository::restore`] |
//! | its check panics on damage and names no file | [`Repository::verify`] |
//! | its prune leaves packs that no index names; its threads write on after a failure | [`Repository::prune`] sweeps; what failed returns when they have ended |
//! | its key derivation takes 128 MiB | own key files, see [`Repository::create`] |
//! | no locks | [`DirectoryStorage::open`] |
//!
//! # Where to start
//!
//! [`DirectoryStorage::open`], [`Repository::create`] or [`Repository::open`], then
//! [`Repository::snapshot`] of a [`Source`]. [`retention`] says which snapshots to
//! [`Repository::forget`]. Off-site: [`S3Storage::open`], [`replicate()`]. As a file:
//! [`Repository::export`], [`unpack()`].
#![forbid(unsafe_code)]

mod archive;
mod backend;
mod catalog;
mod codec;
mod diff;
mod engine;
mod id;
mod index;
mod key_file;
mod progress;
mod prune;
mod replicate;
mod repository;
mod restore;
pub mod retention;
mod secret;
mod snapshot;
mod source;
mod storage;
mod tree;
mod verify;
mod write;

pub use archive::{
    ArchiveManifest, ArchiveOrigin, ExportError, Exported, OpenClawAsset, OpenClawBackup, Owner,
    UnpackError, UnpackLimits, Unpacked, unpack,
};
pub use catalog::{Snapshot, SnapshotNotFound};
pub use diff::{DiffError, Difference, DifferenceKind, Differences};
pub use engine::{EngineError, RepositoryError, limit_processors};
pub use id::{FileId, ParseIdError, SnapshotId};
pub use key_file::KeyFileError;
pub use progress::{Progress, Watcher};
pub use prune::{ForgetError, PruneError, Pruned};
pub use replicate::{Removal, ReplicateError, Replicated, replicate};
pub use repository::{CreateError, OpenError, ReplaceKeyError, Repository};
pub use restore::{RestoreError, Restored, Subtree};
pub use secret::{
    Credential, KeyRole, ParseRecoveryPasswordError, RecoveryPassword, RepositorySecret,
};
pub use snapshot::{AttachmentsError, Parent, SnapshotError, SnapshotRequest, Taken};
pub use source::attachment::{AttachmentName, ParseAttachmentNameError};
pub use source::frozen::{FreezeError, Frozen};
pub use source::ledger::{Listing, SourceFault, SourceFaultReason};
pub use source::{DATA, META, Source, Stillness};
pub use storage::{
    Access, DEBIAN_CA_FILE, DirectoryStorage, FileKind, OpenDirectoryError, S3Addressing, S3Fault,
    S3Patience, S3Secret, S3Settings, S3SettingsError, S3Storage, Storage, StorageAction,
    StorageError,
};
pub use tree::BlobError;
pub use verify::{Affected, Damage, Extent, Rotation, Verified, VerifyError};
