//! One pass of a copy: a walk over the original, during which the copy is made the same.
//!
//! Per directory: what the original has not is removed from the copy, files and links are compared and
//! written anew where they differ, then the directories below it, last its own attributes. A file is never
//! changed in place: it is removed and made, so whatever was planted under its name is never opened.
//! Both directories are opened by their path from the top, which follows no link, and closed again: open
//! files and the stack do not grow with the depth of the tree.
//!
//! Sockets, pipes and devices are left out.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, Stat, Uid};
use rustix::io::Errno;

use super::attributes::{Attributes, times};
use super::contents::{Contents, Ending};
use super::job::{Watch, fault};
use super::manifest::{After, Before, Instant, Known, Seen};
use super::tree::{self, Tree, io, kind};
use super::{measure, removal};
use crate::adapters::files::Owner;
use crate::ports::{Copied, VolumeError, Writers};

/// What is not copied: it is made empty.
const SCRATCH: &str = "tmp";

/// A pass that has not begun.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pass<'a> {
    /// The original.
    pub(super) from: &'a Tree,
    /// The copy.
    pub(super) into: &'a Tree,
    /// Whose the copy's own directory is.
    pub(super) owner: Owner,
    /// Whether somebody writes to the original.
    pub(super) writers: Writers,
    /// Files that were changed at or after this instant are not settled: they are copied again next time.
    pub(super) since: Instant,
    /// Who watches.
    pub(super) watch: &'a Watch,
}

/// A pass that has ended well.
#[derive(Debug)]
pub(super) struct Passed {
    /// What it has done.
    pub(super) copied: Copied,
    /// Its record.
    pub(super) after: After,
    /// What belongs at the end of the record.
    pub(super) linked: Vec<Known>,
}

impl Pass<'_> {
    /// Walks.
    pub(super) fn run(self, before: Before, after: After) -> Result<Passed, VolumeError> {
        let mut walk = Walk {
            pass: self,
            before,
            after,
            contents: Contents::new(),
            linked: BTreeMap::new(),
            copied: Copied::default(),
        };
        if self.writers == Writers::Somebody || walk.before.is_empty() {
            let found = measure::contents(self.from, self.watch)?;
            self.watch.expect(found);
        }
        let mut open = vec![Visit::Enter(PathBuf::new())];
        while let Some(visit) = open.pop() {
            match visit {
                Visit::Enter(dir) => walk.enter(dir, &mut open)?,
                Visit::Leave(left) => walk.leave(&left)?,
            }
        }
        let linked = walk.known_links()?;
        let shared = walk.copied.files > 0 && walk.contents.shared() == walk.copied.files;
        Ok(Passed { copied: Copied { shared, ..walk.copied }, after: walk.after, linked })
    }
}

#[derive(Debug)]
enum Visit {
    Enter(PathBuf),
    Leave(Box<Left>),
}

/// A directory whose entries are done.
#[derive(Debug)]
struct Left {
    dir: PathBuf,
    attributes: Attributes,
    changed: Instant,
}

/// A directory and its copy, open.
#[derive(Debug)]
struct Both {
    dir: PathBuf,
    from: OwnedFd,
    into: OwnedFd,
}

/// A file with several names: the first one that was met.
#[derive(Debug)]
struct Link {
    dir: PathBuf,
    name: OsString,
    original: Seen,
    /// The copy may count as unchanged next time.
    settled: bool,
}

#[derive(Debug)]
struct Walk<'a> {
    pass: Pass<'a>,
    before: Before,
    after: After,
    contents: Contents,
    linked: BTreeMap<u64, Link>,
    copied: Copied,
}

