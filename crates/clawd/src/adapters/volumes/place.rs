//! The directory in which an instance's data directories lie, and what their names say.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use claw_core::data::DataGeneration;

use super::copy::{Pass, Passed};
use super::job::{Watch, fault};
use super::manifest::{After, Before, Instant};
use super::removal;
use super::tree::{self, Tree, io};
use crate::adapters::files::Owner;
use crate::ports::{Copied, VolumeError, Writers};

/// The identity of this boot (proc(5)).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

const REMOVING: &str = "removing";
const COPYING: &str = "copying";
const COPIED: &str = "copied";
const COPYING_ON: &str = "copying.new";
/// How a restore calls what it has not finished.
const PARTIAL: &str = "partial";

/// An instance's directory, `/var/lib/clawd/instances/<name>`. It is root's alone.
#[derive(Debug, Clone)]
pub(super) struct Place {
    home: PathBuf,
}

impl Place {
    pub(super) const fn new(home: PathBuf) -> Self {
        Self { home }
    }

    pub(super) fn path(&self) -> &Path {
        &self.home
    }

    /// A data directory.
    pub(super) fn of(&self, data: DataGeneration) -> PathBuf {
        self.home.join(data.to_string())
    }

    /// What lies beside a data directory under its name.
    fn beside(&self, data: DataGeneration, what: &str) -> PathBuf {
        self.home.join(format!("{data}.{what}"))
    }

    /// Every complete data directory.
    pub(super) fn generations(&self) -> Result<BTreeSet<DataGeneration>, VolumeError> {
        let names = self.names()?;
        let complete = |data: &DataGeneration| {
            let marker = OsString::from(format!("{data}.{COPYING}"));
            !names.contains(&marker)
        };
        let found = names.iter().filter_map(|name| DataGeneration::of_directory(name.to_str()?));
        Ok(found.filter(complete).collect())
    }

    fn names(&self) -> Result<BTreeSet<OsString>, VolumeError> {
        let failed = |error| fault("listing", &self.home, error);
        let entries = match std::fs::read_dir(&self.home) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
            Err(error) => return Err(failed(error)),
        };
        entries.map(|entry| entry.map(|entry| entry.file_name()).map_err(failed)).collect()
    }

    /// Removes what an interrupted removal has left.
    pub(super) fn sweep(&self, watch: &Watch) -> Result<(), VolumeError> {
        let left = |name: &&OsString| Path::new(name).extension() == Some(OsStr::new(REMOVING));
        for name in self.names()?.iter().filter(left) {
            self.remove_entry(name, watch)?;
        }
        Ok(())
    }

    /// Removes a data directory and everything that lies beside it under its name. It is gone at once for
    /// everybody who looks, whatever becomes of this process.
    pub(super) fn remove(&self, data: DataGeneration, watch: &Watch) -> Result<(), VolumeError> {
        let (from, to) = (self.of(data), self.beside(data, REMOVING));
        let failed = |error| fault("removing", &from, error);
        match std::fs::rename(&from, &to) {
            Ok(()) => self.sync().map_err(failed)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        for what in [REMOVING, PARTIAL, COPYING_ON, COPYING, COPIED] {
            self.remove_entry(OsStr::new(&format!("{data}.{what}")), watch)?;
        }
        if self.home.exists() {
            self.sync().map_err(failed)?;
        }
        Ok(())
    }

    fn remove_entry(&self, name: &OsStr, watch: &Watch) -> Result<(), VolumeError> {
        let path = self.home.join(name);
        let home = match Tree::open(&self.home) {
            Ok(home) => home,
            Err(error) if tree::vanished(error) => return Ok(()),
            Err(error) => return Err(fault("opening", &self.home, io(error))),
        };
        removal::remove(home.root(), name, watch)
            .map_err(|error| fault("removing", &path, io(error)))
    }

    /// One pass of a copy. The copy counts as complete once a pass has ended during which nobody wrote.
    pub(super) fn copy(
        &self,
        [from, into]: [DataGeneration; 2],
        owner: Owner,
        writers: Writers,
        watch: &Watch,
    ) -> Result<Copied, VolumeError> {
        let original = match Tree::open(&self.of(from)) {
            Ok(tree) => tree,
            Err(rustix::io::Errno::NOENT) => return Err(VolumeError::Absent(self.of(from))),
            Err(error) => return Err(fault("opening", &self.of(from), io(error))),
        };
        let path = self.of(into);
        let boot = std::fs::read_to_string(BOOT_ID);
        let boot = boot.map_err(|error| fault("reading", Path::new(BOOT_ID), error))?;
        let begun = self.begin(into).map_err(|error| fault("beginning", &path, error))?;
        let copy = Tree::open(&path).map_err(|error| fault("opening", &path, io(error)))?;
        let before = Before::open(&self.beside(into, COPYING), &boot);
        let since =
            rustix::fs::fstat(&begun).map_err(|error| fault("opening", &path, io(error)))?;
        let since = settled_before(writers, &before, Instant::modified(&since).less_a_second());
        let after = After::begin(begun, &boot, since);
        let after = after.map_err(|error| fault("noting", &path, error))?;
        if writers == Writers::Somebody {
            sync_all(&original, &path)?;
        }
        let pass = Pass { from: &original, into: &copy, owner, writers, since, watch };
        let Passed { copied, after, linked } = pass.run(before, after)?;
        after.finish(&linked).map_err(|error| fault("noting", &path, error))?;
        if writers != Writers::Held {
            sync_all(&copy, &path)?;
        }
        self.end(into, writers).map_err(|error| fault("completing", &path, error))?;
        Ok(copied)
    }

    /// Marks the copy as incomplete, durably, makes its directory and the file of the new record.
    fn begin(&self, into: DataGeneration) -> io::Result<File> {
        let marker = self.beside(into, COPYING);
        if !marker.exists() {
            match std::fs::rename(self.beside(into, COPIED), &marker) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    new_file(&marker)?.sync_all()?;
                }
                renamed => renamed?,
            }
            self.sync()?;
        }
        match DirBuilder::new().mode(0o700).create(self.of(into)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made?,
        }
        new_file(&self.beside(into, COPYING_ON))
    }

    /// Keeps the record of a pass that has ended well, and with it the copy's state.
    fn end(&self, into: DataGeneration, writers: Writers) -> io::Result<()> {
        let marker = self.beside(into, COPYING);
        std::fs::rename(self.beside(into, COPYING_ON), &marker)?;
        match writers {
            Writers::Held => return Ok(()),
            Writers::Somebody => {}
            Writers::Nobody => std::fs::rename(&marker, self.beside(into, COPIED))?,
        }
        self.sync()
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.home)?.sync_all()
    }
}

/// Only what was changed before this instant is settled.
///
/// A file that is mapped can be changed again and again without its times telling, until what was changed
/// first is written out. So with writers about, a pass begins with writing everything out; one that has no
/// time for that goes by what the last one has written out.
fn settled_before(writers: Writers, before: &Before, now: Instant) -> Instant {
    match writers {
        Writers::Nobody | Writers::Somebody => now,
        Writers::Held => before.since().unwrap_or_default().min(now),
    }
}

/// An empty file for the agent alone.
fn new_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

/// Makes everything durable that was written to the file system of a tree.
fn sync_all(tree: &Tree, path: &Path) -> Result<(), VolumeError> {
    rustix::fs::syncfs(tree.root()).map_err(|error| fault("writing out", path, io(error)))
}
