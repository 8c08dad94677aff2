//! How large a data directory is.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Stat};
use rustix::io::Errno;

use super::job::{Watch, fault};
use super::tree::{self, Tree, io};
use crate::ports::{Measure, VolumeError};

/// Measures a directory. Somebody may be writing to it.
pub(super) fn measure(path: &Path, watch: &Watch) -> Result<Measure, VolumeError> {
    let mut found = room(path)?;
    let tree = match Tree::open(path) {
        Ok(tree) => tree,
        Err(Errno::NOENT) => return Ok(found),
        Err(error) => return Err(fault("opening", path, io(error))),
    };
    every_entry(&tree, watch, |stat| {
        found.entries += 1;
        found.bytes += u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512);
    })?;
    Ok(found)
}

/// How many bytes a copy of a directory goes through.
pub(super) fn contents(tree: &Tree, watch: &Watch) -> Result<u64, VolumeError> {
    let mut bytes = 0_u64;
    every_entry(tree, watch, |stat| {
        if tree::kind(stat) == FileType::RegularFile {
            bytes = bytes.saturating_add(tree::size(stat));
        }
    })?;
    Ok(bytes)
}

/// Shows every entry; a file with several names once.
fn every_entry(tree: &Tree, watch: &Watch, mut show: impl FnMut(&Stat)) -> Result<(), VolumeError> {
    let mut linked = BTreeSet::new();
    let mut open = vec![PathBuf::new()];
    while let Some(dir) = open.pop() {
        watch.step(&dir)?;
        let failed = |error| fault("measuring", &tree.full(&dir), io(error));
        let handle = match tree.dir(&dir) {
            Ok(handle) => handle,
            Err(error) if tree::vanished(error) => continue,
            Err(error) => return Err(failed(error)),
        };
        for name in tree::names(&handle).map_err(failed)? {
            let Some(stat) = tree::stat(&handle, &name).map_err(failed)? else { continue };
            let directory = tree::kind(&stat) == FileType::Directory;
            if directory || stat.st_nlink < 2 || linked.insert(stat.st_ino) {
                show(&stat);
            }
            if directory {
                open.push(dir.join(name));
            }
        }
    }
    Ok(())
}

/// Room on the file system of a path that may not exist yet.
fn room(path: &Path) -> Result<Measure, VolumeError> {
    let there = path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(path);
    let found = rustix::fs::statvfs(there);
    let found = found.map_err(|error| fault("looking for room at", there, io(error)))?;
    Ok(Measure {
        free_bytes: found.f_bavail.saturating_mul(found.f_frsize),
        total_bytes: found.f_blocks.saturating_mul(found.f_frsize),
        ..Measure::default()
    })
}
