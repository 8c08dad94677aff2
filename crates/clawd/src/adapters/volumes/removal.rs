//! Removing trees, however deep they are.
//!
//! A tree is made flat while it is removed: directories are moved up to its top. So it takes neither a deep
//! stack nor many open files, and no path that could be too long.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::job::Watch;
use super::tree;

/// Removes an entry of an open directory, with everything below it; gone is success.
pub(super) fn remove(parent: &OwnedFd, name: &OsStr, watch: &Watch) -> rustix::io::Result<()> {
    while unlink(parent, name)? == Kind::Directory {
        let Some(top) = open(parent, name)? else { continue };
        empty(&top, watch)?;
        // Not empty: somebody is still writing.
        gone_is_fine(rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR))?;
        going_on(watch)?;
    }
    Ok(())
}

fn going_on(watch: &Watch) -> rustix::io::Result<()> {
    watch.add(0);
    if watch.is_given_up() { Err(Errno::INTR) } else { Ok(()) }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Directory,
    /// Anything else; it is gone now.
    Other,
}

/// Removes whatever is no directory.
fn unlink(parent: &OwnedFd, name: &OsStr) -> rustix::io::Result<Kind> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(Kind::Other),
        Err(Errno::ISDIR | Errno::PERM) => match tree::stat(parent, name)? {
            Some(stat) if tree::kind(&stat) == rustix::fs::FileType::Directory => {
                Ok(Kind::Directory)
            }
            Some(_) => Err(Errno::PERM),
            None => Ok(Kind::Other),
        },
        Err(error) => Err(error),
    }
}

fn open(parent: &OwnedFd, name: &OsStr) -> rustix::io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(parent, name, flags, Mode::empty()) {
        Ok(dir) => Ok(Some(dir)),
        Err(error) if tree::vanished(error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Removes everything in a directory. Its subdirectories are moved up into it first.
fn empty(top: &OwnedFd, watch: &Watch) -> rustix::io::Result<()> {
    let mut next = 0_u64;
    loop {
        let names = tree::names(top)?;
        if names.is_empty() {
            return Ok(());
        }
        for name in names {
            going_on(watch)?;
            if unlink(top, &name)? == Kind::Directory {
                let Some(dir) = open(top, &name)? else { continue };
                flatten(&dir, top, &mut next)?;
                gone_is_fine(rustix::fs::unlinkat(top, &name, AtFlags::REMOVEDIR))?;
            }
        }
    }
}

/// Removes what is no directory in `dir`, and moves what is one to `top`.
fn flatten(dir: &OwnedFd, top: &OwnedFd, next: &mut u64) -> rustix::io::Result<()> {
    for name in tree::names(dir)? {
        if unlink(dir, &name)? == Kind::Other {
            continue;
        }
        loop {
            *next += 1;
            let up = OsString::from(format!(".clawd-removing-{next}"));
            match rustix::fs::renameat_with(dir, &name, top, &up, RenameFlags::NOREPLACE) {
                Err(Errno::EXIST) => {}
                Ok(()) | Err(Errno::NOENT) => break,
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

fn gone_is_fine(result: rustix::io::Result<()>) -> rustix::io::Result<()> {
    match result {
        // What is there then is looked at again.
        Err(Errno::NOENT | Errno::NOTEMPTY | Errno::NOTDIR) => Ok(()),
        other => other,
    }
}
