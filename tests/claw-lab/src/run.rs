//! The directory that a lab's state lies in, and the sweeping of those whose owner is dead.
//!
//! A live run holds a lock on a file in its directory; the kernel drops it however the run ends.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cache::{Cache, remove_tree};
use crate::cgroup;

/// The control groups of a run are called this, its id, and the host's name.
const GROUP_PREFIX: &str = "claw-lab";
const OWNER: &str = "owner.lock";

/// A run's directory; dropping it removes it.
#[derive(Debug)]
pub(crate) struct Run {
    id: String,
    dir: PathBuf,
    _owner: File,
}

impl Run {
    /// Sweeps what dead runs left, then creates a directory for this one.
    pub(crate) fn create(name: &str, cache: &Cache) -> Result<Self> {
        let runs = cache.shared("run")?;
        // Under one lock: else a sweep could find a directory whose owner has not locked it yet.
        let _lock = cache.lock("runs")?;
        sweep(&runs)?;
        let pid = std::process::id();
        let free = (0..).map(|n: u32| format!("{name}.{pid}.{n}"));
        let id = free.into_iter().find(|id| !runs.join(id).exists()).unwrap_or_default();
        let dir = runs.join(&id);
        fs::create_dir(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let owner = File::create(dir.join(OWNER))?;
        owner.try_lock().context("a new lock is held by somebody")?;
        Ok(Self { id, dir, _owner: owner })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The name of a host's control groups.
    pub(crate) fn group(&self, host: &str) -> String {
        format!("{GROUP_PREFIX}.{}.{host}", self.id)
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // What cannot be removed now is swept by the next start.
        let _ = remove_tree(&self.dir);
    }
}

fn sweep(runs: &Path) -> Result<()> {
    for entry in fs::read_dir(runs)? {
        let entry = entry?;
        let owner = File::options().write(true).open(entry.path().join(OWNER));
        if owner.is_ok_and(|owner| owner.try_lock().is_err()) {
            continue;
        }
        cgroup::sweep(&format!("{GROUP_PREFIX}.{}.", entry.file_name().to_string_lossy()))?;
        remove_tree(&entry.path())?;
    }
    Ok(())
}
