//! Taking a snapshot, and reading what was attached to one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use claw_core::time::Timestamp;
use rustic_core::repofile::{BlobType, SnapshotFile};
use rustic_core::{
    BackupOptions, BlobId, ParentOptions, SnapshotGroupCriterion, SnapshotOptions, jiff,
};

use crate::backend::{Backend, Gate};
use crate::catalog::{self, ROUGH, Snapshot, SnapshotNotFound};
use crate::engine::RepositoryError;
use crate::id::SnapshotId;
use crate::progress::Watcher;
use crate::repository::{Engine, Repository};
use crate::source::attachment::AttachmentName;
use crate::source::frozen::Frozen;
use crate::source::ledger::{self, Ledger, Listing, SourceFault};
use crate::source::{DATA, EngineSource, META, Origin, Source, Stillness};
use crate::storage::FileKind;
use crate::tree::BlobError;

/// An attachment is read into memory; a larger one is no attachment of ours.
const LARGEST_ATTACHMENT: u64 = 1 << 20;

/// What a snapshot says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotRequest {
    /// Whose data it is.
    pub host: String,
    /// Now, by the caller's clock, before the source is read. Changes of files that are as young
    /// as this are not trusted by the next snapshot.
    pub time: Timestamp,
    /// For what it is taken.
    pub tags: BTreeSet<String>,
    /// With what it is compared, so that unchanged files need not be read.
    pub parent: Parent,
}

/// What a new snapshot is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Parent {
    /// The newest snapshot of the same host, rough ones included.
    #[default]
    Latest,
    /// This one.
    Of(SnapshotId),
    /// Nothing: every file is read.
    Nothing,
}

/// A snapshot that is in the repository, durable, and was found again there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// The snapshot.
    pub snapshot: Snapshot,
    /// Directories in it, that of the data included.
    pub directories: u64,
    /// Sockets, pipes and devices that were left out: they hold no data.
    pub special: u64,
    /// Entries that changed or vanished, of a moving source.
    pub moved: u64,
    /// Packs that an index named and the storage did not have. What they held was written again
    /// where the source still has it; older snapshots may lack the rest: verify.
    pub lost_packs: u64,
    /// Of a moving source: what [`Frozen::hold`] compares with. Otherwise empty.
    pub listing: Listing,
}

