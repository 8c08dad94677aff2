//! The directory into which an archive is unpacked. Nothing that an archive says leads out of it:
//! every path is opened beneath the directory and through no symbolic link (openat2(2),
//! `RESOLVE_BENEATH` and `RESOLVE_NO_SYMLINKS`), and everything is made anew.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, FileTimes, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, fchown, lchown, symlink};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2, renameat};
use nix::sys::stat::{Mode, UtimensatFlags, mkdirat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::linkat;

use super::blocks::{Entry, read_fault};
use super::refusal::UnpackError;
use super::unpack::Owner;
use crate::id::Hasher;

/// Copied this much at a time; as much of nothing becomes a hole.
const BUFFER: usize = 64 << 10;

/// A directory that is being filled.
pub(super) struct Place {
    into: PathBuf,
    root: File,
    owner: Owner,
    /// Directories that the archive has, by their path: their looks come last.
    directories: BTreeMap<PathBuf, Entry>,
    /// The directory that was used last, because the next entry is mostly in it too.
    last: Option<(PathBuf, File)>,
}

impl Place {
    /// `into` exists and is empty.
    pub(super) fn new(into: &Path, owner: Owner) -> Result<Self, UnpackError> {
        let root = File::open(into).map_err(failed("opening", into))?;
        let into = into.to_owned();
        Ok(Self { into, root, owner, directories: BTreeMap::new(), last: None })
    }

    /// A directory, and those above it when the archive did not have them yet.
    pub(super) fn directory(&mut self, path: &Path, entry: Entry) -> Result<(), UnpackError> {
        self.open_or_make(path)?;
        match self.directories.insert(path.to_owned(), entry) {
            Some(_) => Err(UnpackError::Duplicate(path.to_owned())),
            None => Ok(()),
        }
    }

    /// A new file with this content. Gives its SHA-256.
    pub(super) fn file(
        &mut self,
        path: &Path,
        entry: &Entry,
        content: &mut impl Read,
    ) -> Result<[u8; 32], UnpackError> {
        let (parent, name) = self.parent(path)?;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        let file = openat(&parent, name, flags | OFlag::O_NOFOLLOW, mode);
        let mut file = File::from(file.map_err(|errno| made(path, errno))?);
        let mut hasher = Hasher::new();
        let mut buffer = vec![0; BUFFER];
        loop {
            let count = match content.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(fault) if fault.kind() == io::ErrorKind::Interrupted => continue,
                Err(fault) => return Err(read_fault(fault)),
            };
            let part = buffer.get(..count).unwrap_or_default();
            hasher.update(part);
            write_part(&mut file, part).map_err(failed("writing", path))?;
        }
        file.set_len(entry.size).map_err(failed("writing", path))?;
        self.dress(&file, path, entry)?;
        Ok(hasher.finish())
    }

    pub(super) fn symlink(&mut self, path: &Path, entry: &Entry) -> Result<(), UnpackError> {
        let (parent, name) = self.parent(path)?;
        let at = in_directory(&parent, name);
        symlink(&entry.target, &at).map_err(|fault| match fault.kind() {
            io::ErrorKind::AlreadyExists => UnpackError::Duplicate(path.to_owned()),
            _ => failed("making", path)(fault),
        })?;
        let (user, group) = self.owner_of(entry);
        lchown(&at, Some(user), Some(group)).map_err(failed("giving an owner to", path))?;
        let (seconds, nanoseconds) = entry.modified;
        let time = TimeSpec::new(seconds, i64::from(nanoseconds));
        utimensat(AT_FDCWD, &at, &time, &time, UtimensatFlags::NoFollowSymlink)
            .map_err(|errno| failed("giving times to", path)(errno.into()))
    }

    /// Another name of a file that is there.
    pub(super) fn hard_link(&mut self, path: &Path, target: &Path) -> Result<(), UnpackError> {
        let refused = || UnpackError::HardLink { path: path.to_owned(), target: target.to_owned() };
        // Opened for its path only: the kernel would wait for the other end of a pipe.
        let file = self.open(target, OFlag::O_PATH | OFlag::O_NOFOLLOW).map_err(|_| refused())?;
        if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
            return Err(refused());
        }
        let (parent, name) = self.parent(path)?;
        let from = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        linkat(AT_FDCWD, &from, &parent, name, AtFlags::AT_SYMLINK_FOLLOW)
            .map_err(|errno| made(path, errno))
    }

    /// Moves what is at a path to a place at the top that must not exist.
    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> Result<(), UnpackError> {
        self.last = None;
        let (parent, name) = self.parent(from)?;
        let failed = |errno: Errno| failed("moving", from)(errno.into());
        renameat(&parent, name, &self.root, to).map_err(failed)
    }

    /// What is at a path, which leads through no link; nothing when it is absent.
    pub(super) fn kind(&self, path: &Path) -> Option<fs::FileType> {
        let file = self.open(path, OFlag::O_PATH | OFlag::O_NOFOLLOW).ok()?;
        file.metadata().ok().map(|metadata| metadata.file_type())
    }

    /// Gives directories their looks, the innermost first: making entries changed their times.
    pub(super) fn finish(&mut self) -> Result<(), UnpackError> {
        self.last = None;
        for (path, entry) in std::mem::take(&mut self.directories).iter().rev() {
            let directory = self
                .open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY)
                .map_err(|errno| failed("opening", path)(errno.into()))?;
            self.dress(&directory, path, entry)?;
        }
        Ok(())
    }

    pub(super) fn root(&self) -> &Path {
        &self.into
    }

    fn dress(&self, file: &File, path: &Path, entry: &Entry) -> Result<(), UnpackError> {
        let (user, group) = self.owner_of(entry);
        fchown(file, Some(user), Some(group)).map_err(failed("giving an owner to", path))?;
        file.set_permissions(Permissions::from_mode(entry.mode))
            .map_err(failed("giving a mode to", path))?;
        let Some(time) = system_time(entry.modified) else { return Ok(()) };
        let times = FileTimes::new().set_modified(time).set_accessed(time);
        file.set_times(times).map_err(failed("giving times to", path))
    }

    fn owner_of(&self, entry: &Entry) -> (u32, u32) {
        match self.owner {
            Owner::Kept => (entry.user, entry.group),
            Owner::Given { user, group } => (user, group),
        }
    }

    /// The directory that a path is in, made when absent, and the path's last name.
    fn parent<'a>(&mut self, path: &'a Path) -> Result<(File, &'a OsStr), UnpackError> {
        let name = path.file_name().ok_or_else(|| UnpackError::Path(path.to_owned()))?;
        let parent = path.parent().unwrap_or_else(|| Path::new(""));
        Ok((self.open_or_make(parent)?, name))
    }

    fn open_or_make(&mut self, path: &Path) -> Result<File, UnpackError> {
        let again = failed("opening", path);
        if path.as_os_str().is_empty() {
            return self.root.try_clone().map_err(again);
        }
        if let Some((last, file)) = &self.last
            && last == path
        {
            return file.try_clone().map_err(again);
        }
        let mut missing = Vec::new();
        let mut there = path;
        // From the path upwards until something is there, and down again.
        let mut file = loop {
            match self.open(there, OFlag::O_RDONLY | OFlag::O_DIRECTORY) {
                Ok(file) => break file,
                Err(Errno::ENOENT) => missing.push(there),
                Err(Errno::ELOOP) => return Err(UnpackError::BehindLink(path.to_owned())),
                Err(Errno::ENOTDIR) => return Err(self.in_the_way(there, path)),
                Err(errno) => return Err(failed("opening", there)(errno.into())),
            }
            there = there.parent().unwrap_or_else(|| Path::new(""));
        };
        for path in missing.into_iter().rev() {
            let name = path.file_name().unwrap_or_default();
            let failed = |errno: Errno| failed("making", path)(errno.into());
            mkdirat(&file, name, Mode::S_IRWXU).map_err(failed)?;
            file = self.open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY).map_err(failed)?;
            if let Owner::Given { user, group } = self.owner {
                fchown(&file, Some(user), Some(group))
                    .map_err(self::failed("giving an owner to", path))?;
            }
        }
        self.last = Some((path.to_owned(), file.try_clone().map_err(failed("opening", path))?));
        Ok(file)
    }

    /// Something that is no directory and should be one: a link, or an earlier entry.
    fn in_the_way(&self, there: &Path, path: &Path) -> UnpackError {
        let mut above = there.ancestors();
        match above.find_map(|path| self.kind(path)) {
            Some(kind) if kind.is_symlink() => UnpackError::BehindLink(path.to_owned()),
            _ => UnpackError::Duplicate(path.to_owned()),
        }
    }

    fn open(&self, path: &Path, flags: OFlag) -> Result<File, Errno> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS;
        // Asked for itself, a link is what it is; on the way to something else it is refused.
        let follow = ResolveFlag::RESOLVE_NO_SYMLINKS;
        let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(resolve | follow);
        openat2(&self.root, path, how).map(File::from)
    }
}

