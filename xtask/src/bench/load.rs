//! Data of an instance for the benches: many small files, as an assistant's state has.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use claw_lab::LabHost;
use claw_tests::{journal, unit};

/// Files of a directory.
const TOGETHER: usize = 500;
/// Whom they belong to.
const OWNER: u32 = 1000;

/// So many files, each so large, that no compression makes smaller.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    pub(super) files: usize,
    pub(super) kib: usize,
}

impl Load {
    /// Writes them to the data in use; returns where it is, as a path of this machine.
    pub(super) fn fill(self, host: &LabHost, name: &str) -> Result<PathBuf> {
        let data = data_in_use(host, name)?;
        (0..self.files).try_for_each(|number| write(&data, number, self.kib))?;
        Ok(data)
    }

    /// Writes every hundredth anew.
    pub(super) fn change(self, data: &Path) -> Result<()> {
        (0..self.files).step_by(100).try_for_each(|number| write(data, number, self.kib))
    }
}

fn write(data: &Path, number: usize, kib: usize) -> Result<()> {
    let dir = data.join(format!("media/{}", number / TOGETHER));
    if !dir.exists() {
        fs::create_dir_all(&dir)?;
        for dir in [dir.as_path(), dir.parent().context("no directory")?] {
            chown(dir, Some(OWNER), Some(OWNER))?;
        }
    }
    let mut bytes = vec![0; kib * 1024];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    let file = dir.join(format!("{number}.bin"));
    fs::write(&file, bytes).with_context(|| file.display().to_string())?;
    Ok(chown(&file, Some(OWNER), Some(OWNER))?)
}

fn data_in_use(host: &LabHost, name: &str) -> Result<PathBuf> {
    let active = journal::record(host, name)?["active"]["data"].as_u64();
    let active = active.context("it never passed its gate")?;
    unit::outside(host, &format!("/var/lib/clawd/instances/{name}/gen-{active}"))
}