/// No snapshot was taken; the repository is as it was, besides packs that the next one uses. When
/// the storage was full, these were removed again as far as it allowed.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// Something of the source would be missing or wrong.
    #[error("{count} entries could not be taken, first: {}", ledger::first(.faults))]
    Source {
        /// How many.
        count: u64,
        /// The first of them.
        faults: Vec<SourceFault>,
    },
    /// The named parent is absent.
    #[error("the parent is absent")]
    Parent(#[source] SnapshotNotFound),
    /// The engine stored fewer entries than it was given.
    #[error("{given} entries were given to the repository and {stored} are in it")]
    Incomplete {
        /// Given by the source.
        given: u64,
        /// In the snapshot, which was removed.
        stored: u64,
    },
    /// What was written is not what is read back.
    #[error("the snapshot was written and is not there")]
    NotFoundAgain,
    /// The time is outside of what the format can say.
    #[error("the time of the snapshot is outside of the calendar")]
    Time,
    /// The storage or the engine failed.
    #[error("writing the snapshot failed")]
    Repository(#[from] RepositoryError),
}

/// Attachments could not be read.
#[derive(Debug, thiserror::Error)]
pub enum AttachmentsError {
    /// The snapshot is absent.
    #[error("reading attachments failed")]
    NotFound(#[from] SnapshotNotFound),
    /// It has something among its attachments that we did not write.
    #[error("{0} is no attachment")]
    Foreign(PathBuf),
    /// The repository is damaged.
    #[error("reading attachments failed")]
    Blob(#[from] BlobError),
    /// The storage or the engine failed.
    #[error("reading attachments failed")]
    Repository(#[from] RepositoryError),
}

impl Repository {
    /// Takes a snapshot. The snapshot's file is written last, and only when everything of the
    /// source was read and stored; then it is read back.
    ///
    /// # Errors
    ///
    /// When anything of the source could not be read, or of the repository written. Then there is
    /// no new snapshot, at whatever moment it failed or the process was killed.
    pub fn snapshot(
        &self,
        request: &SnapshotRequest,
        source: &Source,
        watcher: Watcher,
    ) -> Result<Taken, SnapshotError> {
        let ledger = Ledger::new(source.stillness, request.time, watcher);
        self.take(request, Origin::Directory(source.clone()), ledger)
    }

    /// Takes a snapshot of a source as it stood still. The parent must be the rough snapshot
    /// whose listing the source was held with.
    ///
    /// # Errors
    ///
    /// As [`Repository::snapshot`]; and when the repository does not have what was not copied.
    pub fn snapshot_frozen(
        &self,
        request: &SnapshotRequest,
        frozen: Arc<Frozen>,
        watcher: Watcher,
    ) -> Result<Taken, SnapshotError> {
        let ledger = Ledger::new(Stillness::Still, request.time, watcher);
        let special = frozen.special();
        let taken = self.take(request, Origin::Frozen(frozen), ledger)?;
        Ok(Taken { special, ..taken })
    }

    fn take(
        &self,
        request: &SnapshotRequest,
        origin: Origin,
        ledger: Ledger,
    ) -> Result<Taken, SnapshotError> {
        let lost_packs = self.mend_index()?;
        let ledger = Arc::new(ledger);
        let gate: Arc<dyn Gate> = Arc::<Ledger>::clone(&ledger);
        let engine = self.engine_with(Backend::gated(Arc::clone(&self.storage), gate))?;
        let options = backup_options(find_parent(&engine, request)?);
        let file = describe(request, ledger.stillness)?;
        let backend = Arc::clone(&engine.backend);
        let source = EngineSource { origin, ledger: Arc::clone(&ledger) };
        let archived = archive(engine, &options, &source, file);
        let written = backend.close();
        let stored = match archived {
            Err(SnapshotError::Repository(fault)) if fault.is_full() => {
                // Others need the room more. Every index was read above, and what was not indexed
                // was written here; what failed first is what is told.
                _ = self.sweep(written);
                return Err(fault.into());
            }
            archived => archived?,
        };
        self.confirm(&stored, &ledger)?;
        let counts = ledger.counts();
        Ok(Taken {
            snapshot: Snapshot::of(&stored),
            directories: counts.directories - 1,
            special: counts.special,
            moved: counts.moved,
            lost_packs,
            listing: ledger.take_listing(),
        })
    }

    /// What was attached to a snapshot; nothing when another program took it.
    ///
    /// # Errors
    ///
    /// When the snapshot is absent, or an attachment is damaged or none of ours.
    pub fn attachments(
        &self,
        id: SnapshotId,
    ) -> Result<BTreeMap<AttachmentName, Vec<u8>>, AttachmentsError> {
        let engine = self.engine()?;
        let file = catalog::snapshot_file(&engine, id)?.ok_or(SnapshotNotFound(id))?;
        let blobs = self.blobs()?;
        let mut attachments = BTreeMap::new();
        let Some(directory) = blobs.find(file.tree, Path::new(META))? else {
            return Ok(attachments);
        };
        let Some(tree) = directory.subtree else { return Ok(attachments) };
        for node in blobs.tree(tree)? {
            let foreign = || AttachmentsError::Foreign(Path::new(META).join(node.name()));
            let name = node.name().to_str().and_then(|name| AttachmentName::parse(name).ok());
            let name = name.ok_or_else(foreign)?;
            if !node.is_file() || node.meta.size > LARGEST_ATTACHMENT {
                return Err(foreign());
            }
            let mut content = Vec::new();
            for blob in node.content.iter().flatten() {
                content.extend_from_slice(&blobs.read(BlobId::from(*blob), BlobType::Data)?);
            }
            attachments.insert(name, content);
        }
        Ok(attachments)
    }

    /// Holds what is in the repository against what was given to it.
    fn confirm(&self, stored: &SnapshotFile, ledger: &Ledger) -> Result<(), SnapshotError> {
        let counts = ledger.counts();
        let given = counts.files - counts.dropped + counts.directories;
        let summary = stored.summary.as_ref();
        // The engine counts the root, which has no entry.
        let stored_entries = summary.map_or(0, |summary| {
            (summary.total_files_processed + summary.total_dirs_processed).saturating_sub(1)
        });
        let id = SnapshotId::from(stored.id);
        if given != stored_entries {
            self.storage.remove(FileKind::Snapshot, id.file()).map_err(RepositoryError::from)?;
            return Err(SnapshotError::Incomplete { given, stored: stored_entries });
        }
        let found = catalog::snapshot_file(&self.engine()?, id)?;
        if found.is_none_or(|found| found.tree != stored.tree) {
            return Err(SnapshotError::NotFoundAgain);
        }
        Ok(())
    }
}

/// Lets the engine read the source and write what is new of it.
fn archive(
    engine: Engine,
    options: &BackupOptions,
    source: &EngineSource,
    file: SnapshotFile,
) -> Result<SnapshotFile, SnapshotError> {
    let backend = Arc::clone(&engine.backend);
    let indexed = engine
        .repository
        .to_indexed_ids()
        .map_err(|fault| RepositoryError::new("reading the index", &backend, fault))?;
    let top = Path::new("/");
    let paths = [top.join(DATA), top.join(META)];
    let archived = indexed.archive(options, source, file, &paths);
    // The storage first: when it fails, files are given up for it and not for themselves.
    if let Some(fault) = backend.take_failure() {
        return Err(RepositoryError::Storage(fault).into());
    }
    let (count, faults) = source.ledger.take_faults();
    if count > 0 {
        return Err(SnapshotError::Source { count, faults });
    }
    let stored =
        archived.map_err(|fault| RepositoryError::new("writing the snapshot", &backend, fault))?;
    Ok(stored)
}

fn find_parent(
    engine: &Engine,
    request: &SnapshotRequest,
) -> Result<Option<SnapshotId>, SnapshotError> {
    match request.parent {
        Parent::Nothing => Ok(None),
        Parent::Of(id) => match catalog::snapshot_file(engine, id)? {
            Some(_) => Ok(Some(id)),
            None => Err(SnapshotError::Parent(SnapshotNotFound(id))),
        },
        Parent::Latest => {
            let files = catalog::snapshot_files(engine)?;
            let ours = files.iter().filter(|file| file.hostname == request.host);
            let latest = ours.max_by_key(|file| (file.time.timestamp(), file.id));
            Ok(latest.map(|file| SnapshotId::from(file.id)))
        }
    }
}

fn backup_options(parent: Option<SnapshotId>) -> BackupOptions {
    // Without criteria every snapshot may be the parent: it was chosen already.
    let options = ParentOptions::default().group_by(SnapshotGroupCriterion::new());
    let options = match parent {
        Some(id) => options.parents(vec![id.to_string()]),
        None => options.force(true),
    };
    BackupOptions::default().parent_opts(options).no_scan(true)
}

fn describe(
    request: &SnapshotRequest,
    stillness: Stillness,
) -> Result<SnapshotFile, SnapshotError> {
    let time = jiff::Timestamp::from_millisecond(request.time.millis())
        .map_err(|_| SnapshotError::Time)?
        .to_zoned(jiff::tz::TimeZone::UTC);
    // Without a command the engine stores this process's arguments.
    let options = SnapshotOptions::default()
        .host(request.host.clone())
        .command("claw-snapshot".to_owned())
        .time(time);
    let mut file = options.to_snapshot().map_err(|fault| RepositoryError::Engine {
        doing: "describing the snapshot",
        source: fault.into(),
    })?;
    file.program_version = concat!("claw-snapshot ", env!("CARGO_PKG_VERSION")).to_owned();
    for tag in &request.tags {
        file.tags.add(tag.clone());
    }
    if stillness == Stillness::Moving {
        file.tags.add(ROUGH.to_owned());
    }
    Ok(file)
}
