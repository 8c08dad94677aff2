//! What `clawd join` records beside the identity: where the coordinator is.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use crate::session::address::Address;

/// Below the data directory.
const FILE: &str = "coordinator";

/// Where the identity is below the data directory.
#[must_use]
pub fn identity_dir(data: &Path) -> PathBuf {
    data.join("identity")
}

/// Records the coordinator, durably: temporary file, fsync, rename, fsync of the directory.
///
/// # Errors
/// What the system says.
pub fn record(data: &Path, coordinator: &Address) -> io::Result<()> {
    let temporary = data.join(format!(".{FILE}.next"));
    let mut file = File::create(&temporary)?;
    writeln!(file, "{coordinator}")?;
    file.sync_all()?;
    fs::rename(&temporary, data.join(FILE))?;
    File::open(data)?.sync_all()
}

/// The coordinator that was recorded, if one was.
#[must_use]
pub fn coordinator(data: &Path) -> Option<Address> {
    fs::read_to_string(data.join(FILE)).ok()?.trim().parse().ok()
}
