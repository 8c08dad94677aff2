//! Bringing a snapshot back, into a directory that gets its name when it is complete.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use claw_snapshot::{Access, Repository, Subtree, Watcher};

use super::errors::{failed, fault, not_found, restore_fault};
use super::link::Link;
use super::protocol::{Fault, Job, Outcome};
use super::repository::{exists, find, open_sound, sweep};
use super::room;

/// What half-made directories are called: `gen-3.partial`.
const PARTIAL: &str = "partial";

/// Restores a snapshot as a directory that must not exist. When it fails, the directory does not.
pub(super) fn restore(
    job: &Job,
    snapshot: &str,
    into: &str,
    link: &Link,
) -> Result<Outcome, Fault> {
    if !exists(&job.repository).map_err(|error| fault(&error))? {
        return Err(not_found(snapshot));
    }
    let repository = open_sound(job, Access::Exclusive)?;
    bring_back(job, (&repository, snapshot), into, link)
}

/// As [`restore`], from any repository that is open.
pub(super) fn bring_back(
    job: &Job,
    (repository, snapshot): (&Repository, &str),
    into: &str,
    link: &Link,
) -> Result<Outcome, Fault> {
    let found = find(repository, snapshot)?.ok_or_else(|| not_found(snapshot))?;
    let target = job.home.join(into);
    let partial = target.with_added_extension(PARTIAL);
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&job.home)
        .map_err(doing("making", &job.home))?;
    if fs::symlink_metadata(&target).is_ok() {
        return Err(failed(format!("{} exists already", target.display())));
    }
    sweep(&partial)?;
    let (bytes, files) = (found.bytes.unwrap_or_default(), found.files.unwrap_or_default());
    let needed = bytes.saturating_add(files.saturating_mul(room::PER_FILE));
    room::claim(&job.home, needed, job.reserve)?;
    let meter = link.meter();
    meter.expect(bytes);
    let watcher = Watcher::new(move |progress| meter.reach(progress.bytes));
    repository
        .restore(found.id, &Subtree::data(), &partial, &watcher)
        .map_err(|error| restore_fault(&error))?;
    let named = fs::rename(&partial, &target).and_then(|()| File::open(&job.home)?.sync_all());
    if let Err(error) = named {
        _ = fs::remove_dir_all(&partial);
        return Err(doing("naming", &target)(error));
    }
    Ok(Outcome::Nothing)
}

/// What was done to what, before an error.
pub(super) fn doing(what: &'static str, path: &Path) -> impl Fn(io::Error) -> Fault {
    move |error| {
        let said = fault(&error);
        Fault { problem: format!("{what} {}: {}", path.display(), said.problem), ..said }
    }
}
