//! Taking a snapshot, and reading what was attached to one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use claw_core::time::Timestamp;
use rustic_core::repofile::{
    BlobType, SnapshotFile, SnapshotId as EngineSnapshotId, SnapshotSummary,
};
use rustic_core::{BlobId, SnapshotOptions, TreeId, jiff};

use crate::catalog::{self, ROUGH, Snapshot, SnapshotNotFound};
use crate::codec::Codec;
use crate::engine::RepositoryError;
use crate::id::{FileId, SnapshotId};
use crate::progress::Watcher;
use crate::repository::{Engine, Repository};
use crate::source::attachment::AttachmentName;
use crate::source::frozen::Frozen;
use crate::source::ledger::{self, Ledger, Listing, SourceFault};
use crate::source::{DATA, META, Origin, Reading, Source, Stillness};
use crate::storage::FileKind;
use crate::tree::BlobError;
use crate::write::{Target, Written, write};

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
    /// Fewer entries were stored than the source gave.
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
        let engine = self.engine()?;
        let mut codec = self.codec(&engine)?;
        let (places, lost_packs) = self.mended_places(&engine, &codec)?;
        let ledger = Arc::new(ledger);
        let mut file = describe(request, ledger.stillness)?;
        let parent = find_parent(&engine, request)?;
        if let Some(parent) = &parent {
            file.parent = Some(parent.id);
            file.parents = vec![parent.id];
        }
        let target = Target {
            repository: self,
            engine: &engine,
            places: &places,
            parent: parent.map(|parent| FileId::from(parent.tree.into_inner())),
        };
        let source = Reading { origin, ledger: Arc::clone(&ledger) };
        source.settle();
        let Written { done, packs } = write(&target, source.entries());
        let stored = done
            .map_err(SnapshotError::from)
            .and_then(|done| self.conclude(&mut codec, file, done, &ledger));
        let stored = match stored {
            Err(SnapshotError::Repository(fault)) if fault.is_full() => {
                // Others need the room more. Every index was read above, and what was not indexed
                // was written here; what failed first is what is told.
                _ = self.sweep(packs);
                return Err(fault.into());
            }
            stored => stored?,
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

    /// Writes the snapshot's file, when everything that belongs into it was read.
    fn conclude(
        &self,
        codec: &mut Codec,
        mut file: SnapshotFile,
        (tree, mut summary): (FileId, SnapshotSummary),
        ledger: &Ledger,
    ) -> Result<SnapshotFile, SnapshotError> {
        let (count, faults) = ledger.take_faults();
        if count > 0 {
            return Err(SnapshotError::Source { count, faults });
        }
        file.tree = TreeId::from(tree.engine());
        summary.backup_start = file.time.clone();
        summary.backup_end = file.time.clone();
        file.summary = Some(summary);
        let doing = "writing the snapshot";
        let content =
            serde_json::to_vec(&file).map_err(|fault| RepositoryError::unusable(doing, fault))?;
        let sealed =
            codec.seal_file(&content).map_err(|fault| RepositoryError::unusable(doing, fault))?;
        let id = FileId::of(&sealed);
        self.storage
            .write(FileKind::Snapshot, id, &[Bytes::from(sealed)])
            .map_err(RepositoryError::from)?;
        file.id = EngineSnapshotId::from(id.engine());
        Ok(file)
    }

    /// Holds what is in the repository against what was given to it.
    fn confirm(&self, stored: &SnapshotFile, ledger: &Ledger) -> Result<(), SnapshotError> {
        let counts = ledger.counts();
        let given = counts.files - counts.dropped + counts.directories;
        let summary = stored.summary.as_ref();
        // The root is counted, and has no entry.
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

fn find_parent(
    engine: &Engine,
    request: &SnapshotRequest,
) -> Result<Option<SnapshotFile>, SnapshotError> {
    match request.parent {
        Parent::Nothing => Ok(None),
        Parent::Of(id) => match catalog::snapshot_file(engine, id)? {
            Some(file) => Ok(Some(file)),
            None => Err(SnapshotError::Parent(SnapshotNotFound(id))),
        },
        Parent::Latest => {
            let files = catalog::snapshot_files(engine)?.into_iter();
            let ours = files.filter(|file| file.hostname == request.host);
            Ok(ours.max_by_key(|file| (file.time.timestamp(), file.id)))
        }
    }
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
    for top in [DATA, META] {
        file.paths.add(format!("/{top}"));
    }
    Ok(file)
}
