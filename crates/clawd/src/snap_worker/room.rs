//! How much room there is, and how much something takes.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use claw_core::time::Timestamp;
use nix::libc;
use nix::sys::statvfs::statvfs;

use super::protocol::{Fault, FaultKind, Reserve};

/// A directory that is nested deeper than this is not counted: each level keeps one open.
const DEEPEST: usize = 64;
/// What a file takes on the disk beside its content, rounded up: a block and its inode.
pub(super) const PER_FILE: u64 = 4608;

/// What is in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Size {
    /// Bytes of files.
    pub(super) bytes: u64,
    /// Bytes of files that changed since a point in time.
    pub(super) changed_bytes: u64,
}

/// Room on a file system, in bytes and in files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Room {
    /// What is free.
    free: u64,
    /// What of it is kept free.
    kept: u64,
    /// Files that may be made; [`u64::MAX`] where nobody counts them.
    pub(super) files: u64,
}

impl Room {
    /// What there is.
    pub(super) fn look(place: &Path, reserve: Reserve) -> Result<Self, Fault> {
        let found = statvfs(place).map_err(|errno| Fault {
            kind: FaultKind::Failed,
            problem: format!("looking how full {} is: {errno}", place.display()),
        })?;
        let (block, free, all) = (found.fragment_size(), found.blocks_available(), found.blocks());
        let (free, all) = (free.saturating_mul(block), all.saturating_mul(block));
        let kept = (all / 1000).saturating_mul(reserve.permille).max(reserve.least_bytes);
        let files = match found.files() {
            // A file system that makes them as it needs them.
            0 => u64::MAX,
            files => {
                let kept = (files / 1000).saturating_mul(reserve.permille);
                found.files_available().saturating_sub(kept)
            }
        };
        Ok(Self { free, kept, files })
    }

    /// Bytes that may be written.
    pub(super) const fn usable(self) -> u64 {
        self.free.saturating_sub(self.kept)
    }
}

/// Refuses when writing so much would leave less than the reserve.
pub(super) fn claim(place: &Path, needed: u64, reserve: Reserve) -> Result<(), Fault> {
    let room = Room::look(place, reserve)?;
    if needed <= room.usable() {
        return Ok(());
    }
    let problem = format!(
        "it may take {} and there are {} on {}, of which {} are kept free",
        mebibytes(needed),
        mebibytes(room.free),
        place.display(),
        mebibytes(room.kept)
    );
    Err(Fault { kind: FaultKind::Full, problem })
}

/// The size of a data directory. It belongs to a tenant who may change it meanwhile, so no link is followed,
/// and what cannot be read counts nothing: it is an estimate.
pub(super) fn measure(
    root: &Path,
    leave_out: &[&str],
    since: Option<Timestamp>,
) -> io::Result<Size> {
    let root = open(root)?;
    let device = root.metadata()?.dev();
    let since = since.map_or(i64::MIN, |since| since.millis() / 1000);
    let mut size = Size::default();
    let mut stack = vec![(root, leave_out)];
    let mut pending: Vec<Vec<PathBuf>> = Vec::new();
    while let Some((directory, left_out)) = stack.last() {
        if pending.len() < stack.len() {
            pending.push(count(directory, left_out, since, &mut size));
        }
        match pending.last_mut().and_then(Vec::pop) {
            Some(next) if stack.len() < DEEPEST => {
                let entered = open(&next).ok();
                let ours = |entered: &File| {
                    entered.metadata().is_ok_and(|metadata| metadata.dev() == device)
                };
                if let Some(entered) = entered.filter(ours) {
                    stack.push((entered, &[]));
                }
            }
            Some(_too_deep) => {}
            None => {
                stack.pop();
                pending.pop();
            }
        }
    }
    Ok(size)
}

/// Counts the files of one directory; gives its directories, by their paths through `/proc`.
fn count(directory: &File, leave_out: &[&str], since: i64, size: &mut Size) -> Vec<PathBuf> {
    let path = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
    let mut directories = Vec::new();
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        // Of the entry itself, not of what it links to.
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.is_dir() {
            if !leave_out.iter().any(|name| entry.file_name() == *name) {
                directories.push(entry.path());
            }
        } else if metadata.is_file() {
            size.bytes = size.bytes.saturating_add(metadata.len());
            if metadata.ctime() >= since {
                size.changed_bytes = size.changed_bytes.saturating_add(metadata.len());
            }
        }
    }
    directories
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW).open(path)
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}
