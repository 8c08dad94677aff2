//! A snapshot as an archive that goes through the pipe, and an archive that comes through it as a snapshot.

use std::fs::DirBuilder;
use std::io::{Read, Write as _};
use std::os::unix::fs::DirBuilderExt as _;

use claw_snapshot::{Access, ArchiveOrigin, Owner, UnpackLimits, Watcher, unpack};

use super::errors::{export_fault, fault, not_found, unpack_fault};
use super::link::{Link, say};
use super::pieces::Outgoing;
use super::protocol::{Fault, Job, Outcome, Said, Take};
use super::repository::{exists, find, open_or_make, open_sound, stored, sweep, unpacking};
use super::restore::doing;
use super::room::{PER_FILE, Room};
use super::take::take_new;

/// Files, directories and links of an archive at most; memory grows with them.
const MOST_ENTRIES: u64 = 1_000_000;
/// What is unpacked is then written into the repository as well.
const COPIES: u64 = 2;
/// The part of the room that goes to blocks and inodes of small files.
const FOR_ENTRIES: u64 = 8;

/// Writes a snapshot into the pipe.
pub(super) fn export(job: &Job, snapshot: &str, link: &Link) -> Result<Outcome, Fault> {
    if !exists(&job.repository).map_err(|error| fault(&error))? {
        return Err(not_found(snapshot));
    }
    let repository = open_sound(job, Access::Shared)?;
    let found = find(&repository, snapshot)?.ok_or_else(|| not_found(snapshot))?;
    let meter = link.meter();
    meter.expect(found.bytes.unwrap_or_default());
    let watcher = Watcher::new(move |progress| meter.reach(progress.bytes));
    let mut out = Outgoing::new();
    repository.export(found.id, &mut out, &watcher).map_err(|error| export_fault(&error))?;
    out.flush().map_err(|error| fault(&error))?;
    Ok(Outcome::Nothing)
}

/// Takes a snapshot of the archive that comes; one of that name is there already when a try ended after its
/// last step.
pub(super) fn import(job: &Job, order: &Take, link: &Link) -> Result<Outcome, Fault> {
    let repository = open_or_make(job)?;
    if let Some(snapshot) = find(&repository, &order.name)? {
        return Ok(Outcome::Taken(stored(&snapshot)));
    }
    let home = &job.home;
    let made = DirBuilder::new().recursive(true).mode(0o700).create(home);
    made.map_err(doing("making", home))?;
    let into = unpacking(job);
    let limits = limits(job)?;
    let meter = link.meter();
    let mut incoming = link.incoming();
    let counted = Counted { reader: &mut incoming, count: 0, tell: |bytes| meter.reach(bytes) };
    let taken = unpack(counted, &into, limits)
        .map_err(|error| unpack_fault(&error))
        // An archive may be whole and its sender not content with it.
        .and_then(|unpacked| incoming.finish().map(|()| unpacked).map_err(|error| fault(&error)))
        .and_then(|unpacked| {
            tell_beside(&unpacked.origin);
            take_new(job, order, (&repository, &unpacked.data), &link.meter())
        });
    let swept = sweep(&into);
    let taken = taken?;
    swept.map(|()| taken)
}

/// A workspace or a configuration outside of the state directory has no place in an instance.
fn tell_beside(origin: &ArchiveOrigin) {
    let ArchiveOrigin::OpenClaw(backup) = origin else { return };
    for asset in &backup.beside {
        let (kind, source) = (&asset.kind, asset.source.display());
        say(&Said::Log(format!("the {kind} at {source} is outside of the state, and left out")));
    }
}

/// What an archive may become, of the room that there is.
fn limits(job: &Job) -> Result<UnpackLimits, Fault> {
    let room = Room::look(&job.home, job.reserve)?;
    let usable = room.usable();
    let entries = (usable / FOR_ENTRIES / PER_FILE).min(room.files).min(MOST_ENTRIES);
    let owner = Owner::Given { user: job.owner.user, group: job.owner.group };
    Ok(UnpackLimits { entries, bytes: usable / COPIES, owner })
}

/// Says how much was read.
struct Counted<R, F> {
    reader: R,
    count: u64,
    tell: F,
}

impl<R: Read, F: Fn(u64)> Read for Counted<R, F> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.reader.read(buffer)?;
        self.count = self.count.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
        (self.tell)(self.count);
        Ok(count)
    }
}
