//! What is costly to make and kept between runs: base systems, images, Docker data directories.
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;

use crate::progress::Progress;

/// The cache directory: `/var/cache/claw`, or what the environment variable `CLAW_CACHE` names.
#[derive(Clone, Debug)]
pub struct Cache {
    dir: PathBuf,
    progress: Arc<dyn Progress>,
}

/// A Debian release that a lab host can run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Suite {
    /// Debian 12: systemd 252, Docker 20.10.
    #[default]
    Bookworm,
    /// Debian 13: systemd 257, Docker 26.1.
    Trixie,
}

impl Cache {
    /// Opens the cache, creating its directory.
    ///
    /// # Errors
    /// When the directory cannot be created.
    pub fn open(progress: Arc<dyn Progress>) -> Result<Self> {
        let dir =
            std::env::var_os("CLAW_CACHE").map_or_else(|| "/var/cache/claw".into(), PathBuf::from);
        std::fs::create_dir_all(&dir)?;
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

    /// The root file system of a release, built by debootstrap unless cached.
    ///
    /// # Errors
    /// Without root, and when debootstrap fails.
    pub fn base(&self, suite: Suite) -> Result<PathBuf> {
        anyhow::bail!("no base for {suite:?}")
    }
}
