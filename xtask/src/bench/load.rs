//! Data of an instance for the benches: many small files, as an assistant's state has.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::chown;

use anyhow::{Context, Result};
use claw_lab::LabHost;
use claw_tests::{journal, unit};

/// Files of a directory.
const TOGETHER: usize = 500;
/// Bytes of a file.
const SIZE: usize = 20 * 1024;
/// Whom they belong to.
const OWNER: u32 = 1000;

/// Writes `count` files of 20 KiB that no compression makes smaller to the data in use; returns where it is,
/// as a path of this machine.
pub(super) fn fill(host: &LabHost, name: &str, count: usize) -> Result<std::path::PathBuf> {
    let data = data_in_use(host, name)?;
    for number in 0..count {
        write(&data, number)?;
    }
    Ok(data)
}

/// Writes every hundredth file anew.
pub(super) fn change(data: &std::path::Path, count: usize) -> Result<()> {
    (0..count).step_by(100).try_for_each(|number| write(data, number))
}

fn write(data: &std::path::Path, number: usize) -> Result<()> {
    let dir = data.join(format!("media/{}", number / TOGETHER));
    if !dir.exists() {
        fs::create_dir_all(&dir)?;
        for dir in [dir.as_path(), dir.parent().context("no directory")?] {
            chown(dir, Some(OWNER), Some(OWNER))?;
        }
    }
    let mut bytes = vec![0; SIZE];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    let file = dir.join(format!("{number}.bin"));
    fs::write(&file, bytes).with_context(|| file.display().to_string())?;
    Ok(chown(&file, Some(OWNER), Some(OWNER))?)
}

fn data_in_use(host: &LabHost, name: &str) -> Result<std::path::PathBuf> {
    let active = journal::record(host, name)?["active"]["data"].as_u64();
    let active = active.context("it never passed its gate")?;
    unit::outside(host, &format!("/var/lib/clawd/instances/{name}/gen-{active}"))
}