/// The names of a path in an archive: nothing but names.
pub(super) fn plain(path: &Path) -> Result<PathBuf, UnpackError> {
    use std::os::unix::ffi::OsStrExt;
    let refused = || UnpackError::Path(path.to_owned());
    let bytes = path.as_os_str().as_bytes();
    let bytes = bytes.strip_suffix(b"/").unwrap_or(bytes);
    let mut plain = PathBuf::new();
    for name in bytes.split(|byte| *byte == b'/') {
        if matches!(name, b"" | b"." | b"..") || name.contains(&0) {
            return Err(refused());
        }
        plain.push(OsStr::from_bytes(name));
    }
    Ok(plain)
}

/// Refuses links below a directory that lead, or could lead, out of it. A target may go up first
/// and then only down: going up behind another link would lead elsewhere than it says.
pub(super) fn refuse_links_out(root: &Path, shown: &Path) -> Result<(), UnpackError> {
    let mut stack = vec![(root.to_owned(), 0_usize)];
    while let Some((directory, depth)) = stack.pop() {
        let entries = fs::read_dir(&directory).map_err(failed("reading", &directory))?;
        for entry in entries {
            let entry = entry.map_err(failed("reading", &directory))?;
            let path = entry.path();
            let kind = entry.file_type().map_err(failed("reading", &path))?;
            if kind.is_dir() {
                stack.push((path, depth + 1));
            } else if kind.is_symlink() {
                let target = fs::read_link(&path).map_err(failed("reading", &path))?;
                if !stays_inside(&target, depth) {
                    let path = shown.join(path.strip_prefix(root).unwrap_or(&path));
                    return Err(UnpackError::LinkOut { path, target });
                }
            }
        }
    }
    Ok(())
}

