//! An open directory, and what is done in it without following symbolic links.
//!
//! Sources: openat2(2) for the `RESOLVE_` flags, rename(2) and fsync(2) for what survives a power
//! cut: a file is there whole, under its name, once both it and its directory were synced.

use std::ffi::OsStr;
use std::fs::{DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, mkdirat};
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, unlinkat};

/// Name of a file while it is written. No delivered file can have it: it is hidden.
const UNFINISHED: &str = ".clawd-unfinished";

/// User and group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// An open directory.
#[derive(Debug)]
pub(super) struct Dir(File);

impl Dir {
    /// Opens a directory whose parents belong to root. It must not be a symbolic link itself.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = nix::fcntl::open(path, flags, Mode::empty())?;
        Ok(Self(File::from(fd)))
    }

    /// Makes a directory with its parents, all of them root's alone, and opens it.
    pub(super) fn make_private(path: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        Self::open(path)
    }

    /// Opens the directory `name`, making it if it is absent.
    pub(super) fn make_dir(&self, name: &str, owner: Owner) -> io::Result<Self> {
        let made = match mkdirat(&self.0, name, Mode::S_IRWXU) {
            Ok(()) => true,
            Err(Errno::EEXIST) => false,
            Err(error) => return Err(error.into()),
        };
        let dir = Self(File::from(self.open_below(name, OFlag::O_DIRECTORY, Mode::empty())?));
        if made {
            dir.set(owner, 0o700)?;
            self.sync()?;
        }
        Ok(dir)
    }

    /// Gives the directory its owner and mode.
    pub(super) fn set(&self, owner: Owner, mode: u32) -> io::Result<()> {
        set(&self.0, owner, mode)
    }

    /// Whether the directory has this owner and mode.
    pub(super) fn is(&self, owner: Owner, mode: u32) -> io::Result<bool> {
        Ok(is(&fstat(&self.0)?, owner, mode))
    }

    /// Whether the directory lies on tmpfs.
    pub(super) fn is_on_tmpfs(&self) -> io::Result<bool> {
        Ok(fstatfs(&self.0)?.filesystem_type() == TMPFS_MAGIC)
    }

    /// Whether the relative path leads to a regular file without passing a symbolic link.
    pub(super) fn has_file(&self, path: &str) -> io::Result<bool> {
        // O_PATH: a FIFO that a container left there must not block.
        match self.open_below(path, OFlag::O_PATH | OFlag::O_NOFOLLOW, Mode::empty()) {
            Ok(fd) => Ok(is_regular(&fstat(&fd)?)),
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads a regular file of at most `limit` bytes that has this owner and mode; `None` for
    /// anything else. For directories that nobody but root can change.
    pub(super) fn read_own(
        &self,
        name: &OsStr,
        owner: Owner,
        mode: u32,
        limit: u64,
    ) -> io::Result<Option<Vec<u8>>> {
        let opened = self.open_below(name, OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK, Mode::empty());
        let file = match opened {
            Ok(fd) => File::from(fd),
            Err(Errno::ENOENT | Errno::ELOOP) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let stat = fstat(&file)?;
        if !is_regular(&stat) || !is(&stat, owner, mode) {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        (&file).take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
        let within = u64::try_from(bytes.len()).is_ok_and(|length| length <= limit);
        Ok(within.then_some(bytes))
    }

    /// Writes a file atomically: it is there whole, or as it was before. A symbolic link in its
    /// place is replaced, not followed.
    pub(super) fn write(
        &self,
        name: &str,
        content: &[u8],
        owner: Owner,
        mode: u32,
    ) -> io::Result<()> {
        let written = self.write_unfinished(content, owner, mode).and_then(|()| {
            renameat(&self.0, UNFINISHED, &self.0, name)?;
            self.sync()
        });
        if written.is_err() {
            let _best_effort = self.unlink(UNFINISHED);
        }
        written
    }

    /// Makes sure that `name` is a regular file, empty if it has to be made. Whatever else lies
    /// there is moved out of the way, never deleted.
    pub(super) fn make_placeholder(&self, name: &str, owner: Owner) -> io::Result<()> {
        if self.has_file(name)? {
            return Ok(());
        }
        let aside = format!("{name}.set-aside");
        match renameat(&self.0, name, &self.0, aside.as_str()) {
            Ok(()) | Err(Errno::ENOENT) => self.write(name, b"", owner, 0o600),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes what was done in the directory last.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.0.sync_all()
    }

    fn write_unfinished(&self, content: &[u8], owner: Owner, mode: u32) -> io::Result<()> {
        self.unlink(UNFINISHED)?;
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_WRONLY;
        let fd = self.open_below(UNFINISHED, flags, Mode::S_IRUSR | Mode::S_IWUSR)?;
        let mut file = File::from(fd);
        file.write_all(content)?;
        set(&file, owner, mode)?;
        file.sync_all()
    }

    fn unlink(&self, name: &str) -> io::Result<()> {
        match unlinkat(&self.0, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn open_below<P: ?Sized + nix::NixPath>(
        &self,
        path: &P,
        flags: OFlag,
        mode: Mode,
    ) -> nix::Result<OwnedFd> {
        let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS;
        let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).mode(mode).resolve(resolve);
        openat2(&self.0, path, how)
    }
}

fn set(file: &File, owner: Owner, mode: u32) -> io::Result<()> {
    fchown(file, Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)))?;
    fchmod(file, Mode::from_bits_truncate(mode))?;
    Ok(())
}

fn is(stat: &FileStat, owner: Owner, mode: u32) -> bool {
    stat.st_uid == owner.uid && stat.st_gid == owner.gid && stat.st_mode & 0o7777 == mode
}

fn is_regular(stat: &FileStat) -> bool {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG
}
