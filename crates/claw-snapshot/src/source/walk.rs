//! The walk over a data directory: depth first, names in order, no link followed.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::iter::Peekable;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use claw_core::time::Timestamp;
use nix::libc::{ELOOP, O_DIRECTORY, O_NOFOLLOW};
use rustic_core::ReadSourceEntry;

use super::compact::CompactNode;
use super::ledger::{Ledger, Listing, Remembered, SourceFaultReason};
use super::node::{self, Fingerprint};
use super::reader::Content;
use super::{DATA, Source, Unopened, path_in_snapshot};

/// Gives the data directory itself, then everything below it.
#[derive(Debug)]
pub(crate) struct Walk {
    source: Source,
    ledger: Arc<Ledger>,
    start: Timestamp,
    device: u64,
    begun: bool,
    stack: Vec<Level>,
    listing: Listing,
}

/// A directory on the way down.
#[derive(Debug)]
struct Level {
    directory: Arc<OwnedFd>,
    /// Relative to the data directory.
    path: PathBuf,
    names: std::vec::IntoIter<OsString>,
    /// Of a listing: files that were in it then, names in order.
    remembered: Peekable<std::vec::IntoIter<Remembered>>,
}

type Entry = ReadSourceEntry<Unopened>;

/// An entry of a source that was listed before.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one at a time, and it is taken apart")]
pub(super) enum Step {
    /// A file in the state in which it was listed, by its path relative to the data directory.
    Unchanged(PathBuf, CompactNode),
    /// Anything else.
    Read(Entry),
}

impl Walk {
    pub(crate) fn new(source: &Source, ledger: Arc<Ledger>) -> Self {
        let start = ledger.start;
        let (source, listing) = (source.clone(), Listing::default());
        Self { source, ledger, start, device: 0, begun: false, stack: Vec::new(), listing }
    }

    /// A walk that compares with a listing: see [`Walk::step`].
    pub(super) fn again(source: &Source, ledger: Arc<Ledger>, listing: Listing) -> Self {
        Self { listing, ..Self::new(source, ledger) }
    }

    /// The next entry. Of a file that is as it was listed nothing is read but its state: whatever
    /// changes of a file, its change time does.
    pub(super) fn step(&mut self) -> Option<Step> {
        if !self.begun {
            self.begun = true;
            return self.begin().map(Step::Read);
        }
        loop {
            let level = self.stack.last_mut()?;
            let Some(name) = level.names.next() else {
                self.stack.pop();
                continue;
            };
            if let Some(node) = level.unchanged(&name) {
                return Some(Step::Unchanged(level.path.join(&name), node));
            }
            if let Some(entry) = self.visit(&name) {
                return Some(Step::Read(entry));
            }
        }
    }

    fn level(&mut self, directory: Arc<OwnedFd>, path: PathBuf) -> io::Result<Level> {
        let names = names_in(&directory)?;
        let remembered = self.listing.0.remove(path.as_os_str()).unwrap_or_default();
        Ok(Level { directory, path, names, remembered: remembered.into_iter().peekable() })
    }

    /// The data directory itself. Without it there is no snapshot, moving or not.
    fn begin(&mut self) -> Option<Entry> {
        let unreadable = |source| SourceFaultReason::Unreadable { doing: "opening", source };
        let opened = open_directory(&self.source.root).map_err(|fault| match fault.kind() {
            io::ErrorKind::NotADirectory => SourceFaultReason::NoDirectory,
            _ => unreadable(fault),
        });
        let begun = opened.and_then(|file| {
            let metadata = file.metadata().map_err(unreadable)?;
            let directory = Arc::new(OwnedFd::from(file));
            let path = path_of(&directory);
            // The path ends in a link to the directory itself; `.` is the directory.
            let node = node::of_entry(&path.join("."), DATA.as_ref(), &metadata, self.start)
                .map_err(unreadable)?;
            self.device = metadata.dev();
            let level = self.level(directory, PathBuf::new()).map_err(unreadable)?;
            self.stack.push(level);
            Ok(ReadSourceEntry { path: path_in_snapshot(Path::new("")), node, open: None })
        });
        match begun {
            Ok(entry) => {
                self.ledger.directory();
                Some(entry)
            }
            Err(reason) => {
                self.ledger.fault(Path::new(""), reason);
                None
            }
        }
    }

