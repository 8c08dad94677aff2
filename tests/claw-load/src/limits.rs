//! Open files: each simulated agent is a connection of this process.

use anyhow::{Context as _, Result};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises the limit of open files to the hard one, for this process and those it starts.
pub(crate) fn raise_open_files() -> Result<()> {
    let (_soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("cannot read the limit")?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("cannot raise the limit of open files")
}

/// Agents that the limit has room for, with some files for everything else.
pub(crate) fn room() -> Result<u64> {
    let (soft, _hard) = getrlimit(Resource::RLIMIT_NOFILE).context("cannot read the limit")?;
    Ok(soft.saturating_sub(200))
}
