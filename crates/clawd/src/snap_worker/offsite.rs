//! Copies of the repository in a storage behind the network.

use std::path::PathBuf;
use std::sync::Arc;

use claw_snapshot::{
    Access, DEBIAN_CA_FILE, FileKind, Removal, Replicated, S3Addressing, S3Patience, S3Secret,
    S3Settings, S3Storage, Storage, StorageError, Watcher, replicate,
};

use super::errors::{failed, fault, replicate_fault};
use super::link::{Link, say};
use super::protocol::{Addressing, Fault, FaultKind, Job, Outcome, Place, Said, Surplus};
use super::ration::Rationed;
use super::read_ahead::ReadAhead;
use super::repository::{exists, lock, open_on, sound};
use super::restore::bring_back;

/// Makes the copy have what the repository has.
pub(super) fn copy_out(
    job: &Job,
    place: &Place,
    surplus: Surplus,
    link: &Link,
) -> Result<Outcome, Fault> {
    if !exists(&job.repository).map_err(|error| fault(&error))? {
        return Err(failed("there is no repository"));
    }
    // What is damaged here may be good there: it is not copied, and nothing is removed for it.
    let from = sound(Arc::new(lock(job, Access::Shared)?))?;
    let removal = match (surplus, from.damaged().next()) {
        (Surplus::Removed, None) => Removal::Mirrored,
        _ => Removal::Withheld,
    };
    let to = open(place, Access::Exclusive)?;
    let replicated = copy(&from, &to, removal, link)?;
    if replicated.withheld > 0 {
        say(&Said::Log(format!("{} files are only off-site", replicated.withheld)));
    }
    Ok(carried(replicated))
}

/// Makes the repository have what the copy has, if the job's secret opens it.
pub(super) fn copy_in(job: &Job, place: &Place, link: &Link) -> Result<Outcome, Fault> {
    let from: Arc<dyn Storage> = Arc::new(open(place, Access::Shared)?);
    open_on(job, Arc::clone(&from)).map_err(elsewhere)?;
    let from = sound(from)?;
    let to = Rationed::new(lock(job, Access::Exclusive)?, job);
    copy(&from, &to, Removal::Withheld, link).map(carried)
}

/// As [`super::restore::restore`], from the copy.
pub(super) fn restore_from(
    job: &Job,
    place: &Place,
    (snapshot, into): (&str, &str),
    link: &Link,
) -> Result<Outcome, Fault> {
    // Nobody else restores meanwhile. A repository whose lock cannot be had is one reason to be here.
    let _lock = lock(job, Access::Exclusive).map_err(|fault| say(&Said::Log(fault.problem)));
    let from = sound(Arc::new(ReadAhead::new(open(place, Access::Shared)?)?))?;
    let repository = open_on(job, Arc::new(from)).map_err(elsewhere)?;
    bring_back(job, (&repository, snapshot), into, link)
}

/// Copies, and says how far it is.
pub(super) fn copy(
    from: &dyn Storage,
    to: &dyn Storage,
    removal: Removal,
    link: &Link,
) -> Result<Replicated, Fault> {
    to.prepare()?;
    let meter = link.meter();
    meter.expect(missing(from, to)?);
    let watcher = Watcher::new(move |progress| meter.reach(progress.bytes));
    replicate(from, to, removal, &watcher).map_err(|error| replicate_fault(&error))
}

/// What a copy has done, for the agent.
pub(super) const fn carried(replicated: Replicated) -> Outcome {
    let Replicated { copied: files, copied_bytes: bytes, removed, .. } = replicated;
    Outcome::Carried { files, bytes, removed }
}

/// Bytes of files that one storage has and the other has not.
fn missing(from: &dyn Storage, to: &dyn Storage) -> Result<u64, StorageError> {
    let mut bytes = 0_u64;
    for kind in FileKind::MANY {
        let mut there = to.list(kind)?;
        there.sort_unstable();
        let here = from.list(kind)?.into_iter();
        let lacking = here.filter(|file| there.binary_search(file).is_err());
        bytes = lacking.fold(bytes, |sum, (_, size)| sum.saturating_add(u64::from(size)));
    }
    Ok(bytes)
}

fn open(place: &Place, access: Access) -> Result<S3Storage, Fault> {
    let settings = S3Settings {
        endpoint: place.endpoint.clone(),
        region: place.region.clone(),
        bucket: place.bucket.clone(),
        prefix: place.path.clone(),
        addressing: match place.addressing {
            Addressing::Path => S3Addressing::Path,
            Addressing::Host => S3Addressing::Host,
        },
        access_key: S3Secret::new(place.access_key.reveal()),
        secret_key: S3Secret::new(place.secret_key.reveal()),
        ca_file: PathBuf::from(DEBIAN_CA_FILE),
        bandwidth: place.bandwidth,
        patience: S3Patience::default(),
    };
    S3Storage::open(&settings, access).map_err(|error| fault(&error))
}

/// What does not open elsewhere says nothing about the repository here.
fn elsewhere(fault: Fault) -> Fault {
    match fault.kind {
        FaultKind::Damaged => Fault { kind: FaultKind::Failed, ..fault },
        _ => fault,
    }
}
