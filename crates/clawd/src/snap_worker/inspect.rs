//! Listing snapshots, forgetting them, looking for damage.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use claw_snapshot::{
    Access, Affected, Damage, Extent, FileId, FileKind, ForgetError, PruneError, Rotation,
    SnapshotId, Verified,
};

use super::errors::{failed, fault};
use super::protocol::{Fault, Job, NAME_TAG, Outcome};
use super::repository::{exists, open, open_sound, open_without, rough, stored};

/// Packs that nothing needs are marked, and removed by a prune that finds them marked for so long. The wait
/// is for other programs that read meanwhile. Nobody else does: the repository is locked.
const GRACE: Duration = Duration::ZERO;
/// A prune marks, the next one removes.
const PHASES: usize = 2;
/// Most lines that say what is damaged.
const MOST_LINES: usize = 64;
/// Most damaged files that are named for each snapshot.
const MOST_PATHS: usize = 3;

/// Every snapshot that may be restored.
pub(super) fn list(job: &Job) -> Result<Outcome, Fault> {
    if !exists(&job.repository).map_err(|error| fault(&error))? {
        let (snapshots, repository) = (Vec::new(), String::new());
        return Ok(Outcome::Listed { snapshots, stored_bytes: 0, repository });
    }
    let repository = open_sound(job, Access::Shared)?;
    let snapshots = repository.snapshots()?;
    let snapshots = snapshots.iter().filter(|snapshot| !snapshot.rough).map(stored).collect();
    let (stored_bytes, repository) = (repository.stored_bytes()?, repository.id()?);
    Ok(Outcome::Listed { snapshots, stored_bytes, repository })
}

/// Removes snapshots, rough ones too, and then what no other needs.
pub(super) fn forget(job: &Job, ids: &[String]) -> Result<Outcome, Fault> {
    if !exists(&job.repository).map_err(|error| fault(&error))? {
        return Ok(Outcome::Nothing);
    }
    let mut unwanted = BTreeSet::new();
    for id in ids {
        let id = id.parse().map_err(|_error| failed(format!("{id} is no id of a snapshot")))?;
        unwanted.insert(id);
    }
    let repository = open_without(job, &unwanted)?;
    unwanted.extend(rough(&repository)?);
    let known: BTreeSet<_> =
        repository.snapshots()?.into_iter().map(|snapshot| snapshot.id).collect();
    let unwanted: BTreeSet<_> = unwanted.intersection(&known).copied().collect();
    repository.forget(&unwanted).map_err(|error: ForgetError| fault(&error))?;
    for _phase in 0..PHASES {
        match repository.prune(GRACE) {
            // What is there is kept until there is a snapshot again: a fault that hides all of them must
            // not remove everything.
            Err(PruneError::NothingToKeep) => break,
            Err(error) => return Err(fault(&error)),
            Ok(_pruned) => {}
        }
    }
    Ok(Outcome::Nothing)
}

/// Looks for damage.
pub(super) fn verify(job: &Job, part: u32, parts: u32) -> Result<Outcome, Fault> {
    if !exists(&job.repository).map_err(|error| fault(&error))? {
        return Ok(Outcome::Verified { damage: Vec::new(), affected: Vec::new() });
    }
    let repository = open(job, Access::Shared)?;
    let extent = match (parts, Rotation::new(part, parts)) {
        (0, _) => Extent::Structure,
        (_, Some(rotation)) => Extent::Part(rotation),
        (_, None) => return Err(failed(format!("there is no part {part} of {parts}"))),
    };
    let verified = repository.verify(extent)?;
    let names = names(job, &verified)?;
    let mut damage: Vec<String> = verified.damage.iter().map(describe).collect();
    damage.extend(verified.affected.iter().map(|(id, lost)| describe_loss(*id, lost, &names)));
    let surplus = damage.len().saturating_sub(MOST_LINES);
    if surplus > 0 {
        damage.truncate(MOST_LINES - 1);
        damage.push(format!("and {} more", surplus + 1));
    }
    let affected = verified.affected.keys().filter_map(|id| names.get(id)).cloned().collect();
    Ok(Outcome::Verified { damage, affected })
}

/// Names of the snapshots that can be read; of those that cannot, nobody knows them.
fn names(job: &Job, verified: &Verified) -> Result<BTreeMap<SnapshotId, String>, Fault> {
    if verified.is_sound() {
        return Ok(BTreeMap::new());
    }
    let snapshots = open_sound(job, Access::Shared)?.snapshots()?;
    let named = snapshots.iter().filter_map(|snapshot| {
        let name = snapshot.tags.iter().find_map(|tag| tag.strip_prefix(NAME_TAG))?;
        Some((snapshot.id, name.to_owned()))
    });
    Ok(named.collect())
}

fn describe(damage: &Damage) -> String {
    match damage {
        Damage::Corrupt { kind, id, unreadable } => {
            let reason = unreadable.as_deref().unwrap_or("its content is not what was written");
            format!("{} is damaged: {reason}", file(*kind, *id))
        }
        Damage::PackMissing(id) => format!("{} is missing", file(FileKind::Pack, *id)),
        Damage::PackSize { id, expected, found } => {
            format!("{} has {found} bytes instead of {expected}", file(FileKind::Pack, *id))
        }
        Damage::Blob { id, pack } => {
            format!(
                "part {id} of a file in {} is not what was written",
                file(FileKind::Pack, *pack)
            )
        }
        Damage::BlobMissing(id) => format!("part {id} of a file is missing"),
        Damage::Tree { id, reason } => format!("directory {id} cannot be used: {reason}"),
    }
}

/// A file of the repository as it is called there.
fn file(kind: FileKind, id: FileId) -> String {
    let name = id.to_string();
    match kind {
        FileKind::Config => kind.directory().to_owned(),
        FileKind::Pack => {
            let first: String = name.chars().take(2).collect();
            format!("{}/{first}/{name}", kind.directory())
        }
        FileKind::Key | FileKind::Snapshot | FileKind::Index => {
            format!("{}/{name}", kind.directory())
        }
    }
}

fn describe_loss(id: SnapshotId, lost: &Affected, names: &BTreeMap<SnapshotId, String>) -> String {
    let name = names.get(&id).map_or_else(|| id.to_string(), Clone::clone);
    if lost.paths.is_empty() {
        return format!("snapshot {name} is lost");
    }
    let shown = lost.paths.iter().take(MOST_PATHS).map(|path| path_text(path));
    let shown = shown.collect::<Vec<_>>().join(", ");
    format!("snapshot {name} lost {} files and directories, such as {shown}", lost.count)
}

/// Names are a tenant's: they reach a log.
fn path_text(path: &Path) -> String {
    path.display().to_string().escape_debug().collect()
}
