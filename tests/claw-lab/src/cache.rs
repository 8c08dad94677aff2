//! What is costly to make and kept between runs: base systems, images, Docker data directories.
//!
//! Every entry is a directory that is built beside its place, under a lock, and renamed into it: it
//! is there whole or not at all, and two runs never build the same one twice. It deliberately knows
//! nothing of what the entries are; see [`crate::images`] for some.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};

use crate::process::{self, command};
use crate::progress::Progress;
use crate::rootfs;

pub use crate::rootfs::Suite;

/// The cache directory: `/var/cache/claw`, or what the environment variable `CLAW_CACHE` names.
#[derive(Clone, Debug)]
pub struct Cache {
    dir: PathBuf,
    progress: Arc<dyn Progress>,
}

impl Cache {
    /// Opens the cache, creating its directory.
    ///
    /// # Errors
    /// When the directory cannot be created.
    pub fn open(progress: Arc<dyn Progress>) -> Result<Self> {
        let dir =
            std::env::var_os("CLAW_CACHE").map_or_else(|| "/var/cache/claw".into(), PathBuf::from);
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let dir = dir.canonicalize()?;
        Ok(Self { dir, progress })
    }

    /// Its directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the long parts are reported.
    #[must_use]
    pub fn progress(&self) -> &dyn Progress {
        &*self.progress
    }

    /// The root file system of a release, built by debootstrap unless cached (a minute).
    ///
    /// # Errors
    /// Without root, and when debootstrap fails.
    pub fn base(&self, suite: Suite) -> Result<PathBuf> {
        rootfs::host(self, suite)
    }

    /// The entry `kind/key`, made by `build` in an empty directory unless it is there.
    pub(crate) fn entry(
        &self,
        kind: &str,
        key: &str,
        build: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let path = self.dir.join(kind).join(key);
        if path.exists() {
            // Its age says when it was last used; see `prune`.
            let _ = File::open(&path).and_then(|dir| dir.set_modified(now()));
            return Ok(path);
        }
        let _lock = self.lock(&format!("{kind}-{key}"))?;
        if path.exists() {
            return Ok(path);
        }
        let partial = self.dir.join(kind).join(format!("{key}.partial"));
        remove_tree(&partial)?;
        fs::create_dir_all(&partial)?;
        if let Err(error) = build(&partial) {
            remove_tree(&partial)?;
            return Err(error);
        }
        fs::rename(&partial, &path)?;
        Ok(path)
    }

    /// A directory of the cache that is shared and never complete, such as downloaded packages.
    pub(crate) fn shared(&self, name: &str) -> Result<PathBuf> {
        let path = self.dir.join(name);
        fs::create_dir_all(&path)?;
        Ok(path)
    }

    /// Waits for the lock called `name` and holds it until the file is dropped.
    pub(crate) fn lock(&self, name: &str) -> Result<File> {
        let file = self.lock_file(name)?;
        if file.try_lock().is_err() {
            self.progress.detail(&format!("waiting for another run to finish {name}"));
            file.lock()?;
        }
        Ok(file)
    }

    /// Holds the lock called `name` together with others that do; keeps `prune` away from an entry.
    pub(crate) fn lock_shared(&self, name: &str) -> Result<File> {
        let file = self.lock_file(name)?;
        file.lock_shared()?;
        Ok(file)
    }

    /// Removes all entries of a kind but the `keep` last used and those of the last hour.
    pub(crate) fn prune(&self, kind: &str, keep: usize) -> Result<()> {
        let mut entries: Vec<(SystemTime, PathBuf)> = fs::read_dir(self.dir.join(kind))?
            .filter_map(Result::ok)
            .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
            .filter(|(_, path)| path.extension().is_none_or(|suffix| suffix != "partial"))
            .collect();
        entries.sort();
        let surplus = entries.len().saturating_sub(keep);
        for (used, path) in entries.into_iter().take(surplus) {
            let key = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let lock = self.lock_file(&format!("{kind}-{key}"))?;
            let recent = used.elapsed().is_ok_and(|age| age < Duration::from_secs(3600));
            if !recent && lock.try_lock().is_ok() {
                remove_tree(&path)?;
            }
        }
        Ok(())
    }

    fn lock_file(&self, name: &str) -> Result<File> {
        let path = self.shared("locks")?.join(name);
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        file.with_context(|| format!("cannot open {}", path.display()))
    }
}

/// Removes a directory tree if it is there.
pub(crate) fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// SHA-256 of these bytes in hexadecimal.
pub(crate) fn sha256(bytes: &[u8]) -> Result<String> {
    first_word(process::checked(
        process::Launch::plain(command("sha256sum")),
        bytes,
        Duration::from_secs(60),
    )?)
}

/// SHA-256 of a file in hexadecimal.
pub(crate) fn sha256_of(path: &Path) -> Result<String> {
    let mut sum = command("sha256sum");
    sum.arg("--").arg(path);
    first_word(process::run(sum, Duration::from_secs(600))?)
}

fn first_word(line: String) -> Result<String> {
    let word = line.split_whitespace().next().context("sha256sum printed nothing")?;
    Ok(word.trim_start_matches('\\').to_owned())
}

#[expect(clippy::disallowed_methods, reason = "the age of cache entries is wall-clock time")]
fn now() -> SystemTime {
    SystemTime::now()
}