fn stays_inside(target: &Path, depth: usize) -> bool {
    let mut up = 0;
    let mut down = false;
    for component in target.components() {
        match component {
            Component::ParentDir if !down => up += 1,
            Component::Normal(_) => down = true,
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return false,
        }
    }
    up <= depth
}

/// A whole buffer of zeros is passed over, so that the file has a hole there.
fn write_part(file: &mut File, part: &[u8]) -> io::Result<()> {
    if part.len() == BUFFER && part.iter().all(|byte| *byte == 0) {
        let length = i64::try_from(BUFFER).unwrap_or(i64::MAX);
        return file.seek(SeekFrom::Current(length)).map(|_| ());
    }
    file.write_all(part)
}

fn in_directory(directory: &File, name: &OsStr) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name)
}

fn system_time((seconds, nanoseconds): (i64, u32)) -> Option<SystemTime> {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    let whole = match seconds < 0 {
        true => UNIX_EPOCH.checked_sub(distance),
        false => UNIX_EPOCH.checked_add(distance),
    };
    whole?.checked_add(Duration::from_nanos(u64::from(nanoseconds)))
}

fn made(path: &Path, errno: Errno) -> UnpackError {
    match errno {
        Errno::EEXIST => UnpackError::Duplicate(path.to_owned()),
        errno => failed("making", path)(errno.into()),
    }
}

pub(super) fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> UnpackError {
    let path = path.to_owned();
    move |source| UnpackError::Write { doing, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_have_names_only() {
        assert_eq!(plain(Path::new("data/a b/")).unwrap(), Path::new("data/a b"));
        for path in ["", "/", "/etc", "a//b", "./a", "a/.", "..", "a/../b", "../a", "a/..", "a\0"] {
            assert!(matches!(plain(Path::new(path)), Err(UnpackError::Path(_))), "{path:?}");
        }
    }

    #[test]
    fn links_go_up_no_further_than_they_are_deep() {
        for (target, depth, inside) in [
            ("x", 0, true),
            ("../x", 0, false),
            ("../x", 1, true),
            ("../../x", 1, false),
            ("./../x", 1, true),
            ("a/../x", 5, false),
            ("/x", 5, false),
            ("..", 1, true),
        ] {
            assert_eq!(stays_inside(Path::new(target), depth), inside, "{target} {depth}");
        }
    }
}