impl Walk<'_> {
    fn enter(&mut self, dir: PathBuf, open: &mut Vec<Visit>) -> Result<(), VolumeError> {
        let Some(from) = self.tolerate(self.pass.from.dir(&dir), &dir)? else { return Ok(()) };
        let into = self.pass.into.dir(&dir).map_err(|error| self.written(&dir, error))?;
        let stat = rustix::fs::fstat(&from).map_err(|error| self.read(&dir, error))?;
        let attributes = Attributes::of(&from, &stat).map_err(|error| self.read(&dir, error))?;
        let scratch = dir == Path::new(SCRATCH);
        let names = if scratch { Ok(Vec::new()) } else { tree::names(&from) };
        let names = names.map_err(|error| self.read(&dir, error))?;
        let there = tree::names(&into).map_err(|error| self.written(&dir, error))?;
        let mut there: BTreeSet<OsString> = there.into_iter().collect();
        let both = Both { dir, from, into };
        let mut below = Vec::new();
        for name in names {
            self.pass.watch.step(&both.dir)?;
            there.remove(&name);
            if self.entry(&both, &name)? {
                below.push(Visit::Enter(both.dir.join(name)));
            }
        }
        for name in there {
            self.remove(&both, &name)?;
        }
        let Both { dir, .. } = both;
        let attributes = if dir.as_os_str().is_empty() {
            attributes.owned(self.pass.owner.uid, self.pass.owner.gid, 0o700)
        } else {
            attributes
        };
        let changed = Instant::changed(&stat);
        open.push(Visit::Leave(Box::new(Left { dir, attributes, changed })));
        open.extend(below.into_iter().rev());
        Ok(())
    }

    fn leave(&self, left: &Left) -> Result<(), VolumeError> {
        let into = self.pass.into.dir(&left.dir);
        let given = into.and_then(|into| left.attributes.give(&into));
        given.map_err(|error| self.written(&left.dir, error))?;
        if self.pass.writers != Writers::Somebody {
            let now = self.pass.from.dir(&left.dir).and_then(|from| rustix::fs::fstat(&from));
            let now = now.map_err(|error| self.read(&left.dir, error))?;
            if Instant::changed(&now) != left.changed {
                return Err(self.changed(&left.dir));
            }
        }
        Ok(())
    }

    /// Makes one entry the same; true for a directory, which is still to be entered.
    fn entry(&mut self, both: &Both, name: &OsStr) -> Result<bool, VolumeError> {
        let path = both.dir.join(name);
        let stat = tree::stat(&both.from, name).map_err(|error| self.read(&path, error))?;
        let there = tree::stat(&both.into, name).map_err(|error| self.written(&path, error))?;
        let Some(stat) = stat else {
            self.tolerate::<()>(Err(Errno::NOENT), &path)?;
            self.remove(both, name)?;
            return Ok(false);
        };
        match kind(&stat) {
            FileType::Directory => {
                self.directory(both, name, there.as_ref())?;
                return Ok(true);
            }
            FileType::RegularFile => self.file(both, name, &stat, there.as_ref())?,
            FileType::Symlink => self.symlink(both, name, &stat, there.as_ref())?,
            _special => self.remove(both, name)?,
        }
        Ok(false)
    }

    fn directory(
        &self,
        both: &Both,
        name: &OsStr,
        there: Option<&Stat>,
    ) -> Result<(), VolumeError> {
        if there.is_some_and(|there| kind(there) == FileType::Directory) {
            return Ok(());
        }
        self.remove(both, name)?;
        rustix::fs::mkdirat(&both.into, name, Mode::RWXU)
            .map_err(|error| self.written(&both.dir.join(name), error))
    }

    fn symlink(
        &self,
        both: &Both,
        name: &OsStr,
        stat: &Stat,
        there: Option<&Stat>,
    ) -> Result<(), VolumeError> {
        let path = both.dir.join(name);
        let target = rustix::fs::readlinkat(&both.from, name, Vec::new());
        // It may have become something else, which readlinkat(2) refuses.
        let target = if target == Err(Errno::INVAL) { Err(Errno::LOOP) } else { target };
        let Some(target) = self.tolerate(target, &path)? else { return self.remove(both, name) };
        let attributes = |stat: &Stat| (stat.st_uid, stat.st_gid, Instant::modified(stat));
        let same = there.is_some_and(|there| {
            kind(there) == FileType::Symlink
                && attributes(there) == attributes(stat)
                && rustix::fs::readlinkat(&both.into, name, Vec::new()).as_ref() == Ok(&target)
        });
        if same {
            return Ok(());
        }
        self.remove(both, name)?;
        let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
        let itself = AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::symlinkat(&target, &both.into, name)
            .and_then(|()| rustix::fs::chownat(&both.into, name, Some(uid), Some(gid), itself))
            .and_then(|()| rustix::fs::utimensat(&both.into, name, &times(stat), itself))
            .map_err(|error| self.written(&path, error))
    }

    fn file(
        &mut self,
        both: &Both,
        name: &OsStr,
        stat: &Stat,
        there: Option<&Stat>,
    ) -> Result<(), VolumeError> {
        let recorded = self.before.find(&both.dir, name);
        if stat.st_nlink > 1 {
            return self.linked(both, name, stat, there);
        }
        let now = there.map(|copy| Known { original: Seen::of(stat), copy: Seen::of(copy) });
        let known = match now.filter(|now| recorded == Some(*now)) {
            Some(known) => {
                self.pass.watch.add(tree::size(stat));
                Some(known)
            }
            None => self.write(both, name, there)?.and_then(Written::settled),
        };
        known.map_or(Ok(()), |known| self.note(both, name, &known))
    }

    fn note(&mut self, both: &Both, name: &OsStr, known: &Known) -> Result<(), VolumeError> {
        let noted = self.after.note(&both.dir, name, known);
        noted.map_err(|error| fault("noting", &self.pass.into.full(&both.dir.join(name)), error))
    }

    /// A file with several names: the first one that is met is copied, the others become its names.
    fn linked(
        &mut self,
        both: &Both,
        name: &OsStr,
        stat: &Stat,
        there: Option<&Stat>,
    ) -> Result<(), VolumeError> {
        let original = Seen::of(stat);
        let now = there.map(|copy| Known { original, copy: Seen::of(copy) });
        let same = now.is_some() && now == self.before.linked(stat.st_ino);
        if let Some(first) =
            self.linked.get(&stat.st_ino).filter(|first| first.original == original)
        {
            return if same { Ok(()) } else { self.link(both, name, first) };
        }
        let settled = if same {
            self.pass.watch.add(tree::size(stat));
            true
        } else {
            let Some(written) = self.write(both, name, there)? else { return Ok(()) };
            written.settled().is_some_and(|known| known.original == original)
        };
        let (dir, name) = (both.dir.clone(), name.to_owned());
        self.linked.insert(stat.st_ino, Link { dir, name, original, settled });
        Ok(())
    }

    /// Gives a copy another name.
    fn link(&self, both: &Both, name: &OsStr, first: &Link) -> Result<(), VolumeError> {
        self.remove(both, name)?;
        let linked = self.pass.into.dir(&first.dir).and_then(|dir| {
            rustix::fs::linkat(&dir, &first.name, &both.into, name, AtFlags::empty())
        });
        linked.map_err(|error| self.written(&both.dir.join(name), error))
    }

    /// What is to be known of files with several names, once all of these are made.
    fn known_links(&self) -> Result<Vec<Known>, VolumeError> {
        let mut known = Vec::new();
        for link in self.linked.values().filter(|link| link.settled) {
            let dir = self.pass.into.dir(&link.dir);
            let copy = dir.and_then(|dir| tree::stat(&dir, &link.name));
            let copy = copy.map_err(|error| self.written(&link.dir.join(&link.name), error))?;
            let copy = copy.as_ref().map(Seen::of);
            known.extend(copy.map(|copy| Known { original: link.original, copy }));
        }
        Ok(known)
    }

    /// Copies a file; none if there is none any more.
    fn write(
        &mut self,
        both: &Both,
        name: &OsStr,
        there: Option<&Stat>,
    ) -> Result<Option<Written>, VolumeError> {
        let path = both.dir.join(name);
        if there.is_some() {
            self.remove(both, name)?;
        }
        let from = tree::open_file(&both.from, name);
        let Some(from) = self.tolerate(from, &path)? else { return Ok(None) };
        let stat = rustix::fs::fstat(&from).map_err(|error| self.read(&path, error))?;
        if kind(&stat) != FileType::RegularFile {
            return self.tolerate(Err(Errno::NOENT), &path);
        }
        let attributes = Attributes::of(&from, &stat).map_err(|error| self.read(&path, error))?;
        let into = tree::create_file(&both.into, name);
        let into = into.map_err(|error| self.written(&path, error))?;
        let ending = self.contents.copy(&from, &into, &stat, self.pass.watch);
        let ending = ending.map_err(|error| self.written(&path, error))?;
        self.pass.watch.step(&path)?;
        attributes.give(&into).map_err(|error| self.written(&path, error))?;
        let copy = rustix::fs::fstat(&into).map_err(|error| self.written(&path, error))?;
        let after = rustix::fs::fstat(&from).map_err(|error| self.read(&path, error))?;
        let original = Seen::of(&stat);
        let whole = ending == Ending::Whole && original == Seen::of(&after);
        if !whole && self.pass.writers != Writers::Somebody {
            return Err(self.changed(&path));
        }
        self.copied.files += 1;
        self.copied.bytes += tree::size(&stat);
        let settled = whole && !original.is_since(self.pass.since);
        Ok(Some(Written { known: Known { original, copy: Seen::of(&copy) }, settled }))
    }

    /// Removes an entry of the copy, whatever it is.
    fn remove(&self, both: &Both, name: &OsStr) -> Result<(), VolumeError> {
        removal::remove(&both.into, name, self.pass.watch)
            .map_err(|error| self.written(&both.dir.join(name), error))
    }

    /// None for what went away, if somebody may have removed it.
    fn tolerate<T>(
        &self,
        result: rustix::io::Result<T>,
        path: &Path,
    ) -> Result<Option<T>, VolumeError> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error) if tree::vanished(error) && self.pass.writers == Writers::Somebody => {
                Ok(None)
            }
            Err(error) => Err(self.read(path, error)),
        }
    }

    fn read(&self, path: &Path, error: Errno) -> VolumeError {
        fault("reading", &self.pass.from.full(path), io(error))
    }

    fn written(&self, path: &Path, error: Errno) -> VolumeError {
        fault("writing", &self.pass.into.full(path), io(error))
    }

    fn changed(&self, path: &Path) -> VolumeError {
        let source = std::io::Error::other("it was changed meanwhile");
        fault("copying", &self.pass.from.full(path), source)
    }
}

/// A file that was written.
#[derive(Debug, Clone, Copy)]
struct Written {
    known: Known,
    settled: bool,
}

impl Written {
    /// What the next pass may rely on.
    fn settled(self) -> Option<Known> {
        self.settled.then_some(self.known)
    }
}
