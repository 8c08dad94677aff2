//! Owners, modes, extended attributes and times of what was restored.
//!
//! In this order: changing the owner clears set-user-ID bits and capabilities (chown(2)), and
//! everything changes times.

use std::fs::{File, FileTimes, Permissions};
use std::os::unix::fs::{PermissionsExt, fchown, lchown};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use rustic_core::jiff::Timestamp;
use rustic_core::repofile::Metadata;

use super::RestoreError;
use super::files::failed;
use crate::source::node::permissions;

pub(super) fn file(file: &File, path: &Path, metadata: &Metadata) -> Result<(), RestoreError> {
    if metadata.uid.is_some() || metadata.gid.is_some() {
        fchown(file, metadata.uid, metadata.gid).map_err(failed("giving an owner to", path))?;
    }
    if let Some(mode) = metadata.mode {
        let permissions = Permissions::from_mode(permissions(mode));
        file.set_permissions(permissions).map_err(failed("giving a mode to", path))?;
    }
    attributes(path, metadata)?;
    let mut times = FileTimes::new();
    if let Some(modified) = metadata.mtime.and_then(system_time) {
        times = times.set_modified(modified);
    }
    if let Some(accessed) = metadata.atime.and_then(system_time) {
        times = times.set_accessed(accessed);
    }
    file.set_times(times).map_err(failed("giving times to", path))
}

pub(super) fn directory(path: &Path, metadata: &Metadata) -> Result<(), RestoreError> {
    let directory = File::open(path).map_err(failed("opening", path))?;
    file(&directory, path, metadata)
}

/// A symbolic link has an owner and times of its own, and no mode.
pub(super) fn link(path: &Path, metadata: &Metadata) -> Result<(), RestoreError> {
    if metadata.uid.is_some() || metadata.gid.is_some() {
        lchown(path, metadata.uid, metadata.gid).map_err(failed("giving an owner to", path))?;
    }
    attributes(path, metadata)?;
    let spec = |time: Option<Timestamp>| {
        time.map_or(TimeSpec::UTIME_OMIT, |time| {
            TimeSpec::new(time.as_second(), i64::from(time.subsec_nanosecond()))
        })
    };
    let (accessed, modified) = (spec(metadata.atime), spec(metadata.mtime));
    utimensat(AT_FDCWD, path, &accessed, &modified, UtimensatFlags::NoFollowSymlink)
        .map_err(|errno| failed("giving times to", path)(errno.into()))
}

/// Of a link they are the link's own: the calls do not follow it.
fn attributes(path: &Path, metadata: &Metadata) -> Result<(), RestoreError> {
    for attribute in &metadata.extended_attributes {
        let value = attribute.value.as_deref().unwrap_or_default();
        xattr::set(path, &attribute.name, value)
            .map_err(failed("giving extended attributes to", path))?;
    }
    Ok(())
}

/// Times before 1970 are allowed, and stored with a negative part below the second.
fn system_time(time: Timestamp) -> Option<SystemTime> {
    let nanoseconds = time.as_nanosecond();
    let magnitude = u64::try_from(nanoseconds.unsigned_abs()).ok()?;
    let distance = Duration::from_nanos(magnitude);
    if nanoseconds < 0 {
        UNIX_EPOCH.checked_sub(distance)
    } else {
        UNIX_EPOCH.checked_add(distance)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_the_epoch_are_times() {
        let before = Timestamp::new(-2, 500_000_000).unwrap();
        let expected = UNIX_EPOCH - Duration::from_millis(1500);
        assert_eq!(system_time(before), Some(expected));
        assert_eq!(system_time(Timestamp::UNIX_EPOCH), Some(UNIX_EPOCH));
    }
}