    /// The entry of this name in the innermost directory, when there is something to give.
    fn visit(&mut self, name: &OsString) -> Option<Entry> {
        let level = self.stack.last()?;
        let directory = Arc::clone(&level.directory);
        let path = level.path.join(name);
        match self.read_entry(directory, &path, name) {
            Ok(entry) => entry,
            Err(fault) if is_another(&fault) => {
                self.ledger.vanished(&path);
                None
            }
            Err(source) => {
                let reason = SourceFaultReason::Unreadable { doing: "reading", source };
                self.ledger.fault(&path, reason);
                None
            }
        }
    }

    fn read_entry(
        &mut self,
        directory: Arc<OwnedFd>,
        path: &Path,
        name: &OsString,
    ) -> io::Result<Option<Entry>> {
        let reach = path_of(&directory).join(name);
        let metadata = fs::symlink_metadata(&reach)?;
        let kind = metadata.file_type();
        if metadata.dev() != self.device {
            self.ledger.fault(path, SourceFaultReason::OtherFileSystem);
            return Ok(None);
        }
        if !(kind.is_dir() || kind.is_file() || kind.is_symlink()) {
            self.ledger.special();
            return Ok(None);
        }
        let node = node::of_entry(&reach, name, &metadata, self.start)?;
        let listed = Fingerprint::of(&metadata);
        let mut open = None;
        if kind.is_dir() {
            if !self.descend(&reach, path, &listed)? {
                return Ok(None);
            }
            self.ledger.directory();
        } else {
            self.ledger.file(if kind.is_file() { listed.size() } else { 0 });
            if kind.is_file() {
                let above = path.parent().unwrap_or_else(|| Path::new(""));
                self.ledger.remember(above, name, listed, &node);
                let ledger = Arc::clone(&self.ledger);
                open = Some(Unopened(Content::file(directory, path.to_owned(), listed, ledger)));
            }
        }
        Ok(Some(ReadSourceEntry { path: path_in_snapshot(path), node, open }))
    }

    /// Goes into a directory; false when it is not the listed one any more.
    fn descend(&mut self, reach: &Path, path: &Path, listed: &Fingerprint) -> io::Result<bool> {
        let top = self.stack.len() == 1;
        if top && path.file_name().is_some_and(|name| self.source.leave_out.contains(name)) {
            return Ok(true);
        }
        let file = open_directory(reach)?;
        if !Fingerprint::of(&file.metadata()?).is_same_file(listed) {
            self.ledger.vanished(path);
            return Ok(false);
        }
        let directory = Arc::new(OwnedFd::from(file));
        let level = self.level(directory, path.to_owned())?;
        self.stack.push(level);
        Ok(true)
    }
}

impl Iterator for Walk {
    type Item = Entry;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            // Without a listing nothing is known to be unchanged.
            if let Step::Read(entry) = self.step()? {
                return Some(entry);
            }
        }
    }
}

impl Level {
    /// The node of a file that is in the state in which it was listed.
    fn unchanged(&mut self, name: &OsStr) -> Option<CompactNode> {
        while self.remembered.next_if(|file| *file.name < *name).is_some() {}
        let file = self.remembered.next_if(|file| *file.name == *name)?;
        let found = Fingerprint::at(&self.directory, name).ok()?;
        (found == file.listed).then_some(file.node)
    }
}

/// A path that leads to what is in an open directory, whatever happens to the directory's name.
fn path_of(directory: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()))
}

/// Whether it failed because what was listed is gone, or something else by now.
fn is_another(fault: &io::Error) -> bool {
    matches!(fault.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
        || fault.raw_os_error() == Some(ELOOP)
}

pub(crate) fn open_directory(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(O_DIRECTORY | O_NOFOLLOW).open(path)
}

/// Names in byte order: the order in which trees are stored.
fn names_in(directory: &OwnedFd) -> io::Result<std::vec::IntoIter<OsString>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(path_of(directory))? {
        names.push(entry?.file_name());
    }
    names.sort_unstable();
    Ok(names.into_iter())
}
