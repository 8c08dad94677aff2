//! A file's metadata in the repository's form, and back.
//!
//! Modes are those of Go's `io/fs.FileMode`, which restic stores
//! (<https://pkg.go.dev/io/fs#FileMode>).

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use claw_core::time::Timestamp;
use nix::fcntl::AtFlags;
use nix::sys::stat::{SFlag, fstatat};
use rustic_core::jiff;
use rustic_core::repofile::{Metadata, Node, NodeType};

pub(crate) const GO_DIRECTORY: u32 = 1 << 31;
const GO_SYMLINK: u32 = 1 << 27;
const GO_SETUID: u32 = 1 << 23;
const GO_SETGID: u32 = 1 << 22;
const GO_STICKY: u32 = 1 << 20;
pub(crate) const DIRECTORY_MODE: u32 = 0o700;

/// stat(2): bits of `st_mode` besides the permissions.
const SETUID: u32 = 0o4000;
const SETGID: u32 = 0o2000;
const STICKY: u32 = 0o1000;
const PERMISSIONS: u32 = 0o777;

/// How near to the snapshot's begin a change may be without being trusted, in milliseconds.
/// File systems keep times in steps of some milliseconds: two changes can carry one time.
const RACY: i64 = 1000;

/// What identifies a state of a file: when any of it differs, it may have changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fingerprint {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Fingerprint {
    pub(crate) fn of(metadata: &fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: if metadata.is_dir() { 0 } else { metadata.size() },
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Of the entry of this name in an open directory, not of what it links to.
    ///
    /// # Errors
    ///
    /// When there is none, or the kernel refuses.
    pub(crate) fn at(directory: &OwnedFd, name: &OsStr) -> io::Result<Self> {
        let found = fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        let is_directory = found.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits();
        let size = if is_directory { 0 } else { u64::try_from(found.st_size).unwrap_or(u64::MAX) };
        Ok(Self {
            device: found.st_dev,
            inode: found.st_ino,
            size,
            modified: (found.st_mtime, found.st_mtime_nsec),
            changed: (found.st_ctime, found.st_ctime_nsec),
        })
    }

    /// Whether both are of the same file, in whatever state.
    pub(crate) fn is_same_file(&self, other: &Self) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Whether it changed so shortly before `start`, or after, that a later change might not show.
    pub(crate) fn is_racy(&self, start: Timestamp) -> bool {
        self.last_change().saturating_add(RACY) >= start.millis()
    }

    /// In milliseconds since 1970.
    fn last_change(&self) -> i64 {
        let latest = self.modified.max(self.changed);
        latest.0.saturating_mul(1000).saturating_add(latest.1 / 1_000_000)
    }
}

/// A directory's, file's or link's node. `path` must reach the entry without following it.
///
/// The change time of an entry that changed about when the snapshot began is stored as zero: the
/// next snapshot then finds it different and reads it, instead of trusting equal times.
///
/// # Errors
///
/// When extended attributes or a link's target could not be read.
pub(crate) fn of_entry(
    path: &Path,
    name: &OsStr,
    metadata: &fs::Metadata,
    start: Timestamp,
) -> io::Result<Node> {
    let modified = time(metadata.mtime(), metadata.mtime_nsec());
    let racy = Fingerprint::of(metadata).is_racy(start);
    let is_directory = metadata.is_dir();
    // Directories are always walked; the time of their listing says nothing.
    let changed = if racy { Some(jiff::Timestamp::UNIX_EPOCH) } else { changed(metadata) };
    let links = if is_directory { 0 } else { metadata.nlink() };
    let mut meta = Metadata {
        mode: Some(mode(metadata)),
        mtime: modified,
        atime: modified,
        ctime: changed,
        uid: Some(metadata.uid()),
        gid: Some(metadata.gid()),
        inode: metadata.ino(),
        // As restic and rustic do: only where it tells hard links apart.
        device_id: if links > 1 { metadata.dev() } else { 0 },
        size: if is_directory { 0 } else { metadata.size() },
        links,
        ..Metadata::default()
    };
    read_attributes(path, &mut meta)?;
    let node_type = if is_directory {
        NodeType::Dir
    } else if metadata.is_symlink() {
        NodeType::from_link(&fs::read_link(path)?)
    } else {
        NodeType::File
    };
    Ok(Node::new_node(name, node_type, meta))
}

/// The permissions of a stored mode, as chmod(2) takes them.
pub(crate) fn permissions(mode: u32) -> u32 {
    let mut bits = mode & PERMISSIONS;
    for (go, unix) in [(GO_SETUID, SETUID), (GO_SETGID, SETGID), (GO_STICKY, STICKY)] {
        if mode & go != 0 {
            bits |= unix;
        }
    }
    bits
}

fn mode(metadata: &fs::Metadata) -> u32 {
    let unix = metadata.mode();
    let mut mode = unix & PERMISSIONS;
    for (bit, go) in [(SETUID, GO_SETUID), (SETGID, GO_SETGID), (STICKY, GO_STICKY)] {
        if unix & bit != 0 {
            mode |= go;
        }
    }
    if metadata.is_dir() {
        mode |= GO_DIRECTORY;
    } else if metadata.is_symlink() {
        mode |= GO_SYMLINK;
    }
    mode
}

fn changed(metadata: &fs::Metadata) -> Option<jiff::Timestamp> {
    time(metadata.ctime(), metadata.ctime_nsec())
}

fn time(seconds: i64, nanoseconds: i64) -> Option<jiff::Timestamp> {
    jiff::Timestamp::new(seconds, i32::try_from(nanoseconds).ok()?).ok()
}

/// The engine's type for an attribute has no public name; its fields have.
fn read_attributes(path: &Path, meta: &mut Metadata) -> io::Result<()> {
    let names = match xattr::list(path) {
        Ok(names) => names,
        Err(fault) if fault.kind() == io::ErrorKind::Unsupported => return Ok(()),
        Err(fault) => return Err(fault),
    };
    for name in names {
        let Some(text) = name.to_str() else { return Err(io::ErrorKind::InvalidData.into()) };
        let attribute = serde_json::json!({ "name": text, "value": null });
        let mut attribute = vec![serde_json::from_value(attribute)?];
        meta.extended_attributes.append(&mut attribute);
        if let Some(last) = meta.extended_attributes.last_mut() {
            last.value = xattr::get(path, &name)?;
        }
    }
    meta.extended_attributes.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn modes_survive() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "x").unwrap();
        for bits in [0o644, 0o4755, 0o2750, 0o1777, 0o000] {
            fs::set_permissions(&path, fs::Permissions::from_mode(bits)).unwrap();
            let metadata = fs::symlink_metadata(&path).unwrap();
            assert_eq!(permissions(mode(&metadata)), bits, "{bits:o}");
        }
    }

    #[test]
    fn a_recent_change_is_not_trusted() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "x").unwrap();
        let metadata = fs::symlink_metadata(&path).unwrap();
        let changed = metadata.ctime() * 1000 + metadata.ctime_nsec() / 1_000_000;
        let node = |start| {
            let start = Timestamp::from_millis(start);
            of_entry(&path, OsStr::new("file"), &metadata, start).unwrap()
        };
        assert_eq!(node(changed + 1001).meta.ctime, super::changed(&metadata));
        for start in [changed + 1000, changed, changed - 5000] {
            assert_eq!(node(start).meta.ctime, Some(jiff::Timestamp::UNIX_EPOCH));
        }
    }
}
