//! Opening an instance's repository, and what is in it.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use claw_core::stamp::Digest;
use claw_snapshot::{
    Access, Credential, DirectoryStorage, FileKind, OpenDirectoryError, OpenError,
    RecoveryPassword, Repository, RepositorySecret, Snapshot, SnapshotId, Storage,
};

use super::errors::{failed, fault};
use super::link::say;
use super::protocol::{Fault, FaultKind, Job, NAME_TAG, Said, Stored};
use super::sound::SoundStorage;

/// How often the lock is tried, and how long is waited between: a process that lost its agent gives it up
/// within a moment.
const TRIES: u32 = 100;
const PAUSE: Duration = Duration::from_millis(50);

/// Opens the repository with everything in it; with [`Access::Exclusive`] what an ended job left behind is
/// removed.
pub(super) fn open(job: &Job, access: Access) -> Result<Repository, Fault> {
    open_on(job, Arc::new(lock(job, access)?))
}

/// As [`open`], without the snapshots that are damaged: the others can be used.
pub(super) fn open_sound(job: &Job, access: Access) -> Result<Repository, Fault> {
    open_on(job, Arc::new(sound(Arc::new(lock(job, access)?))?))
}

/// A storage without the snapshots that are damaged in it.
pub(super) fn sound(files: Arc<dyn Storage>) -> Result<SoundStorage, Fault> {
    let storage = SoundStorage::new(files)?;
    for id in storage.damaged() {
        say(&Said::Log(format!("snapshot {id} is damaged and left out")));
    }
    Ok(storage)
}

/// As [`open`], after those of the given snapshots are removed whose files are damaged: the engine could not
/// forget them.
pub(super) fn open_without(job: &Job, ids: &BTreeSet<SnapshotId>) -> Result<Repository, Fault> {
    let storage = SoundStorage::new(Arc::new(lock(job, Access::Exclusive)?))?;
    for id in storage.damaged().filter(|id| ids.contains(&SnapshotId::new(**id))) {
        storage.remove(FileKind::Snapshot, *id)?;
    }
    open_on(job, storage.into_files())
}

/// Opens the repository that lies in a storage.
pub(super) fn open_on(job: &Job, storage: Arc<dyn Storage>) -> Result<Repository, Fault> {
    let secret = secret(job)?;
    Repository::open(storage, &Credential::Secret(secret)).map_err(|error| match error {
        OpenError::Absent { .. } | OpenError::WrongCredential { .. } => {
            Fault { kind: FaultKind::Damaged, problem: crate::logging::chain(&error) }
        }
        OpenError::Repository(error) => error.into(),
    })
}

/// As [`open_sound`], and makes it when there is none.
pub(super) fn open_or_make(job: &Job) -> Result<Repository, Fault> {
    if exists(&job.repository).map_err(|error| fault(&error))? {
        return open_sound(job, Access::Exclusive);
    }
    let recovery = job.recovery.as_ref().map(|text| RecoveryPassword::parse(text.reveal()));
    let Some(Ok(recovery)) = recovery else {
        return Err(failed("there is no repository, and no password for a new one"));
    };
    let storage = Arc::new(lock(job, Access::Exclusive)?);
    let made = Repository::create(storage, &secret(job)?, &recovery, &mut rand::rng());
    made.map_err(|error| fault(&error))
}

/// Whether there is a repository: its configuration is written last.
pub(crate) fn exists(repository: &Path) -> io::Result<bool> {
    repository.join("config").try_exists()
}

/// Removes a directory that a job left behind, be it there or not. Only under the lock.
pub(super) fn sweep(directory: &Path) -> Result<(), Fault> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failed(format!("removing {}: {error}", directory.display())))
        }
        _ => Ok(()),
    }
}

/// Where an archive is unpacked.
pub(super) fn unpacking(job: &Job) -> PathBuf {
    job.home.join("import.partial")
}

/// The snapshot with a name that may be restored.
pub(super) fn find(repository: &Repository, name: &str) -> Result<Option<Snapshot>, Fault> {
    let tag = format!("{NAME_TAG}{name}");
    let snapshots = repository.snapshots()?;
    Ok(snapshots.into_iter().find(|snapshot| !snapshot.rough && snapshot.tags.contains(&tag)))
}

/// Snapshots of a moving source: parents, once the job that took them is over.
pub(super) fn rough(repository: &Repository) -> Result<BTreeSet<SnapshotId>, Fault> {
    let snapshots = repository.snapshots()?;
    Ok(snapshots.iter().filter(|snapshot| snapshot.rough).map(|snapshot| snapshot.id).collect())
}

/// A snapshot as the agent hears of it.
pub(super) fn stored(snapshot: &Snapshot) -> Stored {
    Stored {
        id: snapshot.id.to_string(),
        at: snapshot.time.millis(),
        tags: snapshot.tags.iter().cloned().collect(),
        files: snapshot.files.unwrap_or_default(),
        bytes: snapshot.bytes.unwrap_or_default(),
        added_bytes: snapshot.added_bytes.unwrap_or_default(),
    }
}

/// The repository's files, locked; with [`Access::Exclusive`] what an ended job left behind is removed.
pub(super) fn lock(job: &Job, access: Access) -> Result<DirectoryStorage, Fault> {
    let mut tries = 0;
    loop {
        match DirectoryStorage::open(&job.repository, access) {
            Ok(storage) => {
                if access == Access::Exclusive {
                    sweep(&job.staging)?;
                    sweep(&unpacking(job))?;
                }
                return Ok(storage);
            }
            Err(OpenDirectoryError::Busy { .. }) if tries < TRIES => thread::sleep(PAUSE),
            Err(error) => return Err(fault(&error)),
        }
        tries += 1;
    }
}

fn secret(job: &Job) -> Result<RepositorySecret, Fault> {
    let digest = Digest::from_hex(job.secret.reveal());
    let bytes = digest.ok_or_else(|| failed("the repository's secret is none"))?;
    Ok(RepositorySecret::from_bytes(*bytes.as_bytes()))
}
