//! Owner, mode, times and extended attributes of files and directories.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;

use rustix::fs::{Gid, Mode, Stat, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

/// Extended attributes that are part of the data. Others are the kernel's or the host's own.
const CARRIED: [&[u8]; 4] =
    [b"user.", b"security.capability", b"system.posix_acl_access", b"system.posix_acl_default"];

/// Most bytes of a list of names or of a value (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX`, xattr(7)).
const XATTR_MAX: usize = 65536;

/// What there is to a file or directory beside its content.
#[derive(Debug, Clone)]
pub(super) struct Attributes {
    uid: u32,
    gid: u32,
    mode: u32,
    times: Timestamps,
    extended: Vec<(OsString, Vec<u8>)>,
}

impl Attributes {
    /// Those of an open file, whose status is given.
    pub(super) fn of(file: &OwnedFd, stat: &Stat) -> rustix::io::Result<Self> {
        Ok(Self {
            uid: stat.st_uid,
            gid: stat.st_gid,
            mode: stat.st_mode & 0o7777,
            times: times(stat),
            extended: extended(file)?,
        })
    }

    /// The same with another owner and mode.
    pub(super) fn owned(self, uid: u32, gid: u32, mode: u32) -> Self {
        Self { uid, gid, mode, ..self }
    }

    /// Gives them to an open file. What it has already is not written again.
    pub(super) fn give(&self, file: &OwnedFd) -> rustix::io::Result<()> {
        let now = rustix::fs::fstat(file)?;
        // A change of owner clears bits of the mode, a change of anything sets no time of ours.
        let owner = (now.st_uid, now.st_gid) != (self.uid, self.gid);
        if owner {
            let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
            rustix::fs::fchown(file, Some(uid), Some(gid))?;
        }
        if owner || now.st_mode & 0o7777 != self.mode {
            rustix::fs::fchmod(file, Mode::from_raw_mode(self.mode))?;
        }
        self.extend(file)?;
        if !same_instant(&times(&now).last_modification, &self.times.last_modification) {
            rustix::fs::futimens(file, &self.times)?;
        }
        Ok(())
    }

    fn extend(&self, file: &OwnedFd) -> rustix::io::Result<()> {
        let there = extended(file)?;
        for (name, _) in there.iter().filter(|(name, _)| self.value(name).is_none()) {
            rustix::fs::fremovexattr(file, name.as_os_str())?;
        }
        for (name, value) in self.extended.iter().filter(|mine| !there.contains(mine)) {
            rustix::fs::fsetxattr(file, name.as_os_str(), value, XattrFlags::empty())?;
        }
        Ok(())
    }

    fn value(&self, name: &OsString) -> Option<&Vec<u8>> {
        self.extended.iter().find(|(mine, _)| mine == name).map(|(_, value)| value)
    }
}

/// The times of an entry, as they are given to another.
pub(super) fn times(stat: &Stat) -> Timestamps {
    let instant =
        |seconds, nanos| Timespec { tv_sec: seconds, tv_nsec: i64::try_from(nanos).unwrap_or(0) };
    Timestamps {
        last_access: instant(stat.st_atime, stat.st_atime_nsec),
        last_modification: instant(stat.st_mtime, stat.st_mtime_nsec),
    }
}

const fn same_instant(a: &Timespec, b: &Timespec) -> bool {
    a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec
}

fn extended(file: &OwnedFd) -> rustix::io::Result<Vec<(OsString, Vec<u8>)>> {
    let Some(list) = list(file)? else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for name in list.split(|byte| *byte == 0) {
        if !CARRIED.iter().any(|prefix| name.starts_with(prefix)) {
            continue;
        }
        let mut value = vec![0; XATTR_MAX];
        match rustix::fs::fgetxattr(file, OsString::from_vec(name.to_vec()), &mut value) {
            Ok(length) => {
                value.truncate(length);
                value.shrink_to_fit();
                found.push((OsString::from_vec(name.to_vec()), value));
            }
            // Gone since it was listed.
            Err(Errno::NODATA) => {}
            Err(error) => return Err(error),
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// The names of extended attributes, each ended by a zero; none where there are none.
fn list(file: &OwnedFd) -> rustix::io::Result<Option<Vec<u8>>> {
    let mut short = [0; 256];
    match rustix::fs::flistxattr(file, &mut short[..]) {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(None),
        Ok(length) => return Ok(short.get(..length).map(<[u8]>::to_vec)),
        Err(Errno::RANGE) => {}
        Err(error) => return Err(error),
    }
    let mut long = vec![0; XATTR_MAX];
    let length = rustix::fs::flistxattr(file, &mut long[..])?;
    long.truncate(length);
    Ok(Some(long))
}
